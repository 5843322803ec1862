"""Training steps for a trial, of which nothing is left afterwards."""

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch.optim import SGD

from dartslight.callbacks.live_supernet import undisturbed
from dartslight.data import Batch
from dartslight.modules import SearchModule
from dartslight.modules.devices import average
from dartslight.nets import Mixing
from dartslight.seeding import derived_seed, run_seed
from dartslight.spaces import Choices

_TRIAL = 53  # what a derived seed is for


@contextlib.contextmanager
def trial(module: SearchModule) -> Iterator[None]:
    """Puts the weights, their gradients, the running statistics and the random numbers back to what they were."""
    kept = {name: tensor.clone() for name, tensor in module.supernet.state_dict().items()}
    gradients = [(w, w.grad) for w in module.supernet.parameters()]
    for w, _ in gradients:
        w.grad = None  # what is added to it would be added to what is kept
    with undisturbed(module.device):
        try:
            yield
        finally:
            module.supernet.load_state_dict(kept)
            for w, gradient in gradients:
                w.grad = gradient


def fine_tune(
    trainer: Trainer,
    module: SearchModule,
    mixing: Mixing,
    choices: Choices,
    learning_rate: float,
    epochs: int,
    batches: int | None,
) -> None:
    """Takes weight steps at fixed mixing weights: full precision, nothing dropped, an optimizer without momentum yet.

    Args:
        trainer: The trainer.
        module: The search.
        mixing: The mixing weights.
        choices: What is open.
        learning_rate: Learning rate of the operation weights.
        epochs: Number of epochs, which see the batches of those after the search.
        batches: Number of steps instead; None for whole epochs.
    """
    weights = list(module.supernet.parameters())
    optimizer = SGD(weights, learning_rate, module.momentum, weight_decay=module.weight_decay, nesterov=module.nesterov)
    for step, batch in enumerate(itertools.islice(_batches(trainer, module, None if batches else epochs), batches)):
        torch.manual_seed(derived_seed(run_seed(), _TRIAL, step, trainer.global_rank))
        loss = F.cross_entropy(module.supernet(batch.images, mixing, choices), batch.labels)
        # No backward pass: it would set the data-parallel wrapper going.
        found = torch.autograd.grad(loss, weights, allow_unused=True)
        used = [(w, g) for w, g in zip(weights, found, strict=True) if g is not None]
        optimizer.zero_grad()
        for (w, _), mean in zip(used, average(trainer, [g for _, g in used]), strict=True):
            w.grad = mean
        torch.nn.utils.clip_grad_norm_(weights, module.clip_norm)
        optimizer.step()


def _batches(trainer: Trainer, module: SearchModule, epochs: int | None) -> Iterator[Batch]:
    """Yields the training batches of some epochs after the search, or of all, each as long as those of the run."""
    loader = cast("Any", trainer).datamodule.train_dataloader()
    length, first = cast("int", trainer.num_training_batches), cast("int", module.search_epochs)
    for epoch in itertools.count() if epochs is None else range(epochs):
        loader.set_epoch(first + epoch)
        for batch in itertools.islice(loader, length):
            yield trainer.strategy.batch_to_device({"train": batch["train"]})["train"]
