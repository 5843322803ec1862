"""Estimators of the gradient of an expected loss, against the gradient enumerated over all architectures."""

import itertools
from collections.abc import Callable, Mapping

import pytest
import torch
from test_captured import Waits
from torch import Tensor
from torch.nn import functional

from dartslight.errors import InputError
from dartslight.strategies import Draw, Estimator, GumbelSoftmax, Rebar, Reinforce, draw

pytestmark = pytest.mark.usefixtures("float64")

Rows = Mapping[str, Tensor]
TEMPERATURE = 0.4


class WithoutCorrection(Rebar):
    """The control variate without the derivative given the hard sample."""

    def forward(self, draws: Mapping[str, Draw], *args: object) -> Tensor:
        return super().forward({c: d._replace(conditional=d.relaxed.detach()) for c, d in draws.items()}, *args)


def everything(alphas: Rows) -> dict[str, Tensor]:
    return {cell: torch.ones(alpha.shape, dtype=torch.bool) for cell, alpha in alphas.items()}


def nonlinear_loss(alphas: Rows) -> Callable[[Rows], Tensor]:
    """The cross-entropy of class 0 of logits that are linear in the samples."""
    matrices = {cell: torch.randn(alpha.numel(), 5) for cell, alpha in alphas.items()}
    return lambda rows: -torch.log_softmax(sum(rows[c].flatten(1) @ m for c, m in matrices.items()), dim=1)[:, 0]


def true_gradient(alphas: Rows, is_open: Rows, loss: Callable[[Rows], Tensor]) -> dict[str, Tensor]:
    """The derivative of sum over all z of p(z) L(z), gone edges without any weight."""
    leaves = {cell: alpha.clone().requires_grad_() for cell, alpha in alphas.items()}
    edges = [(cell, e) for cell in alphas for e in range(len(alphas[cell])) if is_open[cell][e].any()]
    options = [is_open[cell][e].nonzero().flatten().tolist() for cell, e in edges]
    combinations = list(itertools.product(*options))
    rows = {cell: torch.zeros(len(combinations), *alpha.shape) for cell, alpha in alphas.items()}
    probability = torch.ones(len(combinations))
    for (cell, e), columns, own in zip(edges, zip(*combinations, strict=True), options, strict=True):
        rows[cell][range(len(combinations)), e, list(columns)] = 1.0
        shares = torch.softmax(leaves[cell][e, own], dim=0)
        probability = probability * shares[[own.index(column) for column in columns]]
    expected = (probability * loss(rows)).sum()
    gradients = torch.autograd.grad(expected, list(leaves.values()))
    return dict(zip(alphas, gradients, strict=True))


def estimates(
    estimator: Estimator,
    alphas: Rows,
    is_open: Rows,
    discrete: Callable[[Rows], Tensor],
    relaxed: Callable[[Rows], Tensor],
    count: int = 100_000,
) -> dict[str, Tensor]:
    """The estimate of each sample alone, (samples, edges, ops) for each cell type."""
    leaves = {cell: alpha.expand(count, *alpha.shape).clone().requires_grad_() for cell, alpha in alphas.items()}
    draws = {cell: draw(leaf, is_open[cell], count, TEMPERATURE) for cell, leaf in leaves.items()}
    gradients = torch.autograd.grad(estimator(draws, discrete, relaxed), list(leaves.values()))
    return {cell: gradient * count for cell, gradient in zip(alphas, gradients, strict=True)}


def errors(found: Rows, true: Rows) -> Tensor:
    """The difference from the true gradient in standard errors of the mean, for every coordinate that is not fixed."""
    each = torch.cat([samples.flatten(1) for samples in found.values()], dim=1)
    goal = torch.cat([gradient.flatten() for gradient in true.values()])
    spread = each.std(dim=0)
    fixed = spread == 0
    assert torch.equal(each.mean(dim=0)[fixed], goal[fixed])
    return ((each.mean(dim=0) - goal) * len(each) ** 0.5 / spread)[~fixed].abs()


@pytest.mark.parametrize("num_edges", [1, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_unas_is_right_on_average_and_varies_less_than_reinforce(num_edges: int, seed: int) -> None:
    torch.manual_seed(seed)
    alphas = {"cell": torch.randn(num_edges, 4)}
    loss = nonlinear_loss(alphas)
    true = true_gradient(alphas, everything(alphas), loss)

    def found(estimator: Estimator) -> dict[str, Tensor]:
        return estimates(estimator, alphas, everything(alphas), loss, loss)

    unas, reinforce = found(Rebar()), found(Reinforce())
    assert errors(unas, true).max() < 4
    assert errors(reinforce, true).max() < 4
    assert errors(found(GumbelSoftmax()), true).max() > 10
    assert errors(found(WithoutCorrection()), true).max() > 10
    lower = unas["cell"].std(dim=0) < reinforce["cell"].std(dim=0)
    assert lower.double().mean() > 0.5


@pytest.mark.parametrize("seed", [0, 1])
def test_with_several_edges_unas_varies_less_than_reinforce_with_its_baseline(seed: int) -> None:
    torch.manual_seed(seed)
    alphas = {"cell": torch.randn(3, 4)}
    loss = nonlinear_loss(alphas)
    settled, unsettled = Reinforce(), Reinforce()
    for _ in range(50):
        estimates(settled, alphas, everything(alphas), loss, loss, 1000)
    found = [estimates(e, alphas, everything(alphas), loss, loss) for e in (Rebar(), settled, unsettled)]
    spreads = [samples["cell"].std(dim=0) for samples in found]
    assert (spreads[0] < spreads[1]).double().mean() > 0.5
    assert (spreads[1] < spreads[2]).double().mean() > 0.5
    assert errors(found[1], true_gradient(alphas, everything(alphas), loss)).max() < 4


@pytest.mark.parametrize("estimator", [Rebar, Reinforce])
def test_what_is_closed_decided_or_gone_is_left_out(estimator: type[Estimator]) -> None:
    alphas = {"normal": torch.randn(3, 4), "reduction": torch.randn(2, 3)}
    is_open = everything(alphas)
    is_open["normal"][0, 1] = False
    is_open["normal"][1] = torch.tensor([False, False, True, False])
    is_open["normal"][2] = False
    is_open["reduction"][1, 0] = False
    loss = nonlinear_loss(alphas)
    true = true_gradient(alphas, is_open, loss)
    found = estimates(estimator(), alphas, is_open, loss, loss)
    assert errors(found, true).max() < 4
    for cell, mask in is_open.items():
        undecided = mask & (mask.sum(dim=1, keepdim=True) > 1)
        assert not found[cell][:, ~undecided].any()
        assert found[cell][:, undecided].any(dim=0).all()
    made = draw(alphas["normal"], is_open["normal"], 1000, TEMPERATURE)
    for weights in (made.hard, made.relaxed, made.conditional):
        assert not weights[:, ~is_open["normal"]].any()
        assert torch.allclose(weights.sum(dim=-1), torch.tensor([1.0, 1.0, 0.0]))
        assert torch.equal(weights[:, 1], is_open["normal"][1].to(weights.dtype).expand(1000, 4))


def restated(alphas: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Relaxed and conditional sample of one edge and its hard operation, from the formulas of REBAR, one sample."""
    logits = alphas - torch.logsumexp(alphas, dim=0)
    q = torch.exp(logits)
    gumbel = logits - torch.log(-torch.log(uniform))
    k = int(gumbel.argmax())
    log_v_k = (torch.log(uniform[k]) / q[k]).detach()
    log_v = (torch.log(uniform) - q * log_v_k).detach()
    rebuilt = torch.stack(
        [-torch.log(-log_v_k) if i == k else -torch.log(-log_v[i] / q[i] - log_v_k) for i in range(len(alphas))]
    )
    relaxed, conditional = (torch.softmax(g / TEMPERATURE, dim=0) for g in (gumbel, rebuilt))
    return relaxed, conditional, functional.one_hot(torch.tensor(k), len(alphas))


def test_a_draw_follows_the_formulas() -> None:
    alphas = torch.randn(3, 4).requires_grad_()
    torch.manual_seed(7)
    made = draw(alphas, torch.ones(3, 4, dtype=torch.bool), 20, TEMPERATURE)
    torch.manual_seed(7)
    uniform = torch.rand(20, 3, 4).clamp(1e-3, 1 - 1e-3)
    directions = torch.randn(20, 3, 4)
    for s, e in itertools.product(range(20), range(3)):
        relaxed, conditional, hard = restated(alphas[e], uniform[s, e])
        assert torch.equal(made.hard[s, e], hard.to(alphas.dtype))
        torch.testing.assert_close(conditional, relaxed)
        for ours, theirs in ((made.relaxed, relaxed), (made.conditional, conditional)):
            torch.testing.assert_close(ours[s, e], theirs)
            pair = [
                torch.autograd.grad((x * directions[s, e]).sum(), alphas, retain_graph=True)[0]
                for x in (ours[s, e], theirs)
            ]
            torch.testing.assert_close(*pair)
            assert pair[0][e].abs().min() > 0 or theirs.max() > 1 - 1e-9
    torch.testing.assert_close(made.corrected, made.relaxed)
    direct, given_hard, both = (
        torch.autograd.grad((x * directions).sum(), alphas, retain_graph=True)[0]
        for x in (made.relaxed, made.conditional, made.corrected)
    )
    torch.testing.assert_close(both, direct - given_hard)


def test_softening_moves_all_probabilities() -> None:
    alphas, soften = torch.tensor([[6.0, 0.0, -6.0, 1.0]]), 0.08
    is_open = torch.tensor([[True, True, True, False]])
    made = draw(alphas, is_open, 100_000, TEMPERATURE, soften)
    shares = torch.softmax(alphas[0, :3], dim=0) + soften
    shares = shares / shares.sum()
    operations = made.hard[:, 0].argmax(dim=1)
    torch.testing.assert_close(made.log_probability, shares.log()[operations])
    counts = operations.bincount(minlength=4) / 100_000
    assert counts[3] == 0
    assert ((counts[:3] - shares).abs() < 4 * (shares * (1 - shares) / 100_000).sqrt()).all()


def test_probabilities_that_vanish_give_finite_numbers() -> None:
    alphas = torch.tensor([[80.0, 0.0, -700.0], [-1e4, 0.0, 1.0]]).float().requires_grad_()
    made = draw(alphas, torch.ones(2, 3, dtype=torch.bool), 1000, TEMPERATURE)
    (gradient,) = torch.autograd.grad((made.corrected.square().sum() + made.log_probability.sum()), alphas)
    assert gradient.isfinite().all()
    assert all(x.isfinite().all() for x in made)


def test_the_baseline_is_the_moving_average_of_earlier_losses() -> None:
    reinforce = Reinforce(decay=0.75)
    alphas = {"cell": torch.zeros(1, 2)}
    seen: list[Tensor] = []

    def loss(rows: Rows) -> Tensor:
        seen.append(5 * len(seen) + rows["cell"][:, 0, 0])
        return seen[-1]

    def average(tensors: list[Tensor]) -> list[Tensor]:
        return [t + 100 for t in tensors]  # what another device has

    assert reinforce.baseline == 0
    for step in range(4):
        leaf = alphas["cell"].clone().requires_grad_()
        draws = {"cell": draw(leaf, torch.ones(1, 2, dtype=torch.bool), 3, TEMPERATURE)}
        shares = torch.tensor([0.75 ** (step - i - 1) for i in range(step)])
        expected = (
            sum(s * (own.mean() + 100) for s, own in zip(shares, seen, strict=True)) / shares.sum() if step else 0.0
        )
        number = reinforce(draws, loss, loss, average)
        score = torch.log(torch.tensor(0.5))
        torch.testing.assert_close(number, (score * (seen[-1] - expected)).mean())
    other = Reinforce(decay=0.75)
    other.load_state_dict(reinforce.state_dict())
    assert other.baseline == reinforce.baseline > 100


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_a_wrong_decay_is_refused(decay: float) -> None:
    with pytest.raises(InputError, match=f"decay is {decay}.*below 1"):
        Reinforce(decay)


@pytest.mark.parametrize("estimator", [Rebar, Reinforce])
def test_discrete_losses_need_no_derivative(estimator: type[Estimator]) -> None:
    alphas = torch.randn(2, 3).requires_grad_()
    draws = {"cell": draw(alphas, torch.ones(2, 3, dtype=torch.bool), 5, TEMPERATURE)}

    def counted(rows: Rows) -> Tensor:
        assert not torch.is_grad_enabled()
        return torch.tensor([1.0 + float(row.argmax()) for row in rows["cell"]])

    number = estimator()(draws, counted, lambda rows: rows["cell"].square().sum(dim=(1, 2)))
    (gradient,) = torch.autograd.grad(number, alphas)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("estimator", [GumbelSoftmax, Reinforce, Rebar])
def test_draws_and_estimates_wait_for_no_value(estimator: type[Estimator]) -> None:
    alphas = torch.randn(2, 3).requires_grad_()
    made = estimator()
    with Waits() as waits:
        draws = {"cell": draw(alphas, torch.ones(2, 3, dtype=torch.bool), 5, TEMPERATURE, soften=0.1)}
        loss = nonlinear_loss({"cell": alphas})
        torch.autograd.grad(made(draws, loss, loss), alphas)
    assert waits.count > 20
    assert waits.seen == []
