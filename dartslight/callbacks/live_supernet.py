"""The supernet in training, behind the interface that selection rules know."""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch import nn
from tqdm import tqdm

from dartslight.callbacks.scores_file import ScoresFile, digest
from dartslight.data import EvaluationBatches
from dartslight.errors import InputError
from dartslight.modules import SearchModule
from dartslight.modules.devices import end_if_told, on_first, share_statistics
from dartslight.modules.sensitivities import sensitivity
from dartslight.nets import Mixing, Supernet
from dartslight.run_folder import by_first_device
from dartslight.seeding import derived_seed
from dartslight.selection import Evaluation, Measurement, Race, Saliency, Sensitivities, Variant
from dartslight.selection.racing import Criterion
from dartslight.spaces import Choices, SearchSpace
from dartslight.strategies import hessian_product, largest_eigenvalue

_MEASURE, _CURVATURE = 5, 6  # what a derived seed is for
_CRITERIA: tuple[Criterion, ...] = ("loss", "accuracy", "divergence")  # in the order of `Measurement`
_CHUNK = 32  # batches between two states that an interrupted measurement goes on from


@dataclass
class LiveSupernet:
    """The supernet in training, behind the interface that rules know (`dartslight.selection.Supernet`).

    Args:
        trainer: The trainer.
        module: The search.
        title: What the progress bar says first.
        scores: Where measurements are kept until the decision is in a checkpoint.
        memory: What the rule has noted so far.
        epochs: Number of finished epochs.
    """

    trainer: Trainer
    module: SearchModule
    title: str
    scores: ScoresFile
    memory: dict[str, Any]
    epochs: int

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
            return self.module.mixing(choices, self.epochs)

    def slots(self, choices: Choices) -> Mixing | None:
        """Returns the probability of each operation in each slot, (slots, edges, ops); None where nodes have none."""
        with torch.no_grad():
            return self.module.architecture.slots(choices)

    @property
    def is_searched(self) -> bool:
        """Whether the epochs of the search are over."""
        return self.epochs >= cast("int", self.module.search_epochs)

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
        share_statistics(self.trainer, self.module.supernet)
        batches = self._batches(evaluation)
        total, rank = len(batches), self.trainer.global_rank
        shape = (len(_CRITERIA), len(variants), batches.place(total - 1).stop)
        done, counts = 0, [total] * len(variants)
        table = torch.zeros(shape, dtype=torch.float64, device=self._device)
        key, kept = self._kept(variants, evaluation, race, total)
        if kept is not None:
            done, counts = kept["done"], kept["counts"]
            if rank == 0:
                table.copy_(kept["table"])
        looks = race.looks(total) if race else []
        stops = sorted(stop for stop in {*looks, *range(_CHUNK, total, _CHUNK), total} if stop > done)
        so_far = self._of_all_devices(table)
        with self._ready(evaluation.statistics), self._bar(batches, variants, done) as bar:
            if kept is not None:
                self._restore(kept["buffers"])
            for stop in stops:
                left = [i for i, count in enumerate(counts) if count > done]
                if not left:
                    break
                for b in range(done, stop):
                    if b % self.trainer.world_size == rank:
                        of_batch = self._values([variants[i] for i in left], batches, b, evaluation.seed)
                        table[:, left, batches.place(b)] = of_batch
                    bar.update()
                done = stop
                so_far = self._of_all_devices(table)
                if race is not None and stop in looks:
                    values = so_far[_CRITERIA.index(race.criterion), :, : batches.place(stop - 1).stop]
                    racing = [i for i in left if i in race.entrants]
                    stay = race.survivors(list(values), racing, total)
                    # Without rivals the race is over for all.
                    ended = set(racing) - set(stay) if len(stay) > 1 else set(left)
                    counts = [stop if i in ended else count for i, count in enumerate(counts)]
                self._keep(key, evaluation, {"table": so_far, "done": done, "counts": counts})
                end_if_told(self.trainer)  # Lightning asks only between training batches
        ends = [batches.place(count - 1).stop for count in counts]
        loss, correct, divergence = so_far.cpu()
        return [
            Measurement(loss[i, :end], correct[i, :end], divergence[i, :end], counts[i]) for i, end in enumerate(ends)
        ]

    @torch.enable_grad()
    def sensitivity(self, evaluation: Evaluation | None) -> Sensitivities:
        """Returns the sensitivities on some batches, or those that the architecture steps have seen for None.

        Every device takes its share of the batches, and all get the same numbers.
        """
        module = self.module
        if evaluation is None:
            return module.seen_sensitivities()
        module.finite.look(self.trainer)
        share_statistics(self.trainer, module.supernet)
        batches = self._batches(evaluation)
        mixing = {cell: weights.clone().requires_grad_() for cell, weights in self.mixing(self.choices).items()}
        samples = {
            cell: torch.zeros(len(batches), len(w), module.space.cell(cell).num_ops + 1, device=self._device)
            for cell, w in mixing.items()
        }
        with undisturbed(self._device), module.supernet.constant(), self._ready(evaluation.statistics):
            for b in range(self.trainer.global_rank, len(batches), self.trainer.world_size):
                batch = self.trainer.strategy.batch_to_device(batches.batch(b))
                torch.manual_seed(derived_seed(evaluation.seed, _MEASURE, b))
                loss = F.cross_entropy(module.supernet(batch.images, mixing, self.choices), batch.labels)
                gradients = torch.autograd.grad(loss, list(mixing.values()), materialize_grads=True)
                for (cell, weights), gradient in zip(mixing.items(), gradients, strict=True):
                    samples[cell][b] = sensitivity(weights.detach(), gradient, module.space.cell(cell).num_ops)
        of_all = {cell: self._of_all_devices(own.double()).cpu() for cell, own in samples.items()}
        return Sensitivities(of_all, batches.batch_size)

    @torch.enable_grad()
    def curvature(self, seed: int, batches: int = 1) -> float:
        """Returns the largest eigenvalue of the Hessian of the validation loss by the architecture parameters.

        The loss is that of the architecture steps with their weight decay, on pictures that are augmented where theirs
        are, with the statistics of each batch. Every device takes its share of the batches, and all get the same
        number; a penalty of the relaxation is left out.

        Args:
            seed: Seeds the pictures and the method.
            batches: Number of batches; each of them is kept in memory with all that its derivative needs.
        """
        module, world_size = self.module, self.trainer.world_size
        module.finite.look(self.trainer)
        data = cast("Any", self.trainer).datamodule
        drawn: EvaluationBatches = data.selection_batches(augmented=data.augment_val, seed=seed, limit=batches)
        parameters = list(module.architecture.parameters())
        pictures = drawn.place(len(drawn) - 1).stop
        loss = torch.zeros((), device=self._device)
        with (
            undisturbed(self._device),
            module.supernet.constant(),
            module.supernet.plain(),
            self._ready("batch_frozen"),
        ):
            for b in range(self.trainer.global_rank, len(drawn), world_size):
                batch = self.trainer.strategy.batch_to_device(drawn.batch(b))
                torch.manual_seed(derived_seed(seed, _CURVATURE, b))
                logits = module.supernet(batch.images, module.mixing(self.choices, self.epochs), self.choices)
                loss = loss + F.cross_entropy(logits, batch.labels, reduction="sum") / pictures
            product = hessian_product(loss, parameters)

            def of_all_devices(vector: torch.Tensor) -> torch.Tensor:
                own = product(vector.to(self._device, parameters[0].dtype))
                return self._of_all_devices(own).to(vector) + module.alpha_weight_decay * vector

            return largest_eigenvalue(of_all_devices, sum(p.numel() for p in parameters), seed)

    def saliency(self, score: Saliency, alphas: Mixing, choices: Choices, seed: int) -> dict[str, torch.Tensor]:
        """Returns the scores of all operations of the supernet as it was before any search, (edges, ops), float64.

        Args:
            score: The score.
            alphas: The raw mixing weights of each cell type, (edges, ops).
            choices: The operations that are open.
            seed: Seeds the pictures, where the score needs some, and whatever is random in the network.
        """
        batch = None
        if score.batch_size is not None:
            data = cast("Any", self.trainer).datamodule
            drawn = data.selection_batches(augmented=False, seed=seed, limit=1, batch_size=score.batch_size).batch(0)
            prepared = data.on_after_batch_transfer(drawn, 0)
            batch = (prepared.images, prepared.labels)
        with undisturbed(self._device):
            return score(self._initial, alphas, choices, batch, derived_seed(seed, _MEASURE))

    @functools.cached_property
    def _initial(self) -> Supernet:
        return self.module.initial_supernet(cast("Any", self.trainer).datamodule.num_classes)

    def on_first(self, compute: Callable[[], Any]) -> Any:
        """Returns on all devices what the first one computes while the others wait, such as a time."""
        return on_first(self.trainer, compute)

    def log(self, name: str, value: float) -> None:
        """Writes a number into the metrics of this epoch."""
        self.module.log(name, value, on_step=False, on_epoch=True, rank_zero_only=True)

    def _batches(self, evaluation: Evaluation) -> EvaluationBatches:
        found: EvaluationBatches = cast("Any", self.trainer).datamodule.selection_batches(
            augmented=evaluation.augmented,
            seed=evaluation.seed,
            limit=evaluation.batches,
            batch_size=evaluation.batch_size,
        )
        return found

    @property
    def _device(self) -> torch.device:
        return self.trainer.strategy.root_device

    def _kept(
        self, variants: Sequence[Variant], evaluation: Evaluation, race: Race | None, total: int
    ) -> tuple[str, dict[str, Any] | None]:
        """The name under which a measurement is kept, and what an interrupted run has kept of it."""
        open_ops = [(v.label, v.choices.open, [w.tolist() for w in v.mixing.values()]) for v in variants]
        key, entry = "", None
        if self.trainer.is_global_zero and self.scores.path is not None:
            key = digest(self.module.supernet, open_ops, evaluation, race, total)
            entry = self.scores.get(key)
        return key, self.trainer.strategy.broadcast(entry)

    def _keep(self, key: str, evaluation: Evaluation, entry: dict[str, Any]) -> None:
        """Keeps the state of a measurement, with the running statistics where they follow it."""
        if self.scores.path is None:
            return

        def keep() -> None:
            followed = self.module.supernet.named_buffers() if evaluation.statistics == "batch_update" else ()
            buffers = {name: buffer.cpu().clone() for name, buffer in followed}
            self.scores.keep(key, {**entry, "table": entry["table"].cpu(), "buffers": buffers})

        by_first_device(self.trainer, keep)

    def _restore(self, buffers: dict[str, torch.Tensor]) -> None:
        for name, kept in buffers.items():
            self.module.supernet.get_buffer(name).copy_(kept)

    def _values(self, variants: Sequence[Variant], batches: EvaluationBatches, b: int, seed: int) -> torch.Tensor:
        """Returns what `_CRITERIA` names of every picture of a batch, (criteria, variants, pictures)."""
        batch = self.trainer.strategy.batch_to_device(batches.batch(b))
        torch.manual_seed(derived_seed(seed, _MEASURE, b))
        logits = torch.stack(self.module.supernet.forward_each(batch.images, [(v.mixing, v.choices) for v in variants]))
        labels = batch.labels.expand(len(variants), -1)
        predicted = F.log_softmax(logits.double(), dim=2)
        losses = F.nll_loss(predicted.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
        divergences = (predicted[0].exp() * (predicted[0] - predicted)).sum(dim=2)
        return torch.stack([losses, (logits.argmax(dim=2) == labels).double(), divergences])

    def _of_all_devices(self, table: torch.Tensor) -> torch.Tensor:
        """Fills in what other devices have measured; every place has been filled by one, and is 0 on the others."""
        summed: torch.Tensor = self.trainer.strategy.reduce(table.clone(), reduce_op="sum")
        return summed

    @contextlib.contextmanager
    def _ready(self, statistics: str) -> Iterator[None]:
        """Prepares the supernet: in full precision, since rounding to 8 or 11 bits can turn a decision."""
        context = self.trainer.precision_plugin.forward_context()
        with _statistics(self.module.supernet, statistics), context, torch.autocast(self._device.type, enabled=False):
            yield

    def _bar(self, batches: EvaluationBatches, variants: Sequence[Variant], done: int) -> Any:
        """Shows a bar where the trainer shows one."""
        bar: Any = self.trainer.progress_bar_callback
        shown = bar is not None and bar.is_enabled and self.trainer.is_global_zero
        names = ", ".join(v.label.partition(" without ")[2] for v in variants if " without " in v.label)
        what = variants[-1].label.partition(" without ")[0]
        return tqdm(
            total=len(batches),
            initial=done,
            desc=f"{self.title}: {what}" + (f" without {names}" if names else ""),
            disable=not shown,
            leave=False,
            dynamic_ncols=True,
            file=sys.stdout,
        )


@contextlib.contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Puts torch's random numbers back to where they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


@contextlib.contextmanager
def _statistics(supernet: nn.Module, mode: str) -> Iterator[None]:
    """Puts the batch normalisations into a mode of evaluation, and everything back afterwards."""
    was_training = supernet.training
    _train(supernet, mode != "running")
    kept = [] if mode == "batch_update" else [(buffer, buffer.clone()) for buffer in supernet.buffers()]
    try:
        yield
    finally:
        _train(supernet, was_training)
        for buffer, value in kept:
            buffer.copy_(value)


def _train(network: nn.Module, mode: bool) -> None:
    if network.training != mode:  # there are thousands of modules to tell, for each measurement
        network.train(mode)
