"""Which picture comes when: pure functions of seed, epoch, rank and number of devices, so a run can go on anywhere."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dartslight.data.pictures import Pictures
from dartslight.seeding import derived_seed

_ORDER, _AUGMENTATION = 10, 11  # what a derived seed is for
_TRAIN, _VAL = 0, 1


class Batch(NamedTuple):
    """Some pictures.

    Args:
        images: Raw uint8 from a loader, normalised float32 in a step, (batch, 3, height, width).
        labels: Class indices, (batch,).
        seed: What the augmentation draws from, -1 for none.
    """

    images: Tensor
    labels: Tensor
    seed: int


class _Epoch:
    """What Lightning tells the epoch to."""

    def __init__(self) -> None:
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class Batches:
    """The batches of training: ``{"train": …, "val": …}``, or ``{"train": …}`` where there is no val half.

    Step b of an epoch takes the b-th ``batch_size * world_size`` pictures of a permutation of the train half, each rank
    its own consecutive part. The val half has a permutation of its own; a smaller half goes round again.

    Args:
        pictures: The pictures.
        train: Indices of the train half.
        val: Indices of the val half, which may be empty.
        batch_size: Pictures for each device and step.
        seed: The run's seed.
        augment_val: Whether the val pictures are augmented.
        rank: Number of this device.
        world_size: Number of devices.
    """

    def __init__(
        self,
        pictures: Pictures,
        train: Tensor,
        val: Tensor,
        batch_size: int,
        seed: int,
        augment_val: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.pictures, self.train, self.val = pictures, train, val
        self.batch_size, self.seed, self.augment_val = batch_size, seed, augment_val
        self.rank, self.world_size = rank, world_size
        self.sampler = _Epoch()
        self._start = self._next = 0

    def __len__(self) -> int:
        return math.ceil(len(self.train) / (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[dict[str, Batch]]:
        # Lightning makes the iterator before it tells the epoch, so both are read at the first step.
        start, self._start = self._start, 0
        epoch = self.sampler.epoch
        for step in range(start, len(self)):
            self._next = step + 1
            yield self.at(epoch, step)

    def at(self, epoch: int, step: int) -> dict[str, Batch]:
        """Returns the batch of one step."""
        first = step * self.batch_size * self.world_size
        count = min(self.batch_size * self.world_size, len(self.train) - first)
        each = -(-count // self.world_size)  # the last, smaller batch is filled up so that all ranks get equally many
        first += self.rank * each
        batch = {"train": self._part(self.train, _TRAIN, epoch, step, first, each, augmented=True)}
        if len(self.val):
            batch["val"] = self._part(self.val, _VAL, epoch, step, first, each, augmented=self.augment_val)
        return batch

    def _part(self, half: Tensor, which: int, epoch: int, step: int, first: int, count: int, augmented: bool) -> Batch:
        rounds = range(first // len(half), (first + count - 1) // len(half) + 1)
        orders = [self._order(len(half), which, epoch, round_) for round_ in rounds]
        offset = first - rounds[0] * len(half)
        chosen = half[torch.cat(orders)[offset : offset + count]]
        seed = derived_seed(self.seed, _AUGMENTATION, which, epoch, step, self.rank) if augmented else -1
        return Batch(self.pictures.images[chosen], self.pictures.labels[chosen], seed)

    def _order(self, length: int, which: int, epoch: int, round_: int) -> Tensor:
        key = (length, which, epoch, round_)
        if getattr(self, "_cached", {}).get(which, (None,))[0] != key:
            generator = torch.Generator().manual_seed(derived_seed(self.seed, _ORDER, which, epoch, round_))
            self._cached = {**getattr(self, "_cached", {}), which: (key, torch.randperm(length, generator=generator))}
        order: Tensor = self._cached[which][1]
        return order

    def state_dict(self) -> dict[str, Any]:
        """Returns the step that comes next in the epoch; Lightning keeps the epoch itself."""
        return {"next": self._next % len(self)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on at the step that `state_dict` returned."""
        self._start = self._next = state_dict["next"]


class EvaluationBatches:
    """Batches of some pictures in a given order, each once.

    Args:
        pictures: The pictures.
        indices: Which of them, in this order.
        batch_size: Pictures in a batch.
        seed: Seeds the augmentation, or None for none.
        limit: Largest number of batches, or None for all.
        rank: Number of this device.
        world_size: Number of devices among which the pictures are divided.
    """

    def __init__(
        self,
        pictures: Pictures,
        indices: Tensor,
        batch_size: int,
        seed: int | None = None,
        limit: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        own = indices[rank::world_size]
        self.pictures, self.seed, self.rank = pictures, seed, rank
        self._parts = list(torch.split(own, batch_size))[:limit]

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[Batch]:
        for b, part in enumerate(self._parts):
            seed = -1 if self.seed is None else derived_seed(self.seed, _AUGMENTATION, b, self.rank)
            yield Batch(self.pictures.images[part], self.pictures.labels[part], seed)
