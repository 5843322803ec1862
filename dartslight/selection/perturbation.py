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
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from dartslight.errors import InputError
from dartslight.selection.questions import Question, Removing, Sensing, Settings, Weighing
from dartslight.selection.rule import Decision, Outcome, Rule, Schedule, SearchPlan, Supernet, Tuning, nodes_to_thin
from dartslight.spaces import Choices, EdgeKey, SearchSpace

_PRESETS: dict[str, dict[str, Any]] = {
    "official": {
        "criterion": "accuracy",
        "paired": False,
        "eval_bn": "batch_update",
        "eval_transform": "train",
        "exclude_none": False,
        "edge_mode": "reg",
        "tune_after_last": True,
        "monitor": True,
    },
    "paired": {
        "criterion": "loss",
        "paired": True,
        "eval_bn": "batch_frozen",
        "eval_transform": "clean",
        "exclude_none": True,
        "edge_mode": "cumulative",
        "tune_after_last": False,
        "monitor": False,
    },
}
"""The settings in which the two presets differ, see `Perturbation` for their meaning."""


class Perturbation(Rule):
    """Keeps the operation that the supernet misses most when it is removed (DARTS-PT, Wang et al., ICLR 2021).

    Settings that are null are taken from the preset.

    Args:
        preset: ``paired`` (recommended) or ``official`` (what the published code does).
        interval: Fine-tuning epochs between two decision points; 0 decides everything at once.
        criterion: Score by ``loss``, by ``accuracy`` or by the ``divergence`` of the predictions (no labels) on the
            validation half; by the ``sensitivity`` of the loss in batches of 16 pictures; or measure nothing and keep
            what has the largest mixing ``weight`` (progressive magnitude).
        order: Order in which edges and nodes are decided: ``random``, ``sequential`` or ``reverse``; or ``freeflow``,
            the edges with the most salient operation before the search first (FreeDARTS), and nodes in sequence.
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
        criterion: Literal["loss", "accuracy", "divergence", "sensitivity", "weight"] | None = None,
        order: Literal["random", "sequential", "reverse", "freeflow"] = "random",
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
        given = {
            "criterion": criterion,
            "paired": paired,
            "eval_bn": eval_bn,
            "eval_transform": eval_transform,
            "exclude_none": exclude_none,
            "edge_mode": edge_mode,
            "tune_after_last": tune_after_last,
            "monitor": monitor,
        }
        chosen = _PRESETS[preset] | {name: value for name, value in given.items() if value is not None}
        self.tune_after_last, monitored = chosen.pop("tune_after_last"), chosen.pop("monitor")
        self.settings = Settings(**chosen, order=order, mask=mask, eval_batches=eval_batches, racing=racing)
        self.interval, self.interleave = interval, interleave
        if racing is not None and self.settings.criterion in ("weight", "sensitivity"):
            raise InputError(
                f"racing leaves candidates out of measurements, but the criterion {self.settings.criterion} measures "
                "none of them alone; leave it out."
            )
        if not self.settings.paired and self.settings.criterion == "divergence":
            raise InputError(
                "The divergence is that from the whole supernet on the same pictures; give paired: true with it."
            )
        if racing is not None and not (self.settings.paired and 0.5 <= racing < 1):
            raise InputError(
                f"racing is {racing} and paired is {self.settings.paired}, but a race compares candidates on the same "
                "pictures with a confidence from 0.5 to below 1; give such a number and paired: true, or no racing."
            )
        self._tuning = Tuning(tune_learning_rate, tune_schedule, warm_momentum, train_alpha_in_tune, monitored)

    def tuning(self) -> Tuning:
        """Returns how the supernet is fine-tuned between the decision points."""
        return self._tuning

    def schedule(self, plan: SearchPlan) -> Schedule:
        """Returns the decision points after the search, ``interval`` epochs apart."""
        if self.settings.criterion == "weight":
            plan.check_learned("Perturbation by weight", [plan.epochs])
        count, k = len(_questions(plan.space, self.interleave)), self.interval
        points, tune_after = [k * i for i in range(count)], int(self.tune_after_last and k > 0)
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

    def _question(self, supernet: Supernet, choices: Choices, cell: str, rng: np.random.Generator) -> Question:
        kind = {"weight": Weighing, "sensitivity": Sensing}.get(str(self.settings.criterion), Removing)
        return kind(self.settings, supernet, choices, cell, rng)


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
