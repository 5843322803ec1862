"""The search: one supernet, its architecture parameters, and the loop that trains both in turn.

    python -m dartslight fit --config configs/quickstart.yaml
    python -m dartslight fit --config configs/cifar10/darts_pt.yaml
    python -m dartslight fit --ckpt_path runs/quickstart/version_0/checkpoints/last.ckpt

`SearchModule.training_step` is the loop. Papers: DARTS (https://arxiv.org/abs/1806.09055) for the two levels, DARTS-PT
(https://arxiv.org/abs/2108.04392) for the settings, which are the defaults here. One departure from the published code:
training and validation batches come from passes over their halves, where the code draws each batch anew from a fresh
shuffle.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from dartslight.data import Batch
from dartslight.errors import InputError, check_least
from dartslight.modules.checkpoint import HEADER, check_header
from dartslight.modules.devices import average, on_first, share_statistics
from dartslight.modules.finite import FiniteWatch
from dartslight.modules.passes import Passes
from dartslight.modules.sensitivities import SeenSensitivities
from dartslight.modules.timetable import Stage, Timetable, check_stages
from dartslight.nets import NO_DROP, Drop, EdgeTerm, Mixing, Supernet, widen
from dartslight.seeding import derived_seed, run_seed
from dartslight.selection import SearchPlan, Sensitivities, Tuning
from dartslight.spaces import Choices, find_space
from dartslight.strategies import (
    Architecture,
    ArchitectureGradient,
    AuxiliarySkip,
    Bilevel,
    Expectation,
    FirstOrder,
    Relaxation,
    Smoothing,
    Softmax,
    check_combination,
    check_space,
)

_SENSITIVITIES = "sensitivities"  # what a checkpoint calls them
_INITIALISATION, _STEP, _STAGE, _COSTS = 1, 2, 7, 8  # what a derived seed is for


class _Optimizers(NamedTuple):
    weights: LightningOptimizer
    alphas: LightningOptimizer


class SearchModule(LightningModule):
    """Trains a supernet and its architecture parameters; a selection rule decides it afterwards.

    Args:
        space: Name of the search space (nasbench201, darts, darts8, s1, s2, s3, s4, unas, mobile, mobile_small), or the
            import path of your own.
        num_cells: Number of searched cells in the supernet; for NAS-Bench-201 in all three stages together, for mobile
            21 layers, for mobile_small 9.
        init_channels: Channels of the first cell's operations.
        relaxation: How architecture parameters become mixing weights; null is a softmax.
        gradient: How the validation loss moves the architecture parameters; null is first order.
        smoothing: How the mixing weights are disturbed in a weight step (SDARTS); null leaves them.
        partial_channels: The operations of an edge see one in so many channels, the others pass by (PC-DARTS); 1 for
            all channels.
        edge_normalisation: Whether the edges into a node have weights of their own, which sum to 1 (PC-DARTS).
        auxiliary_skip: How the weight of a skip connection on every edge, which is never chosen, falls from 1 to 0 over
            the search (DARTS-): ``linear`` or ``cosine``; null for no such skip connection.
        stages: The stages of a search whose supernet grows (P-DARTS, DrNAS); they take the place of num_cells and
            partial_channels; null for one stage.
        normalise_pools: Whether a batch normalisation follows every pooling of the DARTS spaces (DrNAS: no);
            NAS-Bench-201 has none.
        drop_path: Probability, in the last epoch of the search, with which a picture loses the whole output of an edge
            in a weight step (R-DARTS); it grows linearly from 0. The published code drops in the architecture step as
            well, where it would drown the differences of the second order.
        learning_rate: Learning rate of the operation weights in the first epoch of a stage.
        min_learning_rate: Learning rate that the cosine schedule of a stage ends at.
        weight_optimizer: Optimizer of the operation weights: ``sgd`` with momentum, or ``adam`` (UNAS).
        momentum: Momentum of the operation weights' optimizer; of Adam its first beta.
        nesterov: Whether that momentum is Nesterov's.
        weight_decay: Weight decay of the operation weights.
        clip_norm: Largest L2 norm of all weight gradients together; larger ones are scaled down.
        alpha_learning_rate: Learning rate of the architecture parameters.
        alpha_min_learning_rate: Learning rate of the architecture parameters that a cosine schedule over the search
            ends at (UNAS); null keeps it as it is.
        alpha_weight_decay: Weight decay of the architecture parameters.
        alpha_momentum: Share of the last gradient's mean that their optimizer keeps (the first beta of Adam).
        alpha_clip_norm: Largest L2 norm of their gradients together; null for no limit.
        alpha_init_std: Standard deviation of the initial architecture parameters.
        reference_batch_size: Pictures in the batches of all devices together that the learning rates of the search are
            meant for (UNAS: 64); other batches scale all of them by their share of it. Null never scales them.
        alpha_warmup_epochs: Epochs at the start of each stage in which the architecture parameters stay as they are.
        sensitivity_epochs: Epochs at the end of the last stage whose architecture steps keep the sensitivity of their
            loss to each mixing weight, for the rule Sensitivity; null for the whole stage.
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
        smoothing: Smoothing | None = None,
        partial_channels: int = 1,
        edge_normalisation: bool = False,
        auxiliary_skip: AuxiliarySkip | None = None,
        stages: list[Stage] | None = None,
        normalise_pools: bool = True,
        drop_path: float = 0.0,
        learning_rate: float = 0.025,
        min_learning_rate: float = 0.001,
        weight_optimizer: Literal["sgd", "adam"] = "sgd",
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 3e-4,
        clip_norm: float = 5.0,
        alpha_learning_rate: float = 3e-4,
        alpha_min_learning_rate: float | None = None,
        alpha_weight_decay: float = 1e-3,
        alpha_momentum: float = 0.5,
        alpha_clip_norm: float | None = None,
        alpha_init_std: float = 1e-3,
        reference_batch_size: int | None = None,
        alpha_warmup_epochs: int = 0,
        sensitivity_epochs: int | None = 3,
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
            alpha_min_learning_rate=alpha_min_learning_rate,
            alpha_weight_decay=alpha_weight_decay,
            alpha_init_std=alpha_init_std,
            alpha_warmup_epochs=alpha_warmup_epochs,
            sensitivity_epochs=sensitivity_epochs,
            alpha_momentum=alpha_momentum,
            alpha_clip_norm=alpha_clip_norm,
            drop_path=drop_path,
        )
        check_least(1, reference_batch_size=reference_batch_size)
        if drop_path >= 1 or alpha_momentum >= 1:
            raise InputError(
                f"drop_path is {drop_path} and alpha_momentum {alpha_momentum}, but they must be below 1; give smaller "
                "numbers."
            )
        if weight_optimizer not in ("sgd", "adam"):
            raise InputError(f"weight_optimizer is {weight_optimizer!r}, but it must be sgd or adam; give one of them.")
        self.automatic_optimization = False
        self.space = find_space(space)
        self.init_channels, self.track_statistics = init_channels, track_statistics
        self.normalise_pools = normalise_pools
        self.stages = [Stage(num_cells, partial_channels)] if stages is None else stages
        check_stages(self.stages)
        self.relaxation, self.gradient = relaxation or Softmax(), gradient or FirstOrder()
        self.smoothing, self.drop_path = smoothing, drop_path
        self.edge_normalisation, self.auxiliary_skip = edge_normalisation, auxiliary_skip
        self.checkpoint_cells = checkpoint_cells
        drops = max(drop_path, *(stage.skip_dropout for stage in self.stages))
        check_combination(
            self.relaxation, self.gradient, smoothing, drops, checkpoint_cells, compile, edge_normalisation
        )
        check_space(
            self.space,
            self.relaxation,
            [stage.num_cells for stage in self.stages],
            any(stage.partial_channels > 1 for stage in self.stages),
            auxiliary_skip is not None,
            drop_path,
        )
        self.gradient.prepare(self.space, self.relaxation)
        uses_sgd = [
            what
            for what, is_so in {
                f"the gradient {type(self.gradient).__name__}": self.gradient.moves_weights,
                "a stage that starts widened": any(stage.start == "widened" for stage in self.stages),
                "nesterov": nesterov,
            }.items()
            if is_so
        ]
        if weight_optimizer != "sgd" and uses_sgd:
            raise InputError(f"weight_optimizer is adam, but {uses_sgd[0]} needs the momentum of SGD; use sgd.")
        self.weight_optimizer, self.reference_batch_size = weight_optimizer, reference_batch_size
        self.compile_mode, self.matmul_precision = compile, matmul_precision
        self.learning_rate, self.min_learning_rate = learning_rate, min_learning_rate
        self.momentum, self.nesterov, self.weight_decay, self.clip_norm = momentum, nesterov, weight_decay, clip_norm
        self.alpha_momentum, self.alpha_clip_norm = alpha_momentum, alpha_clip_norm
        self.alpha_min_learning_rate = alpha_min_learning_rate
        self.alpha_learning_rate, self.alpha_weight_decay = alpha_learning_rate, alpha_weight_decay
        self.alpha_init_std, self.alpha_warmup_epochs = alpha_init_std, alpha_warmup_epochs
        self.sensitivity_epochs = sensitivity_epochs
        self.choices = Choices.everything(self.space)
        self._seen = SeenSensitivities({cell.name: cell.num_ops for cell in self.space.cells})
        self.finite = FiniteWatch()
        self.search_epochs: int | None = None
        self._measured_after: int | None = None  # epochs of the checkpoint that validate measures
        self.tuning, self.tuning_epochs = Tuning(), 0

    # ------------------------------------------------------------------ the loop

    def training_step(self, batch: dict[str, Batch], batch_idx: int) -> None:
        """Takes one architecture step on the validation batch, then one weight step on the training batch."""
        optimizers = self._start_step(batch_idx)
        passes = self.passes
        if self.learns_architecture:
            gradients = self.alpha_gradients(passes, batch, batch_idx, optimizers.weights.optimizer)
            self._assign_alpha_gradients(gradients, self._seen.of_step(passes.loss_scale))
            optimizers.alphas.step()
            if seen := self.gradient.seen():
                self.log_dict(seen, on_step=False, on_epoch=True, sync_dist=True, batch_size=1)
        optimizers.weights.zero_grad()
        mixing, computed = passes.weight_sample(batch["train"], self.smoothing)
        logits = self.supernet(batch["train"].images, mixing, computed, passes.drop)
        loss = F.cross_entropy(logits, batch["train"].labels)
        self.manual_backward(loss)
        optimizers.weights.step()
        share_statistics(self.trainer, self.supernet)
        self._log("train", loss, logits, batch["train"])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measures the mixture as it is on validation pictures; this monitors and decides nothing."""
        logits = self.supernet(batch.images, self.mixing(self.choices), self.choices)
        self._log("val", F.cross_entropy(logits, batch.labels), logits, batch)

    # ------------------------------------------------------------------ its parts

    @property
    def is_tuning(self) -> bool:
        """Whether the search is over and the supernet is fine-tuned between decisions."""
        return self.search_epochs is not None and self.current_epoch >= self.search_epochs

    def _teaches(self, epoch: int) -> bool:
        """Whether architecture parameters that learn at all do so in an epoch."""
        return self.tuning.train_alphas if epoch >= self.timetable.epochs else self.timetable.teaches(epoch)

    def alpha_gradients(
        self, passes: Passes, batch: dict[str, Batch], batch_idx: int, weight_optimizer: Optimizer, draw: int = 0
    ) -> Sequence[Tensor]:
        """Returns the gradients of the architecture parameters on this device's part of a pair of batches.

        Args:
            passes: The passes of the step.
            batch: The batches ``train`` and ``val``.
            batch_idx: Number of the step in its epoch.
            weight_optimizer: The optimizer of the operation weights.
            draw: Which of several draws of architectures to be measured; the step itself takes the first.
        """
        problem = self._problem(passes, batch, batch_idx, weight_optimizer, draw)
        with passes.prepared(self.gradient):
            return self.gradient(problem)

    def _problem(
        self, passes: Passes, batch: dict[str, Batch], batch_idx: int, weight_optimizer: Optimizer, draw: int
    ) -> Bilevel | Expectation:
        """States what the architecture gradient has to solve in this step."""
        if not self.gradient.draws:
            return passes.problem(batch, self.gradient, weight_optimizer, self._average)
        epoch = self.current_epoch
        taught = sum(self._teaches(earlier) for earlier in range(epoch))
        return passes.expectation(
            batch,
            seed=derived_seed(run_seed(), _COSTS, epoch, batch_idx, draw),
            step=taught * int(self.trainer.num_training_batches) + batch_idx,
            average=self._average,
            on_first=functools.partial(on_first, self.trainer),
        )

    @functools.cached_property
    def timetable(self) -> Timetable:
        """What is when in this search."""
        assert self.search_epochs is not None
        return Timetable(self.stages, self.search_epochs, self.alpha_warmup_epochs)

    def search_plan(self, is_over: bool) -> SearchPlan:
        """Returns what a selection rule is told of this search.

        Args:
            is_over: Whether it ended before this run.
        """
        timetable = self.timetable
        seen = [e for e in range(timetable.epochs) if timetable.is_among_last(e, self.sensitivity_epochs)]
        return SearchPlan(
            space=self.space,
            epochs=timetable.epochs,
            stage_ends=timetable.ends,
            learns=self.gradient.learns,
            untaught=timetable.untaught,
            is_over=is_over,
            draws_inputs=self.relaxation.draws_inputs,
            sees=self.gradient.learns and not self.gradient.draws and any(map(timetable.teaches, seen)),
        )

    @property
    def supernet(self) -> Supernet:
        """The supernet of the present stage."""
        if len(self.stages) == 1:
            return cast("Supernet", self.supernets[0])
        # What a checkpoint at the end of a stage holds is the supernet of that stage.
        epoch = self.current_epoch if self._measured_after is None else max(0, self._measured_after - 1)
        return cast("Supernet", self.supernets[self.timetable.stage(epoch)])

    @property
    def progress(self) -> float:
        """The share of the search that was over when this epoch began, from 0 to 1."""
        return self.timetable.progress(self.current_epoch if self._measured_after is None else self._measured_after)

    def seen_sensitivities(self) -> Sensitivities:
        """Returns the sensitivities that the architecture steps of the last epochs of the search have seen.

        Raises:
            InputError: If there were no such steps.
        """
        samples = {cell: found.double() for cell, found in self._seen.samples().items()}
        if len(samples) < len(self.space.cells):
            raise InputError(
                "The search has ended before its last epochs, which see sensitivities; give source: validation."
            )
        pictures = cast("Any", self.trainer).datamodule.batch_size * self.trainer.world_size
        return Sensitivities(samples, pictures * self._seen.steps)

    def mixing(self, choices: Choices, epochs: int | None = None) -> Mixing:
        """Returns the mixing weights that the supernet is measured and decided with.

        Args:
            choices: The operations that are open.
            epochs: Number of finished epochs; None for the start of this epoch.
        """
        progress = self.progress if epochs is None else self.timetable.progress(epochs)
        mixing: Mixing = self.architecture(choices, progress)
        return mixing

    @property
    def learns_architecture(self) -> bool:
        """Whether the architecture parameters learn in this epoch."""
        return self.gradient.learns and self._teaches(self.current_epoch)

    @property
    def passes(self) -> Passes:
        """The passes of a step of this epoch."""
        watch = self._seen.watch if self.timetable.is_among_last(self.current_epoch, self.sensitivity_epochs) else None
        return Passes(
            supernet=self.supernet,
            architecture=self.architecture,
            choices=self.choices,
            progress=self.progress,
            position=self.timetable.position(self.current_epoch),
            drop=self._drop,
            loss_scale=self._loss_scale,
            watch=watch,
        )

    @property
    def _drop(self) -> Drop:
        """What a weight step leaves out at random."""
        skip = self.timetable.skip_dropout(self.current_epoch)
        return (
            Drop(edge=self.drop_path * self.timetable.position(self.current_epoch), skip=skip)
            if self.drop_path or skip
            else NO_DROP
        )

    def learning_rate_at(self, epoch: int) -> float:
        """Returns the learning rate of the operation weights in an epoch: a cosine in the search, then the tuning's."""
        search_epochs = self.timetable.epochs
        if epoch < search_epochs:
            rate = _cosine(self.learning_rate, self.min_learning_rate, self.timetable.training_progress(epoch))
            return rate * self._batch_share
        if self.tuning.schedule == "constant":
            return self.tuning.learning_rate
        fraction = (epoch - search_epochs) / max(1, self.tuning_epochs)
        return _cosine(self.tuning.learning_rate, min(self.min_learning_rate, self.tuning.learning_rate), fraction)

    def alpha_learning_rate_at(self, epoch: int) -> float:
        """Returns the learning rate of the architecture parameters in an epoch; the tuning goes on with the last."""
        rate = self.alpha_learning_rate
        if self.alpha_min_learning_rate is not None:
            in_search = epoch < self.timetable.epochs
            fraction = self.timetable.training_progress(epoch) if in_search else 1.0
            rate = _cosine(rate, self.alpha_min_learning_rate, fraction)
        return rate * self._batch_share

    @property
    def _batch_share(self) -> float:
        """What the learning rates of the search are multiplied by for the batches at hand."""
        if self.reference_batch_size is None:
            return 1.0
        pictures: int = cast("Any", self.trainer).datamodule.batch_size * self.trainer.world_size
        return pictures / self.reference_batch_size

    def _start_step(self, batch_idx: int) -> _Optimizers:
        """Puts everything that depends on the place in the run into its state; nothing of it is remembered."""
        optimizers = _Optimizers(*cast("list[LightningOptimizer]", self.optimizers()))
        epoch = self.current_epoch
        torch.manual_seed(derived_seed(run_seed(), _STEP, epoch, batch_idx, self.global_rank))
        for group in optimizers.weights.param_groups:
            group["lr"] = self.learning_rate_at(epoch)
        for group in optimizers.alphas.param_groups:
            group["lr"] = self.alpha_learning_rate_at(epoch)
        if batch_idx == 0 and epoch == self.search_epochs and not self.tuning.warm_momentum:
            optimizers.weights.optimizer.state.clear()
        if batch_idx == 0 and self.timetable.begins_stage(epoch):
            self._begin_stage(self.timetable.stage(epoch), optimizers)
        # Only the weight step counts as a step of the trainer. https://github.com/Lightning-AI/pytorch-lightning/issues/17958
        optimizers.alphas._on_before_step = optimizers.alphas._on_after_step = _nothing
        return optimizers

    def _begin_stage(self, stage: int, optimizers: _Optimizers) -> None:
        """Lets a stage but the first begin as it says: with nothing of the one before, or with all of it."""
        generator = torch.Generator().manual_seed(derived_seed(run_seed(), _STAGE, stage))
        if self.stages[stage].start == "widened":
            widen(self.supernets[stage], self.supernets[stage - 1], generator, optimizers.weights.optimizer)
        else:
            optimizers.weights.optimizer.state.clear()
            optimizers.alphas.optimizer.state.clear()
            self.architecture.initialise(generator)

    def _assign_alpha_gradients(self, gradients: Sequence[Tensor], seen: Sequence[Tensor]) -> None:
        """Gives the architecture parameters their gradient, averaged over all devices, where the optimizer looks."""
        both = self._average([*gradients, *seen])  # in one message
        means = both[: len(gradients)]
        self._seen.add(both[len(gradients) :])
        if self.alpha_clip_norm is not None:
            norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(mean) for mean in means]))
            means = [mean * (self.alpha_clip_norm / (norm + 1e-6)).clamp(max=1.0) for mean in means]
        for alpha, mean in zip(self.architecture.parameters(), means, strict=True):
            alpha.grad = mean if self._scaler is None else self._scaler.scale(mean)
            self.finite.note_gradient(self.trainer, "architecture gradient", mean)

    def _average(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return average(self.trainer, tensors)

    @property
    def _scaler(self) -> Any:
        """What scales losses and gradients where numbers have 16 bits, or None."""
        return getattr(self.trainer.precision_plugin, "scaler", None)

    @property
    def _loss_scale(self) -> Tensor | float:
        """What a loss is multiplied by while it is differentiated."""
        return 1.0 if self._scaler is None else self._scaler.scale(torch.ones((), device=self.device))

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clips the weight gradients; here they are unscaled in every precision."""
        if optimizer is cast("list[Optimizer]", self.optimizers(use_pl_optimizer=False))[0]:
            self.finite.clip(self.trainer, "weight gradient", self.supernet.weights, self.clip_norm)

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

    def setup(self, stage: str) -> None:
        """Tells the data-parallel wrapper that operations leave the graph as they are drawn and decided."""
        if isinstance(self.trainer.strategy, DDPStrategy):
            self.trainer.strategy._ddp_kwargs.setdefault("find_unused_parameters", True)

    def configure_model(self) -> None:
        """Builds the supernet for the data at hand.

        Raises:
            InputError: If there are no pictures for the validation batches.
        """
        if hasattr(self, "supernets"):
            return
        if not cast("Any", self.trainer).datamodule.has_val:
            raise InputError(
                "A search needs val pictures, but train_portion is 1.0; give less, such as --data.train_portion 0.5."
            )
        torch.manual_seed(derived_seed(run_seed(), _INITIALISATION))
        num_classes = cast("Any", self.trainer).datamodule.num_classes
        self.supernets = nn.ModuleList(self._built(stage, num_classes) for stage in self.stages)
        if self.compile_mode is not None:
            for supernet in self.supernets:
                cast("Supernet", supernet).capture(self.compile_mode)
        torch.set_float32_matmul_precision(self.matmul_precision)
        torch.backends.cudnn.allow_tf32 = self.matmul_precision != "highest"
        self.architecture = Architecture(
            self.space,
            self.relaxation,
            self.alpha_init_std,
            self.edge_normalisation,
            self.auxiliary_skip,
            cast("Supernet", self.supernets[0]).terms,
        )
        # Their gradient is averaged by hand, so the data-parallel wrapper must not wait for it; what a gradient
        # remembers is equal on all devices.
        self._ddp_params_and_buffers_to_ignore = [
            name for name in self.state_dict() if name.startswith(("architecture.", "gradient."))
        ]

    def initial_supernet(self, num_classes: int) -> Supernet:
        """Returns a supernet with the operation weights that the first stage of a search on a CPU begins with.

        Args:
            num_classes: Number of classes.
        """
        with torch.random.fork_rng([]):
            torch.manual_seed(derived_seed(run_seed(), _INITIALISATION))
            return self._built(self.stages[0], num_classes)

    def _built(self, stage: Stage, num_classes: int) -> Supernet:
        return Supernet(
            self.space,
            stage.num_cells,
            self.init_channels,
            num_classes,
            self.track_statistics,
            self.checkpoint_cells,
            stage.partial_channels,
            self._terms(),
            self.normalise_pools,
        )

    def configure_optimizers(self) -> list[Optimizer]:
        """Returns SGD or Adam for the operation weights and Adam for the architecture parameters."""
        weights, decay = self.supernets.parameters(), self.weight_decay
        if self.weight_optimizer == "adam":
            first: Optimizer = Adam(weights, self.learning_rate, betas=(self.momentum, 0.999), weight_decay=decay)
        else:
            first = SGD(weights, self.learning_rate, self.momentum, weight_decay=decay, nesterov=self.nesterov)
        return [
            first,
            Adam(
                self.architecture.parameters(),
                self.alpha_learning_rate,
                betas=(self.alpha_momentum, 0.999),
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
            "search_epochs": self.search_epochs,
            "epochs": cast("Any", self.trainer.fit_loop.epoch_progress.current).processed,
        }
        checkpoint[_SENSITIVITIES] = self._seen.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores what has been decided.

        Raises:
            InputError: If the checkpoint is of another kind of run or another space.
        """
        check_header(checkpoint, self._header())
        self.choices = Choices.from_state(checkpoint[HEADER]["choices"])
        self._seen.load(checkpoint[_SENSITIVITIES])
        if self.trainer.state.fn == TrainerFn.VALIDATING:
            self.search_epochs = checkpoint[HEADER]["search_epochs"]
            self._measured_after = checkpoint[HEADER]["epochs"]

    def _terms(self) -> tuple[EdgeTerm, ...]:
        """What edges carry beside their operations."""
        auxiliary: tuple[EdgeTerm, ...] = ("auxiliary_skip",) if self.auxiliary_skip else ()
        return (*auxiliary, "offset") if self.relaxation.samples_one else auxiliary

    def _header(self) -> dict[str, Any]:
        return {
            "kind": "search",
            "space": self.space.name,
            "num_cells": [stage.num_cells for stage in self.stages],
            "init_channels": self.init_channels,
            "track_statistics": self.track_statistics,
            "partial_channels": [stage.partial_channels for stage in self.stages],
            "normalise_pools": self.normalise_pools,
            "auxiliary_skip": self.auxiliary_skip is not None,
            "edge_normalisation": self.edge_normalisation,
            "seed": run_seed(),
            "num_classes": cast("Supernet", self.supernets[0]).classifier.out_features,
        }


def _cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * fraction)) / 2


def _nothing() -> None:
    """Stands in for a hook."""
