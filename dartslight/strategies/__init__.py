"""Search strategies: a relaxation turns architecture parameters into mixing weights, a gradient teaches them."""

from dartslight.strategies.architecture import Architecture, AuxiliarySkip, Sample, drawn_choices, genotypes
from dartslight.strategies.combinations import check_combination, check_space
from dartslight.strategies.curvature import hessian_product, largest_eigenvalue
from dartslight.strategies.draws import Draw, Sampled, draw
from dartslight.strategies.estimators import Estimator, GumbelSoftmax, Losses, Rebar, Reinforce
from dartslight.strategies.factorised import Factorised
from dartslight.strategies.gradients import (
    ArchitectureGradient,
    Bilevel,
    FiniteDifference,
    FirstOrder,
    Fixed,
    Loss,
    Unrolled,
)
from dartslight.strategies.relaxations import Dirichlet, Gumbel, Relaxation, Sigmoid, Softmax
from dartslight.strategies.score_function import Expectation, ScoreFunction
from dartslight.strategies.smoothing import AdversarialSmoothing, RandomSmoothing, Rows, Smoothing

__all__ = [
    "AdversarialSmoothing",
    "Architecture",
    "ArchitectureGradient",
    "AuxiliarySkip",
    "Bilevel",
    "Dirichlet",
    "Draw",
    "Estimator",
    "Expectation",
    "Factorised",
    "FiniteDifference",
    "FirstOrder",
    "Fixed",
    "Gumbel",
    "GumbelSoftmax",
    "Loss",
    "Losses",
    "RandomSmoothing",
    "Rebar",
    "Reinforce",
    "Relaxation",
    "Rows",
    "Sample",
    "Sampled",
    "ScoreFunction",
    "Sigmoid",
    "Smoothing",
    "Softmax",
    "Unrolled",
    "check_combination",
    "check_space",
    "draw",
    "drawn_choices",
    "genotypes",
    "hessian_product",
    "largest_eigenvalue",
]
