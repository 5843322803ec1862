"""Lightning callbacks: they schedule, remember and write; what they run is in `dartslight.selection`."""

from dartslight.callbacks.dashboard import Dashboard
from dartslight.callbacks.diagnostics import ArchitectureStatistics, Curvature, NoiseFloor
from dartslight.callbacks.end_of_search import EdgeShuffle, StrengthStudy
from dartslight.callbacks.estimate_noise import EstimateNoise
from dartslight.callbacks.free_start import FreeStart
from dartslight.callbacks.history import History
from dartslight.callbacks.progress import ProgressBars, ProgressLog
from dartslight.callbacks.run_files import RunCheckpoints, RunConfig
from dartslight.callbacks.selector import Selector
from dartslight.callbacks.true_accuracy import TrueAccuracy

__all__ = [
    "ArchitectureStatistics",
    "Curvature",
    "Dashboard",
    "EdgeShuffle",
    "EstimateNoise",
    "FreeStart",
    "History",
    "NoiseFloor",
    "ProgressBars",
    "ProgressLog",
    "RunCheckpoints",
    "RunConfig",
    "Selector",
    "StrengthStudy",
    "TrueAccuracy",
]
