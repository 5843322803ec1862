"""Which strategy, selection and space go together: prints docs/methods.md.

    python docs/methods.py > docs/methods.md

Nothing here is a table by hand: each combination is built, and where the program refuses it, its sentence is the entry.
"""

from collections.abc import Callable
from typing import Any

from dartslight.errors import InputError
from dartslight.modules import SearchModule
from dartslight.modules.timetable import Stage
from dartslight.selection import (
    CurvatureStop,
    FreeDarts,
    LeaveOneOut,
    Magnitude,
    Perturbation,
    Random,
    Rule,
    SearchPlan,
    Sensitivity,
    Sgas,
    Staged,
    schedule_of,
)
from dartslight.spaces import SPACES
from dartslight.strategies import (
    AdversarialSmoothing,
    Dirichlet,
    Factorised,
    FiniteDifference,
    Fixed,
    Gumbel,
    RandomSmoothing,
    Sampled,
    ScoreFunction,
    Sigmoid,
    Unrolled,
)

EPOCHS = 60
"""The length of the searches; a common multiple of all numbers of stages, and long enough for SGAS."""

STRATEGIES: dict[str, Callable[[], dict[str, Any]]] = {
    "DARTS": dict,
    "DARTS, second order": lambda: {"gradient": FiniteDifference()},
    "DARTS, second order, exact": lambda: {"gradient": Unrolled()},
    "blank": lambda: {"gradient": Fixed()},
    "SDARTS-RS": lambda: {"smoothing": RandomSmoothing()},
    "SDARTS-ADV": lambda: {"smoothing": AdversarialSmoothing(steps=2)},
    "PC-DARTS": lambda: {"partial_channels": 2, "edge_normalisation": True},
    "FairDARTS": lambda: {"relaxation": Sigmoid(), "alpha_init_std": 0.0, "alpha_momentum": 0.9},
    "DARTS-": lambda: {"auxiliary_skip": "linear"},
    "R-DARTS (DP)": lambda: {"drop_path": 0.2, "gradient": FiniteDifference()},
    "P-DARTS": lambda: {"stages": [Stage(3, skip_dropout=0.1), Stage(6, skip_dropout=0.4)]},
    "DrNAS": lambda: {"relaxation": Dirichlet()},
    "DrNAS, progressive": lambda: {
        "relaxation": Dirichlet(),
        "init_channels": 8,
        "stages": [Stage(3, partial_channels=4), Stage(3, partial_channels=2, start="widened")],
    },
    "GDAS": lambda: {"relaxation": Gumbel()},
    "UNAS": lambda: {"relaxation": Sampled(), "gradient": ScoreFunction()},
    "UNAS, factorised cells": lambda: {"relaxation": Factorised(), "gradient": ScoreFunction()},
}
"""What each strategy changes in a search, as small as it can be."""

SELECTIONS: dict[str, Callable[[], Rule]] = {
    "magnitude": Magnitude,
    "magnitude with a threshold": lambda: Magnitude(threshold=0.01),
    "random": Random,
    "perturbation": lambda: Perturbation(eval_batches=1),
    "perturbation, official": lambda: Perturbation("official", eval_batches=1),
    "PT-Mag": lambda: Perturbation("official", criterion="weight"),
    "leave-one-out": lambda: LeaveOneOut(eval_batches=1),
    "sensitivity": lambda: Sensitivity(eval_batches=1),
    "sensitivity, seen": lambda: Sensitivity("search"),
    "SGAS 1": lambda: Sgas(criterion=1),
    "SGAS 2": lambda: Sgas(criterion=2),
    "SGAS+PT": lambda: Sgas(perturbation=Perturbation(eval_batches=1)),
    "staged": lambda: Staged(keep=[1]),
    "FreeDARTS": FreeDarts,
    "curvature stop": lambda: CurvatureStop(every=1, window=1, lag=1, ratio=0.0, min_epoch=0),
}
"""The rules; the early stop ends a search as soon as it can."""


def search(strategy: str, space: str) -> SearchModule:
    """Returns a search of three cells, or of all layers, and four channels.

    Args:
        strategy: The name of a strategy.
        space: The name of a search space.
    """
    num_cells = len(SPACES[space].cells) if SPACES[space].macro == "mobile" else 3
    return SearchModule(**{"space": space, "num_cells": num_cells, "init_channels": 4, **STRATEGIES[strategy]()})


def plan_of(module: SearchModule) -> SearchPlan:
    """Returns what a rule is told of a search."""
    module.search_epochs = EPOCHS
    return module.search_plan(is_over=False)


def refusal(strategy: str, selection: str, space: str) -> str | None:
    """Returns the sentence with which a combination is refused, or None where it works."""
    try:
        schedule_of(SELECTIONS[selection](), plan_of(search(strategy, space)))
    except InputError as error:
        return str(error)
    return None


def table() -> str:
    """Returns the whole table as Markdown."""
    sentences: list[str] = []

    def entry(strategy: str, selection: str) -> str:
        found = {space: refusal(strategy, selection, space) for space in SPACES}
        if not any(found.values()):
            return "✓"
        for sentence in found.values():
            if sentence is not None and sentence not in sentences:
                sentences.append(sentence)
        marks = {space: "✓" if s is None else f"[{1 + sentences.index(s)}]" for space, s in found.items()}
        groups: dict[str, list[str]] = {}
        for space, mark in marks.items():
            groups.setdefault(mark, []).append(space)
        usual = max(groups, key=lambda mark: len(groups[mark]))
        others = [f"{', '.join(spaces)} {mark}" for mark, spaces in groups.items() if mark != usual]
        return "; ".join([usual, *others])

    rows = [f"| {s} | " + " | ".join(entry(s, rule) for rule in SELECTIONS) + " |" for s in STRATEGIES]
    return "\n".join(
        [
            "# Methods",
            "",
            "Every strategy with every selection, on " + ", ".join(SPACES) + ".",
            "A tick works on these spaces, but for those named behind it, and is walked by a test (for mobile by",
            "mobile_small); a number is the sentence, below, with which the program refuses it. Made by",
            "`python docs/methods.py`; the configuration of each published combination is in `configs/cifar10/`.",
            "",
            "| strategy | " + " | ".join(SELECTIONS) + " |",
            "|---" * (len(SELECTIONS) + 1) + "|",
            *rows,
            "",
            *(f"{i}. {sentence}" for i, sentence in enumerate(sentences, start=1)),
        ]
    )


if __name__ == "__main__":
    print(table())
