"""Progress: what is left in words, the lines of every epoch and decision, bars on a terminal only, and --quiet."""

import io
import re
from pathlib import Path
from typing import Any

import pytest
from test_accidents import RETRAIN
from test_strategies_in_training import MAGNITUDE, QUICK, fit, newest, same, saved_alphas

from dartslight.callbacks.progress import PROGRESS, Pace
from dartslight.cli import main

# Two epochs of two batches, then six decisions with an epoch between them.
RULE = ["--selection=dartslight.selection.Perturbation", "--selection.interval=1", "--selection.eval_batches=1"]
SHOWN = [word for word in QUICK if not word.startswith("--trainer.enable_progress_bar")]


def test_what_is_left_is_the_pace_of_the_last_steps() -> None:
    pace = Pace()
    assert pace.left({"search": 3, "decision": 6}) == "3 epochs of search and 6 decisions left"
    for seconds in (1000.0, 10.0, 20.0, 30.0, 20.0, 20.0):  # the first one is too long ago
        pace.note("search", seconds)
    assert pace.left({"search": 3}) == "60 s left"
    assert pace.left({"search": 1, "tuning": 5, "decision": 1}) == "2 min and 1 decision left"
    pace.note("tuning", 5.0)
    pace.note("decision", 60.0)
    assert pace.left({"search": 1, "tuning": 5, "decision": 2}) == "3 min left"  # 20 + 5 * 5 + 2 * 60 s
    assert pace.left({"decision": 1000}) == "16.7 h left"
    assert pace.left({"search": 0}) == "0 s left"


def lines(run: Path) -> list[str]:
    text = (run / PROGRESS).read_text(encoding="utf-8")
    assert text.replace("\n", "").isprintable()
    found = [re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  (.+)", line) for line in text.splitlines()]
    assert all(found)
    return [line[1] for line in found if line]


def test_every_epoch_and_decision_has_a_line_also_where_a_run_goes_on(tmp_path: Path) -> None:
    run = fit(tmp_path, *RULE, "--trainer.max_steps=5", "--checkpoint_every_n_batches=1")
    before = lines(run)
    assert [line.partition(";")[0].partition(" keeps")[0].split(": ")[0] for line in before] == [
        "search",
        "search",
        "decision 1 of 6",
    ]
    assert main(["fit", f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}", "--trainer.max_steps=-1"]) == 0
    found = lines(run)
    assert found[: len(before)] == before
    assert [line.partition(":")[0] for line in found if line.startswith("decision")] == [
        f"decision {i} of 6" for i in range(1, 7)
    ]
    epochs = [
        re.match(r"(\w+): epoch (\d+) of (\d+); train/accuracy [\d.]+, train/loss [\d.]+", line) for line in found
    ]
    places = [(e[1], int(e[2]), int(e[3])) for e in epochs if e]
    assert places == [("search", 1, 2), ("search", 2, 2), *(("tuning", i, 7) for i in range(3, 8))]
    assert re.search(r"; \d+ s and 6 decisions left$", found[0])
    assert found[-1].endswith("; 0 s left")
    (edge, op) = re.match(r"decision 6 of 6: cell (\d<-\d) (\w+) by loss", found[-1]).groups()  # type: ignore[union-attr]
    assert f'"op": "{op}"' in (run / "genotype.json").read_text()
    assert edge in (run / "decisions.csv").read_text()


def test_without_a_terminal_the_lines_are_printed_and_bars_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *SHOWN, MAGNITUDE, f"--trainer.default_root_dir={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert "\r" not in out
    assert "\x1b" not in out
    printed = [line for line in out.splitlines() if re.match(r"search: epoch|decision \d", line)]
    assert printed == lines(newest(tmp_path))
    assert len(printed) == 3


class Terminal(io.StringIO):
    """A terminal on which everything that was ever shown can be read."""

    def isatty(self) -> bool:
        return True


def test_on_a_terminal_bars_show_phase_epoch_decision_and_time_and_change_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = fit(tmp_path / "quiet", *RULE)
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("TQDM_MININTERVAL", "0")
    assert main(["fit", *SHOWN, *RULE, f"--trainer.default_root_dir={tmp_path / 'shown'}"]) == 0
    shown = re.split(r"[\r\n]", terminal.getvalue())
    assert any(re.match(r"search *: *1/2 .* left for the whole run", line) for line in shown)
    assert any(re.match(r"selection *: *4/6 .* s left for the whole run", line) for line in shown)
    assert any(re.match(r"epoch 3 *: *\d/\d", line) for line in shown)
    assert any(re.match(r"decision 2 of 6.*: cell \d<-\d without \w+", line) for line in shown)
    assert not any(line.startswith("tuning: epoch") for line in shown)  # the lines are in the file alone
    assert lines(newest(tmp_path / "shown"))
    assert same(saved_alphas(newest(tmp_path / "shown")), saved_alphas(quiet))


def test_a_retraining_tells_its_epochs(tmp_path: Path) -> None:
    run = fit(tmp_path / "search", MAGNITUDE)
    words: list[Any] = [*RETRAIN, f"--model.genotype={run / 'genotype.json'}", f"--trainer.default_root_dir={tmp_path}"]
    assert main(["fit", *words]) == 0
    found = lines(newest(tmp_path))
    assert all(re.match(rf"training: epoch {i} of {len(found)}; ", line) for i, line in enumerate(found, 1))


def test_quiet_tells_results_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *SHOWN, MAGNITUDE, "--quiet", f"--trainer.default_root_dir={tmp_path / 'runs'}"]) == 0
    run = newest(tmp_path / "runs")
    out, err = capfd.readouterr()
    assert out.strip().startswith("How it was decided")
    assert out.splitlines()[-1] == f"Run folder: {run}"
    assert "GPU" not in err
    assert "Params" not in err
    assert len(lines(run)) == 3
    words = ["--config=configs/select/random.yaml", f"--supernet={run / 'checkpoints' / 'search.ckpt'}"]
    assert main(["select", *words, "--quiet", f"--trainer.default_root_dir={tmp_path / 'again'}"]) == 0
    out, _ = capfd.readouterr()
    assert out.strip().startswith("How it was decided")
