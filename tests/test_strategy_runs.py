"""Every strategy in a whole run on real digits: it trains, and a run that was stopped goes on to the same bits."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from children import start_devices, succeed
from test_captured import Waits
from test_strategies_in_training import MAGNITUDE, QUICK, newest
from torch import Tensor, nn

from dartslight.cli import main
from dartslight.genotype import Genotype
from dartslight.modules import SearchModule
from dartslight.nets import Supernet

AT_ONCE = ["--selection=dartslight.selection.Perturbation", "--selection.interval=1", "--selection.eval_batches=1"]
PARTIAL = ["--model.partial_channels=2", "--model.edge_normalisation=true", "--model.init_channels=4"]
STRATEGIES = "dartslight.strategies"
RUNS = {
    "sigmoid": [f"--model.relaxation={STRATEGIES}.Sigmoid"],
    "gumbel": [f"--model.relaxation={STRATEGIES}.Gumbel"],
    "dirichlet": [f"--model.relaxation={STRATEGIES}.Dirichlet", "--model.relaxation.divergence_weight=0.001"],
    "random_smoothing": [f"--model.smoothing={STRATEGIES}.RandomSmoothing"],
    "adversarial_smoothing": [f"--model.smoothing={STRATEGIES}.AdversarialSmoothing", "--model.smoothing.steps=2"],
    "partial_channels": PARTIAL,
    "auxiliary_skip": ["--model.auxiliary_skip=linear"],
    "drop_path": ["--model.drop_path=0.5", "--model.gradient=dartslight.strategies.FiniteDifference"],
    "all_at_once": [
        *PARTIAL,
        f"--model.relaxation={STRATEGIES}.Dirichlet",
        f"--model.smoothing={STRATEGIES}.RandomSmoothing",
        "--model.auxiliary_skip=cosine",
        "--model.drop_path=0.3",
        "--model.alpha_clip_norm=0.1",
        "--model.checkpoint_cells=true",
        "--model.track_statistics=true",
    ],
}


def state(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def decisions(folder: Path) -> list[dict[str, str]]:
    with (folder / "decisions.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


@pytest.mark.parametrize("name", RUNS)
def test_a_stopped_run_goes_on_to_the_same_bits(name: str, tmp_path: Path) -> None:
    """Stopped within the search, and some also between the decisions, where decided edges are part of the state."""
    is_tuned = name in ("gumbel", "partial_channels", "all_at_once")
    words = ["fit", *QUICK, *(AT_ONCE if is_tuned else [MAGNITUDE]), "--checkpoint_every_n_batches=1", *RUNS[name]]
    assert main([*words, f"--trainer.default_root_dir={tmp_path / 'whole'}"]) == 0
    whole = newest(tmp_path / "whole")
    root = f"--trainer.default_root_dir={tmp_path / 'parts'}"
    assert main([*words, root, "--trainer.max_steps=1"]) == 0
    last = newest(tmp_path / "parts") / "checkpoints" / "last.ckpt"
    if is_tuned:
        assert main([*words, root, "--trainer.max_steps=7", f"--ckpt_path={last}"]) == 0
    assert main([*words, root, f"--ckpt_path={last}"]) == 0
    parts = newest(tmp_path / "parts")
    a, b = state(whole), state(parts)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert decisions(whole) == decisions(parts)
    genotype = Genotype.load(parts / "genotype.json")
    assert genotype == Genotype.load(whole / "genotype.json")
    known = {"none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"}
    assert {edge.ops[0] for cell in genotype.cells for edge in cell.edges} <= known
    assert all(torch.isfinite(v).all() for v in a.values())
    assert ("architecture.betas.cell" in a) == ("--model.edge_normalisation=true" in RUNS[name])


class Watch:
    """Notes what every pass of a training step runs with, and whether it is one of the architecture step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passes: list[tuple[str, dict[str, Tensor], Any]] = []
        self.clean: list[dict[str, Tensor]] = []
        self.gradients: list[dict[str, bool]] = []
        step, forward = SearchModule.training_step, Supernet.forward
        watching = [False]

        def training_step(module: SearchModule, *batch: Any) -> None:
            watching[0] = True
            step(module, *batch)
            watching[0] = False
            self.clean.append({c: m.detach().clone() for c, m in module.mixing(module.choices).items()})
            self.gradients.append({n: p.grad is not None for n, p in module.supernet.named_parameters()})

        def watched(net: Supernet, images: Tensor, mixing: Any, *rest: Any) -> Tensor:
            if watching[0]:
                kind = "attack" if not net.training else "weights" if net.classifier.weight.requires_grad else "alphas"
                copied = {cell: m.detach().clone() for cell, m in mixing.items()}
                self.passes.append((kind, copied, rest[0] if rest else None))
            return forward(net, images, mixing, *rest)

        monkeypatch.setattr(SearchModule, "training_step", training_step)
        monkeypatch.setattr(Supernet, "forward", watched)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(monkeypatch)


@pytest.mark.parametrize(("name", "attacks"), [("random_smoothing", 0), ("adversarial_smoothing", 4)])
def test_only_weight_steps_are_disturbed(watch: Watch, name: str, attacks: int, tmp_path: Path) -> None:
    words = [*QUICK, *RUNS[name], MAGNITUDE, "--model.alpha_init_std=0.5"]
    assert main(["fit", *words, f"--trainer.default_root_dir={tmp_path}"]) == 0
    per_step = 2 + attacks
    assert len(watch.clean) == 4
    assert [kind for kind, *_ in watch.passes] == ["alphas", *["attack"] * attacks, "weights"] * 4
    for i in range(1, 4):
        alphas, weights = watch.passes[per_step * i], watch.passes[per_step * i + per_step - 1]
        # The architecture step sees the softmax as the step before left it; the weight step sees something near.
        assert torch.equal(alphas[1]["cell"], watch.clean[i - 1]["cell"])
        assert 0 < float((weights[1]["cell"] - watch.clean[i]["cell"]).abs().max()) < 0.5


@pytest.mark.parametrize("name", [name for name in RUNS if name not in ("gumbel", "drop_path", "all_at_once")])
def test_a_step_of_any_strategy_waits_for_nothing(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """But for a draw of one operation, which decides what is computed."""
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)  # a compiler switches it off
    step = SearchModule.training_step
    seen: list[str] = []

    def watched(module: SearchModule, *batch: Any) -> None:
        with Waits() as waits:
            step(module, *batch)
        seen.extend(waits.seen)

    monkeypatch.setattr(SearchModule, "training_step", watched)
    words = [*QUICK, *RUNS[name], MAGNITUDE, "--model.drop_path=0.2", "--model.alpha_clip_norm=0.1"]
    assert main(["fit", *words, f"--trainer.default_root_dir={tmp_path}"]) == 0
    assert seen == []


def test_a_step_of_gdas_draws_anew_and_computes_what_it_drew(watch: Watch, tmp_path: Path) -> None:
    words = [*QUICK, *RUNS["gumbel"], MAGNITUDE]
    assert main(["fit", *words, f"--trainer.default_root_dir={tmp_path}"]) == 0
    assert [kind for kind, *_ in watch.passes] == ["alphas", "weights"] * 4
    drawn = [m["cell"][:, :5].argmax(dim=1).tolist() for _, m, _ in watch.passes]
    assert len({tuple(d) for d in drawn}) > 5
    for (_, mixing, computed), own in zip(watch.passes, drawn, strict=True):
        assert set(mixing["cell"].flatten().tolist()) == {0.0, 1.0}
        assert computed.of("cell") == tuple((o,) for o in own)
    # An operation that was not drawn has no derivative, so its optimizer lets it be.
    for found, own in zip(watch.gradients, drawn[1::2], strict=True):
        convs = {e for e, o in enumerate(own) if o in (2, 3)}
        cell = "blocks.0.ops."
        assert sum(has for n, has in found.items() if n.startswith(cell) and n.endswith("conv.weight")) <= len(convs)


def test_the_auxiliary_skip_has_left_when_the_search_ends(watch: Watch, tmp_path: Path) -> None:
    words = [*QUICK, *RUNS["auxiliary_skip"], *AT_ONCE, "--trainer.max_epochs=2"]
    seen: list[set[float]] = []
    measure = Supernet.forward_each

    def measured(net: Supernet, images: Tensor, variants: Any, *rest: Any) -> Any:
        if len(variants) > 1:
            seen.append({float(x) for mixing, _ in variants for x in mixing["cell"][:, 5]})
        return measure(net, images, variants, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Supernet, "forward_each", measured)
        assert main(["fit", *words, f"--trainer.default_root_dir={tmp_path}"]) == 0
    weights = [sorted(set(m["cell"][:, 5].tolist())) for kind, m, _ in watch.passes if kind == "weights"]
    assert weights == [[1.0]] * 2 + [[0.5]] * 2 + [[0.0]] * 10  # two steps an epoch: two epochs, then five of tuning
    assert seen
    assert set.union(*seen) == {0.0}


def test_architecture_gradients_are_clipped_in_a_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assign = SearchModule._assign_alpha_gradients
    norms: list[float] = []

    def assigned(module: SearchModule, gradients: Any, seen: Any) -> None:
        assign(module, [1e3 * g for g in gradients], seen)
        norms.append(float(nn.utils.get_total_norm([p.grad for p in module.architecture.parameters()])))

    monkeypatch.setattr(SearchModule, "_assign_alpha_gradients", assigned)
    words = [*QUICK, *PARTIAL, MAGNITUDE, "--model.alpha_clip_norm=0.25"]
    assert main(["fit", *words, f"--trainer.default_root_dir={tmp_path}"]) == 0
    assert norms == pytest.approx([0.25] * 4, rel=1e-4)


def test_a_supernet_of_another_strategy_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its weights would not fit."""
    assert main(["fit", *QUICK, *PARTIAL, MAGNITUDE, f"--trainer.default_root_dir={tmp_path}"]) == 0
    last = newest(tmp_path) / "checkpoints" / "last.ckpt"
    for other in (
        ["--model.edge_normalisation=false"],
        ["--model.auxiliary_skip=linear"],
        ["--model.partial_channels=1"],
    ):
        words = ["fit", *QUICK, *PARTIAL, MAGNITUDE, *other, f"--trainer.default_root_dir={tmp_path}"]
        assert main([*words, f"--ckpt_path={last}"]) == 2
        key = other[0].removeprefix("--model.").split("=")[0]
        assert f"has {key}" in capsys.readouterr().err


def test_edge_parameters_learn_and_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    starts: list[Tensor] = []
    start = SearchModule.on_fit_start
    monkeypatch.setattr(
        SearchModule,
        "on_fit_start",
        lambda module: (starts.append(module.architecture.betas["cell"].detach().clone()), start(module)),
    )
    assert main(["fit", *QUICK, *PARTIAL, MAGNITUDE, f"--trainer.default_root_dir={tmp_path}"]) == 0
    betas = state(newest(tmp_path))["architecture.betas.cell"]
    moved = (betas - starts[0]).abs()
    assert moved[1:].min() > 1e-3  # Adam takes steps of about 0.01
    # The first node has one input, whose share is 1 whatever its parameter; only weight decay moves that.
    assert moved[0] < moved[1:].min()


@pytest.mark.ddp
@pytest.mark.parametrize(
    ("name", "selection"), [*((name, AT_ONCE) for name in RUNS), ("gumbel", ["--selection=null"])], ids=str
)
def test_two_processes_hold_the_same(name: str, selection: list[str], tmp_path: Path, forks: Any) -> None:
    command = ["fit", *QUICK, *selection, *RUNS[name]]
    command += ["--trainer.accelerator=cpu", "--trainer.devices=2", "--data.batch_size=8"]
    command += ["--trainer.callbacks=ddp_probe.Probe", f"--trainer.callbacks.folder={tmp_path}"]
    command += [f"--trainer.default_root_dir={tmp_path / 'runs'}", "--model.track_statistics=true"]
    succeed(start_devices(forks, 2, tmp_path, main, command))
    a, b = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    for part in ("alphas", "weights"):
        assert a[part].keys() == b[part].keys()
        assert all(torch.equal(a[part][k], b[part][k]) for k in a[part])
    assert a["choices"] == b["choices"]
    assert a["labels"] != b["labels"]
    assert ("betas.cell" in a["alphas"]) == ("--model.edge_normalisation=true" in RUNS[name])
    assert a["alphas"]["alphas.cell"].abs().max() > 0.02  # it has learned
