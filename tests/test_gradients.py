"""Architecture gradients against double autograd, the bi-level toy, and the closed form of two competing operations."""

import pytest
import textbook
import torch
from torch import Tensor, nn
from torch.func import functional_call

from dartslight.nets import Supernet
from dartslight.spaces import NASBENCH201, Choices
from dartslight.strategies import Architecture, Bilevel, FiniteDifference, FirstOrder, Softmax, Unrolled


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.fixture
def problem() -> Bilevel:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    net = Supernet(NASBENCH201, 3, 2, 3).double()
    architecture = Architecture(NASBENCH201, Softmax(), 0.5).double()
    choices = Choices.everything(NASBENCH201)
    names, weights = zip(*net.named_parameters(), strict=True)

    def loss_on(images: Tensor, labels: Tensor) -> object:
        def loss(at: object, alphas: object = None) -> Tensor:
            other = {} if alphas is None else {"alphas.cell": alphas[0]}
            mixing = functional_call(architecture, other, (choices,))
            state = {n: b.clone() for n, b in net.named_buffers()}
            state.update(zip(names, weights if at is None else at, strict=True))
            return nn.functional.cross_entropy(functional_call(net, state, (images, mixing, choices)), labels)

        return loss

    labels = torch.arange(6) % 3
    buffers = [torch.randn_like(w) * 0.1 for w in weights]
    yield Bilevel(
        loss_on(torch.randn(6, 3, 8, 8), labels),
        loss_on(torch.randn(6, 3, 8, 8), labels),
        weights,
        tuple(architecture.alphas.values()),
        0.1,
        0.9,
        3e-4,
        buffers,
    )
    torch.set_default_dtype(torch.float32)


def test_second_order_equals_double_autograd(problem: Bilevel) -> None:
    (expected,) = textbook.unrolled_gradient(
        problem.train_loss,
        problem.val_loss,
        list(problem.weights),
        list(problem.alphas),
        0.1,
        list(problem.momentum_buffers),
        0.9,
        3e-4,
    )
    (exact,) = Unrolled()(problem)
    (difference,) = FiniteDifference(radius=1e-6)(problem)  # the published 0.01 crosses kinks of so small a network
    (first,) = FirstOrder()(problem)
    assert relative(exact, expected) < 1e-6
    assert relative(difference, expected) < 1e-4
    assert relative(first, expected) > 1e-2  # the second-order term matters here
    assert all(w.grad is None for w in [*problem.weights, *problem.alphas])


def test_the_finite_difference_lies_around_the_weights() -> None:
    """Then it is exact for L_train = a w^2 however far it reaches: d/da (dL_train/dw v) = 2 w v."""
    w = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    a = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

    def at(weights: list[Tensor] | None) -> Tensor:
        return w if weights is None else weights[0]

    problem = Bilevel(lambda ws: a * at(ws) ** 2, lambda ws: -7 * at(ws), [w], [a], 0.1, 0.9, 0.0, [None])
    (found,) = FiniteDifference(radius=0.8)(problem)
    assert float(found) == pytest.approx(-0.1 * 2 * 3 * -7, rel=1e-12)


def descend(gradient: object, steps: int = 4000) -> tuple[float, float]:
    """The toy of the DARTS paper: L_val = a w - 2 a + 1, L_train = w^2 - 2 a w + a^2, from (a, w) = (2, -2)."""
    a = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    w = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)

    def train(ws: object) -> Tensor:
        (v,) = [w] if ws is None else ws
        return v**2 - 2 * a * v + a**2

    def val(ws: object) -> Tensor:
        (v,) = [w] if ws is None else ws
        return a * v - 2 * a + 1

    for _ in range(steps):
        (g,) = gradient(Bilevel(train, val, [w], [a], 0.5, 0.0, 0.0, [None]))
        with torch.no_grad():
            a -= 0.02 * g
            w -= 0.02 * (2 * w - 2 * a)
    return float(a), float(w)


def test_toy_misses_the_solution_with_the_first_order_gradient() -> None:
    a, w = descend(FirstOrder())
    assert a == pytest.approx(2, abs=1e-3)
    assert w == pytest.approx(2, abs=1e-3)


@pytest.mark.parametrize("gradient", [Unrolled(), FiniteDifference()])
def test_toy_unrolled_reaches_the_solution(gradient: object) -> None:
    a, w = descend(gradient)
    # With a virtual step of 0.5, w' = a, so dL_val/da = w' - 2 + a vanishes at a = w = 1, the solution.
    assert a == pytest.approx(1, abs=1e-3)
    assert w == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("sd_a", "sd_b"), [(1.0, 2.0), (0.5, 2.0), (0.2, 2.0)])
def test_skip_wins_by_its_variance(sd_a: float, sd_b: float) -> None:
    """Proposition 1 of DARTS-PT: theta_skip = Var(b) / (Var(a) + Var(b)) for uncorrelated errors of skip and conv."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(4096, generator=generator, dtype=torch.float64)
    errors = torch.linalg.qr(torch.randn(4096, 2, generator=generator, dtype=torch.float64))[0] * 64
    skip, conv = target + sd_a * errors[:, 0], target + sd_b * errors[:, 1]
    alpha = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    is_open = torch.ones(1, 2, dtype=torch.bool)
    optimizer = torch.optim.Adam([alpha], 0.05)
    for _ in range(3000):
        weights = Softmax()(alpha, is_open)[0]
        optimizer.zero_grad()
        (weights[0] * skip + weights[1] * conv - target).square().mean().backward()
        optimizer.step()
    assert float(Softmax()(alpha, is_open)[0, 0]) == pytest.approx(sd_b**2 / (sd_a**2 + sd_b**2), abs=2e-3)


def test_decided_edges_have_exact_weights_and_exactly_no_gradient() -> None:
    architecture = Architecture(NASBENCH201, Softmax(), 1.0)
    choices = Choices.everything(NASBENCH201).decide(("cell", 1), 3).drop([("cell", 4)]).close(("cell", 2), 0)
    weights = architecture(choices)["cell"]
    assert weights[1].tolist() == [0, 0, 0, 1, 0]
    assert weights[4].tolist() == [0] * 5
    assert float(weights[2, 0]) == 0
    torch.testing.assert_close(weights.sum(1), torch.tensor([1.0, 1, 1, 1, 0, 1]))
    (gradient,) = torch.autograd.grad((weights * torch.randn(6, 5)).sum(), [architecture.alphas["cell"]])
    assert not gradient[[1, 4]].any()
    assert gradient[[0, 2, 3, 5]].any(dim=1).all()
    assert torch.isfinite(gradient).all()
