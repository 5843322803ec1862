"""The README tells the truth: its files exist and its commands run as they stand there."""

import csv
import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from dartslight.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = ("fit", "validate", "test", "predict", "export", "cost", "select", "ensemble", "lookup", "report", "draw")
OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")

SHORT = [
    "--trainer.max_epochs=1",
    "--trainer.enable_progress_bar=false",
    "--model.num_cells=3",
    "--model.init_channels=2",
    "--data.batch_size=16",
    "--data.eval_batch_size=16",
]
DIGITS = ["--data=dartslight.data.Digits", "--data.max_pictures=64"]
AT_ONCE = ["--selection.interval=0", "--selection.eval_batches=1"]


def commands(text: str) -> list[list[str]]:
    """The words after ``python -m dartslight`` of each command in the text."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:3] == ["python", "-m", "dartslight"]:
                found.append(words[3:])
    return found


def values_of(option: str, words: list[str]) -> list[str]:
    after = [value for word, value in itertools.pairwise(words) if word == option]
    return after + [word.partition("=")[2] for word in words if word.startswith(f"{option}=")]


def newest(root: Path) -> Path:
    return max(root.glob("version_*"), key=lambda p: int(p.name.removeprefix("version_")))


def test_commands_are_found_in_a_text() -> None:
    text = "a\n```bash\npip install .\npython -m dartslight fit --a b   # c\n```\n"
    text += "```bash\npython -m dartslight draw \\\n  'x y'\n```"
    assert commands(text) == [["fit", "--a", "b"], ["draw", "x y"]]
    assert values_of("--a", ["fit", "--a", "b", "--a=c", "--ab", "d"]) == ["b", "c"]


def test_the_readme_is_short_and_what_it_links_exists() -> None:
    assert len(README.splitlines()) <= 200
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", README) if not link.startswith(("http://", "https://"))]
    configs = re.findall(r"configs/[\w/]+\.yaml", README)
    assert len(links) >= 2
    assert len(configs) >= 2
    for name in [*links, *configs]:
        assert (ROOT / name).is_file(), name


def test_the_commands_of_the_readme_exist_and_so_do_their_configurations() -> None:
    found = commands(README)
    assert {"fit", "select", "test", "draw", "lookup"} <= {words[0] for words in found} <= set(COMMANDS)
    for words in found:
        for config in values_of("--config", words):
            assert (ROOT / config).is_file(), config


# ------------------------------------------------------------------------------------------- the commands really run


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the words of the README that stand for the user's own files are replaced by: tiny ones, in a new folder.

    ``RUN`` is a search with DARTS cells, as the first command there starts; only ``lookup`` needs one of NAS-Bench-201.
    """
    monkeypatch.chdir(tmp_path)
    search = ["--config", str(ROOT / "configs" / "quickstart.yaml"), *SHORT, *DIGITS, *AT_ONCE]
    assert main(["fit", *search, "--trainer.default_root_dir=searched"]) == 0
    run = newest(tmp_path / "searched")
    cells = ["--model.space=s2", "--selection=dartslight.selection.Magnitude", "--trainer.default_root_dir=cells"]
    assert main(["fit", *search[: -len(AT_ONCE)], *cells]) == 0

    stopping = ["--trainer.default_root_dir=stopped", "--trainer.max_steps=1", "--checkpoint_every_n_batches=1"]
    assert main(["fit", *search, *stopping]) == 0
    stopped = newest(tmp_path / "stopped")
    assert not (stopped / "genotype.json").exists()

    retrain = ["--config", str(ROOT / "configs" / "cifar10" / "retrain_small.yaml"), *SHORT, *DIGITS]
    retrain += [f"--model.genotype={run / 'genotype.json'}", "--trainer.default_root_dir=retrained"]
    assert main(["fit", *retrain]) == 0

    table = tmp_path / "table.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["arch", "accuracy"])
        for ops in itertools.product(OPS, repeat=6):
            arch = "|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|".format(*ops)
            writer.writerow([arch, arch.count("nor_conv_3x3")])

    rng = np.random.default_rng(0)
    for part, name, i in itertools.product(("train", "test"), ("cat", "dog"), range(40)):
        folder = tmp_path / "my_pictures" / part / name
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return {
        "RETRAIN_RUN": str(newest(tmp_path / "retrained")),
        "STOPPED_RUN": str(stopped),
        "RUN": str(newest(tmp_path / "cells")),
        "NASBENCH201_RUN": str(run),
        "pictures": str(tmp_path / "my_pictures"),
        "nasbench201.csv.gz": str(table),
    }


def filled_in(words: list[str], stand_ins: dict[str, str]) -> list[str]:
    """The same command with the user's own files put in and nothing left in it that takes long."""
    goes_on = words[0] == "fit" and values_of("--ckpt_path", words)
    filled = []
    for word in words:
        option, equals, value = word.rpartition("=")
        first, slash, rest = value.partition("/")
        if first == "RUN":
            first = "STOPPED_RUN" if goes_on else "NASBENCH201_RUN" if words[0] == "lookup" else "RUN"
        if first == "configs":
            first = str(ROOT / first)
        filled.append(option + equals + stand_ins.get(first, first) + slash + rest)
    if goes_on:
        return [*filled, "--trainer.max_steps=-1"]  # the stop is in the checkpoint's configuration
    if words[0] not in ("fit", "ensemble"):
        return filled
    own_pictures = any("ImageFolder" in word for word in words)
    configs = [yaml.safe_load(Path(path).read_text()) for path in values_of("--config", filled)]
    perturbs = any("Perturbation" in str(config.get("selection")) for config in configs)
    return [*filled, *SHORT, *([] if own_pictures else DIGITS), *(AT_ONCE if perturbs else [])]


@pytest.mark.slow
def test_the_commands_of_the_readme_run(stand_ins: dict[str, str], tmp_path: Path) -> None:
    ran = []
    for words in commands(README):
        filled = filled_in(words, stand_ins)
        before = set(tmp_path.rglob("config.yaml"))
        assert main(filled) == 0, filled
        ran.append(words[0])
        new = {"select": 1, "fit": int(not values_of("--ckpt_path", words)), "ensemble": 4}.get(words[0], 0)
        assert len(set(tmp_path.rglob("config.yaml")) - before) == new, filled
        for output in values_of("-o", filled):
            assert (tmp_path / output).stat().st_size > 0
    assert {"fit", "select", "test", "draw", "lookup"} <= set(ran)
    assert (Path(stand_ins["STOPPED_RUN"]) / "genotype.json").is_file()


@pytest.mark.slow
def test_weights_and_biases_offline(tmp_path: Path) -> None:
    """It runs with no network to speak of: every proxy leads nowhere."""
    wandb = ["--config", str(ROOT / "configs" / "loggers" / "wandb.yaml")]
    assert "--config configs/loggers/wandb.yaml" in README
    words = ["fit", "--config", str(ROOT / "configs" / "quickstart.yaml"), *wandb, *SHORT, *DIGITS, *AT_ONCE]
    words += [f"--trainer.default_root_dir={tmp_path / 'runs'}", f"--trainer.logger.init_args.save_dir={tmp_path}"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_") and k.lower() != "no_proxy"}
    dead = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
    homes = {name: str(tmp_path / "home") for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR")}
    done = subprocess.run(
        [sys.executable, "-m", "dartslight", *words],
        cwd=ROOT,
        env={**environment, **dead, **homes, "WANDB_MODE": "offline", "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    (offline,) = (tmp_path / "wandb").glob("offline-run-*")
    (record,) = offline.glob("*.wandb")
    assert record.stat().st_size > 0
    with (newest(tmp_path / "runs") / "metrics.csv").open(newline="") as file:
        assert [float(row["train/loss"]) > 0 for row in csv.DictReader(file)] == [True]
