"""Two processes that train and decide one supernet."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_command_line import QUICK, decisions

TESTS = Path(__file__).parent


def fit(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "dartslight",
            "fit",
            *QUICK,
            f"--trainer.default_root_dir={root / 'runs'}",
            "--trainer.accelerator=cpu",
            "--trainer.devices=2",
            "--data.batch_size=32",
            "--trainer.callbacks=ddp_probe.Probe",
            f"--trainer.callbacks.folder={root}",
            *words,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.ddp
@pytest.mark.parametrize(
    "gradient",
    ["FirstOrder", "Unrolled", "FiniteDifference", "Fixed"],
    ids=["first", "unrolled", "difference", "fixed"],
)
def test_two_processes_hold_the_same_and_decide_the_same(tmp_path: Path, gradient: str) -> None:
    done = fit(tmp_path, f"--model.gradient=dartslight.strategies.{gradient}", "--model.track_statistics=true")
    assert done.returncode == 0, done.stderr[-3000:]
    a, b = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(a["alphas"][k], b["alphas"][k]) for k in a["alphas"])
    assert all(torch.equal(a["weights"][k], b["weights"][k]) for k in a["weights"])
    assert a["choices"] == b["choices"]
    assert a["labels"] != b["labels"]
    assert a["steps"] == len(a["labels"]) == 14
    folders = list((tmp_path / "runs").iterdir())
    assert [folder.name for folder in folders] == ["version_0"]
    assert len({row["decision"] for row in decisions(folders[0])}) == 6
    assert done.stdout.count("Run folder:") == 1
