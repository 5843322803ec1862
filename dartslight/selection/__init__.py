"""Selection: how a trained supernet becomes one architecture."""

from dartslight.selection.budget import Budget
from dartslight.selection.curvature_stop import CurvatureStop
from dartslight.selection.free import FreeDarts
from dartslight.selection.greedy import Sgas
from dartslight.selection.one_shot import LeaveOneOut, Sensitivity
from dartslight.selection.perturbation import Perturbation
from dartslight.selection.racing import Race
from dartslight.selection.rule import (
    Candidate,
    Decision,
    Evaluation,
    Measurement,
    Outcome,
    Rule,
    Schedule,
    SearchPlan,
    Sensitivities,
    Supernet,
    Tuning,
    Variant,
    schedule_of,
)
from dartslight.selection.saliency import FreeFlow, Grasp, Saliency, Snip
from dartslight.selection.staged import Staged
from dartslight.selection.strongest import Magnitude, Random

__all__ = [
    "Budget",
    "Candidate",
    "CurvatureStop",
    "Decision",
    "Evaluation",
    "FreeDarts",
    "FreeFlow",
    "Grasp",
    "LeaveOneOut",
    "Magnitude",
    "Measurement",
    "Outcome",
    "Perturbation",
    "Race",
    "Random",
    "Rule",
    "Saliency",
    "Schedule",
    "SearchPlan",
    "Sensitivities",
    "Sensitivity",
    "Sgas",
    "Snip",
    "Staged",
    "Supernet",
    "Tuning",
    "Variant",
    "schedule_of",
]
