"""Drawings: nothing covers anything, the same genotype gives the same bytes, wrong paths are refused."""

import csv
import itertools
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import FancyArrowPatch
from matplotlib.transforms import Bbox

from dartslight.errors import InputError
from dartslight.genotype import Genotype
from dartslight.report import draw_cells, save_drawing
from dartslight.spaces import SPACES, Cell, Choices, Edge, layout

NASBENCH201 = "|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|"
DARTS = Genotype.from_darts(
    SPACES["darts"],
    [("sep_conv_3x3", s) for s in (0, 1, 0, 1, 1, 2, 3, 0)],
    [("max_pool_3x3", 0), ("skip_connect", 1), *[("dil_conv_5x5", s) for s in (2, 1, 2, 3, 2, 4)]],
)


def random_nasbench201(count: int) -> list[Genotype]:
    rng = random.Random(0)
    ops = SPACES["nasbench201"].cells[0].edges[0].ops
    return [Genotype.from_nasbench201(NASBENCH201.format(*rng.choices(ops, k=6))) for _ in range(count)]


def published() -> list[Genotype]:
    folder = os.environ.get("DARTSLIGHT_DATA")
    if not folder:
        pytest.skip("DARTSLIGHT_DATA is not set")
    with (Path(folder) / "published_genotypes.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [Genotype.from_darts(SPACES["darts"], json.loads(r["normal"]), json.loads(r["reduce"])) for r in rows]


def own_space(num_nodes: int, num_inputs: int) -> Genotype:
    """A genotype of a user's space in which every node reads every earlier one by an operation with a long name."""
    own = range(num_inputs, num_inputs + num_nodes)
    edges = tuple(Edge(source, node, ("my_very_$own$_conv_7x7",)) for node in own for source in range(node))
    cells = tuple(Cell(name, num_inputs, num_nodes, "concat", edges) for name in ("normal", "reduction"))
    return Genotype("my.space.WIDE", "darts", cells)


def check(genotype: Genotype) -> None:
    """Fails where a label, a node or an edge covers what is not its own, or leaves the figure."""
    figure = draw_cells(genotype)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    whole = Bbox.from_bounds(0, 0, *renderer.get_canvas_width_height())
    for axes, cell in zip(figure.axes, genotype.cells, strict=True):
        boxes: dict[str, Bbox] = {}
        inside: dict[str, Bbox] = {}
        for i, text in enumerate(axes.texts):
            extent = (text.get_bbox_patch() or text).get_window_extent(renderer)
            name = text.get_gid() or ""
            (inside if name.startswith("in ") else boxes)[f"{name} {i}" if name in ("title", "caption") else name] = (
                extent
            )
        arrows = [patch for patch in axes.patches if isinstance(patch, FancyArrowPatch)]
        boxes |= {p.get_gid() or "": p.get_window_extent(renderer) for p in axes.patches if p not in arrows}
        wanted = {f"operation {cell.name} {edge}": edge.ops[0] for edge in cell.edges}
        assert {t.get_gid(): t.get_text() for t in axes.texts if t.get_gid() in wanted} == wanted
        for (a, first), (b, second) in itertools.combinations(boxes.items(), 2):
            assert Bbox.intersection(first, second) is None, (genotype, a, b)
        for name, extent in inside.items():
            around = boxes[name.removeprefix("in ")]
            assert around.contains(*extent.min), name
            assert around.contains(*extent.max), name
        for name, extent in boxes.items():
            assert whole.contains(*extent.min), name
            assert whole.contains(*extent.max), name
        labels = {name: box for name, box in boxes.items() if name.startswith("operation ")}
        for arrow in [arrow for arrow in arrows if arrow.get_gid()]:
            points = axes.transData.transform(arrow.get_path().interpolated(20).vertices)
            own = f"{arrow.get_gid()}".replace("edge ", "operation ", 1)
            on = {name: ((points >= box.min) & (points <= box.max)).all(axis=1).any() for name, box in labels.items()}
            assert on.pop(own), f"{own} is not on its edge"
            assert not any(on.values()), (genotype, own, on)


def test_nothing_covers_anything_in_published_cells() -> None:
    genotypes = published()
    assert len(genotypes) == 56
    for genotype in genotypes:
        check(genotype)


def test_nothing_covers_anything_in_nasbench201_cells() -> None:
    for genotype in random_nasbench201(30):
        check(genotype)


@pytest.mark.parametrize("genotype", [DARTS, own_space(1, 1), own_space(6, 3)], ids=["darts", "small", "wide"])
def test_nothing_covers_anything_in_other_cells(genotype: Genotype) -> None:
    check(genotype)


@pytest.mark.parametrize(
    ("space", "cells", "rows"),
    [("darts", 20, [6, 7, 7]), ("darts", 1, [1]), ("nasbench201", 15, [5, 5, 5]), ("mobile", 21, [4, 4, 4, 4, 4, 1])],
)
def test_nothing_covers_anything_in_networks(space: str, cells: int, rows: list[int]) -> None:
    draw = random.Random(0)
    state = {c.name: [[draw.randrange(len(e.ops))] for e in c.edges] for c in SPACES[space].cells}
    genotype = DARTS if space == "darts" else Genotype.from_choices(SPACES[space], Choices.from_state(state))
    figure = draw_cells(genotype, networks=[(cells, 1000)])
    assert len(figure.axes) == 1 + (0 if space == "mobile" else len(genotype.cells))
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    axes, whole = figure.axes[0], Bbox.from_bounds(0, 0, *canvas.get_width_height())
    boxes = [(text.get_bbox_patch() or text).get_window_extent(canvas.get_renderer()) for text in axes.texts]
    for first, second in itertools.combinations(boxes, 2):
        assert Bbox.intersection(first, second) is None
    assert all(whole.contains(*box.min) and whole.contains(*box.max) for box in boxes)
    names = [text.get_text() for text in axes.texts if f"{text.get_gid()}".startswith("block ")]
    blocks = layout(genotype.macro, cells)
    wanted = [block.cell or "residual" for block in blocks]
    if space == "mobile":
        wanted = [cell.edges[0].ops[0] for cell in genotype.cells]
    assert names == ["stem", *wanted, "classifier"]
    captions = [text.get_text() for text in axes.texts if text.get_gid() == "caption 0"]
    numbers = [[int(n) for n in re.findall(r"\d+", caption)] for caption in captions]
    assert [n[-1] - n[0] + 1 for n in numbers] == rows
    assert numbers[-1][-1] == cells
    channels = [text.get_text() for text in axes.texts if text.get_gid() == "caption 1"]
    assert channels == [f"{1000 * width:,} channels" for width in dict.fromkeys(block.width for block in blocks)]


def test_every_family_has_its_own_colour() -> None:
    ops = ["none", "noise", "skip_connect", "max_pool_3x3", "sep_conv_3x3", "dil_conv_5x5", "nor_conv_1x1", "mine"]
    edges = tuple(Edge(0, node, (op,)) for node, op in enumerate(ops, start=1))
    figure = draw_cells(Genotype("my.SPACE", "nasbench201", (Cell("cell", 1, len(ops), "last", edges),)))
    arrows = [patch for patch in figure.axes[0].patches if isinstance(patch, FancyArrowPatch)]
    assert len({arrow.get_edgecolor() for arrow in arrows}) == len(ops)
    assert [arrow.get_linestyle() not in ("-", "solid") for arrow in arrows] == [op == "none" for op in ops]


def test_figure_leaves_global_state_alone() -> None:
    before = dict(matplotlib.rcParams)
    draw_cells(DARTS)
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(("suffix", "start"), [(".svg", b"<?xml"), (".PNG", b"\x89PNG"), (".pdf", b"%PDF")])
def test_same_genotype_gives_same_bytes(tmp_path: Path, suffix: str, start: bytes) -> None:
    here, there = tmp_path / f"here{suffix}", tmp_path / "new folder" / f"there{suffix}"
    save_drawing(here, DARTS)
    (tmp_path / "genotype.json").write_text(DARTS.to_json(), encoding="utf-8")
    program = (
        "import sys; from pathlib import Path; import matplotlib\n"
        "from dartslight.genotype import Genotype; from dartslight.report import save_drawing\n"
        "matplotlib.rcParams.update({'font.size': 30, 'lines.linewidth': 9, 'svg.hashsalt': 'other'})\n"
        "save_drawing(Path(sys.argv[2]), Genotype.load(sys.argv[1]))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "SOURCE_DATE_EPOCH": "86400"}
    command = [sys.executable, "-c", program, str(tmp_path / "genotype.json"), str(there)]
    subprocess.run(command, check=True, env=environment, cwd=Path(__file__).parent.parent)
    assert here.read_bytes().startswith(start)
    assert here.read_bytes() == there.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["genotype.json", here.name, "new folder"]


@pytest.mark.parametrize("name", ["cell.jpg", "cell", ".svg"])
def test_other_formats_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"drawings are \.svg, \.png or \.pdf"):
        save_drawing(tmp_path / name, DARTS)
    assert not list(tmp_path.iterdir())


def test_paths_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    (tmp_path / "folder.svg").mkdir()
    for path in (tmp_path / "file" / "cell.svg", tmp_path / "folder.svg", tmp_path / f"{'a' * 300}.svg"):
        with pytest.raises(InputError, match="cannot be written"):
            save_drawing(path, DARTS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.svg"]
