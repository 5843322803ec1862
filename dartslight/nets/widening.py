"""Widening: the weights of a trained network in one with more channels (Net2Net).

Paper: Chen et al., "Net2Net", ICLR 2016, https://arxiv.org/abs/1511.05641. A new channel is a copy of an old one drawn
at random, and what reads a channel that now exists several times counts each of them less. In a supernet with partial
channels the new channels of an operation are those that passed it by before, so only what an operation computes within
itself stays the same.
"""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dartslight.nets.operations import FactorizedReduce

_MOMENTUM = "momentum_buffer"  # SGD's name


@torch.no_grad()
def widen(new: nn.Module, old: nn.Module, generator: torch.Generator, optimizer: Optimizer | None = None) -> None:
    """Gives a network the weights and running statistics of a narrower one.

    Args:
        new: The network; its tensors have the names of the old one's and at least their sizes.
        old: The narrower network.
        generator: Draws the channels that are copied.
        optimizer: The optimizer of both, whose momentum goes over to the new weights; copies share none of it.
    """
    drawn: dict[tuple[int, int], Tensor] = {}
    # The channels of these are those of two convolutions side by side.
    halved = tuple(f"{name}.norm.".lstrip(".") for name, m in new.named_modules() if isinstance(m, FactorizedReduce))

    def source(narrow: int, wide: int) -> Tensor:
        """The old channel that each new one is a copy of; all layers of these sizes agree on it."""
        if (narrow, wide) not in drawn:
            copies = torch.randint(narrow, (wide - narrow,), generator=generator)
            drawn[narrow, wide] = torch.cat([torch.arange(narrow), copies])
        return drawn[narrow, wide]

    def widened(name: str, values: Tensor, shape: torch.Size, divide: bool) -> Tensor:
        """Returns values with repeated channels, divided by how often where they weigh what is read, if asked to."""
        for dim, wide in enumerate(shape):
            narrow = values.shape[dim]
            if narrow == wide:
                continue
            if name.startswith(halved):
                low, high = narrow // 2, wide // 2
                of = torch.cat([source(low, high), source(narrow - low, wide - high) + low])
            else:
                of = source(narrow, wide)
            of = of.to(values.device)
            values = values.index_select(dim, of)
            if dim == 1 and divide:  # what reads the channels
                copies = torch.bincount(of, minlength=narrow)[of].to(values.dtype)
                values = values / copies.view(-1, *(1 for _ in values.shape[2:]))
        return values

    before = old.state_dict()
    for name, tensor in new.state_dict().items():
        tensor.copy_(widened(name, before[name], tensor.shape, divide=True))
    if optimizer is None:
        return
    parameters = dict(old.named_parameters())
    for name, parameter in new.named_parameters():
        state = optimizer.state.pop(parameters[name], {})
        if state.get(_MOMENTUM) is not None:
            optimizer.state[parameter][_MOMENTUM] = widened(name, state[_MOMENTUM], parameter.shape, divide=False)
