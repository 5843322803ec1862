"""What every selection rule shares: what it is given, what it answers, when it is asked."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor

from dartslight.errors import InputError
from dartslight.nets import Mixing
from dartslight.selection.racing import Criterion, Race
from dartslight.selection.saliency import Saliency
from dartslight.spaces import Choices, SearchSpace


@dataclass(frozen=True, slots=True)
class Tuning:
    """How the supernet is fine-tuned between two decisions.

    Args:
        learning_rate: Learning rate of the operation weights (published: a tenth of the search's, 0.0025).
        schedule: ``constant`` (published), or ``cosine`` down to the search's minimum over the whole selection.
        warm_momentum: Whether the weight optimizer keeps its momentum when the selection begins (published: no).
        train_alphas: Whether the architecture parameters go on learning where the strategy teaches them.
        monitor: Whether validation passes go on between decisions.
    """

    learning_rate: float = 0.0025
    schedule: Literal["constant", "cosine"] = "constant"
    warm_momentum: bool = False
    train_alphas: bool = True
    monitor: bool = False


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """The search whose supernet a rule decides.

    Args:
        space: The search space.
        epochs: Number of its epochs.
        stage_ends: For each of its stages the number of epochs at its end; the last one is that of the search.
        learns: Whether the architecture parameters learn, so that mixing weights mean something.
        untaught: Numbers of epochs after which the parameters are still as they were drawn, because of a warm-up.
        is_over: Whether it ended before this run, so that nothing can be decided on the way.
        sees: Whether architecture steps of its last epochs keep sensitivities.
        draws_inputs: Whether the inputs of a node are drawn together, so that it can only be decided as a whole.
    """

    space: SearchSpace
    epochs: int
    stage_ends: tuple[int, ...] = ()
    learns: bool = True
    untaught: frozenset[int] = frozenset()
    is_over: bool = False
    sees: bool = True
    draws_inputs: bool = False

    def check_learned(self, rule: str, points: Sequence[int]) -> None:
        """Checks that mixing weights mean something.

        Args:
            rule: The name of the rule that goes by them.
            points: The numbers of epochs after which it does.

        Raises:
            InputError: If they do not.
        """
        if not self.learns:
            raise InputError(
                f"{rule} goes by the mixing weights, but this strategy leaves them at their random start; use "
                "Perturbation, or Random as a control."
            )
        if early := self.untaught.intersection(points):
            raise InputError(
                f"{rule} goes by the mixing weights after {min(early)} epochs, but a warm-up leaves them at their "
                "random start until then; give a smaller --model.alpha_warmup_epochs, or let the rule decide later."
            )


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a rule decides.

    Args:
        points: For each decision point the number of epochs before it, from the start of the search and in ascending
            order; those after the search are epochs of fine-tuning.
        tuning_epochs: The number of fine-tuning epochs in all.
    """

    points: tuple[int, ...]
    tuning_epochs: int = 0


@dataclass(frozen=True, slots=True)
class Candidate:
    """One thing that was measured for a decision: an operation of an edge, or an edge into a node.

    Args:
        source: The node that the edge reads.
        node: The node that the edge is added to.
        op: The operation.
        score_with: The criterion with the candidate in place, where it was measured.
        score_without: The criterion without the candidate, where it was measured.
        chosen: Whether the decision kept it.
        batches: Batches on which it was measured.
    """

    source: int
    node: int
    op: str
    score_with: float | None
    score_without: float | None
    chosen: bool
    batches: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision and what it rests on.

    Args:
        cell: The cell type.
        kind: Which ``edge`` is next, which ``operation`` stands on it, which ``operations`` are left on it, which
            ``inputs`` a node has, or which operation of which of them a ``slot`` of a node has.
        criterion: What the scores are: ``loss``, ``accuracy``, ``weight`` (of the mixing) or ``weight after epoch N``,
            ``sgas1`` or ``sgas2`` (of an edge), ``skips`` (a cell had too many) or ``random``.
        candidates: Everything that was measured, in the order of measuring.
        batches: Batches used for the score of the kept candidate.
        pictures: Pictures on which the margin rests.
        margin: How far the kept candidate is from the best one that was not kept, in the criterion's unit.
        noise: Standard error of the margin over pictures, or None where there is no noise.
    """

    cell: str
    kind: Literal["edge", "operation", "operations", "inputs", "slot"]
    criterion: str
    candidates: tuple[Candidate, ...]
    batches: int = 0
    pictures: int = 0
    margin: float | None = None
    noise: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a rule answers at a decision point.

    Args:
        choices: What is open now.
        decisions: The decisions that led there.
        ends_run: Whether nothing is left to do, although decision points or epochs are left.
    """

    choices: Choices
    decisions: tuple[Decision, ...]
    ends_run: bool = False


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to run the supernet that is to be measured.

    Args:
        mixing: The mixing weights.
        choices: The operations that are computed.
        label: What it is, for the progress bar.
    """

    mixing: Mixing
    choices: Choices
    label: str


@dataclass(frozen=True, slots=True)
class Evaluation:
    """On what, and how, variants are measured.

    Args:
        augmented: Whether the validation pictures get the training augmentation.
        batches: Number of batches, or None for the whole validation half.
        statistics: Batch normalisation by the ``running`` statistics, by those of each batch (``batch_frozen``), or
            by those of each batch with the running ones following (``batch_update``, published).
        seed: Seeds the order of the pictures, the augmentation, and whatever is random in the network.
        batch_size: Pictures of a batch, or None for as many as in training.
    """

    augmented: bool
    batches: int | None
    statistics: Literal["batch_update", "batch_frozen", "running"]
    seed: int
    batch_size: int | None = None


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one variant gave on every picture.

    Args:
        loss: Cross-entropy of each picture, (pictures,), float64.
        correct: 1 where the picture was classified rightly, else 0, (pictures,), float64.
        divergence: Kullback-Leibler divergence of the predicted classes from those of the first variant that was
            measured along with it, (pictures,), float64; it needs no labels.
        batches: Number of batches.
    """

    loss: Tensor
    correct: Tensor
    divergence: Tensor
    batches: int

    def values(self, criterion: Criterion) -> Tensor:
        """Returns the criterion of each picture."""
        return {"loss": self.loss, "accuracy": self.correct, "divergence": self.divergence}[criterion]


@dataclass(frozen=True, slots=True)
class Sensitivities:
    """How sensitive the validation loss is to the mixing weights: abs(w * dL/dw) of each batch.

    Args:
        samples: For each cell type (batches, edges, ops + 1), float64; behind the operations of an edge stands the
            edge as a whole, abs(sum of w * dL/dw).
        pictures: Pictures of each batch.
    """

    samples: Mapping[str, Tensor]
    pictures: int


class Supernet(Protocol):
    """What a rule may ask of the supernet that it decides."""

    @property
    def space(self) -> SearchSpace:
        """The search space."""

    @property
    def choices(self) -> Choices:
        """What is open now."""

    @property
    def memory(self) -> dict[str, Any]:
        """What the rule has noted so far, as plain values by names of its own; checkpoints keep it."""

    @property
    def is_searched(self) -> bool:
        """Whether the epochs of the search are over."""

    def mixing(self, choices: Choices) -> Mixing:
        """Returns the mixing weights if these choices were the present ones."""

    def slots(self, choices: Choices) -> Mixing | None:
        """Returns the probability of each operation in each slot, (slots, edges, ops); None where nodes have none."""

    def measure(
        self, variants: Sequence[Variant], evaluation: Evaluation, race: Race | None = None
    ) -> list[Measurement]:
        """Measures all variants on the same pictures in one pass; in a race those that have left it no further."""

    def sensitivity(self, evaluation: Evaluation | None) -> Sensitivities:
        """Returns the sensitivities on some batches, or those that the architecture steps have seen for None."""

    def curvature(self, seed: int, batches: int = 1) -> float:
        """Returns the largest eigenvalue of the Hessian of the validation loss by the architecture parameters.

        Args:
            seed: Seeds the pictures and the method.
            batches: Number of batches; each of them is kept in memory with all that its derivative needs.
        """

    def saliency(self, score: Saliency, alphas: Mixing, choices: Choices, seed: int) -> dict[str, Tensor]:
        """Returns the scores of all operations of the supernet as it was before any search, (edges, ops), float64.

        Args:
            score: The score.
            alphas: The raw mixing weights of each cell type, (edges, ops).
            choices: The operations that are open.
            seed: Seeds the pictures, where the score needs some, and whatever is random in the network.
        """

    def on_first(self, compute: Callable[[], Any]) -> Any:
        """Returns on all devices what the first one computes while the others wait, such as a time.

        Args:
            compute: Computes it; tensors in it are on the CPU.
        """

    def log(self, name: str, value: float) -> None:
        """Writes a number into the metrics of this epoch."""


class Rule(ABC):
    """Decides how a supernet becomes one architecture; holds settings only, what has been decided is in the choices."""

    needs_search: ClassVar[bool] = True
    """Whether the supernet must have been searched; else the rule decides it as it is drawn."""

    def __repr__(self) -> str:
        settings = ", ".join(f"{name.strip('_')}={value}" for name, value in sorted(vars(self).items()))
        return f"{type(self).__name__}({settings})"

    def tuning(self) -> Tuning:
        """Returns how the supernet is fine-tuned between the decision points."""
        return Tuning()

    def schedule(self, plan: SearchPlan) -> Schedule:
        """Returns when the rule decides; by default everything at once after the search.

        Args:
            plan: The search.

        Raises:
            InputError: If the rule cannot decide such a search.
        """
        return Schedule((plan.epochs,))

    def observe(self, supernet: Supernet, epochs: int) -> None:  # noqa: B027 - rules need not look
        """Sees the supernet after each epoch of the search, before anything is decided; by default it does nothing.

        Args:
            supernet: The supernet; its ``memory`` may be written to.
            epochs: Number of finished epochs.
        """

    @abstractmethod
    def decide(self, supernet: Supernet, point: int, seed: int) -> Outcome:
        """Takes the decisions of one decision point.

        Args:
            supernet: The supernet.
            point: Index of the decision point in the schedule.
            seed: The run's seed; with the point it determines every draw.
        """

    def controls(self, supernet: Supernet, seed: int) -> Mapping[str, Choices]:
        """Returns, by name, what the outcome has to be compared with because it costs nothing; by default nothing.

        Args:
            supernet: The supernet, undecided.
            seed: The run's seed.
        """
        return {}


def schedule_of(rule: Rule, plan: SearchPlan) -> Schedule:
    """Returns when a rule decides a search.

    Args:
        rule: The rule.
        plan: The search.

    Raises:
        InputError: If it cannot decide such a search.
    """
    schedule = rule.schedule(plan)
    if plan.draws_inputs and (schedule.tuning_epochs or min(schedule.points) < plan.epochs):
        raise InputError(
            f"{type(rule).__name__} decides during the search or trains between decisions, but this search draws all "
            "of a node together; use a rule that decides everything after the search, such as Magnitude."
        )
    return schedule


def nodes_to_thin(space: SearchSpace, cell: str) -> tuple[int, ...]:
    """Returns the nodes of a cell type that have more inputs than an architecture keeps."""
    if space.inputs_per_node is None:
        return ()
    whole = space.cell(cell)
    return tuple(node for node in whole.nodes if len(whole.edges_into(node)) > space.inputs_per_node)
