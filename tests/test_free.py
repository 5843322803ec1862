"""FreeDARTS: what its scores compute, what follows from them, and whole selections without any training."""

import csv
import importlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import textbook
import torch
import yaml
from lightning.pytorch import Callback
from test_command_line import CONFIGS
from test_kill import result
from test_networks import copy_weights, decide_some, share_noise
from test_selection import Given, run
from test_strategies_in_training import fit, newest
from test_true_accuracy import ARCHITECTURES
from torch import Tensor, nn

from dartslight.benchmarks import Table
from dartslight.cli import main
from dartslight.data import ImageData
from dartslight.errors import InputError
from dartslight.genotype import Genotype
from dartslight.modules import SearchModule
from dartslight.nets import Supernet
from dartslight.selection import (
    FreeDarts,
    FreeFlow,
    Grasp,
    Perturbation,
    Saliency,
    SearchPlan,
    Snip,
)
from dartslight.selection.free import initial_alphas, parameter_counts
from dartslight.selection.strongest import keep_strongest
from dartslight.spaces import SPACES, Choices

FREEFLOW = str(CONFIGS / "select" / "freeflow.yaml")
SMALL = ["--model.num_cells=3", "--model.init_channels=4"]
SCORES: dict[str, Callable[[], Saliency]] = {
    "freeflow": lambda: FreeFlow(size=16),
    "snip": lambda: Snip(batch_size=6),
    "grasp": lambda: Grasp(batch_size=6),
}


# ---------------------------------------------------------------------------------------------------- the mathematics


def labelled() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(6, 3, 16, 16, generator=generator), torch.arange(6) % 5


def book_scores(name: str, theirs: nn.Module, alphas: dict[str, Tensor], choices: Choices) -> dict[str, Tensor]:
    """The scores by their definition in the textbook's network, in which a closed operation has the weight 0."""
    images, labels = labelled()
    if name == "freeflow":
        for p in theirs.parameters():
            p.data.abs_()
        if isinstance(theirs.tail, nn.Identity):
            theirs.tail = nn.ReLU()
    cells, shapes = list(alphas), [a.shape for a in alphas.values()]
    masks = {cell: torch.zeros_like(a) for cell, a in alphas.items()}
    for cell, edges in choices.open:
        for e, columns in enumerate(edges):
            masks[cell][e, list(columns)] = 1

    def number(flat: Tensor) -> Tensor:
        torch.manual_seed(7)
        parts = flat.split([s.numel() for s in shapes])
        mixing = {c: p.view(s) * masks[c] for c, p, s in zip(cells, parts, shapes, strict=True)}
        if name == "freeflow":
            return theirs(torch.ones(1, 3, 16, 16), mixing).sum()
        return nn.functional.cross_entropy(theirs(images, mixing), labels)

    flat = torch.cat([a.flatten() for a in alphas.values()])
    derivative = torch.autograd.functional.jacobian(number, flat)
    if name == "grasp":
        derivative = torch.autograd.functional.hvp(number, flat, derivative)[1]
    parts = (flat * derivative).abs().split([s.numel() for s in shapes])
    return {c: p.view(s) for c, p, s in zip(cells, parts, shapes, strict=True)}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize(("space", "decided"), [("nasbench201", 0.0), ("darts8", 0.5), ("s4", 0.0)])
def test_scores_equal_their_definition_in_textbook_networks(space: str, decided: float, name: str) -> None:
    ours, theirs = Supernet(SPACES[space], 3, 4, 5), textbook.Supernet(space, 4, 3, 5)
    copy_weights(ours, theirs)
    share_noise(ours, theirs)
    alphas = FreeDarts(alpha_std=0.3, absolute=False).alphas(SPACES[space], 5)
    choices = decide_some(SPACES[space], decided, 1)
    found = SCORES[name]()(ours, alphas, choices, labelled(), seed=7)
    expected = book_scores(name, theirs, alphas, choices)
    for cell, scores in expected.items():
        torch.testing.assert_close(found[cell], scores, rtol=1e-8, atol=1e-9 * float(scores.max()))
        assert (scores > 1e-3 * scores.max()).sum() > len(scores) / 2


@pytest.mark.usefixtures("float64")
def test_without_the_rectification_a_darts_network_tells_nothing() -> None:
    theirs = textbook.Supernet("darts", 4, 3, 5)
    alphas = FreeDarts().alphas(SPACES["darts"], 0)
    choices = Choices.everything(SPACES["darts"])
    sums = []
    for tail in (nn.Sequential(nn.Identity()), nn.ReLU()):
        theirs.tail = tail
        sums.append(max(float(s.max()) for s in book_scores("freeflow", theirs, alphas, choices).values()))
    assert sums[0] < 1e-9 * sums[1]


def test_float32_gives_the_same_order() -> None:
    """The textbook's network in float32 agrees with the scores, which are computed in float64."""
    torch.manual_seed(0)
    ours, theirs = Supernet(SPACES["darts"], 3, 4, 5), textbook.Supernet("darts", 4, 3, 5)
    copy_weights(ours, theirs)
    alphas, choices = FreeDarts().alphas(SPACES["darts"], 0), Choices.everything(SPACES["darts"])
    found = FreeFlow(size=16)(ours, alphas, choices)
    single = book_scores("freeflow", theirs, {cell: alpha.float() for cell, alpha in alphas.items()}, choices)
    for cell, scores in found.items():
        assert scores.dtype == torch.float64
        assert single[cell].dtype == torch.float32
        ranks = torch.stack([own.double().flatten().argsort().argsort() for own in (scores, single[cell])]).double()
        assert torch.corrcoef(ranks)[0, 1] > 0.999
        assert torch.equal(scores.argmax(dim=1), single[cell].argmax(dim=1))


@pytest.mark.parametrize("name", SCORES)
def test_a_score_leaves_everything_as_it_was(name: str) -> None:
    torch.manual_seed(0)
    supernet = Supernet(SPACES["s4"], 3, 4, 5).eval()
    before = {key: tensor.clone() for key, tensor in supernet.state_dict().items()}
    random = torch.get_rng_state()
    images, labels = labelled()
    choices = Choices.everything(SPACES["s4"])
    torch.set_num_threads(3)
    SCORES[name]()(supernet, FreeDarts().alphas(SPACES["s4"], 0), choices, (images, labels))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert threads == 3
    after = supernet.state_dict()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
    assert not supernet.training
    assert not supernet.checkpoint_cells
    assert all(p.requires_grad and p.grad is None for p in supernet.parameters())
    assert isinstance(supernet.tail, nn.Identity)
    assert torch.equal(random, torch.get_rng_state())
    assert float(torch.tensor(1e-310, dtype=torch.float64) * 1.0) > 0


def test_edge_terms_stand_as_at_the_start_of_a_search() -> None:
    module = SearchModule("s3", 3, 8, partial_channels=2, edge_normalisation=True, auxiliary_skip="linear")
    supernet = module.initial_supernet(10)
    scores = FreeFlow(size=16)(supernet, FreeDarts().alphas(module.space, 0), module.choices)
    for own in scores.values():
        assert own.shape == (14, 3)
        assert (own[:, 1:] > 0).all()


# --------------------------------------------------------------------------------------------------------- the rule


@dataclass
class Scored(Given):
    """A supernet with given scores, which notes what is open whenever it is scored."""

    scores: dict[str, Tensor] = field(default_factory=dict)
    asked: list[Choices] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        generator = torch.Generator().manual_seed(4)
        for cell in self.space.cells:
            shape = (len(cell.edges), cell.num_ops)
            self.scores[cell.name] = torch.rand(shape, generator=generator, dtype=torch.float64)
            for e, edge in enumerate(cell.edges):
                if "none" in edge.ops:
                    self.scores[cell.name][e, edge.ops.index("none")] = 0.0

    def saliency(self, score: Saliency, alphas: Any, choices: Choices, seed: int) -> dict[str, Tensor]:
        self.asked.append(choices)
        return {cell: own.clone() for cell, own in self.scores.items()}


def sizes(choices: Choices) -> list[int]:
    return [len(columns) for _, edges in choices.open for columns in edges]


@pytest.mark.parametrize("scope", ["edge", "global"])
@pytest.mark.parametrize("space", ["nasbench201", "darts8", "s1", "s3"])
def test_pruning_step_by_step_follows_its_schedule(space: str, scope: Any) -> None:
    supernet = Scored(SPACES[space])
    outcome = FreeDarts(n_rounds=4, scope=scope).decide(supernet, 0, 0)
    left = [sizes(choices) for choices in supernet.asked]
    whole = [
        len([o for o in e.ops if space == "nasbench201" or o != "none"]) for c in SPACES[space].cells for e in c.edges
    ]
    for k, own in enumerate(left[1:], start=1):
        assert min(own) >= 1
        if scope == "edge":
            assert own == [math.ceil(m ** (1 - k / 4) - 1e-9) for m in whole]
        else:
            mean = sum(whole) / len(whole)
            assert sum(own) == math.ceil(len(whole) * mean ** (1 - k / 4) - 1e-9)
    # With scores that do not change, step by step and at once are the same.
    at_once = FreeDarts().decide(Scored(SPACES[space]), 0, 0)
    assert outcome.choices == at_once.choices
    Genotype.from_choices(SPACES[space], outcome.choices)
    for cell in SPACES[space].cells:
        for e in outcome.choices.kept(cell.name):
            (op,) = outcome.choices.of(cell.name)[e]
            assert op == int(supernet.scores[cell.name][e, : len(cell.edges[e].ops)].argmax())
    rounds = {d.criterion for d in outcome.decisions if d.kind == "operations"}
    assert rounds == {f"freeflow, round {k}" for k in (1, 2, 3)} or space in ("s1", "s3")


def test_the_last_operation_of_an_edge_is_never_pruned() -> None:
    supernet = Scored(SPACES["nasbench201"])
    supernet.scores["cell"][2] *= 1e-6  # weaker than everything else
    outcome = FreeDarts(n_rounds=10, scope="global").decide(supernet, 0, 0)
    assert sizes(outcome.choices) == [1] * 6
    assert min(min(sizes(choices)) for choices in supernet.asked) == 1


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize(
    ("value", "said"), [(math.nan, "not a finite number"), (math.inf, "not a finite"), (0.0, "are 0")]
)
def test_scores_that_tell_nothing_are_errors(value: float, said: str, rounds: int) -> None:
    supernet = Scored(SPACES["nasbench201"])
    supernet.scores["cell"][4, :] = value
    with pytest.raises(InputError, match=rf"{said}.*alpha_std") as raised:
        FreeDarts(n_rounds=rounds).decide(supernet, 0, 0)
    assert "edge 3<-1" in str(raised.value)


def test_a_network_that_overflows_is_an_error() -> None:
    supernet = Scored(SPACES["nasbench201"])
    torch.manual_seed(0)
    network = Supernet(SPACES["nasbench201"], 3, 4, 5)
    with torch.no_grad():
        network.classifier.weight.fill_(math.inf)
    supernet.saliency = lambda score, alphas, choices, seed: score(network, alphas, choices)  # type: ignore[method-assign]
    with pytest.raises(InputError, match="not a finite number"):
        FreeDarts(FreeFlow(size=16)).decide(supernet, 0, 0)


def test_controls() -> None:
    supernet = Scored(SPACES["nasbench201"])
    rule = FreeDarts(absolute=False)
    found = {name: Genotype.from_choices(supernet.space, c) for name, c in rule.controls(supernet, 3).items()}
    assert found["most parameters"].to_nasbench201().count("nor_conv_3x3") == 6
    alphas = rule.alphas(supernet.space, 3)["cell"]
    assert (alphas < 0).any()
    ops = [supernet.space.cells[0].edges[0].ops[o] for o in alphas.abs().argmax(dim=1).tolist()]
    assert [edge.ops[0] for edge in found["|alpha| alone"].cells[0].edges] == ops
    counts = parameter_counts(SPACES["darts"])["normal"][0]
    assert counts.argmax() == 4  # sep_conv_5x5
    assert (FreeDarts().alphas(supernet.space, 3)["cell"] == alphas.abs()).all()
    assert 5e-4 < float(rule.alphas(SPACES["darts"], 0)["normal"].std()) < 2e-3


def test_wrong_settings_are_refused() -> None:
    for settings in ({"n_rounds": 0}, {"scope": "cell"}, {"alpha_std": 0.0}, {"alpha_std": math.nan}):
        with pytest.raises(InputError, match=next(iter(settings))):
            FreeDarts(**settings)
    with pytest.raises(InputError, match="before any search"):
        FreeDarts().schedule(SearchPlan(SPACES["s2"], 10))


# --------------------------------------------------------------------------------------------------------- as a start


@pytest.mark.parametrize("space", ["nasbench201", "s2"])
def test_perturbation_decides_salient_edges_first(space: str) -> None:
    supernet = Scored(SPACES[space])
    _, decisions = run(Perturbation(order="freeflow"), supernet)
    assert len(supernet.asked) == 1
    for cell in supernet.space.cells:
        order = [
            (d.candidates[0].source, d.candidates[0].node)
            for d in decisions
            if (d.cell, d.kind) == (cell.name, "operation")
        ]
        best = [float(own.max()) for own in supernet.scores[cell.name]]
        ranked = sorted(range(len(best)), key=lambda e, best=best: -best[e])
        assert order == [(cell.edges[e].source, cell.edges[e].node) for e in ranked]
    json.dumps(supernet.memory)


def test_initial_alphas_have_the_order_of_the_scores() -> None:
    supernet = Scored(SPACES["nasbench201"])
    (alphas,) = initial_alphas(supernet, 0, 0.25).values()
    np.testing.assert_allclose(alphas.mean(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(alphas.std(axis=1), 0.25)
    assert (alphas[:, 1:].argsort(axis=1) == supernet.scores["cell"][:, 1:].numpy().argsort(axis=1)).all()
    assert (alphas[:, 0] == alphas.min(axis=1)).all()


class First(Callback):
    """Notes what a search begins with."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 0:
            First.alphas = pl_module.architecture.alphas["cell"].detach().clone()
            First.weights = {k: v.clone() for k, v in pl_module.supernet.named_parameters()}
            First.drawn = dict(pl_module.initial_supernet(10).named_parameters())


def test_a_search_begins_with_salient_alphas_and_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    config = tmp_path / "callbacks.yaml"
    callbacks = [{"class_path": "dartslight.callbacks.FreeStart"}, {"class_path": "test_free.First"}]
    config.write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))
    words = [f"--config={config}", "--checkpoint_every_n_batches=1", "--selection.order=freeflow"]
    whole = fit(tmp_path / "whole", *words)
    torch.testing.assert_close(First.alphas.std(dim=1, correction=0), torch.full((6,), 0.1))
    assert First.weights.keys() == First.drawn.keys()
    assert all(torch.equal(First.weights[k], First.drawn[k]) for k in First.drawn)
    stopped = fit(tmp_path / "stopped", *words, "--trainer.max_steps=3")
    last = stopped / "checkpoints" / "last.ckpt"
    assert main(["fit", f"--config={stopped / 'config.yaml'}", f"--ckpt_path={last}", "--trainer.max_steps=-1"]) == 0
    assert result(newest(tmp_path / "stopped")) == result(whole)


# --------------------------------------------------------------------------------------------------- whole selections


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "decisions.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def select(root: Path, *words: str, config: str = FREEFLOW) -> int:
    return main(["select", f"--config={config}", f"--trainer.default_root_dir={root}", *SMALL, *words])


@pytest.fixture
def no_loaders(monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(*_: Any, **__: Any) -> None:
        raise AssertionError

    for name in ("train_dataloader", "val_dataloader", "test_dataloader", "selection_batches", "setup", "load"):
        monkeypatch.setattr(ImageData, name, touched)


@pytest.mark.usefixtures("no_loaders")
@pytest.mark.parametrize("space", [*SPACES])
def test_every_space_is_decided_without_a_loader(space: str, tmp_path: Path) -> None:
    macro = SPACES[space].macro
    layers = [f"--model.num_cells={len(SPACES[space].cells)}"] if macro == "mobile" else []
    assert select(tmp_path, f"--model.space={space}", *layers) == 0
    genotype = Genotype.load(tmp_path / "version_0" / "genotype.json")
    assert genotype.space == space
    assert not any(edge.ops[0] == "none" for cell in genotype.cells for edge in cell.edges)
    assert {p.name for p in (tmp_path / "version_0").iterdir()} == {
        "cell.png",
        "cell.svg",
        "config.yaml",
        "decisions.csv",
        "genotype.json",
    }


@pytest.mark.parametrize("score", ["snip", "grasp"])
def test_scores_of_a_labelled_batch(score: str, tmp_path: Path) -> None:
    words = ["--selection.score.batch_size=8", "--selection.n_rounds=2", "--data.max_pictures=64"]
    config = str(CONFIGS / "select" / f"{score}.yaml")
    for root in ("a", "b"):
        assert select(tmp_path / root, *words, config=config) == 0
    found, again = (rows(tmp_path / root / "version_0") for root in ("a", "b"))
    assert found == again
    assert {row["criterion"] for row in found} == {f"{score}, round 1", score}
    assert len({row["op"] for row in found if row["chosen"] == "1"} - {"none"}) > 1
    assert select(tmp_path / "c", *words, "--seed_everything=1", config=config) == 0
    assert rows(tmp_path / "c" / "version_0") != found


def test_processes_agree_and_show_the_controls(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    lines = [f"{arch},{arch.count('nor_conv_3x3')},{i}" for i, arch in enumerate(ARCHITECTURES)]
    table.write_text("\n".join(["arch,accuracy,number", *lines]) + "\n")
    callback = {"class_path": "dartslight.callbacks.TrueAccuracy", "init_args": {"table": str(table)}}
    config = tmp_path / "table.yaml"
    config.write_text(yaml.safe_dump({"trainer": {"callbacks": [callback]}}))
    said = []
    for threads in ("1", "2"):
        words = ["select", "--config", FREEFLOW, "--config", str(config), *SMALL]
        child = subprocess.run(
            [sys.executable, "-m", "dartslight", *words, f"--trainer.default_root_dir={tmp_path / threads}"],
            env={**os.environ, "OMP_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=False,
        )
        assert child.returncode == 0, child.stderr[-2000:]
        said.append(child.stdout)
    one, other = (tmp_path / threads / "version_0" for threads in ("1", "2"))
    assert rows(one) == rows(other)
    assert (one / "genotype.json").read_bytes() == (other / "genotype.json").read_bytes()
    arch = Genotype.load(one / "genotype.json").to_nasbench201()
    found = {line[2:].partition("  ")[0]: line for line in said[0].splitlines() if " in common" in line}
    assert set(found) == {"this", "random", "|alpha| alone", "most parameters"}
    assert found["this"].endswith(
        f"6 of 6 in common, accuracy {arch.count('nor_conv_3x3')}, number {ARCHITECTURES.index(arch):,}"
    )
    assert "accuracy 6, number" in found["most parameters"]
    assert "table: random" in said[0]
    assert f"Run folder: {one}" in said[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--selection=dartslight.selection.Magnitude"], "give its checkpoint with --supernet"),
        (["--selection.score=dartslight.selection.Snip"], "the data are NoPictures; give a data set"),
        (["--selection.alpha_std=1e-300"], "give a larger --selection.alpha_std"),
        (["--trainer.devices=2"], "by one CPU core, but there are 2 devices"),
        (["--model.num_cells=4"], "give a multiple of 3"),
        (
            [
                "--model.space=s2",
                "--trainer.callbacks=dartslight.callbacks.TrueAccuracy",
                "--trainer.callbacks.table=T",
            ],
            "needs a search in the space 'nasbench201'",
        ),
    ],
)
def test_what_cannot_be_decided_is_refused(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "table.csv"
    table.write_text(f"arch,accuracy\n{ARCHITECTURES[0]},1\n")
    assert select(tmp_path / "runs", *[word.replace("table=T", f"table={table}") for word in words]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("dartslight: ")
    assert said in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_freeflow_is_worth_what_the_documents_say(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = os.environ.get("DARTSLIGHT_DATA")
    if not folder:
        pytest.skip("DARTSLIGHT_DATA is not set")
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    benchmark = importlib.import_module("freedarts_nb201")
    table = Table.read(str(Path(folder) / "nasbench201.csv.gz"))
    space = SPACES["nasbench201"]
    means = {}
    for row in ("**FreeFlow**", "abs(alpha) alone", "random", "most parameters (all 3x3)"):
        decided = [
            keep_strongest(space, Choices.everything(space), benchmark.ROWS[row](seed), "score").choices
            for seed in range(10)
        ]
        archs = [Genotype.from_choices(space, choices).to_nasbench201() for choices in decided]
        means[row] = [
            float(np.mean([table.value(a, title) for a in archs])) for title in ("cifar10_test", "cifar100_test")
        ]
    flow = means.pop("**FreeFlow**")
    assert flow[0] >= 93.2
    assert flow[1] >= 70.2
    assert means.pop("most parameters (all 3x3)") == pytest.approx([93.76, 71.1067], abs=0.01)
    for control in means.values():
        assert control[0] < flow[0] - 1
        assert control[1] < flow[1] - 2


def test_a_fit_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = f"--trainer.default_root_dir={tmp_path}"
    assert main(["fit", f"--config={FREEFLOW}", root, *SMALL]) == 2
    assert "NoPictures" in capsys.readouterr().err
    assert main(["fit", f"--config={FREEFLOW}", root, *SMALL, "--data=dartslight.data.Digits"]) == 2
    assert "before any search" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
