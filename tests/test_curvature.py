"""The largest eigenvalue of the architecture's Hessian, and the early stop that watches it."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from test_ddp import fit as fit_on
from test_strategies_in_training import MAGNITUDE, QUICK, fit, newest
from torch import Tensor, nn
from torch.func import functional_call

from dartslight.callbacks import Selector
from dartslight.callbacks.live_supernet import LiveSupernet
from dartslight.callbacks.scores_file import ScoresFile
from dartslight.cli import main
from dartslight.errors import InputError
from dartslight.nets import Supernet
from dartslight.selection import CurvatureStop, SearchPlan
from dartslight.selection.curvature_stop import has_become_sharp
from dartslight.spaces import NASBENCH201, S2, Choices, SearchSpace
from dartslight.strategies import Architecture, Softmax, hessian_product, largest_eigenvalue

# ------------------------------------------------------------------------------------------------------ eigenvalues


def matrix_with(eigenvalues: list[float], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues), generator=generator, dtype=torch.float64))
    return q @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ q.T


@pytest.mark.parametrize(
    "eigenvalues",
    [
        [3.0, 2.0, 1.0, -1.0],
        [-9.0, -1.0, 0.5, 0.25],  # the one of largest absolute value is negative: it does not count
        [-4.0, -3.0, -2.0, -1.0],  # the one nearest to 0
        [2.0, 2.0, 2.0, 2.0],  # found in one step, after which no direction is left
        [1.0, 1.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0],
        [5.0],
    ],
)
def test_known_matrices_give_their_largest_eigenvalue(eigenvalues: list[float]) -> None:
    a = matrix_with(eigenvalues)
    for seed in range(3):
        found = largest_eigenvalue(lambda v: a @ v, len(eigenvalues), seed, tolerance=1e-10)
        assert found == pytest.approx(max(eigenvalues), abs=1e-9)


def test_a_large_matrix_takes_few_products_and_the_seed_decides_the_bits() -> None:
    values = [*torch.linspace(-1, 1, 223).tolist(), 2.0]
    a, calls = matrix_with(values), []

    def product(v: Tensor) -> Tensor:
        calls.append(len(v))
        return a @ v

    first = largest_eigenvalue(product, 224, seed=1)
    assert first == pytest.approx(2.0, rel=1e-4)
    assert len(calls) < 40
    assert largest_eigenvalue(product, 224, seed=1) == first
    assert largest_eigenvalue(product, 224, seed=2) != first


def test_a_curvature_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="has diverged"):
        largest_eigenvalue(lambda v: v * torch.nan, 4, 0)


def losses_of(space: SearchSpace, choices: Choices) -> tuple[Any, list[Tensor]]:
    """The loss of a tiny supernet as a function of its alphas, in float64, and the alphas."""
    torch.manual_seed(0)
    net = Supernet(space, 3, 2, 3).double()
    architecture = Architecture(space, Softmax(), 0.5).double()
    names, alphas = zip(*architecture.named_parameters(), strict=True)
    images, labels = torch.randn(6, 3, 8, 8, dtype=torch.float64), torch.arange(6) % 3

    def loss(*at: Tensor) -> Tensor:
        mixing = functional_call(architecture, dict(zip(names, at, strict=True)), (choices,))
        return nn.functional.cross_entropy(net(images, mixing, choices), labels)

    return loss, list(alphas)


def dense_hessian(loss: Any, alphas: list[Tensor]) -> Tensor:
    blocks = torch.autograd.functional.hessian(loss, tuple(a.detach() for a in alphas))
    rows = [
        [block.reshape(a.numel(), b.numel()) for block, b in zip(row, alphas, strict=True)]
        for row, a in zip(blocks, alphas, strict=True)
    ]
    return torch.cat([torch.cat(row, dim=1) for row in rows])


@pytest.mark.parametrize("space", [NASBENCH201, S2], ids=lambda space: space.name)
def test_products_and_eigenvalue_are_those_of_the_dense_hessian(space: SearchSpace) -> None:
    loss, alphas = losses_of(space, Choices.everything(space))
    dense = dense_hessian(loss, alphas)
    size = len(dense)
    assert size == sum(a.numel() for a in alphas)
    product = hessian_product(loss(*alphas), alphas)
    for seed in range(2):
        v = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        torch.testing.assert_close(product(v), dense @ v, rtol=1e-8, atol=1e-11)
    expected = float(torch.linalg.eigvalsh(dense)[-1])
    assert expected > 1e-4
    assert largest_eigenvalue(product, size, 0, tolerance=1e-8) == pytest.approx(expected, rel=1e-6)
    assert largest_eigenvalue(product, size, 0) == pytest.approx(expected, rel=1e-3)
    assert all(a.grad is None for a in alphas)


def test_products_are_differences_of_gradients() -> None:
    """Against the gradients themselves, should the second derivative be wrong in the dense Hessian too."""
    loss, (alpha,) = losses_of(NASBENCH201, Choices.everything(NASBENCH201))
    v = torch.randn(alpha.numel(), dtype=torch.float64)

    def slope(sign: float) -> Tensor:
        moved = (alpha.detach() + sign * 1e-5 * v.view_as(alpha)).requires_grad_()
        return torch.autograd.grad(loss(moved), moved)[0].reshape(-1)

    expected = (slope(+1) - slope(-1)) / 2e-5
    torch.testing.assert_close(hessian_product(loss(alpha), [alpha])(v), expected, rtol=1e-5, atol=1e-8)


def test_decided_edges_have_rows_of_exact_zeros() -> None:
    choices = Choices.everything(NASBENCH201).decide(("cell", 1), 3).drop([("cell", 4)])
    loss, alphas = losses_of(NASBENCH201, choices)
    product = hessian_product(loss(*alphas), alphas)
    rows = product(torch.ones(30, dtype=torch.float64) + torch.arange(30)).view(6, 5)
    assert not rows[[1, 4]].any()
    assert rows[[0, 2, 3, 5]].any(dim=1).all()


def test_a_loss_without_curvature_has_none() -> None:
    w = torch.ones(3, requires_grad=True)
    v = torch.ones(3, dtype=torch.float64)
    for loss in (w.sum(), torch.zeros(()), torch.ones(3, requires_grad=True).square().sum()):
        assert hessian_product(loss, [w])(v).tolist() == [0, 0, 0]


# ------------------------------------------------------------------------------------------- in the supernet at hand


class Look(Callback):
    """Measures the curvature of the supernet in training after its first epoch, next to the dense Hessian."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module = pl_module
        live = LiveSupernet(trainer, module, "", ScoresFile(None), {}, trainer.current_epoch + 1)
        before = {k: v.clone() for k, v in module.state_dict().items()}
        grads = [None if p.grad is None else p.grad.clone() for p in module.parameters()]
        state = torch.get_rng_state()
        self.seen["values"] = [live.curvature(3), live.curvature(3), live.curvature(4), live.curvature(3, batches=2)]
        assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
        for p, g in zip(module.parameters(), grads, strict=True):
            assert p.requires_grad
            assert (p.grad is None) == (g is None)
            assert g is None or torch.equal(p.grad, g)
        assert torch.equal(torch.get_rng_state(), state)
        assert module.supernet.training
        self.seen["dense"] = [self.dense(trainer, module, n) for n in (1, 2)]

    @staticmethod
    def dense(trainer: Trainer, module: Any, batches: int) -> float:
        data = trainer.datamodule.selection_batches(augmented=True, seed=3, limit=batches)
        drawn = [trainer.strategy.batch_to_device(data.batch(b)) for b in range(batches)]
        names, alphas = zip(*module.architecture.named_parameters(), strict=True)
        state = {k: v.clone() for k, v in module.supernet.named_buffers()}

        def loss(*at: Tensor) -> Tensor:
            mixing = functional_call(module.architecture, dict(zip(names, at, strict=True)), (module.choices,))
            each = []
            for b in drawn:
                logits = functional_call(module.supernet, dict(state), (b.images, mixing, module.choices))
                each.append(nn.functional.cross_entropy(logits, b.labels, reduction="none"))
            return torch.cat(each).mean()

        with module.supernet.plain():
            hessian = dense_hessian(loss, list(alphas)).double()
        return float(torch.linalg.eigvalsh(hessian)[-1]) + module.alpha_weight_decay


def test_the_supernet_in_training_is_measured_and_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Look()
    monkeypatch.setattr("dartslight.training_cli.RunCheckpoints", lambda *_: look)
    fit(
        tmp_path,
        "--trainer.max_epochs=1",
        "--model.alpha_weight_decay=0.01",
        "--selection=null",
        "--model.track_statistics=true",
        "--model.checkpoint_cells=true",
    )
    first, again, other, two = look.seen["values"]
    assert first == again != other
    assert [first, two] == pytest.approx(look.seen["dense"], rel=2e-3)
    assert first > 0.01


@pytest.mark.ddp
def test_all_devices_find_the_curvature_that_one_finds(tmp_path: Path, forks: Any) -> None:
    words = ["--trainer.callbacks=ddp_probe.Curved", f"--trainer.callbacks.folder={tmp_path / 'seen'}"]
    words += ["--trainer.max_epochs=1", "--selection=null", "--data.batch_size=16", "--data.max_pictures=128"]
    for processes in (1, 2):
        fit_on(forks, tmp_path, processes, *words)
    one, a, b = (torch.load(tmp_path / "seen" / f"{name}.pt") for name in ("1_0", "2_0", "2_1"))
    assert a == b == pytest.approx(one, rel=1e-4)
    assert a[0] == one[0]  # of a single batch the other device adds nothing


# -------------------------------------------------------------------------------------------------------- early stop


def local_average(values: list[float], middle: int, window: int) -> float:
    """The mean of the measurements around one of them."""
    half = (window - 1) // 2
    return sum(values[middle - half : middle + half + 1]) / window


@pytest.mark.parametrize(("window", "lag"), [(5, 4), (1, 1), (3, 2)])
def test_the_window_looks_at_two_local_averages(window: int, lag: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        values = rng.random(window + lag + int(rng.integers(3))).tolist()
        middle = len(values) - 1 - (window - 1) // 2
        ratio = local_average(values, middle, window) / local_average(values, middle - lag, window)
        assert has_become_sharp(values, window, lag, ratio * 0.999)
        assert not has_become_sharp(values, window, lag, ratio * 1.001)


def test_the_exact_ratio_does_not_stop() -> None:
    # (1 + 1 + 1 + 1 + 2.25) / 5 = 1.25, exactly so in binary too
    assert not has_become_sharp([*[1.0] * 8, 2.25], 5, 4, 1.25)
    assert has_become_sharp([*[1.0] * 8, 2.2500001], 5, 4, 1.25)
    assert not has_become_sharp([0.0] * 5 + [1.0] * 4, 5, 4, 1.3)  # a ratio to nothing says nothing
    assert not has_become_sharp([-1.0] * 5 + [1.0] * 4, 5, 4, 1.3)


class Told:
    """A supernet whose curvature is told and whose mixing weights point to another operation each epoch."""

    space, memory, choices = NASBENCH201, {}, Choices.everything(NASBENCH201)

    def __init__(self, values: dict[int, float], last: int) -> None:
        self.values, self.last, self.epochs, self.memory, self.logged = values, last, 0, {}, []

    @property
    def is_searched(self) -> bool:
        return self.epochs >= self.last

    def mixing(self, choices: Choices) -> dict[str, Tensor]:
        return {"cell": torch.eye(5)[[self.epochs % 5] * 6] * self.epochs}

    def slots(self, choices: Choices) -> None:
        return None

    def curvature(self, seed: int, batches: int = 1) -> float:
        return self.values[self.epochs]

    def log(self, name: str, value: float) -> None:
        self.logged.append((name, value))

    def search(self, rule: CurvatureStop) -> tuple[int, Any]:
        """Goes through the epochs as the selector does; returns when and how the rule ended the search."""
        points = rule.schedule(SearchPlan(NASBENCH201, self.last)).points
        for epochs in range(1, self.last + 1):
            self.epochs = epochs
            rule.observe(self, epochs)
            # As a checkpoint keeps it.
            self.memory = json.loads(json.dumps(self.memory))
            for i, point in enumerate(points):
                if point == epochs:
                    outcome = rule.decide(self, i, 0)
                    if outcome.ends_run or outcome.choices != self.choices:
                        return epochs, outcome
        raise AssertionError("not decided")


def kept(outcome: Any) -> set[tuple[int, ...]]:
    return set(outcome.choices.of("cell"))


def test_the_published_settings_stop_at_the_first_epoch_they_can() -> None:
    rule = CurvatureStop()
    # The architecture of epoch 10, 4 measurements and half a window of 2 before: 10 + 2 * 6 = 22.
    assert rule.schedule(SearchPlan(NASBENCH201, 50)).points == (*range(22, 50, 2), 50)
    sharp = {e: 1.0 if e <= 14 else 2.0 for e in range(2, 51, 2)}
    told = Told(sharp, 50)
    end, outcome = told.search(rule)
    assert end == 22
    assert outcome.ends_run
    assert kept(outcome) == {(10 % 5,)}
    assert {d.criterion for d in outcome.decisions} == {"weight after epoch 10"}
    assert told.logged == [("curvature/stop", sharp[e]) for e in range(2, 23, 2)]
    assert len(told.memory["mixing"]) == 7


def test_a_later_rise_goes_back_to_the_epoch_before_it() -> None:
    # The averages of epochs 28 and 20 are 1.4 and 1: the window around 28 has 2 of its 5 measurements after the rise.
    end, outcome = Told({e: 1.0 if e < 30 else 2.0 for e in range(2, 51, 2)}, 50).search(CurvatureStop())
    assert (end, kept(outcome), outcome.ends_run) == (32, {(20 % 5,)}, True)


def test_a_flat_search_is_decided_by_its_last_mixing_weights() -> None:
    end, outcome = Told(dict.fromkeys(range(2, 50, 2), 1.0), 49).search(CurvatureStop())
    assert (end, kept(outcome), outcome.ends_run) == (49, {(49 % 5,)}, False)
    assert {d.criterion for d in outcome.decisions} == {"weight"}
    # Falling is not rising.
    end, outcome = Told({e: 1 / e for e in range(2, 51, 2)}, 50).search(CurvatureStop())
    assert (end, outcome.ends_run) == (50, False)


def test_the_last_epoch_can_still_be_too_sharp() -> None:
    end, outcome = Told({e: 2.0 if e == 50 else 1.0 for e in range(2, 51, 2)}, 50).search(CurvatureStop(ratio=1.1))
    assert (end, kept(outcome), outcome.ends_run) == (50, {(38 % 5,)}, True)


def test_what_cannot_be_watched_is_refused() -> None:
    with pytest.raises(InputError, match="supernet's search is over; use another rule"):
        CurvatureStop().schedule(SearchPlan(NASBENCH201, 50, (), is_over=True))
    with pytest.raises(InputError, match=r"several stages with a supernet each; .* or search in one stage"):
        CurvatureStop().schedule(SearchPlan(NASBENCH201, 50, (25, 50)))
    with pytest.raises(InputError, match="give 3 or 5"):
        CurvatureStop(window=4)
    with pytest.raises(InputError, match="lag is 0"):
        CurvatureStop(lag=0)


@pytest.mark.parametrize(
    ("settings", "shortest"),
    [
        ({}, 22),  # epoch 10 and 2 + 4 measurements after it, every 2 epochs
        ({"min_epoch": 0}, 18),  # 5 + 4 measurements
        ({"every": 3}, 30),  # epoch 12, the first one from 10 on that is measured, and 6 measurements after it
        ({"every": 1, "window": 1, "lag": 1, "min_epoch": 0}, 2),
        ({"every": 1, "window": 3, "lag": 2, "min_epoch": 2}, 5),
    ],
)
def test_a_search_that_could_never_stop_is_refused(settings: dict[str, int], shortest: int) -> None:
    rule = CurvatureStop(**settings)
    sentence = f"after {shortest} epochs at the earliest, but this one has {shortest - 1}; .*max_epochs {shortest} or"
    with pytest.raises(InputError, match=sentence):
        rule.schedule(SearchPlan(NASBENCH201, shortest - 1))
    # The shortest one that is taken stops at its end, with the architecture of an earlier epoch.
    end, outcome = Told({e: 2.0**e for e in range(1, shortest + 1)}, shortest).search(rule)
    assert (end, outcome.ends_run) == (shortest, True)
    assert all(d.criterion.startswith("weight after epoch") for d in outcome.decisions)


# ----------------------------------------------------------------------------------------------------- in whole runs

EAGER = [
    "--selection=dartslight.selection.CurvatureStop",
    "--selection.every=1",
    "--selection.window=1",
    "--selection.lag=2",
    "--selection.ratio=0.01",
    "--selection.min_epoch=2",
    "--model.alpha_learning_rate=0.1",
    "--trainer.max_epochs=8",
]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def test_a_run_stops_early_with_the_architecture_of_an_earlier_epoch_and_resumes_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fit(tmp_path / "whole", *EAGER)
    # After 2 epochs there is an architecture to go back to, and 2 measurements later the search ends.
    metrics = rows_of(folder / "metrics.csv")
    assert len(metrics) == 4
    assert all(float(row["curvature/stop"]) > 0 for row in metrics)
    rows = rows_of(folder / "decisions.csv")
    assert {(row["epoch"], row["criterion"]) for row in rows} == {("4", "weight after epoch 2")}
    out = capsys.readouterr().out
    assert "by weight after epoch 2, margin" in out
    assert "stopped after" not in out  # nothing is left to do

    # The same, stopped in its fourth epoch and continued.
    leaders: dict[int, list[int]] = {}

    end = Selector.on_train_epoch_end

    def watched(selector: Selector, trainer: Trainer, pl_module: LightningModule) -> None:
        epochs = trainer.current_epoch + 1
        leaders[epochs] = pl_module.architecture.alphas["cell"].argmax(dim=1).tolist()
        if epochs == 4:
            raise KeyboardInterrupt
        end(selector, trainer, pl_module)

    with monkeypatch.context() as patch:
        patch.setattr(Selector, "on_train_epoch_end", watched)
        assert main(["fit", *QUICK, f"--trainer.default_root_dir={tmp_path / 'killed'}", *EAGER]) == 130
    killed = newest(tmp_path / "killed")
    assert not (killed / "decisions.csv").exists()
    assert main(["fit", "--ckpt_path", str(killed / "checkpoints" / "last.ckpt")]) == 0
    assert rows_of(killed / "decisions.csv") == rows
    assert rows_of(killed / "metrics.csv") == metrics
    assert (killed / "genotype.json").read_text() == (folder / "genotype.json").read_text()
    genotype = json.loads((folder / "genotype.json").read_text())
    names = NASBENCH201.cells[0].edges[0].ops
    assert [edge["op"] for edge in genotype["cells"]["cell"]["edges"]] == [names[column] for column in leaders[2]]
    assert leaders[2] != leaders[4]

    # Started again, the finished run stays as it is; a finished supernet cannot be watched any more.
    assert main(["fit", "--ckpt_path", str(folder / "checkpoints" / "last.ckpt")]) == 0
    assert rows_of(folder / "decisions.csv") == rows
    capsys.readouterr()
    supernet = f"--supernet={folder / 'checkpoints' / 'last.ckpt'}"
    assert main(["select", supernet, f"--trainer.default_root_dir={tmp_path / 'again'}", *EAGER[:1]]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_early_stop_cannot_decide_a_finished_supernet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fit(tmp_path, "--trainer.max_epochs=1", MAGNITUDE)
    capsys.readouterr()
    supernet = f"--supernet={folder / 'checkpoints' / 'search.ckpt'}"
    assert main(["select", supernet, f"--trainer.default_root_dir={tmp_path / 'again'}", *EAGER[:1]]) == 2
    error = capsys.readouterr().err
    assert error.startswith("dartslight: CurvatureStop looks on from the first to the last epoch of a search, but this")
    assert error.count("\n") == 1
    assert not (tmp_path / "again").exists()
