"""The questions of a progressive selection: which operation stays on an edge, which inputs a node keeps.

Each is answered by what the supernet misses when something is removed (`Removing`), or by mixing weights (`Weighing`).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from dartslight.errors import InputError
from dartslight.nets import Mixing
from dartslight.selection.racing import Criterion, Race
from dartslight.selection.rule import Candidate, Decision, Evaluation, Measurement, Supernet, Variant, nodes_to_thin
from dartslight.selection.strongest import (
    choosable,
    inputs_decision,
    mixing_weights,
    strongest_inputs,
    strongest_operation,
)
from dartslight.spaces import Choices, EdgeKey

_Entry = tuple[EdgeKey, int]
_Removal = tuple[Sequence[_Entry], str]


@dataclass(frozen=True, slots=True)
class Settings:
    """How a question is answered, see `dartslight.selection.Perturbation` for the meaning."""

    criterion: Criterion | Literal["weight"]
    order: Literal["random", "sequential", "reverse"]
    paired: bool
    mask: Literal["raw", "renormalise"]
    edge_mode: Literal["reg", "cumulative"]
    exclude_none: bool
    eval_bn: Literal["batch_update", "batch_frozen", "running"]
    eval_transform: Literal["train", "clean"]
    eval_batches: int | None
    racing: float | None


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
        e = self._draw(self.choices.undecided(self.cell.name))
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
        return self.keep_inputs(self._draw(crowded), count)

    def _draw(self, things: Sequence[int]) -> int:
        """The edge or node that is decided next."""
        if self.settings.order == "random":
            return int(self.rng.choice(things))
        return things[0 if self.settings.order == "sequential" else -1]

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


class Removing(Question):
    """A decision by what the supernet misses."""

    @property
    def criterion(self) -> Criterion:
        """What is measured."""
        assert self.settings.criterion != "weight"
        return self.settings.criterion

    @property
    def sign(self) -> float:
        """What makes a larger value of the criterion mean that more was lost."""
        return 1.0 if self.criterion == "loss" else -1.0

    def keep_operation(self, e: int, columns: Sequence[int]) -> tuple[Choices, Decision]:
        """Keeps the operation that is missed most; the first of several equal ones."""
        key, edge = (self.cell.name, e), self.cell.edges[e]
        base, measured = self._remove(
            self.choices, [([(key, o)], f"{self.cell.name} {edge} without {edge.ops[o]}") for o in columns], self.sign
        )
        scores = [self._score(m) for m in measured]
        best = max(_finishers(measured), key=lambda i: self.sign * scores[i])
        margins = [self._margin(measured[best], m) for i, m in enumerate(measured) if i != best]
        candidates = tuple(
            Candidate(edge.source, edge.node, edge.ops[o], base, scores[i], i == best, measured[i].batches)
            for i, o in enumerate(columns)
        )
        return self.choices.decide(key, columns[best]), self._decision("operation", candidates, measured[best], margins)

    def keep_inputs(self, node: int, count: int) -> tuple[Choices, Decision]:
        """Deletes the inputs that are missed least; the last of several equal ones."""
        present, candidates = self.choices, []
        left = self._edges_into(node, present)
        while len(left) > count:
            choices = present if self.settings.edge_mode == "cumulative" else self.choices
            base, measured = self._remove(
                choices,
                [
                    (
                        [((self.cell.name, e), o) for o in choices.of(self.cell.name)[e]],
                        f"{self.cell.name} node {node} without the edge from {self.cell.edges[e].source}",
                    )
                    for e in left
                ],
                -self.sign,
            )
            scores = [self._score(m) for m in measured]
            least = min(_finishers(measured), key=lambda i: (self.sign * scores[i], -i))
            margins = [self._margin(m, measured[least]) for i, m in enumerate(measured) if i != least]
            for i, e in enumerate(left):
                edge, op = self.cell.edges[e], self.choices.of(self.cell.name)[e][0]
                batches = measured[i].batches
                candidates.append(Candidate(edge.source, node, edge.ops[op], base, scores[i], i != least, batches))
            present = present.drop([(self.cell.name, left[least])])
            left = self._edges_into(node, present)
        return present, self._decision("inputs", tuple(candidates), measured[least], margins)

    def _remove(
        self, choices: Choices, removals: Sequence[_Removal], sign: float
    ) -> tuple[float | None, list[Measurement]]:
        """Measures the supernet without some operations, for each removal in turn.

        Args:
            choices: What is open.
            removals: What is removed in each variant.
            sign: Which of them a race is about: 1 for the largest value of the criterion, -1 for the smallest.

        Returns:
            The score of the whole supernet, where it is measured along with the others, and a measurement for each
            removal.
        """
        # One object serves all variants, by which the supernet sees what they have in common.
        mixing = self.supernet.mixing(choices)
        variants = [self._without(removed, choices, mixing, label) for removed, label in removals]
        seed = int(self.rng.integers(2**31))
        if not self.settings.paired:
            # Every candidate gets a pass of its own over pictures in another order, as in the published code.
            return None, [self.supernet.measure([v], self._evaluation(seed + i))[0] for i, v in enumerate(variants)]
        whole = Variant(mixing, choices, "nothing removed")
        race = None
        if self.settings.racing is not None and len(variants) > 1:
            race = Race(self.settings.racing, sign, tuple(range(1, len(variants) + 1)), self.criterion)
        base, *measured = self.supernet.measure([whole, *variants], self._evaluation(seed), race)
        return self._score(base), measured

    def _without(self, removed: Sequence[_Entry], choices: Choices, mixing: Mixing, label: str) -> Variant:
        """The supernet without some operations of this cell type."""
        less = choices
        for key, op in removed:
            less = less.close(key, op)
        if self.settings.mask == "renormalise":
            return Variant({**mixing, self.cell.name: self.supernet.mixing(less)[self.cell.name]}, less, label)
        # What is not open is not computed: that is weight 0, and no other weight changes.
        return Variant(mixing, less, label)

    def _evaluation(self, seed: int) -> Evaluation:
        s = self.settings
        return Evaluation(s.eval_transform == "train", s.eval_batches, s.eval_bn, seed)

    def _score(self, measurement: Measurement) -> float:
        score = float(measurement.values(self.criterion).mean())
        if not math.isfinite(score) or not bool(torch.isfinite(measurement.loss).all()):
            raise InputError(
                "The supernet's loss is not a finite number, so there is nothing to decide by; it has diverged: search "
                "again with a smaller --model.learning_rate."
            )
        return score

    def _margin(self, missed: Measurement, less: Measurement) -> tuple[float, float, int]:
        """How much more one candidate is missed than another, the standard error of that, and on how many pictures."""
        count = min(len(missed.loss), len(less.loss))
        a, b = (m.values(self.criterion)[:count] for m in (missed, less))
        paired = self.settings.paired
        variance = (a - b).var() / count if paired else (a.var() + b.var()) / count
        return self.sign * float(a.mean() - b.mean()), float(variance.sqrt()), count

    def _decision(
        self,
        kind: Literal["operation", "inputs"],
        candidates: tuple[Candidate, ...],
        decisive: Measurement,
        margins: Sequence[tuple[float, float, int]],
    ) -> Decision:
        # The closest rival says how clear the decision was.
        margin, noise, pictures = min(margins, default=(None, None, len(decisive.loss)))
        return Decision(self.cell.name, kind, self.criterion, candidates, decisive.batches, pictures, margin, noise)


def _finishers(measured: Sequence[Measurement]) -> list[int]:
    """The candidates that were measured to the end."""
    longest = max(len(m.loss) for m in measured)
    return [i for i, m in enumerate(measured) if len(m.loss) == longest]
