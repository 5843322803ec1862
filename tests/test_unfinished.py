"""Runs that end early say in one sentence what they have not reached and how they go on, and so they do."""

import re
import shlex
import time
from pathlib import Path

import pytest
from lightning.pytorch import Callback
from test_accidents import RETRAIN
from test_kill import result
from test_stages import GROWING
from test_strategies_in_training import MAGNITUDE, QUICK, fit, newest

from dartslight.cli import main
from dartslight.modules import SearchModule

# Two epochs of two batches, then six decisions with five epochs between them.
RULE = ["--selection=dartslight.selection.Perturbation", "--selection.interval=1", "--selection.eval_batches=1"]
UNDECIDED = "and no architecture is decided"


class Own(Callback):
    """A class that no checkpoint may name on its own."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(tmp_path_factory.mktemp("whole"), *RULE)


def unfinished(out: str) -> tuple[str, list[str]]:
    """What a run says that it has not reached, and the words of the command that it names."""
    ((what, command),) = re.findall(r"^The (.* stopped after .*); go on with: python -m dartslight (.*)$", out, re.M)
    return what, shlex.split(command)


@pytest.mark.parametrize(
    ("steps", "what"),
    [
        (1, f"search stopped after 0 of 2 epochs {UNDECIDED}"),
        (2, f"search stopped after 1 of 2 epochs {UNDECIDED}"),
        (3, f"search stopped after 1 of 2 epochs {UNDECIDED}"),
        (4, f"selection stopped after 1 of 6 decisions {UNDECIDED}"),
        (7, f"selection stopped after 2 of 6 decisions {UNDECIDED}"),
    ],
)
def test_a_run_with_a_number_of_steps_goes_on_to_the_same_bits(
    steps: int, what: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fit(tmp_path, *RULE, f"--trainer.max_steps={steps}")
    last = str(folder / "checkpoints" / "last.ckpt")
    said = what, ["fit", "--ckpt_path", last, "--trainer.max_steps=-1"]
    assert unfinished(capsys.readouterr().out) == said
    assert not (folder / "genotype.json").exists()
    # The limit holds for a run that goes on without another one, too.
    assert main(["fit", "--ckpt_path", last]) == 0
    assert unfinished(capsys.readouterr().out) == said
    assert main(said[1]) == 0
    assert "stopped after" not in capsys.readouterr().out
    assert result(folder) == result(whole)


def test_a_run_in_several_numbers_of_steps_ends_in_the_same_bits(whole: Path, tmp_path: Path) -> None:
    folder = fit(tmp_path, *RULE, "--trainer.max_steps=2")
    for steps in (4, 6, -1):
        assert main(["fit", f"--ckpt_path={folder / 'checkpoints' / 'last.ckpt'}", f"--trainer.max_steps={steps}"]) == 0
    assert result(folder) == result(whole)
    assert (folder / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()


def test_a_run_with_a_time_goes_on_to_the_same_bits(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = SearchModule.training_step

    def slow(module: SearchModule, *batch: object) -> None:
        time.sleep(1.1)
        step(module, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(SearchModule, "training_step", slow)
        folder = fit(tmp_path, *RULE, "--trainer.max_time=00:00:00:01")
    what, words = unfinished(capsys.readouterr().out)
    assert what == f"search stopped after 0 of 2 epochs {UNDECIDED}"
    assert words == ["fit", "--ckpt_path", str(folder / "checkpoints" / "last.ckpt"), "--trainer.max_time=null"]
    assert main(words) == 0
    assert result(folder) == result(whole)


def test_a_run_with_classes_of_its_own_goes_on_with_its_configuration(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "with a space"
    folder = fit(root, *RULE, "--trainer.max_steps=3", "--trainer.callbacks=test_unfinished.Own")
    _, words = unfinished(capsys.readouterr().out)
    assert words[:3] == ["fit", "--config", str(folder / "config.yaml")]
    assert main(words) == 0
    assert newest(root) == folder
    assert result(folder) == result(whole)


def test_a_retraining_goes_on_too(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    retrain = [*RETRAIN, f"--model.genotype={whole / 'genotype.json'}", "--data.batch_size=64"]
    roots = [tmp_path / name for name in ("whole", "stopped")]
    for root, limit in zip(roots, ([], ["--trainer.max_steps=1"]), strict=True):
        assert main(["fit", *retrain, f"--trainer.default_root_dir={root}", *limit]) == 0
    what, words = unfinished(capsys.readouterr().out)
    assert what == "training stopped after 0 of 1 epochs"
    assert main(words) == 0
    assert result(newest(roots[1])) == result(newest(roots[0]))


@pytest.mark.parametrize(
    ("limit", "what", "remedy"),
    [
        ("--trainer.fast_dev_run=true", "selection stopped after 1 of 6 decisions", "--trainer.fast_dev_run=false"),
        ("--trainer.limit_train_batches=0", "search stopped after 0 of 2 epochs", "--trainer.limit_train_batches=1.0"),
    ],
)
def test_where_no_checkpoint_is_left_one_begins_again(
    limit: str, what: str, remedy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fit", *QUICK, *RULE, f"--trainer.default_root_dir={tmp_path}"]
    assert main([*words, limit]) == 0
    sentence = f"The {what} {UNDECIDED}; there is no checkpoint to go on from, so begin again with {remedy}."
    assert sentence in capsys.readouterr().out.splitlines()
    assert main([*words, limit, MAGNITUDE, remedy]) == 0
    assert "stopped after" not in capsys.readouterr().out


def test_the_limit_of_a_search_holds_for_select(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fit(tmp_path / "fit", "--selection=null", "--trainer.max_steps=2")
    assert unfinished(capsys.readouterr().out)[0] == f"search stopped after 1 of 2 epochs {UNDECIDED}"
    words = ["select", f"--supernet={folder / 'checkpoints' / 'last.ckpt'}", *RULE]
    assert main([*words, f"--trainer.default_root_dir={tmp_path / 'stopped'}"]) == 0
    what, again = unfinished(capsys.readouterr().out)
    assert what == f"selection stopped after 1 of 6 decisions {UNDECIDED}"
    assert main(again) == 0
    assert main([*words, f"--trainer.default_root_dir={tmp_path / 'whole'}", "--trainer.max_steps=-1"]) == 0
    assert "stopped after" not in capsys.readouterr().out
    assert result(newest(tmp_path / "stopped")) == result(newest(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("options", "had"),
    [(GROWING, "4 epochs in 2 stages"), (["--selection=null"], "2 epochs")],
    ids=["stages", "one_stage"],
)
def test_a_search_goes_on_with_its_own_length(
    options: list[str], had: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fit(tmp_path, *options, "--trainer.max_steps=2")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    last = folder / "checkpoints" / "last.ckpt"
    capsys.readouterr()
    for own in ([], ["--config", str(folder / "config.yaml")]):
        assert main(["fit", *own, f"--ckpt_path={last}", "--trainer.max_steps=-1", "--trainer.max_epochs=6"]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"dartslight: The search of '{last}' has {had}, by which its learning rates")
        assert f"this run has 6; go on with --trainer.max_epochs {had[0]}, or" in error
        assert error.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
