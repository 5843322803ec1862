"""The timetable of a search: its stages, in which its supernet may grow, and what depends on the epoch."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dartslight.errors import InputError, check_least

_DROPOUT_DECAY = 0.2  # P-DARTS: how fast the dropout falls in each epoch once the architecture learns


@dataclass(frozen=True)
class Stage:
    """One stage of a search; all stages of a search are equally long.

    Args:
        num_cells: Number of searched cells in its supernet.
        partial_channels: The operations of an edge see one in so many channels; 1 for all.
        skip_dropout: Probability, in its first epoch, with which numbers of a skip connection are set to 0 (P-DARTS);
            it falls to 0.
        start: Weights, architecture parameters and learning rate begin ``anew`` (P-DARTS), or the weights and their
            momentum are those of the stage before, ``widened`` to more channels, and all goes on (DrNAS).
    """

    num_cells: int
    partial_channels: int = 1
    skip_dropout: float = 0.0
    start: Literal["anew", "widened"] = "anew"


@dataclass(frozen=True)
class Timetable:
    """What is when in a search of some epochs; all of it follows from the number of the epoch.

    Args:
        stages: The stages in turn; the fine-tuning after the search belongs to the last one.
        epochs: Number of epochs of the whole search.
        alpha_warmup_epochs: Epochs at the start of each stage in which the architecture parameters stay as they are.

    Raises:
        InputError: If the epochs cannot be shared equally.
    """

    stages: Sequence[Stage]
    epochs: int
    alpha_warmup_epochs: int = 0

    def __post_init__(self) -> None:
        if self.epochs % len(self.stages):
            raise InputError(
                f"A search of {self.epochs} epochs cannot be divided into {len(self.stages)} stages of equal length; "
                f"give a --trainer.max_epochs that is a multiple of {len(self.stages)}."
            )

    @property
    def length(self) -> int:
        """The number of epochs of each stage."""
        return self.epochs // len(self.stages)

    @property
    def ends(self) -> tuple[int, ...]:
        """The number of epochs of the search at the end of each stage."""
        return tuple(self.length * (i + 1) for i in range(len(self.stages)))

    def stage(self, epoch: int) -> int:
        """Returns the number of the stage that an epoch belongs to, both from 0."""
        return min(epoch // self.length, len(self.stages) - 1)

    def place(self, epoch: int) -> int:
        """Returns the number of epochs since the start of an epoch's stage."""
        return epoch - self.length * self.stage(epoch)

    def begins_stage(self, epoch: int) -> bool:
        """Returns whether a stage but the first begins with an epoch."""
        return 0 < epoch < self.epochs and self.place(epoch) == 0

    def progress(self, epochs: int) -> float:
        """Returns the share of the search that is over after so many epochs, from 0 to 1."""
        return min(1.0, epochs / self.epochs)

    def position(self, epoch: int) -> float:
        """Returns where an epoch stands in the search, from 0 for the first to 1 for the last one and after it."""
        return min(1.0, epoch / max(1, self.epochs - 1))

    def training_progress(self, epoch: int) -> float:
        """Returns the share of the learning rate's schedule that is over when an epoch begins, from 0 to below 1.

        Weights that are widened go on in one schedule with those they come from.

        Args:
            epoch: An epoch of the search.
        """
        anew = [i for i, stage in enumerate(self.stages) if i == 0 or stage.start == "anew"]
        first = max(i for i in anew if i <= self.stage(epoch))
        end = min((i for i in anew if i > first), default=len(self.stages))
        return (epoch - first * self.length) / ((end - first) * self.length)

    def teaches(self, epoch: int) -> bool:
        """Returns whether architecture parameters that learn at all do so in an epoch of the search."""
        return self.place(epoch) >= self.alpha_warmup_epochs

    def is_among_last(self, epoch: int, count: int | None) -> bool:
        """Returns whether an epoch is one of the last ones of the last stage, of which None means all."""
        count = self.length if count is None else min(count, self.length)
        return self.epochs - count <= epoch < self.epochs

    @property
    def untaught(self) -> frozenset[int]:
        """The numbers of epochs after which the architecture parameters are as they were drawn."""
        warm = min(self.alpha_warmup_epochs, self.length)
        return frozenset(
            i * self.length + n
            for i, stage in enumerate(self.stages)
            if stage.start == "anew"
            for n in range(1, warm + 1)
        )

    def skip_dropout(self, epoch: int) -> float:
        """Returns the dropout of skip connections in an epoch: linear in the warm-up, then exponential (P-DARTS).

        Args:
            epoch: The epoch; there is no dropout after the search.
        """
        start, place = self.stages[self.stage(epoch)].skip_dropout, self.place(epoch)
        if epoch >= self.epochs:
            return 0.0
        if not self.teaches(epoch):
            return start * (self.length - place - 1) / self.length
        return start * math.exp(-_DROPOUT_DECAY * (place - self.alpha_warmup_epochs))


def check_stages(stages: Sequence[Stage]) -> None:
    """Checks that stages can follow each other.

    Args:
        stages: The stages in turn.

    Raises:
        InputError: If they cannot.
    """
    if not stages:
        raise InputError("stages is an empty list, but a search has at least one; give a stage, or leave stages out.")
    for stage in stages:
        check_least(1, num_cells=stage.num_cells, partial_channels=stage.partial_channels)
    if any(not 0 <= stage.skip_dropout < 1 for stage in stages):
        raise InputError("The skip_dropout of a stage must be from 0 to below 1; give such a number.")
    if len({stage.partial_channels > 1 for stage in stages}) > 1:
        raise InputError(
            "Some stages have partial channels and others have not, but their edges must be of one kind; give all of "
            "them a partial_channels above 1, or none."
        )
    for before, stage in itertools.pairwise(stages):
        fits = before.num_cells == stage.num_cells and before.partial_channels >= stage.partial_channels
        if stage.start == "widened" and not fits:
            raise InputError(
                "A stage that starts widened needs the cells of the one before and at least its channels; give equal "
                "num_cells and no larger partial_channels, or start it anew."
            )
    if stages[0].start == "widened":
        raise InputError("The first stage cannot start widened, since there is none before it; start it anew.")
