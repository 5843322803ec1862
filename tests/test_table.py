"""Tables of known architectures: values, ranks, and what is refused."""

import gzip
import os
import random
import re
from pathlib import Path

import pytest

from dartslight.benchmarks import Entry, Table
from dartslight.errors import InputError

A = "|none~0|+|skip_connect~0|nor_conv_1x1~1|+|nor_conv_3x3~0|avg_pool_3x3~1|none~2|"
B = A.replace("|none~0|+", "|avg_pool_3x3~0|+")
C = A.replace("|none~0|+", "|nor_conv_3x3~0|+")
D = A.replace("|none~0|+", "|skip_connect~0|+")
SMALL = f"arch_index,arch,accuracy,note,params,empty\n0,{A},93.5,good,1200000,\n1,{B},93.5,,7,\n2,{C},10,bad,-3.25e1,\n"
SKIP = "|skip_connect~0|+|skip_connect~0|skip_connect~1|+|skip_connect~0|skip_connect~1|skip_connect~2|"
BEST = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"


def write(tmp_path: Path, content: str | bytes, name: str = "table.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def real(name: str) -> Path:
    folder = os.environ.get("DARTSLIGHT_DATA")
    if not folder:
        pytest.skip("DARTSLIGHT_DATA is not set")
    return Path(folder) / name


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plain.csv", SMALL.encode()),
        ("small.csv.gz", gzip.compress(SMALL.encode())),
        ("compressed.csv", gzip.compress(SMALL.encode())),
        ("windows.csv", b"\xef\xbb\xbf" + SMALL.replace("\n", "\r\n").encode()),
    ],
)
def test_values_and_ranks(tmp_path: Path, name: str, content: bytes) -> None:
    table = Table.read(write(tmp_path, content, name))
    assert table.look_up(A) == {"accuracy": Entry(93.5, 1, 3), "params": Entry(1200000.0, 1, 3)}
    assert table.look_up(B) == {"accuracy": Entry(93.5, 1, 3), "params": Entry(7.0, 2, 3)}
    assert table.look_up(C) == {"accuracy": Entry(10.0, 3, 3), "params": Entry(-32.5, 3, 3)}


def test_render(tmp_path: Path) -> None:
    assert Table.read(write(tmp_path, SMALL)).render(C) == (
        f"{C}\naccuracy   10    rank 3 of 3 (1 = largest)\nparams    -32.5  rank 3 of 3 (1 = largest)\n"
        "Without a search\n"
        "  random: accuracy 65.67 ± 48.21, params 399,992 ± 692,828\n"
        "  largest: accuracy 93.50, params 1,200,000"
    )


def test_controls_are_those_of_the_whole_benchmark() -> None:
    """The figures are known from the literature: 93.76 for the cell of 3x3 convolutions, 94.37 for the best one."""
    controls = Table.read(real("nasbench201.csv.gz")).controls()
    accuracies = {name: of["cifar10_test"] for name, of in controls.items()}
    assert accuracies == {
        "random": "87.06 ± 12.94",
        "random convolutions": "93.20 ± 0.60",
        "all 3x3": "93.76",
        "largest": "94.37",
    }


def test_an_architecture_that_is_not_there_is_refused(tmp_path: Path) -> None:
    table = Table.read(write(tmp_path, SMALL))
    with pytest.raises(InputError, match=r"does not hold the architecture .*skip_connect~0\|\+.*3 others"):
        table.look_up(D)
    with pytest.raises(InputError, match="notation"):
        table.render("skip_connect")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        (SMALL.replace("arch,", "genotype,"), "no column 'arch' .*'arch_index, genotype, accuracy"),
        (SMALL.splitlines()[0], "no rows"),
        (SMALL.replace(B, A), "at line 2 and again at line 3"),
        (SMALL.replace(B, "|none~0|"), r"'\|none~0\|' at line 3"),
        (SMALL.replace(B, B.replace("none~2", "none~1")), "none~1.*at line 3"),
        (SMALL.replace(B, B + "\n"), "at line 3"),
        (SMALL.replace(B, B.replace("none", "dil_conv_3x3")), "dil_conv_3x3.*at line 3"),
        (SMALL.replace(f"{B},93.5", f"{B},nan"), "'nan' at line 3 in its column 'accuracy'"),
        (SMALL.replace(f"{B},93.5", f"{B},-inf"), "'-inf' at line 3 in its column 'accuracy'"),
        (SMALL.replace(f"{B},93.5", f"{B}, "), "' ' at line 3 in its column 'accuracy'"),
        (f"arch_index,arch,note\n0,{A},x\n", "no column of numbers"),
        (SMALL.replace("bad,", "bad,too many,"), "7 values at line 4.*header has 6"),
        (SMALL.replace("bad,", ""), "5 values at line 4"),
        (SMALL.replace("note", "params"), "column 'params' twice"),
        (SMALL.replace("bad", '"bad'), "not CSV at line 4"),
        (SMALL.encode() + b"\xff", "not UTF-8"),
        (gzip.compress(SMALL.encode())[:-9], "not a whole gzip file"),
    ],
)
def test_wrong_tables_are_refused(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(InputError, match=message) as error:
        Table.read(path)
    assert str(path) in str(error.value)
    assert str(error.value).endswith(".")


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.csv", tmp_path, write(tmp_path, SMALL, "not.csv.gz"), Path("\0")):
        with pytest.raises(InputError, match=r"cannot be read .*give a CSV file") as error:
            Table.read(path)
        assert repr(str(path)) in str(error.value)


def test_damaged_tables_are_read_or_refused(tmp_path: Path) -> None:
    rng = random.Random(0)
    whole = {"table.csv": SMALL.encode(), "table.csv.gz": gzip.compress(SMALL.encode(), mtime=0)}
    refused = 0
    for i in range(300):
        name, content = list(whole.items())[i % 2]
        damaged = bytearray(content)
        for _ in range(rng.randint(1, 4)):
            position = rng.randrange(len(damaged))
            kind = rng.randrange(3)
            if kind == 0:
                damaged[position] = rng.randrange(256)
            elif kind == 1:
                damaged[position:position] = rng.choice([b"\n", b'"', b",", b"\0", b"|", b"nan", b"\r"])
            else:
                del damaged[position : position + rng.randint(1, 20)]
        try:
            table = Table.read(write(tmp_path, bytes(damaged), name))
        except InputError:
            refused += 1
        else:
            assert all(table.look_up(arch) for arch in table.rows)
    assert 150 < refused < 300


def test_real_accuracies() -> None:
    path = real("nasbench201.csv.gz")
    table = Table.read(path)
    best = max(table.rows, key=lambda arch: table.columns["cifar10_test"][table.rows[arch]])
    top, skip = table.look_up(best), table.look_up(SKIP)
    assert len(table.rows) == top["cifar10_test"].of == 15625
    assert (round(top["cifar10_test"].value, 2), top["cifar10_test"].rank) == (94.37, 1)
    assert (round(table.look_up(BEST)["cifar100_test"].value, 2), table.look_up(BEST)["cifar100_test"].rank) == (
        73.51,
        1,
    )
    assert (round(skip["cifar10_test"].value, 2), round(skip["cifar100_test"].value, 2)) == (54.30, 15.61)
    assert sorted(table.columns) == ["cifar100_test", "cifar10_test", "macs", "params"]
    assert re.search(r"cifar10_test +\d+\.\d+ +rank +\d+,\d+ of 15,625 \(1 = largest\)", table.render(SKIP))


def test_real_latencies() -> None:
    table = Table.read(real("nasbench201_latency.csv.gz"))
    entries = table.look_up(SKIP)
    assert len(entries) > 1
    assert all(entry.rank > 1 for entry in entries.values())
