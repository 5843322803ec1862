"""Your own pictures: a folder with a folder of PNG or JPEG files for each class."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dartslight.data.folder_cache import cached_pictures
from dartslight.data.module import ImageData, check_at_least
from dartslight.data.pictures import Pictures
from dartslight.errors import InputError

_SUFFIXES = (".png", ".jpg", ".jpeg")


class ImageFolder(ImageData):
    """A folder with a folder of PNG or JPEG pictures for each class.

    The folder holds ``train/<class>/*`` and ``test/<class>/*``; or it holds the class folders itself, and there are no
    test pictures. Folders within a class folder belong to the class, and hidden files are ignored. Pictures of any mode
    become RGB, turned upright as their EXIF entry says, without transparency. They are decoded once and kept in a
    cache; if a file changes, they are decoded again.

    Args:
        root: The folder.
        size: Height and width in pixels: of each picture the largest centred square is resized to it, by the mean of
            the area when it shrinks; null takes the pictures as they are, which must then be equally large.
        skip_corrupt: Whether pictures that cannot be read are left out with a warning.
        cache_dir: Folder for the decoded pictures; null for dartslight in the user's cache folder.
        base: The options of all data sets.
    """

    def __init__(
        self,
        root: str,
        size: int | None = None,
        skip_corrupt: bool = False,
        cache_dir: str | None = None,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        check_at_least(1, size=size)
        self.root, self.size, self.skip_corrupt, self.cache_dir = root, size, skip_corrupt, cache_dir

    def prepare_data(self) -> None:
        """Lets one process decode the pictures before all of them read."""
        self.load(train=True)
        if self.trainer is not None and self.trainer.testing:
            self.load(train=False)

    def load(self, train: bool) -> Pictures:
        """Returns the training pictures or the test pictures.

        Args:
            train: Whether the training pictures are wanted.

        Raises:
            InputError: If the folder is not as it should be, a picture cannot be read, or the cache cannot be written.
        """
        listing = list_folder(self._train_folder() if train else self._test_folder())
        files = [(listing.folder / name, label) for name, label in zip(listing.names, listing.labels, strict=True)]
        pixels, labels = cached_pictures(listing.folder, files, self.size, self.skip_corrupt, self._cache_folder())
        for label in np.setdiff1d(listing.labels, labels):
            raise _no_pictures(listing.folder / listing.classes[label])
        return Pictures.from_pixels(pixels, labels, listing.classes)

    def _train_folder(self) -> Path:
        root = Path(self.root).expanduser()
        if not root.is_dir():
            raise InputError(
                f"There is no folder {self.root!r}; give the folder that holds train/<class>/ as --data.root."
            )
        return root / "train" if (root / "train").is_dir() else root

    def _test_folder(self) -> Path:
        train = self._train_folder()
        root = Path(self.root).expanduser()
        test = root / "test"
        if train == root or not test.is_dir():
            raise InputError(
                f"There are no test pictures in {self.root!r}; put them into test/<class>/ beside train/<class>/."
            )
        odd = sorted(set(_class_names(train)) ^ set(_class_names(test)))
        if odd:
            raise InputError(
                f"The classes in {str(test)!r} must be those in {str(train)!r}, but {odd[0]!r} is not in both; add or "
                "remove its folder."
            )
        return test

    def _cache_folder(self) -> Path:
        if self.cache_dir is not None:
            return Path(self.cache_dir).expanduser()
        caches = os.environ.get("XDG_CACHE_HOME")
        return (Path(caches) if caches else Path.home() / ".cache") / "dartslight"


@dataclass(frozen=True, slots=True)
class Listing:
    """The picture files in a folder of class folders, sorted.

    Args:
        folder: The folder.
        classes: The names of the classes.
        names: Names of the picture files, relative to the folder.
        labels: The class number of each file.
    """

    folder: Path
    classes: tuple[str, ...]
    names: tuple[str, ...]
    labels: tuple[int, ...]


def list_folder(folder: Path) -> Listing:
    """Returns the picture files in a folder of class folders.

    Args:
        folder: The folder.

    Raises:
        InputError: If it has fewer than two class folders, or one of them has no pictures.
    """
    classes = _class_names(folder)
    if not classes:
        raise InputError(f"There are no class folders in {str(folder)!r}; put the pictures of each class into one.")
    if len(classes) == 1:
        raise InputError(
            f"There is only one class folder, {classes[0]!r}, in {str(folder)!r}, but there must be at least 2 to tell "
            "apart; add another."
        )
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(picture_files(folder, name))
        if not found:
            raise _no_pictures(folder / name)
        names += found
        labels += [label] * len(found)
    return Listing(folder, classes, tuple(names), tuple(labels))


def _class_names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")))


def picture_files(folder: Path, part: str = "") -> list[str]:
    """Returns the names, relative to a folder, of the picture files in it or in a part of it, in no order.

    Args:
        folder: The folder.
        part: Name of a folder in it whose files alone are wanted.
    """
    found = []
    for place, folders, files in os.walk(folder / part):
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = Path(place).relative_to(folder)
        found += [
            str(relative / name) for name in files if name.lower().endswith(_SUFFIXES) and not name.startswith(".")
        ]
    return found


def _no_pictures(folder: Path) -> InputError:
    return InputError(
        f"The class folder {str(folder)!r} has no readable pictures; put {', '.join(_SUFFIXES)} files into it, or "
        "remove it."
    )
