"""The documents: what they show runs, what is generated is current, and the site can be built."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_accidents import RETRAIN
from test_readme import COMMANDS, commands, values_of
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


def test_the_reference_of_the_commands_is_current() -> None:
    reference = importlib.import_module("commands").reference()
    said = "run: python docs/commands.py > docs/commands.md"
    assert (DOCS / "commands.md").read_text(encoding="utf-8") == reference + "\n", said


def test_every_argument_in_the_reference_is_described() -> None:
    for line in (DOCS / "commands.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            assert not line.endswith("|  |"), line


def test_commands_that_documents_show_exist_and_so_do_their_configurations() -> None:
    shown = [words for page in DOCS.glob("*.md") for words in commands(page.read_text(encoding="utf-8"))]
    assert {"fit", "select", "test", "export", "predict", "draw", "cost", "lookup"} <= {words[0] for words in shown}
    for words in shown:
        assert words[0] in COMMANDS, words
        for config in values_of("--config", words):
            assert (ROOT / config).is_file(), config


def test_links_out_of_the_site_become_paths() -> None:
    import links

    text = "see [docker](../docker/README.md), [Ideas](ideas.md) and [b](../benchmarks/README.md#x)"
    wanted = "see docker (`docker/README.md`), [Ideas](ideas.md) and b (`benchmarks/README.md`)"
    assert links.on_page_markdown(text) == wanted


def test_the_site_can_be_built(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "docker (<code>docker/README.md</code>)" in (tmp_path / "cluster" / "index.html").read_text()
    assert not list(tmp_path.rglob("*.py"))


@pytest.mark.slow
def test_what_is_shown_from_python_runs(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "shown.py").write_text("\n".join(blocks("python.md", "python")), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "shown.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for file in ("genotype.json", "cell.svg", "alphas.png", "search.gif", "report.html", "model.onnx"):
        assert (tmp_path / file).stat().st_size > 0, file
    assert "file,class,probability" in done.stdout.splitlines()


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # its kernel is a process of its own
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    notebook = nbformat.read(DOCS / "tour.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)
    # The package may be one that is not installed.
    path = f"import sys; sys.path.insert(0, {str(ROOT)!r})"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(path))
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(
        output.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    )
    assert re.search(r"margin \d\.\d+, noise \d\.\d+", printed)
    assert len(re.findall(r"^\|\w+~0\|\+", printed, re.M)) == 2
    assert "test/accuracy" in printed
