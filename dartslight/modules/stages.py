"""The stages of a search: its supernet may grow on the way."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dartslight.errors import InputError

_DROPOUT_DECAY = 0.2  # P-DARTS: how fast the dropout falls in each epoch once the architecture learns


@dataclass(frozen=True)
class Stage:
    """One stage of a search; all stages of a search are equally long.

    Args:
        num_cells: Number of searched cells in its supernet.
        partial_channels: The operations of an edge see one in so many channels; 1 for all.
        skip_dropout: Probability, in its first epoch, with which numbers of a skip connection are set to 0 (P-DARTS);
            it falls to 0.
        start: Weights and architecture parameters begin ``anew`` (P-DARTS), or the weights are those of the stage
            before, ``widened`` to more channels, and the parameters go on (DrNAS).
    """

    num_cells: int
    partial_channels: int = 1
    skip_dropout: float = 0.0
    start: Literal["anew", "widened"] = "anew"


@dataclass(frozen=True)
class Stages:
    """The stages of a search of some epochs; the fine-tuning after it belongs to the last one.

    Args:
        stages: The stages in turn.
        epochs: Number of epochs of the whole search.

    Raises:
        InputError: If the epochs cannot be shared equally.
    """

    stages: Sequence[Stage]
    epochs: int

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

    def index(self, epoch: int) -> int:
        """Returns the number of the stage that an epoch belongs to, both from 0."""
        return min(epoch // self.length, len(self.stages) - 1)

    def place(self, epoch: int) -> int:
        """Returns the number of epochs since the start of an epoch's stage."""
        return epoch - self.length * self.index(epoch)

    def skip_dropout(self, epoch: int, warmup: int) -> float:
        """Returns the dropout of skip connections in an epoch: linear in the warm-up, then exponential.

        Args:
            epoch: The epoch; there is no dropout after the search.
            warmup: Epochs at the start of a stage in which the architecture parameters stay as they are.
        """
        start, place = self.stages[self.index(epoch)].skip_dropout, self.place(epoch)
        if epoch >= self.epochs:
            return 0.0
        if place < warmup:
            return start * (self.length - place - 1) / self.length
        return start * math.exp(-_DROPOUT_DECAY * (place - warmup))


def check_stages(stages: Sequence[Stage]) -> None:
    """Checks that stages can follow each other.

    Args:
        stages: The stages in turn.

    Raises:
        InputError: If they cannot.
    """
    if not stages:
        raise InputError("stages is an empty list, but a search has at least one; give a stage, or leave stages out.")
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
