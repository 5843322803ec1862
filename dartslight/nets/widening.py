"""Widening: the weights of a trained network in one with more channels (Net2Net).

Paper: Chen et al., "Net2Net", ICLR 2016, https://arxiv.org/abs/1511.05641. A new channel is a copy of an old one drawn
at random, and what reads a channel that now exists several times counts each of them less. In a supernet with partial
channels the new channels of an operation are those that passed it by before, so only what an operation computes within
itself stays the same.
"""

import torch
from torch import Tensor, nn


@torch.no_grad()
def widen(new: nn.Module, old: nn.Module, generator: torch.Generator) -> None:
    """Gives a network the weights and running statistics of a narrower one.

    Args:
        new: The network; its tensors have the names of the old one's and at least their sizes.
        old: The narrower network.
        generator: Draws the channels that are copied.
    """
    sources: dict[tuple[int, int], Tensor] = {}

    def source(narrow: int, wide: int) -> Tensor:
        """The old channel that each new one is a copy of; all layers of these sizes agree on it."""
        if (narrow, wide) not in sources:
            drawn = torch.randint(narrow, (wide - narrow,), generator=generator)
            sources[narrow, wide] = torch.cat([torch.arange(narrow), drawn])
        return sources[narrow, wide]

    before = old.state_dict()
    for name, tensor in new.state_dict().items():
        values = before[name]
        for dim in range(values.dim()):
            narrow, wide = values.shape[dim], tensor.shape[dim]
            if narrow == wide:
                continue
            of = source(narrow, wide).to(values.device)
            values = values.index_select(dim, of)
            if dim == 1:  # what reads the channels
                copies = torch.bincount(of, minlength=narrow)[of].to(values.dtype)
                values = values / copies.view(-1, *(1 for _ in values.shape[2:]))
        tensor.copy_(values)
