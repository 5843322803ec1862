"""Lets a search begin with alphas that tell how salient the operations are before any training (FreeDARTS)."""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from dartslight.callbacks.live_supernet import LiveSupernet
from dartslight.callbacks.scores_file import ScoresFile
from dartslight.errors import InputError, check_least
from dartslight.modules import SearchModule
from dartslight.seeding import run_seed
from dartslight.selection.free import initial_alphas


class FreeStart(Callback):
    """Sets the initial alphas by FreeFlow, in place of random numbers; a run that goes on keeps its own.

    In a search in stages this is for the first one; stages that begin anew draw their alphas at random.

    Args:
        scale: Standard deviation of the alphas of an edge. The published searches start from 0.001, which tells
            operations apart by nothing; 0.1 gives operations one standard deviation apart weights 10 % apart.
    """

    def __init__(self, scale: float = 0.1) -> None:
        check_least(0, scale=scale)
        self.scale = scale

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sets the alphas before the first step of a new run; all devices get those of the first one.

        Raises:
            InputError: If the operations have no alphas of their own.
        """
        if trainer.ckpt_path is not None:
            return
        assert isinstance(pl_module, SearchModule)
        if pl_module.relaxation.draws_inputs:
            raise InputError(
                "FreeStart gives each operation of each edge an alpha of its own, which "
                f"{type(pl_module.relaxation).__name__} does not have; leave it out."
            )
        supernet = LiveSupernet(trainer, pl_module, "", ScoresFile(None), {}, epochs=0)
        found = trainer.strategy.broadcast(initial_alphas(supernet, run_seed(), self.scale))
        with torch.no_grad():
            for cell, alpha in pl_module.architecture.alphas.items():
                alpha.copy_(torch.from_numpy(found[cell]))
