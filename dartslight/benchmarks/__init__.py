"""Look-ups: what is known of every architecture of a space."""

from dartslight.benchmarks.table import Entry, Table

__all__ = ["Entry", "Table"]
