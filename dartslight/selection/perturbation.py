"""Perturbation-based selection: keep the operation that the supernet misses most when it is removed (DARTS-PT).

Paper: Wang et al., "Rethinking Architecture Selection in Differentiable NAS", ICLR 2021,
https://arxiv.org/abs/2108.04392, section 4 and algorithm 1.

At each decision point an undecided edge is drawn. Each of its open operations is removed in turn, the others staying
as they are, and the supernet is measured on the validation half without any training. The operation whose removal
hurts most is kept, the supernet is fine-tuned for some epochs, and the next edge is drawn. When every edge is decided,
nodes with too many inputs lose, one after another, the edges that are missed least.

The preset ``official`` does what the published code does, in its schedule and number of passes too. The preset
``paired`` differs where the published procedure decides inside its own noise: it scores by the loss, measures all
candidates on the same pictures without augmentation, leaves the running statistics alone, does not let ``none`` be a
candidate (removing it changes nothing, so it can win by noise only), deletes the inputs of a node cumulatively, and
does not tune after the last decision. Deviations from the published code in both presets: where a schedule gives two
points to one epoch both are decided (the code falls back to magnitude for the last NAS-Bench-201 edge at ``interval``
1), and a kept edge whose operation is ``none`` stays ``none`` (the code can bring back a deleted edge as a skip).

With the criterion ``weight`` nothing is measured: an edge keeps the operation with the largest mixing weight, and a
node the edges whose operations had the largest weights when they were kept, since their parameters mean nothing from
then on. This is the paper's ablation DARTS+PT-Mag ("progressive magnitude"), which tells what the perturbation adds to
deciding step by step with fine-tuning; the paper does not say how it keeps inputs. ``none`` can be kept only where
magnitude can keep it.
"""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch

from dartslight.errors import InputError
from dartslight.nets import Mixing
from dartslight.selection.racing import Criterion, Race
from dartslight.selection.rule import (
    Candidate,
    Decision,
    Evaluation,
    Measurement,
    Outcome,
    Rule,
    Schedule,
    SearchPlan,
    Supernet,
    Tuning,
    Variant,
    nodes_to_thin,
)
from dartslight.selection.strongest import (
    choosable,
    inputs_decision,
    mixing_weights,
    strongest_inputs,
    strongest_operation,
)
from dartslight.spaces import Choices, EdgeKey, SearchSpace

_Entry = tuple[EdgeKey, int]
_Removal = tuple[Sequence[_Entry], str]


@dataclass(frozen=True, slots=True)
class _Preset:
    """The settings in which the two presets differ, see `Perturbation` for their meaning."""

    criterion: Criterion | Literal["weight"]
    paired: bool
    eval_bn: Literal["batch_update", "batch_frozen", "running"]
    eval_transform: Literal["train", "clean"]
    exclude_none: bool
    edge_mode: Literal["reg", "cumulative"]
    tune_after_last: bool
    monitor: bool


_PRESETS = {
    "official": _Preset("accuracy", False, "batch_update", "train", False, "reg", True, True),
    "paired": _Preset("loss", True, "batch_frozen", "clean", True, "cumulative", False, False),
}


class Perturbation(Rule):
    """Keeps the operation that the supernet misses most when it is removed (DARTS-PT, Wang et al., ICLR 2021).

    Settings that are null are taken from the preset.

    Args:
        preset: ``paired`` (recommended) or ``official`` (what the published code does).
        interval: Fine-tuning epochs between two decision points; 0 decides everything at once.
        criterion: Score by ``loss`` or by ``accuracy`` on the validation half, or measure nothing and keep what has the
            largest mixing ``weight`` (progressive magnitude).
        order: Order in which edges and nodes are decided: ``random``, ``sequential`` or ``reverse``.
        paired: Whether all candidates of a decision are measured on the same pictures in one pass.
        mask: ``raw`` removes an operation and leaves the other weights (published), ``renormalise`` shares its weight
            among them where the relaxation makes them compete.
        edge_mode: A node loses edges with those already deleted still in place (``reg``, published) or gone
            (``cumulative``).
        interleave: ``normal_then_reduce`` decides one edge of each cell type at a decision point (published),
            ``tune_between`` only one edge of one cell type.
        exclude_none: Whether ``none`` cannot be kept where it stands beside other operations.
        eval_bn: Batch normalisation while measuring: ``batch_update`` (statistics of each batch, the running ones
            follow; published), ``batch_frozen`` (statistics of each batch) or ``running``.
        eval_transform: Measure on pictures with the training augmentation (``train``, published) or without
            (``clean``).
        eval_batches: Batches of each measurement; null for the whole validation half.
        tune_after_last: Whether the published schedule's last epoch of fine-tuning stays, which changes no decision.
        tune_learning_rate: Learning rate of the operation weights between decisions.
        tune_schedule: ``constant`` (published) or ``cosine`` over the selection.
        warm_momentum: Whether the weight optimizer keeps its momentum when the selection begins.
        train_alpha_in_tune: Whether the architecture parameters go on learning between decisions.
        monitor: Whether validation passes, which decide nothing, go on between decisions.
        racing: Confidence, such as 0.99, with which candidates that cannot win any more are not measured further;
            null measures all of them on all batches. Needs ``paired``.
    """

    def __init__(
        self,
        preset: Literal["paired", "official"] = "paired",
        interval: int = 5,
        criterion: Literal["loss", "accuracy", "weight"] | None = None,
        order: Literal["random", "sequential", "reverse"] = "random",
        paired: bool | None = None,
        mask: Literal["raw", "renormalise"] = "raw",
        edge_mode: Literal["reg", "cumulative"] | None = None,
        interleave: Literal["normal_then_reduce", "tune_between"] = "normal_then_reduce",
        exclude_none: bool | None = None,
        eval_bn: Literal["batch_update", "batch_frozen", "running"] | None = None,
        eval_transform: Literal["train", "clean"] | None = None,
        eval_batches: int | None = None,
        tune_after_last: bool | None = None,
        tune_learning_rate: float = 0.0025,
        tune_schedule: Literal["constant", "cosine"] = "constant",
        warm_momentum: bool = False,
        train_alpha_in_tune: bool = True,
        monitor: bool | None = None,
        racing: float | None = None,
    ) -> None:
        if preset not in _PRESETS:
            raise InputError(f"There is no preset {preset!r}; the known ones are {', '.join(_PRESETS)}.")
        if interval < 0 or (eval_batches is not None and eval_batches < 1):
            raise InputError(
                f"interval is {interval} and eval_batches is {eval_batches}, but they must be at least 0 and 1; "
                "give larger numbers."
            )
        given: dict[str, Any] = {
            "criterion": criterion,
            "paired": paired,
            "eval_bn": eval_bn,
            "eval_transform": eval_transform,
            "exclude_none": exclude_none,
            "edge_mode": edge_mode,
            "tune_after_last": tune_after_last,
            "monitor": monitor,
        }
        base = _PRESETS[preset]
        self.settings = _Preset(
            **{f.name: getattr(base, f.name) if given[f.name] is None else given[f.name] for f in fields(_Preset)}
        )
        self.interval, self.order, self.mask, self.interleave = interval, order, mask, interleave
        self.eval_batches, self.racing = eval_batches, racing
        if racing is not None and self.settings.criterion == "weight":
            raise InputError("racing makes measurements shorter, but the criterion weight needs none; leave it out.")
        if racing is not None and not (self.settings.paired and 0.5 <= racing < 1):
            raise InputError(
                f"racing is {racing} and paired is {self.settings.paired}, but a race compares candidates on the same "
                "pictures with a confidence from 0.5 to below 1; give such a number and paired: true, or no racing."
            )
        self._tuning = Tuning(
            tune_learning_rate, tune_schedule, warm_momentum, train_alpha_in_tune, self.settings.monitor
        )

    def tuning(self) -> Tuning:
        """Returns how the supernet is fine-tuned between the decision points."""
        return self._tuning

    def schedule(self, plan: SearchPlan) -> Schedule:
        """Returns the decision points after the search, ``interval`` epochs apart."""
        if self.settings.criterion == "weight":
            plan.check_learned("Perturbation by weight", [plan.epochs])
        count, k = len(_questions(plan.space, self.interleave)), self.interval
        points, tune_after = [k * i for i in range(count)], int(self.settings.tune_after_last and k > 0)
        if tune_after and plan.space.inputs_per_node is None:
            # The published NAS-Bench-201 script decides the last edge at the start of its last epoch.
            points[-1] = max(0, points[-1] - 1)
        return Schedule(tuple(plan.epochs + point for point in points), points[-1] + tune_after)

    def decide(self, supernet: Supernet, point: int, seed: int) -> Outcome:
        """Takes the decisions of one point: an edge, or a node's inputs, of each cell type that is due."""
        choices, decisions = supernet.choices, []
        for kind, cell in _questions(supernet.space, self.interleave)[point]:
            # One generator for each cell type and point, so that a resumed run draws the same.
            index = [c.name for c in supernet.space.cells].index(cell)
            rng = np.random.default_rng([seed, point, index])
            question = self._question(supernet, choices, cell, rng)
            choices, decision = question.draw_edge() if kind == "operation" else question.draw_node()
            decisions.append(decision)
        return Outcome(choices, tuple(decisions))

    def keep_operation(
        self, supernet: Supernet, choices: Choices, key: EdgeKey, columns: Sequence[int], rng: np.random.Generator
    ) -> tuple[Choices, Decision]:
        """Decides one edge by the settings of a measurement, for rules that say themselves which edge is next.

        Args:
            supernet: The supernet.
            choices: What is open at this moment.
            key: The edge.
            columns: The operations that can be kept.
            rng: Seeds the measurements.
        """
        return self._question(supernet, choices, key[0], rng).keep_operation(key[1], columns)

    def _question(self, supernet: Supernet, choices: Choices, cell: str, rng: np.random.Generator) -> "_Question":
        kind = _Weighing if self.settings.criterion == "weight" else _Removing
        return kind(self, supernet, choices, cell, rng)


def _questions(space: SearchSpace, interleave: str) -> list[list[tuple[str, str]]]:
    """What is asked at each decision point: pairs of a kind of decision and a cell type."""
    columns = [
        [("operation", cell.name)] * sum(len(edge.ops) > 1 for edge in cell.edges)
        + [("inputs", cell.name)] * len(nodes_to_thin(space, cell.name))
        for cell in space.cells
    ]
    points = [[q for q in row if q is not None] for row in itertools.zip_longest(*columns)]
    if interleave == "tune_between":
        return [[question] for point in points for question in point]
    return points


class _Question(ABC):
    """One decision in the making.

    Args:
        rule: The settings.
        supernet: The supernet.
        choices: What is open at this moment.
        cell: The cell type.
        rng: Draws the edge or node and seeds the measurements.
    """

    def __init__(
        self, rule: Perturbation, supernet: Supernet, choices: Choices, cell: str, rng: np.random.Generator
    ) -> None:
        self.rule, self.settings, self.supernet = rule, rule.settings, supernet
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
        if self.rule.order == "random":
            return int(self.rng.choice(things))
        return things[0 if self.rule.order == "sequential" else -1]

    def _edges_into(self, node: int, choices: Choices) -> list[int]:
        kept = choices.kept(self.cell.name)
        return [e for e in self.cell.edges_into(node) if e in kept]


class _Weighing(_Question):
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


class _Removing(_Question):
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
        if self.rule.racing is not None and len(variants) > 1:
            race = Race(self.rule.racing, sign, tuple(range(1, len(variants) + 1)), self.criterion)
        base, *measured = self.supernet.measure([whole, *variants], self._evaluation(seed), race)
        return self._score(base), measured

    def _without(self, removed: Sequence[_Entry], choices: Choices, mixing: Mixing, label: str) -> Variant:
        """The supernet without some operations of this cell type."""
        less = choices
        for key, op in removed:
            less = less.close(key, op)
        if self.rule.mask == "renormalise":
            return Variant({**mixing, self.cell.name: self.supernet.mixing(less)[self.cell.name]}, less, label)
        # What is not open is not computed: that is weight 0, and no other weight changes.
        return Variant(mixing, less, label)

    def _evaluation(self, seed: int) -> Evaluation:
        s = self.settings
        return Evaluation(s.eval_transform == "train", self.rule.eval_batches, s.eval_bn, seed)

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
