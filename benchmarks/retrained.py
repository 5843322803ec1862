"""Selections where no table says what an architecture is worth: DARTS cells on real CIFAR-10, retrained.

    python benchmarks/retrained.py --data data/cifar10 [--out runs/retrained] [--jobs 2]
    python benchmarks/retrained.py --list
    python benchmarks/retrained.py --data … --index $SLURM_ARRAY_TASK_ID
    python benchmarks/retrained.py --report

One run is one seed of one space: a search (three cells, four channels, ten epochs on 2,000 + 2,000 pictures of 16x16),
each selection on that supernet, and each architecture retrained from scratch with an equal budget (five cells, eight
channels, five epochs on 10,000 pictures) and measured on the 10,000 test pictures. The last run of a space retrains the
architecture of the averaged scores of all its seeds, as often; it is taken when they are finished. A finished run is
never repeated. The budgets are short: what counts is the comparison, not the accuracy.
"""

import contextlib
import io
import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resumable import Row, Study, decide, paired, spread

SPACES = ("darts", "s2", "s4")
SEEDS = (0, 1, 2)
_RULES = "dartslight.selection"

DATA: dict[str, Any] = {"size": 16, "padding": 2, "batch_size": 64}
SEARCH: dict[str, Any] = {
    "trainer": {"max_epochs": 10, "limit_val_batches": 0, "enable_progress_bar": False},
    "model": {
        "class_path": "dartslight.modules.SearchModule",
        "init_args": {
            "num_cells": 3,
            "init_channels": 4,
            "learning_rate": 0.05,
            "alpha_learning_rate": 3e-3,
            "track_statistics": False,
        },
    },
    "data": {"class_path": "dartslight.data.ImageFolder", "init_args": {**DATA, "max_pictures": 4000}},
}
RETRAINING: dict[str, Any] = {
    "trainer": {"max_epochs": 5, "limit_val_batches": 0, "enable_progress_bar": False},
    "model": {
        "class_path": "dartslight.modules.RetrainModule",
        "init_args": {
            "num_cells": 5,
            "init_channels": 8,
            "learning_rate": 0.1,
            "drop_path": 0.0,
            "auxiliary_weight": 0.0,
        },
    },
    "data": {
        "class_path": "dartslight.data.ImageFolder",
        "init_args": {**DATA, "train_portion": 1.0, "max_pictures": 10000},
    },
}
SELECTIONS: dict[str, dict[str, Any]] = {
    "random": {"class_path": f"{_RULES}.Random"},
    "magnitude": {"class_path": f"{_RULES}.Magnitude"},
    "perturbation, official": {
        "class_path": f"{_RULES}.Perturbation",
        "init_args": {"preset": "official", "interval": 1, "eval_batches": 8},
    },
    "sensitivity": {"class_path": f"{_RULES}.Sensitivity", "init_args": {"eval_batches": 64}},
}
UNTRAINED: dict[str, dict[str, Any]] = {"FreeFlow": {"class_path": f"{_RULES}.FreeDarts"}}
"""Rules that decide a supernet of the same size as it is drawn, in the space of their paper."""
AVERAGED = ("magnitude", "sensitivity")
RUNS: list[tuple[str, int | None]] = [(space, seed) for space in SPACES for seed in (*SEEDS, None)]


def name_of(space: str, seed: int | None) -> str:
    """Returns the name of a run."""
    return f"{space}_averaged" if seed is None else f"{space}_seed_{seed}"


def run(index: int, folder: Path, given: Any) -> list[Row]:
    """Takes one run and returns a row for each retraining."""
    space, seed = RUNS[index]
    if seed is None:
        return averaged(space, folder, given)
    config = json.loads(json.dumps(SEARCH)) | {"seed_everything": seed}
    config["model"]["init_args"]["space"] = space
    config["data"]["init_args"] |= {"root": given.data, "cache_dir": str(folder.parent / "cache")}
    decide("fit", config, folder / "search")
    last = folder / "search" / "version_0" / "checkpoints" / "last.ckpt"
    rows = []
    for i, (name, rule) in enumerate({**SELECTIONS, **(UNTRAINED if space == "darts" else {})}.items()):
        given_supernet = [f"--supernet={last}"] if name in SELECTIONS else []
        settings = {"selection": rule} if given_supernet else config | {"selection": rule}
        version, seconds = decide("select", settings, folder / str(i), *given_supernet)
        row = {"space": space, "selection": name, "seed": seed, "seconds": seconds}
        row["accuracy"] = retrained(version / "genotype.json", seed, folder / f"retrained_{i}", given.data)
        rows.append(row | {"decisions": (version / "decisions.csv").read_text().splitlines()})
    return rows


def averaged(space: str, folder: Path, given: Any) -> list[Row]:
    """Retrains the architectures of the averaged scores of all seeds of a space."""
    from dartslight.genotype import Genotype
    from dartslight.selection.average import average
    from dartslight.selection.record import read_decisions
    from dartslight.spaces import SPACES as KNOWN

    found = []
    for seed in SEEDS:
        path = Path(given.out) / "rows" / f"{name_of(space, seed)}.json"
        if not path.exists():
            raise SystemExit(f"{name_of(space, seed)} must be finished before {name_of(space, None)}")
        found.append({row["selection"]: row["decisions"] for row in json.loads(path.read_text())})
    rows = []
    for i, selection in enumerate(AVERAGED):
        members = []
        for k, decisions in enumerate(found):
            text = folder / f"{i}_{k}.csv"
            text.parent.mkdir(parents=True, exist_ok=True)
            text.write_text("\n".join(decisions[selection]) + "\n")
            members.append(read_decisions(text))
        genotype = folder / f"{i}.json"
        genotype.write_text(Genotype.from_choices(KNOWN[space], average(KNOWN[space], members).choices).to_json())
        for seed in SEEDS:
            row = {"space": space, "selection": f"{selection}, averaged", "seed": seed, "seconds": 0.0}
            row["accuracy"] = retrained(genotype, seed, folder / f"retrained_{i}_{seed}", given.data)
            rows.append(row | {"decisions": []})
    return rows


def retrained(genotype: Path, seed: int, folder: Path, data: str) -> float:
    """Trains the network of a genotype from scratch and returns its accuracy on the test pictures, in percent."""
    from dartslight.cli import main

    config = json.loads(json.dumps(RETRAINING)) | {"seed_everything": seed}
    config["model"]["init_args"]["genotype"] = str(genotype)
    config["data"]["init_args"] |= {"root": data, "cache_dir": str(folder.parent.parent / "cache")}
    decide("fit", config, folder)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = main(["test", f"--ckpt_path={folder / 'version_0' / 'checkpoints' / 'last.ckpt'}"])
    found = re.search(r"test/accuracy\D+([0-9.]+)", said.getvalue())
    if code != 0 or found is None:
        raise SystemExit(f"test ended with code {code}: {said.getvalue()[-2000:]}")
    return 100 * float(found[1])


def report(rows: Sequence[Row], given: Any) -> str:
    """Returns the results as Markdown."""
    lines = ["| space | selection | seeds | test accuracy | against magnitude |", "|---|---|---|---|---|"]
    groups: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        groups.setdefault((row["space"], row["selection"]), {})[row["seed"]] = row["accuracy"]
    for (space, selection), own in sorted(groups.items()):
        base = groups.get((space, "magnitude"), {})
        differences = [own[s] - base[s] for s in sorted(own.keys() & base.keys())] if selection != "magnitude" else []
        lines.append(f"| {space} | {selection} | {len(own)} | {spread(list(own.values()))} | {paired(differences)} |")
    means: dict[str, list[float]] = {}
    for (_, selection), own in groups.items():
        means.setdefault(selection, []).append(statistics.mean(own.values()))
    complete = {selection: found for selection, found in means.items() if len(found) == len(SPACES)}
    whole = [f"{selection} {statistics.mean(found):.2f}" for selection, found in complete.items()]
    return "\n".join(lines) + (f"\n\nMeans over all spaces: {', '.join(whole)}." if whole else "")


if __name__ == "__main__":
    Study(
        doc=__doc__,
        runs=[name_of(*run) for run in RUNS],
        take=run,
        report=report,
        needs={"data": "folder with train/<class>/*.png and test/<class>/*.png of CIFAR-10"},
        report_needs=[],
        out="runs/retrained",
        order=sorted(range(len(RUNS)), key=lambda i: RUNS[i][1] is None),
    ).main()
