"""Studies of the supernet at the end of any search, before it is decided; they change no bit of the run.

Paper: Wang et al., "Rethinking Architecture Selection in Differentiable NAS", ICLR 2021,
https://arxiv.org/abs/2108.04392.
"""

import contextlib
from abc import abstractmethod
from typing import Literal, cast

import numpy as np
from lightning.pytorch import LightningModule

from dartslight.callbacks.diagnostics import SearchWatch, search_epochs
from dartslight.callbacks.live_supernet import LiveSupernet
from dartslight.callbacks.trial import fine_tune, trial
from dartslight.errors import check_least
from dartslight.nets.cell import CellNetwork
from dartslight.run_folder import by_first_device, folder_of, write_whole
from dartslight.seeding import derived_seed, run_seed
from dartslight.selection import Evaluation, Variant
from dartslight.selection.strength import draw_edges, measure_strengths, strength_correlations, strength_csv
from dartslight.spaces import Choices

_SHUFFLE, _STRENGTH = 54, 55  # what a derived seed is for

STRENGTH = "strength.csv"
"""Name of the file with what the strength study has measured."""


class EndOfSearch(SearchWatch):
    """What is done once at the end of a search, before it is decided; in ``select`` at the start.

    A search that a rule ends early is not studied.
    """

    def is_due(self, pl_module: LightningModule, epochs: int) -> bool:
        """Returns whether the search is over."""
        return epochs == search_epochs(pl_module)

    def look(self, live: LiveSupernet) -> dict[str, float]:
        """Studies the supernet and says what came out."""
        values, sentence = self.study(live)
        if live.trainer.is_global_zero:
            print(f"\n{type(self).__name__}: {sentence}")
        return values

    @abstractmethod
    def study(self, live: LiveSupernet) -> tuple[dict[str, float], str]:
        """Returns what is logged, and a sentence for a person to read.

        Args:
            live: The supernet.
        """


class EdgeShuffle(EndOfSearch):
    """Measures what the supernet's accuracy loses when two edges in every cell stand in each other's place.

    A supernet that has learned like a residual network loses little, as if its edges only refined what the skip
    connections carry (DARTS-PT, table 1: 88.44 to 81.09 +- 1.87 % for DARTS, to chance for VGG). An edge moves with its
    operations and mixing weights, to a place with the same shapes; every cell has a pair of its own. Logged are
    ``edge_shuffle/before``, ``edge_shuffle/after`` and ``edge_shuffle/after_std`` over the draws.

    Args:
        draws: Number of draws of the edges.
        eval_batches: Batches of each measurement; null for the whole validation half.
        eval_bn: Batch normalisation while measuring: by the statistics of each batch (``batch_frozen``), or by the
            ``running`` ones, which the edges have left in other places.
    """

    def __init__(
        self,
        draws: int = 5,
        eval_batches: int | None = None,
        eval_bn: Literal["batch_frozen", "running"] = "batch_frozen",
    ) -> None:
        super().__init__()
        check_least(1, draws=draws, eval_batches=eval_batches)
        self.draws, self.eval_batches, self.eval_bn = draws, eval_batches, eval_bn

    def study(self, live: LiveSupernet) -> tuple[dict[str, float], str]:
        """Measures the accuracy before, and after each draw, on the same pictures."""
        supernet = live.module.supernet
        evaluation = Evaluation(False, self.eval_batches, self.eval_bn, derived_seed(run_seed(), _SHUFFLE))
        mixing = live.mixing(live.choices)

        def accuracy(what: str) -> float:
            (measured,) = live.measure([Variant(mixing, live.choices, what)], evaluation)
            return float(measured.correct.mean())

        after = []
        with supernet.plain():
            before = accuracy("as it is")
            for draw in range(self.draws):
                rng = np.random.default_rng([run_seed(), _SHUFFLE, draw])
                with contextlib.ExitStack() as stack:
                    for block, network in zip(supernet.layout, supernet.blocks, strict=True):
                        if isinstance(network, CellNetwork):
                            pairs = network.exchangeable(live.choices.kept(cast("str", block.cell)))
                            if pairs:
                                stack.enter_context(network.exchanged(*pairs[rng.integers(len(pairs))]))
                    after.append(accuracy("edges exchanged"))
        mean, std = float(np.mean(after)), float(np.std(after, ddof=min(1, len(after) - 1)))
        values = {"edge_shuffle/before": before, "edge_shuffle/after": mean, "edge_shuffle/after_std": std}
        return values, (
            f"validation accuracy {before:.4f}, with two edges of every cell exchanged {mean:.4f} +- {std:.4f} "
            f"({self.draws} draws)"
        )


class StrengthStudy(EndOfSearch):
    """Asks of some edges whether mixing weights or perturbation scores tell which operation is strong (DARTS-PT).

    For each open operation of each drawn edge it measures the mixing weight, the perturbation score (by how much the
    validation loss grows without it) and the strength: the validation accuracy after the edge was given this operation
    alone and the supernet fine-tuned; then all is put back. They go into ``strength.csv`` in the run's folder, and
    Spearman's correlations of the first two with the third, over ranks within each edge, are logged as
    ``strength/mixing_weight`` and ``strength/perturbation_score``, and that of the first two with each other as
    ``strength/weight_and_score``: near 1 the perturbation says nothing that the weights do not say. Its cost is
    ``edges`` times operations times ``tune_epochs`` epochs of training.

    Args:
        edges: Number of edges, drawn from the undecided ones of all cell types.
        tune_epochs: Epochs of fine-tuning for each operation.
        tune_batches: Steps of fine-tuning for each operation in place of epochs; null for epochs.
        tune_learning_rate: Learning rate of the fine-tuning.
        eval_batches: Batches of each measurement; null for the whole validation half.
    """

    def __init__(
        self,
        edges: int = 3,
        tune_epochs: int = 3,
        tune_batches: int | None = None,
        tune_learning_rate: float = 0.0025,
        eval_batches: int | None = None,
    ) -> None:
        super().__init__()
        check_least(1, edges=edges, tune_epochs=tune_epochs, tune_batches=tune_batches, eval_batches=eval_batches)
        check_least(0, tune_learning_rate=tune_learning_rate)
        self.edges, self.tune_epochs, self.tune_batches = edges, tune_epochs, tune_batches
        self.tune_learning_rate, self.eval_batches = tune_learning_rate, eval_batches

    def study(self, live: LiveSupernet) -> tuple[dict[str, float], str]:
        """Measures the operations of the drawn edges and writes them down."""
        seed = derived_seed(run_seed(), _STRENGTH)
        evaluation = Evaluation(False, self.eval_batches, "batch_frozen", seed)

        def tuned_accuracy(choices: Choices) -> float:
            """Returns the accuracy of the supernet after it was fine-tuned with some choices."""
            mixing = live.mixing(choices)
            with trial(live.module):
                fine_tune(
                    live.trainer,
                    live.module,
                    mixing,
                    choices,
                    self.tune_learning_rate,
                    self.tune_epochs,
                    self.tune_batches,
                )
                (measured,) = live.measure([Variant(mixing, choices, "fine-tuned")], evaluation)
            return float(measured.correct.mean())

        keys = draw_edges(live.choices, self.edges, seed)
        strengths = measure_strengths(live, keys, evaluation, tuned_accuracy)
        folder = folder_of(live.trainer)
        if folder is not None:
            path = folder.path / STRENGTH
            by_first_device(live.trainer, lambda: write_whole(path, strength_csv(strengths)))
        found = strength_correlations(strengths)
        values = {f"strength/{name}": value for name, value in found.items() if value is not None}
        of_weight, of_score, of_both = ("-" if r is None else f"{r:+.2f}" for r in found.values())
        return values, (
            f"rank correlation with the accuracy after fine-tuning, edges {len(keys)}, operations {len(strengths)}: "
            f"mixing weight {of_weight}, perturbation score {of_score}; of these two with each other {of_both}"
        )
