"""One-shot rules: all candidates of all edges are measured in one sweep over the pictures, then everything is decided.

`LeaveOneOut` is the perturbation score of DARTS-PT (Wang et al., ICLR 2021, https://arxiv.org/abs/2108.04392) taken
once, of all operations of the trained supernet, instead of step by step with fine-tuning. `Sensitivity` is the first
order of the same question: by how much the loss would change if a mixing weight went to 0, batch by batch. Its absolute
value is that of connection sensitivity (SNIP, Lee et al., ICLR 2019, https://arxiv.org/abs/1810.02340), with the mixing
weight in the place of a connection's and after the training instead of before.

A node with too many inputs keeps the edges that are missed most as a whole.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dartslight.errors import InputError, check_least
from dartslight.seeding import derived_seed
from dartslight.selection.evidence import Evidence, keep_inputs, keep_operation
from dartslight.selection.questions import MINI_BATCH
from dartslight.selection.racing import Criterion
from dartslight.selection.rule import (
    Decision,
    Evaluation,
    Outcome,
    Rule,
    Schedule,
    SearchPlan,
    Supernet,
    Variant,
    nodes_to_thin,
)
from dartslight.spaces import Cell, Choices, EdgeKey

_SWEEP = 9  # what a derived seed is for
_FIRST = 8  # batches of the first sweep where more can follow
_WHOLE_EDGE = -1

Candidates = Mapping[EdgeKey, Sequence[int]]
"""The operations of each undecided edge that can be kept."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """What one sweep has found.

    Args:
        evidence: The evidence of each operation by its edge and column, and of each edge as a whole by column -1.
        base: The score of the whole supernet, where it was measured.
        batches: Number of batches.
    """

    evidence: Mapping[tuple[EdgeKey, int], Evidence]
    base: float | None
    batches: int


class OneShot(Rule):
    """Decides everything at the end of the search by one sweep.

    Args:
        eval_batches: Largest number of batches; None for the whole validation half.
        until_margin: Standard errors by which every decision should be clear. The sweep then begins with 8 batches and
            is repeated with twice as many until all decisions are clear or ``eval_batches`` are reached, which takes at
            most twice as long as one sweep. None for one sweep over all of them.
        exclude_none: Whether ``none`` cannot be kept where it stands beside other operations.
    """

    def __init__(self, eval_batches: int | None, until_margin: float | None, exclude_none: bool) -> None:
        check_least(1, eval_batches=eval_batches)
        check_least(0, until_margin=until_margin)
        self.eval_batches, self.until_margin, self.exclude_none = eval_batches, until_margin, exclude_none

    @abstractmethod
    def sweep(self, supernet: Supernet, candidates: Candidates, batches: int | None, seed: int) -> Sweep:
        """Measures all candidates on the same pictures.

        Args:
            supernet: The supernet.
            candidates: The operations.
            batches: Largest number of batches; None for the whole validation half.
            seed: Seeds the pictures; a sweep with more batches begins with the same ones.
        """

    def decide(self, supernet: Supernet, point: int, seed: int) -> Outcome:
        """Sweeps until the decisions are clear, and decides."""
        candidates = self._candidates(supernet)
        batches = self.eval_batches if self.until_margin is None else _FIRST
        while True:
            if batches is not None and self.eval_batches is not None:
                batches = min(batches, self.eval_batches)
            found = self.sweep(supernet, candidates, batches, derived_seed(seed, _SWEEP, point))
            outcome = _decide(supernet, candidates, found)
            # Fewer batches than were asked for are the whole validation half.
            if batches is None or batches == self.eval_batches or found.batches < batches:
                return outcome
            if self._is_clear(outcome.decisions):
                return outcome
            batches *= 2

    def _is_clear(self, decisions: Sequence[Decision]) -> bool:
        return self.until_margin is None or all(
            d.margin is None or d.noise is None or d.margin >= self.until_margin * d.noise for d in decisions
        )

    def _candidates(self, supernet: Supernet) -> dict[EdgeKey, Sequence[int]]:
        found: dict[EdgeKey, Sequence[int]] = {}
        for cell in supernet.space.cells:
            for e in supernet.choices.undecided(cell.name):
                columns, ops = supernet.choices.of(cell.name)[e], cell.edges[e].ops
                some = tuple(o for o in columns if ops[o] != "none")
                found[cell.name, e] = some if some and self.exclude_none else columns
        return found


class LeaveOneOut(OneShot):
    """Keeps what the supernet misses most, each operation being removed from the whole supernet.

    All variants are measured on the same pictures.

    Args:
        criterion: Score by ``loss`` (recommended), by ``accuracy``, or by the ``divergence`` of the predictions from
            those of the whole supernet, which needs no labels.
        eval_batches: Largest number of batches; null for the whole validation half.
        until_margin: Standard errors by which every decision should be clear: the sweep begins with 8 batches and is
            repeated with twice as many until it is so or ``eval_batches`` are reached. Null for one sweep over all.
        exclude_none: Whether ``none`` cannot be kept where it stands beside other operations.
        eval_bn: Batch normalisation while measuring: by the statistics of each batch (``batch_frozen``) or by the
            ``running`` ones.
        eval_transform: Measure on pictures without (``clean``) or with the training augmentation (``train``).
    """

    def __init__(
        self,
        criterion: Criterion = "loss",
        eval_batches: int | None = None,
        until_margin: float | None = None,
        exclude_none: bool = True,
        eval_bn: Literal["batch_frozen", "running"] = "batch_frozen",
        eval_transform: Literal["train", "clean"] = "clean",
    ) -> None:
        super().__init__(eval_batches, until_margin, exclude_none)
        self.criterion, self.eval_bn, self.eval_transform = criterion, eval_bn, eval_transform

    def sweep(self, supernet: Supernet, candidates: Candidates, batches: int | None, seed: int) -> Sweep:
        """Measures the supernet without each of the operations, and without each edge that may go."""
        choices, mixing = supernet.choices, supernet.mixing(supernet.choices)
        removed = [(key, o) for key, columns in candidates.items() for o in columns]
        for cell in supernet.space.cells:
            for node in nodes_to_thin(supernet.space, cell.name):
                removed += [((cell.name, e), _WHOLE_EDGE) for e in _into(cell, node, choices)]
        variants = [Variant(mixing, choices, "nothing removed")]
        for (name, e), op in removed:
            gone = choices.of(name)[e] if op == _WHOLE_EDGE else (op,)
            less = choices
            for o in gone:
                less = less.close((name, e), o)
            variants.append(Variant(mixing, less, "all edges"))
        evaluation = Evaluation(self.eval_transform == "train", batches, self.eval_bn, seed)
        base, *measured = (Evidence.of_removal(m, self.criterion) for m in supernet.measure(variants, evaluation))
        return Sweep(dict(zip(removed, measured, strict=True)), base.score, base.batches)


class Sensitivity(OneShot):
    """Keeps what the loss is most sensitive to: the largest mean over batches of abs(w * dL/dw), w the mixing weight.

    Args:
        source: ``validation`` measures it after the search on batches of 16 validation pictures; ``search`` takes what
            the architecture steps of the last epochs have seen (``--model.sensitivity_epochs``), which costs nothing
            but needs a strategy that takes such steps.
        eval_batches: Largest number of batches of 16 pictures; null for the whole validation half.
        until_margin: Standard errors by which every decision should be clear: the sweep begins with 8 batches and is
            repeated with twice as many until it is so or ``eval_batches`` are reached. Null for one sweep over all.
        exclude_none: Whether ``none`` cannot be kept where it stands beside other operations.
    """

    def __init__(
        self,
        source: Literal["validation", "search"] = "validation",
        eval_batches: int | None = None,
        until_margin: float | None = None,
        exclude_none: bool = True,
    ) -> None:
        super().__init__(eval_batches, until_margin, exclude_none)
        self.source = source
        if source == "search" and (eval_batches is not None or until_margin is not None):
            raise InputError(
                "With source search the batches are those of the architecture steps; leave eval_batches and "
                "until_margin out, or give source validation."
            )

    def schedule(self, plan: SearchPlan) -> Schedule:
        """Returns the end of the search.

        Raises:
            InputError: If the search sees no sensitivities, but they are to be taken from it.
        """
        if self.source == "search" and not plan.sees:
            raise InputError(
                "Sensitivity takes what the last architecture steps of the search have seen, but this search takes no "
                "such steps or --model.sensitivity_epochs is 0; give source validation."
            )
        return super().schedule(plan)

    def sweep(self, supernet: Supernet, candidates: Candidates, batches: int | None, seed: int) -> Sweep:
        """Measures, or looks up, the sensitivities of all operations and edges."""
        evaluation = Evaluation(False, batches, "batch_frozen", seed, MINI_BATCH)
        found = supernet.sensitivity(None if self.source == "search" else evaluation)
        evidence = {
            ((cell.name, e), o): Evidence.of_sensitivity(found, cell.name, e, o)
            for cell in supernet.space.cells
            for e, edge in enumerate(cell.edges)
            for o in (*range(len(edge.ops)), _WHOLE_EDGE)
        }
        return Sweep(evidence, None, next(iter(evidence.values())).batches)


def _decide(supernet: Supernet, candidates: Candidates, found: Sweep) -> Outcome:
    """Keeps the operations and then the edges that are missed most."""
    space, choices = supernet.space, supernet.choices
    decisions = []
    for key, columns in candidates.items():
        evidence = {o: found.evidence[key, o] for o in columns}
        op, decision = keep_operation(space.cell(key[0]), key[1], evidence, found.base, paired=True)
        choices = choices.decide(key, op)
        decisions.append(decision)
    for cell in space.cells:
        for node in nodes_to_thin(space, cell.name):
            into = _into(cell, node, choices)
            assert space.inputs_per_node is not None
            if len(into) <= space.inputs_per_node:
                continue
            edges = {e: found.evidence[(cell.name, e), _WHOLE_EDGE] for e in into}
            kept = {e: choices.of(cell.name)[e][0] for e in into}
            stay, decision = keep_inputs(cell, kept, edges, found.base, space.inputs_per_node)
            choices = choices.drop((cell.name, e) for e in into if e not in stay)
            decisions.append(decision)
    return Outcome(choices, tuple(decisions))


def _into(cell: Cell, node: int, choices: Choices) -> list[int]:
    """The edges into a node that are not gone."""
    kept = choices.kept(cell.name)
    return [e for e in cell.edges_into(node) if e in kept]
