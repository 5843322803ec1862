"""Drawings of a search as it went on: heat maps of its mixing weights, and the leading cells as an animation."""

import io
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dartslight.errors import InputError
from dartslight.genotype import Genotype
from dartslight.report.draw import draw_cells
from dartslight.selection.strongest import keep_strongest
from dartslight.spaces import Cell, Choices, SearchSpace, find_space

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

    from dartslight.report.runs import Run

Weights = Mapping[str, npt.NDArray[np.floating[Any]]]
"""Mixing weights by cell type, (edges, operations of the edge with the most)."""

_MILLISECONDS, _LAST = 400, 3000  # how long a frame of an animation is shown, and the last one
_PIXELS = 72  # for each inch of a frame


class Epoch(NamedTuple):
    """A search at the end of an epoch.

    Args:
        number: Number of finished epochs.
        choices: What is open.
        weights: The mixing weights.
    """

    number: int
    choices: Choices
    weights: Weights


def epochs_of(run: "Run") -> tuple[SearchSpace, list[Epoch]]:
    """Returns the search space of a run, and what its ``alphas.csv`` tells of each epoch.

    Args:
        run: The run.

    Raises:
        InputError: If it tells of none, or of operations that the space does not have.
    """
    if not run.alphas:
        raise InputError(
            f"{str(run.path)!r} has no mixing weights; give the folder of a search that has finished an epoch."
        )
    space = find_space(str(run.settings.get("space")))
    numbers = sorted({epoch for values in run.alphas.values() for epoch, _, _ in values})
    everything = Choices.everything(space)
    weights = {e: {c.name: np.zeros((len(c.edges), c.num_ops)) for c in space.cells} for e in numbers}
    is_open: dict[int, set[tuple[str, int, int]]] = {e: set() for e in numbers}
    places = {
        (cell.name, str(edge), op): (e, o)
        for cell in space.cells
        for e, edge in enumerate(cell.edges)
        for o, op in enumerate(edge.ops)
    }
    for key, values in run.alphas.items():
        if key not in places:
            raise InputError(
                f"{str(run.path)!r} has weights of {' '.join(key)}, which the space {space.name!r} does not have; give "
                "the folder of another run."
            )
        edge, op = places[key]
        for epoch, _, weight in values:
            weights[epoch][key[0]][edge, op] = weight
            is_open[epoch].add((key[0], edge, op))
    found = []
    for epoch in numbers:
        state = {
            cell.name: [
                [o for o in columns if (cell.name, e, o) in is_open[epoch]]
                for e, columns in enumerate(everything.of(cell.name))
            ]
            for cell in space.cells
        }
        found.append(Epoch(epoch + 1, Choices.from_state(state), weights[epoch]))
    return space, found


def heat_map(cell: Cell, choices: Choices, weights: Weights) -> "Figure":
    """Draws the mixing weights of a cell type: a row for each edge, a column for each operation.

    Operations that are no longer open, or that an edge never had, are left white.

    Args:
        cell: The cell type.
        choices: What is open.
        weights: The mixing weights by cell type, (edges, operations of the edge with the most).
    """
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    size = _fill(figure, cell, choices.of(cell.name), weights[cell.name], f"mixing weights: {cell.name}")
    figure.set_size_inches(size)
    return figure


def _fill(
    part: Any,
    cell: Cell,
    columns: Sequence[Sequence[int]],
    weights: npt.NDArray[np.floating[Any]],
    title: str,
    kept: Collection[tuple[str, str]] = (),
) -> tuple[float, float]:
    """Draws a heat map into a figure or a part of one, and returns the width and the height that it needs.

    Args:
        part: The figure, or a part of it.
        cell: The cell type.
        columns: The operations of each edge that are shown.
        weights: The mixing weights, (edges, operations of the edge with the most).
        title: What is shown.
        kept: Edges and operations around which a frame is drawn.
    """
    from matplotlib.patches import Rectangle

    names = list(dict.fromkeys(op for edge in cell.edges for op in edge.ops))
    shown = np.full((len(cell.edges), len(names)), np.nan)
    for e, edge in enumerate(cell.edges):
        for o in columns[e]:
            shown[e, names.index(edge.ops[o])] = weights[e][o]
    axes = part.subplots()
    image = axes.imshow(np.ma.masked_invalid(shown), aspect="auto", vmin=0.0, cmap="viridis")
    middle = 0.6 * max(np.nanmax(shown), 1e-12)
    for e, n in zip(*np.nonzero(np.isfinite(shown)), strict=True):
        colour = "black" if shown[e, n] > middle else "white"
        axes.text(n, e, f"{shown[e, n]:.2g}", ha="center", va="center", size=7, color=colour)
    for e, edge in enumerate(cell.edges):
        for op in (op for op in edge.ops if (str(edge), op) in kept):
            place = names.index(op) - 0.47, e - 0.44
            axes.add_patch(Rectangle(place, 0.94, 0.88, fill=False, edgecolor="#d55e00", linewidth=2.5, gid="kept"))
    axes.set_xticks(range(len(names)), names, rotation=35, ha="right")
    axes.set_yticks(range(len(cell.edges)), [str(edge) for edge in cell.edges])
    axes.set_title(title, size=10)
    part.colorbar(image, ax=axes)
    return 1.5 + 0.8 * len(names), 1.6 + 0.3 * len(cell.edges)


def heat_maps(run: "Run") -> "Figure":
    """Draws the mixing weights of all cell types of a run: of each edge the last ones before it was decided.

    A frame is around what the architecture has kept, so that one sees where that is not the largest weight.

    Args:
        run: The run.

    Raises:
        InputError: If it has none.
    """
    from matplotlib.figure import Figure

    space, epochs = epochs_of(run)
    figure = Figure(layout="constrained")
    parts = figure.subfigures(len(space.cells), 1, squeeze=False)[:, 0]
    sizes = []
    for part, cell in zip(parts, space.cells, strict=True):
        last = [_last_open(epochs, cell.name, e) for e in range(len(cell.edges))]
        columns = [epoch.choices.of(cell.name)[e] for e, epoch in enumerate(last)]
        weights = np.stack([epoch.weights[cell.name][e] for e, epoch in enumerate(last)])
        own = next((c for c in run.genotype.cells if c.name == cell.name), None) if run.genotype else None
        kept = {(str(edge), edge.ops[0]) for edge in own.edges} if own else set()
        title = f"{cell.name}: mixing weights before the decisions" if own else f"{cell.name}: mixing weights"
        sizes.append(_fill(part, cell, columns, weights, title + (", framed: kept" if own else ""), kept))
    figure.set_size_inches(max(width for width, _ in sizes), sum(height for _, height in sizes))
    return figure


def _last_open(epochs: Sequence[Epoch], cell: str, e: int) -> Epoch:
    """Returns the last epoch in which an edge had a choice, or the last of all where it never had one."""
    return next((epoch for epoch in reversed(epochs) if len(epoch.choices.of(cell)[e]) > 1), epochs[-1])


def animation(run: "Run") -> bytes:
    """Returns a GIF of the cells that lead by their mixing weights, a frame for each epoch, and what was decided.

    Args:
        run: The run.

    Raises:
        InputError: If it has no mixing weights.
    """
    from PIL import Image

    space, epochs = epochs_of(run)
    frames = []
    for number, choices, weights in epochs:
        leading = Genotype.from_choices(space, keep_strongest(space, choices, weights, "weight").choices)
        left = sum(len(choices.undecided(cell.name)) for cell in space.cells)
        frames.append(_frame(leading, f"epoch {number}, {left} undecided"))
    if run.genotype is not None:
        frames.append(_frame(run.genotype, "decided"))
    size = max(frame.width for frame in frames), max(frame.height for frame in frames)
    whole = [Image.new("RGB", size, "white") for _ in frames]
    for paper, frame in zip(whole, frames, strict=True):
        paper.paste(frame)
    contents = io.BytesIO()
    times = [_MILLISECONDS] * (len(whole) - 1) + [_LAST]
    whole[0].save(contents, "GIF", save_all=True, append_images=whole[1:], duration=times, loop=0)
    return contents.getvalue()


def _frame(genotype: Genotype, title: str) -> "Image":
    """Returns a frame of an animation."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    figure = draw_cells(genotype, names=[title])
    figure.set_dpi(_PIXELS)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
