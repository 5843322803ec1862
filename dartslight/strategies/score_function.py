"""The gradient of an expected loss over drawn architectures, whose criteria need not be differentiable.

The search minimises E[sum of the criteria at z], where z is a drawn architecture: losses of the network on a pair of
batches, with an architecture for each pair of pictures, and costs that are measured, such as a latency.

Paper: UNAS, Vahdat et al., "UNAS: Differentiable Architecture Search Meets Reinforcement Learning", CVPR 2020,
https://arxiv.org/abs/1912.07651. The passes of hard samples leave the running statistics alone; the published code lets
them move.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dartslight.criteria import Cost, Criterion, CrossEntropies, GeneralisationGap, NetworkLoss, Surrogate
from dartslight.errors import InputError, check_least
from dartslight.genotype import Genotype
from dartslight.spaces import SearchSpace
from dartslight.strategies.draws import Draw
from dartslight.strategies.estimators import Estimator, Rebar
from dartslight.strategies.gradients import ArchitectureGradient, derivatives
from dartslight.strategies.relaxations import Relaxation
from dartslight.strategies.smoothing import Rows


@dataclass(frozen=True)
class Expectation:
    """One instance of the problem: a pair of batches and an architecture for each pair of their pictures.

    Args:
        draws: The samples of each cell type, one for each pair.
        discrete: Tells the cross-entropies at hard samples.
        relaxed: Tells the cross-entropies at relaxed samples.
        alphas: The architecture parameters.
        penalty: What the relaxation adds to the losses, or None.
        draw: Draws so many architectures to be measured, the same on all devices.
        genotypes: Turns hard samples into architectures.
        step: Number of architecture steps before this one.
        on_first: Returns what a function returns on the first device, while the others wait.
        average: Returns the means of tensors over all devices.
        loss_scale: What a loss is multiplied by while it is differentiated, so that 16-bit numbers do not vanish.
    """

    draws: Mapping[str, Draw]
    discrete: Callable[[Rows], CrossEntropies]
    relaxed: Callable[[Rows], CrossEntropies]
    alphas: Sequence[Tensor]
    penalty: Tensor | None
    draw: Callable[[int], Mapping[str, Draw]]
    genotypes: Callable[[Rows], Sequence[Genotype]]
    step: int
    on_first: Callable[[Callable[[], Any]], Any] = lambda compute: compute()
    average: Callable[[Sequence[Tensor]], Sequence[Tensor]] = list
    loss_scale: Tensor | float = 1.0


class ScoreFunction(ArchitectureGradient, nn.Module):
    """The derivative of the expected criteria by an estimator; its relaxation must be `Sampled` or `Factorised`.

    Costs are measured on samples of their own, and their derivative is estimated by an estimator of their own of the
    same kind, for which a surrogate takes the place of relaxed costs. It is fitted before the first step of the
    architecture parameters. What is remembered of earlier steps, the moving averages and the surrogates, is in
    checkpoints.

    Args:
        estimator: The estimator; null is UNAS' own, `Rebar`.
        criteria: What is minimised, added up; null is the generalisation gap of UNAS.
        cost_samples: Number of architectures that are measured in each step (published: 1); a look-up is cheap.
        surrogate_samples: Number of architectures that are measured for the surrogates.
    """

    draws = True

    def __init__(
        self,
        estimator: Estimator | None = None,
        criteria: list[Criterion] | None = None,
        cost_samples: int = 1,
        surrogate_samples: int = 10_000,
    ) -> None:
        nn.Module.__init__(self)
        check_least(1, cost_samples=cost_samples)
        check_least(5, surrogate_samples=surrogate_samples)
        criteria = [GeneralisationGap()] if criteria is None else criteria
        self.losses = [c for c in criteria if isinstance(c, NetworkLoss)]
        self.costs = [c for c in criteria if isinstance(c, Cost)]
        if not self.losses:
            raise InputError(
                "criteria has no loss of the network, without which every architecture is equally good; give "
                "CrossEntropy or GeneralisationGap among them."
            )
        self.cost_samples, self.surrogate_samples = cost_samples, surrogate_samples
        self.of_losses = estimator or Rebar()
        self.of_costs = copy.deepcopy(self.of_losses)
        self.surrogates = nn.ModuleList()
        self._seen: dict[str, Tensor] = {}

    def prepare(self, space: SearchSpace, relaxation: Relaxation) -> None:
        """Makes a surrogate of each cost.

        Raises:
            InputError: If a cost does not know the architectures of the space, or a draw is none of them.
        """
        for cost in self.costs:
            cost.check(space, draws_inputs=relaxation.draws_inputs)
        features = sum(len(cell.edges) * cell.num_ops for cell in space.cells)
        self.surrogates = nn.ModuleList(Surrogate(features) for _ in self.costs)

    def __call__(self, problem: Expectation) -> tuple[Tensor, ...]:
        """Returns the estimate of d E[criteria] / d alpha."""
        self._seen = {}
        number = self._of_costs(problem) if self.costs else 0.0
        draws, average = problem.draws, problem.average
        number = number + self.of_losses(draws, self._at(problem.discrete), self._at(problem.relaxed), average)
        number = number if problem.penalty is None else number + problem.penalty
        return derivatives(number, problem.alphas, problem.loss_scale)

    def seen(self) -> dict[str, Tensor]:
        """Returns the mean of each cost over what was measured, and the errors of the surrogates, in their units."""
        return self._seen

    def _at(self, cross_entropies: Callable[[Rows], CrossEntropies]) -> Callable[[Rows], Tensor]:
        """Returns the network's losses of each pair as a function of the samples."""

        def losses(rows: Rows) -> Tensor:
            at_rows = cross_entropies(rows)
            return torch.stack([loss(at_rows) for loss in self.losses]).sum(dim=0)

        return losses

    def _of_costs(self, problem: Expectation) -> Tensor:
        """Returns the number whose derivative is the estimate for the costs."""
        device = problem.alphas[0].device.type
        with torch.autocast(device, enabled=False):  # few numbers, of more digits than 16 bits hold
            if self.of_costs.relaxes:
                self._fit(problem)
            draws = problem.draw(self.cost_samples)

            def discrete(rows: Rows) -> Tensor:
                measured = self._measured(problem, rows)
                self._seen.update(
                    {f"cost/{cost.name}": own.mean() for cost, own in zip(self.costs, measured, strict=True)}
                )
                return self._loss(measured, problem.step)

            def relaxed(rows: Rows) -> Tensor:
                return self._loss([surrogate(rows) for surrogate in self.surrogates], problem.step)

            estimate: Tensor = self.of_costs(draws, discrete, relaxed, problem.average)
            return estimate

    def _loss(self, costs: Sequence[Tensor], step: int) -> Tensor:
        """Returns the loss of each sample by what it costs."""
        return torch.stack([cost.loss(own, step) for cost, own in zip(self.costs, costs, strict=True)]).sum(dim=0)

    def _measured(self, problem: Expectation, rows: Rows) -> Sequence[Tensor]:
        """Returns what each sample costs, (samples,) for each cost."""
        like = problem.alphas[0]
        found = problem.on_first(lambda: self._measure(problem.genotypes(rows)))
        return list(torch.tensor(found, dtype=like.dtype, device=like.device))

    def _measure(self, genotypes: Sequence[Genotype]) -> list[list[float]]:
        return [[cost.measure(genotype) for genotype in genotypes] for cost in self.costs]

    @torch.no_grad()
    def _fit(self, problem: Expectation) -> None:
        """Fits the surrogates on the first device, unless that has been done."""
        if any(bool(surrogate.error.isnan()) for surrogate in self._all_surrogates()):
            rows = {cell: draw.hard for cell, draw in problem.draw(self.surrogate_samples).items()}

            def fitted() -> list[dict[str, Tensor]]:
                costs = torch.tensor(self._measure(problem.genotypes(rows)), dtype=torch.float64)
                for surrogate, own in zip(self._all_surrogates(), costs, strict=True):
                    surrogate.fit(rows, own.to(problem.alphas[0].device))
                return [{name: value.cpu() for name, value in s.state_dict().items()} for s in self.surrogates]

            for surrogate, state in zip(self.surrogates, problem.on_first(fitted), strict=True):
                surrogate.load_state_dict(state)
        for cost, surrogate in zip(self.costs, self._all_surrogates(), strict=True):
            self._seen[f"surrogate_error/{cost.name}"] = surrogate.error

    def _all_surrogates(self) -> list[Surrogate]:
        return [s for s in self.surrogates if isinstance(s, Surrogate)]
