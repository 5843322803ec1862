"""Averaging over supernets: its arithmetic, its records, and whole ensembles."""

import csv
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from test_one_shot import RULES, Weighed
from test_strategies_in_training import QUICK

from dartslight.cli import main
from dartslight.errors import InputError
from dartslight.genotype import Genotype
from dartslight.selection import Candidate, Decision, LeaveOneOut, Magnitude, Perturbation, SearchPlan, Sensitivity
from dartslight.selection.average import average
from dartslight.selection.record import decisions_csv, read_decisions, record
from dartslight.spaces import SPACES

SPACE = SPACES["nasbench201"]
SENSITIVE = [f"--selection={RULES}.Sensitivity", "--selection.source=search"]


def scored(table: np.ndarray, criterion: str = "sensitivity", base: float | None = None) -> list[Decision]:
    """The decisions of a supernet in the space NAS-Bench-201 with these scores, (edges, ops)."""
    decisions = []
    for edge, row in zip(SPACE.cells[0].edges, table, strict=True):
        values = [(float(v), None) if criterion == "sensitivity" else (base, float(v)) for v in row]
        found = [Candidate(edge.source, edge.node, op, *v, False) for op, v in zip(edge.ops, values, strict=True)]
        decisions.append(Decision("cell", "operation", criterion, tuple(found), pictures=100, margin=0.1, noise=0.1))
    return decisions


def ops_of(outcome: Any, space: Any = SPACE) -> list[str]:
    return [e.ops[0] for cell in Genotype.from_choices(space, outcome.choices).cells for e in cell.edges]


def test_scores_are_averaged_with_one_say_for_each_supernet() -> None:
    tables = [np.random.default_rng(i).random((6, 5)) * 10**i for i in range(3)]
    outcome = average(SPACE, [scored(t) for t in tables])
    shares = np.stack([t / t.sum() for t in tables])
    means = shares.mean(axis=0)
    assert ops_of(outcome) == [SPACE.cells[0].edges[e].ops[o] for e, o in enumerate(means.argmax(axis=1))]
    for e, decision in enumerate(outcome.decisions):
        assert [c.score_with for c in decision.candidates] == pytest.approx(list(means[e]))
        assert (decision.criterion, decision.pictures) == ("sensitivity, averaged", 300)
        second, first = np.argsort(means[e])[-2:]
        leads = shares[:, e, first] - shares[:, e, second]
        assert decision.margin == pytest.approx(leads.mean())
        assert decision.noise == pytest.approx(statistics.stdev(leads) / math.sqrt(3))
        assert [c.chosen for c in decision.candidates] == [o == first for o in range(5)]


@pytest.mark.parametrize(("criterion", "sign"), [("loss", 1), ("accuracy", -1), ("divergence", 1)])
def test_what_is_measured_without_a_candidate_is_turned_into_what_is_missed(criterion: str, sign: int) -> None:
    tables = [np.random.default_rng(i).random((6, 5)) for i in range(2)]
    with_base = average(SPACE, [scored(t, criterion, base=0.5) for t in tables])
    missed = np.stack([np.maximum(0, sign * (t - 0.5)) for t in tables])
    expected = (missed / missed.sum(axis=(1, 2), keepdims=True)).mean(axis=0)
    found = [[c.score_with for c in d.candidates] for d in with_base.decisions]
    assert found == pytest.approx(expected)
    without = average(SPACE, [scored(t, criterion) for t in tables])  # relative to the one that is missed least
    missed = np.stack([sign * t - (sign * t).min(axis=1, keepdims=True) for t in tables])
    expected = (missed / missed.sum(axis=(1, 2), keepdims=True)).mean(axis=0)
    found = [[c.score_with for c in d.candidates] for d in without.decisions]
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("space", ["nasbench201", "darts", "s1", "s3"])
@pytest.mark.parametrize(
    "rule",
    [
        Sensitivity(),
        LeaveOneOut(),
        Magnitude(),
        Perturbation(),
        Perturbation("official"),
        Perturbation(criterion="weight"),
    ],
    ids=["sensitivity", "leave_one_out", "magnitude", "paired", "official", "by_weight"],
)
def test_equal_supernets_decide_as_one(space: str, rule: Any, tmp_path: Path) -> None:
    supernet = Weighed(SPACES[space], lambda v: 0.0)
    decisions: list[Decision] = []
    plan = SearchPlan(supernet.space, 0)
    for point in range(len(rule.schedule(plan).points)):
        outcome = rule.decide(supernet, point, 0)
        supernet.choices = outcome.choices
        decisions += outcome.decisions
    kept = [record(decision, number, 1, 0.5) for number, decision in enumerate(decisions)]
    (tmp_path / "decisions.csv").write_text(decisions_csv(kept))
    read = read_decisions(tmp_path / "decisions.csv")
    assert [replace(d, batches=0) for d in read] == [replace(d, batches=0) for d in decisions]
    together = average(supernet.space, [read] * 3)
    alone = Genotype.from_choices(supernet.space, supernet.choices)
    found = Genotype.from_choices(supernet.space, together.choices)
    operations = {(c.name, e.source, e.node): e.ops for c in found.cells for e in c.edges}
    if getattr(rule, "settings", None) is None:  # one-shot rules: the inputs are the same ones as well
        assert found == alone
    assert all(
        operations[c.name, e.source, e.node] == e.ops
        for c in alone.cells
        for e in c.edges
        if (c.name, e.source, e.node) in operations
    )
    assert all(d.noise is None or d.noise == pytest.approx(0, abs=1e-12) for d in together.decisions)


def test_decisions_that_cannot_be_averaged_are_refused(tmp_path: Path) -> None:
    table = np.random.default_rng(0).random((6, 5))
    with pytest.raises(InputError, match="do not score edge 3<-2"):
        average(SPACE, [scored(table)[:5]] * 2)
    with pytest.raises(InputError, match="do not score the same candidates in every supernet"):
        average(SPACE, [scored(table), scored(table)[:5]])
    foreign = scored(table)
    for change in ({"op": "sep_conv_3x3"}, {"source": 7}):
        other = replace(foreign[0].candidates[0], **change)
        foreign[0] = replace(foreign[0], candidates=(other, *foreign[0].candidates[1:]))
        with pytest.raises(InputError, match="this search space does not have; average supernets of one space"):
            average(SPACE, [foreign] * 2)
    with pytest.raises(InputError, match="every candidate with a finite number"):
        average(SPACE, [scored(table * math.nan)] * 2)
    for text in ("", "a,b\n1,2\n", "decision,cell,kind\n0,cell,operation\n"):
        (tmp_path / "decisions.csv").write_text(text or "\x00")
        with pytest.raises(InputError, match="cannot be read"):
            read_decisions(tmp_path / "decisions.csv")
    with pytest.raises(InputError, match="cannot be read"):
        read_decisions(tmp_path / "none.csv")


def test_a_score_that_is_bias_stays_and_one_that_is_noise_averages_out() -> None:
    """The mean of scores that are the truth and twice as much noise finds what single supernets miss."""
    rng = np.random.default_rng(0)
    truth = rng.permuted(np.tile(np.arange(5) / 4, (6, 1)), axis=1)
    right = list(truth.argmax(axis=1))

    def hits(outcome: Any) -> int:
        names = ops_of(outcome)
        return sum(SPACE.cells[0].edges[e].ops[o] == names[e] for e, o in enumerate(right))

    tables = [truth + 1 + rng.normal(0, 0.5, (6, 5)) for _ in range(100)]
    single = [hits(average(SPACE, [scored(t)])) for t in tables]
    assert hits(average(SPACE, [scored(t) for t in tables])) == 6 > statistics.mean(single) + 2


# --------------------------------------------------------------------------------------------------------- whole runs


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "decisions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_an_ensemble_is_trained_piece_by_piece_and_decided_at_the_end(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "together"
    words = ["ensemble", "--seeds", "4", "5", f"--folder={folder}", *QUICK, *SENSITIVE]
    assert main([*words, "--index=1"]) == 0
    assert not (folder / "genotype.json").exists()
    first = (folder / "seed_5" / "version_0" / "decisions.csv").read_text()
    assert main(words) == 0
    members = [folder / f"seed_{seed}" / "version_0" for seed in (4, 5)]
    assert (members[1] / "decisions.csv").read_text() == first
    seeds = [yaml.safe_load((m / "config.yaml").read_text())["seed_everything"] for m in members]
    assert seeds == [4, 5]
    outcome = average(SPACE, [read_decisions(m / "decisions.csv") for m in members])
    assert Genotype.load(folder / "genotype.json") == Genotype.from_choices(SPACE, outcome.choices)
    assert {row["criterion"] for row in rows(folder)} == {"sensitivity, averaged"}
    assert all((folder / name).exists() for name in ("cell.svg", "cell.png", "config.yaml"))
    assert f"Run folder: {folder}" in capfd.readouterr().out.splitlines()[-1]
    # Several finished searches, decided anew by another rule.
    searched = [f"--supernet={m / 'checkpoints' / 'search.ckpt'}" for m in members]
    root = tmp_path / "again"
    again = ["select", *searched, f"--selection={RULES}.Magnitude", f"--trainer.default_root_dir={root}"]
    assert main(again) == 0
    assert {row["criterion"] for row in rows(root / "version_0")} == {"weight, averaged"}
    assert len(list(root.glob("version_0/supernet_*/version_0/genotype.json"))) == 2
    # One more supernet as long as decisions are not clear.
    assert main([*words, "--until_margin=1e9", "--max_supernets=3"]) == 0
    assert (folder / "seed_6" / "version_0" / "genotype.json").exists()
    assert "one more supernet, with seed 6" in capfd.readouterr().out


@pytest.mark.slow
def test_an_ensemble_that_was_killed_goes_on(tmp_path: Path) -> None:
    def command(folder: Path) -> list[str]:
        words = ["ensemble", "--seeds", "0", "1", f"--folder={folder}", *QUICK, *SENSITIVE]
        return [sys.executable, "-m", "dartslight", *words, "--checkpoint_every_n_batches=1"]

    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True)
    stopped = tmp_path / "stopped"
    with subprocess.Popen(command(stopped), stdout=subprocess.DEVNULL, start_new_session=True) as child:
        last = stopped / "seed_1" / "version_0" / "checkpoints" / "last.ckpt"
        deadline = time.monotonic() + 300
        while not last.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.killpg(child.pid, signal.SIGKILL)
    assert last.exists()
    assert not (stopped / "genotype.json").exists()
    subprocess.run(command(stopped), check=True, capture_output=True)
    for name in ("genotype.json", "decisions.csv"):
        assert (stopped / name).read_text() == (tmp_path / "whole" / name).read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "0", "0"], "supernets of one seed are the same"),
        (["--seeds", "a"], "invalid int value"),
        (["--index", "7"], "--index is 7, but there are the seeds 0 to 2"),
        (["--seed_everything=3"], "--seed_everything follows from"),
        (["--trainer.default_root_dir", "x"], "--trainer.default_root_dir follows from"),
    ],
)
def test_wrong_ensembles_are_refused(
    words: list[str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["ensemble", f"--folder={tmp_path}", *words]) == 2
    assert message in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_run_that_fails_or_decides_nothing_ends_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["ensemble", "--seeds", "0", f"--folder={tmp_path}", *QUICK, "--trainer.max_epochs=1"]
    assert main([*words, "--model.space=unknown"]) == 2
    assert "ended with code 2 for the reason above" in capfd.readouterr().err
    assert main([*words, "--selection=null"]) == 2
    assert "has decided nothing" in capfd.readouterr().err
