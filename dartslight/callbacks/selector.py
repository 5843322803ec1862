"""Runs a selection rule on the supernet that is being trained: asks it when it is due, and keeps what it answered."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.trainer.states import TrainerFn

from dartslight.callbacks.live_supernet import LiveSupernet
from dartslight.callbacks.scores_file import SCORES, ScoresFile
from dartslight.errors import InputError
from dartslight.genotype import Genotype
from dartslight.modules import SearchModule
from dartslight.modules.checkpoint import HEADER
from dartslight.report.conclusion import write_conclusion
from dartslight.run_folder import DECISIONS, LAST, SEARCHED, by_first_device, folder_of, write_whole
from dartslight.seeding import run_seed
from dartslight.selection import Rule, Schedule, schedule_of
from dartslight.selection.record import decisions_csv, in_words, record
from dartslight.spaces import Choices

Listener = Callable[[Trainer, SearchModule, int, float, list[dict[str, Any]]], None]
"""What is called after each decision point: with the trainer, the search, the number of finished epochs, the seconds
that the point took, and its decisions."""


class Selector(Callback):
    """Lets a rule decide the supernet after the search, and fine-tunes it between the decisions.

    What is due follows from the number of finished epochs alone, so a run that goes on anywhere catches up by itself.

    Args:
        rule: The selection rule.
    """

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self._points = 0
        self._decisions: list[dict[str, Any]] = []
        self._memory: dict[str, Any] = {}
        self._observed = 0  # epochs
        self._is_ended = False
        self._is_selected_again = False
        self._schedule = Schedule(())
        self._begin: tuple[float, int] | None = None  # when this process took its first decision, and which one
        self.listeners: list[Listener] = []

    # ------------------------------------------------------------------ when

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Adds the epochs of the selection to those of the search."""
        if stage != "fit":
            return
        if any(isinstance(callback, EarlyStopping) for callback in cast("Any", trainer).callbacks):
            raise InputError(
                "EarlyStopping would end the run in the middle of the selection; leave it out, or search with it and "
                "--selection null first and decide the supernet with select."
            )
        module = _search(pl_module)
        self._is_selected_again = module.search_epochs is not None
        if module.search_epochs is None:
            module.search_epochs = trainer.max_epochs
        self._schedule = schedule_of(self.rule, module.search_plan(self._is_selected_again))
        module.tuning, module.tuning_epochs = self.rule.tuning(), self._schedule.tuning_epochs
        trainer.fit_loop.max_epochs = cast("int", module.search_epochs) + module.tuning_epochs

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Catches up with what is due when a run begins or goes on; no epoch may follow whose end has a checkpoint."""
        module, folder, before = _search(pl_module), folder_of(trainer), self._points
        self._catch_up(trainer, module, trainer.current_epoch)
        if self._points > before and folder is not None:
            folder.checkpoint(trainer, LAST)
        last = cast("int", module.search_epochs) + module.tuning_epochs
        if self._is_ended or (self.is_complete and trainer.current_epoch >= last):
            trainer.should_stop = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Catches up where Lightning has skipped the end of an epoch, as after a checkpoint on its last batch."""
        self._catch_up(trainer, _search(pl_module), trainer.current_epoch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the decisions that are due after this epoch, so that its checkpoint holds them."""
        if trainer.is_last_batch:  # not where something has ended the run within the epoch
            self._catch_up(trainer, _search(pl_module), trainer.current_epoch + 1)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows the architecture and how it was decided, also where a finished run is started again."""
        if self.is_complete:
            self._conclude(trainer, _search(pl_module))

    @property
    def is_complete(self) -> bool:
        """Whether the architecture is decided."""
        return self._is_ended or self._points == len(self._schedule.points)

    @property
    def done(self) -> int:
        """How many decision points are over."""
        return self._points

    @property
    def count(self) -> int:
        """How many decision points there are."""
        return len(self._schedule.points)

    @property
    def taken(self) -> str:
        """How many decisions have been taken, in words."""
        return f"{self.done} of {self.count} decisions"

    @property
    def decisions(self) -> Sequence[dict[str, Any]]:
        """The decisions so far as plain values, see `dartslight.selection.record.record`."""
        return self._decisions

    def _catch_up(self, trainer: Trainer, module: SearchModule, epochs: int) -> None:
        """Lets the rule see and decide what it should have seen and decided after so many epochs."""
        is_over = epochs >= cast("int", module.search_epochs)
        if is_over and self._schedule.tuning_epochs and not module.tuning.monitor:
            trainer.limit_val_batches = 0
        if self._observed < epochs <= cast("int", module.search_epochs):
            self.rule.observe(self._supernet(trainer, module, "observation", epochs, _scores(trainer)), epochs)
            self._observed = epochs
        due = sum(point <= epochs for point in self._schedule.points)
        if self._points >= due or self._is_ended:
            return
        folder = folder_of(trainer)
        undecided = module.choices == Choices.everything(module.space)
        if is_over and undecided and folder is not None:
            if not self._is_selected_again:
                folder.checkpoint(trainer, SEARCHED)
            if not trainer.strategy.broadcast((folder.path / "checkpoints" / LAST).exists()):
                folder.checkpoint(trainer, LAST)  # what goes on if this decision is interrupted
        scores, ended = _scores(trainer), False  # no checkpoint is written between these decisions
        while self._points < due and not ended:
            ended = self._decide(trainer, module, epochs, scores)
        if ended:
            self._is_ended = trainer.should_stop = True

    def _supernet(
        self, trainer: Trainer, module: SearchModule, title: str, epochs: int, scores: ScoresFile
    ) -> LiveSupernet:
        return LiveSupernet(trainer, module, title, scores, self._memory, epochs)

    # ------------------------------------------------------------------ what

    def _decide(self, trainer: Trainer, module: SearchModule, epochs: int, scores: ScoresFile) -> bool:
        """Asks the rule at one decision point, commits what rank 0 heard, and returns whether that ends the run."""
        start = time.perf_counter()
        count = len(self._schedule.points)
        self._begin = self._begin or (start, self._points)
        began, first = self._begin
        title = f"decision {self._points + 1} of {count}{_left(start - began, first, self._points, count)}"
        try:
            own = self.rule.decide(self._supernet(trainer, module, title, epochs, scores), self._points, run_seed())
        except InputError as error:
            raise InputError(f"Decision {self._points + 1} cannot be taken: {error}") from None
        outcome = trainer.strategy.broadcast(own)
        agree = own.choices == outcome.choices
        if not trainer.strategy.reduce_boolean_decision(agree, all=True):
            raise InputError(
                f"The devices disagree on decision {self._points + 1}, so their supernets differ; go on from an "
                "earlier checkpoint on one device, and report this."
            )
        seconds = time.perf_counter() - start
        module.choices = outcome.choices
        taken = [record(d, len(self._decisions) + i, epochs, seconds) for i, d in enumerate(outcome.decisions)]
        self._decisions += taken
        self._points += 1
        folder = folder_of(trainer)
        if folder is not None:
            path = folder.path / DECISIONS
            by_first_device(trainer, lambda: write_whole(path, decisions_csv(self._decisions)))
        for listener in self.listeners:
            listener(trainer, module, epochs, seconds, taken)
        return outcome.ends_run

    def _conclude(self, trainer: Trainer, module: SearchModule) -> None:
        genotype = Genotype.from_choices(module.space, module.choices)
        folder = folder_of(trainer)
        if folder is not None:
            path = folder.path
            by_first_device(trainer, lambda: _write(path, genotype, self._decisions))
        if trainer.is_global_zero:
            print(f"\n{in_words(genotype, self._decisions)}\n")

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Makes room for decisions that no epoch is left for: of a selection without epochs that was stopped."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        kept = checkpoint["callbacks"].get(self.state_key, {"points": 0, "ended": False})
        last = cast("int", _search(pl_module).search_epochs) + _search(pl_module).tuning_epochs
        is_left = kept["points"] < len(self._schedule.points) and not kept["ended"]
        if is_left and checkpoint[HEADER]["epochs"] >= last:
            trainer.fit_loop.max_epochs = last + 1  # which `on_train_start` calls off

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that the selection has done so far, as plain values."""
        return {
            "points": self._points,
            "decisions": self._decisions,
            "rule": repr(self.rule),
            "memory": self._memory,
            "observed": self._observed,
            "ended": self._is_ended,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from what `state_dict` returned.

        Raises:
            InputError: If decisions have been taken by another rule.
        """
        if state_dict["points"] and state_dict["rule"] != repr(self.rule):
            raise InputError(
                f"The checkpoint holds decisions of {state_dict['rule']}, but this run has {self.rule!r}; go on with "
                "the same configuration, or decide the search.ckpt of that run anew with select."
            )
        self._points, self._decisions = state_dict["points"], list(state_dict["decisions"])
        self._memory, self._observed, self._is_ended = state_dict["memory"], state_dict["observed"], state_dict["ended"]


def _write(path: Path, genotype: Genotype, decisions: list[dict[str, Any]]) -> None:
    """Writes what a selection ends with into the folder of its run."""
    (path / "checkpoints" / SCORES).unlink(missing_ok=True)
    write_conclusion(path, genotype, decisions)


def _scores(trainer: Trainer) -> ScoresFile:
    """Returns where measurements are kept until a checkpoint holds what they have decided."""
    folder = folder_of(trainer)
    return ScoresFile(None if folder is None else folder.path / "checkpoints" / SCORES)


def _left(seconds: float, first: int, now: int, count: int) -> str:
    """How long the selection still takes at its pace so far, tuning included, in words."""
    if now == first:
        return ""
    left = seconds / (now - first) * (count - now)
    return f", {left:.0f} s left" if left < 100 else f", {left / 60:.0f} min left"


def _search(module: LightningModule) -> SearchModule:
    assert isinstance(module, SearchModule)
    return module
