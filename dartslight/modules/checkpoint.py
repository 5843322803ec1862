"""What a checkpoint says about itself, and how one is read without trusting it."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dartslight.errors import InputError

HEADER = "dartslight"
"""The key under which a checkpoint says what it is of."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Returns the contents of a checkpoint; nothing in it can run code.

    Args:
        path: A file that a run has written.

    Raises:
        InputError: If there is no such file, or it is damaged, or it is not of this program.
    """
    path = Path(path)
    if not path.is_file():
        near = ", ".join(sorted(p.name for p in path.parent.glob("*.ckpt"))) if path.parent.is_dir() else ""
        raise InputError(
            f"There is no checkpoint {str(path)!r}; "
            + (f"that folder has {near}." if near else "a run keeps them in its folder 'checkpoints'.")
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make the reader fail in any way
        reason = "it holds more than tensors and plain values" if _is_foreign(error) else "it is damaged"
        others = sorted((p for p in path.parent.glob("*.ckpt") if p != path), key=lambda p: -p.stat().st_mtime)
        advice = f"the newest other one there is {others[0].name}" if others else "there is no other one in its folder"
        raise InputError(
            f"The checkpoint {str(path)!r} cannot be loaded ({reason}); give one that dartslight has written whole: "
            f"{advice}."
        ) from None
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(HEADER), dict):
        raise InputError(
            f"{str(path)!r} is not a checkpoint of dartslight; give one from a run's folder 'checkpoints'."
        )
    return checkpoint


def _is_foreign(error: Exception) -> bool:
    return isinstance(error, pickle.UnpicklingError) and "unsupported" in str(error).lower()


def check_header(checkpoint: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Compares what a checkpoint says it is of with what is wanted.

    Args:
        checkpoint: The checkpoint.
        expected: What it should say.

    Raises:
        InputError: If they differ.
    """
    found = checkpoint.get(HEADER, {})
    for key, value in expected.items():
        if found.get(key) != value:
            raise InputError(
                f"The checkpoint has {key} {found.get(key)!r}, but this run has {key} {value!r}; "
                "give a checkpoint of the same configuration, or change the configuration."
            )
