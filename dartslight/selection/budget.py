"""The best architecture that costs no more than it may: the scores of another rule, under a budget.

A rule that scores all operations at once says what each is worth; a cost says what an architecture takes, be it
milliseconds or multiply-adds. Kept are the operations whose scores have the largest sum among all architectures whose
cost is at most the target; the inputs of nodes stay those of the rule.

Such a sum under one constraint is a multiple-choice knapsack problem, solved here by Lagrangian relaxation (Everett,
"Generalized Lagrange multiplier method", Operations Research 11, 1963): a linear substitute of the cost gives every
operation a price, and the multiplier of the prices at which the best architecture just meets the target gives an order
in which architectures are looked at, the promising ones first. Each that may be affordable is measured itself, until
none that is left can have a larger sum. With a cost that is a sum over operations the answer is the best one there is,
unless too many would have to be looked at; then it is the best of those that were.
"""

import heapq
import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from dartslight.criteria import Cost, ridge
from dartslight.errors import InputError, check_least
from dartslight.genotype import Genotype
from dartslight.seeding import derived_seed
from dartslight.selection.average import edge_of, operation_scores
from dartslight.selection.rule import Decision, Outcome, Rule, Schedule, SearchPlan, Supernet, Tuning
from dartslight.selection.strongest import Magnitude
from dartslight.spaces import Choices, EdgeKey, SearchSpace

_BUDGET = 10  # what a derived seed is for
_RIDGE = 1e-6  # an edge always has one operation, so prices are only known up to a constant but for this
_SLACK = 4.0  # mean errors by which the prices may be wrong about an architecture
_LOOKED_AT, _MEASURED = 5000, 500  # architectures at most
_ROUNDING = 1e-9  # of a target
_LARGEST_MULTIPLIER = 1e30

Options = Mapping[EdgeKey, Mapping[int, float]]
"""A number for each operation that an edge may keep."""

Picks = tuple[int, ...]
"""The operation of each edge, in the order of the options."""


class Budget(Rule):
    """Keeps the best architecture by another rule's scores that costs no more than a target.

    What the rule itself limits beside its scores, such as a threshold or a number of skip connections, holds for what
    it would keep, not for what takes its place.

    Args:
        rule: A rule that scores all operations of all edges in one decision, such as Sensitivity or LeaveOneOut.
        cost: What architectures cost; its target is what the kept one may. Its coefficient is for searches.
        cost_samples: Number of architectures that are measured for the prices of operations.
    """

    def __init__(self, rule: Rule, cost: Cost, cost_samples: int = 200) -> None:
        check_least(10, cost_samples=cost_samples)
        if isinstance(rule, Budget):
            raise InputError(
                "Budget keeps to one cost, and would forget that of a Budget as its rule; give a rule such as "
                "Sensitivity or LeaveOneOut, and the cost that is the tighter one."
            )
        if not rule.needs_search:
            raise InputError(
                f"Budget takes the scores of a supernet that has been searched, but {type(rule).__name__} needs none; "
                "give a rule such as Sensitivity or LeaveOneOut."
            )
        self.rule, self.cost, self.cost_samples = rule, cost, cost_samples

    def tuning(self) -> Tuning:
        """Returns that of the rule."""
        return self.rule.tuning()

    def schedule(self, plan: SearchPlan) -> Schedule:
        """Returns that of the rule.

        Raises:
            InputError: If it decides in steps, or the cost does not know the architectures of the space.
        """
        self.cost.check(plan.space, draws_inputs=True)
        schedule = self.rule.schedule(plan)
        if plan.draws_inputs and isinstance(self.rule, Magnitude):
            raise InputError(
                "Budget needs scores of operations, but Magnitude decides slots of nodes where inputs are drawn; give "
                "Sensitivity or LeaveOneOut."
            )
        if len(schedule.points) > 1:
            raise InputError(
                f"Budget needs all scores at once, but {type(self.rule).__name__} decides in {len(schedule.points)} "
                "steps; give a rule that decides in one, such as Sensitivity or LeaveOneOut."
            )
        return schedule

    def observe(self, supernet: Supernet, epochs: int) -> None:
        """Lets the rule see the supernet."""
        self.rule.observe(supernet, epochs)

    def decide(self, supernet: Supernet, point: int, seed: int) -> Outcome:
        """Lets the rule decide, and then what can be afforded."""
        outcome = self.rule.decide(supernet, point, seed)
        affordable: Outcome = supernet.on_first(lambda: self.within(supernet.space, outcome, seed))
        return affordable

    def within(self, space: SearchSpace, outcome: Outcome, seed: int) -> Outcome:
        """Returns the best outcome by its own scores that costs no more than the target.

        Args:
            space: The search space.
            outcome: What was decided without a budget.
            seed: Seeds the architectures that are measured for the prices.

        Raises:
            InputError: If the scores are missing, or nothing is found that costs so little.
        """
        usual = spent = self.cost.measure(Genotype.from_choices(space, outcome.choices))
        if usual > self.cost.target:
            offer = _Offer(space, outcome.choices, _options(space, outcome), self.cost)
            prices = offer.prices(self.cost_samples, random.Random(derived_seed(seed, _BUDGET)))
            best = offer.best_under(self.cost.target, prices)
            choices, spent = offer.choices(best), offer.measured(best)
            decisions = tuple(_amended(space, decision, choices) for decision in outcome.decisions)
            outcome = replace(outcome, choices=choices, decisions=decisions)
        print(
            f"Budget: {self.cost.name} may be {self.cost.target:.6g} and is {spent:.6g}; without a budget it would be "
            f"{usual:.6g}."
        )
        return outcome


@dataclass
class _Offer:
    """All architectures that differ from a decided one in the operations of its edges, and what they cost.

    Args:
        space: The search space.
        decided: The decided one.
        scores: The scores of the operations that each edge may keep.
        cost: What they cost.
    """

    space: SearchSpace
    decided: Choices
    scores: Options
    cost: Cost

    def __post_init__(self) -> None:
        self._known: dict[Picks, float] = {}

    def choices(self, picks: Picks) -> Choices:
        """Returns the architecture of some operations."""
        found = self.decided
        for key, op in zip(self.scores, picks, strict=True):
            found = found.decide(key, op)
        return found

    def measured(self, picks: Picks) -> float:
        """Returns what an architecture costs."""
        if picks not in self._known:
            self._known[picks] = self.cost.measure(Genotype.from_choices(self.space, self.choices(picks)))
        return self._known[picks]

    def prices(self, samples: int, rng: random.Random) -> "_Prices":
        """Measures architectures at random and fits a price to each operation."""
        places = {place: i for i, place in enumerate((k, o) for k, own in enumerate(self.scores.values()) for o in own)}
        drawn = [tuple(rng.choice(list(own)) for own in self.scores.values()) for _ in range(samples)]
        costs = torch.tensor([self.measured(picks) for picks in drawn], dtype=torch.float64)
        features = torch.zeros(samples, len(places) + 1, dtype=torch.float64)
        features[:, -1] = 1
        for row, picks in zip(features, drawn, strict=True):
            row[[places[place] for place in enumerate(picks)]] = 1
        of_costs = ridge(
            features, torch.eye(samples, dtype=torch.float64), _RIDGE
        )  # the weights are linear in the costs
        weights = of_costs @ costs
        # Each architecture's error by the prices that the others alone would give.
        leverage = (features * of_costs.T).sum(dim=1)
        errors = (features @ weights - costs) / (1 - leverage).clamp_min(_RIDGE)
        of_edges: list[dict[int, float]] = [{} for _ in self.scores]
        for (k, o), i in places.items():
            of_edges[k][o] = float(weights[i])
        return _Prices(of_edges, float(weights[-1]), float(errors.abs().mean()))

    def best_under(self, target: float, prices: "_Prices") -> Picks:
        """Returns the architecture with the largest sum of scores whose cost is at most the target.

        Raises:
            InputError: If none is found.
        """
        scores = list(self.scores.values())
        self.measured(tuple(min(price, key=price.__getitem__) for price in prices.of_edges))  # the cheapest, probably
        affordable = [picks for picks, cost in self._known.items() if cost <= target]
        best = max(affordable, key=lambda picks: _total(scores, picks), default=None)
        largest = -math.inf if best is None else _total(scores, best)
        room = target - prices.base + _SLACK * prices.error
        multiplier = _multiplier(scores, prices.of_edges, target - prices.base + _ROUNDING * abs(target))
        in_order, most = _in_order(scores, prices.of_edges, multiplier), len(self._known) + _MEASURED
        for picks, value in itertools.islice(in_order, _LOOKED_AT):
            if value + multiplier * room <= largest or len(self._known) >= most:
                break  # no later one that may be affordable has a larger sum
            score = _total(scores, picks)
            if score > largest and _total(prices.of_edges, picks) <= room and self.measured(picks) <= target:
                best, largest = picks, score
        if best is None:
            raise InputError(
                f"No architecture was found that costs at most {target:.6g} {self.cost.name}; the cheapest of the "
                f"{len(self._known)} that were measured costs {min(self._known.values()):.6g}; give a larger target."
            )
        return best


@dataclass(frozen=True)
class _Prices:
    """A linear substitute for a cost.

    Args:
        of_edges: For each edge, what each operation adds.
        base: What everything else costs.
        error: The mean absolute error on architectures that it was not fitted to.
    """

    of_edges: Sequence[Mapping[int, float]]
    base: float
    error: float


def _total(numbers: Sequence[Mapping[int, float]], picks: Picks) -> float:
    return sum(own[o] for own, o in zip(numbers, picks, strict=True))


def _multiplier(scores: Sequence[Mapping[int, float]], prices: Sequence[Mapping[int, float]], room: float) -> float:
    """Returns the smallest multiplier of the prices, but for rounding, at which the best operations fit into the room.

    If the cheapest ones do not, it is so large that prices are all that counts.
    """

    def fits(multiplier: float) -> bool:
        best = (
            max(own, key=lambda o: own[o] - multiplier * price[o]) for own, price in zip(scores, prices, strict=True)
        )
        return _total(prices, tuple(best)) <= room

    low, high = 0.0, 1.0
    while not fits(high) and high < _LARGEST_MULTIPLIER:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _in_order(
    scores: Sequence[Mapping[int, float]], prices: Sequence[Mapping[int, float]], multiplier: float
) -> Iterator[tuple[Picks, float]]:
    """Yields all architectures with their sums of scores less priced costs, the largest first."""
    values = [{o: own[o] - multiplier * price[o] for o in own} for own, price in zip(scores, prices, strict=True)]
    ranked = [sorted(own, key=own.__getitem__, reverse=True) for own in values]
    best = tuple(0 for _ in ranked)
    # Each architecture is reached once: by going down on edges in their order.
    heap = [(-_total(values, tuple(own[0] for own in ranked)), best, 0)]
    while heap:
        negative, places, first = heapq.heappop(heap)
        yield tuple(own[i] for own, i in zip(ranked, places, strict=True)), -negative
        for k in range(first, len(ranked)):
            down = places[k] + 1
            if down < len(ranked[k]):
                loss = values[k][ranked[k][places[k]]] - values[k][ranked[k][down]]
                heapq.heappush(heap, (negative + loss, (*places[:k], down, *places[k + 1 :]), k))


def _options(space: SearchSpace, outcome: Outcome) -> dict[EdgeKey, dict[int, float]]:
    """Returns the scores of what each edge of an architecture may keep, which is never ``none``."""
    found: dict[EdgeKey, dict[int, float]] = {}
    for cell in space.cells:
        kept = outcome.choices.kept(cell.name)
        for (e, o), score in operation_scores(cell, outcome.decisions).items():
            if e in kept and cell.edges[e].ops[o] != "none":
                found.setdefault((cell.name, e), {})[o] = score
    # An edge that the rule itself has left out, by keeping none, stays so.
    found = {(c, e): own for (c, e), own in found.items() if outcome.choices.of(c)[e][0] in own}
    if not found:
        raise InputError(
            "Budget weighs the scores of operations, but the rule has scored none; give a rule that scores all, such "
            "as Sensitivity or LeaveOneOut."
        )
    return found


def _amended(space: SearchSpace, decision: Decision, choices: Choices) -> Decision:
    """Returns the record of a decision after the budget; where that has changed it, the lead is negative."""
    cell = space.cell(decision.cell)
    places = [edge_of(cell, candidate) for candidate in decision.candidates]
    kept = [cell.edges[e].ops[own[0]] if (own := choices.of(cell.name)[e]) else None for e in places]
    both = list(zip(decision.candidates, kept, strict=True))
    if decision.kind == "inputs":  # the same ones stay, with what stands on them now
        return replace(decision, candidates=tuple(replace(c, op=c.op if op is None else op) for c, op in both))
    if decision.kind != "operation" or all(op is None or c.chosen == (c.op == op) for c, op in both):
        return decision
    candidates = tuple(replace(c, chosen=c.op == op) for c, op in both)
    scores = operation_scores(cell, [decision])
    chosen = scores[places[0], choices.of(cell.name)[places[0]][0]]
    return replace(decision, candidates=candidates, margin=chosen - max(scores.values()), noise=None)
