"""What the child processes of the kill tests run."""

import os
import sys

import torch

from dartslight import training_cli  # noqa: F401 - imported before the processes are forked
from dartslight.callbacks import scores_file
from dartslight.cli import main


def run(words: list[str], log: str) -> None:
    """Runs a command with all output in a file; every measurement is kept at once."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    scores_file.SECONDS = 0.0
    sys.exit(main(words))
