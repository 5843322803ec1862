"""A watch for numbers that are none: a run with NaN or infinity stops before it overwrites what was good."""

from collections.abc import Iterable
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from dartslight.errors import InputError

_NEVER = torch.iinfo(torch.int64).max


class FiniteWatch(Callback):
    """Remembers the first step with a number that is not finite, on the device, and stops the run on all devices.

    On a GPU to look at it is to wait for all steps before, so that is done before a checkpoint is written and at the
    end of an epoch; on a CPU it is done after every step.
    """

    def __init__(self) -> None:
        self._first: dict[str, Tensor] = {}

    def note(self, name: str, step: int, value: Tensor) -> None:
        """Notes a number of a step.

        Args:
            name: What it is, for the sentence; every device notes the same names.
            step: Number of the step.
            value: One number, or several.
        """
        is_bad = ~torch.isfinite(value.detach()).all()
        here = torch.where(is_bad, step, torch.full((), _NEVER, device=value.device))
        self._first[name] = torch.minimum(self._first[name], here) if name in self._first else here

    def note_gradient(self, trainer: Trainer, name: str, value: Tensor) -> None:
        """Notes a gradient before the step that it is for.

        A scaler of losses leaves a step out whose gradient is not finite and scales the next losses by half as much. A
        gradient that is none although losses are no longer scaled up will not become one.

        Args:
            trainer: The trainer.
            name: What it is.
            value: The gradient, unscaled, or its norm.
        """
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            value = torch.where(scaler.scale(torch.ones_like(value)) < 1, value, 0.0)
        self.note(name, trainer.global_step, value)

    def clip(self, trainer: Trainer, name: str, parameters: Iterable[Tensor], largest: float) -> None:
        """Scales unscaled gradients down where their norm is too large, and notes it.

        Args:
            trainer: The trainer.
            name: What they are.
            parameters: The parameters.
            largest: The largest L2 norm of all gradients together.
        """
        self.note_gradient(trainer, name, torch.nn.utils.clip_grad_norm_(parameters, largest))

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Looks after a step where that costs nothing."""
        if trainer.strategy.root_device.type == "cpu":
            self.look(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the end of an epoch."""
        self.look(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Looks before a checkpoint is written."""
        self.look(trainer)

    def look(self, trainer: Trainer) -> None:
        """Asks all devices, of which one alone may have seen it, so that all of them stop and none waits for another.

        Raises:
            InputError: If a number was not finite.
        """
        if not self._first:
            return
        names, steps = zip(*sorted(self._first.items()), strict=True)
        self._first.clear()
        earliest = cast("Tensor", trainer.strategy.reduce(torch.stack(steps), reduce_op="min")).tolist()
        step, name = min(zip(earliest, names, strict=True))
        if step < _NEVER:
            raise InputError(
                f"In step {step} the {name} is not a finite number, so the run has diverged; the last checkpoint from "
                "before is kept: go on from it with a smaller --model.learning_rate, or with more bits in "
                "--trainer.precision."
            )
