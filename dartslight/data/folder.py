"""Any folder of class folders, decoded once into a cache of raw pictures."""

import hashlib
import os
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from dartslight.data.module import ImageData
from dartslight.data.pictures import Pictures
from dartslight.errors import InputError

_SUFFIXES = (".png", ".jpg", ".jpeg")
_CACHE_FORMAT = 1


class ImageFolder(ImageData):
    """PNG or JPEG pictures in a folder for each class.

    The folder holds ``train/<class>/…`` and ``test/<class>/…``; without a folder ``train`` it holds the class folders
    itself, and there are no test pictures. The pictures are decoded once into a cache, which is made anew when a file
    changes.

    Args:
        root: The folder.
        size: Height and width in pixels: pictures are cropped to a square in the middle and resized; null if all are
            equally large already.
        skip_corrupt: Whether pictures that cannot be read are left out with a warning instead of ending the run.
        cache_dir: Folder of the cache; null for dartslight in the user's cache folder.
        kwargs: The options of every data set.
    """

    def __init__(
        self,
        root: str,
        size: int | None = None,
        skip_corrupt: bool = False,
        cache_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if size is not None and size < 1:
            raise InputError(f"size is {size}, but it must be at least 1 pixel; give a larger number.")
        self.root, self.size, self.skip_corrupt = Path(root).expanduser(), size, skip_corrupt
        default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dartslight"
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir else default

    def load(self, train: bool) -> Pictures:
        """Returns the training or the test pictures.

        Raises:
            InputError: If the folder is not as it should be, or a picture cannot be read.
        """
        folder = self._folder(train)
        files, labels, classes = _scan(folder)
        fingerprint = self._fingerprint(folder, files)
        prefix = hashlib.sha256(f"{folder.resolve()} {self.size}".encode()).hexdigest()[:16]
        path = self.cache_dir / f"{prefix}-{fingerprint}.npy"
        images = _read_cache(path, len(files))
        if images is None:
            decoded = self._decode(folder, files)
            _write_cache(path, decoded)
            images = _read_cache(path, len(files))
            if images is None:
                raise InputError(f"The cache {str(path)!r} cannot be read back; give another --data.cache_dir.")
        readable = images[1]
        return Pictures(torch.from_numpy(images[0]), torch.tensor(labels)[torch.from_numpy(readable)], classes)

    def _folder(self, train: bool) -> Path:
        if not self.root.is_dir():
            raise InputError(f"There is no folder {str(self.root)!r}; give one that holds a folder for each class.")
        if (self.root / "train").is_dir():
            folder = self.root / ("train" if train else "test")
        elif train:
            return self.root
        else:
            folder = self.root / "test"
        if not folder.is_dir():
            raise InputError(
                f"There is no folder {str(folder)!r}; test pictures are looked for in 'test' beside the folder 'train'."
            )
        return folder

    def _fingerprint(self, folder: Path, files: Sequence[str]) -> str:
        """What changes whenever a file, or the way in which it is read, changes."""
        digest = hashlib.sha256(f"{_CACHE_FORMAT} {self.size} {self.skip_corrupt}".encode())
        for name in files:
            status = (folder / name).stat()
            digest.update(f"{name}\0{status.st_mtime_ns}\0{status.st_size}\n".encode())
        return digest.hexdigest()[:24]

    def _decode(self, folder: Path, files: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Reads all pictures and tells which of them could be read."""
        shape: tuple[int, int] | None = None
        images: np.ndarray | None = None
        readable = np.ones(len(files), dtype=bool)
        first_bad = ""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            results = pool.map(lambda name: _open(folder / name, self.size), files)
            bar = tqdm(
                results, "reading pictures", len(files), leave=False, disable=not sys.stderr.isatty(), unit="picture"
            )
            for i, picture in enumerate(bar):
                if picture is None:
                    if not self.skip_corrupt:
                        raise InputError(
                            f"The picture {str(folder / files[i])!r} cannot be read; remove or replace it, or pass "
                            "--data.skip_corrupt true."
                        )
                    readable[i], first_bad = False, first_bad or str(folder / files[i])
                    continue
                if images is None or shape is None:
                    shape = picture.shape[1:]
                    images = np.empty((len(files), 3, *shape), np.uint8)
                if picture.shape[1:] != shape:
                    raise InputError(
                        f"The picture {str(folder / files[i])!r} has {picture.shape[2]}x{picture.shape[1]} pixels, but "
                        f"others have {shape[1]}x{shape[0]}; pass --data.size to resize them all."
                    )
                images[i] = picture
        if images is None:
            raise InputError(f"None of the {len(files)} pictures in {str(folder)!r} can be read; give others.")
        if not readable.all():
            warnings.warn(
                f"{(~readable).sum()} pictures cannot be read and are left out, first {first_bad!r}.", stacklevel=2
            )
        return images[readable], readable


def _scan(folder: Path) -> tuple[list[str], list[int], tuple[str, ...]]:
    """Names of all pictures relative to the folder, their class indices, and the names of the classes."""
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(classes) < 2:
        what = f"only one class folder, {classes[0]!r}" if classes else "no class folders"
        raise InputError(f"The folder {str(folder)!r} has {what}; it needs a folder for each of at least 2 classes.")
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(
            str(Path(parent).relative_to(folder) / file)
            for parent, _, names in os.walk(folder / name)
            for file in names
            if file.lower().endswith(_SUFFIXES) and not file.startswith(".")
        )
        if not found:
            raise InputError(
                f"The class folder {str(folder / name)!r} has no pictures; put PNG or JPEG files into it, or remove it."
            )
        files += found
        labels += [label] * len(found)
    return files, labels, tuple(classes)


def _open(path: Path, size: int | None) -> np.ndarray | None:
    """Returns a picture as uint8 (3, height, width), or None where it cannot be read."""
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):  # 16 bits of gray
                image = Image.fromarray((np.asarray(image).astype(np.int64) // 256).clip(0, 255).astype(np.uint8))
            image = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError):
        return None
    if size is not None:
        # Shrinking takes the mean of the area: from 32 to 16 pixels the mean of 2x2.
        shrinks = min(image.size) >= size
        image = ImageOps.fit(image, (size, size), Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR)
    return np.asarray(image).transpose(2, 0, 1)


def _write_cache(path: Path, decoded: tuple[np.ndarray, np.ndarray]) -> None:
    """Writes both arrays whole or not at all, and removes those of an earlier state of the folder."""
    images, readable = decoded
    prefix = path.name.partition("-")[0]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for stale in path.parent.glob(f"{prefix}-*.npy"):
            stale.unlink(missing_ok=True)
        for target, array in ((_mask_path(path), readable), (path, images)):
            temporary = target.with_name(f".{target.name}.{os.getpid()}")
            with temporary.open("wb") as file:
                np.save(file, array, allow_pickle=False)
            temporary.replace(target)
    except OSError as error:
        raise InputError(
            f"The cache folder {str(path.parent)!r} cannot be written ({error.strerror}); "
            "give another --data.cache_dir."
        ) from None


def _read_cache(path: Path, count: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns both arrays, or None where they are missing or damaged."""
    try:
        # Copy on write: torch wants memory that could be written, and the file stays as it is.
        images = np.load(path, mmap_mode="c", allow_pickle=False)
        readable = np.load(_mask_path(path), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    whole = images.dtype == np.uint8 and images.ndim == 4 and readable.dtype == bool and len(readable) == count
    return (images, readable) if whole and len(images) == readable.sum() else None


def _mask_path(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".npy") + ".readable.npy")
