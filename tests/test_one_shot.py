"""One-shot rules: what leave-one-out and sensitivity compute, what follows from it, and whole runs with them."""

import copy
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from test_kill import result
from test_selection import Given
from test_strategies import batch_of, problem_of, search
from test_strategies_in_training import QUICK, fit, newest
from torch import Tensor, nn

from dartslight.cli import main
from dartslight.errors import InputError
from dartslight.genotype import Genotype
from dartslight.modules.sensitivities import SeenSensitivities, sensitivity
from dartslight.modules.timetable import Stage, Timetable
from dartslight.selection import (
    Evaluation,
    LeaveOneOut,
    Measurement,
    Perturbation,
    SearchPlan,
    Sensitivities,
    Sensitivity,
    Variant,
)
from dartslight.spaces import SPACES, Choices
from dartslight.strategies import FiniteDifference, Fixed

RULES = "dartslight.selection"


class Weighed(Given):
    """A supernet that misses each operation by a number of its own, a whole edge by the sum of its operations'."""

    noise = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        generator = torch.Generator().manual_seed(3)
        self.worth = {c.name: torch.rand(len(c.edges), c.num_ops, generator=generator) for c in self.space.cells}

    def missed(self, choices: Choices) -> float:
        whole = Choices.everything(self.space)
        return sum(
            float(self.worth[cell][e, o])
            for cell, edges in whole.open
            for e, columns in enumerate(edges)
            for o in columns
            if o not in choices.of(cell)[e]
        )

    def measure(self, variants: Sequence[Variant], evaluation: Evaluation, race: Any = None) -> list[Measurement]:
        self.evaluations.append(evaluation)
        pictures = 10 * (evaluation.batches or 64)
        spread = torch.linspace(-1, 1, pictures, dtype=torch.float64)
        found = []
        for i, variant in enumerate(variants):
            own = self.noise * torch.randn(pictures, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
            loss = self.missed(variant.choices) + spread + own
            found.append(Measurement(loss, -loss, 2 * loss, pictures // 10))
        return found

    def sensitivity(self, evaluation: Evaluation | None) -> Sensitivities:
        self.evaluations.append(evaluation)
        samples = {}
        for cell, worth in self.worth.items():
            both = torch.cat([worth, worth.sum(dim=1, keepdim=True)], dim=1).double()
            samples[cell] = both + torch.linspace(-0.1, 0.1, 5, dtype=torch.float64).view(5, 1, 1)
        return Sensitivities(samples, 16)


def strongest(supernet: Weighed, exclude_none: bool) -> dict[str, dict[tuple[int, int], str]]:
    """The architecture by enumeration."""
    found = {}
    for cell in supernet.space.cells:
        ops = {}
        for e, edge in enumerate(cell.edges):
            names = [o for o in edge.ops if o != "none" or not exclude_none or len(edge.ops) == 1]
            ops[e] = max(names, key=lambda o, e=e, edge=edge: float(supernet.worth[cell.name][e, edge.ops.index(o)]))
        kept = list(ops)
        if supernet.space.inputs_per_node is not None:
            kept = []
            for node in cell.nodes:
                into = [e for e, edge in enumerate(cell.edges) if edge.node == node]
                worth = {e: float(supernet.worth[cell.name][e, : len(cell.edges[e].ops)].sum()) for e in into}
                kept += sorted(into, key=lambda e, worth=worth: -worth[e])[:2]
        found[cell.name] = {(cell.edges[e].source, cell.edges[e].node): ops[e] for e in kept}
    return found


@pytest.mark.parametrize("space", ["nasbench201", "darts", "s1", "s3", "s4"])
@pytest.mark.parametrize(
    "rule",
    [LeaveOneOut(), LeaveOneOut("accuracy"), LeaveOneOut("divergence", exclude_none=False), Sensitivity()],
    ids=["loss", "accuracy", "divergence", "sensitivity"],
)
def test_what_is_missed_most_is_kept(space: str, rule: Any) -> None:
    supernet = Weighed(SPACES[space], lambda v: 0.0)
    outcome = rule.decide(supernet, 0, 0)
    genotype = Genotype.from_choices(supernet.space, outcome.choices)
    found = {c.name: {(e.source, e.node): e.ops[0] for e in c.edges} for c in genotype.cells}
    assert found == strongest(supernet, rule.exclude_none)
    assert len(supernet.evaluations) == 1  # one sweep
    for decision in outcome.decisions:
        chosen = [c.score_without if c.score_with in (0.0, None) else c.score_with for c in decision.candidates]
        assert None not in chosen
        # Every candidate has the same samples up to a constant, so a paired difference has no noise.
        assert decision.margin is None or (decision.margin >= 0 and decision.noise == pytest.approx(0, abs=1e-9))


def test_a_sweep_grows_until_all_decisions_are_clear() -> None:
    def batches(noise: float, **settings: Any) -> list[int | None]:
        supernet = Weighed(SPACES["nasbench201"], lambda v: 0.0)
        supernet.noise = noise
        LeaveOneOut(**settings).decide(supernet, 0, 0)
        return [e.batches for e in supernet.evaluations]

    assert batches(0.0, until_margin=3) == [8]
    assert batches(5.0) == [None]
    assert batches(5.0, eval_batches=20) == [20]
    assert batches(5.0, until_margin=3, eval_batches=20) == [8, 16, 20]
    assert batches(0.05, until_margin=3, eval_batches=10**6)[0] == 8
    found = batches(0.3, until_margin=3, eval_batches=10**6)
    assert found == [8 * 2**i for i in range(len(found))]
    assert 1 < len(found) < 12


@pytest.mark.usefixtures("float64")
def test_sensitivity_is_that_of_the_loss_to_the_mixing_weights() -> None:
    """Compares what an architecture step sees with the derivative by mixing weights that nothing else depends on."""
    module = search("s3", epochs=6, alpha_init_std=0.5, partial_channels=2, edge_normalisation=True)
    batch = {"train": batch_of(6), "val": batch_of(6, seed=1)}
    mixing = {c: m.detach().requires_grad_() for c, m in module.mixing(module.choices).items()}
    loss = nn.functional.cross_entropy(
        module.supernet(batch["val"].images, mixing, module.choices), batch["val"].labels
    )
    expected = dict(zip(mixing, torch.autograd.grad(loss, list(mixing.values())), strict=True))
    module.gradient(problem_of(module, batch))
    seen = module._seen.of_step(1.0)
    for (cell, own), found in zip(mixing.items(), seen, strict=True):
        num_ops = module.space.cell(cell).num_ops
        for e in range(len(own)):
            products = [float((own[e, o] * expected[cell][e, o]).detach()) for o in range(num_ops)]
            for o in range(num_ops):
                assert float(found[e, o]) == pytest.approx(abs(products[o]), rel=1e-9, abs=1e-15)
            assert float(found[e, num_ops]) == pytest.approx(abs(sum(products)), rel=1e-9, abs=1e-15)
    assert max(float(s.max()) for s in seen) > 1e-4
    assert module._seen.of_step(1.0) == []


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("gradient", "sees"), [(FiniteDifference(), True), (Fixed(), False)])
def test_which_searches_see_sensitivities(gradient: Any, sees: bool) -> None:
    assert search("nasbench201", gradient=gradient).search_plan(is_over=False).sees is sees
    early = search("nasbench201", epochs=10, epoch=4, sensitivity_epochs=3)
    problem = problem_of(early, {"train": batch_of(4), "val": batch_of(4, seed=1)})
    early.gradient(problem)
    assert early._seen.of_step(1.0) == []  # only the last three epochs count
    assert not search("nasbench201", sensitivity_epochs=0).search_plan(is_over=False).sees
    assert not search("nasbench201", epochs=10, alpha_warmup_epochs=10).search_plan(is_over=False).sees


def test_which_epochs_are_kept() -> None:
    def kept(stages: int, count: int | None) -> list[int]:
        timetable = Timetable([Stage(3)] * stages, 12)
        return [epoch for epoch in range(15) if timetable.is_among_last(epoch, count)]

    assert (kept(1, None), kept(1, 2), kept(1, 0)) == (list(range(12)), [10, 11], [])
    # The supernet that is decided is that of the last stage.
    assert (kept(3, None), kept(3, 2), kept(3, 9)) == ([8, 9, 10, 11], [10, 11], [8, 9, 10, 11])


def test_a_long_search_keeps_few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dartslight.modules.sensitivities._MOST", 8)
    steps = [[torch.full((6, 6), float(i), dtype=torch.float64)] for i in range(37)]
    seen, stopped = SeenSensitivities({"cell": 5}), SeenSensitivities({"cell": 5})
    for i, step in enumerate(steps):
        seen.add(step)
        # A run that goes on in the middle of a sample is the same run.
        other = SeenSensitivities({"cell": 5})
        other.load(copy.deepcopy(stopped.state()) if i else {"samples": {}, "begun": [], "steps": 1})
        other.add(step)
        stopped = other
    assert (seen.steps, len(seen.samples()["cell"])) == (8, 4)
    assert [float(s[0, 0]) for s in seen.samples()["cell"]] == [3.5, 11.5, 19.5, 27.5]
    for one in (seen, stopped):
        one.add([])
        for i in range(3):
            one.add([torch.full((6, 6), 100.0 + i, dtype=torch.float64)])
        assert float(one.samples()["cell"][4, 0, 0]) == pytest.approx((32 + 33 + 34 + 35 + 36 + 303) / 8)
    assert stopped.state()["samples"]["cell"].equal(seen.state()["samples"]["cell"])


def test_samples_of_the_first_version_are_read() -> None:
    seen = SeenSensitivities({"cell": 5})
    seen.load({"cell": torch.ones(3, 6, 6)})
    assert (len(seen.samples()["cell"]), seen.steps) == (3, 1)


def test_what_a_checkpoint_held_is_brought_to_the_device() -> None:
    seen = SeenSensitivities({"cell": 5})
    seen.load({"samples": {"cell": torch.ones(3, 6, 6)}, "begun": [[torch.ones(6, 6)]], "steps": 2})
    seen.add([torch.ones(6, 6, device="meta")])
    assert {sample.device.type for sample in seen._samples["cell"]} == {"meta"}
    assert len(seen._samples["cell"]) == 4


@pytest.mark.usefixtures("float64")
def test_a_small_weight_is_missed_by_its_sensitivity() -> None:
    """To first order, the loss without an operation is that with it less w * dL/dw."""
    module = search("nasbench201", track_statistics=False)
    batch = batch_of(6)
    mixing = {"cell": module.mixing(module.choices)["cell"].detach().clone()}
    mixing["cell"][2, 3] = 1e-5
    mixing["cell"].requires_grad_()

    def loss(m: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(module.supernet(batch.images, m, module.choices), batch.labels)

    (gradient,) = torch.autograd.grad(loss(mixing), [mixing["cell"]])
    without = {"cell": mixing["cell"].detach().clone()}
    without["cell"][2, 3] = 0
    missed = abs(float((loss(without) - loss(mixing)).detach()))
    found = float(sensitivity(mixing["cell"].detach(), gradient, 5)[2, 3])
    assert found == pytest.approx(missed, rel=1e-3)
    assert found > 1e-9


def test_rules_without_evidence_are_refused() -> None:
    with pytest.raises(InputError, match="this search takes no such steps"):
        Sensitivity("search").schedule(SearchPlan(SPACES["s2"], 10, sees=False))
    assert Sensitivity().schedule(SearchPlan(SPACES["s2"], 10, sees=False)).points == (10,)
    with pytest.raises(InputError, match="leave eval_batches and until_margin out"):
        Sensitivity("search", eval_batches=3)
    with pytest.raises(InputError, match="give paired: true"):
        Perturbation("official", criterion="divergence")
    with pytest.raises(InputError, match="the criterion sensitivity measures none"):
        Perturbation(criterion="sensitivity", racing=0.9)


@pytest.mark.parametrize("criterion", ["divergence", "sensitivity"])
@pytest.mark.parametrize("space", ["nasbench201", "s3"])
def test_a_progressive_selection_by_every_score(space: str, criterion: Any) -> None:
    supernet = Weighed(SPACES[space], lambda v: 0.0)
    rule = Perturbation(criterion=criterion)
    for point in range(len(rule.schedule(SearchPlan(supernet.space, 0)).points)):
        supernet.choices = rule.decide(supernet, point, 0).choices
    genotype = Genotype.from_choices(supernet.space, supernet.choices)
    expected = strongest(supernet, exclude_none=True)
    for cell in genotype.cells:
        for edge in cell.edges:
            if (edge.source, edge.node) in expected[cell.name]:
                assert edge.ops[0] == expected[cell.name][edge.source, edge.node]
    assert {c for e in supernet.evaluations for c in [e.batch_size]} == {16 if criterion == "sensitivity" else None}


# --------------------------------------------------------------------------------------------------------- whole runs


def table_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "decisions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    "words",
    [
        [f"--selection={RULES}.LeaveOneOut"],
        [f"--selection={RULES}.Sensitivity"],
        [f"--selection={RULES}.Sensitivity", "--selection.source=search", "--model.sensitivity_epochs=2"],
    ],
    ids=["leave_one_out", "sensitivity", "seen"],
)
def test_a_one_shot_run_goes_on_to_the_same_bits(words: list[str], tmp_path: Path) -> None:
    every = "--checkpoint_every_n_batches=1"
    whole = fit(tmp_path / "whole", *words, every)
    rows = table_of(whole)
    assert len({row["edge"] for row in rows}) == 6
    assert all(float(row["noise"]) > 0 for row in rows)
    assert not any(row["op"] == "none" for row in rows)
    stopped = fit(tmp_path / "stopped", *words, every, "--trainer.max_steps=3")  # within the second epoch
    assert main(["fit", f"--ckpt_path={stopped / 'checkpoints' / 'last.ckpt'}", "--trainer.max_steps=-1"]) == 0
    assert result(newest(tmp_path / "stopped")) == result(whole)
    # And from the finished search.
    searched = whole / "checkpoints" / "search.ckpt"
    root = f"--trainer.default_root_dir={tmp_path / 'again'}"
    assert main(["select", f"--supernet={searched}", root, *words[:2]]) == 0
    again = table_of(newest(tmp_path / "again"))
    assert [row["op"] for row in again if row["chosen"] == "1"] == [row["op"] for row in rows if row["chosen"] == "1"]


def test_fixed_parameters_see_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model.gradient=dartslight.strategies.Fixed", f"--selection={RULES}.Sensitivity"]
    assert main(["fit", *QUICK, f"--trainer.default_root_dir={tmp_path}", *words, "--selection.source=search"]) == 2
    assert "give source validation" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
