"""The search: one supernet, its architecture parameters, and the loop that trains both in turn.

    python -m dartslight fit --config configs/quickstart.yaml
    python -m dartslight fit --config configs/cifar10/darts_pt.yaml
    python -m dartslight fit --ckpt_path runs/quickstart/version_0/checkpoints/last.ckpt

`SearchModule.training_step` is the loop. Papers: DARTS (https://arxiv.org/abs/1806.09055) for the two levels, DARTS-PT
(https://arxiv.org/abs/2108.04392) for the settings, which are the defaults here. One departure from the published code:
training and validation batches come from passes over their halves, where the code draws each batch anew from a fresh
shuffle.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.func import functional_call
from torch.optim import SGD, Adam, Optimizer

from dartslight.data import Batch
from dartslight.errors import InputError, check_least
from dartslight.modules.checkpoint import HEADER, check_header
from dartslight.modules.finite import FiniteWatch
from dartslight.nets import Supernet
from dartslight.seeding import derived_seed, run_seed
from dartslight.selection import Tuning
from dartslight.spaces import Choices, find_space
from dartslight.strategies import (
    Architecture,
    ArchitectureGradient,
    Bilevel,
    FirstOrder,
    Relaxation,
    Softmax,
    detached,
)

_INITIALISATION, _STEP = 1, 2  # what a derived seed is for


class _Optimizers(NamedTuple):
    weights: LightningOptimizer
    alphas: LightningOptimizer


class SearchModule(LightningModule):
    """Trains a supernet and its architecture parameters; a selection rule decides it afterwards.

    Args:
        space: Name of the search space (nasbench201, darts, darts8, s1, s2, s3, s4), or the import path of your own.
        num_cells: Number of searched cells in the supernet; for NAS-Bench-201 in all three stages together.
        init_channels: Channels of the first cell's operations.
        relaxation: How architecture parameters become mixing weights; null is a softmax.
        gradient: How the validation loss moves the architecture parameters; null is first order.
        learning_rate: Learning rate of the operation weights in the first epoch.
        min_learning_rate: Learning rate that the cosine schedule ends at.
        momentum: Momentum of the operation weights' optimizer.
        weight_decay: Weight decay of the operation weights.
        clip_norm: Largest L2 norm of all weight gradients together; larger ones are scaled down.
        alpha_learning_rate: Learning rate of the architecture parameters.
        alpha_weight_decay: Weight decay of the architecture parameters.
        alpha_init_std: Standard deviation of the initial architecture parameters.
        alpha_warmup_epochs: Epochs at the start in which the architecture parameters stay as they are.
        track_statistics: Whether batch normalisations keep running statistics and use them in evaluation; without them
            evaluation uses the statistics of each batch.
        checkpoint_cells: Whether a step keeps only what goes in and out of each cell and computes the cell again for
            its derivative: the same numbers with less memory and more time. Not with second-order gradients.
        compile: A mode of torch's compiler for the supernet, such as ``reduce-overhead`` (CUDA graphs) or ``default``;
            null runs it as it is. Not with second-order gradients, nor with checkpoint_cells.
        matmul_precision: Precision of float32 products on a GPU: ``highest``, or ``high`` for TF32, which is faster and
            keeps 10 bits of the fraction.
    """

    def __init__(
        self,
        space: str = "nasbench201",
        num_cells: int = 15,
        init_channels: int = 16,
        relaxation: Relaxation | None = None,
        gradient: ArchitectureGradient | None = None,
        learning_rate: float = 0.025,
        min_learning_rate: float = 0.001,
        momentum: float = 0.9,
        weight_decay: float = 3e-4,
        clip_norm: float = 5.0,
        alpha_learning_rate: float = 3e-4,
        alpha_weight_decay: float = 1e-3,
        alpha_init_std: float = 1e-3,
        alpha_warmup_epochs: int = 0,
        track_statistics: bool = True,
        checkpoint_cells: bool = False,
        compile: Literal["default", "reduce-overhead", "max-autotune"] | None = None,
        matmul_precision: Literal["highest", "high"] = "highest",
    ) -> None:
        super().__init__()
        check_least(
            0,
            learning_rate=learning_rate,
            min_learning_rate=min_learning_rate,
            momentum=momentum,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            alpha_learning_rate=alpha_learning_rate,
            alpha_weight_decay=alpha_weight_decay,
            alpha_init_std=alpha_init_std,
            alpha_warmup_epochs=alpha_warmup_epochs,
        )
        self.automatic_optimization = False
        self.space = find_space(space)
        self.num_cells, self.init_channels, self.track_statistics = num_cells, init_channels, track_statistics
        self.relaxation, self.gradient = relaxation or Softmax(), gradient or FirstOrder()
        self.checkpoint_cells = checkpoint_cells
        if checkpoint_cells and self.gradient.moves_weights:
            raise InputError(
                "checkpoint_cells computes cells again with the network's own weights, but "
                f"{type(self.gradient).__name__} needs them at others; use FirstOrder or Fixed, or smaller batches "
                "without checkpoint_cells."
            )
        if compile is not None and (checkpoint_cells or self.gradient.moves_weights):
            raise InputError(
                f"compile is {compile!r}, but a compiled supernet can be neither differentiated twice nor run with "
                "checkpoint_cells; use FirstOrder or Fixed without checkpoint_cells, or no compile."
            )
        self.compile_mode, self.matmul_precision = compile, matmul_precision
        self.learning_rate, self.min_learning_rate = learning_rate, min_learning_rate
        self.momentum, self.weight_decay, self.clip_norm = momentum, weight_decay, clip_norm
        self.alpha_learning_rate, self.alpha_weight_decay = alpha_learning_rate, alpha_weight_decay
        self.alpha_init_std, self.alpha_warmup_epochs = alpha_init_std, alpha_warmup_epochs
        self.choices = Choices.everything(self.space)
        self.finite = FiniteWatch()
        self.search_epochs: int | None = None
        self.tuning, self.tuning_epochs = Tuning(), 0

    # ------------------------------------------------------------------ the loop

    def training_step(self, batch: dict[str, Batch], batch_idx: int) -> None:
        """Takes one architecture step on the validation batch, then one weight step on the training batch."""
        optimizers = self._start_step(batch_idx)
        if self._learns_architecture:
            with self._passes():
                gradients = self.gradient(self._problem(batch, optimizers.weights))
            self._assign_alpha_gradients(gradients)
            optimizers.alphas.step()
        optimizers.weights.zero_grad()
        mixing = detached(self.architecture(self.choices))
        logits = self.supernet(batch["train"].images, mixing, self.choices)
        loss = F.cross_entropy(logits, batch["train"].labels)
        self.manual_backward(loss)
        optimizers.weights.step()
        self.share_statistics()
        self._log("train", loss, logits, batch["train"])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measures the mixture as it is on validation pictures; this monitors and decides nothing."""
        logits = self.supernet(batch.images, self.architecture(self.choices), self.choices)
        self._log("val", F.cross_entropy(logits, batch.labels), logits, batch)

    # ------------------------------------------------------------------ its parts

    @property
    def is_tuning(self) -> bool:
        """Whether the search is over and the supernet is fine-tuned between decisions."""
        return self.search_epochs is not None and self.current_epoch >= self.search_epochs

    @property
    def _learns_architecture(self) -> bool:
        if self.is_tuning and not self.tuning.train_alphas:
            return False
        return self.gradient.learns and self.current_epoch >= self.alpha_warmup_epochs

    def learning_rate_at(self, epoch: int) -> float:
        """Returns the learning rate of the operation weights in an epoch: a cosine in the search, then the tuning's."""
        assert self.search_epochs is not None
        if epoch < self.search_epochs:
            return _cosine(self.learning_rate, self.min_learning_rate, epoch / self.search_epochs)
        if self.tuning.schedule == "constant":
            return self.tuning.learning_rate
        fraction = (epoch - self.search_epochs) / max(1, self.tuning_epochs)
        return _cosine(self.tuning.learning_rate, min(self.min_learning_rate, self.tuning.learning_rate), fraction)

    def _start_step(self, batch_idx: int) -> _Optimizers:
        """Puts everything that depends on the place in the run into its state; nothing of it is remembered."""
        optimizers = _Optimizers(*cast("list[LightningOptimizer]", self.optimizers()))
        epoch = self.current_epoch
        torch.manual_seed(derived_seed(run_seed(), _STEP, epoch, batch_idx, self.global_rank))
        for group in optimizers.weights.param_groups:
            group["lr"] = self.learning_rate_at(epoch)
        if epoch == self.search_epochs and batch_idx == 0 and not self.tuning.warm_momentum:
            optimizers.weights.optimizer.state.clear()
        # Only the weight step counts as a step of the trainer. https://github.com/Lightning-AI/pytorch-lightning/issues/17958
        optimizers.alphas._on_before_step = optimizers.alphas._on_after_step = _nothing
        return optimizers

    @contextmanager
    def _passes(self) -> Iterator[None]:
        """Prepares the passes of the architecture gradient."""
        weights = nullcontext() if self.gradient.moves_weights else self.supernet.constant()
        full = torch.autocast(self.device.type, enabled=False) if self.gradient.full_precision else nullcontext()
        with weights, full:
            yield

    def _problem(self, batch: dict[str, Batch], weight_optimizer: LightningOptimizer) -> Bilevel:
        """States the two-level problem of this step for the architecture gradient."""
        names, weights = zip(*self.supernet.named_parameters(), strict=True)
        cells, alphas = zip(*self.architecture.alphas.items(), strict=True)

        def loss_on(part: Batch) -> Any:
            """Returns the loss on a batch as a function of weights and architecture parameters."""

            def loss(at_weights: Sequence[Tensor] | None, at_alphas: Sequence[Tensor]) -> Tensor:
                mixing = self.architecture(self.choices, dict(zip(cells, at_alphas, strict=True)))
                inputs = (part.images, mixing, self.choices)
                if at_weights is None:
                    return F.cross_entropy(self.supernet(*inputs), part.labels)
                # Copies of the buffers, so that a virtual step leaves the running statistics alone.
                state = {name: buffer.clone() for name, buffer in self.supernet.named_buffers()}
                state.update(zip(names, at_weights, strict=True))
                return F.cross_entropy(functional_call(self.supernet, state, inputs), part.labels)

            return loss

        states = weight_optimizer.optimizer.state
        (group,) = weight_optimizer.param_groups
        return Bilevel(
            train_loss=loss_on(batch["train"]),
            val_loss=loss_on(batch["val"]),
            weights=weights,
            alphas=alphas,
            learning_rate=group["lr"],
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            momentum_buffers=[states[w].get("momentum_buffer") if w in states else None for w in weights],
            average=self._average,
            loss_scale=1.0 if self._scaler is None else self._scaler.scale(torch.ones((), device=self.device)),
        )

    def _assign_alpha_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Gives the architecture parameters their gradient, averaged over all devices, where the optimizer looks."""
        for alpha, mean in zip(self.architecture.alphas.values(), self._average(gradients), strict=True):
            alpha.grad = mean if self._scaler is None else self._scaler.scale(mean)
            if self._scaler is None:
                self.finite.note("architecture gradient", self.global_step, mean)

    def _average(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Returns the means of tensors over all devices, in one message."""
        if self.trainer.world_size == 1:
            return tensors
        flat = torch.cat([t.reshape(-1) for t in tensors])
        torch.distributed.all_reduce(flat)  # the strategy's own reduction lets the processor wait at a barrier first
        means = torch.split_with_sizes(flat / self.trainer.world_size, [t.numel() for t in tensors])
        return [m.view_as(t) for m, t in zip(means, tensors, strict=True)]

    def share_statistics(self) -> None:
        """Gives all devices the mean of their running statistics, so that one checkpoint is the state of all."""
        running = [b for b in self.supernet.buffers() if b.dtype.is_floating_point]
        if running and self.trainer.world_size > 1:
            for buffer, mean in zip(running, self._average(running), strict=True):
                buffer.copy_(mean)

    @property
    def _scaler(self) -> Any:
        """What scales losses and gradients where numbers have 16 bits, or None."""
        return getattr(self.trainer.precision_plugin, "scaler", None)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clips the weight gradients; here they are unscaled in every precision."""
        if optimizer is cast("list[Optimizer]", self.optimizers(use_pl_optimizer=False))[0]:
            self.finite.clip(self.trainer, "weight gradient", self.supernet.parameters(), self.clip_norm)

    def configure_callbacks(self) -> list[Callback]:
        """Lets a watch stop the run where it diverges."""
        return [self.finite]

    def _log(self, part: str, loss: Tensor, logits: Tensor, batch: Batch) -> None:
        if part == "train":
            self.finite.note("loss", self.global_step, loss)
        values = {
            f"{part}/loss": loss.detach(),
            f"{part}/accuracy": (logits.argmax(dim=1) == batch.labels).float().mean(),
        }
        self.log_dict(values, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True, batch_size=len(batch.labels))

    # ------------------------------------------------------------------ set-up and checkpoints

    def configure_model(self) -> None:
        """Builds the supernet for the data at hand.

        Raises:
            InputError: If there are no pictures for the validation batches.
        """
        if hasattr(self, "supernet"):
            return
        if not cast("Any", self.trainer).datamodule.has_val:
            raise InputError(
                "A search needs val pictures, but train_portion is 1.0; give less, such as --data.train_portion 0.5."
            )
        torch.manual_seed(derived_seed(run_seed(), _INITIALISATION))
        num_classes = cast("Any", self.trainer).datamodule.num_classes
        self.supernet = Supernet(
            self.space, self.num_cells, self.init_channels, num_classes, self.track_statistics, self.checkpoint_cells
        )
        if self.compile_mode is not None:
            self.supernet.capture(self.compile_mode)
        torch.set_float32_matmul_precision(self.matmul_precision)
        torch.backends.cudnn.allow_tf32 = self.matmul_precision != "highest"
        self.architecture = Architecture(self.space, self.relaxation, self.alpha_init_std)
        # Their gradient is averaged by hand, so the data-parallel wrapper must not wait for it.
        self._ddp_params_and_buffers_to_ignore = [
            name for name, _ in self.named_parameters() if name.startswith("architecture.")
        ]

    def configure_optimizers(self) -> list[Optimizer]:
        """Returns SGD for the operation weights and Adam for the architecture parameters."""
        return [
            SGD(self.supernet.parameters(), self.learning_rate, self.momentum, weight_decay=self.weight_decay),
            Adam(
                self.architecture.parameters(),
                self.alpha_learning_rate,
                betas=(0.5, 0.999),
                weight_decay=self.alpha_weight_decay,
            ),
        ]

    def on_fit_start(self) -> None:
        """Learns the length of the search from the trainer, unless a selection has told it."""
        if self.search_epochs is None:
            self.search_epochs = self.trainer.max_epochs

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what the checkpoint is of, and what has been decided."""
        checkpoint[HEADER] = {
            **checkpoint.get(HEADER, {}),
            **self._header(),
            "choices": self.choices.state(),
            "epochs": cast("Any", self.trainer.fit_loop.epoch_progress.current).processed,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores what has been decided.

        Raises:
            InputError: If the checkpoint is of another kind of run or another space.
        """
        check_header(checkpoint, self._header())
        self.choices = Choices.from_state(checkpoint[HEADER]["choices"])

    def _header(self) -> dict[str, Any]:
        return {
            "kind": "search",
            "space": self.space.name,
            "num_cells": self.num_cells,
            "init_channels": self.init_channels,
            "track_statistics": self.track_statistics,
            "seed": run_seed(),
            "num_classes": self.supernet.classifier.out_features,
        }


def _cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * fraction)) / 2


def _nothing() -> None:
    """Stands in for a hook."""
