"""Criteria: losses, costs and their surrogate, against formulas, independent counts and real tables."""

import csv
import gzip
import itertools
import os
import random
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import textbook
import torch
from test_estimators import errors, estimates, everything, true_gradient
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dartslight.criteria import (
    Cost,
    CrossEntropy,
    GeneralisationGap,
    Latency,
    MultiplyAdds,
    Surrogate,
    TableCost,
    ridge,
)
from dartslight.errors import InputError
from dartslight.genotype import Genotype
from dartslight.spaces import DARTS, NASBENCH201
from dartslight.spaces.nasbench201 import NASBENCH201_OPS
from dartslight.strategies import GumbelSoftmax, Rebar, draw

pytestmark = pytest.mark.usefixtures("float64")

DATA = os.environ.get("DARTSLIGHT_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="DARTSLIGHT_DATA is not set")

CONV = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|nor_conv_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|"
SKIP = CONV.replace("nor_conv_3x3", "skip_connect")
SETTINGS = {"num_cells": 3, "init_channels": 4, "target": 1.0}


class Given(Cost):
    """A cost by the number of the architecture."""

    def measure(self, genotype: Genotype) -> float:
        raise NotImplementedError


def lines(name: str) -> list[dict[str, str]]:
    with gzip.open(Path(DATA or "") / name, "rt") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------------------------------------- losses


def test_the_gap_counts_between_pairs_of_pictures() -> None:
    parts = {"train": torch.tensor([1.0, 2.0, 3.0]), "val": torch.tensor([1.5, 1.0, 3.0])}
    assert torch.equal(GeneralisationGap(0.5)(parts.__getitem__), torch.tensor([1.25, 2.5, 3.0]))
    assert torch.equal(GeneralisationGap(0.0)(parts.__getitem__), parts["train"])
    assert CrossEntropy()({"val": parts["val"]}.__getitem__) is parts["val"]  # and asks for no other
    assert CrossEntropy().differentiable
    assert GeneralisationGap().differentiable
    with pytest.raises(InputError, match="weight is -1"):
        GeneralisationGap(-1)


# -------------------------------------------------------------------------------------------------------------- costs


def test_a_cost_counts_above_its_target_and_more_from_step_to_step() -> None:
    cost = Given(target=10.0, coefficient=0.1, warmup_steps=4)
    costs = torch.tensor([8.0, 10.0, 15.0])
    for step, share in enumerate((0.0, 0.25, 0.5, 0.75, 1.0, 1.0)):
        torch.testing.assert_close(cost.loss(costs, step), torch.tensor([0.0, 0.0, 0.5 * share]))
    assert Given(10.0, 0.1).loss(costs, 0)[2] == 0.5
    assert not cost.differentiable


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Given(-1.0), "target is -1"),
        (lambda: Given(1.0, coefficient=float("nan")), "coefficient is nan"),
        (lambda: Given(1.0, warmup_steps=-1), "warmup_steps is -1"),
        (lambda: MultiplyAdds(**SETTINGS, size=0), "size is 0"),
        (lambda: Latency(**SETTINGS, repeats=0), "repeats is 0"),
        (lambda: Latency(**SETTINGS, batch_size=0), "batch_size is 0"),
        (lambda: MultiplyAdds(4, 4, 1.0).measure(Genotype.from_nasbench201(SKIP)), "num_cells is 4.*multiple of 3"),
    ],
)
def test_wrong_costs_are_refused(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def written(folder: Path) -> str:
    path = folder / "table.csv"
    path.write_text(f"arch,phone,watch,note\n{CONV},20.5,7,slow\n{SKIP},1.25,3,fast\n")
    return str(path)


def test_a_table_tells_the_cost_of_an_architecture(tmp_path: Path) -> None:
    cost = TableCost(written(tmp_path), "phone", target=20.0, coefficient=2.0)
    assert cost.measure(Genotype.from_nasbench201(CONV)) == 20.5
    assert cost.measure(Genotype.from_nasbench201(SKIP)) == 1.25
    assert cost.loss(torch.tensor([20.5, 1.25]), 0).tolist() == [1.0, 0.0]
    with pytest.raises(InputError, match="does not hold the architecture"):
        cost.measure(Genotype.from_nasbench201(CONV.replace("3~2", "1~2").replace("nor_conv_3x1", "none")))
    with pytest.raises(InputError, match=r"no column of numbers 'note'; give one of phone, watch\."):
        TableCost(written(tmp_path), "note", 20.0)
    pairs = [("skip_connect", 0), ("skip_connect", 1)] * 4
    with pytest.raises(InputError, match="of the space 'darts', but only"):
        cost.measure(Genotype.from_darts(DARTS, pairs, pairs))


@needs_data
def test_real_latencies_are_those_of_the_file() -> None:
    rows = lines("nasbench201_latency.csv.gz")
    for column in ("raspi4", "2080ti_1"):
        cost = TableCost(str(Path(DATA or "") / "nasbench201_latency.csv.gz"), column, target=20.0)
        for row in random.Random(0).sample(rows, 50):
            assert cost.measure(Genotype.from_nasbench201(row["arch"])) == float(row[column])


@needs_data
def test_multiply_adds_are_those_of_the_benchmark() -> None:
    """The benchmark counts the 10 additions of the classifier's bias as well."""
    counted = MultiplyAdds(num_cells=15, init_channels=16, target=0.0)
    for row in random.Random(0).sample(lines("nasbench201.csv.gz"), 40):
        millions = counted.measure(Genotype.from_nasbench201(row["arch"]))
        assert round(1e6 * millions) + 10 == int(row["macs"])


def test_multiply_adds_are_those_that_the_library_counts_in_the_textbook() -> None:
    ours = MultiplyAdds(num_cells=4, init_channels=6, target=0.0, size=16, num_classes=7)
    rng = random.Random(0)
    for _ in range(4):
        cells = []
        for _ in range(2):
            sources = [source for node in range(2, 6) for source in sorted(rng.sample(range(node), 2))]
            cells.append([(rng.choice(DARTS.cells[0].edges[0].ops), source) for source in sources])
        book = textbook.Discrete(
            "darts",
            {
                name: [(source, 2 + i // 2, op) for i, (op, source) in enumerate(pairs)]
                for name, pairs in zip(("normal", "reduction"), cells, strict=True)
            },
            6,
            4,
            7,
        ).eval()
        with FlopCounterMode(display=False) as flops:
            book(torch.randn(1, 3, 16, 16))
        genotype = Genotype.from_darts(DARTS, *cells)
        assert round(2e6 * ours.measure(genotype)) == flops.get_total_flops()
        assert ours.measure(genotype) == MultiplyAdds(4, 6, 0.0, size=16, num_classes=7).measure(genotype)


def test_latency_is_that_of_the_machine() -> None:
    torch.set_default_dtype(torch.float32)
    cost = Latency(num_cells=6, init_channels=16, target=1.0, batch_size=8, repeats=5)
    before = torch.get_rng_state()
    began = time.perf_counter()
    slow, fast = (Genotype.from_nasbench201(arch) for arch in (CONV, SKIP))
    found = cost.measure(slow)
    assert found < 1e3 * (time.perf_counter() - began) / 3  # of 5 passes, 3 take at least the median
    # The smallest of some, because others may use the machine.
    slowest, fastest = (min(cost.measure(genotype) for _ in range(3)) for genotype in (slow, fast))
    assert 0 < fastest < slowest / 2
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------------------------------------------------- surrogate


def samples(count: int, *shape: int) -> Tensor:
    """Hard samples of which all operations are equally likely."""
    return draw(torch.zeros(shape), torch.ones(shape, dtype=torch.bool), count, 1.0).hard


def test_ridge_is_the_least_squares_of_the_library() -> None:
    features, values = torch.randn(40, 6), torch.randn(40)
    for strength in (1.0, 0.1):
        augmented = np.vstack([features.numpy(), strength**0.5 * np.eye(6)])
        expected, *_ = np.linalg.lstsq(augmented, np.append(values.numpy(), np.zeros(6)), rcond=None)
        np.testing.assert_allclose(ridge(features, values, strength).numpy(), expected, atol=1e-12)


def test_the_surrogate_is_a_ridge_regression_on_four_fifths() -> None:
    rows = {"normal": samples(50, 3, 4), "reduction": samples(50, 2, 3)}
    costs = 5 + rows["normal"].flatten(1) @ torch.rand(12) + rows["reduction"].flatten(1) @ torch.rand(6)
    costs = costs + costs.square() / 10
    surrogate = Surrogate(18)
    assert surrogate.error.isnan()
    surrogate.fit(rows, costs)
    table = np.hstack([rows["normal"].flatten(1), rows["reduction"].flatten(1), np.ones((50, 1))])
    weights = np.linalg.inv(table[:40].T @ table[:40] + np.eye(19)) @ table[:40].T @ costs[:40].numpy()
    np.testing.assert_allclose(surrogate(rows).numpy(), table @ weights, atol=1e-9)
    expected = np.abs(table[40:] @ weights - costs[40:].numpy()).mean()
    assert float(surrogate.error) == pytest.approx(expected, abs=1e-9)
    half = {cell: row / 2 for cell, row in rows.items()}
    np.testing.assert_allclose(surrogate(half).numpy(), (table @ weights + weights[-1]) / 2, atol=1e-9)
    other = Surrogate(18)
    other.load_state_dict(surrogate.state_dict())
    assert torch.equal(other(rows), surrogate(rows))
    assert other.error == surrogate.error


def test_what_is_linear_is_learned() -> None:
    rows = {"cell": samples(5000, 3, 4)}
    surrogate = Surrogate(12)
    surrogate.fit(rows, 5 + 3 * (rows["cell"].flatten(1) @ torch.rand(12)))
    assert surrogate.error < 0.02


@pytest.mark.parametrize("kind", ["fitted", "wrong"])
def test_the_error_of_a_surrogate_is_no_error_of_the_estimate(kind: str) -> None:
    """The costs of 64 architectures are of no form at all, and what is fitted to 20 of them is far off."""
    alphas = {"cell": torch.randn(3, 4)}
    costs, places = 20 * torch.rand(64), torch.tensor([16.0, 4.0, 1.0])
    cost = Given(target=8.0, coefficient=0.1, warmup_steps=10)

    def measured(rows: Mapping[str, Tensor]) -> Tensor:
        return costs[(rows["cell"].argmax(dim=2).to(places.dtype) @ places).long()]

    surrogate = Surrogate(12)
    if kind == "fitted":
        surrogate.fit({"cell": (few := samples(20, 3, 4))}, measured({"cell": few}))
    else:
        surrogate.load_state_dict({"_weights": 10 * torch.randn(13), "_error": torch.tensor(0.0)})

    def discrete(rows: Mapping[str, Tensor]) -> Tensor:
        return cost.loss(measured(rows), step=5)

    def relaxed(rows: Mapping[str, Tensor]) -> Tensor:
        return cost.loss(surrogate(rows), step=5)

    true = true_gradient(alphas, everything(alphas), discrete)
    assert errors(estimates(Rebar(), alphas, everything(alphas), discrete, relaxed), true).max() < 4
    assert errors(estimates(GumbelSoftmax(), alphas, everything(alphas), discrete, relaxed), true).max() > 20


@needs_data
def test_the_gradient_of_a_real_latency_is_that_over_all_architectures() -> None:
    cost = TableCost(str(Path(DATA or "") / "nasbench201_latency.csv.gz"), "raspi4", target=20.0)
    (cell,) = NASBENCH201.cells
    shape, places = (len(cell.edges), len(NASBENCH201_OPS)), 5 ** torch.arange(5, -1, -1)
    groups = [[ops[:1], ops[1:3], ops[3:]] for ops in itertools.product(NASBENCH201_OPS, repeat=shape[0])]
    archs = ["+".join("".join(f"|{op}~{i}" for i, op in enumerate(g)) + "|" for g in own) for own in groups]
    latencies = torch.tensor([cost.measure(Genotype.from_nasbench201(arch)) for arch in archs])

    def measured(rows: Mapping[str, Tensor]) -> Tensor:
        return latencies[(rows["cell"].argmax(dim=2) * places).sum(dim=1)]

    surrogate = Surrogate(shape[0] * shape[1])
    rows = {"cell": samples(2000, *shape)}
    surrogate.fit(rows, measured(rows))
    plain = (measured(rows) - measured(rows).mean()).abs().mean()
    assert surrogate.error < plain / 2
    alphas = {"cell": 0.5 * torch.randn(shape)}

    def discrete(rows: Mapping[str, Tensor]) -> Tensor:
        return cost.loss(measured(rows), step=0)

    def relaxed(rows: Mapping[str, Tensor]) -> Tensor:
        return cost.loss(surrogate(rows), step=0)

    true = true_gradient(alphas, everything(alphas), discrete)
    assert errors(estimates(Rebar(), alphas, everything(alphas), discrete, relaxed), true).max() < 4
    assert errors(estimates(GumbelSoftmax(), alphas, everything(alphas), discrete, relaxed), true).max() > 20
