"""Every strategy and selection on the same supernets, judged by true accuracies: NAS-Bench-201 on real CIFAR-10.

    python benchmarks/study.py --data data/cifar10 --table nasbench201.csv.gz [--out runs/study] [--jobs 2]
    python benchmarks/study.py --list
    python benchmarks/study.py --data … --table … --index $SLURM_ARRAY_TASK_ID
    python benchmarks/study.py --table … --report > docs/results.md

One run is one seed of one strategy: a search of ten epochs on 5,000 + 5,000 pictures of 16x16 (a supernet of three
cells and eight channels), then each selection on that supernet. The seed changes the pictures, their order and the
weights together. A finished run is never repeated, so the same command goes on where it was stopped. Each run writes
its rows into OUT/rows/, and OUT/table.csv holds those of all.

The first part compares strategies, each with four seeds. What a strategy is takes the settings of its paper, with the
learning rate of the architecture parameters ten times as large, since the search is so much shorter; the weights'
learning rate, the batch and the first order are the same for all. So R-DARTS has neither second order nor cutout here,
and FairDARTS no threshold, which a space that keeps all edges does not know. P-DARTS has two stages, of three and six
cells.

The second part compares selections: twelve seeds of DARTS, numbered from 100, each decided by every rule, and by the
scores of three supernets averaged (disjoint triples of seeds in order). What is seen in the search is that of its last
three epochs.

The third part asks what makes sensitivity better: what the architecture steps of the whole search have seen, a longer
search, a supernet of six cells or of sixteen channels. It was looked for on the seeds from 200, and what seemed to help
was asked again on those from 300 (the supernet of the other parts) and from 400 (sixteen channels).
"""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resumable import Study, decide, paired, spread

if TYPE_CHECKING:  # torch takes seconds to import, which --list need not wait for
    from dartslight.benchmarks import Table
    from dartslight.selection import Decision

SEEDS = (0, 1, 2, 3)
RULE_SEEDS = tuple(range(100, 112))
_STRATEGIES, _RULES = "dartslight.strategies", "dartslight.selection"

SETTING: dict[str, Any] = {
    "trainer": {"max_epochs": 10, "limit_val_batches": 0, "enable_progress_bar": False},
    "model": {
        "class_path": "dartslight.modules.SearchModule",
        "init_args": {
            "space": "nasbench201",
            "num_cells": 3,
            "init_channels": 8,
            "learning_rate": 0.05,
            "alpha_learning_rate": 3e-3,
            "track_statistics": False,
        },
    },
    "data": {
        "class_path": "dartslight.data.ImageFolder",
        "init_args": {"size": 16, "padding": 2, "max_pictures": 10000, "batch_size": 64},
    },
}
"""What all runs share."""


def _of(package: str, name: str, **init_args: Any) -> dict[str, Any]:
    return {"class_path": f"{package}.{name}", "init_args": init_args}


STRATEGIES: dict[str, dict[str, Any]] = {
    "DARTS": {},
    "blank": {"gradient": _of(_STRATEGIES, "Fixed")},
    "DARTS, second order": {"gradient": _of(_STRATEGIES, "FiniteDifference")},
    "SDARTS-RS": {"smoothing": _of(_STRATEGIES, "RandomSmoothing")},
    "SDARTS-ADV": {"smoothing": _of(_STRATEGIES, "AdversarialSmoothing")},
    "PC-DARTS": {
        "partial_channels": 4,
        "edge_normalisation": True,
        "alpha_learning_rate": 6e-3,
        "alpha_warmup_epochs": 3,
    },
    "FairDARTS": {
        "relaxation": _of(_STRATEGIES, "Sigmoid"),
        "alpha_learning_rate": 3e-2,
        "alpha_momentum": 0.9,
        "alpha_init_std": 0.0,
    },
    "DARTS-": {"auxiliary_skip": "linear"},
    "R-DARTS (DP)": {"drop_path": 0.2},
    "R-DARTS (L2)": {"weight_decay": 27e-4},
    "DrNAS": {"relaxation": _of(_STRATEGIES, "Dirichlet")},
    "GDAS": {"relaxation": _of(_STRATEGIES, "Gumbel"), "nesterov": True, "weight_decay": 5e-4},
    "P-DARTS": {
        "stages": [{"num_cells": 3, "skip_dropout": 0.1}, {"num_cells": 6, "skip_dropout": 0.4}],
        "min_learning_rate": 0.0,
        "alpha_learning_rate": 6e-3,
        "alpha_clip_norm": 5.0,
        "alpha_warmup_epochs": 2,
    },
    "DrNAS, progressive": {
        "relaxation": _of(_STRATEGIES, "Dirichlet"),
        "stages": [
            {"num_cells": 3, "partial_channels": 4},
            {"num_cells": 3, "partial_channels": 2, "start": "widened"},
        ],
        "alpha_warmup_epochs": 1,
    },
}
"""What each strategy changes in the search."""

_SHORT = {"interval": 1, "eval_batches": 16}

SELECTIONS: dict[str, dict[str, Any]] = {
    "magnitude": _of(_RULES, "Magnitude"),
    "PT-Mag": _of(_RULES, "Perturbation", preset="official", criterion="weight", interval=1),
    "perturbation, official": _of(_RULES, "Perturbation", preset="official", **_SHORT),
    "perturbation, paired": _of(_RULES, "Perturbation", preset="paired", **_SHORT),
}
"""What decides a finished supernet."""

ONE_SHOT: dict[str, dict[str, Any]] = {
    **{f"leave-one-out, {c}": _of(_RULES, "LeaveOneOut", criterion=c) for c in ("loss", "accuracy", "divergence")},
    "sensitivity": _of(_RULES, "Sensitivity", eval_batches=64),
    "sensitivity, seen in the search": _of(_RULES, "Sensitivity", source="search"),
}
"""What decides it as well in the second part."""

FRESH_SEEDS = range(300, 312)
VARIANTS: dict[str, tuple[Sequence[int], dict[str, Any]]] = {
    "DARTS": ((*range(200, 206), *FRESH_SEEDS), {}),
    "DARTS, 20 epochs": (range(200, 206), {"trainer": {"max_epochs": 20}}),
    "DARTS, six cells": (range(200, 206), {"model": {"num_cells": 6}}),
    "DARTS, sixteen channels": ((*range(200, 204), *range(400, 406)), {"model": {"init_channels": 16}}),
}
"""The searches of the third part, their seeds and what they change; all keep the sensitivities of the whole search."""

WHOLE: dict[str, dict[str, Any]] = {
    "magnitude": SELECTIONS["magnitude"],
    "sensitivity": ONE_SHOT["sensitivity"],
    "sensitivity, seen in the whole search": ONE_SHOT["sensitivity, seen in the search"],
}
"""What decides it in the third part."""

ON_THE_WAY: dict[str, dict[str, Any]] = {
    "SGAS": _of(_RULES, "Sgas", warmup_epochs=3, interval=1),
    "SGAS+PT": _of(
        _RULES,
        "Sgas",
        warmup_epochs=3,
        interval=1,
        perturbation=_of(_RULES, "Perturbation", preset="official", **_SHORT),
    ),
    "DARTS-ES": _of(_RULES, "CurvatureStop", every=1, window=3, lag=2, min_epoch=2),
    "P-DARTS": _of(_RULES, "Staged", keep=[3], max_skips=None),
    "DrNAS, progressive": _of(_RULES, "Staged", keep=[3], max_skips=None),
}
"""What decides during the search, each in a search of its own."""

RUNS = [
    *((name, seed) for name in dict.fromkeys((*STRATEGIES, *ON_THE_WAY)) for seed in SEEDS),
    *(("DARTS", seed) for seed in RULE_SEEDS),
    *((variant, seed) for variant, (seeds, _) in VARIANTS.items() for seed in seeds),
]


# --------------------------------------------------------------------------------------------------------------- runs


def name_of(strategy: str, seed: int) -> str:
    """Returns the name of a run, which stays the same when others are added."""
    return re.sub("[^A-Za-z0-9+-]+", "_", f"{strategy} seed {seed}")


def run(index: int, folder: Path, given: Any) -> list[dict[str, Any]]:
    """Takes one run and returns a row for each selection."""
    from dartslight.benchmarks import Table
    from dartslight.genotype import Genotype

    (strategy, seed), table = RUNS[index], Table.read(given.table)
    found = []
    for selection, version, seconds in decided(strategy, seed, folder, given.data):
        arch = Genotype.load(version / "genotype.json").to_nasbench201()
        ten, hundred = true_accuracies(table, arch)
        row = {"strategy": strategy, "selection": selection, "seed": seed, "arch": arch}
        row |= {"cifar10": ten, "cifar100": hundred, "seconds": seconds}
        found.append(row | ({"scores": scores_of(version)} if seed not in SEEDS else {}))
    return found


def true_accuracies(table: "Table", arch: str) -> tuple[float, float]:
    """Returns what a table says of an architecture: CIFAR-10 and CIFAR-100."""
    entries = table.look_up(arch)
    return entries["cifar10_test"].value, entries["cifar100_test"].value


def scores_of(version: Path) -> list[list[Any]]:
    """Returns criterion, source, node, operation and both scores of every candidate."""
    from dartslight.selection.record import read_decisions

    return [
        [decision.criterion, c.source, c.node, c.op, c.score_with, c.score_without]
        for decision in read_decisions(version / "decisions.csv")
        for c in decision.candidates
    ]


def setting(seed: int, folder: Path, data: str) -> dict[str, Any]:
    """Returns a configuration of what all runs share, for a run in a folder."""
    config: dict[str, Any] = json.loads(json.dumps(SETTING))
    config["seed_everything"] = seed
    config["data"]["init_args"] |= {"root": data, "cache_dir": str(folder.parent / "cache")}
    return config


def decided(strategy: str, seed: int, folder: Path, data: str) -> list[tuple[str, Path, float]]:
    """Searches once and returns selection, folder and seconds of each rule."""
    config = setting(seed, folder, data)
    config["model"]["init_args"] |= STRATEGIES.get(strategy, {})
    seeds, changes = VARIANTS.get(strategy, ((), {}))
    if seed in seeds:
        config["trainer"] |= changes.get("trainer", {})
        config["model"]["init_args"] |= {**changes.get("model", {}), "sensitivity_epochs": None}
    if strategy in ON_THE_WAY:
        return [(strategy, *decide("fit", {**config, "selection": ON_THE_WAY[strategy]}, folder / "fit"))]
    last = folder / "search" / "version_0" / "checkpoints" / "last.ckpt"
    decide("fit", config, folder / "search")
    learns = strategy != "blank"
    rules = {name: rule for name, rule in SELECTIONS.items() if learns or name.startswith("perturbation")}
    rules = WHOLE if seed in seeds else rules | (ONE_SHOT if seed in RULE_SEEDS else {})
    return [
        (name, *decide("select", {"selection": rule}, folder / str(i), f"--supernet={last}"))
        for i, (name, rule) in enumerate(rules.items())
    ]


# ------------------------------------------------------------------------------------------------------------- report


def report(rows: Sequence[dict[str, Any]], given: Any) -> str:
    """Returns the results as Markdown."""
    from dartslight.benchmarks import Table

    table = Table.read(given.table)
    names = list(dict.fromkeys(name for name, _ in RUNS))
    rows = sorted(rows, key=lambda row: (names.index(row["strategy"]), row["seed"]))
    first, second = ([row for row in rows if row["seed"] in seeds] for seeds in (SEEDS, RULE_SEEDS))
    texts = [
        compared(first),
        averaged(second, table),
        varied([row for row in rows if row["seed"] not in (*SEEDS, *RULE_SEEDS)], table),
        "Without a search (CIFAR-10 / CIFAR-100): " + controls(table),
    ]
    return "\n\n".join(text for text in texts if text)


def averaged(rows: Sequence[dict[str, Any]], table: "Table") -> str:
    """Returns every rule on single supernets, and on the averaged scores of three, as Markdown."""
    if not rows:
        return ""
    lines = [
        "| selection | supernets | CIFAR-10 | CIFAR-100 | against magnitude | triples | CIFAR-10 | CIFAR-100 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    by_rule: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        by_rule.setdefault(row["selection"], {})[row["seed"]] = row
    for selection, own in by_rule.items():
        triples = [t for t in zip(*[iter(RULE_SEEDS)] * 3, strict=True) if own.keys() >= set(t)]
        found = [together([own[seed] for seed in triple], table) for triple in triples]
        single, both = both_spreads(list(map(known, own.values()))), both_spreads(found)
        against = "" if selection == "magnitude" else paired_words(own, by_rule.get("magnitude", {}))
        cells = [selection, str(len(own)), *single, against, str(len(triples)), *both]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def varied(rows: Sequence[dict[str, Any]], table: "Table") -> str:
    """Returns every search of the third part, decided by single supernets and by the averaged scores of any three."""
    if not rows:
        return ""
    lines = [
        "| search | seeds | selection | one supernet | CIFAR-100 | any three | CIFAR-100 | all |",
        "|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["strategy"], row["seed"] // 100 * 100, row["selection"]), []).append(row)
    for (search, first, selection), own in groups.items():
        triples = [together(triple, table) for triple in itertools.combinations(own, 3)]
        single, any_three = both_spreads(list(map(known, own))), both_spreads(triples)
        seeds = f"{first} to {first + len(own) - 1}"
        cells = [search, seeds, selection, *single, *any_three, f"{together(own, table)[0]:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def known(row: Mapping[str, Any]) -> tuple[float, float]:
    """Returns the true accuracies of a row: CIFAR-10 and CIFAR-100."""
    return row["cifar10"], row["cifar100"]


def both_spreads(found: Sequence[tuple[float, float]]) -> list[str]:
    """Returns mean and standard deviation of some true accuracies, for each data set, or nothing."""
    return [spread(values) for values in zip(*found, strict=True)] if found else ["", ""]


def together(rows: Sequence[dict[str, Any]], table: "Table") -> tuple[float, float]:
    """Returns the true accuracies of what the averaged scores of some supernets decide."""
    from dartslight.genotype import Genotype
    from dartslight.selection.average import average
    from dartslight.spaces import NASBENCH201

    outcome = average(NASBENCH201, [decisions_of(row["scores"]) for row in rows])
    return true_accuracies(table, Genotype.from_choices(NASBENCH201, outcome.choices).to_nasbench201())


def decisions_of(scores: Sequence[Sequence[Any]]) -> "list[Decision]":
    """Returns decisions with these scores, see `scores_of`."""
    from dartslight.selection import Candidate, Decision

    found = []
    for (criterion, source, node), group in itertools.groupby(scores, key=lambda row: tuple(row[:3])):
        candidates = tuple(Candidate(source, node, op, a, b, chosen=False) for *_, op, a, b in group)
        found.append(Decision("cell", "operation", criterion, candidates))
    return found


def compared(rows: Sequence[dict[str, Any]]) -> str:
    """Returns every strategy with every selection as Markdown."""
    lines = [
        "| strategy | selection | seeds | CIFAR-10 | CIFAR-100 | against magnitude (CIFAR-10) |",
        "|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["strategy"], row["selection"]), []).append(row)
    for (strategy, selection), group in groups.items():
        own = {r["seed"]: r for r in group}
        base = {r["seed"]: r for r in rows if (r["strategy"], r["selection"]) == (strategy, "magnitude")}
        against = "" if selection == "magnitude" else paired_words(own, base)
        cells = [strategy, selection, str(len(own)), *both_spreads(list(map(known, own.values()))), against]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def controls(table: "Table") -> str:
    """Returns what needs no search."""
    titles = ("cifar10_test", "cifar100_test")
    return "; ".join(f"{name} {' / '.join(of[t] for t in titles)}" for name, of in table.controls().items()) + "."


def paired_words(own: dict[int, dict[str, Any]], base: dict[int, dict[str, Any]]) -> str:
    """Returns how much better one selection is than another on the same supernets, in words."""
    both = sorted(own.keys() & base.keys())
    return paired([own[seed]["cifar10"] - base[seed]["cifar10"] for seed in both])


if __name__ == "__main__":
    Study(
        doc=__doc__,
        runs=[name_of(*run) for run in RUNS],
        take=run,
        report=report,
        needs={
            "data": "folder with train/<class>/*.png of CIFAR-10",
            "table": "NAS-Bench-201's accuracies as a CSV file (plain or .gz)",
        },
        report_needs=["table"],
        out="runs/study",
        # Seeds first, so that all strategies grow together.
        order=sorted(range(len(RUNS)), key=lambda i: RUNS[i][1]),
    ).main()
