"""The architecture parameters, in a small module of their own, apart from all operation weights."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dartslight.nets import Mixing, open_mask
from dartslight.spaces import Choices, SearchSpace
from dartslight.strategies.relaxations import Relaxation

Alphas = Mapping[str, Tensor]
"""The architecture parameters of each cell type, (edges, ops)."""


class Architecture(nn.Module):
    """Architecture parameters and the relaxation that turns them into mixing weights.

    Args:
        space: The search space.
        relaxation: How the parameters become weights.
        init_std: Standard deviation of the normal numbers that the parameters start from (published code: 1e-3).
    """

    def __init__(self, space: SearchSpace, relaxation: Relaxation, init_std: float = 1e-3) -> None:
        super().__init__()
        self.relaxation = relaxation
        shapes = {cell.name: (len(cell.edges), max(len(edge.ops) for edge in cell.edges)) for cell in space.cells}
        self.alphas = nn.ParameterDict({name: init_std * torch.randn(shape) for name, shape in shapes.items()})

    def forward(self, choices: Choices, alphas: Alphas | None = None) -> dict[str, Tensor]:
        """Returns the mixing weights.

        A decided edge gives its operation the weight 1 and an edge that is gone has none, so that their hidden
        parameters receive a gradient of exactly 0.

        Args:
            choices: The operations that are still open.
            alphas: Parameters to use in place of the module's own.
        """
        mixing = {}
        for cell, alpha in (self.alphas if alphas is None else alphas).items():
            is_open = open_mask(choices, cell, alpha)
            undecided = is_open.sum(dim=-1, keepdim=True) > 1
            mixing[cell] = torch.where(undecided, self.relaxation(alpha, is_open), is_open.to(alpha.dtype))
        return mixing


def detached(mixing: Mixing) -> dict[str, Tensor]:
    """Returns the mixing weights as constants, for a step that must not reach the architecture parameters."""
    return {cell: weights.detach() for cell, weights in mixing.items()}
