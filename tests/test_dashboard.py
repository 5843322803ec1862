"""Dashboards: what a run has written for Weights & Biases and TensorBoard, read back with their own readers."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_strategies_in_training import CONFIGS, fit, newest, same, saved_alphas

from dartslight.callbacks.dashboard import DASHBOARDS, go_on_under, known_names
from dartslight.cli import main
from dartslight.report.history import heat_map
from dartslight.spaces import NASBENCH201, S1, Choices

# Two epochs of two batches, then six decisions on one batch each.
RULE = ["--selection=dartslight.selection.Perturbation", "--selection.interval=0", "--selection.eval_batches=1"]
STOPPED = ["--trainer.max_steps=3", "--checkpoint_every_n_batches=1"]


def logger(name: str, root: Path) -> list[str]:
    return [f"--config={CONFIGS / 'loggers' / name}.yaml", f"--trainer.logger.init_args.save_dir={root}"]


# ------------------------------------------------------------------------------------------------ the heat map


def test_a_heat_map_shows_each_open_weight_in_its_place() -> None:
    choices = Choices.everything(NASBENCH201).close(("cell", 2), 1).decide(("cell", 5), 3)
    weights = {"cell": np.arange(30.0).reshape(6, 5)}
    axes = heat_map(NASBENCH201.cells[0], choices, weights).axes[0]
    shown = axes.images[0].get_array()
    assert [label.get_text() for label in axes.get_xticklabels()] == list(NASBENCH201.cells[0].edges[0].ops)
    is_open = np.array([[o in choices.of("cell")[e] for o in range(5)] for e in range(6)])
    assert is_open.sum() == 30 - 1 - 4
    assert np.array_equal(~np.ma.getmaskarray(shown), is_open)
    assert np.array_equal(shown[is_open], weights["cell"][is_open])


def test_a_heat_map_of_a_space_whose_edges_differ_has_a_column_for_each_name() -> None:
    weights = {"normal": np.ones((14, 2))}
    axes = heat_map(S1.cells[0], Choices.everything(S1), weights).axes[0]
    names = [label.get_text() for label in axes.get_xticklabels()]
    shown = np.ma.getmaskarray(axes.images[0].get_array())
    for e, edge in enumerate(S1.cells[0].edges):
        assert {name for name, hidden in zip(names, shown[e], strict=True) if not hidden} == set(edge.ops)


# ---------------------------------------------------------------------------------------------------- TensorBoard


def events(folder: Path) -> Any:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(folder), size_guidance=dict.fromkeys(("scalars", "images", "tensors"), 0))
    found.Reload()
    return found


def test_tensorboard_goes_on_in_its_folder_and_shows_the_whole_run(tmp_path: Path) -> None:
    plain = fit(tmp_path / "plain", *RULE)
    run = fit(tmp_path / "runs", *RULE, *logger("tensorboard", tmp_path), *STOPPED)
    assert json.loads((run / DASHBOARDS).read_text()) == {"TensorBoardLogger": "version_0"}
    assert main(["fit", "--ckpt_path", str(run / "checkpoints" / "last.ckpt"), "--trainer.max_steps=-1"]) == 0
    assert [p.name for p in (tmp_path / "tensorboard").iterdir()] == ["version_0"]
    assert same(saved_alphas(run), saved_alphas(plain))  # being looked at changes no bit
    assert (run / "decisions.csv").read_text().count("\n") == (plain / "decisions.csv").read_text().count("\n")

    found = events(tmp_path / "tensorboard" / "version_0")
    with (run / "metrics.csv").open(newline="") as file:
        losses = {int(row["step"]): float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]}
    assert {e.step: e.value for e in found.Scalars("val/loss")} == pytest.approx(losses)
    assert [e.step for e in found.Images("mixing/cell")] == [2, 4]
    drawings = found.Images("genotype")
    assert [e.step for e in drawings] == [2, 4, 4]  # after each epoch, and what was decided
    with Image.open(run / "cell.png") as drawing:
        assert abs(drawings[-1].width / drawings[-1].height - drawing.width / drawing.height) < 0.02
    (text,) = found.Tensors("decisions/text_summary")
    assert text.tensor_proto.string_val[0].decode().count("\n") == (run / "decisions.csv").read_text().count("\n")
    hparams = (tmp_path / "tensorboard" / "version_0" / "hparams.yaml").read_text()
    assert "init_channels: 2" in hparams


# ----------------------------------------------------------------------------------------------- Weights & Biases


def records(path: Path) -> list[Any]:
    """What a .wandb file holds: a LevelDB log of blocks of 32 KiB after 7 bytes, each piece with 7 bytes before it.

    The wandb package has only a reader that sends it away; the messages are parsed by its own protocol.
    """
    from wandb.proto import wandb_internal_pb2

    data, at, found, pending = path.read_bytes(), 7, [], b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # too little is left of a block for another piece
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        pending += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            found.append(wandb_internal_pb2.Record.FromString(pending))
            pending = b""
    return found


@pytest.mark.slow
def test_weights_and_biases_goes_on_under_its_id_and_holds_the_whole_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    run = fit(tmp_path / "runs", *RULE, *logger("wandb", tmp_path), *STOPPED)
    wandb.finish()
    assert main(["fit", "--ckpt_path", str(run / "checkpoints" / "last.ckpt"), "--trainer.max_steps=-1"]) == 0
    wandb.teardown()  # waits until the process that writes has written all

    paths = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert len(paths) == 2
    both = [records(path) for path in paths]
    ids = {record.run.run_id for found in both for record in found if record.HasField("run")}
    assert ids == {json.loads((run / DASHBOARDS).read_text())["WandbLogger"]}

    history = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for found in both
        for record in found
        if record.HasField("history")
    ]
    with (run / "metrics.csv").open(newline="") as file:
        losses = [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]
    assert [row["val/loss"] for row in history if "val/loss" in row] == pytest.approx(losses)
    images = [row for row in history if row.get("mixing/cell/format") == "png"]
    assert [row["trainer/global_step"] for row in images] == [2, 4]
    assert len([row for row in history if "genotype/format" in row]) == 3
    (table,) = [row for row in history if "decisions/nrows" in row]
    assert table["trainer/global_step"] == 4
    assert table["decisions/nrows"] == (run / "decisions.csv").read_text().count("\n") - 1

    config = {
        update.key or "/".join(update.nested_key): json.loads(update.value_json)
        for record in both[0]
        if record.HasField("config")
        for update in record.config.update
    }
    assert config["model"]["init_args"]["init_channels"] == 2
    assert config["selection"]["class_path"] == "dartslight.selection.Perturbation"

    artifacts = {r.artifact.name: set(r.artifact.aliases) for r in both[1] if r.HasField("artifact")}
    (run_id,) = ids
    for name, alias in (("genotype", "decided"), ("last", "last"), ("search", "search")):
        assert artifacts[f"{name}-{run_id}"] == {"latest", alias}


def test_a_name_that_the_user_has_given_stays(tmp_path: Path) -> None:
    from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

    names = {"WandbLogger": "abc", "TensorBoardLogger": "version_7"}
    own = [WandbLogger(id="mine", save_dir=tmp_path), TensorBoardLogger(tmp_path, version=1)]
    free = [WandbLogger(save_dir=tmp_path), TensorBoardLogger(tmp_path)]
    for loggers in (own, free):
        go_on_under(names, loggers)
    assert [logger.version for logger in own] == ["mine", 1]
    assert [logger.version for logger in free] == ["abc", "version_7"]
    assert free[0]._wandb_init["id"] == "abc"


@pytest.mark.parametrize("text", ["", "[]", '{"WandbLogger": 3}', '{"WandbLogger": "../../x"}', "\udcff"])
def test_a_damaged_file_of_names_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / DASHBOARDS).write_bytes(text.encode(errors="surrogateescape"))
    assert known_names(tmp_path) == {}
    assert known_names(tmp_path / "nowhere") == {}


def test_a_new_run_has_a_name_of_its_own(tmp_path: Path) -> None:
    """Not that of a run whose configuration it has."""
    words = ["--selection=dartslight.selection.Random", *logger("tensorboard", tmp_path), "--trainer.max_epochs=1"]
    first = fit(tmp_path / "runs", *words)
    assert main(["fit", "--config", str(first / "config.yaml"), "--trainer.enable_progress_bar=false"]) == 0
    assert {json.loads((p / DASHBOARDS).read_text())["TensorBoardLogger"] for p in (tmp_path / "runs").iterdir()} == {
        "version_0",
        "version_1",
    }
    assert newest(tmp_path / "runs") != first
