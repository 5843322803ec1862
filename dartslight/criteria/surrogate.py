"""A linear substitute for a measured cost, which takes relaxed samples too."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

_FITTED = 0.8  # UNAS: the share of the samples that is fitted to; the others tell the error


def ridge(features: Tensor, values: Tensor, strength: float = 1.0) -> Tensor:
    """Returns the weights that minimise |features @ weights - values|^2 + strength * |weights|^2.

    They are (features,), or (features, columns) if there are several columns of values.

    Args:
        features: (samples, features).
        values: (samples,) or (samples, columns).
        strength: How much large weights count.
    """
    gram, length = features.T @ features, features.shape[1]
    penalty = strength * torch.eye(length, dtype=features.dtype, device=features.device)
    weights: Tensor = torch.linalg.solve(gram + penalty, features.T @ values)
    return weights


class Surrogate(nn.Module):
    """A number for each operation on each edge, whose sum over the chosen ones is close to what a cost measures.

    It need not be close to help: as a control variate it takes variance away as far as it is, and its error is no
    error of the estimate. Its numbers are fitted once and are part of a checkpoint.

    Paper: Vahdat et al., CVPR 2020, https://arxiv.org/abs/1912.07651.

    Args:
        num_features: Number of operations on the edges of all cell types together.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.register_buffer("_weights", torch.zeros(num_features + 1))
        self.register_buffer("_error", torch.full((), torch.nan))

    @property
    def error(self) -> Tensor:
        """The mean absolute error on architectures that were not fitted to, NaN before the fit."""
        return self.get_buffer("_error")

    @torch.no_grad()
    def fit(self, rows: Mapping[str, Tensor], costs: Tensor) -> None:
        """Fits the numbers by ridge regression of strength 1, that of the bias included.

        Args:
            rows: Hard samples in random order, (samples, edges, ops) for each cell type.
            costs: What they cost, (samples,).
        """
        features, values = _features(rows).double(), costs.double()
        fitted = round(_FITTED * len(values))
        weights = ridge(features[:fitted], values[:fitted])
        self.get_buffer("_weights").copy_(weights)
        self.error.copy_((features[fitted:] @ weights - values[fitted:]).abs().mean())

    def forward(self, rows: Mapping[str, Tensor]) -> Tensor:
        """Returns what samples, hard or relaxed, cost by these numbers, (samples,).

        Args:
            rows: The weights of the operations, (samples, edges, ops) for each cell type.
        """
        features = _features(rows)
        return features @ self.get_buffer("_weights").to(features.dtype)


def _features(rows: Mapping[str, Tensor]) -> Tensor:
    """Returns the samples as one table, (samples, features), whose last column is 1."""
    columns = torch.cat([row.flatten(1) for row in rows.values()], dim=1)
    return torch.cat([columns, torch.ones_like(columns[:, :1])], dim=1)
