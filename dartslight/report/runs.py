"""What finished and unfinished runs have left in their folders, read without trust, for `dartslight.report.page`."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from dartslight.errors import InputError
from dartslight.genotype import Genotype
from dartslight.run_folder import ALPHAS, CONFIG, DECISIONS, GENOTYPE, METRICS, TIMES
from dartslight.selection.evidence import sign_of
from dartslight.selection.record import read_decisions
from dartslight.selection.rule import Candidate, Decision

_OWN = ("seed_everything", "ckpt_path", "supernet", "config", "verbose", "quiet", "checkpoint_every_n_batches")
"""Settings in which runs of one method may differ."""
_OWN_OF_TRAINER = ("default_root_dir", "logger", "callbacks", "enable_progress_bar", "devices", "accelerator")
_CLEAR = 2.0  # standard errors

Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class Run:
    """One run, as its folder tells.

    Args:
        path: The folder.
        config: Its configuration; that of an ensemble is the one of its first member.
        members: Runs whose scores it averages, or nothing.
        versions: What its configuration says of the programs, or "".
        metrics: Each number of ``metrics.csv`` over the epochs.
        alphas: Alpha and mixing weight of each operation over the epochs, by cell type, edge and operation.
        phases: Seconds of each phase of ``times.csv``.
        memory: The most memory it has taken, in MiB, or None.
        decisions: The decisions with the number of finished epochs and the seconds of their point.
        genotype: The architecture, or None where it is not decided yet.
    """

    path: Path
    config: Mapping[str, Any]
    members: int
    versions: str
    metrics: Mapping[str, Curve]
    alphas: Mapping[tuple[str, str, str], Sequence[tuple[int, float, float]]]
    phases: Mapping[str, float]
    memory: float | None
    decisions: Sequence["Taken"]
    genotype: Genotype | None

    @property
    def name(self) -> str:
        """The folder's name, with the one above it where runs are numbered."""
        parts = self.path.resolve().parts
        return "/".join(parts[-2:] if parts[-1].startswith("version_") else parts[-1:])

    @property
    def seed(self) -> int | None:
        """The run's seed, or None where there are several or none is known."""
        seed = self.config.get("seed_everything")
        return seed if isinstance(seed, int) and not self.members else None

    @property
    def settings(self) -> Mapping[str, Any]:
        """The model's settings."""
        return _dict(_dict(self.config.get("model")).get("init_args"))

    @property
    def is_search(self) -> bool:
        """Whether it searches, rather than retrains."""
        return "RetrainModule" not in str(_dict(self.config.get("model")).get("class_path"))

    @property
    def network_size(self) -> tuple[int, int] | None:
        """Cells and channels of the network that it retrains, or None for a search, which leaves them open."""
        if self.is_search or self.genotype is None:
            return None
        cells, channels = self.genotype.published_size
        return int(self.settings.get("num_cells") or cells), int(self.settings.get("init_channels") or channels)

    @cached_property
    def key(self) -> tuple[tuple[str, str], ...]:
        """All settings in which runs of one method agree, as names and values in order."""
        config = {k: v for k, v in self.config.items() if k not in _OWN}
        config["trainer"] = {k: v for k, v in _dict(config.get("trainer")).items() if k not in _OWN_OF_TRAINER}
        leaves = dict(_leaves("", config))
        if not self.is_search:
            leaves.pop("model.init_args.genotype", None)
        return (("members", str(self.members)), *sorted(leaves.items()))

    @property
    def method(self) -> str:
        """What decided its architecture, in words: the strategy's parts and the rule."""
        if not self.is_search:
            return "retraining"
        parts = [_class_name(self.settings.get(part)) for part in ("relaxation", "gradient", "smoothing")]
        selection = _dict(self.config.get("selection"))
        init = _dict(selection.get("init_args"))
        words = [_class_name(init["score"])] if init.get("score") else []
        words += [str(init[k]) for k in ("preset", "criterion", "source") if init.get(k) is not None]
        rule = _class_name(selection) + (f" ({', '.join(words)})" if words else "")
        strategy = " + ".join(part for part in parts if part) or "DARTS, first order"
        if _class_name(selection) == "FreeDarts":
            strategy = "without training"
        several = f", {self.members} supernets averaged" if self.members else ""
        return f"{strategy}: {rule or 'no selection'}{several}"

    def last(self, name: str) -> float | None:
        """Returns the last value of a metric, or None where it was never taken."""
        curve = self.metrics.get(name)
        return curve[-1][1] if curve else None

    def weight_at(self, cell: str, edge: str, op: str, epochs: int) -> float | None:
        """Returns the mixing weight of an operation after so many epochs, or None where it is not known."""
        known = [weight for epoch, _, weight in self.alphas.get((cell, edge, op), ()) if epoch < epochs]
        return known[-1] if known else None


@dataclass(frozen=True)
class Taken:
    """A decision and when it was taken.

    Args:
        decision: The decision.
        epochs: Number of finished epochs.
        seconds: Seconds that its decision point took.
    """

    decision: Decision
    epochs: int
    seconds: float
    weights: Mapping[Candidate, float] = field(default_factory=dict)

    @property
    def is_clear(self) -> bool | None:
        """Whether the kept candidate leads by two standard errors, or None where that was not measured."""
        margin, noise = self.decision.margin, self.decision.noise
        return None if margin is None or not noise else margin >= _CLEAR * noise

    def missed(self, candidate: Candidate) -> float | None:
        """Returns by how much the supernet is worse without a candidate, or its own score where it has one."""
        base, without = candidate.score_with, candidate.score_without
        if without is None:
            return base
        return sign_of(self.decision.criterion) * (without - (base or 0.0))

    @property
    def by_magnitude(self) -> Candidate | None:
        """The candidate with the largest mixing weight, where all of them are known."""
        if self.decision.kind != "operation" or len(self.weights) < len(self.decision.candidates):
            return None
        return max(self.decision.candidates, key=lambda c: self.weights[c])


def find_runs(paths: Sequence[str]) -> list[Run]:
    """Reads all runs in some folders.

    Args:
        paths: Folders of runs, or folders that hold some, such as the one of a job array.

    Raises:
        InputError: If there is no run, or its files are damaged.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if (path / CONFIG).is_file():
            found[path] = None
            continue
        inner = sorted({file.parent for file in path.rglob(CONFIG)}, key=_natural) if path.is_dir() else []
        if not inner:
            raise InputError(
                f"There is no run in {str(path)!r}; give the folder of a run, such as runs/version_0, or one that "
                "holds several."
            )
        found.update(dict.fromkeys(inner))
    return [read_run(path) for path in found]


def read_run(path: Path) -> Run:
    """Reads the files of one run; those that it has not written yet count as empty.

    Args:
        path: Its folder.

    Raises:
        InputError: If a file is damaged.
    """
    config, versions = _config(path / CONFIG)
    averaged = config.get("average_of")
    members = [path / str(member) for member in averaged] if isinstance(averaged, list) else []
    if members:
        config, versions = _config(members[0] / CONFIG)
    alphas: dict[tuple[str, str, str], list[tuple[int, float, float]]] = {}
    phases: dict[str, float] = {}
    memory = []
    try:
        for row in _rows(path / ALPHAS):
            values = int(row["epoch"]), _number(row["alpha"]), _number(row["weight"])
            alphas.setdefault((row["cell"], row["edge"], row["op"]), []).append(values)
        for row in _rows(path / TIMES):
            phases[row["phase"]] = phases.get(row["phase"], 0.0) + _number(row["seconds"])
            memory.append(_number(row["memory_mib"]))
        metrics = _metrics(_rows(path / METRICS))
        decisions = _decisions(path / DECISIONS, alphas)
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"A file in {str(path)!r} is not as dartslight writes it ({error}); give the folder of a run, or remove "
            f"its damaged {METRICS}, {ALPHAS} or {TIMES}."
        ) from None
    genotype = Genotype.load(str(path / GENOTYPE)) if (path / GENOTYPE).is_file() else None
    return Run(
        path, config, len(members), versions, metrics, alphas, phases, max(memory, default=None), decisions, genotype
    )


def _decisions(path: Path, alphas: Mapping[tuple[str, str, str], Sequence[tuple[int, float, float]]]) -> list[Taken]:
    rows = _rows(path)
    if not rows:
        return []
    found, place = [], 0
    for decision in read_decisions(path):
        row = rows[place]
        place += len(decision.candidates)
        epochs = int(row["epoch"])
        weights = {}
        for c in decision.candidates:
            known = [w for e, _, w in alphas.get((decision.cell, f"{c.node}<-{c.source}", c.op), ()) if e < epochs]
            if known:
                weights[c] = known[-1]
        found.append(Taken(decision, epochs, _number(row["seconds"]), weights))
    return found


def _metrics(rows: Sequence[Mapping[str, str]]) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    for row in rows:
        epoch = _number(row["epoch"]) + 1 if row.get("epoch") else None
        for name, text in row.items():
            if name not in ("step", "epoch") and text and epoch is not None and math.isfinite(value := float(text)):
                curves.setdefault(name, []).append((epoch, value))
    return curves


def _config(path: Path) -> tuple[dict[str, Any], str]:
    try:
        text = path.read_text(encoding="utf-8")
        config = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        config, text = None, ""
    if not isinstance(config, dict):
        raise InputError(f"{str(path)!r} is no configuration of a run; give the folder of a run.")
    return config, "; ".join(line.lstrip("# ").strip() for line in text.splitlines() if line.startswith("#"))


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{str(path)!r} cannot be read ({error}); give the folder of another run.") from None


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no finite number")
    return value


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorts numbers in names by their value."""
    words = str(path).replace("_", "/").split("/")
    return [(int(word), "") if word.isdigit() else (-1, word) for word in words]


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _class_name(value: Any) -> str:
    """Returns the last part of a class path, "" where none is given."""
    path = value.get("class_path", "") if isinstance(value, dict) else value or ""
    return str(path).rpartition(".")[2]


def _leaves(prefix: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, dict) and value:
        return [leaf for k, v in value.items() for leaf in _leaves(f"{prefix}.{k}" if prefix else str(k), v)]
    return [(prefix, str(value))]
