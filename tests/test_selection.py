"""Selection rules on a supernet whose losses are given: schedules, numbers of passes, ties, masks, records."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from dartslight.errors import InputError
from dartslight.genotype import Genotype
from dartslight.nets import DiscreteNetwork
from dartslight.report import save_drawing
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

    def slots(self, choices: Choices) -> None:
        return None

    def measure(
        self, variants: Sequence[Variant], evaluation: Evaluation, race: Race | None = None
    ) -> list[Measurement]:
        self.passes += sum(v.label != "nothing removed" for v in variants)
        self.variants += variants
        self.evaluations.append(evaluation)
        spread = torch.linspace(-1, 1, 10, dtype=torch.float64)
        return [Measurement(self.loss(v) + spread, (self.loss(v) < 0.5) + 0 * spread, spread, 2) for v in variants]


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


@pytest.mark.parametrize("criterion", ["loss", "accuracy"])
@pytest.mark.parametrize("preset", ["paired", "official"])
def test_the_operation_that_is_missed_most_is_kept(preset: str, criterion: str) -> None:
    def loss(variant: Variant) -> float:  # from 0.5 on all pictures are wrong
        return 1.0 if "without nor_conv_1x1" in variant.label else 0.0

    genotype, decisions = run(Perturbation(preset, criterion=criterion), Given(SPACES["nasbench201"], loss))
    assert {edge.ops for edge in genotype.cells[0].edges} == {("nor_conv_1x1",)}
    assert all(d.margin == 1 for d in decisions)


@pytest.mark.parametrize("criterion", ["loss", "accuracy"])
@pytest.mark.parametrize("preset", ["paired", "official"])
def test_the_inputs_that_are_missed_least_go(preset: str, criterion: str) -> None:
    def loss(variant: Variant) -> float:
        _, _, source = variant.label.partition("without the edge from ")
        return {"1": 0.9, "2": 0.8}.get(source, 0.0)

    genotype, _ = run(Perturbation(preset, criterion=criterion), Given(SPACES["darts"], loss))
    for cell in genotype.cells:
        sources = [{cell.edges[e].source for e in cell.edges_into(node)} for node in cell.nodes]
        assert sources == [{0, 1}, {1, 2}, {1, 2}, {1, 2}]


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


@pytest.mark.parametrize("name", ["darts", "darts8", "s1", "s3", "nasbench201"])
def test_progressive_magnitude_measures_nothing_and_keeps_the_largest_weights(name: str) -> None:
    supernet = Given(SPACES[name])
    start = supernet.mixing(supernet.choices)
    rule = Perturbation("official", criterion="weight")
    assert rule.schedule(SearchPlan(supernet.space, 3)) == Perturbation("official").schedule(
        SearchPlan(supernet.space, 3)
    )
    genotype, decisions = run(rule, supernet)
    assert supernet.passes == 0
    # Nothing has moved the parameters, so that the order of the decisions changes nothing.
    assert genotype == run(Magnitude(), Given(SPACES[name]))[0]
    assert {d.criterion for d in decisions} == {"weight"}
    assert all(d.noise is None and d.margin >= 0 for d in decisions)
    if name == "nasbench201":
        none = [bool(start["cell"][e].argmax() == 0) for e in range(6)]
        assert [edge.ops == ("none",) for edge in genotype.cells[0].edges] == none
        assert any(none)
        paired = run(Perturbation(criterion="weight"), Given(SPACES[name]))[0]
        assert all(edge.ops != ("none",) for edge in paired.cells[0].edges)


def test_progressive_magnitude_sees_the_weights_of_its_moment() -> None:
    """Each edge by its weights when it is due, and each node by the weights that its operations had then."""
    supernet = Given(SPACES["s2"])
    rule = Perturbation("official", criterion="weight", order="sequential")
    # (skip, sep) of an edge at its own decision; before and after that both have 1/2, and 1 where decided.
    due = [(0.9, 0.1), (0.2, 0.8), (0.3, 0.7), (0.6, 0.4), (0.55, 0.45), *[(0.9 - 0.05 * i, 0.1) for i in range(9)]]
    for point in range(17):
        weights = torch.full((14, 2), 0.5, dtype=torch.float64)
        for e, columns in enumerate(supernet.choices.of("normal")):
            if len(columns) < 2:
                weights[e] = torch.tensor([float(o in columns) for o in (0, 1)])
        if point < 14:
            weights[point] = torch.tensor(due[point], dtype=torch.float64)
        supernet.mixing = lambda choices, w=weights: {"normal": w, "reduction": w}  # type: ignore[method-assign]
        supernet.choices = rule.decide(supernet, point, 0).choices
    genotype = Genotype.from_choices(supernet.space, supernet.choices)
    got = {(e.node, e.source): e.ops[0] for e in genotype.cells[0].edges}
    assert got == {
        **{(2, 0): SKIP, (2, 1): SEP3},
        **{(3, 0): SEP3, (3, 1): SKIP},  # 0.7 and 0.6 stay, 0.55 goes
        **{(4, 0): SKIP, (4, 1): SKIP, (5, 0): SKIP, (5, 1): SKIP},
    }
    assert supernet.memory["weights"]["normal"][4] == 0.55


SKIP, SEP3 = "skip_connect", "sep_conv_3x3"


def sigmoids(space: SearchSpace, strong: dict[str, dict[int, tuple[str, float]]]) -> Given:
    """A supernet whose operations have the weight 0.1, but for one on some edges of each cell type."""
    supernet = Given(space)
    weights = {cell.name: torch.full((len(cell.edges), len(cell.edges[0].ops)), 0.1).double() for cell in space.cells}
    for name, edges in strong.items():
        for e, (op, weight) in edges.items():
            weights[name][e, space.cell(name).edges[e].ops.index(op)] = weight
    supernet.mixing = lambda choices: weights  # type: ignore[method-assign]
    return supernet


# Edges into nodes 2, 3, 4 and 5 begin at 0, 2, 5 and 9.
FAIR = {
    "normal": {0: (SEP3, 0.9), 1: (SKIP, 0.85), 2: (SEP3, 0.86), 3: (SKIP, 0.87), 4: (SEP3, 0.9), 9: (SKIP, 0.8)},
    "reduction": {1: (SKIP, 0.95), 13: (SEP3, 0.99)},
}


def test_a_threshold_drops_what_does_not_exceed_it(tmp_path: Path) -> None:
    supernet = sigmoids(SPACES["darts"], FAIR)
    genotype, decisions = run(Magnitude(threshold=0.85), supernet)
    edges = {cell.name: [(e.node, e.source, e.ops[0]) for e in cell.edges] for cell in genotype.cells}
    assert edges["normal"] == [(2, 0, SEP3), (3, 1, SKIP), (3, 2, SEP3)]  # 3<-0 exceeds it, but two are stronger
    assert edges["reduction"] == [(2, 1, SKIP), (5, 4, SEP3)]
    node_2 = next(d for d in decisions if d.kind == "inputs" and d.cell == "normal" and d.candidates[0].node == 2)
    assert [(c.source, c.chosen) for c in node_2.candidates] == [(0, True), (1, False)]
    assert node_2.margin == pytest.approx(0.05)
    words = in_words(genotype, [record(d, i, 1, 0.1) for i, d in enumerate(decisions)])
    assert "node 4  inputs none" in words
    path = tmp_path / "genotype.json"
    path.write_text(genotype.to_json())
    assert Genotype.load(path) == genotype
    save_drawing(tmp_path / "cell.svg", genotype)
    without = run(Magnitude(), sigmoids(SPACES["darts"], FAIR))[0]
    assert [len(cell.edges) for cell in without.cells] == [8, 8]


def test_a_node_without_inputs_is_zeros_in_the_network() -> None:
    genotype = run(Magnitude(threshold=0.85), sigmoids(SPACES["darts"], FAIR))[0]
    torch.manual_seed(0)
    network = DiscreteNetwork(genotype, 3, 4, 10, auxiliary=True)
    images = torch.randn(2, 3, 32, 32)
    logits, auxiliary = network.train()(images)
    (logits.sum() + auxiliary.sum()).backward()
    seen = []
    network.blocks[0].register_forward_hook(lambda module, inputs, out: seen.append(out.x))
    network.blocks[1].register_forward_hook(lambda module, inputs, out: seen.append(out.x))
    network.eval()(images)
    normal, reduction = (out.split(channels, dim=1) for out, channels in zip(seen, (4, 8), strict=True))
    assert [bool(node.any()) for node in normal] == [True, True, False, False]
    assert [bool(node.any()) for node in reduction] == [True, False, False, False]  # node 5 reads node 4, which is 0
    assert reduction[0].shape == reduction[1].shape
    whole = run(Magnitude(), sigmoids(SPACES["darts"], FAIR))[0]
    count = {g: sum(p.numel() for p in DiscreteNetwork(g, 3, 4, 10).parameters()) for g in (genotype, whole)}
    assert count[genotype] == count[whole]  # what is gone are poolings and skips


def test_where_all_edges_stay_a_threshold_leaves_none() -> None:
    space = SPACES["nasbench201"]
    strong = {0: ("nor_conv_3x3", 0.9), 1: ("skip_connect", 0.5), 4: ("none", 0.95)}
    genotype, decisions = run(Magnitude(threshold=0.5), sigmoids(space, {"cell": strong}))
    assert genotype.to_nasbench201() == "|nor_conv_3x3~0|+|none~0|none~1|+|none~0|none~1|none~2|"
    assert [d.margin for d in decisions] == pytest.approx([0.8, 0.0, 0.4, 0.4, 0.85, 0.4])
    assert len(decisions[1].candidates) == 5
    (cell,) = space.cells
    edges = tuple(replace(edge, ops=edge.ops[1:]) for edge in cell.edges)
    own = replace(space, name="own.SPACE", cells=(replace(cell, edges=edges),))
    with pytest.raises(
        InputError, match=r"on edge 2<-0 of the cell cell has a weight above 0.5, but the space 'own.SP"
    ):
        run(Magnitude(threshold=0.5), sigmoids(own, {"cell": {0: ("nor_conv_3x3", 0.9)}}))


def test_thresholds_that_leave_nothing_are_refused() -> None:
    for threshold in (-0.1, 1.0):
        with pytest.raises(InputError, match=f"threshold is {threshold}"):
            Magnitude(threshold)
    for edges in ({}, {13: (SEP3, 0.99)}):
        strong = {**FAIR, "reduction": edges}
        with pytest.raises(InputError, match=r"reduction cell would read none of its inputs.* a lower threshold\.$"):
            run(Magnitude(threshold=0.85), sigmoids(SPACES["darts"], strong))


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
    with pytest.raises(InputError, match=r"racing leaves candidates out .* the criterion weight measures none"):
        Perturbation(criterion="weight", racing=0.99)
