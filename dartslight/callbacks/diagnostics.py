"""What can be watched after every epoch of any search, whatever its strategy: it decides nothing and changes no bit.

Papers: skip gap and noise, Wang et al. (DARTS-PT), ICLR 2021, https://arxiv.org/abs/2108.04392; curvature, Zela et al.
(R-DARTS), ICLR 2020, https://arxiv.org/abs/1909.09656.
"""

from abc import ABC, abstractmethod
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer

from dartslight.callbacks.live_supernet import LiveSupernet, undisturbed
from dartslight.callbacks.scores_file import ScoresFile
from dartslight.callbacks.true_accuracy import leading
from dartslight.errors import InputError, check_least
from dartslight.modules import SearchModule
from dartslight.seeding import derived_seed, run_seed
from dartslight.selection import Evaluation, Variant
from dartslight.selection.statistics import count_skips, row_entropy, skip_gap, spread_of_sets
from dartslight.selection.strongest import mixing_weights

_CURVATURE, _NOISE = 51, 52  # what a derived seed is for


class SearchWatch(Callback, ABC):
    """What all have in common: they need a search, look at it after its epochs, and log what they see.

    In ``select`` they look first at the supernet as its search has left it.
    """

    every_n_epochs = 1
    """Epochs between two looks."""

    def __init__(self) -> None:
        self._seen = 0  # epochs

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks that the run is a search.

        Raises:
            InputError: If it is not.
        """
        if not isinstance(pl_module, SearchModule):
            raise InputError(f"The callback {type(self).__name__} watches a search; leave it out of other runs.")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at a supernet whose search was over before this run."""
        epochs = trainer.current_epoch
        if self._seen < epochs == search_epochs(pl_module) and self.is_due(pl_module, epochs):
            values = self._values(trainer, pl_module, epochs)
            # Lightning writes its own metrics at the end of an epoch, and a selection may need none.
            for logger in trainer.loggers if values else ():
                logger.log_metrics(values, trainer.global_step)
                logger.save()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the supernet after a whole epoch."""
        epochs = trainer.current_epoch + 1
        if trainer.is_last_batch and self.is_due(pl_module, epochs):
            values = self._values(trainer, pl_module, epochs)
            pl_module.log_dict(values, on_step=False, on_epoch=True, rank_zero_only=True)

    def is_due(self, pl_module: LightningModule, epochs: int) -> bool:
        """Returns whether there is something to look at.

        Args:
            pl_module: The search.
            epochs: Number of finished epochs.
        """
        return epochs % self.every_n_epochs == 0

    def _values(self, trainer: Trainer, pl_module: LightningModule, epochs: int) -> dict[str, float]:
        assert isinstance(pl_module, SearchModule)
        live = LiveSupernet(trainer, pl_module, type(self).__name__, ScoresFile(None), {}, epochs)
        with undisturbed(trainer.strategy.root_device):
            values = self.look(live)
        self._seen = epochs
        return values

    @abstractmethod
    def look(self, live: LiveSupernet) -> dict[str, float]:
        """Returns what is logged, the same numbers on all devices.

        Args:
            live: The supernet.
        """

    def state_dict(self) -> dict[str, Any]:
        """Returns after how many epochs it has looked last."""
        return {"seen": self._seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from what `state_dict` returned."""
        self._seen = state_dict["seen"]


def search_epochs(pl_module: LightningModule) -> int | None:
    """Returns the number of epochs of a search, once it is known.

    Args:
        pl_module: The search.
    """
    assert isinstance(pl_module, SearchModule)
    return pl_module.search_epochs


class ArchitectureStatistics(SearchWatch):
    """Logs, after each epoch, what the mixing weights look like.

    ``architecture/skip_gap`` is the mean over edges of the weight of ``skip_connect`` less the mean weight of the
    convolutions, ``architecture/entropy`` how evenly the weights of an edge are spread, from 0 (decided) to 1 (all
    alike), and ``architecture/skips_<cell>`` the number of skip connections in the architecture that leads by its
    mixing weights.
    """

    def look(self, live: LiveSupernet) -> dict[str, float]:
        """Returns the statistics of the mixing weights."""
        weights = mixing_weights(live.space, live.mixing(live.choices))
        values = {"architecture/entropy": row_entropy(live.choices, weights)}
        gap = skip_gap(live.space, live.choices, weights)
        if gap is not None:
            values["architecture/skip_gap"] = gap
        skips = count_skips(leading(live.module))
        return {**values, **{f"architecture/skips_{cell}": count for cell, count in skips.items()}}


class Curvature(SearchWatch):
    """Logs the largest eigenvalue of the Hessian of the validation loss by the architecture parameters (R-DARTS).

    It is logged as ``curvature/largest_eigenvalue``. The loss includes the weight decay of the parameters.

    Args:
        every_n_epochs: Epochs between two measurements.
        batches: Batches of validation pictures in a measurement; a GPU must hold them all.
    """

    def __init__(self, every_n_epochs: int = 2, batches: int = 1) -> None:
        super().__init__()
        check_least(1, every_n_epochs=every_n_epochs, batches=batches)
        self.every_n_epochs, self.batches = every_n_epochs, batches

    def look(self, live: LiveSupernet) -> dict[str, float]:
        """Measures the curvature."""
        value = live.curvature(derived_seed(run_seed(), _CURVATURE, live.epochs), self.batches)
        return {"curvature/largest_eigenvalue": value}


class NoiseFloor(SearchWatch):
    """Logs by how much the validation loss and accuracy of the unchanged supernet differ between sets of pictures.

    A decision whose margin is below twice this spread, and whose candidates were measured on different pictures, may
    be chance. Logged are ``noise/loss`` and ``noise/accuracy``, the means over all sets, and ``noise/loss_sigma`` and
    ``noise/accuracy_sigma``, the standard deviations of the sets. Between decisions the means tell whether the supernet
    recovers from one before the next.

    Args:
        sets: Number of sets.
        batches: Batches in each set; null for all of the validation half, which ``disjoint`` divides among the sets.
        draw: ``disjoint`` cuts sets that share no picture out of the validation half, ``resampled`` draws each set anew
            from the whole of it, as measurements that are not paired do.
        augmented: Whether the pictures get the training augmentation, as in the preset ``official``.
        every_n_epochs: Epochs between two measurements.
    """

    def __init__(
        self,
        sets: int = 5,
        batches: int | None = None,
        draw: Literal["disjoint", "resampled"] = "disjoint",
        augmented: bool = False,
        every_n_epochs: int = 1,
    ) -> None:
        super().__init__()
        check_least(2, sets=sets)
        check_least(1, batches=batches, every_n_epochs=every_n_epochs)
        self.sets, self.batches, self.draw, self.augmented = sets, batches, draw, augmented
        self.every_n_epochs = every_n_epochs

    def look(self, live: LiveSupernet) -> dict[str, float]:
        """Measures the noise."""
        passes, batches = self.sets, self.batches
        if self.draw == "disjoint":
            passes, batches = 1, None if batches is None else batches * self.sets
        whole, found = Variant(live.mixing(live.choices), live.choices, "the whole"), []
        for i in range(passes):
            seed = derived_seed(run_seed(), _NOISE, live.epochs, i)
            found += live.measure([whole], Evaluation(self.augmented, batches, "batch_frozen", seed))
        if len(found) == 1 and len(found[0].loss) < self.sets:
            raise InputError(
                f"sets is {self.sets}, but NoiseFloor has {len(found[0].loss)} pictures to divide among them; give "
                "fewer sets, or draw: resampled."
            )
        values = {}
        for name in ("loss", "accuracy"):
            pictures = [measurement.values(name).numpy() for measurement in found]
            values[f"noise/{name}"], values[f"noise/{name}_sigma"] = spread_of_sets(pictures, self.sets)
        return values
