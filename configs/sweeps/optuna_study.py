"""Lets Optuna draw the settings of searches, each of them a run of its own; started again, it goes on.

    python configs/sweeps/optuna_study.py --trials 20
    python configs/sweeps/optuna_study.py --trials 20 --config configs/cifar10/s2_small.yaml --data.root data/cifar10

Its measure is the smallest validation loss of the supernet in an epoch of the search, before any decision: it says how
well weights and architecture parameters have learned together, not how good the architecture is. Needs
pip install '.[sweeps]'.
"""

import argparse
import csv
import subprocess
import sys
from pathlib import Path

import optuna

DEFAULT = ["--config", "configs/quickstart.yaml"]


def drawn(trial: optuna.trial.BaseTrial) -> list[str]:
    """Returns the settings of a trial as words of a command."""
    learning_rate = trial.suggest_float("model.learning_rate", 0.01, 0.2, log=True)
    alpha_learning_rate = trial.suggest_float("model.alpha_learning_rate", 3e-4, 0.03, log=True)
    weight_decay = trial.suggest_categorical("model.weight_decay", [1e-4, 3e-4, 1e-3])
    return [
        f"--model.learning_rate={learning_rate}",
        f"--model.alpha_learning_rate={alpha_learning_rate}",
        f"--model.weight_decay={weight_decay}",
        "--selection=null",
    ]


def loss_of(run: Path) -> float:
    """Returns the smallest validation loss in the metrics of a run."""
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return min(float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"])


def main() -> None:
    """Runs as many trials as are wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20, help="Number of trials (default: 20).")
    parser.add_argument("--folder", type=Path, default=Path("runs/optuna"), help="Folder of the study and its runs.")
    given, words = parser.parse_known_args()
    given.folder.mkdir(parents=True, exist_ok=True)

    def objective(trial: optuna.Trial) -> float:
        root = given.folder / f"trial_{trial.number}"
        command = ["fit", *(words or DEFAULT), *drawn(trial), f"--trainer.default_root_dir={root}"]
        subprocess.run([sys.executable, "-m", "dartslight", *command], check=True)
        return loss_of(root / "version_0")

    storage = f"sqlite:///{given.folder / 'study.db'}"
    study = optuna.create_study(study_name="dartslight", storage=storage, load_if_exists=True)
    study.optimize(objective, given.trials)
    print(f"Best of {len(study.trials)}: {study.best_params}, validation loss {study.best_value:.4f}")


if __name__ == "__main__":
    main()
