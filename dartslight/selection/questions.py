"""The questions of a progressive selection: which operation stays on an edge, which inputs a node keeps.

Each is answered by what the supernet misses when something is removed (`Removing`), by the sensitivity of its loss
(`Sensing`), or by mixing weights (`Weighing`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dartslight.nets import Mixing
from dartslight.seeding import run_seed
from dartslight.selection.evidence import Evidence, decision, keep_inputs, keep_operation, least_missed, sign_of
from dartslight.selection.free import decision_order
from dartslight.selection.racing import Criterion, Race
from dartslight.selection.rule import Decision, Evaluation, Measurement, Sensitivities, Supernet, Variant, nodes_to_thin
from dartslight.selection.strongest import (
    choosable,
    inputs_decision,
    mixing_weights,
    strongest_inputs,
    strongest_operation,
)
from dartslight.spaces import Choices, EdgeKey

MINI_BATCH = 16
"""Pictures of a batch whose sensitivity is one sample."""

_Entry = tuple[EdgeKey, int]
_Removal = tuple[Sequence[_Entry], str]


@dataclass(frozen=True, slots=True)
class Settings:
    """How a question is answered, see `dartslight.selection.Perturbation` for the meaning."""

    criterion: Criterion | Literal["weight", "sensitivity"]
    order: Literal["random", "sequential", "reverse", "freeflow"]
    paired: bool
    mask: Literal["raw", "renormalise"]
    edge_mode: Literal["reg", "cumulative"]
    exclude_none: bool
    eval_bn: Literal["batch_update", "batch_frozen", "running"]
    eval_transform: Literal["train", "clean"]
    eval_batches: int | None
    racing: float | None

    def evaluation(self, seed: int, batch_size: int | None = None) -> Evaluation:
        """Returns on what, and how, candidates are measured."""
        return Evaluation(self.eval_transform == "train", self.eval_batches, self.eval_bn, seed, batch_size)


class Question(ABC):
    """One decision in the making.

    Args:
        settings: How it is decided.
        supernet: The supernet.
        choices: What is open at this moment.
        cell: The cell type.
        rng: Draws the edge or node and seeds the measurements.
    """

    def __init__(
        self, settings: Settings, supernet: Supernet, choices: Choices, cell: str, rng: np.random.Generator
    ) -> None:
        self.settings, self.supernet = settings, supernet
        self.space, self.cell, self.choices, self.rng = supernet.space, supernet.space.cell(cell), choices, rng

    @abstractmethod
    def keep_operation(self, e: int, columns: Sequence[int]) -> tuple[Choices, Decision]:
        """Keeps one of these operations of an edge."""

    @abstractmethod
    def keep_inputs(self, node: int, count: int) -> tuple[Choices, Decision]:
        """Keeps so many edges into a node."""

    def draw_edge(self) -> tuple[Choices, Decision]:
        """Draws an edge and keeps one of its operations."""
        e = self._draw(self.choices.undecided(self.cell.name), self._salient_first)
        ops, columns = self.cell.edges[e].ops, self.choices.of(self.cell.name)[e]
        if self.settings.exclude_none and any(ops[o] != "none" for o in columns):
            columns = tuple(o for o in columns if ops[o] != "none")
        return self.keep_operation(e, columns)

    def draw_node(self) -> tuple[Choices, Decision]:
        """Draws a node with too many inputs and keeps some of them."""
        count = self.space.inputs_per_node
        assert count is not None
        nodes = nodes_to_thin(self.space, self.cell.name)
        crowded = [n for n in nodes if len(self._edges_into(n, self.choices)) > count]
        return self.keep_inputs(self._draw(crowded, lambda nodes: nodes[0]), count)

    def _draw(self, things: Sequence[int], salient_first: Callable[[Sequence[int]], int]) -> int:
        """The edge or node that is decided next."""
        if self.settings.order == "random":
            return int(self.rng.choice(things))
        if self.settings.order == "freeflow":
            return salient_first(things)
        return things[0 if self.settings.order == "sequential" else -1]

    def _salient_first(self, edges: Sequence[int]) -> int:
        return next(e for e in decision_order(self.supernet, run_seed())[self.cell.name] if e in edges)

    def _edges_into(self, node: int, choices: Choices) -> list[int]:
        kept = choices.kept(self.cell.name)
        return [e for e in self.cell.edges_into(node) if e in kept]


class Weighing(Question):
    """A decision by mixing weights."""

    def keep_operation(self, e: int, columns: Sequence[int]) -> tuple[Choices, Decision]:
        """Keeps the operation with the largest weight; the first of several equal ones."""
        values = mixing_weights(self.space, self.supernet.mixing(self.choices))[self.cell.name]
        allowed = choosable(self.space, self.cell, e, columns)
        op, decision = strongest_operation(self.cell, e, allowed, values, "weight")
        self._kept_weights[e] = float(values[e, op])
        return self.choices.decide((self.cell.name, e), op), decision

    def keep_inputs(self, node: int, count: int) -> tuple[Choices, Decision]:
        """Keeps the inputs whose operations had the largest weights when they were kept."""
        columns = self.choices.of(self.cell.name)
        # An edge without a choice has always had the weight 1.
        into = {e: self._kept_weights.get(e, 1.0) for e in self._edges_into(node, self.choices)}
        stay = strongest_inputs(into, count)
        kept = {e: columns[e][0] for e in into}
        decision = inputs_decision(self.cell, kept, into, stay, "weight")
        return self.choices.drop((self.cell.name, e) for e in into if e not in stay), decision

    @property
    def _kept_weights(self) -> dict[int, float]:
        """The weight that the operation of each decided edge had."""
        found: dict[int, float] = self.supernet.memory.setdefault("weights", {}).setdefault(self.cell.name, {})
        return found


class Sensing(Question):
    """A decision by the sensitivity of the loss to mixing weights, see `dartslight.selection.Sensitivity`."""

    def keep_operation(self, e: int, columns: Sequence[int]) -> tuple[Choices, Decision]:
        """Keeps the operation that the loss is most sensitive to; the first of several equal ones."""
        found = self._sense()
        evidence = {o: Evidence.of_sensitivity(found, self.cell.name, e, o) for o in columns}
        op, decision = keep_operation(self.cell, e, evidence, None, paired=True)
        return self.choices.decide((self.cell.name, e), op), decision

    def keep_inputs(self, node: int, count: int) -> tuple[Choices, Decision]:
        """Keeps the edges that the loss is most sensitive to."""
        found, into = self._sense(), self._edges_into(node, self.choices)
        kept = {e: self.choices.of(self.cell.name)[e][0] for e in into}
        evidence = {e: Evidence.of_sensitivity(found, self.cell.name, e) for e in into}
        stay, decision = keep_inputs(self.cell, kept, evidence, None, count)
        return self.choices.drop((self.cell.name, e) for e in into if e not in stay), decision

    def _sense(self) -> Sensitivities:
        return self.supernet.sensitivity(self.settings.evaluation(int(self.rng.integers(2**31)), MINI_BATCH))


class Removing(Question):
    """A decision by what the supernet misses."""

    @property
    def criterion(self) -> Criterion:
        """What is measured."""
        assert self.settings.criterion != "weight"
        assert self.settings.criterion != "sensitivity"
        return self.settings.criterion

    def keep_operation(self, e: int, columns: Sequence[int]) -> tuple[Choices, Decision]:
        """Keeps the operation that is missed most; the first of several equal ones."""
        key, edge = (self.cell.name, e), self.cell.edges[e]
        removals = {o: ([(key, o)], f"{self.cell.name} {edge} without {edge.ops[o]}") for o in columns}
        base, evidence = self._remove(self.choices, removals, 1.0)
        op, decision = keep_operation(self.cell, e, evidence, base, self.settings.paired)
        return self.choices.decide(key, op), decision

    def keep_inputs(self, node: int, count: int) -> tuple[Choices, Decision]:
        """Deletes the inputs that are missed least; the last of several equal ones."""
        present, candidates = self.choices, []
        left = self._edges_into(node, present)
        while len(left) > count:
            choices = present if self.settings.edge_mode == "cumulative" else self.choices
            removals = {
                e: (
                    [((self.cell.name, e), o) for o in choices.of(self.cell.name)[e]],
                    f"{self.cell.name} node {node} without the edge from {self.cell.edges[e].source}",
                )
                for e in left
            }
            base, evidence = self._remove(choices, removals, -1.0)
            least = least_missed(evidence)
            leads = [found.lead(evidence[least], self.settings.paired) for e, found in evidence.items() if e != least]
            for e, found in evidence.items():
                op = self.choices.of(self.cell.name)[e][0]
                candidates.append(found.candidate(self.cell, e, op, base, e != least))
            present = present.drop([(self.cell.name, least)])
            left = self._edges_into(node, present)
        return present, decision(self.cell, "inputs", candidates, evidence[least], leads)

    def _remove(
        self, choices: Choices, removals: Mapping[int, _Removal], direction: float
    ) -> tuple[float | None, dict[int, Evidence]]:
        """Measures the supernet without some operations, for each removal in turn.

        Args:
            choices: What is open.
            removals: What is removed in each variant, and its label.
            direction: Which of them a race is about: 1 for the one that is missed most, -1 for the least.

        Returns:
            The score of the whole supernet, where it is measured along with the others, and the evidence of each
            removal.
        """
        # One object serves all variants, by which the supernet sees what they have in common.
        mixing = self.supernet.mixing(choices)
        variants = [self._without(removed, choices, mixing, label) for removed, label in removals.values()]
        seed = int(self.rng.integers(2**31))
        if not self.settings.paired:
            # Every candidate gets a pass of its own over pictures in another order, as in the published code.
            passes = (self.supernet.measure([v], self.settings.evaluation(seed + i)) for i, v in enumerate(variants))
            measured = [m for (m,) in passes]
            return None, self._evidence(removals, measured)
        race = None
        if self.settings.racing is not None and len(variants) > 1:
            entrants = tuple(range(1, len(variants) + 1))
            race = Race(self.settings.racing, direction * sign_of(self.criterion), entrants, self.criterion)
        whole = Variant(mixing, choices, "nothing removed")
        base, *measured = self.supernet.measure([whole, *variants], self.settings.evaluation(seed), race)
        return Evidence.of_removal(base, self.criterion).score, self._evidence(removals, measured)

    def _evidence(self, keys: Iterable[int], measured: Sequence[Measurement]) -> dict[int, Evidence]:
        return {key: Evidence.of_removal(m, self.criterion) for key, m in zip(keys, measured, strict=True)}

    def _without(self, removed: Sequence[_Entry], choices: Choices, mixing: Mixing, label: str) -> Variant:
        """The supernet without some operations of this cell type."""
        less = choices
        for key, op in removed:
            less = less.close(key, op)
        if self.settings.mask == "renormalise":
            return Variant({**mixing, self.cell.name: self.supernet.mixing(less)[self.cell.name]}, less, label)
        # What is not open is not computed: that is weight 0, and no other weight changes.
        return Variant(mixing, less, label)
