"""The crossing of all strategies, selections and spaces: what is ticked works, what is refused says so."""

from pathlib import Path
from typing import Any

import methods
import pytest
from lightning.pytorch import Callback, seed_everything

from dartslight.callbacks import Selector
from dartslight.data import Digits
from dartslight.errors import InputError
from dartslight.modules import SearchModule
from dartslight.spaces import SPACES, Choices, SearchSpace
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


def nearly_decided(space: SearchSpace) -> Choices:
    """Everything is decided but the three edges into one node, or the one edge into the only node."""
    choices = Choices.everything(space)
    for cell in space.cells:
        left = next((n for n in cell.nodes if len(cell.edges_into(n)) == 3), cell.nodes[-1])
        for node in set(cell.nodes) - {left}:
            into = cell.edges_into(node)
            for e in into[:2]:
                choices = choices.decide((cell.name, e), len(cell.edges[e].ops) - 1)
            choices = choices.drop((cell.name, e) for e in into[2:])
    return choices


class Walk(Callback):
    """After a batch in every stage lets each rule that may take two decisions, with another batch between them.

    The batches of the stages see everything open. The rules begin where most is decided, which takes a fraction of the
    time. A rule that decides all at once takes no batch afterwards, as in a run. The epochs between are left out: what
    depends on the place in the search is computed from the number of the epoch.
    """

    def __init__(self, strategy: str, space: str) -> None:
        self.strategy, self.space = strategy, space
        self.walked: list[str] = []
        self._batch: Any = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._batch = batch

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        for epoch in (*pl_module.timetable.ends[:-1], methods.EPOCHS - 1):
            self.step(trainer, pl_module, epoch)
        for name in methods.SELECTIONS:
            if methods.refusal(self.strategy, name, self.space) is None:
                self.decide(trainer, pl_module, name)
                self.walked.append(name)
        trainer.should_stop = True

    def decide(self, trainer: Any, module: SearchModule, name: str) -> None:
        start = nearly_decided(module.space)
        rule, module.choices = methods.SELECTIONS[name](), start
        first, *later = rule.schedule(methods.plan_of(module)).points
        trainer.fit_loop.max_epochs, module.search_epochs = methods.EPOCHS, None  # as a search begins
        selector = Selector(rule)
        # SGAS remembers the weights of what it has decided.
        decided = {
            cell.name: {e: [0.0] * cell.num_ops for e in range(len(cell.edges)) if e not in start.undecided(cell.name)}
            for cell in module.space.cells
        }
        fresh = {"points": 0, "decisions": [], "rule": repr(rule), "observed": 0, "ended": False}
        selector.load_state_dict({**fresh, "memory": {"decided": decided}})
        selector.setup(trainer, module, "fit")
        self.end_of_epoch(trainer, module, selector, first - 1)
        assert module.choices == start
        self.end_of_epoch(trainer, module, selector, first)
        decisions = len(selector.state_dict()["decisions"])
        assert decisions
        assert module.choices != start
        assert selector.state_dict()["ended"] == (name == "curvature stop")
        if later and not selector.is_complete:
            self.step(trainer, module, first)
            self.end_of_epoch(trainer, module, selector, later[0])
            assert selector.state_dict()["points"] == 2
            assert len(selector.state_dict()["decisions"]) > decisions
        selector.on_fit_end(trainer, module)

    @staticmethod
    def end_of_epoch(trainer: Any, module: SearchModule, selector: Selector, epochs: int) -> None:
        trainer.fit_loop.epoch_progress.current.completed = epochs - 1
        selector.on_train_epoch_end(trainer, module)

    def step(self, trainer: Any, module: SearchModule, epoch: int) -> None:
        """Trains on the first batch of an epoch."""
        trainer.fit_loop.epoch_progress.current.completed = epoch
        module.supernet.zero_grad()
        module.training_step(self._batch, 0)
        assert any(w.grad is not None for w in module.supernets[module.timetable.stage(epoch)].parameters())


@pytest.mark.slow
@pytest.mark.parametrize("space", [name for name in SPACES if name != "mobile"])  # whose layers mobile_small has too
@pytest.mark.parametrize("strategy", methods.STRATEGIES)
def test_every_tick_takes_two_batches_and_two_decisions(strategy: str, space: str, tmp_path: Path) -> None:
    walked = [name for name in methods.SELECTIONS if methods.refusal(strategy, name, space) is None]
    if not walked:
        return  # the program refuses the search itself, with a sentence of the table
    seed_everything(0)
    walk = Walk(strategy, space)
    try:
        module = methods.search(strategy, space)
    except InputError:
        assert all(methods.refusal(strategy, name, space) for name in methods.SELECTIONS)
        return
    trainer = SearchTrainer(
        accelerator="cpu",
        max_epochs=methods.EPOCHS,
        limit_val_batches=0,
        callbacks=[walk],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, datamodule=Digits(max_pictures=8, batch_size=4, size=4, padding=1))
    assert walk.walked == walked
    first, last = module.supernets[0], module.supernets[-1]
    widths = [[tuple(w.shape) for w in net.parameters()] for net in (first, last)]
    assert (widths[0] != widths[1]) == (len(module.stages) > 1)
