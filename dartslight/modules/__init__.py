"""The LightningModules: the search and the retraining."""

from dartslight.modules.retrain import RetrainModule
from dartslight.modules.search import SearchModule

__all__ = ["RetrainModule", "SearchModule"]
