"""Selection rules on a supernet whose losses are given: schedules, numbers of passes, ties, masks, records."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import torch

from dartslight.errors import InputError
from dartslight.genotype import Genotype
from dartslight.selection import (
    Evaluation,
    Magnitude,
    Measurement,
    Perturbation,
    Race,
    Random,
    Rule,
    SearchPlan,
    Variant,
)
from dartslight.selection.record import COLUMNS, decisions_csv, in_words, record
from dartslight.spaces import SPACES, Choices, SearchSpace
from dartslight.strategies import Architecture, Softmax

Loss = Callable[[Variant], float]


@dataclass
class Given:
    """A supernet that answers with given losses and counts its passes."""

    space: SearchSpace
    loss: Loss = lambda variant: 0.0
    choices: Choices = None  # type: ignore[assignment]
    memory: dict = field(default_factory=dict)
    passes: int = 0
    variants: list[Variant] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.choices = Choices.everything(self.space)
        torch.manual_seed(0)
        self.architecture = Architecture(self.space, Softmax(), 0.5)

    def mixing(self, choices: Choices) -> dict[str, torch.Tensor]:
        return {cell: weights.detach() for cell, weights in self.architecture(choices).items()}

    def measure(
        self, variants: Sequence[Variant], evaluation: Evaluation, race: Race | None = None
    ) -> list[Measurement]:
        self.passes += sum(v.label != "nothing removed" for v in variants)
        self.variants += variants
        self.evaluations.append(evaluation)
        spread = torch.linspace(-1, 1, 10, dtype=torch.float64)
        return [Measurement(self.loss(v) + spread, (self.loss(v) < 0.5) + 0 * spread, 2) for v in variants]


def run(rule: Rule, supernet: Given, seed: int = 0) -> tuple[Genotype, list]:
    decisions = []
    for point in range(len(rule.schedule(SearchPlan(supernet.space, 0)).points)):
        outcome = rule.decide(supernet, point, seed)
        supernet.choices = outcome.choices
        decisions += outcome.decisions
    return Genotype.from_choices(supernet.space, supernet.choices), decisions


@pytest.mark.parametrize(
    ("space", "points", "epochs", "passes"),
    [
        ("darts", list(range(0, 81, 5)), 81, 240),
        ("s1", list(range(0, 81, 5)), 81, 100),
        ("s2", list(range(0, 81, 5)), 81, 100),
        ("s3", list(range(0, 81, 5)), 81, 128),
        ("s4", list(range(0, 81, 5)), 81, 100),
        ("nasbench201", [0, 5, 10, 15, 20, 24], 25, 30),
    ],
)
def test_official_schedule_and_passes(space: str, points: list[int], epochs: int, passes: int) -> None:
    rule = Perturbation("official")
    schedule = rule.schedule(SearchPlan(SPACES[space], 0))
    assert (list(schedule.points), schedule.tuning_epochs) == (points, epochs)
    supernet = Given(SPACES[space])
    run(rule, supernet)
    assert supernet.passes == passes
    first = supernet.evaluations[0]
    assert (first.augmented, first.batches, first.statistics) == (True, None, "batch_update")
    assert len({e.seed for e in supernet.evaluations}) == len(supernet.evaluations)
    assert rule.tuning().learning_rate == 0.0025
    assert rule.tuning().monitor


def test_paired_measures_all_candidates_in_one_pass_and_never_none() -> None:
    supernet = Given(SPACES["nasbench201"])
    rule = Perturbation(interval=2)
    assert rule.schedule(SearchPlan(supernet.space, 3)).tuning_epochs == 10
    genotype, decisions = run(rule, supernet)
    assert len(supernet.evaluations) == 6
    assert supernet.passes == 24
    assert all(edge.ops != ("none",) for edge in genotype.cells[0].edges)
    first = supernet.evaluations[0]
    assert (first.augmented, first.statistics) == (False, "batch_frozen")
    assert all(d.noise == 0 for d in decisions)
    assert all(c.score_with == pytest.approx(0) for d in decisions for c in d.candidates)


def test_the_operation_that_is_missed_most_is_kept() -> None:
    def loss(variant: Variant) -> float:
        return 1.0 if "without nor_conv_1x1" in variant.label else 0.0

    for preset in ("paired", "official"):
        genotype, decisions = run(Perturbation(preset, criterion="loss"), Given(SPACES["nasbench201"], loss))
        assert {edge.ops for edge in genotype.cells[0].edges} == {("nor_conv_1x1",)}
        assert all(d.margin == 1 for d in decisions)


def test_the_first_operation_and_the_last_input_lose_ties_as_published() -> None:
    genotype, decisions = run(Perturbation("official"), Given(SPACES["darts"]))
    assert {edge.ops[0] for cell in genotype.cells for edge in cell.edges} == {"max_pool_3x3"}
    for cell in genotype.cells:
        for node in cell.nodes:
            assert [cell.edges[e].source for e in cell.edges_into(node)] == [0, 1]
    assert [d.kind for d in decisions].count("inputs") == 6


def test_masks_leave_all_other_weights_or_share_the_weight() -> None:
    for mask in ("raw", "renormalise"):
        supernet = Given(SPACES["nasbench201"])
        Perturbation(order="sequential", mask=mask).decide(supernet, 0, 0)
        whole, without = supernet.variants[0], supernet.variants[1]
        assert 1 not in without.choices.of("cell")[0]
        total = sum(float(without.mixing["cell"][0, o]) for o in without.choices.of("cell")[0])
        if mask == "raw":
            assert without.mixing is whole.mixing  # which the supernet takes as leave to share what they have in common
            assert total == pytest.approx(1 - float(whole.mixing["cell"][0, 1]))
        else:
            assert total == pytest.approx(1)
        assert torch.equal(without.mixing["cell"][1:], whole.mixing["cell"][1:])


def test_deletions_are_cumulative_or_not() -> None:
    for mode, expected in (("reg", {1}), ("cumulative", {1, 2, 3})):
        supernet = Given(SPACES["s2"])
        rule = Perturbation(edge_mode=mode, order="reverse", interval=0)
        points = len(rule.schedule(SearchPlan(supernet.space, 0)).points)
        for point in range(points - 2):
            supernet.variants.clear()
            supernet.choices = rule.decide(supernet, point, 0).choices
        normal = [v for v in supernet.variants if v.label.startswith("normal node 5")]
        gone = {sum(not columns for columns in v.choices.of("normal")) for v in normal}
        assert gone == expected


def test_every_order_decides_everything_and_seeds_matter() -> None:
    for order in ("random", "sequential", "reverse"):
        run(Perturbation(order=order, interleave="tune_between"), Given(SPACES["s1"]))
    drawn = [run(Perturbation(), Given(SPACES["nasbench201"]), seed)[1] for seed in (0, 0, 1)]
    places = [[d.candidates[0].node for d in decisions] for decisions in drawn]
    assert places[0] == places[1] != places[2]


def test_magnitude_keeps_the_largest_weights() -> None:
    for name in ("nasbench201", "darts8", "s1"):
        supernet = Given(SPACES[name])
        genotype, decisions = run(Magnitude(), supernet)
        for cell, whole in zip(genotype.cells, supernet.space.cells, strict=True):
            weights = supernet.mixing(Choices.everything(supernet.space))[cell.name]
            strength = {}
            for e, edge in enumerate(whole.edges):
                allowed = [o for o, op in enumerate(edge.ops) if op != "none" or name == "nasbench201"]
                best = max(allowed, key=lambda o, row=weights[e]: float(row[o]))
                strength[edge.source, edge.node] = (float(weights[e, best]), edge.ops[best])
            for node in cell.nodes:
                into = sorted((k for k in strength if k[1] == node), key=lambda k: -strength[k][0])
                expected = into[: supernet.space.inputs_per_node]
                got = {(e.source, e.node): e.ops[0] for e in cell.edges if e.node == node}
                assert got == {k: strength[k][1] for k in expected}
        assert all(d.margin >= 0 for d in decisions)


def test_random_depends_on_the_seed_alone() -> None:
    genotypes = [run(Random(), Given(SPACES["nasbench201"]), seed)[0] for seed in (1, 1, 2, 3)]
    assert genotypes[0] == genotypes[1]
    assert len(set(genotypes)) == 3


def test_records_hold_a_row_for_each_candidate() -> None:
    genotype, decisions = run(Perturbation(), Given(SPACES["s2"]))
    records = [record(d, i, 7, 0.5) for i, d in enumerate(decisions)]
    lines = decisions_csv(records).splitlines()
    assert lines[0].split(",") == list(COLUMNS)
    assert len(lines) == 1 + 56 + 2 * (3 + 7 + 12)
    words = in_words(genotype, records)
    assert "within the noise" not in words  # margin and noise are both 0
    assert words.count("inputs ") == 6
    only = record(run(Magnitude(), Given(SPACES["s2"]))[1][0], 0, 1, 0.1)
    assert "by weight" in in_words(genotype, [only])


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(InputError, match="no preset 'best'; the known ones are official, paired"):
        Perturbation("best")
    with pytest.raises(InputError, match="interval is -1"):
        Perturbation(interval=-1)
