"""What drawings of architectures are made of: arrows, labels, circles and boxes, in the colours of the operations.

Colours: Okabe and Ito, "Color Universal Design", https://jfly.uni-koeln.de/color/, which colour-blind people can tell
apart. Lengths are in points (1/72 inch).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.path import Path as Curve

FAMILIES = (
    ("none", "#9a9a9a"),
    ("noise", "#56b4e9"),
    ("skip", "#cc79a7"),
    ("pool", "#009e73"),
    ("sep_conv", "#0072b2"),
    ("dil_conv", "#e69f00"),
    ("conv", "#d55e00"),
)
CENTRED: Any = {"ha": "center", "va": "center"}
OTHER, INK, FAINT = "#333333", "#222222", "#8c8c8c"

FONT, LETTER = 9.0, 0.602  # size of the operations' type, and the width of a monospaced letter in that size
PAD = 0.45  # between a label's text and its frame, in sizes of its type
RADIUS = 15.0
MARGIN, TITLE = 30.0, 46.0  # around a panel, and the height of its title
BOX = (42.0, 28.0)  # an input or output of a DARTS cell


def begin_panel(axes: "Axes", width: float, heights: tuple[float, float], title: str, subtitle: str) -> None:
    """Makes axes the place of a panel, and writes what stands above it.

    Args:
        axes: The axes.
        width: Width of the panel.
        heights: Where its lower and its upper end are.
        title: What stands on its left.
        subtitle: What stands on its right.
    """
    axes.set_xlim(0, width)
    axes.set_ylim(*heights)
    axes.set_axis_off()
    plain: dict[str, Any] = {"y": heights[1] - 22, "va": "baseline", "parse_math": False, "gid": "title"}
    axes.text(MARGIN, s=title, size=14, weight="bold", color=INK, **plain)
    axes.text(width - MARGIN, s=subtitle, size=11, color=FAINT, ha="right", **plain)


def draw_arrow(axes: "Axes", points: Sequence[tuple[float, float]], op: str, name: str) -> None:
    """Draws an edge along two Bézier curves with a level line between them, in the colour of its operation."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Curve

    codes = [Curve.MOVETO, *[Curve.CURVE4] * 3, Curve.LINETO, *[Curve.CURVE4] * 3]
    line: dict[str, Any] = {"linewidth": 1.7, "capstyle": "butt", "joinstyle": "miter", "mutation_scale": 1}
    if op == "none":
        line |= {"linewidth": 1.2, "linestyle": (0, (4, 3))}
    head = "-|>,head_length=5,head_width=2.8"
    curve = Curve(points, codes)
    axes.add_patch(FancyArrowPatch(path=curve, arrowstyle=head, color=family_colour(op), zorder=3, gid=name, **line))


def draw_label(axes: "Axes", centre: tuple[float, float], op: str, name: str, edge: str | None = None) -> None:
    """Draws a name in a frame of its operation's colour, or of a given one."""
    frame: dict[str, Any] = {"boxstyle": f"round,pad={PAD},rounding_size=0.5", "linewidth": 1.0}
    frame |= {"facecolor": tint(edge or family_colour(op)), "edgecolor": edge or family_colour(op)}
    colour = INK
    if op == "none":
        colour, frame["linestyle"] = FAINT, (0, (4, 2.5))
    style = CENTRED | {"size": FONT, "family": "DejaVu Sans Mono", "parse_math": False, "zorder": 4}
    axes.text(*centre, op, color=colour, gid=name, bbox=frame, **style)


def draw_line(axes: "Axes", curve: "Curve", arrow: bool) -> None:
    """Draws where something goes that no operation changes."""
    from matplotlib.patches import FancyArrowPatch

    style = "-|>,head_length=4,head_width=2" if arrow else "-"
    patch = FancyArrowPatch(path=curve, arrowstyle=style, mutation_scale=1, color="#b5b5b5", linewidth=0.9, zorder=1)
    axes.add_patch(patch)


def draw_circle(axes: "Axes", x: float, y: float, text: str, name: str) -> None:
    """Draws a node."""
    from matplotlib.patches import Circle

    axes.add_patch(Circle((x, y), RADIUS, facecolor="white", edgecolor=INK, linewidth=1.4, zorder=5, gid=name))
    style = CENTRED | {"va": "center_baseline", "weight": "bold", "zorder": 6}
    axes.text(x, y, text, size=11, color=INK, gid=f"in {name}", **style)


def draw_box(axes: "Axes", x: float, y: float, text: str, name: str) -> None:
    """Draws an input or output."""
    from matplotlib.patches import FancyBboxPatch

    width, height = BOX
    look: dict[str, Any] = {"facecolor": "#ededed", "edgecolor": INK, "linewidth": 1.2, "zorder": 5, "gid": name}
    corner = (x - width / 2, y - height / 2)
    axes.add_patch(FancyBboxPatch(corner, width, height, "round,pad=0,rounding_size=7", **look))
    axes.text(x, y, text, size=12, color=INK, gid=f"in {name}", zorder=6, **CENTRED)


def family_colour(op: str) -> str:
    """Returns the colour of an operation's family."""
    return next((colour for family, colour in FAMILIES if family in op), OTHER)


def tint(colour: str) -> str:
    """Returns the colour mixed with six times as much white."""
    parts = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{(part + 6 * 255) // 7:02x}" for part in parts)
