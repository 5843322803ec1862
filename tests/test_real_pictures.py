"""The main job on real CIFAR-10: search, selection, look-up, other rules on the same supernet, retraining, test."""

import csv
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from dartslight.benchmarks import Table
from dartslight.genotype import Genotype

CONFIGS = Path(__file__).parent.parent / "configs"
DATA = os.environ.get("DARTSLIGHT_DATA")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(DATA is None, reason="DARTSLIGHT_DATA is not set")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with CIFAR-10 as class folders, where the runs go too."""
    folder = tmp_path_factory.mktemp("cifar10")
    for name in ("train", "test"):
        with tarfile.open(Path(DATA or "") / "cifar10" / f"{name}.tar") as archive:
            archive.extractall(folder / "data", filter="data")
    return folder


def dartslight(place: Path, command: str, *words: str) -> str:
    """Runs a command in a process of its own and returns what it printed."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "dartslight", command, *words], capture_output=True, text=True, check=False, cwd=place
    )
    assert done.returncode == 0, done.stderr[-3000:]
    print(f"{time.perf_counter() - start:.0f} s: {command} {' '.join(words)}")
    return done.stdout


def fit(place: Path, config: str, *words: str) -> Path:
    out = dartslight(
        place,
        "fit",
        "--config",
        str(CONFIGS / "cifar10" / config),
        f"--data.root={place / 'data'}",
        f"--data.cache_dir={place / 'cache'}",
        "--trainer.enable_progress_bar=false",
        *words,
    )
    return place / out.strip().splitlines()[-1].removeprefix("Run folder: ")


def test_search_select_look_up_retrain_test(place: Path) -> None:
    file = str(Path(DATA or "") / "nasbench201.csv.gz")
    table = Table.read(file)
    follow = ["--config", str(CONFIGS / "callbacks" / "true_accuracy.yaml")]
    run = fit(place, "nasbench201_small.yaml", "--data.max_pictures=4000", *follow, f"--trainer.callbacks.table={file}")
    with (run / "metrics.csv").open(newline="") as rows:
        followed = [float(row["true/cifar10_test"]) for row in csv.DictReader(rows)]
    assert len(followed) == 15
    known = {round(value, 3) for value in table.columns["cifar10_test"]}
    assert {round(value, 3) for value in followed} <= known

    found = {}
    supernet = f"--supernet={run / 'checkpoints' / 'search.ckpt'}"
    for rule in ("magnitude", "random", "official", "paired"):
        short = ["--selection.interval=1", "--selection.eval_batches=16"] if rule in ("official", "paired") else []
        out = dartslight(place, "select", "--config", str(CONFIGS / "select" / f"{rule}.yaml"), supernet, *short)
        folder = place / out.strip().splitlines()[-1].removeprefix("Run folder: ")
        arch = Genotype.load(folder / "genotype.json").to_nasbench201()
        assert f"{table.look_up(arch)['cifar10_test'].value:.10g}" in dartslight(
            place, "lookup", str(folder / "genotype.json"), "--table", file
        )
        found[rule] = folder
        print(rule, arch, {name: round(entry.value, 2) for name, entry in table.look_up(arch).items()})
    assert (found["paired"] / "genotype.json").read_text() == (run / "genotype.json").read_text()
    assert "none" not in (run / "genotype.json").read_text()

    genotype = f"--model.genotype={run / 'genotype.json'}"
    retrained = fit(place, "retrain_small.yaml", genotype, "--trainer.max_epochs=2")
    out = dartslight(place, "test", f"--ckpt_path={retrained / 'checkpoints' / 'last.ckpt'}")
    accuracy = float(next(line for line in out.splitlines() if "test/accuracy" in line).split()[-1])
    print("test accuracy", accuracy)
    assert accuracy > 0.4


@pytest.mark.parametrize("space", ["darts", "s2", "s4"])
def test_darts_spaces(place: Path, space: str) -> None:
    # Only the question whether noise is dropped needs a supernet that has learnt.
    fewer = [] if space == "s4" else ["--data.max_pictures=1000"]
    run = fit(place, f"{space}_small.yaml", *fewer)
    genotype = json.loads((run / "genotype.json").read_text())
    assert genotype["space"] == space
    ops = [edge["op"] for cell in genotype["cells"].values() for edge in cell["edges"]]
    assert len(ops) == 16
    print(space, ops)
    with (run / "decisions.csv").open(newline="") as rows:
        decisions = list(csv.DictReader(rows))
    assert len({row["decision"] for row in decisions}) == 28 + 6
    if space == "s4":
        assert "noise" not in ops
        # An edge that the supernet does not need may keep it until it is deleted; that decision says itself that it was
        # within the noise. Chance would keep it in 14 of the 28.
        kept = [
            row for row in decisions if row["op"] == "noise" and row["chosen"] == "1" and row["kind"] == "operation"
        ]
        assert len(kept) <= 7
        assert all(float(row["margin"]) < 3 * float(row["noise"]) for row in kept)
