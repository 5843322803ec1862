"""What a run that has ended early has not reached, and the command with which it goes on."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Timer

from dartslight.callbacks import Selector
from dartslight.foreign import foreign_classes
from dartslight.modules import SearchModule
from dartslight.run_folder import CONFIG, LAST, folder_of


def what_is_unfinished(trainer: Trainer, module: LightningModule) -> str | None:
    """Returns what a run has not reached and how it goes on, in a sentence, or None where it has reached its end.

    Args:
        trainer: The trainer, after the run.
        module: What it has trained.
    """
    selector = next((c for c in cast("Any", trainer).callbacks if isinstance(c, Selector)), None)
    if selector is not None and selector.is_complete:
        return None
    search = module if isinstance(module, SearchModule) else None
    epochs = _finished_epochs(trainer)
    length = cast("int", (search and search.search_epochs) or trainer.max_epochs)
    if epochs < length:
        what = f"The {'search' if search else 'training'} stopped after {epochs} of {length} epochs"
    elif selector is not None:
        what = f"The selection stopped after {selector.taken}"
    else:
        return None
    what += " and no architecture is decided" if search else ""
    options, folder = list(_limits(trainer)), folder_of(trainer)
    if folder is not None and folder.exists and (folder.path / "checkpoints" / LAST).exists():
        return f"{what}; go on with: {_command(folder.path, options)}"
    again = f" with {' '.join(options)}" if options else ""
    return f"{what}; there is no checkpoint to go on from, so begin again{again}."


def _finished_epochs(trainer: Trainer) -> int:
    epochs: Any = trainer.fit_loop.epoch_progress.current
    batches = trainer.fit_loop.epoch_loop.batch_progress
    # Lightning counts an epoch within which it has stopped like a whole one.
    is_cut = epochs.processed == epochs.started and batches.current.ready > 0 and not batches.is_last_batch
    return int(epochs.processed - is_cut)


def _limits(trainer: Any) -> Iterator[str]:
    """What must be given to a run that a limit has ended, since its configuration holds that limit."""
    if trainer.fast_dev_run:  # it sets other limits
        yield "--trainer.fast_dev_run=false"
        return
    if trainer.limit_train_batches == 0:
        yield "--trainer.limit_train_batches=1.0"
    if 0 <= trainer.max_steps <= trainer.global_step:
        yield "--trainer.max_steps=-1"
    timer = next((c for c in trainer.callbacks if isinstance(c, Timer)), None)
    left = None if timer is None else timer.time_remaining()
    if left is not None and left <= 0:
        yield "--trainer.max_time=null"


def _command(run: Path, options: Sequence[str]) -> str:
    config = run / CONFIG
    # The classes of a checkpoint's own configuration are not trusted, those of a file that the user names are.
    is_foreign = any(foreign_classes(yaml.safe_load(config.read_text(encoding="utf-8"))))
    named = ["--config", str(config)] if is_foreign else []
    path = str(run / "checkpoints" / LAST)
    return shlex.join(["python", "-m", "dartslight", "fit", *named, "--ckpt_path", path, *options])
