"""What really trains: strategies, spaces and rules in whole runs on real digits, as small as they can be."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dartslight.cli import main
from dartslight.data import Digits
from dartslight.data.pictures import Pictures
from dartslight.genotype import Genotype
from dartslight.modules import SearchModule
from dartslight.selection import Tuning
from dartslight.spaces import SPACES

CONFIGS = Path(__file__).parent.parent / "configs"
QUICK = [
    "--config",
    str(CONFIGS / "quickstart.yaml"),
    "--trainer.max_epochs=2",
    "--trainer.enable_progress_bar=false",
    "--model.init_channels=2",
    "--data.max_pictures=64",
    "--data.batch_size=16",
    "--data.eval_batch_size=16",
]
MAGNITUDE = "--selection=dartslight.selection.Magnitude"
AT_ONCE = ["--selection=dartslight.selection.Perturbation", "--selection.interval=0", "--selection.eval_batches=1"]
ONE_EPOCH = ["--trainer.max_epochs=1", "--data.max_pictures=32"]
TINY = ["--data.size=8", "--data.padding=1", "--data.eval_batch_size=4"]


def newest(root: Path) -> Path:
    return max(root.glob("version_*"), key=lambda p: int(p.name.removeprefix("version_")))


def fit(root: Path, *options: str) -> Path:
    assert main(["fit", *QUICK, f"--trainer.default_root_dir={root}", *options]) == 0
    return newest(root)


def saved_alphas(folder: Path) -> dict[str, Tensor]:
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    prefix = "architecture.alphas."
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


class Watch:
    """Sees a search from within: its alphas before the first step and after each epoch, its learning rates."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.alphas: list[dict[str, Tensor]] = []
        self.learning_rates: list[float] = []
        start, end = SearchModule.on_fit_start, SearchModule.on_train_epoch_end

        def on_fit_start(module: SearchModule) -> None:
            self._note(module)
            start(module)

        def on_train_epoch_end(module: SearchModule) -> None:
            self._note(module)
            weights, _ = module.optimizers(use_pl_optimizer=False)
            self.learning_rates.append(weights.param_groups[0]["lr"])
            end(module)

        monkeypatch.setattr(SearchModule, "on_fit_start", on_fit_start)
        monkeypatch.setattr(SearchModule, "on_train_epoch_end", on_train_epoch_end)

    def _note(self, module: SearchModule) -> None:
        self.alphas.append({k: v.detach().clone() for k, v in module.architecture.alphas.items()})


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(monkeypatch)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ----------------------------------------------------------------------------------------------------- strategies


def test_fixed_parameters_keep_their_bits(watch: Watch, tmp_path: Path) -> None:
    """No step of the search or of the tuning reaches them, before or after decisions."""
    folder = fit(
        tmp_path,
        "--model.gradient=dartslight.strategies.Fixed",
        "--model.weight_decay=0.5",
        "--model.alpha_weight_decay=0.5",
        "--selection.interval=1",
        "--selection.eval_batches=1",
    )
    assert len(watch.alphas) == 1 + 2 + 5
    assert all(same(alphas, watch.alphas[0]) for alphas in watch.alphas)
    assert same(saved_alphas(folder), watch.alphas[0])
    assert 0 < watch.alphas[0]["cell"].std() < 2e-3


def test_each_gradient_moves_the_alphas_its_own_way(watch: Watch, tmp_path: Path) -> None:
    ends = {}
    for name in ("FirstOrder", "Unrolled", "FiniteDifference"):
        watch.alphas.clear()
        folder = fit(tmp_path / name, f"--model.gradient=dartslight.strategies.{name}", MAGNITUDE)
        start, *later = watch.alphas
        assert len(later) == 2
        assert not same(start, later[0])
        assert not same(later[0], later[1])
        ends[name] = saved_alphas(folder)
        assert same(ends[name], later[1])
        assert torch.isfinite(ends[name]["cell"]).all()
        for file in ("genotype.json", "decisions.csv", "metrics.csv", "config.yaml", "cell.svg"):
            assert (folder / file).stat().st_size > 0
        assert name == "FirstOrder" or name in (folder / "config.yaml").read_text()
    assert not same(ends["FirstOrder"], ends["Unrolled"])
    assert not same(ends["FirstOrder"], ends["FiniteDifference"])
    assert not same(ends["Unrolled"], ends["FiniteDifference"])


def test_alphas_wait_for_the_end_of_their_warm_up(watch: Watch, tmp_path: Path) -> None:
    fit(tmp_path, "--model.alpha_warmup_epochs=2", "--trainer.max_epochs=3", MAGNITUDE)
    start, first, second, third = watch.alphas
    assert same(start, first)
    assert same(start, second)
    assert not same(start, third)


# ------------------------------------------------------------------------------------------------ spaces and rules


@pytest.mark.parametrize("name", ["darts", "darts8", "s2", "s4"])
def test_every_rule_decides_a_genotype_of_the_space(name: str, tmp_path: Path) -> None:
    folder = fit(tmp_path / "fit", *ONE_EPOCH, *TINY, f"--model.space={name}", *AT_ONCE)
    check_genotype(folder, name, "loss")
    supernet = f"--supernet={folder / 'checkpoints' / 'search.ckpt'}"
    progressive = ["--selection.interval=0", "--selection.criterion=weight"]
    for rule, settings, criterion in (
        ("Random", [], "random"),
        ("Magnitude", [], "weight"),
        ("Perturbation", progressive, "weight"),
    ):
        root = f"--trainer.default_root_dir={tmp_path / rule}"
        assert main(["select", supernet, root, f"--selection=dartslight.selection.{rule}", *settings]) == 0
        check_genotype(newest(tmp_path / rule), name, criterion)
    weighed = [newest(tmp_path / rule) / "genotype.json" for rule in ("Magnitude", "Perturbation")]
    assert weighed[0].read_text() == weighed[1].read_text()  # without tuning there is no difference


def test_a_threshold_leaves_nodes_with_fewer_inputs(tmp_path: Path) -> None:
    sigmoid = "--model.relaxation=dartslight.strategies.Sigmoid"
    rule = [MAGNITUDE, "--selection.threshold=0.5"]
    folder = fit(tmp_path, *ONE_EPOCH, *TINY, "--model.space=s2", sigmoid, *rule)
    genotype = Genotype.load(folder / "genotype.json")
    assert 2 <= sum(len(cell.edges) for cell in genotype.cells) < 16
    assert (folder / "cell.svg").stat().st_size > 0


def check_genotype(folder: Path, name: str, criterion: str) -> None:
    assert json.loads((folder / "genotype.json").read_text())["space"] == name
    genotype, space = Genotype.load(folder / "genotype.json"), SPACES[name]
    for cell, whole in zip(genotype.cells, space.cells, strict=True):
        assert [len(cell.edges_into(node)) for node in cell.nodes] == [2, 2, 2, 2]
        ops = {(edge.source, edge.node): edge.ops for edge in whole.edges}
        assert all(edge.ops[0] in ops[edge.source, edge.node] for edge in cell.edges)
        assert all(edge.ops[0] != "none" for edge in cell.edges)
    with (folder / "decisions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["cell"] for row in rows} == {"normal", "reduction"}
    assert {row["criterion"] for row in rows} == {criterion}


# ------------------------------------------------------------------------------------------- what learns from what


def test_the_optimizers_share_nothing_and_leave_nothing_out() -> None:
    module = SearchModule("s2", num_cells=3, init_channels=2)
    module._trainer = SimpleNamespace(datamodule=SimpleNamespace(has_val=True, num_classes=10))
    module.configure_model()
    weights, alphas = module.configure_optimizers()
    of_weights, of_alphas = ({id(p) for group in o.param_groups for p in group["params"]} for o in (weights, alphas))
    assert of_alphas == {id(alpha) for alpha in module.architecture.alphas.values()}
    assert len(of_alphas) == 2
    assert not of_weights & of_alphas
    assert of_weights | of_alphas == {id(p) for p in module.parameters()}
    assert [(g["weight_decay"], g["momentum"], g["lr"]) for g in weights.param_groups] == [(3e-4, 0.9, 0.025)]
    assert [(g["weight_decay"], g["betas"], g["lr"]) for g in alphas.param_groups] == [(1e-3, (0.5, 0.999), 3e-4)]


def test_clipping_sees_the_weights_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clip = SearchModule.on_before_optimizer_step
    norms: list[tuple[float, float]] = []

    def norm(parameters: Any) -> float:
        return float(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))

    def hook(module: SearchModule, optimizer: Optimizer) -> None:
        weights, _ = module.optimizers(use_pl_optimizer=False)
        if optimizer is not weights:
            clip(module, optimizer)
            return
        alpha = module.architecture.alphas["cell"]
        alpha.grad = torch.full_like(alpha, 1e4)  # would shrink all others if it were counted
        before = norm(module.supernet.parameters())
        clip(module, optimizer)
        norms.append((before, norm(module.supernet.parameters())))
        assert torch.equal(alpha.grad, torch.full_like(alpha, 1e4))

    monkeypatch.setattr(SearchModule, "on_before_optimizer_step", hook)
    fit(tmp_path, "--model.clip_norm=0.5", MAGNITUDE)
    assert len(norms) == 4
    assert any(before > 0.5 for before, _ in norms)
    assert [after for _, after in norms] == pytest.approx([min(before, 0.5) for before, _ in norms], rel=1e-4)


def test_learning_rates_are_the_published_ones() -> None:
    module = SearchModule()
    module.search_epochs, module.tuning, module.tuning_epochs = 50, Tuning(), 25
    assert module.learning_rate_at(0) == 0.025
    assert module.learning_rate_at(25) == pytest.approx(0.013, abs=1e-7)
    assert module.learning_rate_at(49) == pytest.approx(0.0010237, abs=1e-7)
    assert {module.learning_rate_at(epoch) for epoch in range(50, 76)} == {0.0025}


def test_a_run_uses_the_learning_rates_of_its_epochs(watch: Watch, tmp_path: Path) -> None:
    fit(tmp_path, "--model.learning_rate=0.025", "--selection.interval=1", "--selection.eval_batches=1")
    # Two epochs of a cosine from 0.025 to 0.001, then five of tuning.
    assert watch.learning_rates == pytest.approx([0.025, 0.013] + [0.0025] * 5, abs=1e-9)


# -------------------------------------------------------------------------------------------------- what is reached


def test_search_and_selection_never_reach_the_test_pictures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    load: Callable[[Digits, bool], Pictures] = Digits.load
    loaded = []

    def guarded(digits: Digits, train: bool) -> Pictures:
        if not train:
            raise AssertionError("the test pictures were loaded")
        loaded.append(train)
        return load(digits, train)

    monkeypatch.setattr(Digits, "load", guarded)
    with pytest.raises(AssertionError, match="the test pictures were loaded"):
        Digits().setup("test")
    loaded.clear()
    folder = fit(tmp_path, "--selection.interval=1", "--selection.eval_batches=1")
    supernet = f"--supernet={folder / 'checkpoints' / 'search.ckpt'}"
    assert main(["select", supernet, f"--trainer.default_root_dir={tmp_path}", *AT_ONCE]) == 0
    assert newest(tmp_path) != folder
    assert (newest(tmp_path) / "genotype.json").exists()
    assert len(loaded) >= 2


def test_checkpoints_hold_tensors_and_plain_values_alone(tmp_path: Path) -> None:
    folder = fit(tmp_path, *ONE_EPOCH, "--selection.interval=1", "--selection.eval_batches=1")
    for name in ("last.ckpt", "search.ckpt"):
        checkpoint = torch.load(folder / "checkpoints" / name, weights_only=True)
        assert {"state_dict", "optimizer_states", "loops", "dartslight"} <= checkpoint.keys()
        assert len(checkpoint["optimizer_states"]) == 2
        assert checkpoint["dartslight"]["space"] == "nasbench201"
