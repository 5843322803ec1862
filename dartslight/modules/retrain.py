"""Retraining: a chosen architecture learns from scratch.

    python -m dartslight fit --config configs/cifar10/retrain.yaml --model.genotype RUN/genotype.json
    python -m dartslight test --ckpt_path RETRAIN_RUN/checkpoints/last.ckpt

The defaults are the published CIFAR-10 protocol (DARTS, https://arxiv.org/abs/1806.09055, section 3.2).
"""

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import SGD, Optimizer
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from dartslight.data import Batch, ImageData, Signature
from dartslight.errors import InputError, check_least
from dartslight.genotype import Genotype
from dartslight.modules.checkpoint import HEADER, check_header
from dartslight.modules.finite import FiniteWatch
from dartslight.nets import DiscreteNetwork
from dartslight.nets.network import Stem
from dartslight.seeding import derived_seed, run_seed

_INITIALISATION, _STEP = 3, 4  # what a derived seed is for


class RetrainModule(LightningModule):
    """Trains the network of a genotype.

    Args:
        genotype: Path of the genotype.json of a search.
        num_cells: Number of cells; for NAS-Bench-201 in all three stages together.
        init_channels: Channels of the first cell's operations.
        stem: ``cifar`` for small pictures; ``imagenet`` first makes an eighth of the height and width.
        learning_rate: Learning rate in the first epoch; a cosine takes it to 0.
        momentum: Momentum of the optimizer.
        weight_decay: Weight decay of all weights.
        clip_norm: Largest L2 norm of all gradients together; larger ones are scaled down.
        drop_path: Probability, in the last epoch, with which a picture loses the output of an operation; it grows
            linearly from 0.
        auxiliary_weight: Weight of the auxiliary head's loss; 0 leaves the head out.
        label_smoothing: Share of the target that is spread over all classes.
    """

    def __init__(
        self,
        genotype: str,
        num_cells: int = 20,
        init_channels: int = 36,
        stem: Stem = "cifar",
        learning_rate: float = 0.025,
        momentum: float = 0.9,
        weight_decay: float = 3e-4,
        clip_norm: float = 5.0,
        drop_path: float = 0.2,
        auxiliary_weight: float = 0.4,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        check_least(
            0,
            learning_rate=learning_rate,
            momentum=momentum,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            drop_path=drop_path,
            auxiliary_weight=auxiliary_weight,
            label_smoothing=label_smoothing,
        )
        if drop_path >= 1 or label_smoothing >= 1:
            raise InputError(
                f"drop_path is {drop_path} and label_smoothing is {label_smoothing}, but they must be below 1."
            )
        self.genotype = Genotype.load(genotype)
        self.num_cells, self.init_channels, self.stem = num_cells, init_channels, stem
        self.learning_rate, self.momentum, self.weight_decay = learning_rate, momentum, weight_decay
        self.clip_norm, self.drop_path, self.auxiliary_weight = clip_norm, drop_path, auxiliary_weight
        self.label_smoothing = label_smoothing
        self.finite = FiniteWatch()

    def training_step(self, batch: dict[str, Batch], batch_idx: int) -> Tensor:
        """Returns the loss on a training batch, with the auxiliary head's share."""
        images, labels = batch["train"].images, batch["train"].labels
        logits, auxiliary = self.network(images, self.drop_path * self._progress())
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        self.finite.note("loss", self.global_step, loss)
        values = {"train/loss": loss.detach(), "train/accuracy": accuracy}
        self.log_dict(values, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True, batch_size=len(labels))
        if auxiliary is not None:
            loss = loss + self.auxiliary_weight * F.cross_entropy(
                auxiliary, labels, label_smoothing=self.label_smoothing
            )
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measures the network on validation pictures."""
        self._measure("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Measures the network on test pictures."""
        self._measure("test", batch)

    def _measure(self, part: str, batch: Batch) -> None:
        logits, _ = self.network(batch.images)
        self.mean_loss(F.cross_entropy(logits, batch.labels, reduction="none"))
        self.accuracy(logits, batch.labels)
        self.log(f"{part}/loss", self.mean_loss, on_epoch=True, on_step=False, batch_size=len(batch.labels))
        self.log(
            f"{part}/accuracy", self.accuracy, on_epoch=True, on_step=False, prog_bar=True, batch_size=len(batch.labels)
        )

    def _progress(self) -> float:
        """The share of the epochs that is behind."""
        return self.current_epoch / max(1, self.trainer.max_epochs or 1)

    def learning_rate_at(self, epoch: int) -> float:
        """Returns the learning rate in an epoch."""
        return self.learning_rate * (1 + math.cos(math.pi * epoch / max(1, self.trainer.max_epochs or 1))) / 2

    def on_train_batch_start(self, batch: dict[str, Batch], batch_idx: int) -> None:
        """Puts everything that depends on the place in the run into its state; nothing of it is remembered."""
        torch.manual_seed(derived_seed(run_seed(), _STEP, self.current_epoch, batch_idx, self.global_rank))
        for group in cast("Any", self.optimizers()).param_groups:
            group["lr"] = self.learning_rate_at(self.current_epoch)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips all gradients together, whatever the trainer says."""
        self.finite.clip(self.trainer, "gradient", self.network.parameters(), self.clip_norm)

    def configure_callbacks(self) -> list[Callback]:
        """Lets a watch stop the run where it diverges."""
        return [self.finite]

    def configure_model(self) -> None:
        """Builds the network for the data at hand."""
        if hasattr(self, "network"):
            return
        torch.manual_seed(derived_seed(run_seed(), _INITIALISATION))
        num_classes = self._data.num_classes
        self.network = DiscreteNetwork(
            self.genotype,
            self.num_cells,
            self.init_channels,
            num_classes,
            auxiliary=self.auxiliary_weight > 0,
            stem=self.stem,
        )
        self.mean_loss, self.accuracy = MeanMetric(), MulticlassAccuracy(num_classes, average="micro")

    def configure_optimizers(self) -> Optimizer:
        """Returns the optimizer."""
        return SGD(self.network.parameters(), self.learning_rate, self.momentum, weight_decay=self.weight_decay)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what the checkpoint is of."""
        own = {**self._header(), "seed": run_seed(), "signature": self._data.signature.state()}
        checkpoint[HEADER] = {**checkpoint.get(HEADER, {}), **own}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checks that the checkpoint is of this network and these classes, and prepares pictures as it is used to.

        Raises:
            InputError: If it is not.
        """
        check_header(checkpoint, self._header())
        if self.trainer.state.fn == TrainerFn.FITTING:
            check_header(checkpoint, {"seed": run_seed()})
        self._data.follow(Signature.from_state(checkpoint[HEADER].get("signature"), "The checkpoint"))

    @property
    def _data(self) -> ImageData:
        data: ImageData = cast("Any", self.trainer).datamodule
        return data

    def _header(self) -> dict[str, Any]:
        return {
            "kind": "retrain",
            "genotype": self.genotype.to_json(),
            "num_cells": self.num_cells,
            "init_channels": self.init_channels,
            "stem": self.stem,
            "auxiliary": self.network.auxiliary is not None,
            "num_classes": self.network.classifier.out_features,
        }
