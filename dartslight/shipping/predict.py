"""Predictions: what a trained network says of pictures.

    python -m dartslight predict pictures --model RETRAIN_RUN -o predictions.csv

A picture goes the way of a test picture: decoded, cut to a square, resized and normalised alike.
"""

import csv
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dartslight.data.folder import picture_files
from dartslight.data.folder_cache import decode
from dartslight.data.pictures import Pictures, Pixels
from dartslight.errors import InputError, check_least
from dartslight.shipping.model import Model


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a network says of pictures.

    Args:
        files: The pictures that could be read.
        probabilities: The probability of each class, (pictures, classes).
        classes: The names of the classes.
        problems: One sentence for each picture that could not be read.
    """

    files: tuple[Path, ...]
    probabilities: Tensor
    classes: tuple[str, ...]
    problems: tuple[str, ...]

    def csv(self, every_class: bool = False) -> str:
        """Returns a table with the columns file, class and probability.

        Args:
            every_class: Whether a column for the probability of each class follows.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        more = [f"probability of {name}" for name in self.classes] if every_class else []
        writer.writerow(["file", "class", "probability", *more])
        for file, row in zip(self.files, self.probabilities.tolist(), strict=True):
            best = max(row)
            shown = [f"{value:.6f}" for value in [best, *(row if every_class else [])]]
            writer.writerow([str(file), self.classes[row.index(best)], *shown])
        return text.getvalue()


def find_pictures(paths: Sequence[str]) -> list[Path]:
    """Returns the files of pictures and of folders, those of a folder sorted, none twice.

    Args:
        paths: Files, and folders whose PNG and JPEG files are wanted, those in folders within them too.

    Raises:
        InputError: If one does not exist, or a folder holds none.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found = [path / name for name in sorted(picture_files(path))]
            if not found:
                raise InputError(f"There are no PNG or JPEG files in {str(path)!r}; give another folder.")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise InputError(f"There is no picture or folder {str(path)!r}; give the path of one.")
    return list(dict.fromkeys(files))


def predict(files: Sequence[Path], model: Model, batch_size: int = 256) -> Predictions:
    """Returns what a network says of pictures, with a progress bar where a person looks on.

    Args:
        files: The pictures.
        model: The network.
        batch_size: Pictures per pass.

    Raises:
        InputError: If no picture can be read.
    """
    check_least(1, batch_size=batch_size)
    read: list[Path] = []
    rows: list[Tensor] = []
    problems: list[str] = []
    height, width = model.signature.size
    # Test pictures that need not be square were taken as they are.
    size = height if height == width else None
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=len(files), desc="Predicting", unit="picture", leave=False, disable=None) as bar,
    ):
        for start in range(0, len(files), batch_size):
            batch = files[start : start + batch_size]
            pixels: list[Pixels] = []
            for file, picture in zip(batch, pool.map(lambda path: decode(path, size), batch), strict=True):
                if picture is None:
                    problems.append(f"The picture {str(file)!r} cannot be read; replace or remove it.")
                elif picture.shape[:2] != model.signature.size:
                    problems.append(
                        f"The picture {str(file)!r} is {picture.shape[1]}x{picture.shape[0]} pixels, but the network "
                        f"reads {width}x{height}; resize it."
                    )
                else:
                    pixels.append(picture)
                    read.append(file)
            if pixels:
                images = Pictures.from_pixels(np.stack(pixels), [0] * len(pixels), model.signature.classes).images
                rows.append(model.probabilities(images))
            bar.update(len(batch))
    if not rows:
        raise InputError(f"None of the {len(files)} pictures can be used; the first: {problems[0]}")
    return Predictions(tuple(read), torch.cat(rows), model.signature.classes, tuple(problems))
