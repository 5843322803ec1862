"""Decoded pictures on disk: one array of bytes for a folder, made once and mapped into memory.

An entry appears whole or not at all: it is made in a folder of its own that is then renamed. Nothing in it is executed.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from tqdm import tqdm

from dartslight.data.pictures import Pixels, square
from dartslight.errors import InputError

File = tuple[Path, int]
"""A picture file and its class number."""
Labels = npt.NDArray[np.int64]

_FORMAT = 1  # grows when pictures would be decoded differently or stored differently
_IMAGES, _LABELS = "images.npy", "labels.npy"
_BUILDING = ".building-"
_ABANDONED = 24 * 3600  # seconds after which nobody is building an entry any more
_CHUNK = 64  # pictures decoded in one go by a thread


def cached_pictures(
    folder: Path, files: Sequence[File], size: int | None, skip_corrupt: bool, cache_folder: Path
) -> tuple[Pixels, Labels]:
    """Returns decoded pictures, from the cache if they are there.

    Args:
        folder: The folder that the files are in.
        files: The files.
        size: Height and width in pixels to resize to; None takes the pictures as they are.
        skip_corrupt: Whether pictures that cannot be read are left out with a warning.
        cache_folder: The folder of the cache.

    Returns:
        Pictures (n, height, width, 3), mapped into memory, and their class numbers (n,).

    Raises:
        InputError: If a picture cannot be read or has another size, or if the cache cannot be written.
    """
    shelf = cache_folder / _digest(str(folder.resolve()), str(size))
    entry = shelf / _fingerprint(folder, files, size, skip_corrupt)
    found = _read(entry)
    if found is None:
        found = _build(entry, files, size, skip_corrupt)
        _tidy(shelf, entry)
    return found


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _fingerprint(folder: Path, files: Sequence[File], size: int | None, skip_corrupt: bool) -> str:
    parts = [str(_FORMAT), str(folder.resolve()), str(size), str(skip_corrupt)]
    for path, label in files:
        status = path.stat()
        parts.append(f"{path.relative_to(folder)} {label} {status.st_mtime_ns} {status.st_size}")
    return _digest(*parts)


def _read(entry: Path) -> tuple[Pixels, Labels] | None:
    """Returns an entry, or None if it is missing or damaged."""
    try:
        # Copy on write: torch wants memory that it may write to, and the file must not change.
        images = np.load(entry / _IMAGES, mmap_mode="c", allow_pickle=False)
        labels = np.load(entry / _LABELS, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return (images, labels) if images.shape[:1] == labels.shape else None


def _build(entry: Path, files: Sequence[File], size: int | None, skip_corrupt: bool) -> tuple[Pixels, Labels]:
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=_BUILDING, dir=entry.parent))
        try:
            labels = _write_images(building / _IMAGES, files, size, skip_corrupt)
            np.save(building / _LABELS, labels)
            found = _read(building)
            assert found is not None
            _put(building, entry)
            return found
        finally:
            shutil.rmtree(building, ignore_errors=True)
    except OSError as error:
        raise InputError(
            f"The cache of decoded pictures cannot be written into {str(entry.parent)!r} ({error.strerror}); give "
            "another folder as --data.cache_dir."
        ) from error


def _put(building: Path, entry: Path) -> None:
    """Moves what has been built to its place, unless another process has put the same there."""
    if _read(entry) is not None:
        return
    with contextlib.suppress(OSError):
        entry.rename(building / "damaged")
    # If another process comes first even now, its entry is as good, and the one built here is mapped already.
    with contextlib.suppress(OSError):
        building.rename(entry)


def _tidy(shelf: Path, entry: Path) -> None:
    """Removes what the folder was before, and what interrupted runs have left."""
    with contextlib.suppress(OSError):
        for other in shelf.iterdir():
            in_the_works = other.name.startswith(_BUILDING) and time.time() - other.stat().st_mtime < _ABANDONED
            if other != entry and not in_the_works:
                shutil.rmtree(other, ignore_errors=True)


def _write_images(path: Path, files: Sequence[File], size: int | None, skip_corrupt: bool) -> Labels:
    """Writes all readable pictures as one array, and returns their class numbers."""
    shape: tuple[int, ...] | None = None
    labels: list[int] = []
    corrupt: list[Path] = []
    with path.open("wb") as output, contextlib.closing(_decoded([path for path, _ in files], size)) as decoded:
        for (source, label), pixels in zip(files, decoded, strict=True):
            if pixels is None:
                if not skip_corrupt:
                    raise InputError(
                        f"The picture {str(source)!r} cannot be read; replace or remove it, or pass "
                        "--data.skip_corrupt true to leave such pictures out."
                    )
                corrupt.append(source)
                continue
            if shape is None:
                shape = pixels.shape
                _write_header(output, len(files), shape)
            if pixels.shape != shape:
                raise InputError(
                    f"The picture {str(source)!r} is {pixels.shape[1]}x{pixels.shape[0]} pixels, but others are "
                    f"{shape[1]}x{shape[0]}; give --data.size to resize all."
                )
            output.write(pixels.tobytes())
            labels.append(label)
        if shape is None:
            raise InputError(f"None of the {len(files)} pictures beside {str(files[0][0])!r} can be read; give others.")
        # A header has room for its first axis to change, so the true number of pictures fits into its place.
        output.seek(0)
        _write_header(output, len(labels), shape)
        output.flush()
        os.fsync(output.fileno())
    if corrupt:
        warnings.warn(
            f"Left out {len(corrupt)} pictures that cannot be read, the first is {str(corrupt[0])!r}.", stacklevel=2
        )
    return np.array(labels, dtype=np.int64)


def _write_header(output: BinaryIO, count: int, shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(output, {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)})


def _decoded(paths: Sequence[Path], size: int | None) -> Generator[Pixels | None, None, None]:
    """Decodes pictures in threads, in order; one that cannot be read is None."""

    def decode_chunk(chunk: Sequence[Path]) -> list[Pixels | None]:
        return [decode(path, size) for path in chunk]

    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        with tqdm(total=len(paths), desc="Decoding pictures", unit="picture", leave=False, disable=None) as bar:
            for chunk in pool.map(decode_chunk, [paths[i : i + _CHUNK] for i in range(0, len(paths), _CHUNK)]):
                yield from chunk
                bar.update(len(chunk))
    finally:
        pool.shutdown(cancel_futures=True)


def decode(path: Path, size: int | None) -> Pixels | None:
    """Returns a picture as RGB bytes, or None if it cannot be read.

    Args:
        path: A PNG or JPEG file.
        size: Height and width in pixels to resize its largest centred square to; None leaves it.

    Returns:
        The picture, (height, width, 3).
    """
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as opened:
            picture = _rgb(ImageOps.exif_transpose(opened))
    except Exception:  # Pillow's decoders raise whatever they run into in a damaged file
        return None
    return np.asarray(picture if size is None else square(picture, size))


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):
        # Gray of 16 bits, which Pillow would clip at 255.
        picture = Image.fromarray(((np.asarray(picture).astype(np.int64) + 128) // 257).astype(np.uint8))
    if "transparency" in picture.info:
        # Pillow warns about palettes with transparency that become RGB at once.
        picture = picture.convert("RGBA")
    return picture.convert("RGB")
