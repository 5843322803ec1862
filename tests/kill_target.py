"""What the child processes of the kill tests run."""

import os
import sys
from collections.abc import Mapping

import torch

from dartslight import training_cli  # noqa: F401 - imported before the processes are forked
from dartslight.callbacks import scores_file
from dartslight.cli import main

IMPORTER = os.getpid()


def check_imports() -> None:
    """Ends with code 0 if this process did not import this file itself."""
    sys.exit(os.getpid() == IMPORTER)


def run(words: list[str], log: str, environment: Mapping[str, str] | None = None) -> None:
    """Runs a command with all output in a file; every measurement is kept at once."""
    os.environ.update(environment or {})
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    scores_file.SECONDS = 0.0
    sys.exit(main(words))
