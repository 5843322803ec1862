"""The reference of all commands and options, as the program itself knows them.

python docs/commands.py > docs/commands.md
"""

import argparse
import inspect
import re
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn
from unittest import mock

import jsonargparse

from dartslight import callbacks, cli, data, modules, selection, strategies
from dartslight.ensemble import ensemble
from dartslight.training_cli import run_training

HIDDEN = {"help", "print_config", "print_shtab", "func"}
KINDS = {
    "`--model`": (modules, ("SearchModule", "RetrainModule")),
    "`--data`": (data, None),
    "`--selection`": (selection, None),
    "`--model.relaxation`, `--model.gradient` and `--model.smoothing`": (strategies, None),
    "`--trainer.callbacks`": (callbacks, None),
}
"""Where the classes of an option are, and which of them; None for all that are derived from the one that is named first
in the option's type and can be made from settings alone."""
BASES: dict[str, tuple[type, ...]] = {
    "`--data`": (data.ImageData,),
    "`--selection`": (selection.Rule,),
    "`--model.relaxation`, `--model.gradient` and `--model.smoothing`": (
        strategies.Relaxation,
        strategies.ArchitectureGradient,
        strategies.Smoothing,
    ),
    "`--trainer.callbacks`": (callbacks.TrueAccuracy, callbacks.diagnostics.SearchWatch),
}


class _Found(BaseException):
    """Carries a parser out of the command that has made it; not an Exception, which the command would explain."""

    def __init__(self, parser: Any) -> None:
        super().__init__()
        self.parser = parser


def parser_of(command: str) -> Any:
    """Returns the parser of a command.

    Args:
        command: Its name.
    """

    def stop(parser: Any, *args: Any, **kwargs: Any) -> NoReturn:
        raise _Found(parser)

    owner, name = jsonargparse.ArgumentParser, "parse_args"
    if command == "ensemble":
        owner, name = argparse.ArgumentParser, "parse_known_args"
    try:
        with mock.patch.object(owner, name, stop):
            if command in cli._TRAINING:
                run_training(command, [])
            elif command == "ensemble":
                ensemble([])
            else:
                cli._run(command, words=[])
    except _Found as found:
        parser = found.parser
    return parser._subcommands_action._name_parser_map[command] if command in cli._TRAINING else parser


def commands() -> list[str]:
    """Returns the names of all commands, in the order of the overview."""
    return re.findall(r"^  (\w+) +\w", cli._OVERVIEW.partition("\n\n")[2], re.MULTILINE)


def options(actions: Sequence[Any]) -> Iterator[str]:
    """Yields a line for each argument that is no class's own."""
    for action in actions:
        nested = "." in action.dest or action.dest in ("model", "data", "trainer", "subcommand")
        if action.dest in HIDDEN or nested or action.help == argparse.SUPPRESS:
            continue
        name = ", ".join(f"`{option}`" for option in action.option_strings) or f"`{action.dest}`"
        default = action.default
        is_given = default not in (None, argparse.SUPPRESS) and not isinstance(action.default, bool)
        text = " ".join(str(action.help or "").split())
        yield f"| {name} | {_cell(default) if is_given and action.option_strings else ''} | {_plain(text)} |"


def classes(kind: str) -> list[type]:
    """Returns the classes that an option takes."""
    room, names = KINDS[kind]
    if names is not None:
        return [getattr(room, name) for name in names]
    found = [getattr(room, name) for name in room.__all__]
    return [c for c in found if inspect.isclass(c) and issubclass(c, BASES[kind]) and not inspect.isabstract(c)]


def settings(of: type) -> Iterator[str]:
    """Yields a line for each setting of a class."""
    described = arguments_of(of)
    for name, parameter in inspect.signature(of).parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        default = "" if parameter.default is parameter.empty else _cell(parameter.default)
        yield f"| `{name}` | {default} | {_plain(described.get(name, ''))} |"


def arguments_of(of: type) -> dict[str, str]:
    """Returns what the docstrings of a class and of those that it is derived from say of its settings."""
    found: dict[str, str] = {}
    for each in reversed(of.__mro__):
        text = inspect.cleandoc(each.__dict__.get("__doc__") or "").partition("Args:\n")[2].split("\n\n")[0]
        for name, words in re.findall(r"^    (\w+): (.*(?:\n        .*)*)", text, re.MULTILINE):
            found[name] = " ".join(words.split())
    return found


def _cell(value: Any) -> str:
    text = {None: "null", True: "true", False: "false"}.get(value, value) if isinstance(value, bool | None) else value
    return f"`{text}`"


def _plain(text: str) -> str:
    text = re.sub(r" ?\((?:type|required)?[^()]*default: [^()]*\)$", "", text).replace("%%", "%")
    return text.replace("``", "`").replace("|", r"\|")


def reference() -> str:
    """Returns the whole page as Markdown."""
    lines = ["# Commands", "", "Made by `python docs/commands.py` from the program itself.", ""]
    head = ["| argument | default | what it is |", "|---|---|---|"]
    for command in commands():
        about = re.search(rf"^  {command} +(.*)$", cli._OVERVIEW, re.MULTILINE)
        assert about is not None
        lines += [f"## {command}", "", f"`python -m dartslight {command}`: {about[1]}.", ""]
        lines += [*head, *options(parser_of(command)._actions), ""]
        if command in cli._TRAINING:
            lines += ["Beside these the options of `--model`, `--data`, `--selection` and `--trainer`, below.", ""]
    lines += [
        "## trainer",
        "",
        "`--trainer.…` are the options of Lightning's Trainer, such as `--trainer.max_epochs`, `--trainer.devices`,",
        "`--trainer.precision`, `--trainer.default_root_dir`, `--trainer.max_time` and `--trainer.logger`. Here",
        "`max_epochs` is 50 unless it is given, `log_every_n_steps` 1, `num_sanity_val_steps` 0.",
        "",
        "`fit --print_config` with any options writes a configuration that holds all of them.",
        "",
    ]
    for kind in KINDS:
        lines += [f"## {kind}", ""]
        for found in classes(kind):
            lines += [f"### {found.__module__.rpartition('.')[0]}.{found.__name__}", ""]
            lines += [_plain(" ".join(inspect.cleandoc(found.__doc__ or "").split("\n\n")[0].split())), ""]
            rows = list(settings(found))
            lines += [*head, *rows, ""] if rows else []
    return "\n".join(lines).rstrip()


if __name__ == "__main__":
    print(reference())
