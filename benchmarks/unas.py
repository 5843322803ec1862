"""The best network under a latency, by UNAS: NAS-Bench-201 on real CIFAR-10, judged by tables of truth.

    python benchmarks/unas.py --data data/cifar10 --table nasbench201.csv.gz --latency nasbench201_latency.csv.gz
    python benchmarks/unas.py --list
    python benchmarks/unas.py --table … --latency … --report [--out runs/unas]

The pictures, the supernet and the length are those of `benchmarks/study.py`: ten epochs on 5,000 + 5,000 pictures of
16x16. The architecture parameters wait for half of them, since weights that have seen little make a skip connection the
best choice; their learning rate is thirty times UNAS'. The weights keep that study's optimizer. What is minimised is
the cross-entropy, not UNAS' generalisation gap, which in so weak a supernet says most of the spread between pictures,
and all pictures of a batch share an architecture, so that their normalisation sees no mixture (docs/unas.md). These
settings were fixed by the seed 200.

The first part asks for the best network under three latencies on two devices, near the quartiles of the table: what was
chosen, its true latency and accuracy, against the best in the table under that latency and against random architectures
under it. As much again as the target above it counts 0.1, about as much as the operations of all edges together change
the cross-entropy.

Beside it stands what needs no such search: a budget (`dartslight.selection.Budget`) over the sensitivities of a
supernet of DARTS with the settings of `benchmarks/study.py`; one search of each seed serves all devices and targets.

The second part compares the three estimators without a latency, and how much of their gradients is chance: the variance
over 16 draws for the same pictures, added up over all parameters, as a mean over the epochs that teach them.

The third part times mobile networks of nine layers on the processor at hand, with a target of three quarters of what
random ones take, with and without the latency in the loss.
"""

import csv
import random
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resumable import Study, decide, spread
from study import setting, true_accuracies

if TYPE_CHECKING:  # torch takes seconds to import, which --list need not wait for
    from dartslight.genotype import Genotype

SEEDS, MOBILE_SEEDS = (0, 1, 2), (0, 1)
TARGETS = {"raspi4": (15.0, 25.0, 35.0), "2080ti_1": (6.5, 7.5, 9.0)}
"""Milliseconds by the name of the device in the table."""

ESTIMATORS = ("GumbelSoftmax", "Reinforce", "Rebar")
TERMS = ("without the latency", "with the latency")
_STRATEGIES, _CRITERIA, _RULES = "dartslight.strategies", "dartslight.criteria", "dartslight.selection"

RUNS: list[tuple[str, float | str, int]] = [
    *((device, target, seed) for device, targets in TARGETS.items() for target in targets for seed in SEEDS),
    *(("estimator", estimator, seed) for estimator in ESTIMATORS for seed in SEEDS),
    *(("mobile", term, seed) for term in TERMS for seed in MOBILE_SEEDS),
    *(("budget", "sensitivity", seed) for seed in SEEDS),
]
"""A device, a target in milliseconds and a seed; or the words estimator, mobile or budget, which one, and a seed."""

SEARCH: dict[str, Any] = {
    "relaxation": {"class_path": f"{_STRATEGIES}.Sampled", "init_args": {"per_batch": True}},
    "alpha_learning_rate": 3e-2,
    "alpha_weight_decay": 1e-6,
    "alpha_momentum": 0.9,
    "alpha_init_std": 0.0,
    "alpha_warmup_epochs": 5,
}
"""What all runs change in the setting of the study."""


def name_of(kind: str, what: float | str, seed: int) -> str:
    """Returns the name of a run."""
    return re.sub("[^A-Za-z0-9.+-]+", "_", f"{kind} {what} seed {seed}")


def changed(config: dict[str, Any], kind: str, what: float | str, latency: str) -> dict[str, Any]:
    """Returns the setting of the study with what a run changes in it."""
    criteria: list[dict[str, Any]] = [{"class_path": f"{_CRITERIA}.CrossEntropy"}]
    estimator = "Rebar"
    if kind == "estimator":
        estimator = str(what)
    else:
        cost = {"table": latency, "column": kind, "target": what, "coefficient": 0.1 / float(what), "warmup_steps": 100}
        criteria.append({"class_path": f"{_CRITERIA}.TableCost", "init_args": cost})
    gradient = {
        "class_path": f"{_STRATEGIES}.ScoreFunction",
        "init_args": {
            "estimator": {"class_path": f"{_STRATEGIES}.{estimator}"},
            "criteria": criteria,
            "cost_samples": 16,
        },
    }
    config["model"]["init_args"] |= {**SEARCH, "gradient": gradient}
    config["selection"] = {"class_path": "dartslight.selection.Magnitude"}
    if kind == "estimator":
        config["trainer"]["callbacks"] = [{"class_path": "dartslight.callbacks.EstimateNoise"}]
    return config


def take(index: int, folder: Path, given: Any) -> list[dict[str, Any]]:
    """Takes one run and returns its row."""
    from dartslight.benchmarks import Table
    from dartslight.genotype import Genotype

    kind, what, seed = RUNS[index]
    if kind == "mobile":
        return [take_mobile(str(what), seed, folder, given)]
    if kind == "budget":
        return take_budgets(seed, folder, given)
    config = changed(setting(seed, folder, given.data), kind, what, given.latency)
    version, seconds = decide("fit", config, folder)
    arch = Genotype.load(version / "genotype.json").to_nasbench201()
    ten, hundred = true_accuracies(Table.read(given.table), arch)
    latencies = Table.read(given.latency)
    with (version / "metrics.csv").open(newline="") as file:
        metrics = list(csv.DictReader(file))
    row: dict[str, Any] = {"kind": kind, "what": what, "seed": seed, "arch": arch, "cifar10": ten, "cifar100": hundred}
    row |= {device: latencies.value(arch, device) for device in TARGETS}
    last = metrics[-1]
    row |= {
        "expected": _number(last, f"cost/{kind}"),
        "surrogate_error": _number(last, f"surrogate_error/{kind}"),
        "variance": _mean(metrics, "estimate/variance"),
        "squared_length": _mean(metrics, "estimate/squared_length"),
        "seconds": seconds,
    }
    return [row]


def take_budgets(seed: int, folder: Path, given: Any) -> list[dict[str, Any]]:
    """Searches once by DARTS and decides under every target of every device."""
    from dartslight.benchmarks import Table
    from dartslight.genotype import Genotype

    config = setting(seed, folder, given.data)
    config["model"]["init_args"]["sensitivity_epochs"] = None
    search, _ = decide("fit", config, folder / "search")
    accuracies, latencies, rows = Table.read(given.table), Table.read(given.latency), []
    for device, targets in TARGETS.items():
        for target in targets:
            rule = {"class_path": f"{_RULES}.Sensitivity", "init_args": {"source": "search"}}
            cost = {"table": given.latency, "column": device, "target": target}
            settings = {"rule": rule, "cost": {"class_path": f"{_CRITERIA}.TableCost", "init_args": cost}}
            selection = {"selection": {"class_path": f"{_RULES}.Budget", "init_args": settings}}
            supernet = f"--supernet={search / 'checkpoints' / 'last.ckpt'}"
            version, seconds = decide("select", selection, folder / f"{device}_{target}", supernet)
            arch = Genotype.load(version / "genotype.json").to_nasbench201()
            ten, hundred = true_accuracies(accuracies, arch)
            row = {"kind": "budget", "what": device, "target": target, "seed": seed, "arch": arch}
            row |= {"cifar10": ten, "cifar100": hundred, device: latencies.value(arch, device), "seconds": seconds}
            rows.append(row)
    return rows


MOBILE: dict[str, Any] = {"num_cells": 9, "init_channels": 4}
"""The mobile network in the search."""
TIMED: dict[str, Any] = {"num_cells": 9, "init_channels": 8, "size": 32, "batch_size": 8, "repeats": 5}
"""The one that will be used, and what of it is timed."""
MOBILE_EPOCHS, MOBILE_WARMUP = 7, 2
TIMED_NETWORKS = 100
"""How many networks each mean of the third part is taken over."""


def take_mobile(term: str, seed: int, folder: Path, given: Any) -> dict[str, Any]:
    """Takes one run in the mobile space, whose target is three quarters of what random networks take here."""
    from dartslight.criteria import Latency
    from dartslight.genotype import Genotype

    watch, rng = Latency(target=0.0, **TIMED), random.Random(seed)
    target = 0.75 * statistics.mean(watch.measure(_drawn(rng, {})) for _ in range(TIMED_NETWORKS))
    criteria: list[dict[str, Any]] = [{"class_path": f"{_CRITERIA}.CrossEntropy"}]
    if term == TERMS[1]:
        cost = {**TIMED, "target": target, "coefficient": 1 / target, "warmup_steps": 100}
        criteria.append({"class_path": f"{_CRITERIA}.Latency", "init_args": cost})
    gradient = {
        "class_path": f"{_STRATEGIES}.ScoreFunction",
        "init_args": {"criteria": criteria, "cost_samples": 2, "surrogate_samples": 200},
    }
    config = setting(seed, folder, given.data)
    config["trainer"]["max_epochs"] = MOBILE_EPOCHS
    config["model"]["init_args"] |= {**SEARCH, **MOBILE, "space": "mobile_small", "gradient": gradient}
    config["model"]["init_args"]["alpha_warmup_epochs"] = MOBILE_WARMUP
    config["selection"] = {"class_path": "dartslight.selection.Magnitude"}
    version, seconds = decide("fit", config, folder)
    chosen = Genotype.load(version / "genotype.json")
    with (version / "metrics.csv").open(newline="") as file:
        metrics = list(csv.DictReader(file))
    # Both kinds are timed in turns, so that whatever slows the machine slows both.
    learned = _weights(version / "alphas.csv")
    usual, drawn = zip(
        *((watch.measure(_drawn(rng, {})), watch.measure(_drawn(rng, learned))) for _ in range(TIMED_NETWORKS)),
        strict=True,
    )
    return {
        **{"kind": "mobile", "what": term, "seed": seed, "arch": " ".join(c.edges[0].ops[0] for c in chosen.cells)},
        **{"target": target, "usual": statistics.mean(usual), "drawn": statistics.mean(drawn)},
        "chosen": statistics.median(watch.measure(chosen) for _ in range(9)),
        "by_epoch": [_number(row, "cost/latency") for row in metrics],
        "surrogate_error": _number(metrics[-1], "surrogate_error/latency"),
        "accuracy": _number(metrics[-1], "train/accuracy"),
        "seconds": seconds,
    }


def _drawn(rng: random.Random, weights: Mapping[str, Sequence[float]]) -> "Genotype":
    """Returns a mobile network whose operations are drawn by their weights, or with equal ones."""
    from dartslight.genotype import Genotype
    from dartslight.spaces import MOBILE_SMALL, Choices

    choices = Choices.everything(MOBILE_SMALL)
    for cell in MOBILE_SMALL.cells:
        ops = range(len(cell.edges[0].ops))
        choices = choices.decide((cell.name, 0), rng.choices(ops, weights.get(cell.name))[0])
    return Genotype.from_choices(MOBILE_SMALL, choices)


def _weights(alphas: Path) -> dict[str, list[float]]:
    """Returns the last weights of the operations of each layer."""
    with alphas.open(newline="") as file:
        rows = list(csv.DictReader(file))
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["epoch"] == rows[-1]["epoch"]:
            found.setdefault(row["cell"], []).append(float(row["weight"]))
    return found


def _number(row: dict[str, str], column: str) -> float | None:
    return float(row[column]) if row.get(column) else None


def _mean(rows: Sequence[dict[str, str]], column: str) -> float | None:
    found = [value for value in (_number(row, column) for row in rows) if value is not None]
    return statistics.mean(found) if found else None


def report(rows: Sequence[dict[str, Any]], given: Any) -> str:
    """Returns the results so far as Markdown."""
    return "\n".join([*_under_targets(rows, given), "", *_estimators(rows), "", *_mobile(rows)])


def _under_targets(rows: Sequence[dict[str, Any]], given: Any) -> list[str]:
    """Returns the table of the first part."""
    from dartslight.benchmarks import Table

    accuracies, latencies = Table.read(given.table), Table.read(given.latency)
    lines = [
        "| device | target | search | seeds | latency drawn in the last epoch | latency chosen | under the target | "
        "CIFAR-10 | best under the target | random under the target |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for device, targets in TARGETS.items():
        for target in targets:
            under = [
                accuracies.value(arch, "cifar10_test")
                for arch, i in latencies.rows.items()
                if latencies.columns[device][i] <= target
            ]
            unas = [row for row in rows if (row["kind"], row["what"]) == (device, target)]
            budget = [
                row for row in rows if (row["kind"], row["what"], row.get("target")) == ("budget", device, target)
            ]
            for search, own in (("UNAS", unas), ("DARTS, budget", budget)):
                if not own:
                    continue
                cells = [
                    device,
                    f"{target:g} ms",
                    search,
                    str(len(own)),
                    spread([row["expected"] for row in own]) if search == "UNAS" else "",
                    spread([row[device] for row in own]),
                    f"{sum(row[device] <= target for row in own)} of {len(own)}",
                    spread([row["cifar10"] for row in own]),
                    f"{max(under):.2f}",
                    spread(under),
                ]
                lines.append("| " + " | ".join(cells) + " |")
    return lines


def _estimators(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the table of the second part."""
    lines = [
        "| estimator | seeds | CIFAR-10 | CIFAR-100 | variance of the gradient | squared length of its mean |",
        "|---|---|---|---|---|---|",
    ]
    for estimator in ESTIMATORS:
        own = [row for row in rows if (row["kind"], row["what"]) == ("estimator", estimator)]
        if own:
            scores = [spread([row[key] for row in own]) for key in ("cifar10", "cifar100")]
            sizes = [f"{statistics.mean(row[key] for row in own):.2e}" for key in ("variance", "squared_length")]
            lines.append("| " + " | ".join([estimator, str(len(own)), *scores, *sizes]) + " |")
    return lines


def _mobile(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the table of the third part."""
    lines = [
        "| search | seeds | target | drawn by epoch | after the search: random networks | drawn | drawn / target | "
        "chosen | accuracy of the supernet |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for term in TERMS:
        own = [row for row in rows if (row["kind"], row["what"]) == ("mobile", term)]
        if own:
            by_epoch = [
                [d for d in epoch if d is not None] for epoch in zip(*(r["by_epoch"] for r in own), strict=True)
            ]
            means = ", ".join(f"{statistics.mean(epoch):.1f}" for epoch in by_epoch if epoch)
            cells = [term, str(len(own)), spread([row["target"] for row in own]), means]
            cells += [spread([row[key] for row in own]) for key in ("usual", "drawn")]
            cells += [spread([row["drawn"] / row["target"] for row in own]), spread([row["chosen"] for row in own])]
            cells.append(spread([100 * row["accuracy"] for row in own]))
            lines.append("| " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    Study(
        doc=__doc__,
        runs=[name_of(*run) for run in RUNS],
        take=take,
        report=report,
        needs={
            "data": "folder with train/<class>/*.png of CIFAR-10",
            "table": "NAS-Bench-201's accuracies as a CSV file (plain or .gz)",
            "latency": "latencies of its architectures as a CSV file (plain or .gz)",
        },
        report_needs=["table", "latency"],
        out="runs/unas",
        # Seeds first, so that all targets and estimators grow together.
        order=sorted(range(len(RUNS)), key=lambda i: RUNS[i][2]),
    ).main()
