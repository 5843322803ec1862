"""Reports: what a genotype looks like."""

from dartslight.report.draw import draw_cells, save_drawing

__all__ = ["draw_cells", "save_drawing"]
