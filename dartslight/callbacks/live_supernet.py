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

from dartslight.data import EvaluationBatches
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
        """Measures all variants on the same pictures in one pass; in a race those that have left it no further.

        Every device measures its share of the batches; the result is that of one device, to the bit where batch
        normalisation does not carry anything from batch to batch.
        """
        if evaluation.statistics == "running" and not self.module.track_statistics:
            raise InputError(
                "eval_bn is 'running', but the supernet keeps no running statistics; pass "
                "--model.track_statistics true to the search, or use 'batch_frozen'."
            )
        self._share_statistics()
        batches: EvaluationBatches = cast("Any", self.trainer).datamodule.selection_batches(
            augmented=evaluation.augmented, seed=evaluation.seed, limit=evaluation.batches
        )
        device = self.trainer.strategy.root_device
        shape = (2, len(variants), batches.place(len(batches) - 1).stop)
        table = torch.zeros(shape, dtype=torch.float64, device=device)  # loss and correctness of every picture
        counts, left, done = [len(batches)] * len(variants), list(range(len(variants))), 0
        with self._ready(evaluation.statistics), self._bar(batches, variants) as bar:
            for stop in [*(race.looks(len(batches)) if race else []), len(batches)]:
                for b in range(done, stop):
                    if b % self.trainer.world_size == self.trainer.global_rank:
                        table[:, left, batches.place(b)] = self._values(
                            [variants[i] for i in left], batches, b, seed=evaluation.seed
                        )
                    bar.update()
                done = stop
                if race is None or stop == len(batches):
                    continue
                values = self._of_all_devices(table[:, :, : batches.place(stop - 1).stop])
                racing = [i for i in left if i in race.entrants]
                stay = race.survivors(list(values[0 if race.criterion == "loss" else 1]), racing, len(batches))
                for i in set(racing) - set(stay):
                    counts[i] = stop
                left = [i for i in left if counts[i] > stop]
                if len(stay) == 1:
                    counts = [min(count, stop) for count in counts]
                    break
        loss, correct = self._of_all_devices(table).cpu()
        ends = [batches.place(count - 1).stop for count in counts]
        return [Measurement(loss[i, :end], correct[i, :end], counts[i]) for i, end in enumerate(ends)]

    def _values(self, variants: Sequence[Variant], batches: EvaluationBatches, b: int, seed: int) -> torch.Tensor:
        """Returns loss and correctness of every picture of a batch in every variant, (2, variants, pictures)."""
        batch = self.trainer.strategy.batch_to_device(batches.batch(b))
        torch.manual_seed(derived_seed(seed, _MEASURE, b))
        logits = torch.stack(self.module.supernet.forward_each(batch.images, [(v.mixing, v.choices) for v in variants]))
        labels = batch.labels.expand(len(variants), -1)
        losses = F.cross_entropy(logits.double().flatten(0, 1), labels.flatten(), reduction="none")
        return torch.stack([losses.view_as(labels), (logits.argmax(dim=2) == labels).double()])

    def _of_all_devices(self, table: torch.Tensor) -> torch.Tensor:
        """Fills in what other devices have measured; every place has been filled by one, and is 0 on the others."""
        summed: torch.Tensor = self.trainer.strategy.reduce(table.clone(), reduce_op="sum")
        return summed

    @contextlib.contextmanager
    def _ready(self, statistics: str) -> Iterator[None]:
        """Prepares the supernet: in full precision, since rounding to 8 or 11 bits can turn a decision."""
        device, context = self.trainer.strategy.root_device.type, self.trainer.precision_plugin.forward_context()
        with _statistics(self.module.supernet, statistics), context, torch.autocast(device, enabled=False):
            yield

    def _share_statistics(self) -> None:
        """Gives all devices the mean of their running statistics, so that they measure the same network."""
        if self.trainer.world_size > 1:
            for buffer in self.module.supernet.buffers():
                if buffer.dtype.is_floating_point:
                    buffer.copy_(self.trainer.strategy.reduce(buffer.clone(), reduce_op="mean"))

    def _bar(self, batches: EvaluationBatches, variants: Sequence[Variant]) -> Any:
        """Shows a bar where the trainer shows one."""
        bar: Any = self.trainer.progress_bar_callback
        shown = bar is not None and bar.is_enabled and self.trainer.is_global_zero
        names = ", ".join(v.label.partition(" without ")[2] for v in variants if " without " in v.label)
        what = variants[-1].label.partition(" without ")[0]
        return tqdm(
            total=len(batches),
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
