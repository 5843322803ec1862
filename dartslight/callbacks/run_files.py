"""Callbacks that keep a run's folder: its configuration and its checkpoints."""

from functools import cached_property
from typing import Any

import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import SaveConfigCallback

from dartslight import __version__
from dartslight.errors import check_least
from dartslight.genotype import Genotype
from dartslight.modules import RetrainModule
from dartslight.modules.checkpoint import HEADER
from dartslight.run_folder import CONFIG, GENOTYPE, LAST, RunFolder, by_first_device, folder_of, write_whole


class RunConfig(SaveConfigCallback):
    """Creates the run's folder with its configuration once all has proved right, and puts it into checkpoints.

    It also ends the run on all devices where the metrics of an epoch could not be written.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Does nothing yet: the folder must not appear before all input has been checked."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Creates the folder and writes the configuration, unless the run goes on in a folder that has it.

        A retraining also writes its architecture, so that its folder tells all of it.
        """
        folder = folder_of(trainer)
        if folder is None:
            return
        genotype = pl_module.genotype if isinstance(pl_module, RetrainModule) else None
        by_first_device(trainer, lambda: self._create(folder, genotype))
        folder.settle(trainer.strategy.broadcast(folder.path))
        for logger in trainer.loggers:
            logger.log_hyperparams(yaml.safe_load(self._text))

    def _create(self, folder: RunFolder, genotype: Genotype | None) -> None:
        path = folder.create()
        if not (path / CONFIG).exists():
            write_whole(path / CONFIG, self._text)
        if genotype is not None and not (path / GENOTYPE).exists():
            write_whole(path / GENOTYPE, genotype.to_json())

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks whether there was room for the metrics of the epoch before."""
        folder = folder_of(trainer)
        if folder is not None:
            by_first_device(trainer, folder.check)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks whether there was room for the metrics of the last epoch."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Puts the configuration into the checkpoint, from which other commands take it."""
        checkpoint[HEADER] = {**checkpoint.get(HEADER, {}), "config": self._text}

    @cached_property
    def _text(self) -> str:
        """The configuration, which takes longer to write out than a small checkpoint."""
        text: str = self.parser.dump(self.config, skip_unset=False)
        return f"# dartslight=={__version__}, torch=={torch.__version__}\n{text}"


class RunCheckpoints(Checkpoint):
    """Keeps ``checkpoints/last.ckpt`` of the run up to date.

    Args:
        every_n_batches: Also write it within an epoch, every so many batches; null for the ends of epochs only.
    """

    def __init__(self, every_n_batches: int | None = None) -> None:
        check_least(1, checkpoint_every_n_batches=every_n_batches)
        self.every_n_batches = every_n_batches
        self._max_steps: int | None = None

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Hides a number of steps while Lightning finds the run's place: it would count the epoch before twice."""
        self._max_steps, trainer.fit_loop.epoch_loop.max_steps = trainer.max_steps, -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tells the number of steps again."""
        if self._max_steps is not None:
            trainer.fit_loop.epoch_loop.max_steps = self._max_steps

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes the checkpoint where it is due within an epoch, or the run ends there by a limit."""
        is_due = self.every_n_batches and (batch_idx + 1) % self.every_n_batches == 0
        is_end = trainer.should_stop or trainer.global_step == trainer.max_steps
        if (is_due or is_end) and not trainer.is_last_batch:  # the end of the epoch has a checkpoint of its own
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the checkpoint at the end of a whole epoch, with the decisions that were taken there."""
        if trainer.is_last_batch:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the checkpoint of a run that needed no epoch."""
        folder = folder_of(trainer)
        if folder is not None and not trainer.strategy.broadcast((folder.path / "checkpoints" / LAST).exists()):
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        folder = folder_of(trainer)
        if folder is not None:
            folder.checkpoint(trainer, LAST)
