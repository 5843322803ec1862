"""Tables of known architectures: true accuracies, costs or latencies by NAS-Bench-201's notation."""

import csv
import gzip
import io
import math
import re
import statistics
import zlib
from collections.abc import Sequence
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

_NAMES = re.compile(r"\|([^|~]+)~")
_CONVOLUTIONS = ("nor_conv_1x1", "nor_conv_3x3")
_ALL_3X3 = "+".join("".join(f"|nor_conv_3x3~{i}" for i in range(n)) + "|" for n in NASBENCH201.cells[0].nodes)


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
        name: What messages call it.
        rows: Row of each architecture, from 0.
        columns: The numbers of each numeric column.
    """

    name: str
    rows: dict[str, int]
    columns: dict[str, list[float]]

    @classmethod
    def read(cls, path: str | Path) -> "Table":
        """Reads a CSV file, plain or gzipped, with a column ``arch`` and numeric columns.

        Text columns, empty columns and ``arch_index`` are left out.

        Raises:
            InputError: If it is not such a table.
        """
        name = f"The table {str(path)!r}"
        header, lines = _parse(_text(Path(path), name), name)
        place = header.index("arch")
        rows: dict[str, int] = {}
        for row, (number, line) in enumerate(lines):
            if len(line) != len(header):
                raise InputError(
                    f"{name} has {len(line)} values at line {number}, but its header has {len(header)}; mend that line."
                )
            arch = line[place]
            if not _ARCH.fullmatch(arch):
                raise InputError(
                    f"{name} has {arch!r} at line {number}, which is not in NAS-Bench-201's notation; mend that line."
                )
            first = rows.setdefault(arch, row)
            if first != row:
                raise InputError(f"{name} has {arch} at line {lines[first][0]} and again at line {number}; remove one.")
        columns = {}
        for column, title in enumerate(header):
            if column != place and title != "arch_index":
                values = _numbers([line[column] for _, line in lines], [number for number, _ in lines], title, name)
                if values is not None:
                    columns[title] = values
        if not columns:
            raise InputError(f"{name} has no column of numbers beside 'arch'; give one that has.")
        return cls(name, rows, columns)

    def look_up(self, arch: str) -> dict[str, Entry]:
        """Returns what the table says of an architecture, by column.

        Raises:
            InputError: If the table does not hold it.
        """
        row = self._row(arch)
        return {
            title: Entry(values[row], 1 + sum(value > values[row] for value in values), len(values))
            for title, values in self.columns.items()
        }

    def value(self, arch: str, column: str) -> float:
        """Returns the number of an architecture in one column.

        Raises:
            InputError: If the table does not hold the architecture.
        """
        return self.columns[column][self._row(arch)]

    def _row(self, arch: str) -> int:
        if not _ARCH.fullmatch(arch):
            raise InputError(f"{arch!r} is not in NAS-Bench-201's notation; give an architecture that is.")
        if arch not in self.rows:
            raise InputError(
                f"{self.name} does not hold the architecture {arch} but {len(self.rows):,} others; give a larger table."
            )
        return self.rows[arch]

    def controls(self) -> dict[str, dict[str, str]]:
        """Returns, by name and column, what is reached without a search: what any result must be compared with.

        These are a random architecture, one of random convolutions (mean ± standard deviation of all such ones), the
        one with a 3x3 convolution on every edge, and the largest value. What the table does not hold is left out.
        """
        convolutions = [row for arch, row in self.rows.items() if set(_NAMES.findall(arch)) <= set(_CONVOLUTIONS)]
        groups = {"random": list(self.rows.values()), "random convolutions": convolutions}
        found = {
            name: {title: _spread([values[row] for row in rows]) for title, values in self.columns.items()}
            for name, rows in groups.items()
            if len(rows) > 1
        }
        same = self.rows.get(_ALL_3X3)
        if same is not None:
            found["all 3x3"] = {title: _short(values[same]) for title, values in self.columns.items()}
        return {**found, "largest": {title: _short(max(values)) for title, values in self.columns.items()}}

    def render(self, arch: str) -> str:
        """Returns what the table says of an architecture, and of the controls, for a person to read."""
        entries = self.look_up(arch)
        values = {title: f"{entry.value:,.10g}" for title, entry in entries.items()}
        whole = max(len(value.partition(".")[0]) for value in values.values())
        padded = {title: " " * (whole - len(v.partition(".")[0])) + v for title, v in values.items()}
        name_width, width = max(map(len, padded)), max(map(len, padded.values()))
        return "\n".join(
            [arch]
            + [
                f"{title:<{name_width}}  {padded[title]:<{width}}  rank {entry.rank:,} of {entry.of:,} (1 = largest)"
                for title, entry in entries.items()
            ]
            + ["Without a search"]
            + [f"  {name}: " + ", ".join(f"{t} {v}" for t, v in of.items()) for name, of in self.controls().items()]
        )


def _spread(values: Sequence[float]) -> str:
    return f"{_short(statistics.mean(values))} ± {_short(statistics.stdev(values))}"


def _short(value: float) -> str:
    return f"{value:,.2f}" if abs(value) < 1000 else f"{value:,.0f}"


def _text(path: Path, name: str) -> str:
    try:
        data = path.read_bytes()
        if path.suffix == ".gz" or data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        reason = "not UTF-8"
    except (EOFError, zlib.error, gzip.BadGzipFile):
        reason = "not a whole gzip file"
    except OSError as error:
        reason = error.strerror or "not a file"
    except ValueError as error:
        reason = str(error)
    raise InputError(f"{name} cannot be read ({reason}); give a CSV file, plain or gzipped.")


def _parse(text: str, name: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and each line with its number in the file."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    lines: list[tuple[int, list[str]]] = []
    try:
        lines.extend((reader.line_num, line) for line in reader if line)
    except csv.Error as error:
        raise InputError(f"{name} is not CSV at line {reader.line_num} ({error}); mend that line.") from None
    if not lines:
        raise InputError(f"{name} is empty; give one with a column 'arch' and columns of numbers.")
    header = lines.pop(0)[1]
    if "arch" not in header:
        raise InputError(f"{name} has no column 'arch' but the columns {', '.join(header)!r}; name that column 'arch'.")
    for title in header:
        if header.count(title) > 1:
            raise InputError(f"{name} has the column {title!r} twice; rename one.")
    if not lines:
        raise InputError(f"{name} has no rows; give one that lists architectures.")
    return header, lines


def _numbers(texts: list[str], lines: list[int], title: str, name: str) -> list[float] | None:
    """The numbers of a column, or None for a column that holds text or nothing."""
    values: list[float | None] = []
    for text in texts:
        try:
            value = float(text) if text.strip() else math.nan
        except ValueError:
            return None
        values.append(value if math.isfinite(value) else None)
    if not any(text.strip() for text in texts):
        return None
    for text, line, found in zip(texts, lines, values, strict=True):
        if found is None:
            raise InputError(f"{name} has {text!r} at line {line} in its column {title!r}; give a finite number there.")
    return [value for value in values if value is not None]
