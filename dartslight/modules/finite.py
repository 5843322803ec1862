"""A watch for numbers that are none: a run with NaN or infinity stops before it overwrites what was good."""

import torch
from torch import Tensor

from dartslight.errors import InputError


class FiniteWatch:
    """Remembers the first step with a number that is not finite, on the device, and tells when it is asked.

    On a GPU a question waits for all steps before it, so it is asked before a checkpoint is written and at the end of
    an epoch; on a CPU it costs nothing and is asked in every step.
    """

    def __init__(self) -> None:
        self._first: dict[str, Tensor] = {}

    def note(self, name: str, step: int, value: Tensor) -> None:
        """Notes a number of a step.

        Args:
            name: What it is, for the sentence.
            step: Number of the step.
            value: One number, or several.
        """
        is_bad = ~torch.isfinite(value.detach()).all()
        never = torch.full((), torch.iinfo(torch.int64).max, device=value.device)
        here = torch.where(is_bad, step, never)
        self._first[name] = torch.minimum(self._first[name], here) if name in self._first else here
        if value.device.type == "cpu":
            self.check()

    def check(self) -> None:
        """Asks whether all numbers so far were finite.

        Raises:
            InputError: If one was not.
        """
        found = [(int(step), name) for name, step in self._first.items()]
        self._first.clear()
        step, name = min(found, default=(torch.iinfo(torch.int64).max, ""))
        if step < torch.iinfo(torch.int64).max:
            raise InputError(
                f"In step {step} the {name} is not a finite number, so the run has diverged; the last checkpoint from "
                "before is kept: go on from it with a smaller --model.learning_rate, or with more bits in "
                "--trainer.precision."
            )
