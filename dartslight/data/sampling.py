"""Which pictures a batch holds, as pure functions of the seed and of the batch's place in the run.

Nothing is remembered but the place, so a run that goes on anywhere, on any number of devices, sees the batches that it
would have seen without a stop.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dartslight.data.pictures import Pictures
from dartslight.errors import InputError
from dartslight.seeding import derived_seed

_ORDER, _TRAIN, _VAL, _AUGMENT, _EVALUATE = 12, 13, 14, 15, 16  # what a derived seed is for

UNCHANGED = -1
"""The seed of a batch that is not augmented."""


class Batch(NamedTuple):
    """Pictures for one step on one device."""

    images: Tensor
    """Bytes, (n, 3, height, width); after the transfer to the device normalised float32."""
    labels: Tensor
    """Class numbers, int64, (n,)."""
    seed: int
    """Seed of the augmentation; -1 leaves the pictures as they are."""


def epoch_order(length: int, seed: int, epoch: int) -> Tensor:
    """Returns a permutation of ``range(length)`` that follows from the seed and the epoch.

    Args:
        length: Number of elements.
        seed: Seed of the permutations.
        epoch: Number of the epoch, from 0.
    """
    generator = torch.Generator().manual_seed(derived_seed(seed, _ORDER, epoch))
    return torch.randperm(length, generator=generator)


class Batches:
    """The batches of training epochs: of the training half, and of the validation half beside it.

    An epoch goes through the training half once; its last batch may be smaller. If the validation half makes as many
    batches, the epoch goes through it once, too. Otherwise all its batches are full: a short half goes on from one
    permutation to the next, a long one is left where the epoch ends.

    Lightning tells the epoch to `sampler`, and keeps `state_dict` in its checkpoints.

    Args:
        pictures: The pictures.
        train: The numbers of the pictures in the training half.
        val: The numbers of the pictures in the validation half; None if there is none.
        batch_size: Pictures per device and batch.
        seed: Seed of orders and augmentation.
        rank: Number of this device, from 0.
        world_size: Number of devices. They share each batch of ``batch_size * world_size`` pictures; the training half
            is continued from its start until they can share it equally.
        augment_val: Whether the validation batches are augmented.
    """

    def __init__(
        self,
        pictures: Pictures,
        train: Tensor,
        val: Tensor | None,
        batch_size: int,
        seed: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        augment_val: bool = True,
    ) -> None:
        self.pictures, self.train, self.val = pictures, train, val
        self.seed, self.rank, self.world_size, self.augment_val = seed, rank, world_size, augment_val
        self.global_size = batch_size * world_size
        self._epoch = 0
        self._place = {"epoch": 0, "next_batch": 0}
        self._goes_on = False

    def __len__(self) -> int:
        """Returns the number of batches in an epoch."""
        return math.ceil(len(self.train) / self.global_size)

    @property
    def sampler(self) -> "Batches":
        """This object: Lightning calls the `set_epoch` of a loader's sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose batches follow.

        Args:
            epoch: Number of the epoch, from 0.
        """
        self._epoch = epoch

    def state_dict(self) -> dict[str, int]:
        """Returns the place of the batch that follows the last one given out."""
        return dict(self._place)

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Lets the next iteration begin where another one was, if it is of the same epoch.

        Args:
            state_dict: What `state_dict` returned.
        """
        self._place, self._goes_on = dict(state_dict), True

    def __iter__(self) -> Iterator[dict[str, Batch]]:
        """Gives out the batches of the epoch, from the place that was restored if there is one."""
        # In a generator this runs at the first batch. Lightning sets the epoch after it has made the iterator.
        epoch = self._epoch
        goes_on = self._goes_on and self._place["epoch"] == epoch
        start = self._place["next_batch"] if goes_on else 0
        self._goes_on = False
        train = self._train_order(epoch)
        val = None if self.val is None else self._val_order(self.val, epoch)
        for b in range(start, len(self)):
            batch = {"train": self._batch(train, epoch, b, _TRAIN, augmented=True)}
            if val is not None:
                batch["val"] = self._batch(val, epoch, b, _VAL, augmented=self.augment_val)
            self._place = {"epoch": epoch, "next_batch": b + 1}
            yield batch

    def _train_order(self, epoch: int) -> Tensor:
        """Returns the training half in the order of an epoch, repeated until all devices get equally much."""
        n = len(self.train)
        order = epoch_order(n, derived_seed(self.seed, _TRAIN), epoch)
        return self.train[order[torch.arange(self._divisible(n)) % n]]

    def _val_order(self, half: Tensor, epoch: int) -> Tensor:
        """Returns a half in the order of an epoch, as long as its batches need it."""
        n = len(half)
        once = math.ceil(n / self.global_size) == len(self)
        length = self._divisible(n) if once else len(self) * self.global_size
        cycles = range(math.ceil(length / n))
        orders = [epoch_order(n, derived_seed(self.seed, _VAL, cycle), epoch) for cycle in cycles]
        return half[torch.cat(orders)[:length]]

    def _divisible(self, length: int) -> int:
        return math.ceil(length / self.world_size) * self.world_size

    def _batch(self, order: Tensor, epoch: int, b: int, part: int, augmented: bool) -> Batch:
        shared = order[b * self.global_size : (b + 1) * self.global_size]
        mine = shared.chunk(self.world_size)[self.rank]
        seed = derived_seed(self.seed, _AUGMENT, epoch, b, self.rank, part) if augmented else UNCHANGED
        return Batch(self.pictures.images[mine], self.pictures.labels[mine], seed)


class EvaluationBatches:
    """The batches of an evaluation: every picture once, in the given order.

    All devices have equally many batches, since they wait for each other in each of them. For this the last batch may
    be larger by one picture on some devices.

    Args:
        pictures: The pictures.
        indices: The numbers of the pictures to evaluate on, in order.
        batch_size: Pictures per device and batch.
        rank: Number of this device, from 0.
        world_size: Number of devices; each takes every ``world_size``-th picture.
        limit: Largest number of batches; None for all.
        seed: Seed of the augmentation; None leaves the pictures as they are.

    Raises:
        InputError: If there are fewer pictures than devices.
    """

    def __init__(
        self,
        pictures: Pictures,
        indices: Tensor,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        limit: int | None = None,
        seed: int | None = None,
    ) -> None:
        if len(indices) < world_size:
            raise InputError(
                f"{world_size} devices cannot share {len(indices)} pictures in an evaluation; use at most "
                f"{len(indices)} devices, as in --trainer.devices 1."
            )
        self.pictures, self.batch_size, self.rank, self.seed = pictures, batch_size, rank, seed
        self.mine = indices[rank::world_size]
        full, rest = divmod(len(indices), batch_size * world_size)
        self._all = max(1, full + (rest >= world_size))
        self._length = self._all if limit is None else min(limit, self._all)

    def __len__(self) -> int:
        """Returns the number of batches."""
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        """Gives out the batches."""
        return map(self.batch, range(len(self)))

    def place(self, b: int) -> slice:
        """Returns which of this device's pictures make a batch."""
        return slice(b * self.batch_size, len(self.mine) if b + 1 == self._all else (b + 1) * self.batch_size)

    def batch(self, b: int) -> Batch:
        """Returns one batch."""
        mine = self.mine[self.place(b)]
        seed = UNCHANGED if self.seed is None else derived_seed(self.seed, _EVALUATE, b, self.rank)
        return Batch(self.pictures.images[mine], self.pictures.labels[mine], seed)
