"""Runs that are killed at random moments and go on: their results are those of a run that was left alone."""

import hashlib
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from children import Child, end_within, keep_all, start, start_devices, succeed
from test_command_line import CONFIGS, QUICK, decisions, newest

from dartslight.callbacks import scores_file
from dartslight.cli import main
from dartslight.nets import Supernet

SEARCH = [*QUICK, "--checkpoint_every_n_batches=1", "--model.track_statistics=true", "--data.batch_size=32"]
PAIRED = ["fit", *SEARCH]
OFFICIAL = ["fit", *SEARCH, "--selection.preset=official", "--selection.eval_batches=2"]
# Fourteen epochs of one batch decide the operations, three more the inputs of nodes.
INPUTS = ["fit", *SEARCH, "--model.space=s2", "--model.init_channels=2", "--trainer.max_epochs=1"]
INPUTS += ["--data.size=8", "--data.padding=1", "--data.max_pictures=64", "--data.eval_batch_size=8"]
COSTS = {"num_cells": 9, "init_channels": 2, "target": 0.1, "size": 8}
CRITERIA = [
    {"class_path": "dartslight.criteria.CrossEntropy"},
    {"class_path": "dartslight.criteria.MultiplyAdds", "init_args": COSTS},
]
UNAS = ["fit", *SEARCH, "--model.space=mobile_small", "--model.num_cells=9", "--data.size=8", "--data.padding=1"]
UNAS += ["--model.relaxation=dartslight.strategies.Sampled", "--model.gradient=dartslight.strategies.ScoreFunction"]
UNAS += [f"--model.gradient.criteria={json.dumps(CRITERIA)}", "--model.gradient.surrogate_samples=20"]
UNAS += ["--model.init_channels=2", "--data.max_pictures=128", "--selection=dartslight.selection.Magnitude"]
UNAS += ["--trainer.callbacks=dartslight.callbacks.EstimateNoise", "--trainer.callbacks.draws=2"]
RETRAIN = [
    "fit",
    f"--config={CONFIGS / 'cifar10' / 'retrain_small.yaml'}",
    "--data=dartslight.data.Digits",
    "--data.train_portion=0.5",
    "--data.max_pictures=256",
    "--data.batch_size=16",
    "--model.init_channels=4",
    "--trainer.max_epochs=6",
    "--trainer.enable_progress_bar=false",
    "--checkpoint_every_n_batches=1",
]


def result(folder: Path) -> tuple[Any, ...]:
    """Everything that a run leaves, but for times: genotype, decisions, and a digest of all weights and alphas."""
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    weights = hashlib.sha256(b"".join(name.encode() + state[name].numpy().tobytes() for name in sorted(state)))
    genotype = folder / "genotype.json"
    rows = decisions(folder) if (folder / "decisions.csv").exists() else []
    return weights.hexdigest(), genotype.read_text() if genotype.exists() else "", rows


def decided(folder: Path) -> int:
    """How many decisions a run has written down."""
    return len({row["decision"] for row in decisions(folder)}) if (folder / "decisions.csv").exists() else 0


@pytest.fixture(scope="module")
def genotype(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("genotype")
    assert main([*PAIRED, f"--trainer.default_root_dir={root}"]) == 0
    return newest(root) / "genotype.json"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kills"), [("paired", 9), ("official", 10), ("inputs", 8), ("retrain", 9), ("unas", 4)]
)
def test_a_killed_run_goes_on_to_the_same_bits(
    tmp_path: Path, forks: Any, genotype: Path, name: str, kills: int
) -> None:
    retrain = [*RETRAIN, f"--model.genotype={genotype}"]
    words = {"paired": PAIRED, "official": OFFICIAL, "inputs": INPUTS, "retrain": retrain, "unas": UNAS}[name]
    log, begun = tmp_path / "log", tmp_path / "begun"

    def go_on(root: Path, *more: str) -> Any:
        found = list(root.glob("version_0/checkpoints/last.ckpt"))
        again = ["fit", f"--ckpt_path={found[0]}", "--trainer.max_steps=-1"] if found else []
        own = again or [*words, f"--trainer.default_root_dir={root}", *more]
        return start(forks, log, keep_all, own).process

    def seconds_alone(root: Path, *more: str) -> float:
        begin = time.monotonic()
        process = go_on(root, *more)
        process.join(300)
        assert process.exitcode == 0, log.read_text()[-3000:]
        return time.monotonic() - begin

    runs = 0

    def another() -> Path:
        """A folder for one more run, which holds what comes before the moments of interest."""
        nonlocal runs
        runs += 1
        root = tmp_path / f"run_{runs}"
        return Path(shutil.copytree(begun, root)) if begun.exists() else root

    length = seconds_alone(tmp_path / "whole")
    expected = result(tmp_path / "whole" / "version_0")
    if name == "inputs":
        seconds_alone(begun, "--trainer.max_steps=14")
        length = seconds_alone(another())
    rng, places = random.Random(name), []
    while len(places) < kills:
        root = another()
        while True:
            process = go_on(root)
            process.join(rng.uniform(0.1, length) if len(places) < kills else 300)
            if process.exitcode is not None:
                break
            process.kill()
            process.join()
            places.append(decided(root / "version_0"))
            if not list(root.glob("version_0/checkpoints/last.ckpt")):
                root = another()  # nothing to go on from yet: the user starts again
        assert process.exitcode == 0, log.read_text()[-3000:]
        (folder,) = root.glob("version_*")
        assert result(folder) == expected
        assert not [p.name for p in (folder / "checkpoints").iterdir() if p.suffix != ".ckpt"]
    print(f"{name}: {kills} kills in {runs} runs of {length:.1f} s, after so many decisions: {places}")
    assert name != "inputs" or max(places) > 28  # some inputs were decided, but not all


@pytest.mark.slow
@pytest.mark.ddp
def test_a_killed_rank_ends_the_run_which_goes_on_to_the_same_bits(tmp_path: Path, forks: Any) -> None:
    def go_on(root: Path) -> list[Child]:
        """Starts two processes and waits until they have met."""
        found = list(root.glob("version_0/checkpoints/last.ckpt"))
        own = ["fit", f"--ckpt_path={found[0]}"] if found else [*PAIRED, f"--trainer.default_root_dir={root}"]
        own += ["--trainer.accelerator=cpu", "--trainer.devices=2"]
        ranks = start_devices(forks, 2, tmp_path, keep_all, own)
        while "All distributed processes registered" not in ranks[0].log.read_text() and all(
            r.process.is_alive() for r in ranks
        ):
            time.sleep(0.05)
        return ranks

    ranks, begin = go_on(tmp_path / "whole"), time.monotonic()
    succeed(ranks)
    length = time.monotonic() - begin
    expected = result(tmp_path / "whole" / "version_0")
    rng, places, runs = random.Random(0), [], 0
    while len(places) < 10:
        root = tmp_path / f"run_{runs}"
        runs += 1
        while True:
            ranks = go_on(root)
            end_within(ranks, rng.uniform(0.1, length) if len(places) < 10 else 300)
            if not any(rank.process.is_alive() for rank in ranks):
                break
            rng.choice(ranks).process.kill()
            assert None not in end_within(ranks, 60)  # the other rank does not wait for ever
            places.append(decided(root / "version_0"))
            if not list(root.glob("version_0/checkpoints/last.ckpt")):
                root = tmp_path / f"run_{runs}"
                runs += 1
        succeed(ranks)
        (folder,) = root.glob("version_*")
        assert result(folder) == expected
    print(f"10 kills of a rank in {runs} runs of {length:.1f} s, after so many decisions: {places}")


@pytest.mark.parametrize(
    ("command", "told"), [("fit", signal.SIGINT), ("select", signal.SIGINT), ("select", signal.SIGTERM)], ids=str
)
def test_finished_candidates_are_not_scored_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, told: int
) -> None:
    """Also those of earlier decisions that no checkpoint holds yet, and where no epoch is left to go on in."""
    monkeypatch.setattr(scores_file, "SECONDS", 0.0)
    passes = []
    forward_each = Supernet.forward_each
    limit = 10**9

    def counted(net: Supernet, images: torch.Tensor, variants: list, *rest: Any) -> list:
        if not torch.is_grad_enabled() and images.shape[0] == 16:
            passes.append(len(variants))
            if len(passes) == limit:
                os.kill(os.getpid(), told)
        return forward_each(net, images, variants, *rest)

    monkeypatch.setattr(Supernet, "forward_each", counted)
    search = [*QUICK, "--data.batch_size=16", "--model.track_statistics=true", "--trainer.limit_val_batches=0"]
    search += ["--data.max_pictures=64", "--model.init_channels=2", "--trainer.max_epochs=1"]
    rule = ["--selection=dartslight.selection.Perturbation", "--selection.preset=official"]
    rule += ["--selection.monitor=false", "--selection.interval=0"]
    words = ["fit", *search, *rule]
    if command == "select":
        assert main(["fit", *search, "--selection=null", f"--trainer.default_root_dir={tmp_path}"]) == 0
        words = ["select", f"--supernet={tmp_path / 'version_0' / 'checkpoints' / 'last.ckpt'}", *rule]
    assert main([*words, f"--trainer.default_root_dir={tmp_path / 'whole'}"]) == 0
    count = len(passes)
    assert count == 30 * 2  # six edges of five operations, two batches
    passes.clear()
    limit = 31  # within the sixteenth candidate, which is of the fourth decision
    capsys.readouterr()
    assert main([*words, f"--trainer.default_root_dir={tmp_path / 'cut'}"]) == 130
    assert f"dartslight fit --ckpt_path {tmp_path / 'cut'}" in capsys.readouterr().err
    finished = len(passes) // 2  # a run that is told by SIGTERM measures on for at most 32 batches
    assert finished == (15 if told == signal.SIGINT else 16)
    limit = 10**9
    passes.clear()
    folder = tmp_path / "cut" / "version_0"
    assert main(["fit", "--ckpt_path", str(folder / "checkpoints" / "last.ckpt")]) == 0
    assert len(passes) == count - finished * 2
    assert result(folder) == result(tmp_path / "whole" / "version_0")
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["callbacks"]["Selector"]["points"] == 6
