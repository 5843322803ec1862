"""The architecture parameters, in a small module of their own, apart from all operation weights."""

import math
from collections.abc import Callable, Collection, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dartslight.errors import InputError
from dartslight.genotype import Genotype
from dartslight.nets import EdgeTerm, Mixing, open_mask
from dartslight.spaces import Choices, SearchSpace
from dartslight.strategies.draws import Draw, Sampled
from dartslight.strategies.factorised import Factorised
from dartslight.strategies.relaxations import Relaxation
from dartslight.strategies.smoothing import Rows

AuxiliarySkip = Literal["linear", "cosine"]
"""How the weight of an auxiliary skip connection falls from 1 to 0 over the search."""


class Sample(NamedTuple):
    """What a training pass runs with: mixing weights, and the operations that it computes."""

    mixing: Mixing
    choices: Choices


class Architecture(nn.Module):
    """Architecture parameters and the relaxation that turns them into mixing weights.

    A decided edge gives its operation the weight 1, times the edge's own with edge normalisation, and an edge that is
    gone has none, so that the hidden parameters of its operations receive a gradient of exactly 0.

    Args:
        space: The search space.
        relaxation: How the parameters become weights.
        init_std: Standard deviation of the normal numbers that the parameters start from (published code: 1e-3).
        edge_normalisation: Whether the edges into a node share a weight of 1 by a softmax over parameters of their own
            (PC-DARTS, https://arxiv.org/abs/1907.05737).
        auxiliary_skip: How the weight of a skip connection on every edge, which is never chosen, falls from 1 to 0
            (DARTS-, https://arxiv.org/abs/2009.01027); None for no such skip connection.
        terms: What every edge of the supernet carries beside its operations (`Supernet.terms`).

    Raises:
        InputError: If there is no such way to fall.
    """

    def __init__(
        self,
        space: SearchSpace,
        relaxation: Relaxation,
        init_std: float = 1e-3,
        edge_normalisation: bool = False,
        auxiliary_skip: AuxiliarySkip | None = None,
        terms: Sequence[EdgeTerm] = (),
    ) -> None:
        super().__init__()
        if auxiliary_skip not in (None, "linear", "cosine"):
            raise InputError(
                f"auxiliary_skip is {auxiliary_skip!r}, but it must be linear or cosine; give one of them, or null."
            )
        self.relaxation, self.auxiliary_skip, self.terms = relaxation, auxiliary_skip, tuple(terms)
        self._of = {cell.name: relaxation.of(cell) for cell in space.cells}
        self._num_ops = {cell.name: cell.num_ops for cell in space.cells}
        self.init_std = init_std
        self.alphas = nn.ParameterDict(
            {cell.name: init_std * torch.randn(relaxation.shape(cell)) for cell in space.cells}
        )
        self.betas = nn.ParameterDict()
        if edge_normalisation:
            self.betas.update({cell.name: init_std * torch.randn(len(cell.edges)) for cell in space.cells})
        for cell in space.cells:
            nodes = torch.tensor([edge.node for edge in cell.edges])
            self.register_buffer(f"_meet_{cell.name}", nodes == nodes.unsqueeze(1), persistent=False)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draws all parameters anew.

        Args:
            generator: Draws them, on the CPU.
        """
        for parameter in self.parameters():
            parameter.copy_(self.init_std * torch.randn(parameter.shape, generator=generator))

    def forward(self, choices: Choices, progress: float = 1.0) -> Mixing:
        """Returns the mixing weights that a supernet is measured and decided with.

        Args:
            choices: The operations that are still open.
            progress: Share of the search that is over, from 0 to 1.
        """
        return self.compose(self._rows(choices, None), choices, progress)

    def sample(
        self, choices: Choices, progress: float, position: float, disturb: Callable[[Rows], Rows] | None = None
    ) -> Sample:
        """Returns what one training pass runs with.

        Args:
            choices: The operations that are still open.
            progress: Share of the search that was over when its epoch began, from 0 to 1.
            position: Where its epoch stands in the search, from 0 for the first to 1 for the last one.
            disturb: Changes the weights of the operations before they become mixing weights.
        """
        rows: Rows = self._rows(choices, position)
        if disturb is not None:
            rows = disturb(rows)
        own = _drawn(rows, choices) if self.relaxation.samples_one else choices
        return Sample(self.compose(rows, choices, progress), own)

    @property
    def draws(self) -> bool:
        """Whether training passes run with samples of `draw`."""
        return isinstance(self.relaxation, Sampled)

    @property
    def shares_draw(self) -> bool:
        """Whether all pictures of a batch have one of these samples, and not one each."""
        return isinstance(self.relaxation, Sampled) and self.relaxation.per_batch

    def draw(self, choices: Choices, count: int, generator: torch.Generator | None = None) -> dict[str, Draw]:
        """Returns samples of the operations of each cell type; those of decided edges are what was decided.

        Args:
            choices: The operations that are still open.
            count: Number of samples.
            generator: Draws the noise, on the device of the parameters; None for torch's own.
        """
        draws = {}
        for cell, alpha in self.alphas.items():
            relax = self._of[cell]
            assert isinstance(relax, Sampled)
            draws[cell] = relax.draw(alpha, self._open(choices, cell), count, generator)
        return draws

    def slots(self, choices: Choices) -> dict[str, Tensor] | None:
        """Returns the probability of each operation in each slot of the nodes, (slots, edges, ops); None without slots.

        Args:
            choices: The operations that are still open.
        """
        found = {}
        for cell, alpha in self.alphas.items():
            relax = self._of[cell]
            if not isinstance(relax, Factorised):
                return None
            found[cell] = relax.slots(alpha, self._open(choices, cell))
        return found

    def compose(self, rows: Rows, choices: Choices, progress: float) -> Mixing:
        """Returns the mixing weights of the supernet for weights of the operations.

        Args:
            rows: The weights of the operations, (edges, ops) for each cell type, or (samples, edges, ops).
            choices: The operations that are still open.
            progress: Share of the search that is over, from 0 to 1.
        """
        return {cell: self._composed(cell, row, self._open(choices, cell), progress) for cell, row in rows.items()}

    def penalty(self, choices: Choices) -> Tensor | None:
        """Returns what the relaxation adds to the validation loss for the undecided edges of all cell types, or None.

        Args:
            choices: The operations that are still open.
        """
        if type(self.relaxation).penalty is Relaxation.penalty:  # which adds nothing
            return None
        # A relaxation that is the same for several cell types sees all of their edges at once.
        found = []
        for relax in dict.fromkeys(self._of.values()):
            cells = [cell for cell, own in self._of.items() if own is relax]
            masks = [self._open(choices, cell) for cell in cells]
            if not relax.draws_inputs:
                masks = [is_open & (is_open.sum(dim=-1, keepdim=True) > 1) for is_open in masks]
            found.append(relax.penalty(_below([self.alphas[cell] for cell in cells]), _below(masks)))
        penalties = [penalty for penalty in found if penalty is not None]
        return torch.stack(penalties).sum() if penalties else None

    def _open(self, choices: Choices, cell: str) -> Tensor:
        """Whether each operation of a cell type is open, (edges, ops)."""
        return open_mask(choices, cell, self._num_ops[cell], self.alphas[cell].device)

    def _rows(self, choices: Choices, position: float | None) -> dict[str, Tensor]:
        """The weights of the operations: drawn at a place in the search, or those to measure with."""
        rows = {}
        for cell, alpha in self.alphas.items():
            is_open, relax = self._open(choices, cell), self._of[cell]
            weights = relax(alpha, is_open) if position is None else relax.sample(alpha, is_open, position)
            if not relax.draws_inputs:
                undecided = is_open.sum(dim=-1, keepdim=True) > 1
                weights = torch.where(undecided, weights, is_open.to(alpha.dtype))
            rows[cell] = weights
        return rows

    def _composed(self, cell: str, row: Tensor, is_open: Tensor, progress: float) -> Tensor:
        present = is_open.any(dim=-1)
        edges = present.to(row.dtype)
        mixing = row
        if cell in self.betas:
            edges = _shares(self.betas[cell], self.get_buffer(f"_meet_{cell}"), present)
            mixing = row * edges.unsqueeze(-1)
        if not self.terms:
            return mixing
        weights = {"bypass": edges, "auxiliary_skip": edges * self._auxiliary(progress)}
        if "offset" in self.terms:
            # What was not drawn has the weight 0; the sum gives it the derivative of a number added to the node.
            weights["offset"] = torch.where(row == 0, mixing, 0.0).sum(dim=-1)
        columns = [weights[term].expand(row.shape[:-1]) for term in self.terms]
        return torch.cat([mixing, torch.stack(columns, dim=-1)], dim=-1)

    def _auxiliary(self, progress: float) -> float:
        """The weight of the auxiliary skip connection."""
        if self.auxiliary_skip == "linear":
            return 1 - progress
        return (1 + math.cos(math.pi * progress)) / 2


def genotypes(space: SearchSpace, rows: Rows) -> list[Genotype]:
    """Returns the architectures of hard samples; equal ones are one object.

    Args:
        space: The search space.
        rows: The samples, see `drawn_choices`.
    """
    found = drawn_choices(space, rows)
    known = {choices: Genotype.from_choices(space, choices) for choices in dict.fromkeys(found)}
    return [known[choices] for choices in found]


def drawn_choices(space: SearchSpace, rows: Rows) -> list[Choices]:
    """Returns for each hard sample choices in which only what was drawn is left; equal ones are one object.

    Args:
        space: The search space.
        rows: Weights above 0 for what was drawn or decided, 0 for the rest, (samples, edges, ops) for each cell type.
    """
    places = [(cell, e, o) for cell, row in rows.items() for e in range(row.shape[1]) for o in range(row.shape[2])]
    known: dict[tuple[bool, ...], Choices] = {}
    found = []
    # In one piece, because the processor must wait for a GPU here.
    for sample in torch.cat([row.flatten(1) > 0 for row in rows.values()], dim=1).tolist():
        key = tuple(sample)
        if key not in known:
            drawn = {place for place, is_drawn in zip(places, sample, strict=True) if is_drawn}
            known[key] = _of_places(space, drawn)
        found.append(known[key])
    return found


def _of_places(space: SearchSpace, places: Collection[tuple[str, int, int]]) -> Choices:
    """Returns choices in which some operations are left, each by its cell type, edge and column."""
    return Choices(
        tuple(
            (
                cell.name,
                tuple(
                    tuple(o for o in range(len(edge.ops)) if (cell.name, e, o) in places)
                    for e, edge in enumerate(cell.edges)
                ),
            )
            for cell in space.cells
        )
    )


def _below(tables: Sequence[Tensor]) -> Tensor:
    """Returns tables one below the other, as wide as the widest of them."""
    width = max(table.shape[1] for table in tables)
    return torch.cat([F.pad(table, (0, width - table.shape[1])) for table in tables])


def _drawn(rows: Rows, choices: Choices) -> Choices:
    """Returns choices in which of every undecided edge only the operation with the largest weight is left."""
    keys = [(cell, e) for cell, row in rows.items() for e in range(len(row))]
    # In one piece, because the processor must wait for a GPU here.
    largest = torch.cat([row.argmax(dim=-1) for row in rows.values()]).tolist()
    undecided = {(cell, e) for cell in rows for e in choices.undecided(cell)}
    for key, op in zip(keys, largest, strict=True):
        if key in undecided:
            choices = choices.decide(key, op)
    return choices


def _shares(betas: Tensor, meet: Tensor, present: Tensor) -> Tensor:
    """Returns the softmax of each edge's parameter among the edges into its node that are present, (edges,).

    Args:
        betas: The parameters, (edges,).
        meet: Which edges lead into one node, (edges, edges).
        present: Whether each edge is left, (edges,); others get 0.
    """
    # An edge that is gone stays in its own row, which would be empty without it.
    rivals = meet & (present | torch.eye(len(betas), dtype=torch.bool, device=betas.device))
    return torch.softmax(torch.where(rivals, betas, -torch.inf), dim=-1).diagonal() * present
