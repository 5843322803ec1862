"""Look-ups of what is known about architectures."""

from dartslight.benchmarks.table import Entry, Table

__all__ = ["Entry", "Table"]
