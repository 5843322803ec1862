"""Staged shrinking: every edge loses its weakest operations at the end of each stage of the search (P-DARTS).

Paper: Chen et al., "Progressive Differentiable Architecture Search: Bridging the Depth Gap between Search and
Evaluation", ICCV 2019, https://arxiv.org/abs/1904.12760, section 3.3. The progressive searches of DrNAS (Chen et al.,
ICLR 2021, https://arxiv.org/abs/2006.10355) shrink in the same way, without a limit for skip connections.

At the end of a stage each edge keeps the operations with the largest mixing weights, ``none`` like any other. At the
end of the search magnitude decides, as in DARTS. Then, while a normal cell has too many skip connections, its weakest
one is taken away, the edge falls back on the strongest operation that it has left, and the inputs of the nodes are
chosen anew; so an edge that was strong by its skip connection alone can be lost, and another one comes in.

Where the papers and their code leave a question open:

* A skip connection that nothing can replace stays: neither another operation on its edge, nor other edges into its
  node. ``none`` never stays alone on an edge where it cannot be chosen.
* In NAS-Bench-201, for which no paper limits skip connections, the one type of cell counts as a normal cell, and
  ``none`` can be kept as magnitude can keep it.
* The code lists architectures for every number of skip connections; here one is decided.
"""

from collections.abc import Sequence

import numpy as np

from dartslight.errors import InputError, check_least
from dartslight.selection.rule import Decision, Outcome, Rule, Schedule, SearchPlan, Supernet
from dartslight.selection.strongest import candidate, choosable, keep_strongest, mixing_weights
from dartslight.spaces import Cell, Choices, SearchSpace

_SKIP = "skip_connect"


class Staged(Rule):
    """Closes the weakest operations of every edge stage by stage, then decides by magnitude (P-DARTS, ICCV 2019).

    The search has one stage more than ``keep`` has numbers. They are those of the strategy; where that has one stage
    only, the search is divided into equally long ones.

    Args:
        keep: Number of operations that every edge keeps at the end of each stage but the last (P-DARTS: 5 and 3 of 8;
            DrNAS: 4 of 7), in descending order. An edge with fewer keeps all.
        max_skips: Number of skip connections that a normal cell keeps at most (P-DARTS recommends 2); null for no
            limit.
    """

    def __init__(self, keep: Sequence[int] = (5, 3), max_skips: int | None = 2) -> None:
        check_least(0, max_skips=max_skips)
        self.keep, self.max_skips = list(keep), max_skips
        if any(count < 1 for count in self.keep) or self.keep != sorted(set(self.keep), reverse=True):
            raise InputError(
                f"keep is {self.keep}, but it must be numbers of operations from 1 on in descending order; give such "
                "as [5, 3]."
            )

    def schedule(self, plan: SearchPlan) -> Schedule:
        """Returns the ends of the stages."""
        count = len(self.keep) + 1
        if plan.is_over and self.keep:
            raise InputError(
                f"keep is {self.keep}, which closes operations during the search, but this search is over; begin a "
                "search with fit, or give [] to decide all at once."
            )
        most = max(cell.num_ops for cell in plan.space.cells)
        if self.keep and self.keep[0] >= most:
            raise InputError(
                f"keep is {self.keep}, but an edge of the space {plan.space.name!r} has {most} operations at most, so "
                "that the first stage would close none; give smaller numbers."
            )
        equal = tuple(round(plan.epochs * (i + 1) / count) for i in range(count))
        ends = plan.stage_ends if len(plan.stage_ends) > 1 else equal
        if len(ends) != count:
            raise InputError(
                f"The search has {len(ends)} stages, but keep is {self.keep}, which is for {count}; give one number "
                "for each stage but the last."
            )
        if plan.epochs < count and self.keep:
            raise InputError(
                f"keep is {self.keep}, which is for {count} stages, but the search has {plan.epochs} epochs; give "
                f"--trainer.max_epochs {count} or more."
            )
        plan.check_learned("Staged", ends)
        return Schedule(ends)

    def decide(self, supernet: Supernet, point: int, seed: int) -> Outcome:
        """Closes operations of all edges at the end of a stage, and decides them at the end of the search."""
        weights = mixing_weights(supernet.space, supernet.mixing(supernet.choices))
        if point == len(self.keep):
            return keep_few_skips(supernet.space, supernet.choices, weights, self.max_skips)
        choices, decisions = supernet.choices, []
        for cell in supernet.space.cells:
            values = weights[cell.name]
            for e in choices.undecided(cell.name):
                columns, count = choices.of(cell.name)[e], self.keep[point]
                able = choosable(supernet.space, cell, e, columns) if count == 1 else columns
                stay = sorted(able, key=lambda o, row=values[e]: -row[o])[:count]  # type: ignore[misc]
                gone = [o for o in columns if o not in stay]
                if gone:
                    decisions.append(_operations(cell, e, columns, stay, values, "weight"))
                for o in gone:
                    choices = choices.close((cell.name, e), o)
        return Outcome(choices, tuple(decisions))


def keep_few_skips(
    space: SearchSpace, choices: Choices, weights: dict[str, np.ndarray], max_skips: int | None
) -> Outcome:
    """Decides by magnitude, with so many skip connections in a normal cell at most.

    Args:
        space: The search space.
        choices: What is open.
        weights: The mixing weights of each cell type, (edges, ops).
        max_skips: The largest number of skip connections of each cell type but the reduction cell, or None.
    """
    decisions: list[Decision] = []
    while True:
        outcome = keep_strongest(space, choices, weights, "weight")
        taken = None if max_skips is None else _skip_to_take(space, choices, outcome.choices, weights, max_skips)
        if taken is None:
            return Outcome(outcome.choices, (*decisions, *outcome.decisions))
        cell, e, skip = taken
        columns = choices.of(cell.name)[e]
        decisions.append(_operations(cell, e, columns, [o for o in columns if o != skip], weights[cell.name], "skips"))
        choices = choices.close((cell.name, e), skip)
        if not _selectable(space, cell, e, choices):
            choices = choices.drop([(cell.name, e)])


def _skip_to_take(
    space: SearchSpace, choices: Choices, decided: Choices, weights: dict[str, np.ndarray], max_skips: int
) -> tuple[Cell, int, int] | None:
    """Returns the weakest skip connection of a cell that has too many, with its edge and column, or None."""
    for cell in space.cells:
        if cell.name == "reduction":
            continue
        skips = [
            (e, decided.of(cell.name)[e][0])
            for e in decided.kept(cell.name)
            if cell.edges[e].ops[decided.of(cell.name)[e][0]] == _SKIP
        ]
        if len(skips) <= max_skips:
            continue
        replaceable = [(e, o) for e, o in skips if _is_replaceable(space, cell, e, o, choices)]
        if replaceable:
            e, skip = min(replaceable, key=lambda place, values=weights[cell.name]: values[place])  # type: ignore[misc]
            return cell, e, skip
    return None


def _is_replaceable(space: SearchSpace, cell: Cell, e: int, skip: int, choices: Choices) -> bool:
    """Whether the node has enough inputs without this skip connection."""
    if _selectable(space, cell, e, choices.close((cell.name, e), skip)):
        return True
    others = [i for i in cell.edges_into(cell.edges[e].node) if i != e and _selectable(space, cell, i, choices)]
    return space.inputs_per_node is not None and len(others) >= space.inputs_per_node


def _selectable(space: SearchSpace, cell: Cell, e: int, choices: Choices) -> bool:
    """Whether an edge has an operation left that magnitude can keep."""
    return any(space.none_selectable or cell.edges[e].ops[o] != "none" for o in choices.of(cell.name)[e])


def _operations(
    cell: Cell, e: int, columns: Sequence[int], stay: Sequence[int], values: np.ndarray, criterion: str
) -> Decision:
    """The record of which operations are left on an edge."""
    gone = [float(values[e, o]) for o in columns if o not in stay]
    margin = float(min(values[e, o] for o in stay)) - max(gone) if criterion == "weight" else None
    candidates = tuple(candidate(cell, e, o, float(values[e, o]), o in stay) for o in columns)
    return Decision(cell.name, "operations", criterion, candidates, margin=margin)
