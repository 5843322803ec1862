"""Writes down how a search went, epoch by epoch: its architecture parameters, and what it took."""

import csv
import io
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from dartslight.callbacks.live_supernet import undisturbed
from dartslight.modules import SearchModule
from dartslight.run_folder import ALPHAS, TIMES, by_first_device, folder_of, write_whole
from dartslight.selection.strongest import mixing_weights

ALPHA_COLUMNS = ("epoch", "cell", "edge", "op", "alpha", "weight")
TIME_COLUMNS = ("epoch", "phase", "seconds", "memory_mib")


class History(Callback):
    """Writes ``alphas.csv`` and ``times.csv`` into the run's folder, a group of rows for each epoch.

    ``alphas.csv`` has each operation that is still open, with its architecture parameter and its mixing weight at the
    end of the epoch, and the logarithm of the weight where no parameter is an operation's own (factorised cells);
    ``times.csv`` the seconds of the epoch without those of decisions, which are in ``decisions.csv``, and the most
    memory that the process has had until then: that of the GPU where one trains. In a run that went on within an epoch,
    the seconds of that epoch are those of its remaining batches.
    """

    def __init__(self) -> None:
        self._alphas: list[Sequence[Any]] | None = None
        self._times: list[Sequence[Any]] = []
        self._start = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds the epoch to both files."""
        folder = folder_of(trainer)
        if folder is None or not trainer.is_last_batch:  # something has ended the run within the epoch
            return
        seconds, epoch = time.perf_counter() - self._start, trainer.current_epoch
        phase = "training"
        if isinstance(pl_module, SearchModule):
            phase = "tuning" if pl_module.is_tuning else "search"

        def write() -> None:
            if self._alphas is None:
                self._alphas = _rows_before(folder.path / ALPHAS, ALPHA_COLUMNS, epoch)
                self._times = _rows_before(folder.path / TIMES, TIME_COLUMNS, epoch)
            self._times.append((epoch, phase, f"{seconds:.3f}", f"{_memory(trainer):.0f}"))
            write_whole(folder.path / TIMES, _csv(TIME_COLUMNS, self._times))
            if isinstance(pl_module, SearchModule):
                self._alphas += _of_epoch(trainer, pl_module)
                write_whole(folder.path / ALPHAS, _csv(ALPHA_COLUMNS, self._alphas))

        by_first_device(trainer, write)


def _of_epoch(trainer: Trainer, module: SearchModule) -> Iterator[Sequence[Any]]:
    with undisturbed(trainer.strategy.root_device):
        weights = mixing_weights(module.space, module.mixing(module.choices))
    for cell in module.space.cells:
        alphas = module.architecture.alphas[cell.name].detach().cpu().numpy()
        if module.relaxation.draws_inputs:
            alphas = np.log(np.maximum(weights[cell.name], np.finfo(alphas.dtype).tiny))
        for e, edge in enumerate(cell.edges):
            for o in module.choices.of(cell.name)[e]:
                yield (
                    trainer.current_epoch,
                    cell.name,
                    str(edge),
                    edge.ops[o],
                    float(alphas[e][o]),
                    weights[cell.name][e][o],
                )


def _memory(trainer: Trainer) -> float:
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # in which the system counts
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _rows_before(path: Path, columns: Sequence[str], epoch: int) -> list[Sequence[Any]]:
    """Reads the rows of earlier epochs of a run that goes on; a file that is damaged counts as none."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [[row[c] for c in columns] for row in csv.DictReader(file) if int(row["epoch"]) < epoch]
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return []


def _csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()
