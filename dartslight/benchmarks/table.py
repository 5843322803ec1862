"""Tables of known architectures: true accuracies, costs or latencies by NAS-Bench-201's notation."""

import csv
import gzip
import io
import math
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

from dartslight.errors import InputError
from dartslight.spaces import NASBENCH201
from dartslight.spaces.nasbench201 import NASBENCH201_OPS

_OPS = "|".join(NASBENCH201_OPS)
_ARCH = re.compile(
    r"\+".join(
        "".join(rf"\|(?:{_OPS})~{source}" for source in range(node)) + r"\|" for node in NASBENCH201.cells[0].nodes
    )
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One number of an architecture.

    Args:
        value: The number.
        rank: How many architectures have a larger one, plus 1.
        of: Number of architectures in the table.
    """

    value: float
    rank: int
    of: int


@dataclass(frozen=True, slots=True)
class Table:
    """A table of known architectures.

    Args:
        rows: Row number of each architecture.
        columns: The numbers of each numeric column.
    """

    rows: dict[str, int]
    columns: dict[str, list[float]]

    @classmethod
    def read(cls, path: str | Path) -> "Table":
        """Reads a CSV file, plain or gzipped, with a column ``arch`` and numeric columns.

        Raises:
            InputError: If it is not such a table.
        """
        name = f"The table {str(path)!r}"
        reader = csv.reader(io.StringIO(_text(Path(path), name)), strict=True)
        try:
            lines = [line for line in reader if line]
        except csv.Error as error:
            raise InputError(f"{name} is not CSV ({error}, line {reader.line_num}); give another file.") from None
        header, lines = (lines[0], lines[1:]) if lines else ([], [])
        if "arch" not in header:
            raise InputError(f"{name} has no column 'arch' but {', '.join(header) or 'nothing'}; name that column 'arch'.")
        if not lines:
            raise InputError(f"{name} lists no architecture; give one with rows.")
        place, rows = header.index("arch"), {}
        for number, line in enumerate(lines):
            if len(line) != len(header):
                raise InputError(
                    f"{name} has {len(line)} values in row {number + 2} but {len(header)} columns; mend that row."
                )
            if not _ARCH.fullmatch(line[place]):
                raise InputError(f"{name} has {line[place]!r} in row {number + 2}, not in NAS-Bench-201's notation.")
            if rows.setdefault(line[place], number) != number:
                raise InputError(f"{name} lists {line[place]} twice, again in row {number + 2}; remove one.")
        columns = {}
        for column, title in enumerate(header):
            if column != place and title != "arch_index":
                values = _numbers([line[column] for line in lines])
                if values is not None:
                    columns[title] = values
        if not columns:
            raise InputError(f"{name} has no column in which every value is a number; give one that has.")
        return cls(rows, columns)

    def look_up(self, arch: str) -> dict[str, Entry]:
        """Returns what the table says of an architecture, by column.

        Raises:
            InputError: If the table does not list it.
        """
        if arch not in self.rows:
            raise InputError(f"The table does not list {arch}; give a table that does.")
        row = self.rows[arch]
        return {
            title: Entry(values[row], 1 + sum(value > values[row] for value in values), len(values))
            for title, values in self.columns.items()
        }

    def render(self, arch: str) -> str:
        """Returns what the table says of an architecture, for a person to read."""
        entries = self.look_up(arch)
        width = max(len(title) for title in entries)
        lines = [arch] + [
            f"  {title:<{width}}  {entry.value:>14,.10g}  rank {entry.rank:,} of {entry.of:,} (1 = largest)"
            for title, entry in entries.items()
        ]
        return "\n".join(lines)


def _text(path: Path, name: str) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except OSError as error:
        reason = error.strerror or "not gzip"
    except (EOFError, zlib.error):
        reason = "not whole gzip"
    except UnicodeDecodeError:
        reason = "not text in UTF-8"
    raise InputError(f"{name} cannot be read ({reason}); give a CSV file, plain or with .gz.")


def _numbers(texts: list[str]) -> list[float] | None:
    try:
        values = [float(text) for text in texts]
    except ValueError:
        return None
    return values if all(math.isfinite(value) for value in values) else None
