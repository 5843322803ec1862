"""The documents: what they show runs, what is generated is current, and the site can be built."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest
from test_accidents import RETRAIN
from test_strategies_in_training import fit, newest

from dartslight.cli import main
from dartslight.nets.operations import OPERATIONS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def blocks(page: str, language: str) -> list[str]:
    """The code of a page in a language."""
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


def test_an_operation_a_space_a_strategy_and_a_rule_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = blocks("extending.md", "python")
    assert len(code) == 4
    assert all(len(block.splitlines()) <= 40 for block in code)
    (tmp_path / "mine.py").write_text("\n\n".join(code), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("dartslight.nets.operations.OPERATIONS", dict(OPERATIONS))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    command, again = blocks("extending.md", "bash")
    words = command.replace("\\\n", " ").split()
    assert words[:6] == ["python", "-m", "dartslight", "fit", "--config", "configs/quickstart.yaml"]
    run = fit(tmp_path / "runs", *words[6:], "--selection.batches=1")
    genotype = json.loads((run / "genotype.json").read_text())
    assert genotype["space"] == "mine.SPACE"
    edges = genotype["cells"]["cell"]["edges"]
    assert [(edge["node"], edge["source"]) for edge in edges] == [(1, 0), (2, 0), (2, 1)]
    rows = (run / "decisions.csv").read_text().splitlines()[1:]
    assert len(rows) == 3 * 4
    assert all(",loss alone," in row for row in rows)
    mine = importlib.import_module("mine")
    assert mine.Tempered(0.3).temperature == 0.3
    assert "import mine" in again
    for edge in edges:
        edge["op"] = "gate"
    (tmp_path / "gates.json").write_text(json.dumps(genotype), encoding="utf-8")
    words = [
        *RETRAIN,
        f"--model.genotype={tmp_path / 'gates.json'}",
        f"--trainer.default_root_dir={tmp_path / 'gates'}",
    ]
    assert main(["fit", *words]) == 0
    assert (newest(tmp_path / "gates") / "checkpoints" / "last.ckpt").is_file()
    sys.modules.pop("mine")
