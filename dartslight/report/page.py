"""The report: one self-contained HTML page about one run or many."""

import base64
import csv
import io
import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from jinja2 import Environment, PackageLoader

from dartslight import __version__
from dartslight.benchmarks import Table
from dartslight.genotype import Genotype
from dartslight.nets import DiscreteNetwork
from dartslight.report.charts import COLOURS, Bar, Look, Points, bar_chart, dot_chart, line_chart
from dartslight.report.draw import drawing
from dartslight.report.marks import family_colour
from dartslight.report.runs import Run, Taken, find_runs
from dartslight.run_folder import check_output, write_output
from dartslight.selection.statistics import count_skips, sign_flip
from dartslight.shipping.cost import multiply_adds, parameters

_CURVES = {
    "Loss": ("train/loss", "val/loss", "test/loss"),
    "Accuracy": ("train/accuracy", "val/accuracy", "test/accuracy"),
    "Entropy of the mixing weights": ("architecture/entropy",),
    "Skip gap": ("architecture/skip_gap",),
    "Largest eigenvalue of the architecture's Hessian": ("curvature/largest_eigenvalue",),
}
_PREFIXES = {"Skips of the leading architecture": "architecture/skips_", "True accuracy, leading architecture": "true/"}
_UNITS = {
    "loss": "How much the loss grows without it",
    "accuracy": "How much accuracy is lost without it",
    "divergence": "How far predictions move without it",
    "weight": "Mixing weight",
}
_DASHES = ("", "5 3", "1.5 2.5")  # of operations of one family


def render(runs: Sequence[Run], table: Table | None = None) -> str:
    """Returns the page.

    Args:
        runs: The runs, at least one.
        table: What is truly known of architectures of NAS-Bench-201, or None.
    """
    environment = Environment(loader=PackageLoader("dartslight.report", "."), autoescape=True, trim_blocks=True)
    page = environment.get_template("page.html.j2")
    groups = _groups(runs)
    return page.render(
        version=__version__,
        comparison=_comparison(groups, table) if len(runs) > 1 else None,
        runs=[_run(run, _name_of(run, groups), table) for run in runs],
    )


def _groups(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Returns the runs by their method's name; where two methods share one, what they differ in is added to it."""
    by_key: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in runs:
        by_key.setdefault(run.key, []).append(run)
    groups = {}
    for key, members in by_key.items():
        own = dict(key)
        twins = [dict(k) for k, others in by_key.items() if k != key and others[0].method == members[0].method]
        differing = sorted(name for name in own if any(twin.get(name) != own[name] for twin in twins))
        added = [f"{name.rpartition('.')[2]} {own[name]}" for name in differing]
        groups[members[0].method + (f" [{', '.join(added)}]" if added else "")] = members
    return groups


def _name_of(run: Run, groups: Mapping[str, Sequence[Run]]) -> str:
    return next(name for name, members in groups.items() if run in members)


def _comparison(groups: Mapping[str, Sequence[Run]], table: Table | None) -> dict[str, Any]:
    """Returns one row for each method: mean and deviation of each quantity, and a paired test against the first."""
    quantities = _quantities([run for members in groups.values() for run in members], table)
    first = next(iter(groups.values()))
    judged = [name for name in quantities if _is_judged(name) and len(groups) > 1]
    header = ["method", "runs", *quantities, *(f"{name}: against the first" for name in judged)]
    rows, shown = [], []
    for name, members in groups.items():
        spreads = {q: _spread(_values(members, measure)) for q, measure in quantities.items()}
        against = {q: _against(members, first, quantities[q]) for q in judged}
        rows.append([name, str(len(members)), *spreads.values(), *against.values()])
        shown.append((name, len(members), [(spread, against.get(q, "")) for q, spread in spreads.items()]))
    markdown = "\n".join(
        "| " + " | ".join(cell.replace("|", "/") for cell in line) + " |"
        for line in (header, ["---"] * len(header), *rows)
    )
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return {
        "quantities": list(quantities),
        "rows": shown,
        "charts": [dot_chart(name, _dots(groups, quantities[name])) for name in quantities if _is_judged(name)],
        "markdown": markdown,
        "csv": text.getvalue(),
    }


def _values(members: Sequence[Run], measure: Callable[[Run], float | None]) -> list[float]:
    return [value for run in members if (value := measure(run)) is not None]


def _dots(groups: Mapping[str, Sequence[Run]], measure: Callable[[Run], float | None]) -> dict[str, list[float]]:
    values = {name: _values(members, measure) for name, members in groups.items()}
    return {name: own for name, own in values.items() if own}


def _is_judged(name: str) -> bool:
    return name.startswith("true") or "accuracy" in name


def _quantities(runs: Sequence[Run], table: Table | None) -> dict[str, Callable[[Run], float | None]]:
    """Returns what methods are compared in: how each number follows from a run; those that no run has are left out."""
    known: dict[str, Callable[[Run], float | None]] = {
        "validation accuracy": lambda run: run.last("val/accuracy"),
        "test accuracy": lambda run: run.last("test/accuracy"),
    }
    for column in () if table is None else table.columns:

        def look_up(run: Run, column: str = column) -> float | None:
            assert table is not None
            is_listed = run.genotype is not None and run.genotype.space == "nasbench201"
            return table.value(run.genotype.to_nasbench201(), column) if is_listed and run.genotype else None

        known[f"true {column}" if column not in ("params", "macs") else column] = look_up
    known["skips"] = lambda run: None if run.genotype is None else float(sum(count_skips(run.genotype).values()))
    known["decisions within the noise"] = lambda run: None if (count := _unclear(run)) is None else float(count)
    known["seconds"] = lambda run: _seconds(run) or None
    return {name: measure for name, measure in known.items() if any(measure(run) is not None for run in runs)}


def _unclear(run: Run) -> int | None:
    """Returns how many decisions are within the noise, or None where no noise was measured."""
    known = [taken.is_clear for taken in run.decisions if taken.is_clear is not None]
    return known.count(False) if known else None


def _against(members: Sequence[Run], first: Sequence[Run], measure: Callable[[Run], float | None]) -> str:
    """Compares two methods on the seeds that both have."""
    if members is first or not _values(members, measure):
        return ""
    reference: dict[int | None, float | None] = {run.seed: measure(run) for run in first if run.seed is not None}
    differences = []
    for run in members:
        a, b = measure(run), reference.get(run.seed)
        if run.seed is not None and a is not None and b is not None:
            differences.append(a - b)
    if not differences:
        return "no common seed"
    wins = sum(d > 0 for d in differences)
    mean, p = statistics.fmean(differences), sign_flip(differences)
    return f"{mean:+.4g}, more in {wins} of {len(differences)}, p = {p:.3f}"


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    deviation = f" ± {_rounded(statistics.stdev(values), 2)}" if len(values) > 1 else ""
    return _rounded(statistics.fmean(values), 4) + deviation


def _rounded(value: float, digits: int) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"  # large ones are counts


def _run(run: Run, method: str, table: Table | None) -> dict[str, Any]:
    """Returns what the page tells of one run."""
    curves = {title: {n: run.metrics[n] for n in names if n in run.metrics} for title, names in _CURVES.items()}
    for title, prefix in _PREFIXES.items():
        curves[title] = {n.removeprefix(prefix): run.metrics[n] for n in run.metrics if n.startswith(prefix)}
    marks = sorted({taken.epochs for taken in run.decisions})
    charts = [line_chart(title, own, marks=marks) for title, own in curves.items() if own]
    return {
        "name": run.name,
        "path": str(run.path),
        "method": method,
        "seed": run.seed,
        "drawing": None if run.genotype is None else _picture(run.genotype, run.network_size),
        "genotype": None if run.genotype is None else run.genotype.to_json(),
        "truth": _truth(run, table),
        "charts": charts,
        "alphas": _alpha_charts(run),
        "decisions": [_decision(i, taken) for i, taken in enumerate(run.decisions)],
        "disagreements": sum(_disagrees(taken) for taken in run.decisions),
        "is_weighed": any(taken.by_magnitude for taken in run.decisions),
        "unclear": _unclear(run),
        "costs": _costs(run),
        "config": yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True),
        "versions": run.versions,
    }


def _picture(genotype: Genotype, network: tuple[int, int] | None) -> str:
    whole = drawing("svg", genotype, networks=[] if network is None else [network])
    return "data:image/svg+xml;base64," + base64.b64encode(whole).decode()


def _truth(run: Run, table: Table | None) -> str | None:
    if table is None or run.genotype is None or run.genotype.space != "nasbench201":
        return None
    return table.render(run.genotype.to_nasbench201())


def _alpha_charts(run: Run) -> list[str]:
    """Returns a chart of the mixing weights of each edge, with a mark where it was decided."""
    edges: dict[tuple[str, str], dict[str, Points]] = {}
    for (cell, edge, op), values in run.alphas.items():
        edges.setdefault((cell, edge), {})[op] = [(epoch + 1, weight) for epoch, _, weight in values]
    looks = _looks([op for _, _, op in run.alphas])
    marks: dict[tuple[str, str], set[float]] = {}
    for taken in run.decisions:
        for c in taken.decision.candidates:
            marks.setdefault((taken.decision.cell, f"{c.node}<-{c.source}"), set()).add(taken.epochs)
    return [
        line_chart(f"{cell} {edge}: mixing weights", ops, looks, sorted(marks.get((cell, edge), ())))
        for (cell, edge), ops in edges.items()
    ]


def _looks(ops: Sequence[str]) -> dict[str, Look]:
    """Returns the curve of each operation: in the colour of its family as in drawings, dashed from the second on."""
    families: dict[str, list[str]] = {}
    for op in dict.fromkeys(ops):
        families.setdefault(family_colour(op), []).append(op)
    if any(len(members) > len(_DASHES) for members in families.values()):  # as in mobile networks
        return dict(zip(dict.fromkeys(ops), map(Look, itertools.cycle(COLOURS)), strict=False))
    return {op: Look(colour, _DASHES[i]) for colour, members in families.items() for i, op in enumerate(members)}


def _disagrees(taken: Taken) -> bool:
    return taken.by_magnitude is not None and not taken.by_magnitude.chosen


def _decision(number: int, taken: Taken) -> dict[str, Any]:
    decision = taken.decision
    candidates = decision.candidates
    sources = len({c.source for c in candidates}) > 1
    labels = {c: f"{c.node}<-{c.source} {c.op}" if sources else c.op for c in candidates}
    first = next((c for c in candidates if c.chosen), candidates[0])
    place = f"node {first.node}" if decision.kind in ("inputs", "edge") else f"{first.node}<-{first.source}"
    noise = None if decision.noise is None else 2 * decision.noise
    marked = min(
        (c for c in candidates if c.chosen and taken.missed(c) is not None),
        key=lambda c: taken.missed(c) or 0.0,
        default=None,
    )
    bars = [
        Bar(
            labels[c],
            taken.missed(c),
            "" if (value := taken.missed(c)) is None else f"{value:.4g}",
            "kept" if c.chosen else "other",
            noise if c is marked else None,
        )
        for c in candidates
    ]
    by_magnitude = taken.by_magnitude
    weights = [
        Bar(
            labels[c],
            weight,
            f"{weight:.3g}",
            "kept" if c.chosen else "differs" if c is by_magnitude else "other",
        )
        for c, weight in taken.weights.items()
    ]
    margin = ""
    if decision.margin is not None:
        # Under a budget a weaker candidate may be kept.
        margin = f"{'leads by' if decision.margin >= 0 else 'gives up'} {abs(decision.margin):.4g}" + (
            f"\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{decision.noise:.2g}" if decision.noise else ""
        )
    return {
        "number": number,
        "epochs": taken.epochs,
        "place": f"{decision.cell} {place}",
        "kept": ", ".join(labels[c] for c in candidates if c.chosen) or "nothing",
        "margin": margin,
        "is_unclear": taken.is_clear is False,
        "magnitude": labels[by_magnitude] if by_magnitude is not None and _disagrees(taken) else None,
        "scores": bar_chart(_UNITS.get(decision.criterion, decision.criterion.capitalize()), bars),
        "weights": bar_chart("Mixing weight before it was decided", weights) if weights else "",
    }


def _seconds(run: Run) -> float:
    points = {taken.epochs: taken.seconds for taken in run.decisions}
    return sum(run.phases.values()) + sum(points.values())


def _costs(run: Run) -> list[tuple[str, str]]:
    """Returns names and values: time per phase, memory, and the network's size."""
    rows = [(f"time: {phase}", _duration(seconds)) for phase, seconds in run.phases.items()]
    if run.decisions:
        points = {taken.epochs: taken.seconds for taken in run.decisions}
        rows.append(("time: decisions", _duration(sum(points.values()))))
    if run.memory is not None:
        rows.append(("largest memory of the process", f"{run.memory:,.0f} MiB"))
    if run.genotype is not None:
        cells, channels = run.network_size or run.genotype.published_size
        with torch.random.fork_rng([]):
            network = DiscreteNetwork(run.genotype, cells, channels, 10)
        what = f"network of {cells} cells, {channels} channels, 10 classes"
        rows.append((f"parameters, {what}", f"{parameters(network):,}"))
        rows.append(("multiply-adds for a picture of 32x32", f"{multiply_adds(network, 32, 32):,}"))
    return rows


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.1f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def write_report(paths: Sequence[str], output: Path, table: str | None = None) -> int:
    """Writes a report and returns the number of runs in it.

    Args:
        paths: Folders of runs, or folders that hold some.
        output: Path of the page; it is written whole or not at all.
        table: Path of a table with true accuracies of NAS-Bench-201, or None.

    Raises:
        InputError: If what was given is wrong, or the page cannot be written.
    """
    check_output(output)
    runs = find_runs(paths)
    write_output(output, render(runs, None if table is None else Table.read(table)).encode())
    return len(runs)
