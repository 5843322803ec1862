"""Which parts of a search strategy go together."""

from collections.abc import Sequence

from dartslight.errors import InputError
from dartslight.spaces import SearchSpace
from dartslight.strategies.draws import Sampled
from dartslight.strategies.gradients import ArchitectureGradient
from dartslight.strategies.relaxations import Relaxation
from dartslight.strategies.smoothing import Smoothing


def check_space(
    space: SearchSpace,
    relaxation: Relaxation,
    num_cells: Sequence[int],
    partial_channels: bool,
    auxiliary_skip: bool,
    drop_path: float,
) -> None:
    """Checks that a search can take place in a space.

    Args:
        space: The search space.
        relaxation: How architecture parameters become mixing weights.
        num_cells: Number of searched cells in each stage.
        partial_channels: Whether operations see some channels only.
        auxiliary_skip: Whether edges have a skip connection that is never chosen.
        drop_path: Probability with which pictures lose what an edge gives.

    Raises:
        InputError: If it cannot.
    """
    relaxation.check(space)
    for name, is_asked in {"partial_channels": partial_channels, "auxiliary_skip": auxiliary_skip}.items():
        if is_asked and relaxation.draws_inputs:
            raise InputError(
                f"{name} adds to every edge, but {type(relaxation).__name__} draws which edges there are; use Sampled, "
                f"or leave {name} out."
            )
    if space.macro != "mobile":
        return
    layers = len(space.cells)
    if set(num_cells) != {layers}:
        wrong = next(number for number in num_cells if number != layers)
        raise InputError(
            f"num_cells is {wrong}, but the space {space.name!r} has {layers} layers, each with a choice of its own; "
            f"give {layers}."
        )
    asked = {"partial_channels": partial_channels, "auxiliary_skip": auxiliary_skip, "drop_path": bool(drop_path)}
    for name, is_asked in asked.items():
        if is_asked:
            raise InputError(
                f"{name} needs cells in which edges stand beside each other, but a layer of a mobile space has one; "
                f"leave {name} out."
            )


def check_combination(
    relaxation: Relaxation,
    gradient: ArchitectureGradient,
    smoothing: Smoothing | None = None,
    drop_path: float = 0.0,
    checkpoint_cells: bool = False,
    compile: str | None = None,
    edge_normalisation: bool = False,
) -> None:
    """Checks that the parts of a search strategy go together.

    Args:
        relaxation: How architecture parameters become mixing weights.
        gradient: How the validation loss moves them.
        smoothing: How the mixing weights of a weight step are disturbed, if at all.
        drop_path: Largest probability with which something is left out at random.
        checkpoint_cells: Whether cells are computed again for their derivative.
        compile: A mode of torch's compiler, or None.
        edge_normalisation: Whether edges have weights of their own.

    Raises:
        InputError: If they do not.
    """
    relaxes, moves = type(relaxation).__name__, type(gradient).__name__
    if gradient.moves_weights and relaxation.is_random:
        raise InputError(
            f"{moves} compares passes at several weights, but {relaxes} draws other mixing weights in each; use "
            "FirstOrder or Fixed, or another relaxation."
        )
    draws = isinstance(relaxation, Sampled)
    if gradient.draws and not draws:
        raise InputError(
            f"{moves} learns from architectures that are drawn, but {relaxes} has no hard and relaxed samples of one "
            "draw; use Sampled."
        )
    if draws and gradient.learns and not gradient.draws:
        raise InputError(
            f"{relaxes} draws an architecture for each picture, which {moves} does not learn from; use ScoreFunction "
            "or Fixed."
        )
    if draws and edge_normalisation:
        raise InputError(
            f"edge_normalisation gives edges weights that are not drawn, but {relaxes} teaches by draws alone; use "
            "Softmax, or no edge_normalisation."
        )
    if draws and (smoothing is not None or compile is not None):
        what = "smoothing" if smoothing is not None else "compile"
        raise InputError(
            f"{relaxes} draws mixing weights for each picture, but {what} takes one set of them for the whole batch; "
            f"use Softmax, or no {what}."
        )
    if smoothing is not None and (relaxation.samples_one or not relaxation.sums_to_one):
        raise InputError(
            f"{type(smoothing).__name__} disturbs mixing weights that sum to 1, but those of {relaxes} do not, or are "
            "drawn one at a time; use Softmax, or no smoothing."
        )
    if checkpoint_cells and gradient.moves_weights:
        raise InputError(
            f"checkpoint_cells computes cells again with the network's own weights, but {moves} needs them at others; "
            "use FirstOrder or Fixed, or smaller batches without checkpoint_cells."
        )
    if compile is not None and (checkpoint_cells or gradient.moves_weights):
        raise InputError(
            f"compile is {compile!r}, but a compiled supernet can be neither differentiated twice nor run with "
            "checkpoint_cells; use FirstOrder or Fixed without checkpoint_cells, or no compile."
        )
    if compile is not None and (relaxation.samples_one or drop_path):
        what = (
            f"the operations that {relaxes} draws"
            if relaxation.samples_one
            else "what drop_path or skip_dropout leaves out"
        )
        raise InputError(f"compile is {compile!r}, but {what} are others in every step; use no compile.")
