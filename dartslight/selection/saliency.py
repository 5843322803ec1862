"""How salient an operation is before anything has been trained: scores of one pass through a fresh supernet.

Every score asks what a number R of the network would lose, to first order, if the weight alpha of an operation on its
edge went to 0, and R is what tells the scores apart. They prune at initialisation what others prune after training.

* `FreeFlow`: |alpha * dR/dalpha|, R the sum of the logits for a picture of ones in the network with absolute weights;
  no picture and no label is looked at. Paper: Zhang et al., "Differentiable Architecture Search Without Training Nor
  Labels: A Pruning Perspective" (https://arxiv.org/abs/2106.11542, first version); the fourth version calls such a
  score ZEROS.
* `Snip`: the same with the cross-entropy of one batch (https://arxiv.org/abs/1810.02340).
* `Grasp`: |alpha * (H g)|, g and H the gradient and the Hessian of that cross-entropy by the alphas
  (https://arxiv.org/abs/2002.07376).

Where this departs from the published code, and why:

* A DARTS network ends in channels that are batch-normalised and then averaged over all pixels: with one picture that
  is 0 whatever the alphas are, the logits are the classifier's biases, and the published scores are what rounding
  leaves (around 1e-11 in float32 and 1e-20 in float64, in another order). Here a ReLU stands between the last state and
  the average for FreeFlow, as in NAS-Bench-201's network, where one is part of the network.
* All is computed in float64, by one thread of the CPU, and numbers too small for full precision count as 0, so that
  rounding decides nothing and every machine decides alike. The published code uses float32 on a GPU.
* The network stays as it is; the published code leaves it with absolute weights. `Snip` and `Grasp` use the weights
  with their signs, as the published code does for NAS-Bench-201 but not for DARTS.
* `Grasp` has the Hessian-gradient product of its own paper at the initial alphas; the published code takes a step of
  Adam before it. The sign, by which GraSP tells good from bad, is dropped as in that code.
"""

import contextlib
import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dartslight.errors import check_least
from dartslight.nets import EdgeTerm, Mixing, Supernet
from dartslight.spaces import Choices

Labelled = tuple[Tensor, Tensor]
"""Normalised pictures (batch, 3, height, width) and their classes (batch,)."""

_TERMS: Mapping[EdgeTerm, float] = {"bypass": 1.0, "auxiliary_skip": 1.0, "offset": 0.0}


class Saliency(ABC):
    """A score of all operations of a fresh supernet."""

    name: str
    """What decisions call it."""

    batch_size: int | None = None
    """Labelled pictures that it needs, or None for none."""

    def __call__(
        self,
        supernet: Supernet,
        alphas: Mixing,
        choices: Choices,
        batch: Labelled | None = None,
        seed: int = 0,
    ) -> dict[str, Tensor]:
        """Returns the score of each operation of each cell type, (edges, ops), float64; 0 for one that is not open.

        The supernet, torch's random numbers and its settings are afterwards as they were.

        Args:
            supernet: The supernet.
            alphas: Its raw mixing weights: those of the operations, (edges, ops), without a softmax.
            choices: The operations that are open; others are left out, as if their weight were 0.
            batch: The pictures, where the score needs some.
            seed: Seeds what is random in the network.
        """
        own = {cell: alpha.detach().double().cpu().requires_grad_() for cell, alpha in alphas.items()}
        # The copy has to be made before numbers that are too small count as 0.
        network = _working_copy(supernet)
        with _exact(), torch.random.fork_rng([]), torch.enable_grad():
            torch.manual_seed(seed)
            mixing = {cell: _with_terms(alpha, network.terms) for cell, alpha in own.items()}
            derivatives = self.derivatives(network, mixing, list(own.values()), choices, batch)
        return {
            cell: (alpha.detach() * d.detach()).abs() for (cell, alpha), d in zip(own.items(), derivatives, strict=True)
        }

    @abstractmethod
    def derivatives(
        self,
        network: Supernet,
        mixing: Mixing,
        alphas: Sequence[Tensor],
        choices: Choices,
        batch: Labelled | None,
    ) -> Sequence[Tensor]:
        """Returns what each alpha is multiplied by.

        Args:
            network: A copy of the supernet, float64 and in training mode, whose weights are constants.
            mixing: The mixing weights, a function of the alphas.
            alphas: The alphas of each cell type, (edges, ops).
            choices: The operations that are open.
            batch: The pictures, where the score needs some.
        """

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value}" for name, value in sorted(vars(self).items()))
        return f"{type(self).__name__}({settings})"


class FreeFlow(Saliency):
    """What the sum of the logits for a picture of ones would lose in the network with absolute weights.

    Args:
        size: Height and width of the picture in pixels.
    """

    name = "freeflow"

    def __init__(self, size: int = 32) -> None:
        check_least(8, size=size)
        self.size = size

    def derivatives(
        self, network: Supernet, mixing: Mixing, alphas: Sequence[Tensor], choices: Choices, batch: Labelled | None
    ) -> Sequence[Tensor]:
        """Returns the derivative of the sum of the logits."""
        with torch.no_grad():
            for tensor in network.state_dict().values():
                tensor.abs_()
        if isinstance(network.tail, nn.Identity):
            network.tail = nn.ReLU()
        logits = network(torch.ones(1, 3, self.size, self.size, dtype=torch.float64), mixing, choices)
        return torch.autograd.grad(logits.sum(), alphas, materialize_grads=True)


class Snip(Saliency):
    """What the cross-entropy of one labelled batch would change by.

    Args:
        batch_size: Pictures of the batch.
    """

    name = "snip"

    def __init__(self, batch_size: int = 64) -> None:
        check_least(2, batch_size=batch_size)
        self.batch_size = batch_size

    def derivatives(
        self, network: Supernet, mixing: Mixing, alphas: Sequence[Tensor], choices: Choices, batch: Labelled | None
    ) -> Sequence[Tensor]:
        """Returns the derivative of the cross-entropy."""
        network.checkpoint_cells = True  # a batch in float64 is large
        return torch.autograd.grad(_loss(network, mixing, choices, batch), alphas, materialize_grads=True)


class Grasp(Saliency):
    """What the squared gradient of the cross-entropy of one labelled batch would change by, halved.

    Args:
        batch_size: Pictures of the batch.
    """

    name = "grasp"

    def __init__(self, batch_size: int = 64) -> None:
        check_least(2, batch_size=batch_size)
        self.batch_size = batch_size

    def derivatives(
        self, network: Supernet, mixing: Mixing, alphas: Sequence[Tensor], choices: Choices, batch: Labelled | None
    ) -> Sequence[Tensor]:
        """Returns the product of the Hessian and the gradient."""
        loss = _loss(network, mixing, choices, batch)
        gradients = torch.autograd.grad(loss, alphas, create_graph=True, materialize_grads=True)
        product = torch.stack([(g * g.detach()).sum() for g in gradients]).sum()
        return torch.autograd.grad(product, alphas, materialize_grads=True)


def _loss(network: Supernet, mixing: Mixing, choices: Choices, batch: Labelled | None) -> Tensor:
    assert batch is not None
    images, labels = batch
    return F.cross_entropy(network(images.double().cpu(), mixing, choices), labels.cpu())


def _working_copy(supernet: Supernet) -> Supernet:
    """Returns a copy in float64 on the CPU, in training mode and with constant weights."""
    with supernet.plain():
        network = copy.deepcopy(supernet)
    return network.cpu().double().train().requires_grad_(False)


def _with_terms(alpha: Tensor, terms: Sequence[EdgeTerm]) -> Tensor:
    """Returns the mixing weights of operations and edge terms, these as they are when a search begins."""
    columns = [alpha.new_full((len(alpha), 1), _TERMS[term]) for term in terms]
    return torch.cat([alpha, *columns], dim=1)


@contextlib.contextmanager
def _exact() -> Iterator[None]:
    """While this lasts one thread computes, whose sums have one order, and tiny numbers are 0, which is much faster."""
    threads = torch.get_num_threads()
    # torch tells of no setting, but what it does.
    was_flushed = float(torch.tensor(1e-310, dtype=torch.float64) * 1.0) == 0.0
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(was_flushed)
        torch.set_num_threads(threads)
