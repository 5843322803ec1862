"""The cluster's scripts and configurations start runs; SLURM and its srun are simulated, the processes are real."""

import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from test_command_line import QUICK, decisions

from dartslight.cli import main

ROOT = Path(__file__).parent.parent
CLUSTER = ROOT / "configs" / "cluster"
ON_CPU = ["--trainer.accelerator=cpu", "--trainer.precision=32-true", "--data.batch_size=32"]

SRUN = f"""#!{sys.executable}
import os, subprocess, sys
count = int(os.environ["SLURM_NTASKS"])
tasks = [
    subprocess.Popen(sys.argv[1:], env={{**os.environ, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}})
    for i in range(count)
]
sys.exit(max(task.wait() for task in tasks))
"""


def slurm(tmp_path: Path, tasks: int, **more: str) -> dict[str, str]:
    """The environment that SLURM gives a job on one node, with an srun that starts the processes here."""
    tools = tmp_path / "bin"
    tools.mkdir(exist_ok=True)
    for name, text in (("srun", SRUN), ("python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')):
        (tools / name).write_text(text)
        (tools / name).chmod(stat.S_IRWXU)
    variables = {
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NAME": "search",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_NTASKS": str(tasks),
        "SLURM_NTASKS_PER_NODE": str(tasks),
        "SLURM_NODELIST": "localhost",
        "SLURM_NODEID": "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    return {**os.environ, **variables, **more}


def submit(script: str, tmp_path: Path, tasks: int, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    short = ["--trainer.max_epochs=2", "--model.init_channels=4", "--data.max_pictures=256", *ON_CPU]
    if not (tmp_path / "configs").exists():
        (tmp_path / "configs").symlink_to(ROOT / "configs")
    command = ["bash", str(CLUSTER / script), "configs/quickstart.yaml", *short, *words]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=tmp_path,
        env=slurm(tmp_path, tasks, **more),
    )


@pytest.mark.ddp
def test_a_slurm_job_starts_and_goes_on_when_it_is_requeued(tmp_path: Path) -> None:
    # A configuration on top of another one, which alone would be refused when the job goes on.
    words = ["--trainer.enable_progress_bar=false", '--config={"model": {"init_args": {"weight_decay": 0.001}}}']
    done = submit("search.sbatch", tmp_path, 2, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Run folder:") == 1
    folder = tmp_path / "runs" / "search-4711" / "version_0"
    assert len({row["decision"] for row in decisions(folder)}) == 6
    before = (folder / "genotype.json").read_text()
    (folder / "genotype.json").unlink()
    again = submit("search.sbatch", tmp_path, 2, *words)
    assert again.returncode == 0, again.stderr[-3000:]
    assert (folder / "genotype.json").read_text() == before
    assert [path.name for path in folder.parent.iterdir()] == ["version_0"]


@pytest.mark.slow
def test_a_job_array_has_a_seed_for_each_task(tmp_path: Path) -> None:
    for task in ("3", "8"):
        words = ["--trainer.enable_progress_bar=false", "--selection=dartslight.selection.Magnitude"]
        done = submit("seeds.sbatch", tmp_path, 1, *words, SLURM_ARRAY_TASK_ID=task, SLURM_ARRAY_JOB_ID="4711")
        assert done.returncode == 0, done.stderr[-3000:]
        folder = tmp_path / "runs" / "search" / f"seed_{task}" / "version_0"
        assert yaml.safe_load((folder / "config.yaml").read_text())["seed_everything"] == int(task)
    page = tmp_path / "seeds.html"
    assert main(["report", str(tmp_path / "runs" / "search"), "-o", str(page)]) == 0
    shown = page.read_text()
    assert all(f"seed_{task}" in shown for task in ("3", "8"))


@pytest.mark.parametrize("script", ["search.sbatch", "seeds.sbatch"])
def test_a_job_whose_time_is_up_is_put_into_the_queue_again(script: str, tmp_path: Path) -> None:
    environment = slurm(tmp_path, 1, SLURM_ARRAY_TASK_ID="3")
    for name, text in (("srun", "touch started; exec sleep 60"), ("scontrol", 'echo "$@" > asked')):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(stat.S_IRWXU)
    command = ["bash", str(CLUSTER / script), "configs/quickstart.yaml"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True) as job:
        try:
            while not (tmp_path / "started").exists():
                assert job.poll() is None
                time.sleep(0.05)
            job.send_signal(signal.SIGUSR1)
            job.wait(10)
        finally:
            os.killpg(job.pid, signal.SIGKILL)
    assert (tmp_path / "asked").read_text() == "requeue 4711\n"


@pytest.mark.ddp
def test_torchrun_starts_two_processes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "dartslight"]
    command += ["fit", *QUICK, *ON_CPU, "--trainer.devices=2", f"--trainer.default_root_dir={tmp_path}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [path.name for path in tmp_path.iterdir()] == ["version_0"]


@pytest.mark.parametrize("name", sorted(p.name for p in CLUSTER.iterdir()))
def test_every_file_can_be_read_by_its_program(name: str) -> None:
    path = CLUSTER / name
    if path.suffix == ".sbatch":
        assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0
        return
    parsed = yaml.safe_load(path.read_text())
    assert parsed
    if name == "kubernetes.yaml":
        (container,) = parsed["spec"]["template"]["spec"]["containers"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in parsed["spec"]["template"]["spec"]["volumes"]}
        named = re.findall(r"--config (\S+)", container["args"][0])
        assert [c for c in named if not (ROOT / c).is_file()] == ['"${last%/checkpoints/*}/config.yaml"']


@pytest.mark.parametrize("name", ["gpus.yaml", "nodes.yaml"])
def test_a_cluster_configuration_goes_with_a_search(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fit", "--config", str(ROOT / "configs/quickstart.yaml"), "--config", str(CLUSTER / name)]
    with pytest.raises(SystemExit, match="0"):
        main([*words, "--print_config"])
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["trainer"]["precision"], shown["trainer"]["strategy"]) == ("bf16-mixed", "ddp")
    assert torch.cuda.is_available() or main(words) == 2
