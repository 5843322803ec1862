"""What FreeFlow's choice is truly worth on NAS-Bench-201, beside controls: prints a table of accuracies.

    python benchmarks/freedarts_nb201.py --table nasbench201.csv.gz [--seeds 30]

A seed draws the weights of a supernet (16 channels, 15 cells) and the alphas. Nothing is trained and no picture is
read; the table is looked at afterwards. Takes about two minutes on one CPU core for 30 seeds.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from dartslight.benchmarks import Table
from dartslight.genotype import Genotype
from dartslight.nets import Supernet
from dartslight.selection import FreeDarts, FreeFlow
from dartslight.selection.free import checked, parameter_counts
from dartslight.selection.strongest import keep_strongest
from dartslight.spaces import NASBENCH201 as SPACE
from dartslight.spaces import Choices

OPEN = Choices.everything(SPACE)
Scores = Mapping[str, np.ndarray]


def supernet(seed: int) -> Supernet:
    """Returns a supernet with weights of a seed."""
    torch.manual_seed(seed)
    return Supernet(SPACE, 15, 16, 10)


def flow(seed: int, alpha_std: float = 1e-3, absolute: bool = True) -> Scores:
    """Returns the scores of drawn alphas."""
    alphas = FreeDarts(alpha_std=alpha_std, absolute=absolute).alphas(SPACE, seed)
    return checked(SPACE, OPEN, FreeFlow()(supernet(seed), alphas, OPEN), "freeflow")


def constant_flow(seed: int, alpha: float) -> Scores:
    """Returns the scores where all alphas are equal."""
    alphas = {"cell": torch.full((6, 5), alpha, dtype=torch.float64)}
    return checked(SPACE, OPEN, FreeFlow()(supernet(seed), alphas, OPEN), "freeflow")


def alone(seed: int) -> dict[str, np.ndarray]:
    """Returns the absolute alphas."""
    return {cell: alpha.numpy() for cell, alpha in FreeDarts().alphas(SPACE, seed).items()}


def drawn(seed: int, without_none: bool) -> Scores:
    """Returns random numbers, those of ``none`` below all others where it must not be drawn."""
    numbers = np.random.default_rng(seed).random((6, 5))
    numbers[:, 0] -= without_none
    return {"cell": numbers}


ROWS: dict[str, Callable[[int], Scores]] = {
    "random": lambda seed: drawn(seed, without_none=False),
    "random without none": lambda seed: drawn(seed, without_none=True),
    "abs(alpha) alone": alone,
    "most parameters (all 3x3)": lambda seed: parameter_counts(SPACE),
    "**FreeFlow**": flow,
    "FreeFlow, alphas keep their signs": lambda seed: flow(seed, absolute=False),
    "abs(dR/dalpha) alone": lambda seed: {"cell": flow(seed)["cell"] / alone(seed)["cell"]},
    "FreeFlow, alphas of sd 1e-4": lambda seed: flow(seed, 1e-4),
    "FreeFlow, alphas of sd 1e-2": lambda seed: flow(seed, 1e-2),
    "FreeFlow, alphas of sd 0.1": lambda seed: flow(seed, 0.1),
    "FreeFlow, all alphas 1e-3": lambda seed: constant_flow(seed, 1e-3),
    "FreeFlow, all alphas 0.01": lambda seed: constant_flow(seed, 0.01),
    "FreeFlow, all alphas 0.1": lambda seed: constant_flow(seed, 0.1),
    "FreeFlow, all alphas 0.2": lambda seed: constant_flow(seed, 0.2),
}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", required=True, help="CSV file of true accuracies, as for the command lookup")
    parser.add_argument("--seeds", type=int, default=30, help="number of seeds (default: 30)")
    given: Any = parser.parse_args()
    torch.set_num_threads(1)
    table = Table.read(given.table)
    titles = [title for title in table.columns if "test" in title or "acc" in title] or list(table.columns)
    flow(0)  # the first pass of a process is slower
    print(f"| selection, {given.seeds} seeds | " + " | ".join(titles) + " | seconds |")
    print("|---" * (len(titles) + 2) + "|")
    for name, scores in ROWS.items():
        start = time.perf_counter()
        choices = [keep_strongest(SPACE, OPEN, scores(seed), "score").choices for seed in range(given.seeds)]
        seconds = (time.perf_counter() - start) / given.seeds
        archs = [Genotype.from_choices(SPACE, own).to_nasbench201() for own in choices]
        cells = [spread([table.value(arch, title) for arch in archs]) for title in titles]
        print(f"| {name} | " + " | ".join(cells) + f" | {seconds:.2f} |", flush=True)


def spread(values: list[float]) -> str:
    """Returns mean and standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2f} ± {deviation:.2f}"


if __name__ == "__main__":
    main()
