"""A DataModule without pictures, for what needs none."""

from dartslight.data.module import ImageData, check_at_least
from dartslight.data.pictures import Pictures
from dartslight.data.sampling import EvaluationBatches
from dartslight.errors import InputError

_ABSENT = "This needs pictures, but the data are NoPictures; give a data set, such as --data dartslight.data.Digits."


class NoPictures(ImageData):
    """No pictures at all: only how many classes there would be.

    Args:
        num_classes: Number of classes that the supernet tells apart.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        check_at_least(2, num_classes=num_classes)
        self._count = num_classes

    @property
    def classes(self) -> tuple[str, ...]:
        """Numbers in place of names."""
        return tuple(str(c) for c in range(self._count))

    def prepare_data(self) -> None:
        """Refuses, because whoever asks for it is about to need pictures.

        Raises:
            InputError: Always.
        """
        raise InputError(_ABSENT)

    def selection_batches(
        self, augmented: bool, seed: int, limit: int | None = None, batch_size: int | None = None
    ) -> EvaluationBatches:
        """Refuses like `load`.

        Args:
            augmented: Has no meaning here.
            seed: Has no meaning here.
            limit: Has no meaning here.
            batch_size: Has no meaning here.

        Raises:
            InputError: Always.
        """
        raise InputError(_ABSENT)

    def load(self, train: bool) -> Pictures:
        """Refuses.

        Args:
            train: Whether the training pictures are wanted.

        Raises:
            InputError: Always.
        """
        raise InputError(_ABSENT)
