"""Factorised cells (UNAS): slots of nodes against loops and enumeration, what they are decided for, and whole runs."""

import csv
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from children import start_devices, succeed
from test_captured import Waits
from test_configs import config
from test_ddp import words_for
from test_estimators import errors
from test_strategies import search
from test_strategies_in_training import QUICK, newest
from test_unas import estimate, pairs, same
from torch import Tensor, nn

from dartslight.callbacks.true_accuracy import leading
from dartslight.cli import main
from dartslight.criteria import Cost, CrossEntropy, GeneralisationGap, MultiplyAdds
from dartslight.errors import InputError
from dartslight.genotype import Genotype
from dartslight.modules import SearchModule
from dartslight.nets import DiscreteNetwork
from dartslight.selection import LeaveOneOut, Magnitude, Perturbation, SearchPlan, schedule_of
from dartslight.selection.average import average
from dartslight.spaces import SPACES, UNAS, Cell, Choices, Edge, SearchSpace
from dartslight.strategies import (
    Architecture,
    Estimator,
    Factorised,
    Fixed,
    GumbelSoftmax,
    Rebar,
    Reinforce,
    Sampled,
    ScoreFunction,
    draw,
    genotypes,
)

OPS = ("skip_connect", "nor_conv_1x1", "nor_conv_3x3")
TINY = SearchSpace(
    "test_factorised.TINY",
    "nasbench201",
    (Cell("cell", 1, 2, "last", (Edge(0, 1, OPS), Edge(0, 2, OPS), Edge(1, 2, OPS))),),
    inputs_per_node=2,
    none_selectable=True,
    parallel=True,
)
"""One node with one input and one with two, and three operations: 324 samples of four slots."""

(CELL,) = TINY.cells

PUBLISHED = (
    "Genotype(normal=[('sep_conv_5x5', 0), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 1), "
    "('sep_conv_3x3', 0), ('dil_conv_3x3', 1), ('sep_conv_3x3', 1), ('dil_conv_3x3', 0)], normal_concat=range(2, 6), "
    "reduce=[('sep_conv_3x3', 0), ('sep_conv_5x5', 0), ('skip_connect', 1), ('sep_conv_3x3', 0), ('avg_pool_3x3', 1), "
    "('skip_connect', 0), ('sep_conv_5x5', 3), ('avg_pool_3x3', 1)], reduce_concat=range(2, 6))"
)
"""The cells that UNAS found on CIFAR-10; the first node of both reads its first input twice."""


def selectors(cell: Cell) -> Iterator[tuple[int, int, list[int]]]:
    """Each node's first variable of a slot: the input; the one behind it is the operation."""
    for n, node in enumerate(cell.nodes):
        for slot in range(2):
            yield 4 * n + 2 * slot, node, list(cell.edges_into(node))


def restated(cell: Cell, values: Tensor) -> Tensor:
    """The weight of each operation from the weights of the variables' values, (edges, ops), one number at a time."""
    rows = torch.zeros(len(cell.edges), cell.num_ops)
    for row, _, edges in selectors(cell):
        for place, e in enumerate(edges):
            for o in range(cell.num_ops):
                rows[e, o] = rows[e, o] + values[row, place] * values[row + 1, o]
    return rows


def shares(cell: Cell, alphas: Tensor) -> Tensor:
    """The probability of each variable's values, 0 for those that it does not have."""
    found = torch.zeros_like(alphas)
    for row, _, edges in selectors(cell):
        for r, count in ((row, len(edges)), (row + 1, cell.num_ops)):
            found[r, :count] = torch.softmax(alphas[r, :count], dim=0)
    return found


def every_sample(cell: Cell, shape: torch.Size) -> Iterator[Tensor]:
    """All hard samples of the variables."""
    counts = [count for _, _, edges in selectors(cell) for count in (len(edges), cell.num_ops)]
    for values in itertools.product(*map(range, counts)):
        yield nn.functional.one_hot(torch.tensor(values), shape[1]).double()


def true_gradient(cell: Cell, alphas: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """The derivative of the sum over all samples of probability times the loss of the rows."""
    leaf = alphas.detach().clone().requires_grad_()
    own = shares(cell, leaf)
    expected = torch.zeros(())
    for hard in every_sample(cell, alphas.shape):
        probability = (own * hard).sum(dim=1).prod()
        expected = expected + probability * loss(restated(cell, hard)).detach()
    return torch.autograd.grad(expected, leaf)[0]


def opened(cell: Cell) -> Tensor:
    return torch.ones(len(cell.edges), cell.num_ops, dtype=torch.bool)


# ------------------------------------------------------------------------------------------------------ the relaxation


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("cell", [UNAS.cells[0], CELL], ids=["unas", "tiny"])
def test_weights_are_the_sums_over_both_slots(cell: Cell) -> None:
    relaxation = Factorised(duplicate_weight=0.7)
    alphas = torch.randn(relaxation.shape(cell)).requires_grad_()
    relax = relaxation.of(cell)
    found = relax(alphas, opened(cell))
    torch.testing.assert_close(found, restated(cell, shares(cell, alphas)))
    for node in cell.nodes:
        assert float(found[list(cell.edges_into(node))].detach().sum()) == pytest.approx(2)
    torch.testing.assert_close(relax.slots(alphas, opened(cell)).sum(dim=0), found)
    # The probability that both slots of a node draw the same pair, pair by pair.
    own, same_pair = shares(cell, alphas), torch.zeros(())
    for row, _, edges in selectors(cell):
        if row % 4 == 0:
            for place, o in itertools.product(range(len(edges)), range(cell.num_ops)):
                first, second = (own[r, place] * own[r + 1, o] for r in (row, row + 2))
                same_pair = same_pair + first * second
    penalty = relax.penalty(alphas, opened(cell))
    torch.testing.assert_close(penalty, 0.7 * same_pair)
    ours, theirs = (torch.autograd.grad(number, alphas)[0] for number in (penalty, 0.7 * same_pair))
    torch.testing.assert_close(ours, theirs)
    assert Factorised(duplicate_weight=0).of(cell).penalty(alphas, opened(cell)) is None


@pytest.mark.usefixtures("float64")
def test_a_draw_is_made_of_draws_of_the_variables() -> None:
    relaxation = Factorised(temperature=0.3, soften=0.1)
    relax, alphas = relaxation.of(CELL), torch.randn(relaxation.shape(CELL)).requires_grad_()
    exists = shares(CELL, alphas) > 0
    torch.manual_seed(3)
    made = relax.draw(alphas, opened(CELL), 20)
    torch.manual_seed(3)
    variables = draw(alphas, exists, 20, 0.3, 0.1)
    directions = torch.randn(20, len(CELL.edges), CELL.num_ops)
    for name in ("hard", "relaxed", "conditional", "corrected"):
        ours, values = getattr(made, name), getattr(variables, name)
        theirs = torch.stack([restated(CELL, sample) for sample in values])
        torch.testing.assert_close(ours, theirs)
        if name != "hard":
            pair = [torch.autograd.grad((x * directions).sum(), alphas, retain_graph=True)[0] for x in (ours, theirs)]
            torch.testing.assert_close(*pair)
            assert pair[0][exists].any()
            assert not pair[0][~exists].any()
    assert torch.equal(made.log_probability, variables.log_probability)
    assert torch.equal(made.hard.sum(dim=(1, 2)), torch.full((20,), 4.0))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("seed", [0, 1])
def test_the_estimators_are_right_of_slots_too(seed: int) -> None:
    torch.manual_seed(seed)
    count, relaxation = 50_000, Factorised()
    alphas = torch.randn(relaxation.shape(CELL))
    matrix = torch.randn(len(CELL.edges) * CELL.num_ops, 5)

    def loss(rows: Mapping[str, Tensor]) -> Tensor:
        return -torch.log_softmax(rows["cell"].flatten(1) @ matrix, dim=1)[:, 0]

    true = true_gradient(CELL, alphas, lambda rows: loss({"cell": rows.unsqueeze(0)})[0])

    def found(estimator: Estimator) -> Tensor:
        leaf = alphas.expand(count, *alphas.shape).clone().requires_grad_()
        draws = {"cell": relaxation.of(CELL).draw(leaf, opened(CELL), count)}
        return torch.autograd.grad(estimator(draws, loss, loss), leaf)[0] * count

    rebar, reinforce, gumbel = (found(estimator) for estimator in (Rebar(), Reinforce(), GumbelSoftmax()))
    assert errors({"cell": rebar}, {"cell": true}).max() < 4
    assert errors({"cell": reinforce}, {"cell": true}).max() < 4
    assert errors({"cell": gumbel}, {"cell": true}).max() > 10
    assert rebar.var(dim=0).sum() < reinforce.var(dim=0).sum()


def test_draws_and_their_penalty_wait_for_no_value() -> None:
    architecture, choices = Architecture(UNAS, Factorised(soften=0.1), 0.5), Choices.everything(UNAS)
    architecture(choices)  # what is made once
    with Waits() as waits:
        draws = architecture.draw(choices, 5)
        number = sum(own.corrected.square().sum() + own.log_probability.sum() for own in draws.values())
        number = number + architecture.penalty(choices) + sum(row.sum() for row in architecture(choices).values())
        torch.autograd.grad(number, list(architecture.parameters()))
    assert waits.count > 20
    assert waits.seen == []


class Convolutions(Cost):
    """The number of different convolutions, squared: no sum over edges, and two equal ones count once."""

    def measure(self, genotype: Genotype) -> float:
        (cell,) = genotype.cells
        return float(sum("conv" in edge.ops[0] for edge in cell.edges) ** 2)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("estimator", "is_right"), [(Rebar, True), (Reinforce, True), (GumbelSoftmax, False)])
def test_the_whole_step_is_the_gradient_over_all_architectures(estimator: type[Estimator], is_right: bool) -> None:
    criteria = [GeneralisationGap(0.5), Convolutions(target=3.0, coefficient=0.3)]
    module = search(
        TINY.name,
        init_channels=2,
        relaxation=Factorised(duplicate_weight=2.0),
        gradient=ScoreFunction(estimator(), criteria, cost_samples=400, surrogate_samples=200),
        alpha_init_std=0.7,
    )
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()
    batch, cell = pairs(100), CELL

    def loss(rows: Tensor) -> Tensor:
        losses = {}
        for part, own in pairs(1).items():
            logits = module.supernet(own.images, {"cell": rows})
            losses[part] = nn.functional.cross_entropy(logits, own.labels, reduction="none")
        value = (losses["train"] + 0.5 * (losses["val"] - losses["train"]).abs()).mean()
        twins = sum(bool((rows[list(cell.edges_into(node))] == 2).any()) for node in cell.nodes)
        return value + 0.3 * max(0.0, int((rows[:, 1:] > 0).sum()) ** 2 - 3.0) + 2.0 * twins

    true = true_gradient(cell, module.architecture.alphas["cell"], loss)
    found = torch.stack([estimate(module, batch, seed, 0) for seed in range(40)])
    varies = true != 0
    assert varies.sum() == 16
    assert true.abs().max() > 0.1
    away = (found.mean(dim=0) - true)[varies] * len(found) ** 0.5 / found.std(dim=0)[varies]
    assert (away.abs().max() < 4) == is_right, away


# ------------------------------------------------------------------------------------------------------ decisions


def of_parameters(alphas: Tensor) -> tuple[Architecture, Any]:
    """An architecture in which both cell types have these parameters, and the supernet that a rule sees."""
    architecture, choices = Architecture(UNAS, Factorised(), 0.0), Choices.everything(UNAS)
    with torch.no_grad():
        for own in architecture.alphas.values():
            own.copy_(alphas)
    return architecture, SimpleNamespace(
        space=UNAS, choices=choices, mixing=architecture, slots=architecture.slots, architecture=architecture
    )


def decided(alphas: Tensor, **settings: Any) -> tuple[Genotype, Any]:
    """What magnitude makes of one cell type's parameters, both cell types having them."""
    architecture, supernet = of_parameters(alphas)
    outcome = Magnitude(**settings).decide(supernet, 0, 0)
    assert leading(supernet) == Genotype.from_choices(UNAS, Magnitude().decide(supernet, 0, 0).choices)
    # What is decided stays so, with the weight 1 and without a derivative or a chance.
    rows, draws = architecture(outcome.choices), architecture.draw(outcome.choices, 3)
    for cell, row in rows.items():
        is_left = [[o in columns for o in range(7)] for columns in outcome.choices.of(cell)]
        assert torch.equal(row, torch.tensor(is_left).float())
        assert all(torch.equal(x, row.expand(3, -1, -1)) for x in draws[cell][:3])
        assert not draws[cell].log_probability.any()
    assert float(architecture.penalty(outcome.choices).detach()) == 0
    return Genotype.from_choices(UNAS, outcome.choices), outcome


def test_magnitude_keeps_the_likeliest_input_and_operation_of_each_slot() -> None:
    torch.manual_seed(0)
    cell = UNAS.cells[0]
    for _ in range(20):
        alphas = 3 * torch.randn(16, 7)
        own = shares(cell, alphas)
        expected: dict[int, list[tuple[int, int]]] = {}
        for row, node, edges in selectors(cell):
            pair = edges[int(own[row, : len(edges)].argmax())], int(own[row + 1].argmax())
            expected.setdefault(node, []).append(pair)
        genotype, outcome = decided(alphas)
        for node, (first, second) in expected.items():
            found = {
                (cell.edges_into(node)[e.source], UNAS_OP[e.ops[0]]) for e in genotype.cells[0].edges if e.node == node
            }
            if first != second:
                assert found == {first, second}
            else:
                assert first in found
                assert len(found) == 2
        assert [d.kind for d in outcome.decisions] == ["slot"] * 16
        assert Genotype.from_json(genotype.to_json()) == genotype


UNAS_OP = {op: o for o, op in enumerate(UNAS.cells[0].edges[0].ops)}


def test_slots_that_agree_keep_the_likeliest_two() -> None:
    alphas = torch.zeros(16, 7)
    # Both slots of the first node want the second input with operation 4; the first of them is less sure of its input.
    alphas[[0, 2], 1] = torch.tensor([0.5, 3.0])
    alphas[[1, 3], 4] = 2.0
    genotype, outcome = decided(alphas)
    first_node = [(edge.source, edge.ops[0]) for edge in genotype.cells[0].edges if edge.node == 2]
    assert first_node == [(0, "sep_conv_5x5"), (1, "sep_conv_5x5")]
    gives_way, stays = outcome.decisions[:2]
    assert [c.source for c in gives_way.candidates if c.chosen] == [0]
    assert [c.source for c in stays.candidates if c.chosen] == [1]
    alphas[[0, 2], 1] = 9.0
    alphas[1, 0] = 1.9  # now it is less sure of its operation
    genotype, _ = decided(alphas)
    first_node = [(edge.source, edge.ops[0]) for edge in genotype.cells[0].edges if edge.node == 2]
    assert first_node == [(1, "sep_conv_5x5"), (1, "skip_connect")]
    cell = genotype.cells[0]
    assert Genotype.from_json(genotype.to_json()) == genotype
    network = DiscreteNetwork(genotype, 3, 4, 5).eval()
    edges = [i for i, edge in enumerate(cell.edges) if edge.node == 2]
    assert network(torch.randn(2, 3, 16, 16))[0].shape == (2, 5)
    assert len({id(network.blocks[0].operation(e, 0)) for e in edges}) == 2


def test_slots_of_several_supernets_are_not_averaged() -> None:
    _, outcome = decided(torch.zeros(16, 7))
    with pytest.raises(InputError, match="The slots of nodes have no order"):
        average(UNAS, [outcome.decisions, outcome.decisions])


def test_a_threshold_is_for_slots() -> None:
    alphas = torch.zeros(16, 7)
    alphas[[0, 1], [1, 4]] = 5.0  # 0.993 * 0.961
    _, supernet = of_parameters(alphas)
    with pytest.raises(InputError, match="normal cell would read none of its inputs"):
        Magnitude(threshold=0.99).decide(supernet, 0, 0)
    genotype, _ = decided(alphas, threshold=0.9)
    assert [(e.node, e.source, e.ops[0]) for e in genotype.cells[0].edges] == [(2, 1, "sep_conv_5x5")]


def test_what_a_search_has_decided_in_part_is_expected_of_what_is_left() -> None:
    torch.manual_seed(0)
    relaxation, cell = Factorised(), UNAS.cells[0]
    relax, alphas = relaxation.of(cell), torch.randn(relaxation.shape(cell))
    whole, is_open = relax(alphas, opened(cell)), opened(cell)
    is_open[3, 1:] = False  # an edge of the second node has one operation left
    torch.testing.assert_close(relax(alphas, is_open)[3].sum(), whole[3].sum())
    assert not relax(alphas, is_open)[3, 1:].any()
    is_open[4] = False  # and another one is gone
    found = relax(alphas, is_open)
    assert not found[4].any()
    assert found[2:5].sum() == pytest.approx(2)
    torch.testing.assert_close(found[:2], whole[:2])
    torch.testing.assert_close(found[5:], whole[5:])


def test_hard_samples_are_architectures() -> None:
    torch.manual_seed(0)
    architecture, choices = Architecture(UNAS, Factorised(), 0.0), Choices.everything(UNAS)
    draws = architecture.draw(choices, 300)
    twins = 0
    for s, genotype in enumerate(genotypes(UNAS, {cell: own.hard for cell, own in draws.items()})):
        for cell in genotype.cells:
            hard = draws[cell.name].hard[s]
            assert Genotype.from_json(genotype.to_json()) == genotype
            found = {(edge.source, edge.node, edge.ops[0]) for edge in cell.edges}
            whole = UNAS.cell(cell.name)
            drawn = {(whole.edges[e].source, whole.edges[e].node, whole.edges[e].ops[o]) for e, o in hard.nonzero()}
            assert found == drawn
            twins += int((hard == 2).sum())
            assert len(cell.edges) == 8 - int((hard == 2).sum())
    assert 0 < twins < 0.1 * 300 * 8


# ------------------------------------------------------------------------------------------------------ the space


def test_the_space_has_the_edges_of_darts() -> None:
    for ours, theirs in zip(UNAS.cells, SPACES["darts"].cells, strict=True):
        assert [str(edge) for edge in ours.edges] == [str(edge) for edge in theirs.edges]
        assert (ours.name, ours.output, ours.num_inputs) == (theirs.name, theirs.output, theirs.num_inputs)


def test_the_published_cells_are_a_genotype(tmp_path: Path) -> None:
    path = tmp_path / "unas.txt"
    path.write_text(PUBLISHED)
    genotype = Genotype.load(path)
    assert genotype.space == "unas"
    normal = [(e.node, e.source, e.ops[0]) for e in genotype.cells[0].edges]
    assert normal[:3] == [(2, 0, "sep_conv_5x5"), (2, 0, "skip_connect"), (3, 0, "skip_connect")]
    assert Genotype.from_json(genotype.to_json()) == genotype
    # Of the paper's size: 3.3 million parameters.
    with torch.device("meta"):
        network = DiscreteNetwork(genotype, 20, 36, 10)
    assert 3.0e6 < sum(p.numel() for p in network.parameters()) < 3.6e6
    assert main(["draw", str(path), "-o", str(tmp_path / "unas.svg")]) == 0


def test_one_operation_stands_once_between_two_nodes() -> None:
    text = Genotype.from_darts(
        UNAS, [("skip_connect", 0), ("sep_conv_7x7", 0)] * 4, [("skip_connect", 0), ("sep_conv_3x3", 1)] * 4
    ).to_json()
    Genotype.from_json(text)
    with pytest.raises(InputError, match="an edge leads once through each operation from an earlier node"):
        Genotype.from_json(text.replace("sep_conv_7x7", "skip_connect"))
    with pytest.raises(InputError, match="an edge leads once from an earlier node"):
        Genotype.from_json(text.replace('"unas"', '"darts"').replace("sep_conv_7x7", "sep_conv_5x5"))


SCORES: dict[str, Any] = {"relaxation": Factorised(), "gradient": ScoreFunction(), "num_cells": 3}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: SearchModule("darts", **SCORES),
            "Factorised draws two inputs of each node.*use the space unas",
        ),
        (lambda: SearchModule("nasbench201", **SCORES), "nodes of this space cannot have such inputs"),
        (lambda: SearchModule("unas", **SCORES, partial_channels=2), "partial_channels adds to every edge"),
        (lambda: SearchModule("unas", **SCORES, auxiliary_skip="linear"), "auxiliary_skip adds to every edge"),
        (lambda: SearchModule("unas", **SCORES, edge_normalisation=True), "edge_normalisation gives edges"),
        (lambda: SearchModule("unas", relaxation=Factorised()), "Factorised draws an architecture for each picture"),
        (lambda: Factorised(duplicate_weight=-1), "duplicate_weight is -1"),
        (
            lambda: SearchModule(
                "unas",
                num_cells=3,
                relaxation=Sampled(),
                gradient=ScoreFunction(criteria=[CrossEntropy(), MultiplyAdds(3, 4, 1.0)]),
            ),
            "keep only 2 inputs of each node.*unas with the relaxation Factorised",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_rules_decide_whole_nodes_after_the_search() -> None:
    plan = SearchPlan(UNAS, 10, draws_inputs=True)
    for rule in (Magnitude(), LeaveOneOut(), Perturbation(interval=0)):
        assert set(schedule_of(rule, plan).points) == {10}
    with pytest.raises(InputError, match="Perturbation decides during the search or trains between decisions"):
        schedule_of(Perturbation(), plan)
    assert schedule_of(Perturbation(), SearchPlan(UNAS, 10)).tuning_epochs
    blank = SearchModule("unas", num_cells=3, relaxation=Factorised(), gradient=Fixed())
    blank.search_epochs = 10
    with pytest.raises(InputError, match="at their random start"):
        schedule_of(Magnitude(), blank.search_plan(is_over=False))


# ------------------------------------------------------------------------------------------------------ whole runs


def words(folder: Path, estimator: str = "Rebar", space: str = TINY.name, coefficient: float = 50.0) -> list[str]:
    """A search of factorised cells on digits under a number of multiply-adds."""
    adds = {"num_cells": 3, "init_channels": 2, "target": 0.005, "coefficient": coefficient, "size": 8}
    criteria = [
        {"class_path": "dartslight.criteria.GeneralisationGap"},
        {"class_path": "dartslight.criteria.MultiplyAdds", "init_args": adds},
    ]
    gradient = {
        "class_path": "dartslight.strategies.ScoreFunction",
        "init_args": {
            "estimator": {"class_path": f"dartslight.strategies.{estimator}"},
            "criteria": criteria,
            "cost_samples": 8,
            "surrogate_samples": 50,
        },
    }
    model = {"init_args": {"relaxation": "dartslight.strategies.Factorised", "gradient": gradient}}
    path = folder / f"{estimator}_{coefficient}.yaml"
    path.write_text(yaml.safe_dump({"model": model, "selection": "dartslight.selection.Magnitude"}))
    settings = [f"space={space}", "alpha_learning_rate=0.3", "alpha_init_std=0"]
    return [*QUICK, *(f"--model.{s}" for s in settings), "--config", str(path)]


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["fit", *words(tmp_path), "--checkpoint_every_n_batches=1", "--model.track_statistics=true"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main([*own, f"--trainer.default_root_dir={whole}"]) == 0
    for more in (["--trainer.max_steps=3"], [f"--ckpt_path={stopped}/version_0/checkpoints/last.ckpt"]):
        assert main([*own, f"--trainer.default_root_dir={stopped}", *more]) == 0
    run = newest(whole)
    assert same(run, newest(stopped))
    assert (run / "genotype.json").read_text() == (newest(stopped) / "genotype.json").read_text()
    assert [len(cell.edges) for cell in Genotype.load(run / "genotype.json").cells] == [4]
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(float(row["cost/multiply_adds"]) > 0 for row in rows)
    assert float(rows[-1]["surrogate_error/multiply_adds"]) >= 0
    with (run / "alphas.csv").open(newline="") as file:
        weights = [float(row["weight"]) for row in csv.DictReader(file) if row["epoch"] == "0"]
    assert sum(weights) == pytest.approx(4)
    capsys.readouterr()
    start = ["--trainer.callbacks=dartslight.callbacks.FreeStart", f"--trainer.default_root_dir={tmp_path / 'start'}"]
    assert main([*own, *start]) == 2
    assert "which Factorised does not have; leave it out." in capsys.readouterr().err


@pytest.mark.parametrize("estimator", ["Rebar", "Reinforce", "GumbelSoftmax"])
def test_a_cost_moves_the_expected_cost(tmp_path: Path, estimator: str) -> None:
    convolutions = []
    for coefficient in (0.0, 50.0):
        own = words(tmp_path, estimator, coefficient=coefficient)
        assert main(["fit", *own, f"--trainer.default_root_dir={tmp_path / str(coefficient)}"]) == 0
        state = torch.load(newest(tmp_path / str(coefficient)) / "checkpoints" / "last.ckpt", weights_only=True)
        alphas = state["state_dict"]["architecture.alphas.cell"]
        convolutions.append(float(restated(CELL, shares(CELL, alphas))[:, 1:].sum()))
    assert convolutions[1] < convolutions[0] - 0.3


@pytest.mark.slow
def test_a_supernet_of_unas_is_decided_shown_and_its_network_trained(tmp_path: Path) -> None:
    short = ["--data.max_pictures=16", "--data.batch_size=8", "--trainer.max_epochs=1"]
    own = [*words(tmp_path, space="unas"), *short]
    assert main(["fit", *own, f"--trainer.default_root_dir={tmp_path / 'run'}"]) == 0
    run = newest(tmp_path / "run")
    genotype = Genotype.load(run / "genotype.json")
    assert genotype.space == "unas"
    assert [len(cell.edges) for cell in genotype.cells] == [8, 8]
    for rule in ("LeaveOneOut", "Random"):
        select = ["select", f"--selection=dartslight.selection.{rule}", f"--supernet={run}/checkpoints/search.ckpt"]
        select += ["--trainer.enable_progress_bar=false", f"--trainer.default_root_dir={tmp_path / rule}"]
        assert main(select) == 0
        found = Genotype.load(newest(tmp_path / rule) / "genotype.json")
        assert [len(cell.edges) for cell in found.cells] == [8, 8]
    assert main(["report", str(run), "-o", str(tmp_path / "report.html")]) == 0
    assert main(["draw", str(run), "--alphas", "-o", str(tmp_path / "alphas.svg")]) == 0
    retrain = ["fit", *config("cifar10/retrain"), f"--model.genotype={run}/genotype.json", *short]
    retrain += ["--data=dartslight.data.Digits", "--model.num_cells=3", "--model.init_channels=2"]
    retrain += [f"--trainer.default_root_dir={tmp_path / 'retrained'}", "--trainer.enable_progress_bar=false"]
    assert main([*retrain, "--data.eval_batch_size=8"]) == 0


@pytest.mark.ddp
def test_two_processes_agree(tmp_path: Path, forks: Any) -> None:
    command = words_for(tmp_path, 2, *words(tmp_path)[len(QUICK) :], "--model.track_statistics=true")
    succeed(start_devices(forks, 2, tmp_path, main, command))
    a, b = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    for part in ("alphas", "weights"):
        assert all(torch.equal(a[part][k], b[part][k]) for k in a[part])
    assert a["alphas"]["alphas.cell"].abs().max() > 0.05  # it has learned
    assert a["choices"] == b["choices"]
    assert a["labels"] != b["labels"]
