"""The configuration that a checkpoint carries, and what of it other commands take over."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from dartslight.errors import InputError
from dartslight.foreign import foreign_classes
from dartslight.modules.checkpoint import HEADER, read_checkpoint

_KEYS = ("seed_everything", "trainer", "model", "data", "selection", "checkpoint_every_n_batches")


def with_carried_config(command: str, words: list[str]) -> list[str]:
    """Puts the configuration of a checkpoint in front of the user's words, which then have the last word.

    ``select`` always begins with the configuration of its supernet; other commands with that of their checkpoint only
    where the user gives none.

    Args:
        command: The command.
        words: The words that follow it.

    Raises:
        InputError: If the checkpoint cannot be used, or its configuration would run code that is not of the product.
    """
    path = value_of(("--supernet",) if command == "select" else ("--ckpt_path",), words)
    own = value_of(("--config", "-c"), words) is not None
    if path is None:
        return words
    header = read_checkpoint(path)[HEADER]
    if own and command != "select":
        return words
    config = carried_config(
        header, path, "give a configuration that you trust with --config, and --ckpt_path beside it"
    )
    config = {key: config[key] for key in _KEYS if key in config}
    if command != "select":
        return ["--config", yaml.safe_dump(config), *words]
    config["selection"] = None
    # The length of the search stands in the configuration of the selection's own run, which may go on later.
    return ["--config", yaml.safe_dump(config), *words, f"--trainer.max_epochs={int(header.get('epochs', 0))}"]


def carried_config(header: Mapping[str, Any], path: str, advice: str) -> dict[str, Any]:
    """Returns the configuration of the run that wrote a checkpoint.

    Args:
        header: What the checkpoint says of itself.
        path: What messages call the checkpoint.
        advice: What messages tell to do where the configuration is not to be trusted.

    Raises:
        InputError: If there is none, or it would run code that is not of the product.
    """
    config = _read(header, path)
    foreign = sorted(set(foreign_classes(config)))
    if foreign:
        raise InputError(
            f"The configuration in the checkpoint {path!r} names {', '.join(foreign)}, which is not part of dartslight "
            f"and could run; {advice}."
        )
    return config


def value_of(options: Sequence[str], words: Sequence[str]) -> str | None:
    """Returns the last value that is given for an option, or None.

    Args:
        options: The option's names.
        words: The words of a command line.
    """
    value = None
    for i, word in enumerate(words):
        name, equals, rest = word.partition("=")
        if name in options:
            value = rest if equals else words[i + 1] if i + 1 < len(words) else None
    return value


def _read(header: Mapping[str, Any], path: str) -> dict[str, Any]:
    try:
        config = yaml.safe_load(header["config"])
    except (KeyError, AttributeError, yaml.YAMLError):
        config = None
    if not isinstance(config, dict):
        raise InputError(f"The checkpoint {path!r} carries no configuration; give one with --config.")
    return config
