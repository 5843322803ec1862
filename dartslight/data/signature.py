"""What a trained network reads and what it tells, as a value that goes where the network goes."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dartslight.data.pictures import Channels
from dartslight.errors import InputError


@dataclass(frozen=True, slots=True)
class Signature:
    """How pictures become a network's input, and what its outputs mean.

    Args:
        size: Height and width of the pictures.
        mean: Mean of each channel in training, where a full byte counts as 1.
        std: Standard deviation of each channel in the same unit.
        classes: The names of the classes, in the order of the outputs.
    """

    size: tuple[int, int]
    mean: Channels
    std: Channels
    classes: tuple[str, ...]

    def state(self) -> dict[str, list[Any]]:
        """Returns plain lists for a checkpoint or JSON."""
        return {
            "size": list(self.size),
            "mean": list(self.mean),
            "std": list(self.std),
            "classes": list(self.classes),
        }

    @classmethod
    def from_state(cls, state: Any, name: str) -> "Signature":
        """Returns the value that `state` was taken from.

        Args:
            state: What was read from a file.
            name: What messages call the file.

        Raises:
            InputError: If it is not such a value.
        """
        try:
            (height, width), classes = state["size"], tuple(state["classes"])
            mean, std = _channels(state["mean"]), _channels(state["std"])
        except (KeyError, TypeError, ValueError):
            whole = False
        else:
            sides = all(isinstance(side, int) and side >= 1 for side in (height, width))
            whole = sides and min(std) > 0 and len(classes) >= 2 and all(isinstance(c, str) for c in classes)
        if not whole:
            raise InputError(
                f"{name} does not say how its pictures were prepared and what its classes are; give one that this "
                "version of dartslight has written."
            )
        return cls((height, width), mean, std, classes)

    @classmethod
    def from_json(cls, text: str, name: str) -> "Signature":
        """Returns the value whose `state` is a JSON text.

        Args:
            text: The text.
            name: What messages call the file that it was in.

        Raises:
            InputError: If it is not such a text.
        """
        try:
            state = json.loads(text)
        except (TypeError, ValueError, RecursionError):
            state = None
        return cls.from_state(state, name)

    def check_classes(self, classes: Sequence[str]) -> None:
        """Checks that pictures have the classes of the network, in its order.

        Args:
            classes: The names of the pictures' classes.

        Raises:
            InputError: If they have others.
        """
        if tuple(classes) != self.classes:
            own, others = (", ".join(map(repr, names)) for names in (self.classes, classes))
            raise InputError(
                f"The network was trained on the classes {own}, but the pictures have {others}; give pictures of the "
                "same classes."
            )


def _channels(values: Sequence[Any]) -> Channels:
    red, green, blue = (float(value) for value in values)
    if not all(map(math.isfinite, (red, green, blue))):
        raise ValueError("A channel is not finite.")
    return red, green, blue
