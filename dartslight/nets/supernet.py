"""The supernet: every architecture of a search space in one network with shared operation weights.

It holds operation weights only. How much each operation counts comes in with the call: ``supernet(images, mixing)``.
Masking, perturbing, freezing, sampling and deciding are all just another ``mixing``.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dartslight.errors import InputError
from dartslight.nets.cell import NO_DROP, CellNetwork, Columns, Drop, EdgeTerm, Weights
from dartslight.nets.network import Network, RunCell, State
from dartslight.nets.operations import Source
from dartslight.nets.weighted_sum import keeping_all, repeated
from dartslight.spaces import Block, Choices, SearchSpace

Mixing = Mapping[str, Tensor]
"""The mixing weights of each cell type: (edges, ops), or (batch, edges, ops) for weights of each picture's own.

Where edges carry more than operations (`Supernet.terms`), the weights of that follow those of the operations.
"""


class Supernet(Network):
    """All candidate operations of a search space, mixed as the caller says.

    Batch normalisations inside the cells have no scale and shift, as in the papers' searches.

    Args:
        space: The search space.
        num_cells: Number of searched cells; for NAS-Bench-201 in all three stages together.
        init_channels: Channels of the first cell's operations.
        num_classes: Number of classes.
        track_statistics: Whether batch normalisations keep running statistics and use them in evaluation; without them
            evaluation uses the statistics of each batch.
        checkpoint_cells: Whether a training step keeps only what goes in and out of each cell and computes the cell
            again for its derivative: the same numbers with less memory and more time.
        partial_channels: The operations of an edge see one in so many channels, the others pass by them and all are
            shuffled (PC-DARTS, https://arxiv.org/abs/1907.05737); 1 for all channels.
        terms: What every edge carries beside its operations, and the bypass if there is one.
        normalise_pools: Whether a batch normalisation stands behind each pooling of the DARTS network; DrNAS has none.
    """

    def __init__(
        self,
        space: SearchSpace,
        num_cells: int,
        init_channels: int,
        num_classes: int,
        track_statistics: bool = True,
        checkpoint_cells: bool = False,
        partial_channels: int = 1,
        terms: Sequence[EdgeTerm] = (),
        normalise_pools: bool = True,
    ) -> None:
        super().__init__(
            space.macro,
            {cell.name: cell for cell in space.cells},
            num_cells,
            init_channels,
            num_classes,
            affine=False,
            normalise_pools=normalise_pools and space.macro == "darts",
            track=track_statistics,
            partial_channels=partial_channels,
            terms=terms,
        )
        missing = {cell.name for cell in space.cells} - {block.cell for block in self.layout}
        if missing:
            raise InputError(
                f"A supernet of {num_cells} cells in the space {space.name!r} has no {' and no '.join(missing)} cell; "
                "give it at least 3 cells."
            )
        self.space = space
        self._init_channels = init_channels
        self.checkpoint_cells = checkpoint_cells
        self._compiled: Callable[[Tensor, Mixing], Tensor] | None = None

    def capture(self, mode: str) -> None:
        """Lets torch's compiler turn the whole network into one graph, which serves all masks and decisions.

        What is open then comes in as numbers: an operation that is not has the weight 0, and is computed.

        Args:
            mode: A mode of `torch.compile`, such as ``reduce-overhead``, which replays CUDA graphs.
        """

        def whole(images: Tensor, mixing: Mixing) -> Tensor:
            run: RunCell = lambda block, cell, inputs: cell(  # noqa: E731
                inputs, spread(mixing[block.cell or ""], self._init_channels * block.width)
            )
            states = self.advance(self.start(images), range(len(self.blocks)), run)
            return self.classify(states[1])

        self._compiled = torch.compile(whole, mode=mode, dynamic=False)

    def forward(self, images: Tensor, mixing: Mixing, choices: Choices | None = None, drop: Drop = NO_DROP) -> Tensor:
        """Returns the logits, (batch, classes).

        Args:
            images: (batch, 3, height, width).
            mixing: The mixing weights.
            choices: The operations that are still open; others are not computed, whatever their weight. None for all.
            drop: What is left out at random in training.
        """
        (logits,) = self.forward_each(images, [(mixing, choices)], drop)
        return logits

    def forward_each(
        self, images: Tensor, variants: Sequence[tuple[Mixing, Choices | None]], drop: Drop = NO_DROP
    ) -> list[Tensor]:
        """Returns the logits of several mixings of the same images.

        Variants with one and the same mixing, as an object, share what does not differ between their choices:
        everything in front of the first cell that differs, and in that cell the operations that read common nodes.

        Args:
            images: (batch, 3, height, width).
            variants: Pairs of mixing weights and open operations as in `forward`.
            drop: What is left out at random in training; not with several variants.
        """
        if self._compiled is not None:
            return [self._compiled(images, self._masked(mixing, choices)) for mixing, choices in variants]
        start = self.start(images)
        logits: dict[int, Tensor] = {}
        for mixing in {id(mixing): mixing for mixing, _ in variants}.values():
            places = [i for i, (own, _) in enumerate(variants) if own is mixing]
            logits.update(zip(places, self._mixed(start, mixing, [variants[i][1] for i in places], drop), strict=True))
        return [logits[i] for i in range(len(variants))]

    @functools.cached_property
    def weights(self) -> tuple[nn.Parameter, ...]:
        """All operation weights; listed once, since asking thousands of modules in every step takes time."""
        return tuple(self.parameters())

    @contextlib.contextmanager
    def constant(self) -> Iterator[None]:
        """While this lasts, forward and backward passes take the operation weights as constants.

        A derivative by the mixing weights alone then costs no derivative by an operation weight.
        """
        weights = [w for w in self.weights if w.requires_grad]
        for w in weights:
            w.requires_grad_(False)
        try:
            yield
        finally:
            for w in weights:
                w.requires_grad_(True)

    @contextlib.contextmanager
    def plain(self) -> Iterator[None]:
        """While this lasts nothing is compiled or computed again, so that passes can be differentiated twice."""
        compiled, checkpoints = self._compiled, self.checkpoint_cells
        self._compiled, self.checkpoint_cells = None, False
        try:
            yield
        finally:
            self._compiled, self.checkpoint_cells = compiled, checkpoints

    def _masked(self, mixing: Mixing, choices: Choices | None) -> Mixing:
        """Returns mixing weights that are 0 where nothing is open."""
        if choices is None:
            return mixing
        masked = {}
        for cell, weights in mixing.items():
            ops = weights.shape[-1] - len(self.terms)
            is_open = open_mask(choices, cell, ops, weights.device)
            kept = is_open.any(dim=-1, keepdim=True).expand(-1, len(self.terms))
            masked[cell] = weights * torch.cat([is_open, kept], dim=-1)
        return masked

    def _mixed(self, start: State, mixing: Mixing, choices: Sequence[Choices | None], drop: Drop) -> Iterator[Tensor]:
        """Yields the logits of one mixing for each set of choices."""
        weights: dict[tuple[str, int], Weights] = {}

        def weights_at(block: Block) -> Weights:
            key = (block.cell or "", block.width)
            if key not in weights:
                weights[key] = spread(mixing[key[0]], self._init_channels * block.width)
            return weights[key]

        def columns_at(block: Block, own: Choices | None) -> Columns | None:
            return None if own is None else own.of(block.cell or "")

        def runner(own: Choices | None) -> RunCell:
            run = _run_again if self.checkpoint_cells and torch.is_grad_enabled() else CellNetwork.__call__
            return lambda block, cell, inputs: run(cell, inputs, weights_at(block), columns_at(block, own), drop)

        differing = [
            i for i, block in enumerate(self.layout) if block.cell and len({columns_at(block, c) for c in choices}) > 1
        ]
        first, last = min(differing, default=len(self.blocks)), len(self.blocks)
        common = self.advance(start, range(first), runner(choices[0]))
        if first == last:
            logits = self.classify(common[1])
            yield from (logits for _ in choices)
            return
        block, cell = self.layout[first], cast("CellNetwork", self.blocks[first])
        columns = [columns_at(block, own) or [range(len(e.ops)) for e in cell.cell.edges] for own in choices]
        for own, out in zip(choices, cell.forward_each(cell.inputs(common), weights_at(block), columns), strict=True):
            states = self.advance((common[1], out), range(first + 1, last), runner(own))
            yield self.classify(states[1])


def _run_again(
    cell: CellNetwork, inputs: Sequence[Source], weights: Weights, columns: Columns | None, drop: Drop
) -> Source:
    """Runs a cell, and runs it again when its derivative is wanted."""

    def run(*states: Tensor) -> Tensor:
        with keeping_all():
            out: Source = cell([Source(x) for x in states], weights, columns, drop)
        return out.x

    states = (source.x for source in inputs)
    return Source(
        checkpoint(run, *states, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), repeated()))
    )


@functools.lru_cache(maxsize=256)  # a transfer to a GPU in every step would make the processor wait for it
def open_mask(choices: Choices, cell: str, num_ops: int, device: torch.device) -> Tensor:
    """Returns whether each operation of a cell type is open, (edges, ops).

    Args:
        choices: What is open.
        cell: The cell type.
        num_ops: The number of operations of its edges.
        device: Where the mask will be.
    """
    edges = choices.of(cell)
    with torch.inference_mode(False):
        mask = torch.zeros(len(edges), num_ops, dtype=torch.bool)
        for e, columns in enumerate(edges):
            mask[e, list(columns)] = True
        return mask.to(device)


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
