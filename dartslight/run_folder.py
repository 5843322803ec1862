"""The folder of a run: where it is, its metrics, and files written whole or not at all."""

import contextlib
import csv
import io
import os
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from dartslight.errors import InputError

METRICS, CONFIG, GENOTYPE, DECISIONS = "metrics.csv", "config.yaml", "genotype.json", "decisions.csv"
ALPHAS, TIMES = "alphas.csv", "times.csv"
LAST, SEARCHED = "last.ckpt", "search.ckpt"


def write_whole(path: Path, text: str) -> None:
    """Writes a text file so that at any moment either the old one or the new one is there.

    Raises:
        InputError: If there is no room for it, or it may not be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_output(path: Path, contents: bytes) -> None:
    """Writes a file that the user has named, whole or not at all.

    Raises:
        InputError: If it cannot be written there.
    """
    check_output(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, advice="give a path in a folder that has room and that you may write to") as temporary:
        temporary.write_bytes(contents)


def check_output(path: Path) -> None:
    """Checks before long work that a file can be written where the user wants it.

    Raises:
        InputError: If it cannot.
    """
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if path.is_dir() or not above.is_dir() or not os.access(above, os.W_OK):
        raise InputError(f"{str(path)!r} cannot be written; give a path in a folder that you may write to.")


def write_whole_tensors(path: Path, contents: Any) -> None:
    """Writes tensors and plain values like `write_whole`."""
    with replacing(path, "new") as temporary:
        torch.save(contents, temporary)


@contextlib.contextmanager
def replacing(
    path: Path,
    tag: str | None = None,
    advice: str = "what was there before is kept: make room and go on from the run's last.ckpt",
) -> Iterator[Path]:
    """Gives the name of a temporary file, which takes the place of another at the end; its folder is made.

    Its contents are on the disk before its name is, so that a power failure leaves one of the two whole.

    Args:
        path: The file to replace.
        tag: End of the temporary name; None for one that no other process has.
        advice: What the message tells to do where it cannot be written.

    Raises:
        InputError: If there is no room for it, or it may not be written; the old file stays.
    """
    temporary = path.with_name(f".{path.name}.{tag or os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        # torch says in a RuntimeError of its own that a file could not be written.
        if isinstance(error, RuntimeError) and "write" not in str(error) and "file" not in str(error):
            raise
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "the disk may be full"
        raise InputError(f"{str(path)!r} cannot be written ({reason}); {advice}.") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def by_first_device(trainer: Trainer, write: Callable[[], None]) -> None:
    """Lets the first device write files; where it cannot, all devices end with its sentence.

    Args:
        trainer: The trainer, on every rank.
        write: Writes them.

    Raises:
        InputError: On every rank, if they could not be written.
    """
    failure = None
    if trainer.is_global_zero:
        try:
            write()
        except InputError as error:
            failure = str(error)
    _end_together(trainer, failure)


def _end_together(trainer: Trainer, failure: str | None) -> None:
    failure = trainer.strategy.broadcast(failure)
    if failure is not None:
        raise InputError(failure)


class RunFolder(Logger):
    """Gives a run a folder ``version_N`` that no other run has, and writes its ``metrics.csv``.

    The folder appears with `create`, once everything that the user gave has proved right. In a run that went on within
    an epoch, the means of that epoch are over its remaining batches.

    Args:
        root: The folder in which runs get their folders.
        resumed: The folder of a run that goes on, or None for a new run.
    """

    def __init__(self, root: str | Path, resumed: Path | None = None) -> None:
        super().__init__()
        self._root = Path(root)
        self._path = resumed
        self._rows: list[dict[str, Any]] = []
        self._resumed = resumed is not None
        self._failure: InputError | None = None

    @property
    def path(self) -> Path:
        """The folder; its name is settled by `create`."""
        return self._path or self._root / f"version_{self._next_number()}"

    @property
    def exists(self) -> bool:
        """Whether the folder has been created."""
        return self._path is not None

    def create(self) -> Path:
        """Makes the folder, with a number that no other run has taken, and returns it."""
        while self._path is None:
            candidate = self.path
            try:
                candidate.mkdir(parents=True)
                self._path = candidate
            except FileExistsError:
                continue  # another run was faster
            except OSError as error:
                raise InputError(
                    f"The run folder {str(candidate)!r} cannot be made ({error.strerror}); give another folder with "
                    "--trainer.default_root_dir."
                ) from None
        if self._resumed and not self._rows:
            self._rows = _read_rows(self._path / METRICS)
        return self._path

    def settle(self, path: Path) -> None:
        """Takes the folder that rank 0 has created."""
        self._path = path

    def checkpoint(self, trainer: Trainer, name: str) -> None:
        """Writes a checkpoint so that at any moment either the old one or the new one is there.

        Lightning writes to the system's temporary folder and moves the file, which copies it where that folder is on
        another file system.

        Args:
            trainer: The trainer, on every rank.
            name: Name of the checkpoint's file.

        Raises:
            InputError: On every rank, if there is no room for it.
        """
        path = self.path / "checkpoints" / name
        failure, have_met = None, False
        # All ranks take part; the first one writes.
        try:
            with replacing(path, "new") if trainer.is_global_zero else contextlib.nullcontext(path) as temporary:
                trainer.save_checkpoint(temporary, weights_only=False)
                have_met = True
        except InputError as error:
            failure = str(error)
            if not have_met:  # the others wait at the end of save_checkpoint
                trainer.strategy.barrier()
        _end_together(trainer, failure)

    def _next_number(self) -> int:
        taken = [p.name.removeprefix("version_") for p in self._root.glob("version_*")]
        return max((int(number) for number in taken if number.isdigit()), default=-1) + 1

    @property
    def name(self) -> str:
        """No name: runs differ by their version."""
        return ""

    @property
    def version(self) -> int | str:
        """The number of the folder among those of its root, or its name where somebody has renamed it."""
        number = self.path.name.removeprefix("version_")
        return int(number) if number.isdigit() else self.path.name

    @property
    def save_dir(self) -> str:
        """The folder in which runs get their folders."""
        return str(self.path.parent)

    @property
    def log_dir(self) -> str:
        """The folder."""
        return str(self.path)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the configuration has a file of its own."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Adds metrics to the row of a step; rows of a run that was interrupted after that step are dropped."""
        step = step or 0
        if self._resumed:
            self._rows = [row for row in self._rows if int(row["step"]) < step]
            self._resumed = False
        if not self._rows or self._rows[-1]["step"] != step:
            self._rows.append({"step": step})
        self._rows[-1].update(metrics)

    @rank_zero_only
    def save(self) -> None:
        """Writes the metrics; `check` tells whether there was room for them."""
        if not self.exists or not self._rows:
            return
        columns = list(dict.fromkeys(key for row in self._rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        try:
            write_whole(self.path / METRICS, text.getvalue())
        except InputError as error:
            self._failure = error  # loggers are called on every device, but not always as often

    def check(self) -> None:
        """Looks back whether the metrics could be written.

        Raises:
            InputError: If not.
        """
        if self._failure is not None:
            raise self._failure

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Writes the metrics at the end of the run."""
        self.save()


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """Reads the metrics of a run that goes on; a file that is damaged counts as none."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [{k: v for k, v in row.items() if v} | {"step": int(row["step"])} for row in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return []


def folder_of(trainer: Trainer) -> RunFolder | None:
    """Returns the run folder of a trainer, or None where it has none."""
    return next((logger for logger in trainer.loggers if isinstance(logger, RunFolder)), None)
