"""The record of a selection: the rows of decisions.csv, and how it was decided in words."""

import csv
import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dartslight.errors import InputError
from dartslight.genotype import Genotype
from dartslight.selection.rule import Candidate, Decision

COLUMNS = (
    "decision",
    "epoch",
    "cell",
    "kind",
    "edge",
    "node",
    "op",
    "criterion",
    "score_with",
    "score_without",
    "batches",
    "pictures",
    "chosen",
    "margin",
    "noise",
    "seconds",
)
"""The columns of decisions.csv; a row is one candidate that was measured."""


def record(decision: Decision, number: int, epoch: int, seconds: float) -> dict[str, Any]:
    """Returns a decision as plain values for a checkpoint.

    Args:
        decision: The decision.
        number: Its number in the run.
        epoch: Finished epochs when it was taken.
        seconds: How long the decision point took.
    """
    return {"decision": number, "epoch": epoch, "seconds": round(seconds, 3), **asdict(decision)}


def decisions_csv(decisions: Sequence[Mapping[str, Any]]) -> str:
    """Returns the text of decisions.csv.

    Args:
        decisions: The decisions as the selector keeps them.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(decision_rows(decisions))
    return text.getvalue()


def decision_rows(decisions: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """Returns the decisions as a table: the names of its columns, then a row for each candidate.

    Args:
        decisions: The decisions as the selector keeps them.
    """
    rows: list[list[Any]] = [list(COLUMNS)]
    for decision in decisions:
        for candidate in decision["candidates"]:
            row = {key: decision[key] for key in COLUMNS if key in decision}
            row |= {key: candidate[key] for key in ("node", "op", "score_with", "score_without", "batches")}
            row |= {"edge": f"{candidate['node']}<-{candidate['source']}", "chosen": int(candidate["chosen"])}
            rows.append([row.get(key) for key in COLUMNS])
    return rows


def read_decisions(path: Path) -> list[Decision]:
    """Reads a decisions.csv.

    Args:
        path: The file.

    Raises:
        InputError: If it is no such file.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if not rows:
            raise ValueError
        grouped = itertools.groupby(rows, key=lambda row: (row["decision"], row["cell"], row["kind"]))
        return [_decision(list(group)) for _, group in grouped]
    except (OSError, UnicodeDecodeError, csv.Error, LookupError, AttributeError, TypeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not as dartslight writes it"
        raise InputError(f"{str(path)!r} cannot be read ({reason}); give the folder of a run that decided.") from None


def _decision(rows: Sequence[Mapping[str, str]]) -> Decision:
    def number(text: str) -> float | None:
        return float(text) if text else None

    first = rows[0]
    candidates = [
        Candidate(
            int(row["edge"].partition("<-")[2]),
            int(row["node"]),
            row["op"],
            number(row["score_with"]),
            number(row["score_without"]),
            row["chosen"] == "1",
            int(row["batches"]),
        )
        for row in rows
    ]
    kind: Any = first["kind"]
    chosen = next((c.batches for c in candidates if c.chosen), 0)
    return Decision(
        first["cell"],
        kind,
        first["criterion"],
        tuple(candidates),
        chosen,
        int(first["pictures"]),
        number(first["margin"]),
        number(first["noise"]),
    )


def in_words(genotype: Genotype, decisions: Sequence[Mapping[str, Any]]) -> str:
    """Returns how an architecture was decided, and the architecture, for a person to read."""
    lines = ["How it was decided (margin: by how much the kept one leads; noise: the margin's standard error)"]
    lines += [f"  {outcome_in_words(decision)}" for decision in decisions]
    lines += _saved(decisions)
    lines.append("The architecture")
    lines += [f"  {cell.name:<10}{edge!s:<8}{edge.ops[0]}" for cell in genotype.cells for edge in cell.edges]
    return "\n".join(lines)


def outcome_in_words(decision: Mapping[str, Any]) -> str:
    """Returns what one decision has decided and on what evidence, for a person to read.

    Args:
        decision: The decision as the selector keeps it.
    """
    candidates = decision["candidates"]
    gone = {c["source"] for c in candidates if not c["chosen"]}
    chosen = [c for c in candidates if c["chosen"]]
    first = (chosen or candidates)[0]
    place = f"{first['node']}<-{first['source']}"
    if decision["kind"] == "inputs":
        sources = sorted({c["source"] for c in candidates} - gone)
        place = f"node {first['node']}"
        kept = "inputs " + (" and ".join(str(source) for source in sources) or "none")
    elif decision["kind"] == "operations":
        kept = f"{len(chosen)} of {len(candidates)} left"
    else:
        kept = "is next" if decision["kind"] == "edge" else first["op"]
    return f"{decision['cell']:<10}{place:<8}{kept:<16}{_evidence(decision)}"


def _saved(decisions: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a race has saved, as a line for a person to read, or nothing."""
    used = [[c["batches"] for c in decision["candidates"]] for decision in decisions]
    done, whole = sum(map(sum, used)), sum(len(batches) * max(batches) for batches in used)
    if done == whole:
        return []
    return [f"  Racing measured candidates on {done} batches; all of them to the end would have taken {whole} or more."]


def _evidence(decision: Mapping[str, Any]) -> str:
    if decision["margin"] is None:
        return f"by {decision['criterion']}, nothing to compare with"
    text = f"by {decision['criterion']}, margin {decision['margin']:.4f}"
    if decision["noise"] is not None:
        text += f", noise {decision['noise']:.4f} on {decision['pictures']} pictures"
        if decision["margin"] < 2 * decision["noise"]:
            text += " (within the noise)"
    return text
