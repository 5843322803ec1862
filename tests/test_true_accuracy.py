"""The callback that looks up, after each epoch, what the leading architecture is truly worth."""

import csv
import itertools
from pathlib import Path

import pytest
import torch
import yaml

from dartslight.cli import main
from dartslight.modules import SearchModule

CONFIGS = Path(__file__).parent.parent / "configs"
QUICK = [
    "--config",
    str(CONFIGS / "quickstart.yaml"),
    "--trainer.enable_progress_bar=false",
    "--model.init_channels=2",
    "--model.alpha_learning_rate=0.1",  # so that the leader changes from epoch to epoch
    "--data.max_pictures=64",
    "--data.batch_size=16",
    "--data.eval_batch_size=16",
]
OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")


def notation(ops: tuple[str, ...]) -> str:
    return "|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|".format(*ops)


ARCHITECTURES = [notation(ops) for ops in itertools.product(OPS, repeat=6)]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All architectures with two numbers: how many 3x3 convolutions there are, and one that no other has."""
    path = tmp_path_factory.mktemp("table") / "table.csv"
    rows = [f"{arch},{arch.count('nor_conv_3x3')},{i}" for i, arch in enumerate(ARCHITECTURES)]
    path.write_text("\n".join(["arch,accuracy,number", *rows]) + "\n")
    return path


def fit(root: Path, table: Path, *options: str) -> int:
    config = root / "true_accuracy.yaml"
    callback = {"class_path": "dartslight.callbacks.TrueAccuracy", "init_args": {"table": str(table)}}
    config.write_text(yaml.safe_dump({"trainer": {"callbacks": [callback]}}))
    runs = f"--trainer.default_root_dir={root / 'runs'}"
    return main(["fit", *QUICK, "--config", str(config), runs, *options])


def logged(root: Path) -> list[dict[str, float]]:
    with (root / "runs" / "version_0" / "metrics.csv").open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if k.startswith("true/")} for row in csv.DictReader(file)]


def of_columns(columns: list[int]) -> dict[str, float]:
    """What the table says of the architecture with these columns of the alphas, edge by edge."""
    arch = notation(tuple(OPS[column] for column in columns))
    return {"true/accuracy": arch.count("nor_conv_3x3"), "true/number": ARCHITECTURES.index(arch)}


def test_each_epoch_has_the_true_values_of_the_leading_architecture(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaders: list[list[int]] = []

    def note(module: SearchModule) -> None:
        leaders.append(module.architecture.alphas["cell"].argmax(dim=1).tolist())

    monkeypatch.setattr(SearchModule, "on_train_epoch_end", note)
    assert fit(tmp_path, table, "--trainer.max_epochs=4", "--selection=null") == 0
    rows = logged(tmp_path)
    assert rows == [of_columns(columns) for columns in leaders]
    assert len(rows) == 4
    assert len({row["true/number"] for row in rows}) > 1
    checkpoint = torch.load(tmp_path / "runs" / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)
    alphas = checkpoint["state_dict"]["architecture.alphas.cell"]
    assert rows[-1] == of_columns(alphas.argmax(dim=1).tolist())


def test_decided_edges_count_as_they_were_decided(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an epoch logs is the architecture that it was trained with; its own decision counts from the next on."""
    decided: list[dict[int, int]] = []
    strongest: list[list[int]] = []

    def start(module: SearchModule) -> None:
        decided.append({e: columns[0] for e, columns in enumerate(module.choices.of("cell")) if len(columns) == 1})

    def end(module: SearchModule) -> None:
        strongest.append(module.architecture.alphas["cell"].argmax(dim=1).tolist())

    monkeypatch.setattr(SearchModule, "on_train_epoch_start", start)
    monkeypatch.setattr(SearchModule, "on_train_epoch_end", end)
    options = ["--trainer.max_epochs=1", "--selection.interval=1", "--selection.eval_batches=1"]
    assert fit(tmp_path, table, *options) == 0
    leaders = [
        [edges.get(e, column) for e, column in enumerate(columns)]
        for edges, columns in zip(decided, strongest, strict=True)
    ]
    assert logged(tmp_path) == [of_columns(columns) for columns in leaders]
    assert [len(edges) for edges in decided] == [0, 1, 2, 3, 4, 5]
    assert leaders != strongest  # some decision went against the alphas


def test_another_space_is_refused(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(tmp_path, table, "--model.space=s2", "--trainer.max_epochs=1") == 2
    error = capsys.readouterr().err
    assert error.startswith("dartslight: The callback TrueAccuracy needs a search in the space 'nasbench201'")
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_missing_table_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(tmp_path, tmp_path / "missing.csv", "--trainer.max_epochs=1") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"dartslight: The table {str(tmp_path / 'missing.csv')!r} cannot be read (No such file")
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()
