"""The conclusion of a selection: the files of an architecture and its decisions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dartslight.genotype import Genotype
from dartslight.report.draw import save_drawing
from dartslight.run_folder import DECISIONS, GENOTYPE, write_whole
from dartslight.selection.record import decisions_csv


def write_conclusion(folder: Path, genotype: Genotype, decisions: Sequence[Mapping[str, Any]]) -> None:
    """Writes genotype.json, decisions.csv and the drawings of the cells.

    Args:
        folder: The folder of the run.
        genotype: The architecture.
        decisions: The decisions as plain values, see `dartslight.selection.record.record`.
    """
    write_whole(folder / DECISIONS, decisions_csv(decisions))
    write_whole(folder / GENOTYPE, genotype.to_json())
    for suffix in ("png", "svg"):
        save_drawing(folder / f"cell.{suffix}", genotype)
