"""The passes of one search step: what the supernet runs with, and the two-level problem that a strategy solves."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from torch.optim import Optimizer

from dartslight.criteria import CrossEntropies, Part
from dartslight.data import Batch
from dartslight.nets import NO_DROP, Drop, Mixing, Supernet, open_mask, repeated
from dartslight.spaces import Choices
from dartslight.strategies import (
    Architecture,
    ArchitectureGradient,
    Bilevel,
    Draw,
    Expectation,
    Loss,
    Rows,
    Sample,
    Smoothing,
    drawn_choices,
    genotypes,
)


@dataclass(frozen=True)
class Passes:
    """The training passes of one step.

    Args:
        supernet: The supernet.
        architecture: Its architecture parameters.
        choices: The operations that are open.
        progress: The share of the search that was over when this epoch began, from 0 to 1.
        position: Where this epoch stands in the search, from 0 for the first to 1 for the last one.
        drop: What a weight step leaves out at random.
        loss_scale: What losses are multiplied by while they are differentiated.
        watch: Sees the mixing weights of each validation loss before it is differentiated, or None.
    """

    supernet: Supernet
    architecture: Architecture
    choices: Choices
    progress: float
    position: float
    drop: Drop
    loss_scale: Tensor | float = 1.0
    watch: Callable[[Mapping[str, Tensor]], None] | None = None
    _draws: dict[int, dict[str, Draw]] = field(default_factory=dict, init=False)

    def problem(
        self,
        batch: Mapping[str, Batch],
        gradient: ArchitectureGradient,
        weight_optimizer: Optimizer,
        average: Callable[[Sequence[Tensor]], Sequence[Tensor]],
    ) -> Bilevel:
        """States the two-level problem of this step.

        Args:
            batch: The batches ``train`` and ``val``.
            gradient: What will solve it.
            weight_optimizer: The optimizer of the operation weights.
            average: Returns the means of tensors over all devices.
        """
        # Passes that are compared leave nothing out, since each would leave out something else.
        drop = NO_DROP if gradient.moves_weights or self.drop is NO_DROP else replace(self.drop, edge=0.0)
        names, weights = zip(*self.supernet.named_parameters(), strict=True)
        states = weight_optimizer.state
        (group,) = weight_optimizer.param_groups
        return Bilevel(
            train_loss=self._loss(batch["train"], names, drop, is_val=False),
            val_loss=self._loss(batch["val"], names, drop, is_val=True),
            weights=weights,
            alphas=tuple(self.architecture.parameters()),
            learning_rate=group["lr"],
            momentum=group.get("momentum", 0.0),  # a virtual step needs SGD
            weight_decay=group["weight_decay"],
            momentum_buffers=[states[w].get("momentum_buffer") if w in states else None for w in weights],
            average=average,
            loss_scale=self.loss_scale,
        )

    def expectation(
        self,
        batch: Mapping[str, Batch],
        seed: int,
        step: int,
        average: Callable[[Sequence[Tensor]], Sequence[Tensor]],
        on_first: Callable[[Callable[[], Any]], Any],
    ) -> Expectation:
        """States the problem of drawn architectures of this step; nothing is left out at random in its passes.

        Args:
            batch: The batches ``train`` and ``val``; where one is smaller, the other's last pictures have no partner.
            seed: Seed of what is drawn to be measured, the same on all devices.
            step: Number of architecture steps before this one.
            average: Returns the means of tensors over all devices.
            on_first: Returns what a function returns on the first device.
        """
        train, val = batch["train"], batch["val"]
        pairs = min(len(train.labels), len(val.labels))
        parts: dict[Part, Batch] = {
            "train": train._replace(images=train.images[:pairs], labels=train.labels[:pairs]),
            "val": val._replace(images=val.images[:pairs], labels=val.labels[:pairs]),
        }
        draws = {cell: Draw(*(x[:pairs] for x in own)) for cell, own in self._drawn(len(train.labels)).items()}
        generator = torch.Generator(train.images.device).manual_seed(seed)

        def discrete(rows: Rows) -> CrossEntropies:
            at_rows = self._cross_entropies(parts, rows, is_hard=True)

            def cross_entropy(part: Part) -> Tensor:
                with repeated():  # the running statistics follow the relaxed samples, which are trained
                    return at_rows(part)

            return cross_entropy

        return Expectation(
            draws=draws,
            discrete=discrete,
            relaxed=lambda rows: self._cross_entropies(parts, rows, is_hard=False),
            alphas=tuple(self.architecture.parameters()),
            penalty=self.architecture.penalty(self.choices),
            draw=lambda count: self.architecture.draw(self.choices, count, generator),
            genotypes=lambda rows: genotypes(self.supernet.space, rows),
            step=step,
            on_first=on_first,
            average=average,
            loss_scale=self.loss_scale,
        )

    def _drawn(self, pictures: int) -> dict[str, Draw]:
        """Returns the architectures of a batch's pictures, or the one of all; all passes of a step have the same."""
        count = 1 if self.architecture.shares_draw else pictures
        if count not in self._draws:
            self._draws[count] = self.architecture.draw(self.choices, count)
        return self._draws[count]

    def _mixed(self, rows: Rows, is_hard: bool) -> tuple[Mixing, Choices]:
        """Returns the mixing weights of some samples, and which operations are computed.

        Args:
            rows: A sample for each picture, or one for all, (samples, edges, ops) for each cell type.
            is_hard: Whether what was not drawn has the weight 0.
        """
        choices = self.choices
        if self.architecture.shares_draw:
            (choices,) = drawn_choices(self.supernet.space, rows) if is_hard else (choices,)
            rows = {cell: row[0] for cell, row in rows.items()}
        return self.architecture.compose(rows, self.choices, self.progress), choices

    def _cross_entropies(self, parts: Mapping[Part, Batch], rows: Rows, is_hard: bool) -> CrossEntropies:
        """Returns a function that computes the cross-entropies of a part once, however often it is asked."""
        mixing, choices = self._mixed(rows, is_hard)
        known: dict[Part, Tensor] = {}

        def cross_entropy(part: Part) -> Tensor:
            if part not in known:
                logits = self.supernet(parts[part].images, mixing, choices)
                known[part] = F.cross_entropy(logits, parts[part].labels, reduction="none")
            return known[part]

        return cross_entropy

    def _loss(self, batch: Batch, names: Sequence[str], drop: Drop, is_val: bool) -> Loss:
        """Returns the loss on a batch as a function of the operation weights of these names."""

        def loss(weights: Sequence[Tensor] | None) -> Tensor:
            """Returns the loss at these weights; None for the supernet's own."""
            sample = self.architecture.sample(self.choices, self.progress, self.position)
            penalty = self.architecture.penalty(self.choices) if is_val else None
            if is_val and self.watch is not None:
                self.watch(sample.mixing)
            inputs = (batch.images, *sample, drop)
            if weights is None:
                logits = self.supernet(*inputs)
            else:
                # Copies of the buffers, so that a virtual step leaves the running statistics alone.
                state = {name: buffer.clone() for name, buffer in self.supernet.named_buffers()}
                state.update(zip(names, weights, strict=True))
                logits = functional_call(self.supernet, state, inputs)
            value = F.cross_entropy(cast("Tensor", logits), batch.labels)
            return value if penalty is None else value + penalty

        return loss

    @contextmanager
    def prepared(self, gradient: ArchitectureGradient) -> Iterator[None]:
        """Prepares the supernet for the passes of an architecture gradient."""
        weights = nullcontext() if gradient.moves_weights else self.supernet.constant()
        device = next(self.supernet.parameters()).device.type
        full = torch.autocast(device, enabled=False) if gradient.full_precision else nullcontext()
        with weights, full:
            yield

    @torch.no_grad()
    def weight_sample(self, batch: Batch, smoothing: Smoothing | None) -> Sample:
        """Returns what the weight step runs with; the architecture parameters are out of its reach.

        Args:
            batch: Training pictures.
            smoothing: How the mixing weights are disturbed, or None.
        """
        if self.architecture.draws:
            relaxed = {cell: own.relaxed.detach() for cell, own in self._drawn(len(batch.labels)).items()}
            return Sample(*self._mixed(relaxed, is_hard=False))

        def loss(rows: Rows) -> Tensor:
            mixing = self.architecture.compose(rows, self.choices, self.progress)
            return self.loss_scale * F.cross_entropy(self.supernet(batch.images, mixing, self.choices), batch.labels)

        def disturbed(rows: Rows) -> Rows:
            assert smoothing is not None
            is_open = {cell: open_mask(self.choices, cell, row.shape[-1], row.device) for cell, row in rows.items()}
            self.supernet.eval()
            with self.supernet.constant():
                moved = smoothing(rows, is_open, loss, self.progress)
            self.supernet.train()
            return moved

        disturb = disturbed if smoothing else None
        return self.architecture.sample(self.choices, self.progress, self.position, disturb)
