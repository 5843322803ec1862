"""Damaged files, files from strangers, numbers that are none, and a disk without room."""

import contextlib
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_command_line import CONFIGS, QUICK, newest

from dartslight.benchmarks.table import Table
from dartslight.callbacks.scores_file import ScoresFile
from dartslight.cli import main
from dartslight.errors import InputError
from dartslight.genotype import Genotype
from dartslight.modules.checkpoint import read_checkpoint
from dartslight.nets import DiscreteNetwork, Supernet
from dartslight.run_folder import RunFolder
from dartslight.selection.average import average
from dartslight.selection.record import read_decisions
from dartslight.spaces import SPACES, Choices

ARCH = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|nor_conv_3x3~2|"
WORDS = [
    b"null",
    b"-1",
    b"1e999",
    b"[]",
    b"{}",
    b'""',
    b"\x00",
    b"\xff\xfe",
    b",",
    b"\n",
    b"nan",
    b"&a *a",
    b"!!python/x",
]

edits = st.lists(
    st.tuples(
        st.sampled_from(["cut", "insert", "repeat", "replace"]),
        st.floats(0, 1),
        st.integers(0, 40),
        st.one_of(st.binary(max_size=8), st.sampled_from(WORDS)),
    ),
    min_size=1,
    max_size=4,
)


def mutated(data: bytes, changes: list[tuple[str, float, int, bytes]]) -> bytes:
    """Returns data after some edits at relative places."""
    for kind, place, length, new in changes:
        at = int(place * len(data))
        head, middle, tail = data[:at], data[at : at + length], data[at + length :]
        data = {
            "cut": head + tail,
            "insert": head + new + middle + tail,
            "repeat": head + middle * 2 + tail,
            "replace": head + new + tail,
        }[kind]
    return data


def many(count: int) -> Callable[[Any], Any]:
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=count, deadline=10_000, derandomize=True, suppress_health_check=checks, database=None)


@contextlib.contextmanager
def at_most_one_sentence() -> Any:
    """Lets an `InputError` pass whose message is one line; everything else is a failure."""
    try:
        yield
    except InputError as error:
        message = str(error)
        assert message
        assert "\n" not in message
        assert "Traceback" not in message


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    assert main(["fit", *QUICK, "--model.init_channels=2", f"--trainer.default_root_dir={root}"]) == 0
    return newest(root)


def darts_genotype() -> Genotype:
    space = SPACES["darts"]
    choices = Choices.everything(space)
    for cell in space.cells:
        for e in range(len(cell.edges)):
            choices = choices.decide((cell.name, e), 4)
        for node in cell.nodes[1:]:
            choices = choices.drop([(cell.name, e) for e in cell.edges_into(node)[2:]])
    return Genotype.from_choices(space, choices)


@pytest.mark.parametrize("name", ["nasbench201", "darts"])
@many(350)
@given(changes=edits)
def test_mutated_genotypes(tmp_path: Path, name: str, changes: Any) -> None:
    genotype = Genotype.from_nasbench201(ARCH) if name == "nasbench201" else darts_genotype()
    path = tmp_path / "genotype.json"
    path.write_bytes(mutated(genotype.to_json().encode(), changes))
    with at_most_one_sentence():
        found = Genotype.load(path)
        assert Genotype.from_json(found.to_json()) == found
        DiscreteNetwork(found, 3, 2, 2)


@many(600)
@given(changes=edits)
def test_mutated_tables(tmp_path: Path, changes: Any) -> None:
    text = f"arch,cifar10_test,cifar100_test\n{ARCH},93.5,70.1\n{ARCH.replace('none', 'nor_conv_1x1')},91,\n"
    path = tmp_path / "table.csv"
    path.write_bytes(mutated(text.encode(), changes))
    with at_most_one_sentence():
        Table.read(path).render(ARCH)


@pytest.mark.slow
@many(200)
@given(changes=edits)
def test_mutated_configurations(tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: Any) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(mutated((CONFIGS / "quickstart.yaml").read_bytes(), changes))
    code = 0
    try:
        code = main(["fit", "--config", str(path), "--print_config"])
    except SystemExit as end:
        code = int(end.code or 0)
    error = capsys.readouterr().err
    assert code in (0, 2)
    assert "Traceback" not in error
    assert code == 0 or error.startswith("dartslight: ")


@many(400)
@given(changes=edits)
def test_mutated_checkpoints(tmp_path: Path, run: Path, changes: Any) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(mutated((run / "checkpoints" / "last.ckpt").read_bytes(), changes))
    with at_most_one_sentence():
        read_checkpoint(path)


@many(500)
@given(changes=edits)
def test_mutated_decisions(tmp_path: Path, run: Path, changes: Any) -> None:
    path = tmp_path / "decisions.csv"
    whole = (run / "decisions.csv").read_bytes()
    path.write_bytes(mutated(whole, changes))
    with at_most_one_sentence():
        average(SPACES["nasbench201"], [read_decisions(run / "decisions.csv"), read_decisions(path)])


@many(100)
@given(changes=edits)
def test_mutated_scores_are_measured_again(tmp_path: Path, changes: Any) -> None:
    path = tmp_path / "scores.pt"
    torch.save({"a": {"done": 1, "counts": [1], "table": torch.ones(2, 1, 3)}}, path)
    path.write_bytes(mutated(path.read_bytes(), changes))
    found = ScoresFile(path).get("a")
    assert found is None or found["done"] is not None


class Evil:
    """What a stranger's file may hold: loading it runs a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def test_a_strangers_checkpoint_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, path = tmp_path / "trace", tmp_path / "last.ckpt"
    torch.save({"dartslight": {"kind": "search"}, "state_dict": {}, "evil": Evil(trace)}, path)
    for words in (["fit", f"--ckpt_path={path}"], ["select", f"--supernet={path}"], ["test", f"--ckpt_path={path}"]):
        assert main(words) == 2
        assert "more than tensors and plain values" in capsys.readouterr().err
    assert not trace.exists()
    scores = tmp_path / "scores.pt"
    torch.save({"a": Evil(trace)}, scores)
    assert ScoresFile(scores).get("a") is None
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists()  # it would have


def test_damaged_metrics_of_a_run_that_goes_on_count_as_none(tmp_path: Path) -> None:
    for contents in (b"step\nx\n", b"\xff\xfe", b"loss\n1\n", b"step,loss\n1,2,3\n"):
        (tmp_path / "metrics.csv").write_bytes(contents)
        assert RunFolder(tmp_path, resumed=tmp_path).create() == tmp_path


def test_a_damaged_checkpoint_names_another(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "version_0"))
    last = copy / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    assert main(["fit", f"--ckpt_path={last}"]) == 2
    assert "the newest other one there is search.ckpt" in capsys.readouterr().err


def test_a_run_that_diverges_keeps_its_last_good_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model.learning_rate=1e30", "--checkpoint_every_n_batches=1", "--data.batch_size=16"]
    assert main(["fit", *QUICK, *words, f"--trainer.default_root_dir={tmp_path}"]) == 2
    assert "In step 1 the " in capsys.readouterr().err
    state = read_checkpoint(newest(tmp_path) / "checkpoints" / "last.ckpt")
    assert state["global_step"] == 1
    assert all(torch.isfinite(t).all() for t in state["state_dict"].values() if t.dtype.is_floating_point)


def test_a_score_that_is_no_number_stops_the_selection(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forward_each, decisions = Supernet.forward_each, 0

    def without_numbers(net: Supernet, images: torch.Tensor, variants: Any, *rest: Any) -> list[torch.Tensor]:
        nonlocal decisions
        decisions += len(variants) > 1
        logits = forward_each(net, images, variants, *rest)
        return [torch.full_like(each, torch.nan) for each in logits] if decisions > 2 else logits

    monkeypatch.setattr(Supernet, "forward_each", without_numbers)
    words = ["--selection=dartslight.selection.Perturbation", "--selection.interval=1", "--selection.eval_batches=1"]
    words += [f"--supernet={run / 'checkpoints' / 'search.ckpt'}", f"--trainer.default_root_dir={tmp_path}"]
    assert main(["select", *words]) == 2
    assert "Decision 3 cannot be taken: The supernet's loss is not a finite number" in capsys.readouterr().err
    assert not (newest(tmp_path) / "genotype.json").exists()
    read_checkpoint(newest(tmp_path) / "checkpoints" / "last.ckpt")


def test_a_full_disk_keeps_what_was_there(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "version_0"))
    last = copy / "checkpoints" / "last.ckpt"
    shutil.copy(copy / "checkpoints" / "search.ckpt", last)
    before = last.read_bytes()
    done = subprocess.run(
        [sys.executable, "-m", "dartslight", "fit", f"--ckpt_path={last}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert done.returncode == 2, done.stderr[-2000:]
    assert ".ckpt' cannot be written (File too large); what was there before is kept" in done.stderr
    assert "Traceback" not in done.stderr
    assert last.read_bytes() == before
    assert sorted(p.name for p in last.parent.iterdir()) == ["last.ckpt", "search.ckpt"]
