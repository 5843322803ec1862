"""What can be watched in a search: the formulas, and that watching changes no bit."""

import copy
import csv
import itertools
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from scipy.stats import spearmanr
from test_strategies_in_training import CONFIGS, MAGNITUDE, QUICK, fit, newest
from torch import Tensor, nn

from dartslight.callbacks import StrengthStudy
from dartslight.callbacks.live_supernet import LiveSupernet
from dartslight.callbacks.scores_file import ScoresFile
from dartslight.callbacks.trial import trial
from dartslight.cli import main
from dartslight.genotype import Genotype
from dartslight.modules import SearchModule
from dartslight.nets import Supernet
from dartslight.nets.supernet import spread
from dartslight.run_folder import folder_of
from dartslight.seeding import derived_seed
from dartslight.selection import Evaluation, Measurement
from dartslight.selection.statistics import (
    count_skips,
    row_entropy,
    skip_gap,
    spread_of_sets,
    within_group_correlation,
)
from dartslight.selection.strength import (
    Strength,
    draw_edges,
    measure_strengths,
    strength_correlations,
    strength_csv,
)
from dartslight.spaces import DARTS, NASBENCH201, S1, S4, Choices

DIAGNOSTICS = CONFIGS / "callbacks" / "diagnostics.yaml"

# --------------------------------------------------------------------------------------------------------- formulas


def test_the_skip_gap_is_that_of_edges_with_both() -> None:
    # none, skip_connect, nor_conv_1x1, nor_conv_3x3, avg_pool_3x3
    weights = {"cell": np.array([[0.1, 0.5, 0.1, 0.2, 0.1]] * 6)}
    everything = Choices.everything(NASBENCH201)
    assert skip_gap(NASBENCH201, everything, weights) == pytest.approx(0.5 - 0.15)
    weights["cell"][0] = [0, 0.2, 0.6, 0.0, 0.2]
    assert skip_gap(NASBENCH201, everything, weights) == pytest.approx((5 * 0.35 + (0.2 - 0.3)) / 6)
    # Without the 1x1 on edge 0 its 3x3 alone is compared; without its skip, or decided, the edge does not count.
    assert skip_gap(NASBENCH201, everything.close(("cell", 0), 2), weights) == pytest.approx((5 * 0.35 + 0.2) / 6)
    assert skip_gap(NASBENCH201, everything.close(("cell", 0), 1), weights) == pytest.approx(0.35)
    assert skip_gap(NASBENCH201, everything.decide(("cell", 0), 1), weights) == pytest.approx(0.35)
    assert skip_gap(S4, Choices.everything(S4), dict.fromkeys(("normal", "reduction"), np.ones((14, 2)))) is None


def test_the_skip_gap_takes_all_cell_types_together() -> None:
    """S1 has edges with a skip beside a pooling, which do not count."""
    rng = np.random.default_rng(0)
    weights = {cell.name: rng.random((14, 2)) for cell in S1.cells}
    gaps = [
        row[edge.ops.index("skip_connect")] - row[1 - edge.ops.index("skip_connect")]
        for cell in S1.cells
        for edge, row in zip(cell.edges, weights[cell.name], strict=True)
        if "skip_connect" in edge.ops and any("conv" in op for op in edge.ops)
    ]
    assert 0 < len(gaps) < 28
    assert skip_gap(S1, Choices.everything(S1), weights) == pytest.approx(sum(gaps) / len(gaps))


def test_the_entropy_is_one_where_all_are_alike_and_zero_where_one_is_left() -> None:
    everything = Choices.everything(NASBENCH201)
    assert row_entropy(everything, {"cell": np.full((6, 5), 0.2)}) == pytest.approx(1)
    assert row_entropy(everything, {"cell": np.full((6, 5), 0.7)}) == pytest.approx(1)  # sigmoids do not sum to 1
    assert row_entropy(everything, {"cell": np.eye(5)[[0, 1, 2, 3, 4, 0]]}) == 0
    rows = np.random.default_rng(0).random((6, 5))
    bits = []
    for row in rows:
        p = row / row.sum()
        bits.append(-sum(x * math.log2(x) for x in p) / math.log2(5))
    assert row_entropy(everything, {"cell": rows}) == pytest.approx(sum(bits) / 6)
    # A decided edge counts as 0, one that is gone not at all, and only open operations share.
    choices = everything.decide(("cell", 0), 3).drop([("cell", 1)]).close(("cell", 2), 0)
    p = rows[2, 1:] / rows[2, 1:].sum()
    bits[2] = -sum(x * math.log2(x) for x in p) / math.log2(4)
    assert row_entropy(choices, {"cell": rows}) == pytest.approx((0 + sum(bits[2:])) / 5)


def test_skips_are_counted_for_each_cell_type() -> None:
    genotype = Genotype.from_darts(
        DARTS,
        [("skip_connect", 0), ("sep_conv_3x3", 1)] * 3 + [("skip_connect", 0), ("skip_connect", 1)],
        [("max_pool_3x3", 0), ("sep_conv_3x3", 1)] * 4,
    )
    assert count_skips(genotype) == {"normal": 5, "reduction": 0}


def test_the_spread_is_that_of_the_means_of_sets() -> None:
    values = np.random.default_rng(0).random(103)
    means = [values[i : i + 25].mean() for i in (0, 25, 50, 75)]
    mean, sigma = spread_of_sets([values], 4)
    assert mean == pytest.approx(sum(means) / 4)
    assert sigma == pytest.approx(math.sqrt(sum((m - mean) ** 2 for m in means) / 3))
    assert spread_of_sets([values[:25], values[25:50]], 2)[1] == pytest.approx(abs(means[0] - means[1]) / math.sqrt(2))


def test_the_correlation_of_one_group_is_spearmans() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(4, size=(2, 7)).astype(float).tolist()  # with ties
        assert within_group_correlation([a], [b]) == pytest.approx(spearmanr(a, b).statistic)


def test_pooled_correlations_ignore_what_differs_between_groups() -> None:
    # Alike within each group, opposite between them.
    assert within_group_correlation([[1, 2, 3], [11, 12]], [[31, 32, 33], [1, 2]]) == pytest.approx(1)
    # With two members each it is how many agree less how many do not.
    a, b = [[0, 1]] * 4, [[0, 1], [0, 1], [0, 1], [1, 0]]
    assert within_group_correlation(a, b) == pytest.approx((3 - 1) / 4)
    assert within_group_correlation([[1, 1]], [[1, 2]]) is None
    assert within_group_correlation([], []) is None


# ------------------------------------------------------------------------------------------------------ strength


class Scripted:
    """A supernet whose loss is told by what is open on its edges."""

    space, memory = NASBENCH201, {}
    choices = Choices.everything(NASBENCH201)

    def mixing(self, choices: Choices) -> dict[str, Tensor]:
        return {"cell": torch.arange(30.0).view(6, 5) / 100}

    def measure(self, variants: Any, evaluation: Evaluation, race: Any = None) -> list[Measurement]:
        losses = [torch.tensor([1.0, 3.0]) + self.missed(v.choices) for v in variants]
        return [Measurement(loss.double(), torch.ones(2), torch.zeros(2), 1) for loss in losses]

    @staticmethod
    def missed(choices: Choices) -> float:
        """What is closed on edge e and operation o costs (o - 1)**2 * (e + 1)."""
        edges = enumerate(choices.of("cell"))
        return float(sum((e + 1) * (o - 1) ** 2 for e, columns in edges for o in range(5) if o not in columns))


def test_strengths_are_measured_operation_by_operation() -> None:
    asked = []

    def tuned_accuracy(choices: Choices) -> float:
        asked.append(choices)
        return len(asked) / 100

    evaluation = Evaluation(False, None, "batch_frozen", 0)
    found = measure_strengths(Scripted(), [("cell", 1), ("cell", 3)], evaluation, tuned_accuracy)
    assert [(s.edge, s.op) for s in found] == [
        (edge, op) for edge in ("2<-0", "3<-0") for op in NASBENCH201.cells[0].edges[0].ops
    ]
    assert [s.mixing_weight for s in found] == pytest.approx(
        [0.05, 0.06, 0.07, 0.08, 0.09, 0.15, 0.16, 0.17, 0.18, 0.19]
    )
    assert [s.perturbation_score for s in found] == [2, 0, 2, 8, 18, 4, 0, 4, 16, 36]
    everything = Choices.everything(NASBENCH201)
    assert asked == [everything.decide(("cell", e), o) for e in (1, 3) for o in range(5)]
    correlations = strength_correlations(found)
    assert correlations["mixing_weight"] == pytest.approx(1)
    assert correlations["perturbation_score"] == pytest.approx(spearmanr([2, 0, 2, 8, 18], range(5)).statistic)
    # On one edge the ranks of the weights are those of the accuracies, which were told in ascending order.
    assert correlations["weight_and_score"] == correlations["perturbation_score"]
    turned = [replace(s, mixing_weight=-s.perturbation_score) for s in found]
    assert strength_correlations(turned)["weight_and_score"] == pytest.approx(-1)
    rows = list(csv.DictReader(strength_csv(found).splitlines()))
    assert [float(row["discretisation_accuracy"]) for row in rows] == [i / 100 for i in range(1, 11)]
    assert rows[0]["cell"] == "cell"


def test_edges_are_drawn_from_the_undecided_ones() -> None:
    choices = Choices.everything(DARTS).decide(("normal", 0), 1).drop([("reduction", 13)])
    drawn = [draw_edges(choices, 3, seed) for seed in range(60)]
    assert all(len(set(keys)) == 3 and keys == sorted(keys) for keys in drawn)
    seen = {key for keys in drawn for key in keys}
    assert len(seen) == 26
    assert not seen & {("normal", 0), ("reduction", 13)}
    assert draw_edges(choices, 3, 0) == drawn[0] != drawn[1]
    assert len(draw_edges(choices, 99, 0)) == 26
    assert set(strength_correlations([]).values()) == {None}
    assert strength_csv([Strength("cell", "1<-0", "none", 0.5, 0.0, 0.1)]).count("\n") == 2


# -------------------------------------------------------------------------------------------------- edges exchanged


def test_exchanged_edges_read_and_feed_each_others_nodes() -> None:
    """Against a cell whose description and operations were exchanged by hand."""
    torch.manual_seed(0)
    net = Supernet(NASBENCH201, 3, 4, 3, track_statistics=False).double()
    mixing = {"cell": torch.rand(6, 5, dtype=torch.float64)}
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    cells = [block for block in net.blocks if hasattr(block, "exchanged")]
    before = net(images, mixing)
    with cells[0].exchanged(0, 4), cells[2].exchanged(1, 3):
        found = net(images, mixing)
    assert torch.equal(net(images, mixing), before)

    def exchanged_by_hand(cell: Any, a: int, b: int) -> Any:
        order = list(range(6))
        order[a], order[b] = b, a
        keys = cell._keys

        def forward(inputs: Any, weights: Any, columns: Any = None, drop: Any = None) -> Any:
            cell._keys = [keys[e] for e in order]
            try:
                return type(cell).forward(cell, inputs, [weights[e] for e in order], columns)
            finally:
                cell._keys = keys

        return forward

    run = {id(cells[0]): exchanged_by_hand(cells[0], 0, 4), id(cells[2]): exchanged_by_hand(cells[2], 1, 3)}
    plain = {id(cell): cell for cell in cells}
    states = net.advance(
        net.start(images),
        range(len(net.blocks)),
        lambda block, cell, inputs: run.get(id(cell), plain[id(cell)])(inputs, spread(mixing["cell"], 4 * block.width)),
    )
    torch.testing.assert_close(found, net.classify(states[1]))
    assert not torch.allclose(found, before)


def test_only_edges_of_one_shape_can_be_exchanged() -> None:
    net = Supernet(DARTS, 3, 4, 3)
    normal, reduction, _ = net.blocks
    assert normal.exchangeable(range(14)) == list(itertools.combinations(range(14), 2))
    of_inputs = [e for e, edge in enumerate(DARTS.cells[1].edges) if edge.source < 2]
    others = [e for e in range(14) if e not in of_inputs]
    pairs = [*itertools.combinations(of_inputs, 2), *itertools.combinations(others, 2)]
    assert sorted(reduction.exchangeable(range(14))) == sorted(pairs)
    assert normal.exchangeable([3]) == []
    images = torch.randn(2, 3, 8, 8)
    mixing = {cell.name: torch.rand(14, 7) for cell in DARTS.cells}
    for a, b in (pairs[0], pairs[-1]):
        with reduction.exchanged(a, b):
            assert net(images, mixing).shape == (2, 3)


# ------------------------------------------------------------------------------------------------------- whole runs


def module_at_hand() -> SearchModule:
    module = SearchModule("s2", num_cells=3, init_channels=2)
    module._trainer = SimpleNamespace(datamodule=SimpleNamespace(has_val=True, num_classes=10))
    module.configure_model()
    return module


def test_nothing_is_left_of_a_trial() -> None:
    module = module_at_hand()
    weights = list(module.supernet.parameters())
    weights[0].grad = torch.ones_like(weights[0])
    before = {k: v.clone() for k, v in module.supernet.state_dict().items()}
    state = torch.get_rng_state()

    def disturb() -> None:
        images = torch.randn(4, 3, 8, 8)
        module.supernet(images, module.architecture(module.choices)).sum().backward()
        torch.optim.SGD(weights, 0.1).step()
        assert not all(torch.equal(v, before[k]) for k, v in module.supernet.state_dict().items())

    with trial(module):
        disturb()

    @trial(module)
    def fail() -> None:
        disturb()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert all(torch.equal(v, before[k]) for k, v in module.supernet.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weights[0].grad, torch.ones_like(weights[0]))
    assert all(w.grad is None for w in weights[1:])


def quick_diagnostics(folder: Path) -> Path:
    """The shipped configuration with less of everything."""
    config = yaml.safe_load(DIAGNOSTICS.read_text())
    small = {"NoiseFloor": {"sets": 2}, "EdgeShuffle": {"draws": 3}, "StrengthStudy": {"edges": 1, "tune_batches": 2}}
    for callback in config["trainer"]["callbacks"]:
        name = callback["class_path"].rpartition(".")[2]
        callback.setdefault("init_args", {}).update(small.get(name, {}))
    path = folder / "diagnostics.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def bits(folder: Path, name: str = "last.ckpt") -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(folder / "checkpoints" / name, weights_only=True)["state_dict"]
    return state


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    "strategy",
    [
        ["--model.track_statistics=true"],
        ["--model.relaxation=dartslight.strategies.Gumbel", "--model.partial_channels=2", "--model.init_channels=4"],
    ],
    ids=["softmax", "gumbel"],
)
def test_watching_changes_no_bit(strategy: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*strategy, "--selection.interval=1", "--selection.eval_batches=1", "--model.alpha_learning_rate=0.1"]
    alone = fit(tmp_path / "alone", *options)
    capsys.readouterr()
    watched = fit(tmp_path / "watched", *options, "--config", str(quick_diagnostics(tmp_path)))
    out = capsys.readouterr().out
    for name in ("search.ckpt", "last.ckpt"):
        a, b = bits(alone, name), bits(watched, name)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a)
    assert (alone / "genotype.json").read_text() == (watched / "genotype.json").read_text()

    metrics, before = table(watched / "metrics.csv"), table(alone / "metrics.csv")
    assert [{k: row[k] for k in before[0]} for row in metrics] == before
    assert len(metrics) == 2 + 5
    assert all(0 <= float(row["architecture/entropy"]) <= 1 for row in metrics)
    assert all(0 <= float(row["architecture/skips_cell"]) <= 6 for row in metrics)
    assert [bool(row["curvature/largest_eigenvalue"]) for row in metrics] == [False, True] * 3 + [False]
    assert all(float(row["noise/loss_sigma"]) > 0 for row in metrics)
    assert metrics[0]["edge_shuffle/before"] == ""
    assert metrics[2]["edge_shuffle/before"] == ""
    assert 0 <= float(metrics[1]["edge_shuffle/after"]) <= 1

    (cell,) = NASBENCH201.cells
    rows = table(watched / "strength.csv")
    assert [row["op"] for row in rows] == list(cell.edges[0].ops)
    assert len({row["edge"] for row in rows}) == 1
    assert sum(float(row["mixing_weight"]) for row in rows) == pytest.approx(1, abs=1e-5)
    assert all(0 <= float(row["discretisation_accuracy"]) <= 1 for row in rows)
    assert out.count("EdgeShuffle: validation accuracy") == 1
    assert out.count("StrengthStudy: rank correlation") == 1


def test_a_finished_supernet_is_studied_when_it_is_selected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(quick_diagnostics(tmp_path))
    searched = fit(tmp_path / "fit", MAGNITUDE, "--config", config)
    metrics = table(searched / "metrics.csv")
    # Started again, a finished run repeats nothing.
    assert main(["fit", "--ckpt_path", str(searched / "checkpoints" / "last.ckpt")]) == 0
    assert capsys.readouterr().out.count("EdgeShuffle: validation accuracy") == 1
    assert table(searched / "metrics.csv") == metrics
    supernet = f"--supernet={searched / 'checkpoints' / 'search.ckpt'}"
    root = f"--trainer.default_root_dir={tmp_path / 'select'}"
    logger = ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={tmp_path}", "--trainer.logger.name=other"]
    assert main(["select", supernet, root, MAGNITUDE, "--config", config, *logger]) == 0
    assert capsys.readouterr().out.count("EdgeShuffle: validation accuracy") == 1
    selected = newest(tmp_path / "select")
    assert (selected / "strength.csv").read_text() == (searched / "strength.csv").read_text()
    # No epoch was needed, and all that was seen is in the metrics of every logger, as at the end of the search.
    expected = {k: v for k, v in metrics[-1].items() if "/" in k and not k.startswith(("train/", "val/"))}
    assert {k.partition("/")[0] for k in expected} == {"architecture", "curvature", "noise", "edge_shuffle", "strength"}
    for path in (selected / "metrics.csv", newest(tmp_path / "other") / "metrics.csv"):
        rows = table(path)
        assert {row["step"] for row in rows} == {"4"}
        found = {k: float(v) for row in rows for k, v in row.items() if v and k != "step"}
        assert found == pytest.approx({k: float(v) for k, v in expected.items()})
    assert len(table(selected / "metrics.csv")) == 1


class Retold(Callback):
    """Compares the study of a run with a plain restatement on a copy of its supernet."""

    def __init__(self, tune: dict[str, int]) -> None:
        self.tune, self.found, self.expected = tune, [], []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        live = LiveSupernet(trainer, pl_module, "study", ScoresFile(None), {}, trainer.current_epoch + 1)
        study = StrengthStudy(edges=1, tune_learning_rate=0.1, **self.tune)
        study.study(live)
        rows = table(folder_of(trainer).path / "strength.csv")
        self.found = [float(row["discretisation_accuracy"]) for row in rows]
        edge = [str(edge) for edge in NASBENCH201.cells[0].edges].index(rows[0]["edge"])
        self.expected = [self.accuracy(trainer, pl_module, edge, o) for o in range(5)]

    def accuracy(self, trainer: Trainer, module: Any, edge: int, op: int) -> float:
        net, data = copy.deepcopy(module.supernet), trainer.datamodule
        with torch.no_grad():
            mixing = torch.softmax(module.architecture.alphas["cell"], dim=1)
            mixing[edge] = torch.eye(5)[op]
        optimizer = torch.optim.SGD(net.parameters(), 0.1, 0.9, weight_decay=3e-4)
        epochs = self.tune.get("tune_epochs", 2)
        for epoch in range(epochs):
            loader = data.train_dataloader()
            loader.set_epoch(1 + epoch)
            for step, batch in enumerate(loader):
                if 2 * epoch + step >= self.tune.get("tune_batches", 99):
                    break
                part = data.on_after_batch_transfer(batch["train"], 0)
                optimizer.zero_grad()
                # All operations are computed, those that are closed with the weight 0.
                nn.functional.cross_entropy(net(part.images, {"cell": mixing}), part.labels).backward()
                for e, cell in itertools.product(range(6), net.blocks):
                    if e == edge and hasattr(cell, "operation"):
                        for o in set(range(5)) - {op}:
                            for w in cell.operation(e, o).parameters():
                                w.grad = None  # neither decayed
                nn.utils.clip_grad_norm_(net.parameters(), 5.0)
                optimizer.step()
        seed = derived_seed(0, 55)
        pictures = data.selection_batches(augmented=False, seed=seed)
        right = []
        for b in range(len(pictures)):
            part = data.on_after_batch_transfer(pictures.batch(b), 0)
            with torch.no_grad():
                right.append((net(part.images, {"cell": mixing}).argmax(1) == part.labels).float())
        return float(torch.cat(right).mean())


@pytest.mark.parametrize("tune", [{"tune_batches": 3}, {"tune_epochs": 2}])
def test_the_strength_is_the_accuracy_after_plain_fine_tuning(
    tune: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    retold = Retold(tune)
    monkeypatch.setattr("dartslight.training_cli.RunCheckpoints", lambda *_: retold)
    fit(tmp_path, "--trainer.max_epochs=1", "--selection=null", "--data.max_pictures=128", "--data.batch_size=32")
    assert retold.found == pytest.approx(retold.expected, abs=0.017)  # at most one picture of 64, by rounding
    assert len(set(retold.found)) > 1


def test_the_noise_of_resampled_sets_is_that_of_their_order_alone(tmp_path: Path) -> None:
    """With running statistics out of play the sets are the same pictures in other batches."""
    config = {"class_path": "dartslight.callbacks.NoiseFloor", "init_args": {"draw": "resampled", "sets": 3}}
    path = tmp_path / "noise.yaml"
    path.write_text(yaml.safe_dump({"trainer": {"callbacks": [config]}}))
    words = ["--config", str(path), "--trainer.max_epochs=1", MAGNITUDE, "--data.batch_size=32"]
    (row,) = table(fit(tmp_path / "one", *words) / "metrics.csv")
    # 32 pictures of the validation half in one batch, whose statistics do not depend on their order.
    assert float(row["noise/loss_sigma"]) < 1e-6
    assert float(row["noise/accuracy_sigma"]) == 0
    (row,) = table(fit(tmp_path / "several", *words[:-1], "--data.batch_size=8") / "metrics.csv")
    assert float(row["noise/loss_sigma"]) > 1e-4


def test_what_is_no_search_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fit(tmp_path / "fit", "--trainer.max_epochs=1", MAGNITUDE)
    retrain = ["--config", str(CONFIGS / "cifar10" / "retrain_small.yaml"), "--data=dartslight.data.Digits"]
    retrain += [f"--model.genotype={folder / 'genotype.json'}", f"--trainer.default_root_dir={tmp_path / 'no'}"]
    capsys.readouterr()
    assert main(["fit", *retrain, "--trainer.callbacks=dartslight.callbacks.Curvature"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("dartslight: The callback Curvature watches a search")
    assert error.count("\n") == 1
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("name", "option"),
    [("NoiseFloor", "sets=1"), ("EdgeShuffle", "draws=0"), ("StrengthStudy", "edges=0"), ("Curvature", "batches=0")],
)
def test_settings_that_cannot_be_are_refused(name: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"--trainer.callbacks=dartslight.callbacks.{name}", f"--trainer.callbacks.{option}"]
    assert main(["fit", *QUICK, *words]) == 2
    assert (
        f"{option.partition('=')[0]} is {option.partition('=')[2]}, but it must be at least" in capsys.readouterr().err
    )


def test_more_sets_than_pictures_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--trainer.callbacks=dartslight.callbacks.NoiseFloor", "--trainer.callbacks.sets=33"]
    assert main(["fit", *QUICK, f"--trainer.default_root_dir={tmp_path}", *words]) == 2
    assert "sets is 33, but NoiseFloor has 32 pictures" in capsys.readouterr().err


def test_the_shipped_configuration_is_parsed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", *QUICK, "--config", str(DIAGNOSTICS), "--print_config"])
    shown = yaml.safe_load(capsys.readouterr().out)["trainer"]["callbacks"]
    assert [c["class_path"].rpartition(".")[2] for c in shown] == [
        "ArchitectureStatistics",
        "Curvature",
        "NoiseFloor",
        "EdgeShuffle",
        "StrengthStudy",
    ]
