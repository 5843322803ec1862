"""Several processes that train and decide one supernet."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import ddp_equal
import pytest
import torch
from children import end_within, keep_all, keep_all_without_room, start_devices, succeed
from test_accidents import RETRAIN
from test_command_line import QUICK, decisions, same_weights

from dartslight.cli import main
from dartslight.genotype import Genotype

TESTS = Path(__file__).parent
PATHS = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])


def words_for(root: Path, processes: int, *words: str) -> list[str]:
    """A search on some processes, which write down what they see."""
    return [
        "fit",
        *QUICK,
        f"--trainer.default_root_dir={root / 'runs'}",
        "--trainer.accelerator=cpu",
        f"--trainer.devices={processes}",
        f"--data.batch_size={64 // processes}",
        "--trainer.callbacks=ddp_probe.Probe",
        f"--trainer.callbacks.folder={root}",
        *words,
    ]


def fit(forks: Any, root: Path, processes: int, *words: str) -> str:
    return succeed(start_devices(forks, processes, root, main, words_for(root, processes, *words)))


def launched(root: Path, processes: int, *words: str) -> str:
    """Does so from one command, whose trainer starts the other processes."""
    done = subprocess.run(
        [sys.executable, "-m", "dartslight", *words_for(root, processes, *words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


FLOAT16 = ["--trainer.plugins=lightning.pytorch.plugins.MixedPrecision", "--trainer.plugins.precision=16-mixed"]
FLOAT16 += ["--trainer.plugins.device=cpu"]


@pytest.mark.ddp
@pytest.mark.parametrize(
    ("processes", "gradient", "more"),
    [
        (2, "FirstOrder", ["launched"]),
        (2, "FirstOrder", FLOAT16),
        (2, "Unrolled", []),
        (2, "FiniteDifference", []),
        (2, "Fixed", []),
        (4, "FirstOrder", []),
    ],
    ids=str,
)
def test_all_processes_hold_the_same_and_decide_the_same(
    tmp_path: Path, forks: Any, processes: int, gradient: str, more: list[str]
) -> None:
    words = [f"--model.gradient=dartslight.strategies.{gradient}", "--model.track_statistics=true"]
    if more == ["launched"]:
        printed = launched(tmp_path, processes, *words)
    else:
        printed = fit(forks, tmp_path, processes, *words, *more)
    a, *others = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(processes))
    for b in others:
        assert all(torch.equal(a["alphas"][k], b["alphas"][k]) for k in a["alphas"])
        assert all(torch.equal(a["weights"][k], b["weights"][k]) for k in a["weights"])
        assert a["choices"] == b["choices"]
        assert a["labels"] != b["labels"]
    assert a["steps"] == len(a["labels"]) == 14
    assert a["barriers"] == 0  # a GPU would have to wait there
    folders = list((tmp_path / "runs").iterdir())
    assert [folder.name for folder in folders] == ["version_0"]
    assert len({row["decision"] for row in decisions(folders[0])}) == 6
    assert printed.count("Run folder:") == 1


RULES = "dartslight.selection"
SMALL = ["--data.max_pictures=64", "--data.batch_size=8"]
AT_EPOCHS = ["--selection.interval=1", "--trainer.max_epochs=6"]


@pytest.mark.ddp
@pytest.mark.parametrize(
    "words",
    [
        [f"--selection={RULES}.Magnitude"],
        [f"--selection={RULES}.Random"],
        [f"--selection={RULES}.Perturbation", "--selection.criterion=weight"],
        [f"--selection={RULES}.Perturbation", "--selection.preset=official", "--selection.eval_batches=1"],
        [f"--selection={RULES}.Sgas", "--selection.warmup_epochs=1", "--selection.criterion=2", *AT_EPOCHS],
        [
            f"--selection={RULES}.Sgas",
            "--selection.warmup_epochs=1",
            f"--selection.perturbation={RULES}.Perturbation",
            *AT_EPOCHS,
        ],
        [f"--selection={RULES}.Staged", "--selection.keep=[3]", "--selection.max_skips=1"],
        [f"--selection={RULES}.LeaveOneOut", "--selection.criterion=divergence", "--selection.eval_batches=2"],
        [f"--selection={RULES}.Sensitivity", "--selection.eval_batches=3"],
        [f"--selection={RULES}.Sensitivity", "--selection.source=search"],
        [
            f"--selection={RULES}.CurvatureStop",
            "--selection.every=1",
            "--selection.window=1",
            "--selection.lag=1",
            "--selection.min_epoch=1",
            "--selection.ratio=0.01",
            "--trainer.max_epochs=3",
        ],
    ],
    ids=[
        "magnitude",
        "random",
        "by_weight",
        "official",
        "sgas",
        "sgas_perturbation",
        "staged",
        "leave_one_out",
        "sensitivity",
        "seen_sensitivity",
        "curvature_stop",
    ],
)
def test_every_rule_decides_the_same_on_all_processes(tmp_path: Path, forks: Any, words: list[str]) -> None:
    fit(forks, tmp_path, 2, "--model.track_statistics=true", *words, *SMALL)
    a, b = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    for part in ("alphas", "weights"):
        assert all(torch.equal(a[part][k], b[part][k]) for k in a[part])
    assert a["choices"] == b["choices"]
    assert a["labels"] != b["labels"]
    (folder,) = (tmp_path / "runs").iterdir()
    Genotype.load(folder / "genotype.json")
    assert decisions(folder)


@pytest.mark.ddp
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="synchronised normalisation needs two GPUs")
def test_synchronised_normalisation_on_two_gpus(tmp_path: Path) -> None:
    words = ["--trainer.accelerator=gpu", "--trainer.sync_batchnorm=true", "--model.track_statistics=true"]
    launched(tmp_path, 2, *words)
    a, b = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(a["alphas"][k], b["alphas"][k]) for k in a["alphas"])
    assert a["choices"] == b["choices"]


@pytest.mark.ddp
@pytest.mark.parametrize("gradient", ["FirstOrder", "Unrolled", "FiniteDifference", "Fixed"])
def test_two_processes_compute_what_one_does(tmp_path: Path, forks: Any, gradient: str) -> None:
    for processes in (1, 2):
        succeed(start_devices(forks, processes, tmp_path, ddp_equal.search, tmp_path, processes, gradient))
    one, a, b = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1_0", "2_0", "2_1"))
    for name, alone in one.items():
        assert torch.equal(a[name], b[name])
        torch.testing.assert_close(a[name], alone, rtol=1e-9, atol=1e-11)
    if gradient != "Fixed":
        assert one["architecture.alphas.cell"].abs().max() > 0.03  # it has learned


@pytest.mark.ddp
@pytest.mark.parametrize("racing", ["null", "0.8"])
def test_devices_divide_the_pictures_of_a_decision(tmp_path: Path, forks: Any, racing: str) -> None:
    assert main(["fit", *QUICK, "--data.max_pictures=512", f"--trainer.default_root_dir={tmp_path / 'runs'}"]) == 0
    supernet = tmp_path / "runs" / "version_0" / "checkpoints" / "search.ckpt"
    seen = tmp_path / "seen"
    rows = []
    for processes in (1, 2, 3):
        root = tmp_path / f"on_{processes}"
        command = ["select", "--supernet", str(supernet), "--data.batch_size=16"]
        command += ["--selection=dartslight.selection.Perturbation", "--selection.interval=0"]
        command += [f"--selection.racing={racing}", "--trainer.accelerator=cpu", f"--trainer.devices={processes}"]
        command += ["--trainer.callbacks=ddp_probe.Measured", f"--trainer.callbacks.folder={seen}"]
        command += [f"--trainer.default_root_dir={root}", "--trainer.enable_progress_bar=false"]
        succeed(start_devices(forks, processes, tmp_path, main, command))
        rows.append(decisions(root / "version_0"))
        counts = [int((seen / f"{processes}_{rank}.txt").read_text()) for rank in range(processes)]
        assert max(counts) <= min(counts) + 6 * 5  # at most one more batch for each decision, of 5 variants each
    assert rows[0] == rows[1] == rows[2]
    assert rows[0]


@pytest.mark.ddp
@pytest.mark.parametrize("kind", ["search", "retrain", "full disk"])
def test_all_processes_stop_where_one_has_to(tmp_path: Path, forks: Any, kind: str) -> None:
    words = ["fit", *QUICK]
    if kind == "retrain":
        genotype = Genotype.from_nasbench201("|none~0|+|none~0|none~1|+|skip_connect~0|none~1|nor_conv_3x3~2|")
        (tmp_path / "genotype.json").write_text(genotype.to_json())
        words = ["fit", *RETRAIN, f"--model.genotype={tmp_path / 'genotype.json'}", "--trainer.max_epochs=2"]
    words += ["--data.batch_size=16", "--checkpoint_every_n_batches=1"]
    words += [] if kind == "full disk" else ["--trainer.callbacks=ddp_probe.Poison"]
    words += [f"--trainer.default_root_dir={tmp_path}", "--trainer.accelerator=cpu", "--trainer.devices=2"]
    devices = start_devices(forks, 2, tmp_path, keep_all_without_room if kind == "full disk" else main, words)
    assert end_within(devices, 60) == [2, 2], [device.log.read_text()[-3000:] for device in devices]
    for device in devices:
        printed = device.log.read_text()
        sentence = "ckpt' cannot be written (File too large)" if kind == "full disk" else "dartslight: In step 2 the "
        assert sentence in printed
        assert "Traceback" not in printed
    if kind == "full disk":
        return
    state = torch.load(tmp_path / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 2
    assert all(torch.isfinite(t).all() for t in state["state_dict"].values() if t.dtype.is_floating_point)


@pytest.fixture(scope="module")
def on_two(forks: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run on two processes that was stopped after two of its decisions, and the same run when it had gone on."""
    root = tmp_path_factory.mktemp("on_two")
    words = ["fit", *QUICK, "--data.batch_size=32", "--checkpoint_every_n_batches=1", "--trainer.max_steps=6"]
    words += [f"--trainer.default_root_dir={root}", "--trainer.accelerator=cpu", "--trainer.devices=2"]
    succeed(start_devices(forks, 2, root, main, words))
    stopped = root / "version_0"
    assert {row["decision"] for row in decisions(stopped)} == {"0", "1"}
    whole = Path(shutil.copytree(stopped, root / "whole"))
    succeed(start_devices(forks, 2, root, main, going_on(whole)))
    return stopped, whole


def going_on(run: Path) -> list[str]:
    return ["fit", f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}", "--trainer.max_steps=-1"]


@pytest.mark.ddp
@pytest.mark.parametrize("name", ["decisions.csv", "checkpoints/scores.pt", "metrics.csv", "genotype.json"])
def test_all_processes_stop_where_the_first_cannot_write_one_file(
    tmp_path: Path, forks: Any, on_two: tuple[Path, Path], name: str
) -> None:
    stopped, whole = on_two
    run = Path(shutil.copytree(stopped, tmp_path / "version_0"))
    (run / name).unlink(missing_ok=True)
    (run / name).mkdir()  # which no file can replace
    devices = start_devices(forks, 2, tmp_path, keep_all, going_on(run))
    assert end_within(devices, 60) == [2, 2], [device.log.read_text()[-3000:] for device in devices]
    for device in devices:
        *_, last = device.log.read_text().strip().splitlines()
        assert last.startswith("dartslight: ")
        assert f"{run / name}' cannot be written (Is a directory)" in last
        assert "Traceback" not in device.log.read_text()
    assert not [path for path in run.rglob("*") if path.name.startswith(".")]
    (run / name).rmdir()
    succeed(start_devices(forks, 2, tmp_path, main, going_on(run)))
    assert (run / "genotype.json").read_text() == (whole / "genotype.json").read_text()
    assert decisions(run) == decisions(whole)
    assert same_weights(run, whole)


@pytest.mark.ddp
@pytest.mark.parametrize("moment", ["step", "decision"])
def test_all_processes_end_where_one_is_told_to(tmp_path: Path, forks: Any, moment: str) -> None:
    """By a signal in the middle of a message from one to the other."""
    words = ["fit", *QUICK, "--data.batch_size=32", "--checkpoint_every_n_batches=1", "--selection.interval=0"]
    words += [f"--trainer.default_root_dir={tmp_path}", "--trainer.accelerator=cpu", "--trainer.devices=2"]
    words += ["--trainer.callbacks=ddp_probe.Told", f"--trainer.callbacks.moment={moment}"]
    devices = start_devices(forks, 2, tmp_path, main, words)
    assert end_within(devices, 60) == [130, 130], [device.log.read_text()[-3000:] for device in devices]
    state = torch.load(tmp_path / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 3
    for device in devices:
        assert "go on with: python -m dartslight fit" in device.log.read_text().splitlines()[-1]
        assert "Traceback" not in device.log.read_text()
