"""Child processes that have imported everything already, so that what they run begins at once."""

import multiprocessing
import os
import resource
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from dartslight import training_cli  # noqa: F401 - imported before the processes are forked
from dartslight.callbacks import scores_file
from dartslight.cli import main

IMPORTER = os.getpid()


class Child(NamedTuple):
    """A process and the file with what it prints."""

    process: Any
    log: Path


def forks() -> Any:
    """Returns what makes processes that have imported this file and all that it imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["children"])
    with pytest.MonkeyPatch.context() as patch:
        # The server looks for modules where the environment says; where it finds none it goes on without a word.
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        first = context.Process(target=_check_imports)
        first.start()
        first.join()
    assert first.exitcode == 0
    return context


def _check_imports() -> None:
    """Ends with code 0 if this process did not import this file itself."""
    sys.exit(os.getpid() == IMPORTER)


def start(forks: Any, log: Path, target: Callable[..., int | None], *args: Any, **environment: str) -> Child:
    """Starts a process that calls a function and ends with the code that this returns.

    Args:
        forks: What makes processes.
        log: The file for what it prints, which is added to.
        target: The function.
        args: Its arguments.
        environment: Variables for the process alone.
    """
    log.touch()
    process = forks.Process(target=_run, args=(log, environment, target, args), daemon=True)
    process.start()
    return Child(process, log)


def start_devices(forks: Any, count: int, folder: Path, target: Callable[..., int | None], *args: Any) -> list[Child]:
    """Starts a process for each device, as torchrun or SLURM would; a single one is not told that there are others.

    Args:
        forks: What makes processes.
        count: Number of devices.
        folder: Where each of them gets a new file for what it prints.
        target: The function that they call.
        args: Its arguments.
    """
    found = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = []
    for rank in range(count):
        log = folder / f"log_{count}_{rank}"
        log.unlink(missing_ok=True)
        own = {**found, "LOCAL_RANK": str(rank)} if count > 1 else {}
        started.append(start(forks, log, target, *args, **own))
    return started


def end_within(children: list[Child], seconds: float) -> list[int | None]:
    """Waits until all have ended, or for so long, and returns their exit codes."""
    end = time.monotonic() + seconds
    for child in children:
        child.process.join(max(0.0, end - time.monotonic()))
    return [child.process.exitcode for child in children]


def succeed(children: list[Child]) -> str:
    """Waits until all have ended without an error, and returns what they have printed."""
    codes = end_within(children, 300)
    printed = [child.log.read_text() for child in children]
    assert not any(codes), (codes, [text[-3000:] for text in printed])
    return "".join(printed)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def keep_all(words: list[str]) -> int:
    """Runs a command whose every measurement is kept at once."""
    scores_file.SECONDS = 0.0
    return main(words)


def keep_all_without_room(words: list[str]) -> int:
    """Does so on a device; the first one has no room for files of more than 20 kB."""
    if os.environ["LOCAL_RANK"] == "0":
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    return keep_all(words)


def _run(log: Path, environment: Mapping[str, str], target: Callable[..., int | None], args: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    sys.exit(target(*args))
