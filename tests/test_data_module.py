"""The DataModule: halves that never meet, test pictures that only the test can reach, and what it refuses."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import seed_everything
from torch import Tensor
from torchvision.transforms.functional import normalize

from dartslight.data import Batch, Digits, ImageData, ImageFolder, Pictures
from dartslight.data.augmentation import augment, cut_out, normalise
from dartslight.data.sampling import UNCHANGED
from dartslight.errors import InputError


def numbered(count: int, first: int = 0, classes: tuple[str, ...] = ("a", "b"), side: int = 6) -> Pictures:
    images = torch.randint(0, 200, (count, 3, side, side), generator=torch.Generator().manual_seed(first)).to(
        torch.uint8
    )
    return Pictures(images, torch.arange(first, first + count), classes)


class Numbered(ImageData):
    """Forty training pictures and ten test pictures, numbered through."""

    def load(self, train: bool) -> Pictures:
        return numbered(40) if train else numbered(10, 1000)


class Sealed(ImageData):
    """Has test pictures that must not be touched."""

    def load(self, train: bool) -> Pictures:
        if not train:
            raise AssertionError("the test pictures were loaded")
        return numbered(40)


class Standardised(ImageData):
    """Knows its mean and standard deviation."""

    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)

    def load(self, train: bool) -> Pictures:
        assert not train, "the training pictures were loaded"
        return numbered(10, 1000)


def ready(data: ImageData, stage: str = "fit") -> ImageData:
    data.setup(stage)
    return data


def half(data: ImageData, part: str) -> list[int]:
    return sorted(torch.cat([b[part].labels for b in data.train_dataloader()]).tolist())


def seen(loader: Any) -> list[int]:
    return [label for batch in loader for label in batch.labels.tolist()]


def test_the_halves_are_disjoint_and_hold_everything() -> None:
    data = ready(Numbered(train_portion=0.7, batch_size=8))
    train = half(data, "train")
    val = sorted(seen(data.val_dataloader()))
    assert len(train) == 28
    assert sorted(train + val) == list(range(40))
    assert train != list(range(28))
    assert set(half(data, "val")) <= set(val)


def test_the_official_split_takes_the_first_pictures() -> None:
    data = ready(Numbered(train_portion=0.7, split="official"))
    assert half(data, "train") == list(range(28))
    assert seen(data.val_dataloader()) == list(range(28, 40))


def test_fewer_pictures() -> None:
    official = ready(Numbered(max_pictures=11, split="official"))
    assert half(official, "train") == list(range(5))
    assert seen(official.val_dataloader()) == list(range(5, 11))
    drawn = ready(Numbered(max_pictures=11, seed=1))
    chosen = half(drawn, "train") + seen(drawn.val_dataloader())
    assert len(set(chosen)) == 11
    assert max(chosen) > 11
    everything = ready(Numbered(seed=1, train_portion=1.0, max_pictures=99))
    assert half(everything, "train") == list(range(40))


def test_the_seed_decides_the_halves() -> None:
    halves = [half(ready(Numbered(seed=seed)), "train") for seed in (1, 1, 2)]
    assert halves[0] == halves[1] != halves[2]


def test_without_a_seed_it_is_that_of_seed_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # so that the variable is put back
    data = Numbered()
    seed_everything(7, verbose=False)
    assert half(ready(data), "train") == half(ready(Numbered(seed=7)), "train")
    monkeypatch.delenv("PL_GLOBAL_SEED")
    assert half(ready(Numbered()), "train") == half(ready(Numbered(seed=0)), "train")


@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_nothing_but_the_test_reaches_test_pictures(stage: str) -> None:
    data = ready(Sealed(batch_size=8), stage)
    data.prepare_data()
    numbers = half(data, "train") + seen(data.val_dataloader()) + seen(data.selection_batches(True, 1))
    assert max(numbers) < 1000
    assert (data.num_classes, data.classes, data.image_shape) == (2, ("a", "b"), (3, 6, 6))
    with pytest.raises(AssertionError, match="the test pictures were loaded"):
        data.setup("test")


def test_the_test_sees_every_test_picture_once_and_in_order() -> None:
    data = ready(Numbered(eval_batch_size=4), "test")
    assert seen(data.test_dataloader()) == list(range(1000, 1010))
    assert all(b.seed == UNCHANGED for b in data.test_dataloader())


def test_the_test_needs_no_training_pictures_where_the_mean_is_known() -> None:
    data = ready(Standardised(), "test")
    assert data.normalisation == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (data.num_classes, data.image_shape) == (2, (3, 6, 6))


def test_a_search_loads_training_pictures_where_the_mean_is_known() -> None:
    class Known(Numbered):
        mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)

    data = ready(Known())
    assert len(half(data, "train")) == 20
    assert data.normalisation == (Known.mean, Known.std)


def test_mean_and_deviation_are_those_of_the_training_half() -> None:
    for stage in ("fit", "test"):
        data = ready(Numbered(seed=5), stage)
        chosen = numbered(40).images[half(ready(Numbered(seed=5)), "train")].double() / 255
        mean, std = data.normalisation
        torch.testing.assert_close(torch.tensor(mean).double(), chosen.mean(dim=(0, 2, 3)))
        torch.testing.assert_close(torch.tensor(std).double(), chosen.std(dim=(0, 2, 3), correction=0))


def test_pictures_are_loaded_once() -> None:
    loads = []

    class Counted(Numbered):
        def load(self, train: bool) -> Pictures:
            loads.append(train)
            return super().load(train)

    data = Counted()
    for stage in ("fit", "validate", "test", "test"):
        data.setup(stage)
    assert loads == [True, False]


def test_a_batch_is_augmented_and_normalised_on_its_device() -> None:
    data = ready(Numbered(padding=2, cutout=3, seed=1))
    batch = next(iter(data.train_dataloader()))
    prepared = data.on_after_batch_transfer(batch, 0)
    assert set(prepared) == {"train", "val"}
    for part, raw in batch.items():
        cropped = normalise(augment(raw.images, raw.seed, 2, True), *data.normalisation)
        assert torch.equal(prepared[part].images, cut_out(cropped, raw.seed, 3))
        assert torch.equal(prepared[part].labels, raw.labels)
        assert prepared[part].seed == raw.seed


def test_cutout_grows_over_its_epochs() -> None:
    """As in R-DARTS: epoch / (epochs - 1), and every picture from then on."""
    data = ready(Numbered(cutout=3, cutout_epochs=5, seed=1))
    batch = next(iter(data.train_dataloader()))["train"]
    assert torch.equal(data.on_after_batch_transfer(batch, 0).images, cut(data, batch, 1.0))  # without a trainer
    for epoch, probability in ((0, 0.0), (2, 0.5), (4, 1.0), (7, 1.0)):
        data.trainer = SimpleNamespace(current_epoch=epoch)
        assert torch.equal(data.on_after_batch_transfer(batch, 0).images, cut(data, batch, probability))
    assert len({cut(data, batch, p).sum() for p in (0.0, 0.5, 1.0)}) == 3


def cut(data: Numbered, batch: Batch, probability: float) -> Tensor:
    images = normalise(augment(batch.images, batch.seed, data.padding, data.flip), *data.normalisation)
    return cut_out(images, batch.seed, 3, probability)


def test_val_pictures_are_left_as_they_are_where_wanted() -> None:
    data = ready(Numbered(augment_val=False, cutout=3))
    batch = next(iter(data.train_dataloader()))
    expected = normalize(batch["val"].images / 255, *data.normalisation)
    prepared = data.on_after_batch_transfer(batch, 0)
    torch.testing.assert_close(prepared["val"].images, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(
        prepared["train"].images, normalize(batch["train"].images / 255, *data.normalisation), atol=1e-2
    )


def test_evaluation_batches_are_not_augmented() -> None:
    data = ready(Numbered(cutout=3))
    (batch,) = data.val_dataloader()
    assert isinstance(batch, Batch)
    expected = normalize(batch.images / 255, *data.normalisation)
    torch.testing.assert_close(data.on_after_batch_transfer(batch, 0).images, expected, atol=1e-5, rtol=0)


def test_selection_batches_follow_from_their_seed() -> None:
    data = ready(Numbered(batch_size=6))
    val = sorted(seen(data.val_dataloader()))
    first, again, other = (seen(data.selection_batches(False, seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert sorted(first) == sorted(other) == val
    sizes = [len(b.labels) for b in data.selection_batches(False, 1)]
    assert sizes == [6, 6, 6, 2]
    assert [len(b.labels) for b in data.selection_batches(False, 1, limit=2, batch_size=9)] == [9, 9]
    assert all(b.seed == UNCHANGED for b in data.selection_batches(False, 1))
    seeds = [b.seed for b in data.selection_batches(True, 1)]
    assert min(seeds) >= 0
    assert len(set(seeds)) == 4
    assert seeds == [b.seed for b in data.selection_batches(True, 1)]


def test_every_device_measures_candidates_on_the_same_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    class Second:
        global_rank, world_size = 1, 2

    data = ready(Numbered(batch_size=6))
    alone = [(b.labels.tolist(), b.seed) for b in data.selection_batches(True, 1)]
    train = half(data, "train")
    monkeypatch.setattr(data, "trainer", Second())
    assert [(b.labels.tolist(), b.seed) for b in data.selection_batches(True, 1)] == alone
    assert len(seen(data.val_dataloader())) == 10
    assert len(half(data, "train")) == 10
    assert set(half(data, "train")) < set(train)


def test_without_a_val_half() -> None:
    data = ready(Numbered(train_portion=1.0))
    assert half(data, "train") == list(range(40))
    assert data.val_dataloader() == []
    assert not data.has_val
    assert ready(Numbered()).has_val
    with pytest.raises(InputError, match=r"train_portion is 1\.0 .* --data\.train_portion 0\.5"):
        data.selection_batches(False, 1)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("train_portion", 0.0),
        ("train_portion", 1.5),
        ("train_portion", float("nan")),
        ("split", "random"),
        ("batch_size", 0),
        ("eval_batch_size", -3),
        ("padding", -1),
        ("cutout", -2),
        ("cutout_epochs", -1),
        ("max_pictures", 1),
        ("seed", -5),
    ],
)
def test_values_that_are_not_allowed(option: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{option} is {value!r}, but"):
        Numbered(**{option: value})


def test_a_limit_that_is_not_allowed() -> None:
    with pytest.raises(InputError, match="limit is 0"):
        ready(Numbered()).selection_batches(True, 1, limit=0)


@pytest.mark.parametrize("portion", [0.01, 0.3])
def test_a_half_without_pictures(portion: float) -> None:
    with pytest.raises(InputError, match=rf"train_portion of {portion} leaves one half of 3 training pictures empty"):
        Numbered(train_portion=portion, max_pictures=3).setup("fit")


class Given(ImageData):
    """Whatever pictures a test gives it."""

    def __init__(self, train: Pictures, test: Pictures) -> None:
        super().__init__()
        self.given = {True: train, False: test}

    def load(self, train: bool) -> Pictures:
        return self.given[train]


def test_one_class_is_too_few() -> None:
    with pytest.raises(InputError, match=r"classes \['only'\], but there must be at least 2"):
        Given(numbered(4, classes=("only",)), numbered(4)).setup("fit")


@pytest.mark.parametrize(("classes", "odd"), [(("a", "c"), "b"), (("b", "a"), "b")])
def test_other_classes_in_the_test(classes: tuple[str, ...], odd: str) -> None:
    with pytest.raises(InputError, match=f"the same classes, but '{odd}'"):
        Given(numbered(4), numbered(4, classes=classes)).setup("test")


def test_other_sizes_in_the_test() -> None:
    with pytest.raises(InputError, match="are 6x6 pixels, but test pictures 8x8"):
        Given(numbered(4), numbered(4, side=8)).setup("test")


def test_pictures_before_setup_are_a_mistake() -> None:
    with pytest.raises(RuntimeError, match="setup"):
        _ = Numbered().classes


def test_the_command_line_explains_every_option() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ImageFolder, "data")
    text = " ".join(parser.format_help().split())
    for option in ("train_portion", "cutout", "max_pictures", "seed", "size", "skip_corrupt", "cache_dir", "padding"):
        assert f"--data.{option}" in text
    assert text.count("(type: ") + text.count("(required, type: ") >= 14
    assert "in pixels, of the square that is cut out" in text
    values = parser.parse_args(["--data.root", "x", "--data.batch_size", "5", "--data.max_pictures", "null"])
    assert (values.data.batch_size, values.data.padding, values.data.max_pictures) == (5, 4, None)


def test_subclasses_keep_their_own_defaults_on_the_command_line() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ImageData, "data")
    values = parser.parse_args(["--data", "dartslight.data.Digits", "--data.train_portion", "0.25"])
    data = parser.instantiate(values).data
    assert isinstance(data, Digits)
    assert (data.padding, data.flip, data.train_portion, data.batch_size) == (2, False, 0.25, 64)


def test_the_module_itself_has_nothing_to_checkpoint() -> None:
    data = ready(Numbered())
    assert data.state_dict() == {}
