"""The known data sets: digits as they are, the others from small files in the format that torchvision reads."""

import hashlib
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
from sklearn.datasets import load_digits
from torchvision import datasets

from dartslight.data import CIFAR10, CIFAR100, SVHN, Digits, ImageData
from dartslight.errors import InputError


def test_digits_are_all_there_and_split_for_good() -> None:
    train, test = Digits(seed=1).load(train=True), Digits(seed=2).load(train=False)
    assert (len(train), len(test)) == (1498, 299)
    assert train.images.shape[1:] == (3, 16, 16)
    assert train.images.is_contiguous(memory_format=torch.channels_last)
    assert train.classes == test.classes == tuple("0123456789")
    bunch = load_digits()
    original = {(picture.tobytes(), int(label)) for picture, label in zip(bunch.images, bunch.target, strict=True)}

    def originals(pictures: Any) -> set[tuple[bytes, int]]:
        small = (pictures.images[:, 0, ::2, ::2].double() / 255 * 16).round().numpy()
        return {(picture.tobytes(), int(label)) for picture, label in zip(small, pictures.labels, strict=True)}

    assert originals(train) | originals(test) == original
    assert not originals(train) & originals(test)
    assert torch.equal(train.labels, Digits().load(train=True).labels)


def test_digits_are_doubled_gray_up_to_full_brightness() -> None:
    images = Digits().load(train=True).images
    assert torch.equal(images[:, 0], images[:, 2])
    assert torch.equal(images[:, :, ::2, ::2], images[:, :, 1::2, 1::2])
    assert (int(images.min()), int(images.max())) == (0, 255)
    assert torch.equal(Digits(size=8).load(train=True).images, images[:, :, ::2, ::2])


def test_digits_have_defaults_for_digits() -> None:
    assert (Digits().padding, Digits().flip) == (2, False)
    assert Digits(flip=True, batch_size=3).batch_size == 3


def pictures(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch, kind: type) -> dict[bool, np.ndarray]:
    """Writes small batches in the format of CIFAR, and tells torchvision what they are."""
    folder = root / kind.base_folder  # type: ignore[attr-defined]
    folder.mkdir(parents=True)
    key = "fine_labels" if kind is datasets.CIFAR100 else "labels"
    classes = [f"class {i}" for i in range(100 if kind is datasets.CIFAR100 else 10)]
    written: dict[str, bytes] = {"meta": pickle.dumps({"names": classes})}
    images = {True: pictures(10, 1), False: pictures(4, 2)}
    halves = [images[True][:5], images[True][5:]] if kind is datasets.CIFAR10 else [images[True]]
    for i, part in enumerate([*halves, images[False]]):
        written[f"part{i}"] = pickle.dumps({"data": part.reshape(len(part), -1), key: list(range(len(part)))})
    for name, content in written.items():
        (folder / name).write_bytes(content)
    sums = [[name, hashlib.md5(content, usedforsecurity=False).hexdigest()] for name, content in written.items()]
    monkeypatch.setattr(kind, "train_list", sums[1:-1])
    monkeypatch.setattr(kind, "test_list", sums[-1:])
    monkeypatch.setattr(kind, "meta", {"filename": "meta", "key": "names", "md5": sums[0][1]})
    return images


def write_svhn(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[bool, np.ndarray]:
    """Writes small files in the format of SVHN, in which 10 stands for the digit 0."""
    images = {True: pictures(10, 1), False: pictures(4, 2)}
    lists = {}
    for train, part in images.items():
        path = root / f"{train}.mat"
        scipy.io.savemat(path, {"X": part.transpose(2, 3, 1, 0), "y": np.arange(1, len(part) + 1)[:, None]})
        md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        lists["train" if train else "test"] = ["", path.name, md5]
    monkeypatch.setattr(datasets.SVHN, "split_list", lists)
    return images


def write(kind: type[ImageData], root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[bool, np.ndarray]:
    if kind is SVHN:
        return write_svhn(root, monkeypatch)
    return write_cifar(root, monkeypatch, datasets.CIFAR10 if kind is CIFAR10 else datasets.CIFAR100)


KINDS: list[Any] = [CIFAR10, CIFAR100, SVHN]


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_torchvision(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write(kind, tmp_path, monkeypatch)
    for train in (True, False):
        loaded = kind(root=str(tmp_path)).load(train)
        assert torch.equal(loaded.images, torch.from_numpy(images[train]))
        assert loaded.images.is_contiguous(memory_format=torch.channels_last)
        assert loaded.labels.dtype == torch.int64
        assert len(loaded.classes) == (100 if kind is CIFAR100 else 10)
    labels = kind(root=str(tmp_path)).load(False).labels.tolist()
    assert labels == ([1, 2, 3, 4] if kind is SVHN else [0, 1, 2, 3])


@pytest.mark.parametrize("kind", KINDS)
def test_half_the_size_is_the_mean_of_four_pixels(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write(kind, tmp_path, monkeypatch)
    means = images[True].reshape(10, 3, 16, 2, 16, 2).mean(axis=(3, 5))
    loaded = kind(root=str(tmp_path), size=16).load(True).images.numpy()
    assert np.abs(loaded - means).max() <= 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_is_the_published_one(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(kind, tmp_path, monkeypatch)
    data = kind(root=str(tmp_path))
    data.setup("test")
    assert data.normalisation == (kind.mean, kind.std)
    published = {CIFAR10: (0.49139968, 0.26158768), CIFAR100: (0.5071, 0.2762), SVHN: (0.4377, 0.1970)}
    assert (kind.mean[0], kind.std[2]) == published[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_missing_files(kind: Any, tmp_path: Path) -> None:
    root = str(tmp_path / "nowhere")
    with pytest.raises(InputError, match=f"{kind.__name__} is not in '{root}'.*--data.download true"):
        kind(root=root).setup("fit")


def test_damaged_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(CIFAR10, tmp_path, monkeypatch)
    damaged = tmp_path / datasets.CIFAR10.base_folder / "part0"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    with pytest.raises(InputError, match="damaged"):
        CIFAR10(root=str(tmp_path)).load(True)


def test_a_download_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("no way\nout")

    monkeypatch.setattr(datasets.CIFAR10, "download", fail)
    with pytest.raises(InputError, match=r"CIFAR10 cannot be downloaded into .* \(no way out\)"):
        CIFAR10(root=str(tmp_path), download=True).prepare_data()


def test_one_process_downloads_before_all_read(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, bool]] = []

    def read(root: str, split: str, download: bool) -> SimpleNamespace:
        calls.append((split, download))
        return SimpleNamespace(data=pictures(4, 1), labels=np.arange(4))

    monkeypatch.setattr(datasets, "SVHN", read)
    data = SVHN(download=True)
    data.prepare_data()
    monkeypatch.setattr(data, "trainer", SimpleNamespace(testing=True))
    data.prepare_data()
    SVHN().prepare_data()
    assert calls == [("train", True), ("test", True)]


@pytest.mark.parametrize("kind", [Digits, *KINDS])
def test_a_size_of_nothing(kind: Any) -> None:
    with pytest.raises(InputError, match="size is 0"):
        kind(size=0)
