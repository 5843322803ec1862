"""Studies of many runs: none is taken twice, and any engine can spread them by their index.

A run writes its rows into OUT/rows/NAME.json when it is finished; OUT/table.csv holds the rows of all.
"""

import argparse
import contextlib
import csv
import io
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """A study on the command line.

    Args:
        doc: What it says of itself.
        runs: The name of each run.
        take: Takes a run, given its index, its folder and the options, and returns its rows.
        report: Returns the results so far as Markdown, given all rows and the options.
        needs: What its runs need, option by option.
        report_needs: Which of these its report needs as well.
        out: The folder of its runs unless another is given.
        order: In which order runs are taken.
    """

    doc: str
    runs: Sequence[str]
    take: Callable[[int, Path, argparse.Namespace], list[Row]]
    report: Callable[[list[Row], argparse.Namespace], str]
    needs: Mapping[str, str]
    report_needs: Sequence[str]
    out: str
    order: Sequence[int]

    def main(self) -> None:
        """Does what the command line says."""
        parser = argparse.ArgumentParser(description=self.doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        for option, what in self.needs.items():
            parser.add_argument(f"--{option}", help=what)
        parser.add_argument("--out", default=self.out, help=f"folder of all runs (default: {self.out})")
        parser.add_argument("--list", action="store_true", help="list the runs by their index")
        parser.add_argument("--index", type=int, help="take only this run")
        parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, one thread each (default: 1)")
        parser.add_argument("--report", action="store_true", help="print the results so far as Markdown")
        given = parser.parse_args()
        if given.list:
            print("\n".join(f"{i}: {name}" for i, name in enumerate(self.runs)))
            return
        for option in self.report_needs if given.report else self.needs:
            value, what = getattr(given, option), self.needs[option]
            if value is None or not Path(value).exists():
                parser.error(f"--{option} must be the path of a {what}, but it is {value}")
        if given.report:
            rows = collect(Path(given.out))
            if not rows:
                parser.error(f"no run of --out {given.out} is finished; leave --report out to take them")
            print(self.report(rows, given))
        elif given.index is None:
            with ThreadPool(given.jobs) as pool:
                codes = pool.map(lambda i: self._in_process(i, given), self.order, chunksize=1)
            raise SystemExit(any(codes))
        elif 0 <= given.index < len(self.runs):
            self._take(given.index, given)
        else:
            parser.error(f"--index is {given.index}, but there are the runs 0 to {len(self.runs) - 1}")

    def _take(self, index: int, given: argparse.Namespace) -> None:
        """Takes one run, unless it is finished, and writes its rows."""
        name = self.runs[index]
        path = Path(given.out) / "rows" / f"{name}.json"
        if path.exists():
            return
        rows = self.take(index, Path(given.out) / name, given)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(rows))
        part.replace(path)
        collect(Path(given.out))
        print(f"{index}: {name} is finished")

    def _in_process(self, index: int, given: argparse.Namespace) -> int:
        """Takes one run in a process of its own and returns its exit code."""
        if (Path(given.out) / "rows" / f"{self.runs[index]}.json").exists():
            return 0
        words = [f"--{option}={getattr(given, option)}" for option in self.needs]
        words += [f"--out={given.out}", f"--index={index}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run([sys.executable, sys.argv[0], *words], env=environment, check=False).returncode


def collect(out: Path) -> list[Row]:
    """Writes the table of all rows so far, and returns them."""
    found: list[Row] = [row for file in sorted((out / "rows").glob("*.json")) for row in json.loads(file.read_text())]
    if found:
        part = out / f"table.csv.{os.getpid()}"
        with part.open("w", newline="") as file:
            columns = dict.fromkeys(key for row in found for key, value in row.items() if not isinstance(value, list))
            writer = csv.DictWriter(file, columns, lineterminator="\n", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(found)
        part.replace(out / "table.csv")
    return found


def decide(command: str, config: dict[str, Any], folder: Path, *words: str) -> tuple[Path, float]:
    """Runs a command, or goes on with it, and returns the folder of the run and the seconds it took."""
    from dartslight.cli import main

    start, genotype = time.perf_counter(), folder / "version_0" / "genotype.json"
    done = genotype if "selection" in config else folder / "done"
    if not done.exists():
        if folder.exists():
            for file in sorted(folder.rglob("*"), reverse=True):
                file.unlink() if file.is_file() else file.rmdir()
        root = f"--trainer.default_root_dir={folder}"
        quiet = io.StringIO()
        with contextlib.redirect_stdout(quiet):
            code = main([command, f"--config={json.dumps(config)}", root, *words])
        if code != 0:
            raise SystemExit(f"{command} ended with code {code}: {quiet.getvalue()[-2000:]}")
        if done != genotype:
            done.touch()
    seconds = time.perf_counter() - start
    return genotype.parent, round(seconds, 1)


def spread(values: Sequence[float]) -> str:
    """Returns mean and standard deviation in words."""
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


def paired(differences: Sequence[float]) -> str:
    """Returns how large paired differences are, with an exact test, in words."""
    from dartslight.selection.statistics import sign_flip

    if not differences:
        return ""
    wins = sum(d > 0 for d in differences)
    mean, p = statistics.mean(differences), sign_flip(differences)
    return f"{mean:+.2f}, better in {wins} of {len(differences)}, p = {p:.3f}"
