"""The supernet in training, behind the interface that selection rules know."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch import nn
from tqdm import tqdm

from dartslight.errors import InputError
from dartslight.modules import SearchModule
from dartslight.nets import Mixing
from dartslight.seeding import derived_seed
from dartslight.selection import Evaluation, Measurement, Race, Variant
from dartslight.spaces import Choices, SearchSpace

_MEASURE = 5  # what a derived seed is for


@dataclass
class LiveSupernet:
    """The supernet in training, behind the interface that rules know (`dartslight.selection.Supernet`).

    Args:
        trainer: The trainer.
        module: The search.
        title: What the progress bar says first.
    """

    trainer: Trainer
    module: SearchModule
    title: str

    @property
    def space(self) -> SearchSpace:
        """The search space."""
        return self.module.space

    @property
    def choices(self) -> Choices:
        """What is open now."""
        return self.module.choices

    def mixing(self, choices: Choices) -> Mixing:
        """Returns the mixing weights if these choices were the present ones."""
        with torch.no_grad():
            weights: Mixing = self.module.architecture(choices)
        return weights

    @torch.no_grad()
    def measure(
        self, variants: Sequence[Variant], evaluation: Evaluation, race: Race | None = None
    ) -> list[Measurement]:
        """Measures all variants on the same pictures in one pass; in a race those that have left it no further."""
        if evaluation.statistics == "running" and not self.module.track_statistics:
            raise InputError(
                "eval_bn is 'running', but the supernet keeps no running statistics; pass "
                "--model.track_statistics true to the search, or use 'batch_frozen'."
            )
        self._share_statistics()
        batches = cast("Any", self.trainer).datamodule.selection_batches(
            augmented=evaluation.augmented, seed=evaluation.seed, limit=evaluation.batches
        )
        supernet = self.module.supernet
        runs = [(v.mixing, v.choices) for v in variants]
        losses: list[list[torch.Tensor]] = [[] for _ in variants]
        corrects: list[list[torch.Tensor]] = [[] for _ in variants]
        left = list(range(len(variants)))
        with _statistics(supernet, evaluation.statistics), self.trainer.precision_plugin.forward_context():
            for b, raw in enumerate(self._progress(batches, variants)):
                batch = self.trainer.strategy.batch_to_device(raw)
                torch.manual_seed(derived_seed(evaluation.seed, _MEASURE, b))
                for i, logits in zip(left, supernet.forward_each(batch.images, [runs[i] for i in left]), strict=True):
                    losses[i].append(F.cross_entropy(logits.double(), batch.labels, reduction="none"))
                    corrects[i].append((logits.argmax(dim=1) == batch.labels).double())
                if race is not None:
                    values = [torch.cat(m) for m in (losses if evaluation.criterion == "loss" else corrects)]
                    racing = [i for i in left if i in race.entrants]
                    gone = set(racing) - set(race.survivors(values, racing, b + 1, len(batches)))
                    left = [i for i in left if i not in gone]
                    if len(racing) - len(gone) == 1:
                        break
        return [
            Measurement(torch.cat(loss).cpu(), torch.cat(correct).cpu(), len(loss))
            for loss, correct in zip(losses, corrects, strict=True)
        ]

    def _share_statistics(self) -> None:
        """Gives all devices the mean of their running statistics, so that they measure the same network."""
        if self.trainer.world_size > 1:
            for buffer in self.module.supernet.buffers():
                if buffer.dtype.is_floating_point:
                    buffer.copy_(self.trainer.strategy.reduce(buffer.clone(), reduce_op="mean"))

    def _progress(self, batches: Any, variants: Sequence[Variant]) -> Any:
        """Shows a bar where the trainer shows one."""
        bar: Any = self.trainer.progress_bar_callback
        shown = bar is not None and bar.is_enabled and self.trainer.is_global_zero
        names = ", ".join(v.label.partition(" without ")[2] for v in variants if " without " in v.label)
        what = variants[-1].label.partition(" without ")[0]
        return tqdm(
            batches,
            desc=f"{self.title}: {what} without {names}",
            disable=not shown,
            leave=False,
            dynamic_ncols=True,
            file=sys.stdout,
        )


@contextlib.contextmanager
def _statistics(supernet: nn.Module, mode: str) -> Iterator[None]:
    """Puts the batch normalisations into a mode of evaluation, and everything back afterwards."""
    was_training = supernet.training
    supernet.train(mode != "running")
    kept = {} if mode == "batch_update" else {name: b.clone() for name, b in supernet.named_buffers()}
    try:
        yield
    finally:
        supernet.train(was_training)
        for name, buffer in supernet.named_buffers():
            if name in kept:
                buffer.copy_(kept[name])
