"""The picture of docs/selection.md, and its numbers: what becomes of each rule when more supernets decide together.

    python docs/selection.py --table nasbench201.csv.gz [--out docs/study]

Made from the finished runs of `benchmarks/study.py`, of its second part and, for the whole search, of the seeds from
300 of its third: for each number of supernets the mean and the standard deviation of the true accuracy over up to 200
groups of them.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from study import FRESH_SEEDS, RULE_SEEDS, decisions_of, true_accuracies  # noqa: E402

from dartslight.benchmarks import Table  # noqa: E402
from dartslight.genotype import Genotype  # noqa: E402
from dartslight.selection.average import average  # noqa: E402
from dartslight.spaces import NASBENCH201  # noqa: E402

RULES = {
    "magnitude": "#d55e00",
    "perturbation, official": "#cc79a7",
    "perturbation, paired": "#56b4e9",
    "leave-one-out, loss": "#009e73",
    "sensitivity": "#0072b2",
    "sensitivity, seen in the search": "#777777",
    "sensitivity, seen in the whole search": "#000000",
}
WHOLE = "sensitivity, seen in the whole search"
GROUPS = 200


def main() -> None:
    """Draws the picture and prints its numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", required=True, help="NAS-Bench-201's accuracies as a CSV file (plain or .gz)")
    parser.add_argument("--out", default=str(ROOT / "docs" / "study"), help="folder of the study's runs")
    given = parser.parse_args()
    table = Table.read(given.table)
    scores: dict[str, list[list[list[object]]]] = {}
    for seed in (*RULE_SEEDS, *FRESH_SEEDS):
        path = Path(given.out) / "rows" / f"DARTS_seed_{seed}.json"
        for row in json.loads(path.read_text()) if path.exists() else []:
            if seed in RULE_SEEDS or row["selection"] == WHOLE:
                scores.setdefault(row["selection"], []).append(row["scores"])
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    whole, near = figure.subplots(1, 2)
    rng = np.random.default_rng(0)
    for rule, colour in RULES.items():
        members = [decisions_of(of_seed) for of_seed in scores[rule]]
        counts = range(1, len(members) + 1)
        means, deviations = [], []
        for count in counts:
            groups = list(itertools.combinations(range(len(members)), count))
            drawn = [groups[i] for i in rng.permutation(len(groups))[:GROUPS]]
            found = []
            for group in drawn:
                choices = average(NASBENCH201, [members[i] for i in group]).choices
                arch = Genotype.from_choices(NASBENCH201, choices).to_nasbench201()
                found.append(true_accuracies(table, arch)[0])
            means.append(np.mean(found))
            deviations.append(np.std(found))
            print(f"{rule}, {count}: {means[-1]:.2f} ± {deviations[-1]:.2f}")
        low, high = (np.array(means) + sign * np.array(deviations) for sign in (-1, 1))
        for axes in (whole, near):
            axes.fill_between(counts, low, high, color=colour, alpha=0.12, linewidth=0)
            axes.plot(counts, means, color=colour, marker="o", markersize=4, label=rule)
    for name, style in {"all 3x3": "--", "largest": ":"}.items():
        value = float(table.controls()[name]["cifar10_test"])
        for axes in (whole, near):
            axes.axhline(value, color="grey", linestyle=style, linewidth=1)
        near.annotate(name, (12.6, value), xytext=(0, 2), textcoords="offset points", color="grey", fontsize=8)
    whole.set(xlabel="supernets that decide together", ylabel="true accuracy on CIFAR-10, %", ylim=(82, 95.5))
    near.set(xlabel="the same, nearer", ylim=(92, 94.6), xlim=(0.5, 14.2))
    whole.legend(loc="lower right", frameon=False, fontsize=8)
    figure.savefig(ROOT / "docs" / "selection.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
