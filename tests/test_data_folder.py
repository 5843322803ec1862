"""A folder of pictures: what is read, how it is decoded, and what is refused."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dartslight.data import ImageFolder
from dartslight.data.folder_cache import decode
from dartslight.errors import InputError

DATA = os.environ.get("DARTSLIGHT_DATA")


def noise(height: int = 6, width: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray | None = None, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise() if pixels is None else pixels).save(path, **options)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes with three training pictures and one test picture each, all different."""
    for label, name in enumerate(("cat", "dog")):
        for i in range(3):
            save(tmp_path / "pictures" / "train" / name / f"{i}.png", noise(seed=10 * label + i))
        save(tmp_path / "pictures" / "test" / name / "t.png", noise(seed=10 * label + 9))
    return tmp_path / "pictures"


def folder(root: Path, **options: Any) -> ImageFolder:
    return ImageFolder(str(root), **{"cache_dir": str(root.parent / "cache"), **options})


def refused(root: Path, train: bool = True, **options: Any) -> str:
    """The sentence with which a folder is refused."""
    with pytest.raises(InputError) as caught:
        folder(root, **options).load(train)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    return sentence


def test_pictures_and_labels(root: Path) -> None:
    train, test = folder(root).load(True), folder(root).load(False)
    assert train.classes == test.classes == ("cat", "dog")
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert test.labels.tolist() == [0, 1]
    for i, seed in enumerate((0, 1, 2, 10, 11, 12)):
        assert np.array_equal(train.images[i].permute(1, 2, 0).numpy(), noise(seed=seed))
    assert np.array_equal(test.images[1].permute(1, 2, 0).numpy(), noise(seed=19))
    assert train.images.is_contiguous(memory_format=torch.channels_last)


def test_the_class_folders_may_be_the_folder_itself(root: Path) -> None:
    alone = root / "train"
    assert folder(alone).load(True).labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert f"no test pictures in '{alone}'" in refused(alone, train=False)


def test_nested_folders_count_and_hidden_files_do_not(root: Path) -> None:
    save(root / "train" / "cat" / "b" / "c" / "deep.PNG", noise(seed=7))
    save(root / "train" / "dog" / "photo.JPEG")
    save(root / "train" / "dog" / "photo.jpg")
    for name in ("train/.hidden/x.png", "train/cat/.x.png", "train/cat/.trash/x.png", "train/cat/x.gif"):
        save(root / name)
    (root / "train" / "cat" / "notes.txt").write_text("no picture")
    (root / "train" / "notes.png").write_text("no class")
    pictures = folder(root).load(True)
    assert pictures.classes == ("cat", "dog")
    assert pictures.labels.tolist() == [0] * 4 + [1] * 5
    assert np.array_equal(pictures.images[3].permute(1, 2, 0).numpy(), noise(seed=7))


def test_setup_fit_and_test(root: Path) -> None:
    data = folder(root, batch_size=2)
    data.prepare_data()
    data.setup("fit")
    assert (data.num_classes, data.image_shape) == (2, (3, 6, 6))
    data.setup("test")
    assert torch.cat([b.labels for b in data.test_dataloader()]).tolist() == [0, 1]


def test_a_search_never_opens_the_test_folder(root: Path) -> None:
    (root / "test" / "cat" / "t.png").write_bytes(b"no picture")
    data = folder(root)
    data.prepare_data()
    data.setup("fit")
    data.setup("validate")
    with pytest.raises(InputError, match="cannot be read"):
        data.setup("test")


def test_a_test_prepares_its_own_pictures(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Testing:
        testing = True

    loads = []
    data = folder(root)
    monkeypatch.setattr(data, "load", lambda train: loads.append(train))
    monkeypatch.setattr(data, "trainer", Testing())
    data.prepare_data()
    assert loads == [True, False]


# ---------------------------------------------------------------------- decoding


def decoded(path: Path, size: int | None = None) -> np.ndarray:
    pixels = decode(path, size)
    assert pixels is not None
    assert pixels.dtype == np.uint8
    return pixels


def test_every_mode_becomes_rgb(tmp_path: Path) -> None:
    rgb = noise()
    picture = Image.fromarray(rgb)
    gray = np.asarray(picture.convert("L"))
    palette = picture.convert("P", palette=Image.Palette.ADAPTIVE)
    transparent = np.dstack([rgb, np.full(rgb.shape[:2], 7, np.uint8)])
    cases: dict[str, tuple[Image.Image, np.ndarray]] = {
        "gray": (Image.fromarray(gray), np.stack([gray] * 3, axis=2)),
        "gray_alpha": (Image.fromarray(gray).convert("LA"), np.stack([gray] * 3, axis=2)),
        "rgba": (Image.fromarray(transparent), rgb),
        "palette": (palette, np.asarray(palette.convert("RGB"))),
        "bits": (Image.fromarray(gray > 99), np.stack([np.where(gray > 99, 255, 0)] * 3, axis=2)),
        "gray16": (
            Image.fromarray(gray.astype(np.uint16) * 257 + 100),
            np.stack([gray] * 3, axis=2),
        ),
    }
    for name, (image, expected) in cases.items():
        image.save(tmp_path / f"{name}.png")
        assert np.array_equal(decoded(tmp_path / f"{name}.png"), expected), name


@pytest.mark.filterwarnings("error")
def test_a_palette_with_transparency_needs_no_warning(tmp_path: Path) -> None:
    palette = Image.fromarray(noise()).convert("P", palette=Image.Palette.ADAPTIVE)
    palette.save(tmp_path / "p.png", transparency=bytes(range(36)))
    assert np.array_equal(decoded(tmp_path / "p.png"), np.asarray(palette.convert("RGB")))


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "c.jpg", quality=100)
    red = decoded(tmp_path / "c.jpg").reshape(-1, 3).mean(axis=0)
    assert red[0] > 200
    assert red[1:].max() < 50


def test_pictures_are_turned_upright(tmp_path: Path) -> None:
    picture = Image.fromarray(noise(4, 6))
    exif = picture.getexif()
    exif[0x0112] = 6  # to be turned clockwise
    picture.save(tmp_path / "e.png", exif=exif)
    assert np.array_equal(decoded(tmp_path / "e.png"), np.rot90(noise(4, 6), k=-1))


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_shrinking_is_the_mean_of_the_area(tmp_path: Path, factor: int) -> None:
    side = 4 * factor
    pixels = noise(side, side)
    means = pixels.reshape(4, factor, 4, factor, 3).mean(axis=(1, 3))
    assert np.abs(decoded(save(tmp_path / "p.png", pixels), 4) - means).max() <= 0.56  # Pillow's thirds are rounded


def test_shrinking_by_a_fraction_is_the_mean_of_the_area(tmp_path: Path) -> None:
    """Each pixel then counts for the one pixel of the result that its centre lies in."""
    ramp = np.arange(0, 250, 25, dtype=np.uint8)[:, None, None].repeat(10, axis=1).repeat(3, axis=2)
    (column,) = np.unique(decoded(save(tmp_path / "p.png", ramp), 4), axis=1).transpose(1, 0, 2)
    groups = np.array([np.mean(range(0, 75, 25)), np.mean(range(75, 125, 25)), np.mean(range(125, 200, 25)), 212.5])
    assert np.abs(column[:, 0] - groups).max() <= 1


def test_a_picture_is_cropped_to_the_middle(tmp_path: Path) -> None:
    pixels = noise(8, 14)
    assert np.array_equal(decoded(save(tmp_path / "wide.png", pixels), 8), pixels[:, 3:11])
    tall = pixels.transpose(1, 0, 2)
    assert np.array_equal(decoded(save(tmp_path / "tall.png", tall), 8), tall[3:11])


def test_enlarging_is_smooth(tmp_path: Path) -> None:
    steps = np.zeros((2, 2, 3), np.uint8)
    steps[:, 1] = 200
    row = decoded(save(tmp_path / "p.png", steps), 8)[0, :, 0].astype(int)
    assert len(set(row.tolist())) > 3
    assert (np.diff(row) >= 0).all()


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_damaged_picture_is_none(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"p.{suffix}", noise(40, 40))
    whole = path.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2], whole[:40]):
        path.write_bytes(content)
        assert decode(path, None) is None
        assert decode(path, 8) is None


def test_other_formats_are_not_opened(tmp_path: Path) -> None:
    save(tmp_path / "p.gif", noise()).rename(tmp_path / "p.png")
    assert decode(tmp_path / "p.png", None) is None


# ---------------------------------------------------------------------- what is refused


def test_no_such_folder(tmp_path: Path) -> None:
    assert f"no folder '{tmp_path / 'nowhere'}'" in refused(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    assert f"no folder '{tmp_path / 'file'}'" in refused(tmp_path / "file")


def test_no_class_folders(tmp_path: Path) -> None:
    save(tmp_path / "p" / "x.png")
    assert f"no class folders in '{tmp_path / 'p'}'" in refused(tmp_path / "p")


def test_only_one_class(tmp_path: Path) -> None:
    save(tmp_path / "p" / "train" / "cat" / "x.png")
    assert f"only one class folder, 'cat', in '{tmp_path / 'p' / 'train'}'" in refused(tmp_path / "p")


def test_a_class_without_pictures(root: Path) -> None:
    (root / "train" / "emu").mkdir()
    assert f"class folder '{root / 'train' / 'emu'}' has no readable pictures" in refused(root)


def test_a_corrupt_picture(root: Path) -> None:
    bad = root / "train" / "dog" / "1.png"
    bad.write_bytes(bad.read_bytes()[:60])
    assert f"picture '{bad}' cannot be read" in refused(root)
    assert not list((root.parent / "cache").glob("*/*"))  # nothing is left half-written


def test_corrupt_pictures_are_skipped_where_wanted(root: Path) -> None:
    for name in ("cat/2.png", "dog/0.png"):
        (root / "train" / name).write_bytes(b"no picture")
    with pytest.warns(UserWarning, match=rf"Left out 2 pictures .* '{root}/train/cat/2\.png'"):
        pictures = folder(root, skip_corrupt=True).load(True)
    assert pictures.labels.tolist() == [0, 0, 1, 1]
    for i, seed in enumerate((0, 1, 11, 12)):
        assert np.array_equal(pictures.images[i].permute(1, 2, 0).numpy(), noise(seed=seed))
    assert "cannot be read" in refused(root)  # what was skipped once is not good elsewhere


@pytest.mark.filterwarnings("ignore:Left out")
def test_a_class_of_corrupt_pictures_alone(root: Path) -> None:
    for i in range(3):
        (root / "train" / "dog" / f"{i}.png").write_bytes(b"no picture")
    assert f"'{root / 'train' / 'dog'}' has no readable pictures" in refused(root, skip_corrupt=True)
    for i in range(3):
        (root / "train" / "cat" / f"{i}.png").write_bytes(b"no picture")
    assert "None of the 6 pictures" in refused(root, skip_corrupt=True)


def test_pictures_of_different_size(root: Path) -> None:
    odd = save(root / "train" / "dog" / "1.png", noise(5, 7))
    sentence = refused(root)
    assert f"'{odd}' is 7x5 pixels, but others are 6x6" in sentence
    assert "--data.size" in sentence
    assert folder(root, size=4).load(True).images.shape == (6, 3, 4, 4)


def test_test_pictures_of_another_size(root: Path) -> None:
    for name in ("cat", "dog"):
        save(root / "test" / name / "t.png", noise(8, 8))
    with pytest.raises(InputError, match=r"are 6x6 pixels, but test pictures 8x8; give --data\.size"):
        folder(root).setup("test")


def test_test_classes_must_be_the_training_classes(root: Path) -> None:
    save(root / "test" / "emu" / "x.png")
    assert "'emu' is not in both" in refused(root, train=False)
    (root / "test" / "emu").rename(root / "train" / "yak")
    assert "'yak' is not in both" in refused(root, train=False)


def test_no_test_folder(root: Path) -> None:
    (root / "test").rename(root / "elsewhere")
    with pytest.raises(InputError, match=f"no test pictures in '{root}'"):
        folder(root).setup("test")


def test_a_size_of_nothing(root: Path) -> None:
    with pytest.raises(InputError, match="size is 0"):
        folder(root, size=0)


@pytest.mark.slow
@pytest.mark.skipif(DATA is None, reason="DARTSLIGHT_DATA is not set")
def test_cifar10_as_a_folder(tmp_path: Path) -> None:
    import tarfile
    import time

    for part in ("train", "test"):
        with tarfile.open(Path(str(DATA)) / "cifar10" / f"{part}.tar") as archive:
            archive.extractall(tmp_path / "extracted", filter="data")
    (root,) = {path.parent for path in (tmp_path / "extracted").rglob("train") if path.is_dir()}
    data = ImageFolder(str(root), cache_dir=str(tmp_path / "cache"), train_portion=1.0)
    start = time.perf_counter()
    data.setup("fit")
    assert time.perf_counter() - start < 60
    start = time.perf_counter()
    pictures = ImageFolder(str(root), cache_dir=str(tmp_path / "cache")).load(True)
    assert time.perf_counter() - start < 10
    assert torch.bincount(pictures.labels).tolist() == [5000] * 10
    published = torch.tensor([[0.49139968, 0.48215827, 0.44653124], [0.24703233, 0.24348505, 0.26158768]])
    torch.testing.assert_close(torch.tensor(data.normalisation), published, atol=2e-4, rtol=0)
    data.setup("test")
    assert torch.bincount(torch.cat([b.labels for b in data.test_dataloader()])).tolist() == [1000] * 10
