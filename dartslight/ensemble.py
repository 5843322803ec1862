"""Several supernets, one architecture: each is decided in a run of its own, then their scores are averaged.

    python -m dartslight ensemble --seeds 0 1 2 --folder runs/ensemble --config configs/quickstart.yaml
    python -m dartslight select --supernet A/checkpoints/search.ckpt --supernet B/checkpoints/search.ckpt --selection …

The runs are processes of their own, one after another. See `dartslight.selection.average` for the mathematics.
"""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from dartslight.errors import InputError
from dartslight.genotype import Genotype
from dartslight.report.conclusion import write_conclusion
from dartslight.run_folder import CONFIG, DECISIONS, GENOTYPE, LAST, RunFolder, write_whole
from dartslight.selection import Budget, Rule
from dartslight.selection.average import average
from dartslight.selection.record import in_words, read_decisions, record
from dartslight.selection.rule import Decision
from dartslight.spaces import find_space

_ROOT, _SUPERNET = "--trainer.default_root_dir", "--supernet"


def ensemble(words: Sequence[str]) -> None:
    """Searches and selects once for each seed, and decides by the averaged scores.

    A run that is finished is not repeated and one that was stopped goes on, so the same command may be given again.

    Args:
        words: The options of the ensemble, and those of ``fit``.

    Raises:
        InputError: If what the user gave is wrong, or a run has failed.
    """
    given, rest = _parse(words)
    if given.index is not None and not 0 <= given.index < len(given.seeds):
        raise InputError(f"--index is {given.index}, but there are the seeds 0 to {len(given.seeds) - 1} in --seeds.")
    folder, seeds = Path(given.folder), list(given.seeds)
    for seed in seeds if given.index is None else [seeds[given.index]]:
        _fit(folder, seed, rest)
    if given.index is not None:
        print(f"Run folder: {folder}; give the command without --index when all are done.")
        return
    level = given.until_margin or 0.0
    while True:
        decisions = _conclude(folder, [_member(folder, seed) for seed in seeds])
        unclear = [d for d in decisions if d.margin is not None and d.margin < level * (d.noise or 0.0)]
        if not unclear or len(seeds) >= given.max_supernets:
            break
        seeds.append(max(seeds) + 1)
        print(f"{len(unclear)} decisions are not clear yet: one more supernet, with seed {seeds[-1]}.")
        _fit(folder, seeds[-1], rest)
    print(f"Run folder: {folder}")


def select_several(words: Sequence[str]) -> None:
    """Decides each of several supernets by one rule, and then by the averaged scores.

    Args:
        words: The words of ``select`` with several ``--supernet``.

    Raises:
        InputError: If what the user gave is wrong, or a run has failed.
    """
    checkpoints, rest = _take(_SUPERNET, words)
    roots, rest = _take(_ROOT, rest)
    own = Path(checkpoints[0]).resolve().parent.parent.parent
    folder = RunFolder(roots[-1] if roots else own).create()
    members = [folder / f"supernet_{i}" for i in range(len(checkpoints))]
    for member, checkpoint in zip(members, checkpoints, strict=True):
        _run(["select", *rest, f"{_SUPERNET}={checkpoint}", f"{_ROOT}={member}"])
    _conclude(folder, [member / "version_0" for member in members])
    print(f"Run folder: {folder}")


def _parse(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m dartslight ensemble",
        description="Search with several seeds and decide by the averaged scores; all other options are those of fit.",
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="The seeds (default: 0 1 2).")
    parser.add_argument("--folder", default="runs/ensemble", help="Folder of all runs (default: runs/ensemble).")
    parser.add_argument("--index", type=int, help="Run only the seed at this place, from 0, as in a job array.")
    parser.add_argument(
        "--until_margin",
        type=float,
        help="Search with more seeds until every decision is clear by so many standard errors over supernets.",
    )
    parser.add_argument(
        "--max_supernets", type=int, default=8, help="Largest number of supernets with --until_margin (default: 8)."
    )
    try:
        given, rest = parser.parse_known_args(list(words))
    except (argparse.ArgumentError, argparse.ArgumentTypeError) as error:
        raise InputError(f"{error}; ensemble --help tells what is allowed.") from None
    for option in (_ROOT, "--seed_everything", "--ckpt_path"):
        if _take(option, rest)[0]:
            raise InputError(f"{option} follows from --folder and --seeds in an ensemble; leave it out.")
    if len(set(given.seeds)) < len(given.seeds):
        raise InputError(f"--seeds is {given.seeds}, but supernets of one seed are the same; give different seeds.")
    return given, rest


def _fit(folder: Path, seed: int, words: Sequence[str]) -> None:
    """Searches and selects with one seed, unless that is done."""
    member = _member(folder, seed)
    if (member / GENOTYPE).exists():
        return
    last = member / "checkpoints" / LAST
    if last.exists():
        # The run's own file, in which classes of the user's may be.
        _run(["fit", f"--config={member / CONFIG}", f"--ckpt_path={last}"])
    else:
        _run(["fit", *words, f"--seed_everything={seed}", f"{_ROOT}={member.parent}"])


def _member(folder: Path, seed: int) -> Path:
    """The folder of the newest run with a seed."""
    root = folder / f"seed_{seed}"
    found = [p for p in root.glob("version_*") if p.name.removeprefix("version_").isdigit()]
    newest = max(found, key=lambda p: int(p.name.removeprefix("version_")), default=root / "version_0")
    return next((p for p in found if (p / GENOTYPE).exists()), newest)


def _run(words: Sequence[str]) -> None:
    """Runs a command in a process of its own, and passes on a request to stop."""
    with subprocess.Popen([sys.executable, "-m", "dartslight", *words]) as child:
        before = signal.signal(signal.SIGTERM, lambda *_: child.send_signal(signal.SIGTERM))
        try:
            code = child.wait()
        finally:
            signal.signal(signal.SIGTERM, before)
    if code == 130:
        raise KeyboardInterrupt
    if code != 0:
        raise InputError(
            f"A run has ended with code {code} for the reason above; mend that and give the same command again, which "
            "goes on."
        )


def _conclude(folder: Path, members: Sequence[Path]) -> tuple[Decision, ...]:
    """Averages the scores of the runs, writes what follows, and returns the decisions but for a budget."""
    for member in members:
        if not (member / DECISIONS).exists():
            raise InputError(
                f"The run {str(member)!r} has decided nothing; give all runs a --selection, and finish them first."
            )
    config = _config_of(members[0])
    space = find_space(str(config["model"]["init_args"]["space"]))
    averaged = average(space, [read_decisions(member / DECISIONS) for member in members])
    budget = _budget_of(config)
    outcome = averaged if budget is None else budget.within(space, averaged, int(config.get("seed_everything") or 0))
    record_of = [record(decision, number, 0, 0.0) for number, decision in enumerate(outcome.decisions)]
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump({"average_of": [os.path.relpath(member, folder) for member in members]})
    write_whole(folder / CONFIG, text)
    genotype = Genotype.from_choices(space, outcome.choices)
    write_conclusion(folder, genotype, record_of)
    print(f"\n{in_words(genotype, record_of)}\n")
    return averaged.decisions


def _config_of(member: Path) -> dict[str, Any]:
    """A run's configuration, which names the search space."""
    try:
        config: dict[str, Any] = yaml.safe_load((member / CONFIG).read_text(encoding="utf-8"))
        config["model"]["init_args"]["space"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
        raise InputError(f"{str(member / CONFIG)!r} names no search space; give the folder of a search.") from None
    return config


def _budget_of(config: Mapping[str, Any]) -> Budget | None:
    """The budget that a run was decided under, which holds for the average as well."""
    selection = config["selection"]
    if str(selection["class_path"]).rpartition(".")[2] != Budget.__name__:
        return None
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Rule, "selection")
    try:
        budget: Budget = parser.instantiate(parser.parse_object({"selection": selection})).selection
    except (argparse.ArgumentError, ValueError, TypeError) as error:
        raise InputError(f"The budget of the runs cannot be made again: {error}; give it as it was.") from None
    return budget


def _take(option: str, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns all values that are given for an option, and the other words."""
    values, rest, left = [], [], list(words)
    while left:
        name, equals, value = (word := left.pop(0)).partition("=")
        if name != option:
            rest.append(word)
        elif equals or left:
            values.append(value if equals else left.pop(0))
    return values, rest
