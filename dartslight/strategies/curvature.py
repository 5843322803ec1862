"""The curvature of the validation loss in the space of the architecture parameters: its Hessian's largest eigenvalue.

A sharp minimum of the validation loss loses much when the architecture is made discrete, and the largest eigenvalue
tells of it before the accuracy does (R-DARTS).

Paper: Zela et al., "Understanding and Robustifying Differentiable Architecture Search", ICLR 2020,
https://arxiv.org/abs/1909.09656, section 4. The published code builds the whole Hessian row by row; here Lanczos'
method finds the one eigenvalue from products of the Hessian with vectors, of which it needs a few dozen at most.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dartslight.errors import InputError

Product = Callable[[Tensor], Tensor]
"""The product of a symmetric matrix with a vector, (size,) to (size,), float64."""


def hessian_product(loss: Tensor, parameters: Sequence[Tensor]) -> Product:
    """Returns the product of a loss's Hessian with a vector over all parameters, one after another.

    The graph of the loss is kept for as long as the function is. No ``.grad`` is touched.

    Args:
        loss: The loss; all its operations must have a second derivative.
        parameters: What it is differentiated by; the rows of those that it does not depend on are exactly 0.
    """
    size = sum(p.numel() for p in parameters)
    if not loss.requires_grad:
        return torch.zeros_like
    slopes = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
    flat = torch.cat([slope.reshape(-1) for slope in slopes])

    def product(vector: Tensor) -> Tensor:
        assert vector.shape == (size,)
        if not flat.requires_grad:  # the loss is linear
            return torch.zeros_like(vector)
        found = torch.autograd.grad(flat, parameters, vector.to(flat), retain_graph=True, materialize_grads=True)
        return torch.cat([part.reshape(-1) for part in found]).to(vector)

    return product


def largest_eigenvalue(
    product: Product, size: int, seed: int, tolerance: float = 1e-4, max_products: int = 100
) -> float:
    """Returns the largest eigenvalue of a symmetric matrix by Lanczos' method with full orthogonalisation.

    The largest one counts, as in R-DARTS, and not the one of largest absolute value: only upward curvature makes a
    minimum sharp. If all are negative, the one nearest to 0 is returned.

    Args:
        product: The product of the matrix with a vector; it gets vectors on the CPU.
        size: Number of its rows.
        seed: Seed of the vector that the method starts from.
        tolerance: Largest error that is accepted, in shares of the largest absolute eigenvalue.
        max_products: Largest number of products.

    Raises:
        InputError: If a product is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(size, generator=generator, dtype=torch.float64)
    vector /= vector.norm()
    basis = vector.new_zeros((0, size))
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    while True:
        basis = torch.cat([basis, vector.unsqueeze(0)])
        image = product(vector)
        if not torch.isfinite(image).all():
            raise InputError(
                "The curvature of the validation loss is not finite, so the search has diverged; go on from an earlier "
                "checkpoint with a smaller --model.learning_rate."
            )
        diagonal.append(image @ vector)
        for _ in range(2):  # once leaves rounding errors that grow into copies of the eigenvalues
            image = image - basis.T @ (basis @ image)
        norm = image.norm()
        values, vectors = torch.linalg.eigh(_tridiagonal(diagonal, beside))
        # |A y - value y| for the approximation y is the norm times y's last entry.
        error = norm * vectors[-1, -1].abs()
        if error <= tolerance * values.abs().max() or len(diagonal) >= min(size, max_products):
            return float(values[-1])
        beside.append(norm)
        vector = image / norm


def _tridiagonal(diagonal: Sequence[Tensor], beside: Sequence[Tensor]) -> Tensor:
    """Returns the symmetric matrix with these numbers on the diagonal and beside it."""
    matrix = torch.diag(torch.stack(list(diagonal)))
    if beside:
        off = torch.stack(list(beside))
        matrix += torch.diag(off, 1) + torch.diag(off, -1)
    return matrix
