"""How much of an estimated architecture gradient is chance: the same pictures with other draws."""

from typing import cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from dartslight.callbacks.live_supernet import undisturbed
from dartslight.data import Batch
from dartslight.errors import InputError, check_least
from dartslight.modules import SearchModule
from dartslight.seeding import derived_seed, run_seed

_DRAWS = 53  # what a derived seed is for


class EstimateNoise(Callback):
    """Logs by how much the architecture gradient differs between draws, on the second batches of an epoch.

    ``estimate/variance`` is the variance over draws, added up over all parameters; ``estimate/squared_length`` is that
    of the mean over draws, which is too large by the variance divided by their number. Nothing of the run changes.
    Epochs in which the parameters do not learn are left out.

    Args:
        draws: Number of draws, each of which takes as long as an architecture step.
        every_n_epochs: Epochs between two measurements.
    """

    def __init__(self, draws: int = 16, every_n_epochs: int = 1) -> None:
        check_least(2, draws=draws)
        check_least(1, every_n_epochs=every_n_epochs)
        self.draws, self.every_n_epochs = draws, every_n_epochs

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks that the gradient is an estimate.

        Raises:
            InputError: If it is not.
        """
        if not isinstance(pl_module, SearchModule) or not pl_module.gradient.draws:
            raise InputError(
                "The callback EstimateNoise watches a search whose gradient is a ScoreFunction; leave it out of others."
            )

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: dict[str, Batch], batch_idx: int
    ) -> None:
        """Estimates the gradient some times on the second batches and logs how it differs."""
        assert isinstance(pl_module, SearchModule)
        module, epoch = pl_module, trainer.current_epoch
        # The first step of all fits the surrogates of costs, which need not be done twice.
        second = min(1, int(trainer.num_training_batches) - 1)
        if batch_idx != second or epoch % self.every_n_epochs or not module.learns_architecture:
            return
        optimizer, _ = cast("list[Optimizer]", module.optimizers(use_pl_optimizer=False))
        # What an estimate would leave behind.
        kept = [(buffer, buffer.clone()) for buffer in module.buffers()]
        found = []
        with undisturbed(trainer.strategy.root_device), trainer.precision_plugin.train_step_context():
            for draw in range(1, self.draws + 1):
                torch.manual_seed(derived_seed(run_seed(), _DRAWS, epoch, draw, trainer.global_rank))
                gradients = module.alpha_gradients(module.passes, batch, batch_idx, optimizer, draw)
                found.append(torch.cat([gradient.detach().flatten() for gradient in gradients]))
        for buffer, value in kept:
            buffer.copy_(value)
        each = torch.stack(found)
        values = {
            "estimate/variance": each.var(dim=0).sum(),
            "estimate/squared_length": each.mean(dim=0).square().sum(),
        }
        module.log_dict(values, on_step=False, on_epoch=True, sync_dist=True, batch_size=1)
