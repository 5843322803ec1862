"""The DataModule that every data set shares: halves, loaders, and what happens to a batch on its device."""

from abc import ABC, abstractmethod
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from dartslight.data.augmentation import augment, cut_out, normalise
from dartslight.data.pictures import Channels, Pictures, channel_statistics
from dartslight.data.sampling import UNCHANGED, Batch, Batches, EvaluationBatches, epoch_order
from dartslight.data.signature import Signature
from dartslight.errors import InputError
from dartslight.seeding import derived_seed, run_seed

Split = Literal["shuffled", "official"]

_SPLIT, _SELECTION, _CALIBRATION = 17, 18, 19  # what a derived seed is for


class ImageData(LightningDataModule, ABC):
    """Pictures for search, selection, retraining and test.

    The training pictures are split into a training half, from which the operation weights learn, and a validation half,
    from which the architecture learns and by which it is decided. Test pictures are loaded for the stage ``test`` only,
    so neither search nor selection can reach them. A data set implements `load`, and may set `mean` and `std`.

    Args:
        train_portion: Share of the training pictures in the training half; 1.0 leaves no validation half, as for
            retraining.
        split: ``shuffled`` draws the halves by the seed; ``official`` takes the first pictures for the training half.
        batch_size: Pictures per device and step of training.
        eval_batch_size: Pictures per device and step of validation and test.
        padding: Pixels by which training pictures are shifted at most; 0 for no random crop.
        flip: Whether training pictures are mirrored left to right, each with probability 0.5.
        cutout: Side, in pixels, of the square that is cut out of training pictures; 0 for none.
        cutout_epochs: Epochs in which the probability of that grows linearly, from 0 in the first to 1 in the last one
            (R-DARTS); 0 for a square in every picture.
        augment_val: Whether the validation pictures are augmented like the training pictures in the steps of a search.
        max_pictures: Largest number of training pictures to use, drawn as ``split`` says; null for all.
        seed: Seed of split, order and augmentation; null for that of seed_everything.

    Raises:
        InputError: If a value is not allowed.
    """

    mean: Channels | None = None
    """Mean of each channel, where a full byte counts as 1; None computes it from the training half."""
    std: Channels | None = None
    """Standard deviation of each channel in the same unit; None computes it from the training half."""

    def __init__(
        self,
        *,
        train_portion: float = 0.5,
        split: Split = "shuffled",
        batch_size: int = 64,
        eval_batch_size: int = 256,
        padding: int = 4,
        flip: bool = True,
        cutout: int = 0,
        cutout_epochs: int = 0,
        augment_val: bool = True,
        max_pictures: int | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 < train_portion <= 1:
            raise InputError(
                f"train_portion is {train_portion}, but it must be above 0 and at most 1; give for example 0.5."
            )
        if split not in get_args(Split):
            raise InputError(
                f"split is {split!r}, but it must be one of {', '.join(get_args(Split))}; give one of them."
            )
        check_at_least(1, batch_size=batch_size, eval_batch_size=eval_batch_size)
        check_at_least(0, padding=padding, cutout=cutout, cutout_epochs=cutout_epochs, seed=seed)
        check_at_least(2, max_pictures=max_pictures)
        self.train_portion, self.split, self.max_pictures, self.seed = train_portion, split, max_pictures, seed
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.padding, self.flip, self.augment_val = padding, flip, augment_val
        self.cutout, self.cutout_epochs = cutout, cutout_epochs
        self._training: Pictures | None = None
        self._test: Pictures | None = None

    @abstractmethod
    def load(self, train: bool) -> Pictures:
        """Returns the training pictures or the test pictures.

        Args:
            train: Whether the training pictures are wanted.

        Raises:
            InputError: If they cannot be had.
        """

    # ------------------------------------------------------------------ set-up

    def setup(self, stage: str) -> None:
        """Loads the pictures that a stage needs.

        Args:
            stage: ``fit``, ``validate`` or ``test``.

        Raises:
            InputError: If the pictures cannot be used.
        """
        is_test = stage == "test"
        if not is_test or self.mean is None or self.std is None:
            self._set_up_training()
        if is_test and self._test is None:
            self._test = _checked(self.load(train=False))
            if self._training is not None:
                _check_alike(self._training, self._test)

    def _set_up_training(self) -> None:
        if self._training is None:
            self._training = _checked(self.load(train=True))
        self._seed = run_seed() if self.seed is None else self.seed
        self._train_half, self._val_half = self._halves(len(self._training))
        if self.mean is None or self.std is None:
            self._mean, self._std = channel_statistics(self._training.images, self._train_half)

    def _halves(self, count: int) -> tuple[Tensor, Tensor]:
        """Returns the numbers of the pictures in each half."""
        shuffled = self.split == "shuffled"
        order = epoch_order(count, derived_seed(self._seed, _SPLIT), 0) if shuffled else torch.arange(count)
        order = order[: self.max_pictures]
        border = int(self.train_portion * len(order))
        if border == 0 or (border == len(order) and self.has_val):
            raise InputError(
                f"A train_portion of {self.train_portion} leaves one half of {len(order)} training pictures empty; "
                "give more pictures or another --data.train_portion."
            )
        return order[:border], order[border:]

    @property
    def _loaded(self) -> Pictures:
        pictures = self._test if self._training is None else self._training
        if pictures is None:
            raise RuntimeError("Call setup before anything that needs the pictures.")
        return pictures

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self._loaded.classes

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a picture."""
        channels, height, width = self._loaded.images.shape[1:]
        return channels, height, width

    @property
    def signature(self) -> Signature:
        """What a network that learns from these pictures reads and tells."""
        return Signature(self.image_shape[1:], *self.normalisation, self.classes)

    def follow(self, signature: Signature) -> None:
        """Prepares pictures from now on as those that a network was trained on.

        Args:
            signature: The signature of the network.

        Raises:
            InputError: If the pictures have other classes.
        """
        signature.check_classes(self.classes)
        self.mean, self.std = signature.mean, signature.std

    @property
    def has_val(self) -> bool:
        """Whether there is a validation half."""
        return self.train_portion < 1

    # ------------------------------------------------------------------ loaders

    def train_dataloader(self) -> Batches:
        """Returns the training batches, each with the validation batch of the same step if there is that half."""
        val = self._val_half if self.has_val else None
        return Batches(
            self._loaded,
            self._train_half,
            val,
            self.batch_size,
            self._seed,
            **self._device(),
            augment_val=self.augment_val,
        )

    def val_dataloader(self) -> EvaluationBatches | list[EvaluationBatches]:
        """Returns the validation half without augmentation, or an empty list if there is none."""
        if not self.has_val:
            return []
        return EvaluationBatches(self._loaded, self._val_half, self.eval_batch_size, **self._device())

    def test_dataloader(self) -> EvaluationBatches:
        """Returns the test pictures."""
        assert self._test is not None
        return EvaluationBatches(self._test, torch.arange(len(self._test)), self.eval_batch_size, **self._device())

    def selection_batches(
        self, augmented: bool, seed: int, limit: int | None = None, batch_size: int | None = None
    ) -> EvaluationBatches:
        """Returns the validation half in an order of its own, for scoring candidates.

        Every device gets all of them, so that they can divide the batches among themselves.

        Args:
            augmented: Whether the pictures are augmented like training pictures.
            seed: Seed of order and augmentation; the same seed gives the same batches.
            limit: Largest number of batches; None for all.
            batch_size: Pictures per batch; None for as many as in training.

        Raises:
            InputError: If there is no validation half, or a value is not allowed.
        """
        if not self.has_val:
            raise InputError(
                f"Selection scores candidates on the validation half, but train_portion is {self.train_portion} and "
                "leaves none; give less, such as --data.train_portion 0.5."
            )
        check_at_least(1, limit=limit, batch_size=batch_size)
        order = epoch_order(len(self._val_half), derived_seed(seed, _SELECTION), 0)
        size = self.batch_size if batch_size is None else batch_size
        draws = seed if augmented else None
        return EvaluationBatches(self._loaded, self._val_half[order], size, limit=limit, seed=draws)

    def calibration_batches(self, count: int, batch_size: int) -> EvaluationBatches:
        """Returns some pictures of the training half without augmentation, for measuring what a network computes.

        Args:
            count: Largest number of pictures.
            batch_size: Pictures per batch.
        """
        order = epoch_order(len(self._train_half), derived_seed(self._seed, _CALIBRATION), 0)[:count]
        return EvaluationBatches(self._loaded, self._train_half[order], batch_size)

    def _device(self) -> dict[str, int]:
        """Returns the number of this device and how many there are."""
        if self.trainer is None:
            return {}
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}

    # ------------------------------------------------------------------ on the device

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augments and normalises a batch, or each batch of a dictionary.

        Args:
            batch: What a loader of this module gave out.
            dataloader_idx: Number of the loader.

        Returns:
            The same with normalised images.
        """
        if isinstance(batch, Batch):
            return self._prepared(batch)
        return {part: self._prepared(pictures) for part, pictures in batch.items()}

    def _prepared(self, batch: Batch) -> Batch:
        images, labels, seed = batch
        mean, std = self.normalisation
        if seed == UNCHANGED:
            return Batch(normalise(images, mean, std), labels, seed)
        images = normalise(augment(images, seed, self.padding, self.flip), mean, std)
        return Batch(cut_out(images, seed, self.cutout, self._cutout_share) if self.cutout else images, labels, seed)

    @property
    def _cutout_share(self) -> float:
        """The probability with which a picture of this epoch loses a square."""
        if self.trainer is None or self.cutout_epochs < 2:
            return 1.0
        return min(1.0, self.trainer.current_epoch / (self.cutout_epochs - 1))

    @property
    def normalisation(self) -> tuple[Channels, Channels]:
        """Mean and standard deviation of each channel, where a full byte counts as 1."""
        return (self._mean, self._std) if self.mean is None or self.std is None else (self.mean, self.std)


def check_at_least(least: int, **options: int | None) -> None:
    """Checks that options are not too small.

    Args:
        least: Smallest value that is allowed.
        options: The values by name; None is always allowed.

    Raises:
        InputError: If one is smaller.
    """
    for name, value in options.items():
        if value is not None and value < least:
            raise InputError(f"{name} is {value}, but it must be at least {least}; give a larger --data.{name}.")


def _checked(pictures: Pictures) -> Pictures:
    if len(pictures.classes) < 2:
        raise InputError(
            f"The pictures have the classes {list(pictures.classes)}, but there must be at least 2 to tell apart; give "
            "other pictures."
        )
    return pictures


def _check_alike(training: Pictures, test: Pictures) -> None:
    if training.classes != test.classes:
        odd = sorted(set(training.classes) ^ set(test.classes)) or list(test.classes)
        raise InputError(
            f"Training and test pictures must have the same classes, but {odd[0]!r} is not in both; give both the same."
        )
    if training.images.shape[1:] != test.images.shape[1:]:
        (_, height, width), (_, test_height, test_width) = training.images.shape[1:], test.images.shape[1:]
        raise InputError(
            f"Training pictures are {width}x{height} pixels, but test pictures {test_width}x{test_height}; give "
            "--data.size to resize all."
        )
