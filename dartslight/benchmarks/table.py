"""Tables of known architectures: true accuracies, latencies, sizes, and the rank of an architecture among all.

A table is a CSV file, plain or compressed (.gz), with a column ``arch`` in the notation of NAS-Bench-201 (Dong and
Yang, ICLR 2020, https://arxiv.org/abs/2001.00326) and any other columns; those that hold numbers are reported.
"""

import csv
import gzip
import io
import math
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

from dartslight.errors import InputError
from dartslight.genotype import Genotype
from dartslight.spaces import NASBENCH201

_ARCH, _INDEX = "arch", "arch_index"
_GZIP_MAGIC = b"\x1f\x8b"


def _notation() -> re.Pattern[str]:
    """Returns what exactly the architectures of NAS-Bench-201 match; `Genotype` is too slow for a whole table."""
    (cell,) = NASBENCH201.cells
    groups = [[cell.edges[e] for e in cell.edges_into(node)] for node in cell.nodes]
    entries = [[f"(?:{'|'.join(map(re.escape, edge.ops))})~{edge.source}" for edge in group] for group in groups]
    return re.compile(r"\+".join(r"\|" + r"\|".join(group) + r"\|" for group in entries))


_NOTATION = _notation()


@dataclass(frozen=True, slots=True)
class Entry:
    """What a column says of one architecture.

    Args:
        value: Its value.
        rank: Its rank among all architectures of the table, 1 for the largest value; equal values share the best rank.
        of: Number of architectures in the table.
    """

    value: float
    rank: int
    of: int


@dataclass(frozen=True)
class Table:
    """Known values of many architectures.

    Args:
        name: How messages call the table: its path.
        rows: The row of every architecture.
        columns: The values of every numeric column, row by row.
    """

    name: str
    rows: dict[str, int]
    columns: dict[str, tuple[float, ...]]

    @classmethod
    def read(cls, path: str | Path) -> "Table":
        """Reads and validates a table.

        Args:
            path: A CSV file, plain or compressed with gzip.

        Raises:
            InputError: If the file cannot be read or is not a whole table.
        """
        name = f"The table {str(path)!r}"
        header, rows, lines = _split(_text(Path(path), name), name)
        rows_of = _architectures(header, rows, lines, name)
        columns = {}
        for position, column in enumerate(header):
            if column not in (_ARCH, _INDEX):
                values = _numbers([row[position] for row in rows], column, lines, name)
                if values is not None:
                    columns[column] = values
        if not columns:
            raise InputError(
                f"{name} has no column of numbers beside {_ARCH!r} (its columns are {', '.join(map(repr, header))}); "
                "give a table with at least one column in which every value is a number."
            )
        return cls(name, rows_of, columns)

    def look_up(self, arch: str) -> dict[str, Entry]:
        """Returns what every numeric column says of an architecture.

        Args:
            arch: The architecture in NAS-Bench-201's notation.

        Raises:
            InputError: If it is not in that notation or not in the table.
        """
        arch = Genotype.from_nasbench201(arch).to_nasbench201()
        if arch not in self.rows:
            raise InputError(
                f"{self.name} does not hold the architecture {arch!r}, only {_thousands(len(self.rows))} others; "
                "give a table that holds it."
            )
        row = self.rows[arch]
        return {
            column: Entry(values[row], 1 + sum(value > values[row] for value in values), len(values))
            for column, values in self.columns.items()
        }

    def render(self, arch: str) -> str:
        """Returns what the table says of an architecture as text, one line for each column.

        Args:
            arch: The architecture in NAS-Bench-201's notation.

        Raises:
            InputError: If it is not in that notation or not in the table.
        """
        entries = self.look_up(arch)
        values = _aligned([f"{entry.value:.10g}" for entry in entries.values()])
        ranks = [_thousands(entry.rank) for entry in entries.values()]
        name_width, rank_width = max(map(len, entries)), max(map(len, ranks))
        lines = [
            f"{column:<{name_width}}  {value}  rank {rank:>{rank_width}} of {_thousands(entry.of)} (1 = largest)"
            for (column, entry), value, rank in zip(entries.items(), values, ranks, strict=True)
        ]
        return "\n".join([arch, *lines])


def _text(path: Path, name: str) -> str:
    """Returns the content of a file, which may be compressed."""
    try:
        data = path.read_bytes()
        compressed = path.suffix.lower() == ".gz" or data.startswith(_GZIP_MAGIC)
        return (gzip.decompress(data) if compressed else data).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"byte {error.start} is not UTF-8 text"
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        reason = f"it is not a whole gzip file: {' '.join(str(error).split()).rstrip('.')}"
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    raise InputError(f"{name} cannot be read ({reason}); give a CSV file, plain or compressed as .gz.")


def _split(text: str, name: str) -> tuple[list[str], list[list[str]], list[int]]:
    """Returns the header, the rows, and the line at which each row ends."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows, lines = [], []
    try:
        for row in reader:
            if row:
                rows.append(row)
                lines.append(reader.line_num)
    except csv.Error as error:
        raise InputError(f"{name} is not CSV at line {reader.line_num} ({error}); give a CSV file.") from None
    if not rows:
        raise InputError(f"{name} is empty; give a CSV file with a column {_ARCH!r} and columns of numbers.")
    header = [column.strip() for column in rows[0]]
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(header):
            raise InputError(
                f"{name} has {len(row)} values at line {line} ({_short(','.join(row))}), but its header has "
                f"{len(header)} columns; give each row one value for each column."
            )
    twice = next((column for column in header if header.count(column) > 1), None)
    if twice is not None:
        raise InputError(
            f"{name} has the column {_short(twice)} twice at line {lines[0]}; give each column its own name."
        )
    return header, rows[1:], lines[1:]


def _architectures(header: list[str], rows: list[list[str]], lines: list[int], name: str) -> dict[str, int]:
    """Returns the row of every architecture."""
    if _ARCH not in header:
        raise InputError(
            f"{name} has no column {_ARCH!r} (its columns are {_short(', '.join(header))}); give a table whose column "
            f"{_ARCH!r} holds architectures in NAS-Bench-201's notation."
        )
    if not rows:
        raise InputError(f"{name} has a header but no rows; give a table with one row for each architecture.")
    position = header.index(_ARCH)
    found: dict[str, int] = {}
    for i, (row, line) in enumerate(zip(rows, lines, strict=True)):
        arch = row[position]
        if not _NOTATION.fullmatch(arch):
            raise InputError(
                f"{name} has {_short(arch)} at line {line} in its column {_ARCH!r}, which is not in NAS-Bench-201's "
                "notation; it should read like |nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|avg_pool_3x3~2|."
            )
        first = found.setdefault(arch, i)
        if first != i:
            raise InputError(
                f"{name} has {arch!r} at line {lines[first]} and again at line {line}; give each architecture one row."
            )
    return found


def _numbers(texts: list[str], column: str, lines: list[int], name: str) -> tuple[float, ...] | None:
    """Returns the values of a column, or None where it holds something else than numbers, or nothing."""
    try:
        values = tuple(float(text) if text.strip() else math.nan for text in texts)
    except ValueError:
        return None
    if not any(text.strip() for text in texts):
        return None
    for text, value, line in zip(texts, values, lines, strict=True):
        if not math.isfinite(value):
            raise InputError(
                f"{name} has the value {_short(text)} at line {line} in its column {_short(column)}, which is no "
                "finite number; give every architecture a value there, or leave the row or the column out."
            )
    return values


def _short(text: str) -> str:
    """Quotes a text, cut to what fits in a message."""
    return repr(text if len(text) <= 120 else text[:117] + "...")


def _thousands(number: int) -> str:
    return f"{number:,}"


def _aligned(numbers: list[str]) -> list[str]:
    """Pads numbers so that their decimal points stand below each other."""
    parts = [number.partition(".") for number in numbers]
    before = max(len(whole) for whole, _, _ in parts)
    after = max(len(point + rest) for _, point, rest in parts)
    return [f"{whole:>{before}}{point + rest:<{after}}" for whole, point, rest in parts]
