"""Runs that are killed at random moments and go on: their results are those of a run that was left alone."""

import contextlib
import hashlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import kill_target
import pytest
import torch
from test_command_line import CONFIGS, QUICK, decisions, newest

from dartslight.callbacks import scores_file
from dartslight.cli import main
from dartslight.nets import Supernet

SEARCH = [*QUICK, "--checkpoint_every_n_batches=1", "--model.track_statistics=true", "--data.batch_size=32"]
PAIRED = ["fit", *SEARCH]
OFFICIAL = ["fit", *SEARCH, "--selection.preset=official", "--selection.eval_batches=2"]
RETRAIN = [
    "fit",
    f"--config={CONFIGS / 'cifar10' / 'retrain_small.yaml'}",
    "--data=dartslight.data.Digits",
    "--data.train_portion=0.5",
    "--data.max_pictures=256",
    "--data.batch_size=16",
    "--model.init_channels=4",
    "--trainer.max_epochs=3",
    "--trainer.enable_progress_bar=false",
    "--checkpoint_every_n_batches=1",
]


def result(folder: Path) -> tuple[Any, ...]:
    """Everything that a run leaves, but for times: genotype, decisions, and a digest of all weights and alphas."""
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    weights = hashlib.sha256(b"".join(name.encode() + state[name].numpy().tobytes() for name in sorted(state)))
    genotype = folder / "genotype.json"
    decided = decisions(folder) if (folder / "decisions.csv").exists() else []
    return weights.hexdigest(), genotype.read_text() if genotype.exists() else "", decided


@pytest.fixture(scope="module")
def processes() -> Any:
    """Makes processes that have imported everything already, so that a kill meets the run and not its imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kill_target"])
    return context


@pytest.fixture(scope="module")
def genotype(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("genotype")
    assert main([*PAIRED, f"--trainer.default_root_dir={root}"]) == 0
    return newest(root) / "genotype.json"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kills"), [("paired", 16), ("official", 12), ("retrain", 12)])
def test_a_killed_run_goes_on_to_the_same_bits(
    tmp_path: Path, processes: Any, genotype: Path, name: str, kills: int
) -> None:
    words = {"paired": PAIRED, "official": OFFICIAL, "retrain": [*RETRAIN, f"--model.genotype={genotype}"]}[name]
    log = str(tmp_path / "log")

    def start(root: Path) -> Any:
        found = list(root.glob("version_0/checkpoints/last.ckpt"))
        own = ["fit", f"--ckpt_path={found[0]}"] if found else [*words, f"--trainer.default_root_dir={root}"]
        process = processes.Process(target=kill_target.run, args=(own, log))
        process.start()
        return process

    begin = time.monotonic()
    whole = start(tmp_path / "whole")
    whole.join(300)
    assert whole.exitcode == 0, Path(log).read_text()[-3000:]
    length = time.monotonic() - begin
    expected = result(tmp_path / "whole" / "version_0")
    rng, killed, runs = random.Random(name), 0, 0
    while killed < kills:
        root = tmp_path / f"run_{runs}"
        runs += 1
        while True:
            process = start(root)
            process.join(rng.uniform(0.1, length) if killed < kills else 300)
            if process.exitcode is not None:
                break
            process.kill()
            process.join()
            killed += 1
            if not list(root.glob("version_0/checkpoints/last.ckpt")):
                root = tmp_path / f"run_{runs}"  # nothing to go on from yet: the user starts again
                runs += 1
        assert process.exitcode == 0, Path(log).read_text()[-3000:]
        (folder,) = root.glob("version_*")
        assert result(folder) == expected
        assert not [p.name for p in (folder / "checkpoints").iterdir() if p.suffix != ".ckpt"]
    print(f"{name}: {killed} kills in {runs} runs of {length:.1f} s")


@pytest.mark.slow
@pytest.mark.ddp
def test_a_killed_rank_ends_the_run_which_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(root: Path) -> subprocess.Popen[str]:
        found = list(root.glob("version_0/checkpoints/last.ckpt"))
        own = ["fit", f"--ckpt_path={found[0]}"] if found else [*PAIRED, f"--trainer.default_root_dir={root}"]
        own += ["--trainer.accelerator=cpu", "--trainer.devices=2"]
        return subprocess.Popen(
            [sys.executable, "-m", "dartslight", *own],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )

    begin = time.monotonic()
    assert start(tmp_path / "whole").wait(300) == 0
    length = time.monotonic() - begin
    expected = result(tmp_path / "whole" / "version_0")
    rng, killed, runs = random.Random(0), 0, 0
    while killed < 10:
        root = tmp_path / f"run_{runs}"
        runs += 1
        process = start(root)
        while process.poll() is None:
            # What happens before the second process is there is not of interest.
            if ends_within(process, rng.uniform(length / 3, length) if killed < 10 else 300):
                continue
            ranks = [process.pid, *children(process.pid)]
            os.kill(rng.choice(ranks), signal.SIGKILL)
            killed += 1
            assert ends_within(process, 60)  # the other rank does not wait for ever
            for rank in filter(is_alive, ranks):
                os.kill(rank, signal.SIGKILL)
            if process.returncode != 0:  # else it was killed when all was done
                process = start(root)
        assert process.returncode == 0
        (folder,) = root.glob("version_*")
        assert result(folder) == expected


def ends_within(process: subprocess.Popen[str], seconds: float) -> bool:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    return process.returncode is not None


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_finished_candidates_are_not_scored_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores_file, "SECONDS", 0.0)
    passes = []
    forward_each = Supernet.forward_each
    limit = 10**9

    def counted(net: Supernet, images: torch.Tensor, variants: list, *rest: Any) -> list:
        if not torch.is_grad_enabled() and images.shape[0] == 16:
            passes.append(len(variants))
            if len(passes) > limit:
                raise KeyboardInterrupt
        return forward_each(net, images, variants, *rest)

    monkeypatch.setattr(Supernet, "forward_each", counted)
    words = ["fit", *QUICK, "--data.batch_size=16", "--selection.preset=official", "--selection.monitor=false"]
    words += ["--model.track_statistics=true", "--trainer.limit_val_batches=0", "--selection.interval=0"]
    assert main([*words, f"--trainer.default_root_dir={tmp_path / 'whole'}"]) == 0
    count = len(passes)
    assert count == 30 * 8  # six edges of five operations, eight batches
    passes.clear()
    limit = 45  # within the sixth candidate
    assert main([*words, f"--trainer.default_root_dir={tmp_path / 'cut'}"]) != 0
    limit = 10**9
    passes.clear()
    folder = tmp_path / "cut" / "version_0"
    assert main(["fit", "--ckpt_path", str(folder / "checkpoints" / "last.ckpt")]) == 0
    assert len(passes) == count - 5 * 8  # the five finished ones were kept
    assert result(folder) == result(tmp_path / "whole" / "version_0")
