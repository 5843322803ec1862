"""The supernet: every architecture of a search space in one network with shared operation weights.

It holds operation weights only. How much each operation counts comes in with the call: ``supernet(images, mixing)``.
Masking, perturbing, freezing, sampling and deciding are all just another ``mixing``.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dartslight.errors import InputError
from dartslight.nets.cell import CellNetwork, Weights
from dartslight.nets.network import Network
from dartslight.nets.operations import Source
from dartslight.spaces import Block, Choices, SearchSpace

Mixing = Mapping[str, Tensor]
"""The mixing weights of each cell type: (edges, ops), or (batch, edges, ops) for weights of each picture's own."""


class Supernet(Network):
    """All candidate operations of a search space, mixed as the caller says.

    Batch normalisations inside the cells have no scale and shift, and the DARTS network has one behind each pooling, as
    in the papers' searches.

    Args:
        space: The search space.
        num_cells: Number of searched cells; for NAS-Bench-201 in all three stages together.
        init_channels: Channels of the first cell's operations.
        num_classes: Number of classes.
        track_statistics: Whether batch normalisations keep running statistics and use them in evaluation; without them
            evaluation uses the statistics of each batch.
    """

    def __init__(
        self, space: SearchSpace, num_cells: int, init_channels: int, num_classes: int, track_statistics: bool = True
    ) -> None:
        super().__init__(
            space.macro,
            {cell.name: cell for cell in space.cells},
            num_cells,
            init_channels,
            num_classes,
            affine=False,
            normalise_pools=space.macro == "darts",
            track=track_statistics,
        )
        missing = {cell.name for cell in space.cells} - {block.cell for block in self.layout}
        if missing:
            raise InputError(
                f"A supernet of {num_cells} cells in the space {space.name!r} has no {' and no '.join(missing)} cell; "
                "give it at least 3 cells."
            )
        self.space = space
        self._init_channels = init_channels

    def forward(self, images: Tensor, mixing: Mixing, choices: Choices | None = None) -> Tensor:
        """Returns the logits, (batch, classes).

        Args:
            images: (batch, 3, height, width).
            mixing: The mixing weights.
            choices: The operations that are still open; others are not computed, whatever their weight. None for all.
        """
        (logits,) = self.forward_each(images, [(mixing, choices)])
        return logits

    def forward_each(self, images: Tensor, variants: Sequence[tuple[Mixing, Choices | None]]) -> list[Tensor]:
        """Returns the logits of several mixings of the same images.

        What is in front of the first cell in which the variants differ is computed once.

        Args:
            images: (batch, 3, height, width).
            variants: Pairs of mixing weights and open operations as in `forward`.
        """
        common = self._common_blocks(variants)
        last = len(self.blocks)
        runs = [_Run(self, mixing, choices) for mixing, choices in variants]
        states = self.advance(self.start(images), range(common), runs[0])
        return [self.classify(self.advance(states, range(common, last), run)[1]) for run in runs]

    def _common_blocks(self, variants: Sequence[tuple[Mixing, Choices | None]]) -> int:
        """The number of blocks at the front whose cells have the same mixing and open operations in every variant."""
        mixing, choices = variants[0]
        same = {None} | {
            cell.name
            for cell in self.space.cells
            if all(
                (m is mixing or m[cell.name] is mixing[cell.name])
                and (
                    c is choices or (c is not None and choices is not None and c.of(cell.name) == choices.of(cell.name))
                )
                for m, c in variants
            )
        }
        for index, block in enumerate(self.layout):
            if block.cell not in same:
                return index
        return len(self.layout)


class _Run:
    """One mixing ready for use in the cells: its weights are spread over the channels once for all cells alike."""

    def __init__(self, supernet: Supernet, mixing: Mixing, choices: Choices | None) -> None:
        self._init_channels = supernet._init_channels
        self._mixing = mixing
        self._columns = {} if choices is None else dict(choices.open)
        self._weights: dict[tuple[str, int], Weights] = {}

    def __call__(self, block: Block, network: CellNetwork, inputs: list[Source]) -> Source:
        assert block.cell is not None
        key = (block.cell, block.width)
        if key not in self._weights:
            self._weights[key] = spread(self._mixing[block.cell], self._init_channels * block.width)
        out: Source = network(inputs, self._weights[key], self._columns.get(block.cell))
        return out


def spread(mixing: Tensor, channels: int) -> Weights:
    """Returns the mixing weights as vectors that a batch normalisation can take.

    Args:
        mixing: (edges, ops) or (batch, edges, ops).
        channels: Number of channels.

    Returns:
        For each edge and operation a contiguous tensor (channels,), or (batch, 1, 1, 1).
    """
    if mixing.dim() == 3:
        per_edge = mixing.permute(1, 2, 0).reshape(*mixing.shape[1:], -1, 1, 1, 1)
    else:
        # One multiplication gives contiguous rows; an expanded view as batch normalisation weight gave NaN.
        per_edge = mixing.unsqueeze(-1) * torch.ones(channels, dtype=mixing.dtype, device=mixing.device)
    return [edge.unbind(0) for edge in per_edge.unbind(0)]
