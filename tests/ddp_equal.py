"""A short search in float64 without augmentation and with fixed batch normalisation, on one process or several."""

from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import nn

import dartslight.strategies
from dartslight.data import Digits
from dartslight.modules import SearchModule


class Digits64(Digits):
    """Digits as numbers of 64 bits."""

    def on_after_batch_transfer(self, batch: dict, dataloader_idx: int) -> dict:
        ready = super().on_after_batch_transfer(batch, dataloader_idx)
        return {part: b._replace(images=b.images.double()) for part, b in ready.items()}


class FixedNorms(Callback):
    """Lets batch normalisations use their running statistics, 0 and 1, in training too."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: dict, batch_idx: int) -> None:
        for module in pl_module.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


def search(folder: Path, processes: int, gradient: str) -> None:
    """Writes the parameters that each process ends with into a folder."""
    seed_everything(0)
    rule = getattr(dartslight.strategies, gradient)()
    module = SearchModule(num_cells=3, init_channels=2, gradient=rule, alpha_learning_rate=0.01, learning_rate=0.1)
    data = Digits64(batch_size=32 // processes, padding=0, flip=False, max_pictures=256)
    trainer = Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        precision="64-true",
        max_epochs=3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[FixedNorms()],
        default_root_dir=folder,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )
    trainer.fit(module, datamodule=data)
    state = {name: p.detach().clone() for name, p in module.named_parameters()}
    torch.save(state, folder / f"{processes}_{trainer.global_rank}.pt")
