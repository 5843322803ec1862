"""Sweeps: what they start is a command that the program understands, with the settings that were drawn."""

import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_strategies_in_training import CONFIGS, QUICK

from dartslight.training_cli import DartslightCLI, run_training

ROOT = CONFIGS.parent
OPTUNA = CONFIGS / "sweeps" / "optuna_study.py"


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command up to where training would begin."""
    found: list[DartslightCLI] = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(DartslightCLI, "_run_subcommand", lambda cli, subcommand: found.append(cli))

    def build(words: list[str]) -> DartslightCLI:
        run_training(words[0], words[1:])
        return found.pop()

    return build


def test_what_weights_and_biases_starts_is_understood(built: Any) -> None:
    sweep = yaml.safe_load((CONFIGS / "sweeps" / "wandb.yaml").read_text())
    *command, args = sweep["command"]
    assert command[:3] == ["python", "-m", "dartslight"]
    assert args == "${args}"
    drawn = {name: p["max"] if "max" in p else p["values"][-1] for name, p in sweep["parameters"].items()}
    cli = built([*command[3:], *(f"--{name}={value}" for name, value in drawn.items())])
    assert drawn == {f"model.{name.partition('.')[2]}": getattr(cli.model, name.partition(".")[2]) for name in drawn}
    assert cli.trainer.loggers[1]._offline is False
    assert cli.config.fit.selection is None


def test_what_optuna_starts_is_understood(built: Any) -> None:
    optuna = pytest.importorskip("optuna")
    program = runpy.run_path(str(OPTUNA))
    drawn = {"model.learning_rate": 0.03, "model.alpha_learning_rate": 0.004, "model.weight_decay": 0.001}
    cli = built(["fit", *program["DEFAULT"], *program["drawn"](optuna.trial.FixedTrial(drawn))])
    assert drawn == {f"model.{name.partition('.')[2]}": getattr(cli.model, name.partition(".")[2]) for name in drawn}
    assert cli.config.fit.selection is None


@pytest.mark.slow
def test_a_study_goes_on_where_it_stopped(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    for trials in (1, 2):
        words = ["--trials=1", f"--folder={tmp_path}", *QUICK, "--trainer.max_epochs=1"]
        done = subprocess.run(
            [sys.executable, OPTUNA, *words], cwd=ROOT, capture_output=True, text=True, check=True, timeout=300
        )
        assert len(list(tmp_path.glob("trial_*/version_0/metrics.csv"))) == trials
        ((count, loss),) = re.findall(r"^Best of (\d+): .* validation loss ([\d.]+)$", done.stdout, re.M)
        assert int(count) == trials
        assert float(loss) > 0
