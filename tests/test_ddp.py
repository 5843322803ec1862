"""Several processes that train and decide one supernet."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_accidents import RETRAIN
from test_command_line import QUICK, decisions

from dartslight.cli import main
from dartslight.genotype import Genotype

TESTS = Path(__file__).parent
PATHS = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
ENVIRONMENT = {**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"}


def fit(root: Path, processes: int, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "dartslight",
            "fit",
            *QUICK,
            f"--trainer.default_root_dir={root / 'runs'}",
            "--trainer.accelerator=cpu",
            f"--trainer.devices={processes}",
            f"--data.batch_size={64 // processes}",
            "--trainer.callbacks=ddp_probe.Probe",
            f"--trainer.callbacks.folder={root}",
            *words,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=ENVIRONMENT,
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.mark.ddp
@pytest.mark.parametrize(
    ("processes", "gradient"),
    [(2, "FirstOrder"), (2, "Unrolled"), (2, "FiniteDifference"), (2, "Fixed"), (4, "FirstOrder")],
)
def test_all_processes_hold_the_same_and_decide_the_same(tmp_path: Path, processes: int, gradient: str) -> None:
    words = [f"--model.gradient=dartslight.strategies.{gradient}", "--model.track_statistics=true"]
    done = fit(tmp_path, processes, *words)
    assert done.returncode == 0, done.stderr[-3000:]
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
    assert done.stdout.count("Run folder:") == 1


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
def test_every_rule_decides_the_same_on_all_processes(tmp_path: Path, words: list[str]) -> None:
    done = fit(tmp_path, 2, "--model.track_statistics=true", *words, *SMALL)
    assert done.returncode == 0, done.stderr[-3000:]
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
    done = fit(tmp_path, 2, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    a, b = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(a["alphas"][k], b["alphas"][k]) for k in a["alphas"])
    assert a["choices"] == b["choices"]


@pytest.mark.ddp
@pytest.mark.parametrize("gradient", ["FirstOrder", "Unrolled", "FiniteDifference", "Fixed"])
def test_two_processes_compute_what_one_does(tmp_path: Path, gradient: str) -> None:
    for processes in (1, 2):
        command = [sys.executable, str(TESTS / "ddp_equal.py"), str(tmp_path), str(processes), gradient]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=ENVIRONMENT)
        assert done.returncode == 0, done.stderr[-3000:]
    one, a, b = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1_0", "2_0", "2_1"))
    for name, alone in one.items():
        assert torch.equal(a[name], b[name])
        torch.testing.assert_close(a[name], alone, rtol=1e-9, atol=1e-11)
    if gradient != "Fixed":
        assert one["architecture.alphas.cell"].abs().max() > 0.03  # it has learned


@pytest.mark.ddp
@pytest.mark.parametrize("racing", ["null", "0.8"])
def test_devices_divide_the_pictures_of_a_decision(tmp_path: Path, racing: str) -> None:
    assert main(["fit", *QUICK, "--data.max_pictures=512", f"--trainer.default_root_dir={tmp_path / 'runs'}"]) == 0
    supernet = tmp_path / "runs" / "version_0" / "checkpoints" / "search.ckpt"
    seen = tmp_path / "seen"
    rows = []
    for processes in (1, 2, 3):
        root = tmp_path / f"on_{processes}"
        command = [sys.executable, "-m", "dartslight", "select", "--supernet", str(supernet), "--data.batch_size=16"]
        command += ["--selection=dartslight.selection.Perturbation", "--selection.interval=0"]
        command += [f"--selection.racing={racing}", "--trainer.accelerator=cpu", f"--trainer.devices={processes}"]
        command += ["--trainer.callbacks=ddp_probe.Measured", f"--trainer.callbacks.folder={seen}"]
        command += [f"--trainer.default_root_dir={root}", "--trainer.enable_progress_bar=false"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=ENVIRONMENT)
        assert done.returncode == 0, done.stderr[-3000:]
        rows.append(decisions(root / "version_0"))
        counts = [int((seen / f"{processes}_{rank}.txt").read_text()) for rank in range(processes)]
        assert max(counts) <= min(counts) + 6 * 5  # at most one more batch for each decision, of 5 variants each
    assert rows[0] == rows[1] == rows[2]
    assert rows[0]


@pytest.mark.ddp
@pytest.mark.parametrize("kind", ["search", "retrain", "full disk"])
def test_all_processes_stop_where_one_has_to(tmp_path: Path, kind: str) -> None:
    words = ["fit", *QUICK]
    if kind == "retrain":
        genotype = Genotype.from_nasbench201("|none~0|+|none~0|none~1|+|skip_connect~0|none~1|nor_conv_3x3~2|")
        (tmp_path / "genotype.json").write_text(genotype.to_json())
        words = ["fit", *RETRAIN, f"--model.genotype={tmp_path / 'genotype.json'}", "--trainer.max_epochs=2"]
    words += ["--data.batch_size=16", "--checkpoint_every_n_batches=1"]
    words += [] if kind == "full disk" else ["--trainer.callbacks=ddp_probe.Poison"]
    words += [f"--trainer.default_root_dir={tmp_path}", "--trainer.accelerator=cpu", "--trainer.devices=2"]
    no_room = ["bash", "-c", 'ulimit -f 20; exec "$@"', "bash"] if kind == "full disk" else []
    port = str(free_port())
    processes = [
        subprocess.Popen(
            [*(no_room if rank == 0 else []), sys.executable, "-m", "dartslight", *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**ENVIRONMENT, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    for process in processes:
        _, error = process.communicate(timeout=60)
        assert process.returncode == 2, error[-3000:]
        sentence = "ckpt' cannot be written (File too large)" if kind == "full disk" else "dartslight: In step 2 the "
        assert sentence in error
        assert "Traceback" not in error
    if kind == "full disk":
        return
    state = torch.load(tmp_path / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 2
    assert all(torch.isfinite(t).all() for t in state["state_dict"].values() if t.dtype.is_floating_point)
