"""Draws a whole network: its blocks in the order of the data, a row for each stage of equal size and channels."""

import itertools
from typing import TYPE_CHECKING

from dartslight.genotype import Genotype
from dartslight.report.marks import FAINT, FONT, INK, LETTER, MARGIN, PAD, TITLE, begin_panel, draw_label, draw_line
from dartslight.spaces import Block, layout

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {"reduction": "#d55e00", "normal": "#0072b2", "cell": "#0072b2"}
_LONGEST = 8  # blocks of a row
_CAPTION, _ROW, _LINE, _ARROW = 118.0, 64.0, 13.0, 20.0
_FIXED = ("stem", "classifier")
_FRAME = FONT * (0.75 + PAD)  # half the height of a label
_SIZES = {1: "full size", 2: "half the size"}


class NetworkPanel:
    """The place and the scale of a network.

    Args:
        genotype: The architecture.
        num_cells: Number of its cells in the network.
        init_channels: Channels of the first cell's operations.

    Raises:
        InputError: If there is no network of so many cells.
    """

    def __init__(self, genotype: Genotype, num_cells: int, init_channels: int) -> None:
        self.genotype, self.channels = genotype, init_channels
        blocks = layout(genotype.macro, num_cells)
        self.what = "layer" if genotype.macro == "mobile" else "cell"
        count = sum(block.cell is not None for block in blocks)
        self.title = f"Network of {count} {self.what}" + ("s" if count > 1 else "")
        self.rows: list[list[Block]] = []
        for _, stage in itertools.groupby(blocks, lambda block: block.width):
            members = list(stage)
            self.rows += [members[i : i + _LONGEST] for i in range(0, len(members), _LONGEST)]
        ends = len(self.rows[0]) + 1, len(self.rows[-1]) + 1 + (len(self.rows) == 1)
        words = ["classifier", *(self._name(block) for block in blocks)]
        self.gap = _width(max(words, key=len)) + _ARROW
        self.width = 2 * MARGIN + _CAPTION + self.gap * max(*map(len, self.rows), *ends)
        self.height = TITLE + _ROW * len(self.rows) + MARGIN

    def _name(self, block: Block) -> str:
        if self.genotype.macro != "mobile":
            return block.cell or "residual"
        return next(cell for cell in self.genotype.cells if cell.name == block.cell).edges[0].ops[0]

    def draw(self, axes: "Axes", subtitle: str) -> None:
        """Draws the network into axes whose y is 0 at the lower end."""
        from matplotlib.path import Path as Curve

        begin_panel(axes, self.width, (0.0, self.height), self.title, subtitle)
        if self.genotype.macro == "darts":
            note = "Each cell reads the two before it."
            axes.text(MARGIN, MARGIN / 2, note, size=FONT, va="center", color=FAINT, gid="note")
        size, done = 1, 0
        before: tuple[float, float, float] | None = None
        for number, row in enumerate(self.rows):
            y = self.height - TITLE - _ROW * (number + 0.5)
            size *= 2 if row[0].reduction else 1
            searched = sum(block.cell is not None for block in row)
            self._caption(axes, y, row[0], (done + 1, done + searched), size)
            done += searched
            names = [self._name(block) for block in row]
            names = ["stem"] * (number == 0) + names + ["classifier"] * (number == len(self.rows) - 1)
            for place, name in enumerate(names):
                x, half = MARGIN + _CAPTION + self.gap * (place + 0.5), _width(name) / 2
                if before is not None:
                    left, right = before[0] + before[2], x - half
                    points = [(left, y), (right, y)]
                    if before[1] != y:  # from the end of a row to the start of the next
                        middle = (before[1] + y) / 2
                        points = [(before[0], before[1] - _FRAME), (before[0], middle), (x, middle), (x, y + _FRAME)]
                    draw_line(axes, Curve(points), arrow=True)
                own = _COLOURS.get(name, FAINT) if self.genotype.macro != "mobile" or name in _FIXED else None
                draw_label(axes, (x, y), name, f"block {number} {place}", own)
                before = (x, y, half)

    def _caption(self, axes: "Axes", y: float, first: Block, cells: tuple[int, int], size: int) -> None:
        numbers = f"{self.what} {cells[0]}" if cells[0] == cells[1] else f"{self.what}s {cells[0]} to {cells[1]}"
        channels = f"{self.channels * first.width:,} channels"
        for i, text in enumerate((numbers, channels, _SIZES.get(size, f"1/{size} of the size"))):
            colour = INK if i == 0 else FAINT
            axes.text(MARGIN, y + _LINE * (1 - i), text, size=FONT, va="center", color=colour, gid=f"caption {i}")


def _width(text: str) -> float:
    return len(text) * LETTER * FONT + 2 * PAD * FONT
