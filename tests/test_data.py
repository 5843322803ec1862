"""Pictures: splits, sampling, augmentation, folders and their cache."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dartslight.data import CIFAR10, SVHN, Digits, ImageData, ImageFolder, Pictures
from dartslight.data.augmentation import augment, cut_out, normalise
from dartslight.data.sampling import Batches, EvaluationBatches
from dartslight.errors import InputError


def numbered(count: int) -> Pictures:
    """Pictures whose label is their number."""
    return Pictures(torch.zeros(count, 3, 4, 4, dtype=torch.uint8), torch.arange(count), ("a", "b"))


def labels(loader: Batches, part: str, epoch: int = 0) -> list[int]:
    return [int(i) for step in range(len(loader)) for i in loader.at(epoch, step)[part].labels]


def test_every_picture_comes_once_an_epoch_in_an_order_of_its_own() -> None:
    loader = Batches(numbered(100), torch.arange(60), torch.arange(60, 100), 16, seed=1)
    assert [len(loader.at(0, s)["train"].labels) for s in range(len(loader))] == [16, 16, 16, 12]
    assert sorted(labels(loader, "train")) == list(range(60))
    val = labels(loader, "val")
    assert len(val) == 60
    assert sorted(val[:40]) == list(range(60, 100))
    assert len(set(val[40:])) == 20
    assert labels(loader, "train") == labels(loader, "train") != labels(loader, "train", epoch=1)
    other = Batches(numbered(100), torch.arange(60), torch.arange(60, 100), 16, seed=2)
    assert labels(other, "train") != labels(loader, "train")
    seeds = {loader.at(e, s)[p].seed for e in range(2) for s in range(4) for p in ("train", "val")}
    assert len(seeds) == 16


def test_ranks_share_the_batch_of_one_device() -> None:
    whole = Batches(numbered(100), torch.arange(60), torch.arange(60, 100), 16, seed=1)
    ranks = [Batches(numbered(100), torch.arange(60), torch.arange(60, 100), 8, 1, True, r, 2) for r in range(2)]
    for step in range(len(whole)):
        for part in ("train", "val"):
            together = torch.cat([rank.at(3, step)[part].labels for rank in ranks])
            assert torch.equal(together, whole.at(3, step)[part].labels)


def test_a_loader_goes_on_where_it_stopped() -> None:
    loader = Batches(numbered(40), torch.arange(20), torch.arange(20, 40), 4, seed=1)
    iterator = iter(loader)
    loader.sampler.set_epoch(2)
    seen = [next(iterator)["train"].seed for _ in range(2)]
    state = loader.state_dict()
    fresh = Batches(numbered(40), torch.arange(20), torch.arange(20, 40), 4, seed=1)
    fresh.load_state_dict(state)
    rest = iter(fresh)
    fresh.sampler.set_epoch(2)
    seen += [batch["train"].seed for batch in rest]
    assert seen == [loader.at(2, step)["train"].seed for step in range(5)]
    assert fresh.state_dict() == {"next": 0}
    assert len(list(fresh)) == 5


def test_evaluation_takes_each_picture_once() -> None:
    parts = [EvaluationBatches(numbered(10), torch.arange(10), 4, None, None, r, 2) for r in range(2)]
    found = [int(i) for part in parts for batch in part for i in batch.labels]
    assert sorted(found) == list(range(10))
    limited = EvaluationBatches(numbered(10), torch.arange(10), 4, seed=3, limit=1)
    assert [(len(b.labels), b.seed >= 0) for b in limited] == [(4, True)]
    assert len(limited) == 1


def test_augmentation_crops_and_flips_each_picture_by_itself() -> None:
    images = torch.randint(256, (64, 3, 8, 6), dtype=torch.uint8)
    out = augment(images, 5, padding=2, flip=True)
    seen = set()
    for picture, result in zip(images, out, strict=True):
        padded = torch.nn.functional.pad(picture, (2, 2, 2, 2))
        matches = [
            (top, left, flip)
            for top in range(5)
            for left in range(5)
            for flip in (False, True)
            for crop in [padded[:, top : top + 8, left : left + 6]]
            if torch.equal(crop.flip(-1) if flip else crop, result)
        ]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len({s[:2] for s in seen}) > 10
    assert {s[2] for s in seen} == {True, False}
    assert torch.equal(augment(images, 5, 2, True), out)
    assert not torch.equal(augment(images, 6, 2, True), out)
    assert torch.equal(augment(images, 5, 0, False), images)


def test_normalise_and_cut_out() -> None:
    images = torch.randint(256, (8, 3, 6, 6), dtype=torch.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    expected = (images / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    out = normalise(images, mean, std)
    torch.testing.assert_close(out, expected)
    assert out.is_contiguous(memory_format=torch.channels_last)
    holes = cut_out(torch.ones(200, 3, 6, 6), 1, 4)
    sizes = {int((h[0] == 0).sum()) for h in holes}
    assert max(sizes) == 16
    assert min(sizes) == 4  # half of it beyond the border on both sides
    assert torch.equal(holes[:, 0], holes[:, 2])


def test_digits_have_halves_and_test_pictures_that_search_does_not_load() -> None:
    data = Digits(seed=0)
    data.setup("fit")
    assert (data.num_classes, data.image_shape, data.has_val) == (10, (3, 16, 16), True)
    train, val = data._halves
    assert len(train) + len(val) == 1498
    assert not set(train.tolist()) & set(val.tolist())
    assert data._test is None
    data.setup("test")
    assert sum(len(b.labels) for b in data.test_dataloader()) == 299
    batch = data.on_after_batch_transfer(data.train_dataloader().at(0, 0), 0)
    assert batch["train"].images.dtype == torch.float32
    assert sum(len(b.labels) for b in data.selection_batches(False, 1, None)) == len(val)
    values = normalise(data.training.images[train], data.mean, data.std)
    assert float(values.mean()) == pytest.approx(0, abs=1e-4)
    assert float(values.std()) == pytest.approx(1, abs=1e-3)


class TwoClasses(ImageData):
    def load(self, train: bool) -> Pictures:
        assert train, "search must not touch the test pictures"
        return numbered(10)


def test_splits() -> None:
    official = TwoClasses(split="official", seed=0)
    official.setup("fit")
    assert [h.tolist() for h in official._halves] == [list(range(5)), list(range(5, 10))]
    whole = TwoClasses(train_portion=1.0, seed=0, max_pictures=6)
    whole.setup("fit")
    assert len(whole._halves[0]) == 6
    assert not whole.has_val
    assert whole.val_dataloader() == []
    assert set(whole.train_dataloader().at(0, 0)) == {"train"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_portion": 0}, "train_portion is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"padding": -1}, "padding is -1"),
        ({"max_pictures": 1}, "max_pictures is 1"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TwoClasses(**options)


def test_halves_without_pictures_are_refused() -> None:
    with pytest.raises(InputError, match="10 training pictures, too few"):
        TwoClasses(train_portion=0.05).setup("fit")


# ---------------------------------------------------------------------- folders


def make_folder(root: Path, size: int = 8) -> Path:
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for name, suffix in (("cat", "png"), ("dog", "jpg")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(4):
                Image.fromarray(rng.integers(256, size=(size, size, 3), dtype=np.uint8)).save(folder / f"{i}.{suffix}")
    return root


def folder(tmp_path: Path, **options: object) -> ImageFolder:
    return ImageFolder(str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"), seed=0, **options)


def test_a_folder_is_read_once_and_again_when_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder(tmp_path / "set")
    data = folder(tmp_path)
    data.setup("test")
    assert data.classes == ("cat", "dog")
    first = np.asarray(Image.open(root / "train" / "cat" / "0.png")).transpose(2, 0, 1)
    assert np.array_equal(data.training.images[0].numpy(), first)
    assert data.training.labels.tolist() == [0] * 4 + [1] * 4
    cached = {p.name for p in (tmp_path / "cache").iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr("dartslight.data.folder._open", lambda *_: pytest.fail("decoded again"))
        folder(tmp_path).setup("fit")
    Image.new("RGB", (8, 8), "red").save(root / "train" / "cat" / "0.png")
    changed = folder(tmp_path)
    changed.setup("fit")
    assert changed.training.images[0, :, 0, 0].tolist() == [255, 0, 0]
    assert len(list((tmp_path / "cache").iterdir())) == len(cached)
    before = changed.training.images.clone()  # the cache is read from the file as it is used
    for path in (tmp_path / "cache").glob("*.npy"):
        path.write_bytes(path.read_bytes()[:50])
    again = folder(tmp_path)
    again.setup("fit")
    assert torch.equal(again.training.images, before)


def test_sizes_and_modes(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "set")
    data = folder(tmp_path, size=4)
    data.setup("fit")
    picture = np.asarray(Image.open(root / "train" / "cat" / "0.png")).astype(float)
    mean = picture.reshape(4, 2, 4, 2, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
    assert np.abs(data.training.images[0].numpy() - mean).max() <= 1  # rounded once for each direction
    assert folder(tmp_path, size=16).load(True).images.shape == (8, 3, 16, 16)
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(root / "train" / "cat" / "gray16.png")
    Image.new("RGBA", (8, 8), (1, 2, 3, 4)).save(root / "train" / "cat" / "rgba.PNG")
    Image.new("CMYK", (8, 8)).save(root / "train" / "dog" / "cmyk.jpeg")
    pictures = folder(tmp_path).load(True)
    assert len(pictures) == 11
    assert pictures.images[4].unique().tolist() == [156]
    Image.new("RGB", (5, 8)).save(root / "train" / "dog" / "other.png")
    with pytest.raises(InputError, match=r"other.png' has 5x8 pixels, but others have 8x8"):
        folder(tmp_path).load(True)


def test_corrupt_pictures_are_named_or_left_out(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "set")
    bad = root / "train" / "cat" / "2.png"
    bad.write_bytes(bad.read_bytes()[:40])
    with pytest.raises(InputError, match=r"2\.png' cannot be read"):
        folder(tmp_path).setup("fit")
    with pytest.warns(UserWarning, match="1 pictures cannot be read"):
        pictures = folder(tmp_path, skip_corrupt=True).load(True)
    assert pictures.labels.tolist() == [0] * 3 + [1] * 4


def test_wrong_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        folder(tmp_path).setup("fit")
    (tmp_path / "set").mkdir()
    with pytest.raises(InputError, match="no class folders"):
        folder(tmp_path).setup("fit")
    root = make_folder(tmp_path / "set")
    (root / "train" / "empty").mkdir()
    with pytest.raises(InputError, match="empty' has no pictures"):
        folder(tmp_path).setup("fit")
    (root / "train" / "empty").rmdir()
    (root / "test" / "dog").rename(root / "test" / "fish")
    with pytest.raises(InputError, match="test pictures have the classes cat, fish"):
        folder(tmp_path).setup("test")
    plain = ImageFolder(str(root / "train"), cache_dir=str(tmp_path / "cache"))
    plain.setup("fit")
    with pytest.raises(InputError, match="test pictures are looked for"):
        plain.setup("test")
    with pytest.raises(InputError, match="size is 0"):
        folder(tmp_path, size=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        ImageFolder(str(root), cache_dir=str(tmp_path / "file")).setup("fit")


def test_missing_downloads_say_what_to_do(tmp_path: Path) -> None:
    for kind in (CIFAR10, SVHN):
        with pytest.raises(InputError, match=r"pass --data.download true"):
            kind(root=str(tmp_path)).setup("fit")


def test_the_default_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert ImageFolder("x").cache_dir == tmp_path / "dartslight"
    assert os.environ["XDG_CACHE_HOME"] == str(tmp_path)
