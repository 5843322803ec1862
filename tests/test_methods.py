"""The crossing of all strategies, selections and spaces: what is ticked works, what is refused says so."""

from pathlib import Path
from typing import Any

import methods
import pytest
from lightning.pytorch import Callback, seed_everything

from dartslight.callbacks.live_supernet import LiveSupernet
from dartslight.callbacks.scores_file import ScoresFile
from dartslight.data import Digits
from dartslight.modules import SearchModule
from dartslight.spaces import SPACES, Choices
from dartslight.trainer import SearchTrainer

DOCS = Path(__file__).parent.parent / "docs"


def test_the_table_is_up_to_date() -> None:
    assert (DOCS / "methods.md").read_text() == methods.table() + "\n", "run: python docs/methods.py > docs/methods.md"


def test_what_the_paper_compares_is_ticked() -> None:
    for space in ("darts", "s1", "s2", "s3", "s4", "nasbench201"):
        for strategy in ("DARTS", "blank", "SDARTS-RS", "SDARTS-ADV"):
            assert methods.refusal(strategy, "perturbation, official", space) is None
        assert methods.refusal("DARTS", "SGAS+PT", space) is None


def test_a_refusal_is_one_sentence() -> None:
    found = {methods.refusal(s, rule, "darts") for s in methods.STRATEGIES for rule in methods.SELECTIONS} - {None}
    assert found
    assert all(sentence.endswith(".") and "\n" not in sentence for sentence in found)


class Walk(Callback):
    """After two batches lets every rule that may take two decisions, with another batch between them."""

    def __init__(self, strategy: str, space: str) -> None:
        self.strategy, self.space = strategy, space
        self.walked: list[str] = []
        self._batch: Any = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._batch = batch

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        assert isinstance(pl_module, SearchModule)
        for name, make in methods.SELECTIONS.items():
            if methods.refusal(self.strategy, name, self.space) is not None:
                continue
            rule, choices = make(), Choices.everything(pl_module.space)
            points = rule.schedule(methods.plan_of(pl_module)).points
            supernet = LiveSupernet(trainer, pl_module, name, ScoresFile(None), {}, points[0])
            rule.observe(supernet, 1)
            for point in range(min(2, len(points))):
                pl_module.choices = choices
                outcome = rule.decide(supernet, point, 0)
                assert outcome.decisions or name == "curvature stop"
                assert outcome.choices != choices or point or not outcome.decisions
                pl_module.choices = choices = outcome.choices
                if point == 0:
                    pl_module.training_step(self._batch, 1)
            pl_module.choices = Choices.everything(pl_module.space)
            self.walked.append(name)


@pytest.mark.slow
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("strategy", methods.STRATEGIES)
def test_every_tick_takes_two_batches_and_two_decisions(strategy: str, space: str, tmp_path: Path) -> None:
    seed_everything(0)
    walk = Walk(strategy, space)
    module = methods.search(strategy, space)
    module.search_epochs = methods.EPOCHS
    trainer = SearchTrainer(
        accelerator="cpu",
        max_epochs=1,
        limit_val_batches=0,
        callbacks=[walk],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, datamodule=Digits(max_pictures=16, batch_size=4, size=8, padding=1))
    assert len(walk.walked) == sum(methods.refusal(strategy, name, space) is None for name in methods.SELECTIONS)
