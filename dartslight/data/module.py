"""The DataModule that every data set shares: splits, batches, augmentation and normalisation."""

from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from dartslight.data.augmentation import augment, cut_out, normalise
from dartslight.data.pictures import Pictures
from dartslight.data.sampling import Batch, Batches, EvaluationBatches
from dartslight.errors import InputError
from dartslight.seeding import derived_seed, run_seed

_SPLIT, _SELECTION = 12, 13  # what a derived seed is for


class ImageData(LightningDataModule):
    """Pictures for search, selection, retraining and test.

    The training pictures are split into a train half, from which the operation weights learn, and a val half, from
    which the architecture learns and by which it is decided. The test pictures are loaded by the test alone. Batches
    are gathered from memory in the main process: that takes a small part of a step, so there are no workers and there
    is no pinned memory.

    Args:
        train_portion: Share of the training pictures in the train half; 1.0 leaves no val half, for retraining.
        split: ``shuffled`` draws the halves by the seed; ``official`` takes the first pictures for the train half.
        batch_size: Pictures for each device and training step.
        eval_batch_size: Pictures for each device and step of validation and test.
        padding: Pixels of zero padding out of which training pictures are cropped at random; 0 for no crop.
        flip: Whether training pictures are flipped left to right at random.
        cutout: Side in pixels of the square that is cut out of training pictures; 0 for none.
        augment_val: Whether val pictures get the same augmentation in search steps, as in the published code.
        max_pictures: Use only so many training pictures; null for all.
        seed: Seed of split, order and augmentation; null for the one of seed_everything.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __init__(
        self,
        train_portion: float = 0.5,
        split: Literal["shuffled", "official"] = "shuffled",
        batch_size: int = 64,
        eval_batch_size: int = 256,
        padding: int = 4,
        flip: bool = True,
        cutout: int = 0,
        augment_val: bool = True,
        max_pictures: int | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 < train_portion <= 1:
            raise InputError(f"train_portion is {train_portion}, but it must be above 0 and at most 1.")
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("padding", padding, 0),
            ("cutout", cutout, 0),
            ("max_pictures", max_pictures, 2),
        ):
            if value is not None and value < least:
                raise InputError(f"{name} is {value}, but it must be at least {least}; give a larger number.")
        self.train_portion, self.split = train_portion, split
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.padding, self.flip, self.cutout, self.augment_val = padding, flip, cutout, augment_val
        self.max_pictures, self._seed = max_pictures, seed
        self._training: Pictures | None = None
        self._test: Pictures | None = None

    def load(self, train: bool) -> Pictures:
        """Returns the training pictures, or the test pictures.

        Raises:
            InputError: If they cannot be had.
        """
        raise NotImplementedError

    @property
    def seed(self) -> int:
        """The seed of every draw here."""
        return run_seed() if self._seed is None else self._seed

    def setup(self, stage: str) -> None:
        """Loads what the stage needs; test pictures for the stage ``test`` only.

        Raises:
            InputError: If the pictures cannot be used.
        """
        if self._training is None:
            self._training = self._checked(self.load(train=True))
            self._halves = self._split(self._training)
            if self.mean is None or self.std is None:
                self.mean, self.std = _moments(self._training.images, self._halves[0])
        if stage == "test" and self._test is None:
            self._test = self._checked(self.load(train=False))
            if self._test.classes != self._training.classes:
                raise InputError(
                    f"The test pictures have the classes {', '.join(self._test.classes)}, but the training pictures "
                    f"have {', '.join(self._training.classes)}; give both the same class folders."
                )

    @staticmethod
    def _checked(pictures: Pictures) -> Pictures:
        if len(pictures.classes) < 2:
            raise InputError(
                f"There is only the class {', '.join(pictures.classes)}, but a network needs at least 2 to tell apart."
            )
        return pictures

    def _split(self, pictures: Pictures) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(derived_seed(self.seed, _SPLIT))
        count = len(pictures)
        order = torch.randperm(count, generator=generator) if self.split == "shuffled" else torch.arange(count)
        order = order[: self.max_pictures]
        middle = int(self.train_portion * len(order))
        if not middle or (middle == len(order) and self.train_portion < 1):
            raise InputError(
                f"There are {len(order)} training pictures, too few for two halves with train_portion "
                f"{self.train_portion}; give more pictures."
            )
        return order[:middle], order[middle:]

    @property
    def training(self) -> Pictures:
        """The training pictures, after `setup`."""
        assert self._training is not None
        return self._training

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, after `setup`."""
        return self.training.classes

    @property
    def num_classes(self) -> int:
        """Number of classes, after `setup`."""
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Channels, height and width of a picture, after `setup`."""
        return tuple(self.training.images.shape[1:])

    @property
    def has_val(self) -> bool:
        """Whether there is a val half, after `setup`."""
        return len(self._halves[1]) > 0

    def train_dataloader(self) -> Batches:
        """Returns the batches of training."""
        rank, world_size = self._place()
        return Batches(self.training, *self._halves, self.batch_size, self.seed, self.augment_val, rank, world_size)

    def val_dataloader(self) -> EvaluationBatches | list[Any]:
        """Returns the val half without augmentation, or an empty list where there is none."""
        if not self.has_val:
            return []
        return EvaluationBatches(self.training, self._halves[1], self.eval_batch_size, None, None, *self._place())

    def test_dataloader(self) -> EvaluationBatches:
        """Returns the test pictures."""
        assert self._test is not None
        return EvaluationBatches(
            self._test, torch.arange(len(self._test)), self.eval_batch_size, None, None, *self._place()
        )

    def selection_batches(self, augmented: bool, seed: int, limit: int | None) -> EvaluationBatches:
        """Returns the val half in an order that a seed determines, all of it on every device.

        Args:
            augmented: Whether the pictures get the training augmentation.
            seed: Determines order and augmentation.
            limit: Largest number of batches, or None for all.
        """
        generator = torch.Generator().manual_seed(derived_seed(seed, _SELECTION))
        half = self._halves[1]
        order = half[torch.randperm(len(half), generator=generator)]
        return EvaluationBatches(self.training, order, self.batch_size, seed if augmented else None, limit)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augments and normalises a batch on its device."""
        if isinstance(batch, dict):
            return {part: self._prepared(pictures) for part, pictures in batch.items()}
        return self._prepared(batch)

    def _prepared(self, batch: Batch) -> Batch:
        assert self.mean is not None
        assert self.std is not None
        images, seed = batch.images, batch.seed
        if seed >= 0:
            images = augment(images, seed, self.padding, self.flip)
        images = normalise(images, self.mean, self.std)
        if seed >= 0 and self.cutout:
            images = cut_out(images, seed + 1, self.cutout)
        return Batch(images, batch.labels, seed)

    def _place(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)


def _moments(images: Tensor, indices: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of some pictures, in units of full brightness."""
    total, squares, pixels = torch.zeros(3).double(), torch.zeros(3).double(), 0
    for part in torch.split(indices, 1024):
        values = images[part].double() / 255
        total += values.sum(dim=(0, 2, 3))
        squares += values.square().sum(dim=(0, 2, 3))
        pixels += values.shape[0] * values.shape[2] * values.shape[3]
    mean = total / pixels
    std = (squares / pixels - mean.square()).clamp_min(0).sqrt()
    # A channel that never changes has nothing to be scaled.
    return tuple(mean.tolist()), tuple(torch.where(std > 0, std, 1.0).tolist())
