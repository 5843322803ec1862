"""Draws the cells of a genotype: nodes left to right, every edge in a lane of its own with its operation on it.

No label can cover another one: nodes stand in columns, an edge bends only beside the nodes that it joins and runs level
between columns, two edges share a lane only where one ends before the other begins, and each operation is written in
the column gap before the node it leads to. Lengths are in points (1/72 inch), y grows upwards.
"""

import contextlib
import io
import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dartslight.errors import InputError
from dartslight.genotype import Genotype
from dartslight.report.marks import (
    BOX,
    CENTRED,
    FAINT,
    FONT,
    LETTER,
    MARGIN,
    RADIUS,
    TITLE,
    begin_panel,
    draw_arrow,
    draw_box,
    draw_circle,
    draw_label,
    draw_line,
)
from dartslight.report.network import NetworkPanel
from dartslight.spaces import Cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("svg", "png", "pdf")
_STYLE: Any = {
    "svg.hashsalt": "dartslight",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
    "font.family": "DejaVu Sans",
    "mathtext.fontset": "dejavusans",
    "text.usetex": False,
    "text.antialiased": True,
    "path.sketch": None,
    "path.effects": [],
    "savefig.bbox": None,
}
_SPACE_TITLES = {"nasbench201": "NAS-Bench-201", "darts": "DARTS", "darts8": "DARTS (8 operations)"}
_SPACE_TITLES |= {"mobile": "Mobile", "mobile_small": "Mobile, small", "unas": "DARTS (UNAS' operations)"}

_BEND, _LANE = 54.0, 32.0
_CAPTION, _BUS = 44.0, 40.0
_HEADING = 130.0  # width of the title of a panel


@dataclass(frozen=True, slots=True)
class _Lane:
    """Where an edge runs: the columns of its ends, the height of its source, its lane (0 is the line of the nodes)."""

    start: int
    stop: int
    source: float
    lane: int


def _lanes(cell: Cell) -> list[_Lane]:
    """Returns the lane of every edge, with as few crossings as changing the side of one edge after the other gives."""
    ends = [(max(0, edge.source - cell.num_inputs + 1), edge.node - cell.num_inputs + 1) for edge in cell.edges]
    heights = [_height(cell, edge.source) for edge in cell.edges]
    straight = [stop - start == 1 and not height for (start, stop), height in zip(ends, heights, strict=True)]
    sides = [int(math.copysign(1, height)) for height in heights]
    sides = [0 if level else side for level, side in zip(straight, sides, strict=True)]
    best = _stack(ends, heights, sides)
    improved = True
    while improved:
        improved = False
        for e, level in enumerate(straight):
            flipped = [-side if i == e else side for i, side in enumerate(sides)]
            lanes = _stack(ends, heights, flipped)
            if not level and _cost(lanes) < _cost(best):
                sides, best, improved = flipped, lanes, True
    return best


def _height(cell: Cell, node: int) -> float:
    """Returns at which lane a node stands: inputs are stacked, a cell's own nodes stand in one line."""
    return float(cell.num_inputs - 1 - 2 * node) if node < cell.num_inputs else 0.0


def _stack(ends: Sequence[tuple[int, int]], heights: Sequence[float], sides: Sequence[int]) -> list[_Lane]:
    """Gives each edge the free lane nearest to the nodes on its side; short edges come first."""
    taken: set[tuple[int, int]] = set()
    lanes: dict[int, int] = {}
    for e in sorted(range(len(ends)), key=lambda e: (ends[e][1] - ends[e][0], ends[e])):
        gaps = range(*ends[e])
        lane = sides[e]
        while lane and any((lane, gap) in taken for gap in gaps):
            lane += sides[e]
        taken.update((lane, gap) for gap in gaps)
        lanes[e] = lane
    return [_Lane(*ends[e], heights[e], lanes[e]) for e in range(len(ends))]


def _cost(lanes: Sequence[_Lane]) -> tuple[int, int, int, int]:
    """Returns what is bad about an arrangement: crossings, its height, its imbalance, its length."""
    crossings = 0
    for a, b in itertools.product(lanes, lanes):
        passed = (b.start < a.stop < b.stop) + (b.start < a.start < b.stop)
        crossings += passed * (a.lane * b.lane > 0 and abs(b.lane) < abs(a.lane))
        crossings += a.start == b.start and a.source > b.source and a.lane < b.lane
    top, bottom = max(0, *(a.lane for a in lanes)), min(0, *(a.lane for a in lanes))
    return crossings, top - bottom, abs(top + bottom), sum(abs(a.lane) * (a.stop - a.start) for a in lanes)


def _angles(lanes: Sequence[_Lane], edges: Sequence[int]) -> dict[int, float]:
    """Returns at which angle above the level (in degrees) each of the edges meets its node, outer ones steeper."""
    angles = {}
    for sign in (-1, 0, 1):
        side = [e for e in edges if (lanes[e].lane > 0) - (lanes[e].lane < 0) == sign]
        for i, e in enumerate(sorted(side, key=lambda e: abs(lanes[e].lane))):
            angles[e] = sign * (40.0 if len(side) == 1 else 28.0 + 44.0 * i / (len(side) - 1))
    return angles


class _Panel:
    """The place and the scale of one cell type.

    Args:
        cell: The cell.
    """

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.lanes = _lanes(cell)
        letters = max(len(edge.ops[0]) for edge in cell.edges)
        self.gap = letters * LETTER * FONT + 14 + 2 * _BEND
        self.concat = cell.output == "concat"
        self.left = MARGIN + (BOX[0] / 2 if self.concat else _CAPTION + RADIUS)
        tall = max(1.0, (cell.num_inputs - 1.0))
        self.above = _LANE * max(tall, *(lane.lane for lane in self.lanes)) + BOX[1] / 2
        self.below = _LANE * max(tall, *(-lane.lane for lane in self.lanes)) + BOX[1] / 2
        right = self.x(cell.num_nodes) + (95 + BOX[0] / 2 if self.concat else RADIUS + _CAPTION)
        self.width = right + MARGIN
        self.height = TITLE + self.above + self.below + (_BUS if self.concat else 0) + MARGIN

    def x(self, column: float) -> float:
        """Returns where a column stands."""
        return self.left + column * self.gap

    @property
    def title(self) -> str:
        """What stands above it."""
        return "Cell" if self.cell.name == "cell" else f"{self.cell.name.replace('_', ' ')} cell".capitalize()

    def draw(self, axes: "Axes", subtitle: str) -> None:
        """Draws the cell into axes whose y is 0 on the line of the nodes."""
        begin_panel(axes, self.width, (self.above + TITLE - self.height, self.above + TITLE), self.title, subtitle)
        self._draw_edges(axes)
        self._draw_output(axes)
        for node in range(self.cell.num_inputs + self.cell.num_nodes):
            self._draw_node(axes, node)

    def _draw_edges(self, axes: "Axes") -> None:
        arrivals: dict[int, float] = {}
        departures: dict[int, float] = {}
        for node in range(self.cell.num_inputs + self.cell.num_nodes):
            arrivals |= _angles(self.lanes, self.cell.edges_into(node))
            departures |= _angles(self.lanes, [e for e, edge in enumerate(self.cell.edges) if edge.source == node])
        for e, edge in enumerate(self.cell.edges):
            lane, op = self.lanes[e], edge.ops[0]
            boxed = self.concat and edge.source < self.cell.num_inputs
            y = lane.lane * _LANE
            first, last = self.x(lane.start), self.x(lane.stop)
            start = _bend(first, lane.source * _LANE, y, None if boxed else departures[e], 1)
            stop = _bend(last, 0.0, y, arrivals[e], -1)
            draw_arrow(axes, [*start, *reversed(stop)], op, f"edge {self.cell.name} {edge}")
            draw_label(axes, (last - self.gap / 2, y), op, f"operation {self.cell.name} {edge}")

    def _draw_node(self, axes: "Axes", node: int) -> None:
        own = node - self.cell.num_inputs
        x, y = self.x(max(0, own + 1)), _height(self.cell, node) * _LANE
        name = f"node {self.cell.name} {node}"
        if not self.concat:
            draw_circle(axes, x, y, str(node), name)
            caption: dict[str, Any] = {"size": 9.5, "color": FAINT, "va": "center", "gid": "caption"}
            if own < 0:
                axes.text(x - RADIUS - 8, y, "input", ha="right", **caption)
            if node == self.cell.num_inputs + self.cell.num_nodes - 1:
                axes.text(x + RADIUS + 8, y, "output", ha="left", **caption)
        elif own < 0:
            back = self.cell.num_inputs - node
            draw_box(axes, x, y, f"$c_{{k{{-}}{back}}}$", name)
        else:
            draw_circle(axes, x, y, str(own), name)

    def _draw_output(self, axes: "Axes") -> None:
        """Draws the concatenation: every node drops to one line below the lanes, which leads to the output."""
        if not self.concat:
            return
        from matplotlib.path import Path as Curve

        right, bus, turn = self.x(self.cell.num_nodes) + 95, -self.below - _BUS / 2, 12.0
        for column in range(1, self.cell.num_nodes + 1):
            x = self.x(column)
            vertices = [(x, 0.0), (x, bus + turn), (x, bus), (x + turn, bus), (right - turn, bus)]
            codes = [Curve.MOVETO, Curve.LINETO, Curve.CURVE3, Curve.CURVE3, Curve.LINETO]
            if column == self.cell.num_nodes:
                vertices += [(right, bus), (right, bus + turn), (right, -BOX[1] / 2)]
                codes += [Curve.CURVE3, Curve.CURVE3, Curve.LINETO]
            draw_line(axes, Curve(vertices, codes), arrow=column == self.cell.num_nodes)
        gap = {"boxstyle": "square,pad=0.3", "facecolor": "white", "edgecolor": "none"}
        style = CENTRED | {"size": 8.5, "color": FAINT, "gid": "caption", "zorder": 2, "bbox": gap}
        axes.text((self.x(self.cell.num_nodes) + right) / 2, bus, "concat", **style)
        draw_box(axes, right, 0.0, "$c_k$", f"node {self.cell.name} output")


def _bend(x: float, y: float, level: float, angle: float | None, direction: int) -> list[tuple[float, float]]:
    """Returns the Bézier points from a node to the lane beside it (direction 1) or the lane before it (-1)."""
    end = (x + direction * _BEND, level)
    if angle is None:
        edge = x + direction * BOX[0] / 2
        return [(edge, y), (edge + direction * 14, y), (end[0] - direction * 22, level), end]
    across, up = direction * math.cos(math.radians(angle)), math.sin(math.radians(angle))
    reach = RADIUS + (min(0.45 * abs(level - y), 30.0) or 10.0)
    rim, before = (x + across * RADIUS, y + up * RADIUS), (x + across * reach, y + up * reach)
    return [rim, before, (end[0] - direction * 24, level), end]


def draw_cells(*genotypes: Genotype, names: Sequence[str] = (), networks: Sequence[tuple[int, int]] = ()) -> "Figure":
    """Draws the cells of genotypes: one panel for each cell type, and several genotypes side by side.

    The layers of a mobile network are cells of one operation, which are drawn as the network that they make.

    Args:
        genotypes: The architectures, at least one.
        names: What each is called; the search space where nothing is given.
        networks: For each, the number of cells and the channels of the first one of a network that is drawn above its
            cells; no network where nothing is given.

    Returns:
        A figure of its own, which no window and no global state knows of.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = [_panels(genotype, networks[i] if networks else None) for i, genotype in enumerate(genotypes)]
    widths = [max(panel.width for panel in panels) for panels in columns]
    width, height = sum(widths), max(sum(panel.height for panel in panels) for panels in columns)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width / 72, height / 72), dpi=72, facecolor="white")
        FigureCanvasAgg(figure)
        left = 0.0
        for i, (genotype, panels) in enumerate(zip(genotypes, columns, strict=True)):
            name = names[i] if names else _SPACE_TITLES.get(genotype.space, genotype.space)
            top = height
            for panel in panels:
                top -= panel.height
                panel.width = widths[i]  # titles end where those above end
                axes = figure.add_axes((left / width, top / height, panel.width / width, panel.height / height))
                panel.draw(axes, _fitting(name, panel.width))
            left += widths[i]
    return figure


def _panels(genotype: Genotype, network: tuple[int, int] | None) -> "list[NetworkPanel | _Panel]":
    if genotype.macro == "mobile":
        return [NetworkPanel(genotype, *(network or genotype.published_size))]
    cells: list[NetworkPanel | _Panel] = [_Panel(cell) for cell in genotype.cells]
    return cells if network is None else [NetworkPanel(genotype, *network), *cells]


def _fitting(name: str, width: float) -> str:
    """Returns the end of a name that has room beside the title of a panel."""
    letters = int((width - 2 * MARGIN - _HEADING) / (LETTER * 11))
    return name if len(name) <= letters else "…" + name[1 - letters :]


def drawing(
    kind: str, *genotypes: Genotype, names: Sequence[str] = (), networks: Sequence[tuple[int, int]] = ()
) -> bytes:
    """Returns the contents of a file with a drawing of the cells; the same genotypes give the same bytes.

    Args:
        kind: svg, png or pdf.
        genotypes: The architectures, at least one.
        names: What each is called, see `draw_cells`.
        networks: Networks that are drawn as well, see `draw_cells`.
    """
    import matplotlib

    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
    whole = io.BytesIO()
    figure = draw_cells(*genotypes, names=names, networks=networks)
    with matplotlib.rc_context(_STYLE):
        figure.savefig(whole, format=kind, dpi=200, metadata=dates[kind])
    return whole.getvalue()


def save_drawing(
    path: Path, *genotypes: Genotype, names: Sequence[str] = (), networks: Sequence[tuple[int, int]] = ()
) -> None:
    """Writes a drawing of the cells; the same genotypes give the same bytes.

    Args:
        path: The file, whose suffix tells the format: .svg, .png or .pdf. It is written whole or not at all.
        genotypes: The architectures, at least one.
        names: What each is called, see `draw_cells`.
        networks: Networks that are drawn as well, see `draw_cells`.

    Raises:
        InputError: If the suffix is another one or the file cannot be written.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise InputError(
            f"The drawing {str(path)!r} has the suffix {path.suffix!r}, but drawings are .svg, .png or .pdf; "
            "give a path with one of these."
        )
    contents = drawing(kind, *genotypes, names=names, networks=networks)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(contents)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise InputError(
            f"The drawing {str(path)!r} cannot be written ({error.strerror}); "
            "give a path in a folder that you may write to."
        ) from None
