"""What users do by accident: values that cannot be, runs that are mixed up, and what happens to their files."""

import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from test_command_line import CONFIGS, QUICK, decisions, newest, same_weights

from dartslight.cli import main
from dartslight.modules import SearchModule
from dartslight.run_folder import RunFolder

RETRAIN = [
    "--config",
    str(CONFIGS / "cifar10" / "retrain_small.yaml"),
    "--data=dartslight.data.Digits",
    "--data.train_portion=1.0",
    "--data.max_pictures=128",
    "--model.init_channels=4",
    "--trainer.max_epochs=1",
    "--trainer.enable_progress_bar=false",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    assert main(["fit", *QUICK, f"--trainer.default_root_dir={root}"]) == 0
    return newest(root)


@pytest.fixture(scope="module")
def retrained(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("retrained")
    arguments = [f"--model.genotype={run / 'genotype.json'}", f"--trainer.default_root_dir={root}"]
    assert main(["fit", *RETRAIN, *arguments]) == 0
    return newest(root)


WRONG = {
    "negative_rate": (["--model.learning_rate=-1"], "learning_rate is -1"),
    "negative_clip": (["--model.clip_norm=-1"], "clip_norm is -1"),
    "not_a_number": (["--model.alpha_init_std=.nan"], "alpha_init_std"),
    "no_accelerator": (["--trainer.accelerator=banana"], "banana"),
    "no_gpu": (["--trainer.accelerator=gpu"], "gpu"),
    "no_devices": (["--trainer.devices=banana"], "devices"),
    "no_strategy": (["--trainer.strategy=foo"], "foo"),
    "negative_seed": (["--seed_everything=-1"], "-1"),
    "no_epochs": (["--trainer.max_epochs=0"], "max_epochs is 0"),
    "endless": (["--trainer.max_epochs=-1"], "max_epochs is -1"),
    "checkpoints": (
        ["--model.checkpoint_cells=true", "--model.gradient=dartslight.strategies.Unrolled"],
        "Unrolled needs them at others",
    ),
    "racing": (["--selection=dartslight.selection.Perturbation", "--selection.racing=1.5"], "racing is 1.5"),
    "precision": (["--trainer.precision=64-true"], "64-true"),
    "clipping": (["--trainer.gradient_clip_val=1"], "gradient clipping is not supported"),
    "accumulation": (["--trainer.accumulate_grad_batches=2"], "gradient accumulation is not supported"),
    "never": (["--checkpoint_every_n_batches=0"], "checkpoint_every_n_batches is 0"),
    "few_cells": (["--model.space=s4", "--model.num_cells=2"], "no normal cell"),
    "abstract_rule": (["--selection=dartslight.selection.Rule"], "Rule"),
    "typo": (["--model.num_cellz=3"], "num_cellz"),
    "class_typo": (["--selection=Perturbatio"], "Perturbatio"),
    "early_stopping": (
        ["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=val/loss"],
        "EarlyStopping would end",
    ),
    "file_for_folder": ([f"--trainer.default_root_dir={__file__}"], "cannot be made"),
    "diverged": (["--model.learning_rate=1e30", "--selection.interval=0"], "has diverged"),
    "running": (["--selection.eval_bn=running"], "keeps no running statistics"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values_are_one_sentence(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, expected = WRONG[name]
    assert main(["fit", *QUICK, f"--trainer.default_root_dir={tmp_path / 'runs'}", *words]) == 2
    error = capsys.readouterr().err
    last = error.strip().splitlines()[-1]
    assert last.startswith("dartslight: ")
    assert expected in last
    assert "Traceback" not in error
    if name not in ("diverged", "running"):  # these show only after the search
        assert not (tmp_path / "runs").exists()


def test_a_single_callback_is_taken(tmp_path: Path) -> None:
    words = ["--selection=null", "--trainer.max_epochs=1", "--trainer.callbacks=ModelSummary"]
    assert main(["fit", *QUICK, f"--trainer.default_root_dir={tmp_path}", *words]) == 0
    assert (newest(tmp_path) / "checkpoints" / "last.ckpt").exists()
    assert not (newest(tmp_path) / "genotype.json").exists()


def test_measuring_leaves_the_run_as_it_is(retrained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in retrained.rglob("*") if path.is_file()}
    checkpoint = retrained / "checkpoints" / "last.ckpt"
    assert main(["test", f"--ckpt_path={checkpoint}"]) == 0
    assert {path: path.read_bytes() for path in retrained.rglob("*") if path.is_file()} == before
    capsys.readouterr()
    assert main(["test", *RETRAIN, f"--model.genotype={retrained}/none.json"]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_runs_that_are_mixed_up_are_refused(
    run: Path, retrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last, searched = (run / "checkpoints" / name for name in ("last.ckpt", "search.ckpt"))
    genotype = f"--model.genotype={run / 'genotype.json'}"
    cases = {
        "no trained weights": ["test", *RETRAIN, genotype],
        "this run has Magnitude(threshold=None)": ["fit", *QUICK, f"--ckpt_path={last}", "--selection=Magnitude"],
        "has 2 epochs, by which its learning rates": ["fit", f"--ckpt_path={last}", "--trainer.max_epochs=4"],
        "has seed 0, but this run has seed 5": ["fit", *QUICK, f"--ckpt_path={searched}", "--seed_everything=5"],
        "track_statistics": ["fit", *QUICK, f"--ckpt_path={searched}", "--model.track_statistics=true"],
        "the model is none": ["fit", *RETRAIN, genotype, "--selection=Magnitude"],
        "of the kind 'retrain'": [
            "select",
            f"--supernet={retrained / 'checkpoints' / 'last.ckpt'}",
            "--selection=Magnitude",
        ],
        "needs a rule": ["select", f"--supernet={searched}"],
        "No `test_step()`": ["test", f"--ckpt_path={searched}"],
    }
    for sentence, words in cases.items():
        capsys.readouterr()
        assert main([*words, f"--trainer.default_root_dir={tmp_path / 'runs'}"]) == 2, sentence
        error = capsys.readouterr().err
        assert sentence in error
        assert "Traceback" not in error
        assert not (tmp_path / "runs").exists(), sentence


def test_a_finished_run_that_goes_on_stays_as_it_is(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "version_0"
    shutil.copytree(run, copy)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    words = [f"--ckpt_path={copy / 'checkpoints' / 'last.ckpt'}", f"--trainer.default_root_dir={tmp_path}"]
    assert main(["fit", *words]) == 0
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
    assert newest(tmp_path) == copy


def test_a_selection_of_an_interrupted_search_can_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(name: str, *words: str) -> Path:
        root = tmp_path / name
        assert main([*words, f"--trainer.default_root_dir={root}"]) == 0
        return newest(root)

    cut = fit("cut", "fit", *QUICK, "--trainer.max_steps=3", "--checkpoint_every_n_batches=1", "--selection=null")
    rule = ["--selection=dartslight.selection.Perturbation", "--selection.interval=1", "--trainer.max_steps=-1"]
    select = ["select", f"--supernet={cut / 'checkpoints' / 'last.ckpt'}", *rule]
    whole = fit("whole", *select)
    step = SearchModule.training_step

    def interrupted(module: SearchModule, batch: object, batch_idx: int) -> None:
        if module.trainer.global_step == 6:
            raise KeyboardInterrupt
        step(module, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(SearchModule, "training_step", interrupted)
        assert main([*select, f"--trainer.default_root_dir={tmp_path / 'stopped'}"]) == 130
    stopped = newest(tmp_path / "stopped")
    assert not (stopped / "genotype.json").exists()
    last = f"--ckpt_path={stopped / 'checkpoints' / 'last.ckpt'}"
    assert fit("stopped", "fit", last) == stopped
    assert decisions(stopped) == decisions(whole)
    assert same_weights(stopped, whole)


def test_a_checkpoint_is_replaced_only_when_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path)
    checkpoints = folder.create() / "checkpoints"
    checkpoints.mkdir()
    (checkpoints / "last.ckpt").write_bytes(b"old and whole")

    def killed(self: Trainer, path: Path, weights_only: bool) -> None:
        path.write_bytes(b"ne")
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "save_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        folder.checkpoint(Trainer(logger=False, enable_checkpointing=False, accelerator="cpu"), "last.ckpt")
    assert (checkpoints / "last.ckpt").read_bytes() == b"old and whole"


def test_a_checkpoint_of_a_stranger_runs_no_code(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stranger = tmp_path / "stranger.ckpt"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (os.mkdir, (str(tmp_path / "evil"),))

    torch.save({"dartslight": {"config": ""}, "evil": Evil()}, stranger)
    assert main(["fit", f"--ckpt_path={stranger}"]) == 2
    assert "cannot be loaded (it holds more than tensors" in capsys.readouterr().err
    assert not (tmp_path / "evil").exists()
    (tmp_path / "evil_module.py").write_text("from pathlib import Path\nPath(__file__).with_name('ran').mkdir()\n")
    sys.path.insert(0, str(tmp_path))
    importlib.invalidate_caches()
    checkpoint = torch.load(run / "checkpoints" / "search.ckpt", weights_only=True)
    # Whatever the parser would import, call or read where it expects something else than a text.
    (tmp_path / "part.yaml").write_text("class_path: evil_module.Thing\n")
    file, thing = str(tmp_path / "part.yaml"), "evil_module.Thing"
    watch = {"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"on_fit_start": thing}}
    borrowed = "lightning.pytorch.trainer.connectors.signal_connector.call"  # of subprocess
    places: list[tuple[str, str, Any]] = [
        (thing, "data", {"class_path": thing}),
        (thing, "data", thing),
        (file, "data", file),
        ("SPACE", "model.init_args.space", "evil_module.SPACE"),
        (thing, "model.init_args.gradient", thing),
        (thing, "model.init_args.gradient", f'{{"class_path": "{thing}"}}'),
        (file, "model.init_args.gradient", file),
        (thing, "model.init_args.stages", [{"num_cells": thing}]),
        (thing, "model.dict_kwargs", {"gradient": thing}),
        (thing, "trainer.callbacks", thing),
        (thing, "trainer.callbacks", [thing]),
        (thing, "trainer.callbacks", [watch]),
        (borrowed, "trainer.callbacks", [{"class_path": borrowed}]),
        (thing, "trainer.strategy", thing),
        (file, "trainer.strategy", file),
        (file, "trainer.logger", [file]),
    ]
    own = checkpoint["dartslight"]["config"]
    for expected, place, value in [*places, ("carries no configuration", "", None)]:
        config = yaml.safe_load(own)
        part = config
        *path, key = place.split(".")
        for name in path:
            part = part[name]
        part[key] = value
        checkpoint["dartslight"]["config"] = yaml.safe_dump(config) if place else "a: [b"
        torch.save(checkpoint, stranger)
        assert main(["select", f"--supernet={stranger}", "--selection=Magnitude"]) == 2, place
        assert expected in capsys.readouterr().err, place
    sys.path.remove(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_a_run_that_is_told_to_stop_says_so_and_goes_on(tmp_path: Path, run: Path) -> None:
    words = ["-m", "dartslight", "fit", *QUICK, f"--trainer.default_root_dir={tmp_path}"]
    every = ["--trainer.max_epochs=2000", "--checkpoint_every_n_batches=1"]
    process = subprocess.Popen([sys.executable, *words, *every], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    last = tmp_path / "version_0" / "checkpoints" / "last.ckpt"
    for _ in range(600):
        if last.exists():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"epochs and no architecture is decided; go on with: python -m dartslight fit --ckpt_path " in error
    assert b"Traceback" not in error


def test_output_that_nobody_reads_is_no_error(run: Path, tmp_path: Path) -> None:
    command = f"{sys.executable} -m dartslight --help | true; {sys.executable} -m dartslight draw {run}/genotype.json"
    done = subprocess.run(
        ["bash", "-c", f"{command} -o {tmp_path}/cell.pdf"], capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    assert (tmp_path / "cell.pdf").exists()
