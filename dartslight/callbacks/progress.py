"""Tells how far a run is: bars on a terminal, lines without control characters elsewhere and in the run's folder."""

import contextlib
import statistics
import sys
import time
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from dartslight.callbacks.selector import Selector
from dartslight.modules import SearchModule
from dartslight.run_folder import folder_of
from dartslight.selection.record import outcome_in_words

PROGRESS = "progress.log"
"""Name of the file with a line for each epoch and each decision; lines are added, also by a run that goes on."""

Step = Literal["search", "training", "tuning", "decision"]
"""What a run takes one after the other; all but decisions are epochs."""

_RECENT = 5  # steps whose mean is the pace: stages of a search differ in it


@dataclass
class Pace:
    """How long each kind of step has taken lately, and so how long the rest of a run will take."""

    _seconds: dict[Step, deque[float]] = field(default_factory=lambda: defaultdict(lambda: deque(maxlen=_RECENT)))

    def note(self, step: Step, seconds: float) -> None:
        """Notes how long a step has taken."""
        self._seconds[step].append(seconds)

    def left(self, steps: Mapping[Step, int]) -> str:
        """Returns how long so many steps will take, in words; decisions that nothing is known of are counted.

        Args:
            steps: The number of steps that are left, by their kinds.
        """
        known = dict(self._seconds)
        if "tuning" not in known and "search" in known:
            known["tuning"] = known["search"]  # without architecture steps it takes less
        wanted = {step: count for step, count in steps.items() if count > 0}
        seconds = sum(count * statistics.fmean(known[step]) for step, count in wanted.items() if step in known)
        unknown = [f"{count} {_names(step, count)}" for step, count in wanted.items() if step not in known]
        return " and ".join(([_rounded(seconds)] if seconds or not unknown else []) + unknown) + " left"


class Phase(NamedTuple):
    """Where a run is.

    Args:
        name: search, selection or training.
        done: Epochs of the search or the training that are over, or decisions that have been taken.
        total: All of them.
        left: How long the whole run will still take, in words.
    """

    name: str
    done: int
    total: int
    left: str


class ProgressLog(Callback):
    """Adds a line to ``progress.log`` in the run's folder for every epoch and every decision.

    A line may be torn where the power fails, or missing where the disk is full; the metrics tell of that.

    Args:
        selector: The selection of the run, or None.
        prints: Whether the lines are printed too.
    """

    def __init__(self, selector: Selector | None = None, prints: bool = False) -> None:
        self.selector, self.prints = selector, prints
        self._pace = Pace()
        self._start = 0.0
        if selector is not None:
            selector.listeners.append(self._on_decision)

    def phase(self, trainer: Trainer, module: LightningModule, epochs: int) -> Phase:
        """Returns where the run is.

        Args:
            trainer: The trainer.
            module: What it trains.
            epochs: Number of finished epochs.
        """
        decisions = 0 if self.selector is None else self.selector.count - self.selector.done
        if not isinstance(module, SearchModule):
            total = cast("int", trainer.max_epochs)
            return Phase("training", epochs, total, self._pace.left({"training": total - epochs}))
        length = cast("int", module.search_epochs)
        searching = max(0, length - epochs)
        tuning = length + module.tuning_epochs - max(epochs, length)
        left = self._pace.left({"search": searching, "tuning": tuning, "decision": decisions})
        if searching or self.selector is None:
            return Phase("search", min(epochs, length), length, left)
        return Phase("selection", self.selector.done, self.selector.count, left)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tells of the epoch."""
        if not trainer.is_last_batch:  # something has ended the run within the epoch
            return
        step: Step = "training"
        total = cast("int", trainer.max_epochs)
        if isinstance(pl_module, SearchModule):
            length = cast("int", pl_module.search_epochs)
            step, total = ("tuning", total) if pl_module.is_tuning else ("search", length)
        self._pace.note(step, time.perf_counter() - self._start)
        epochs = trainer.current_epoch + 1
        values = ", ".join(f"{name} {value}" for name, value in metrics_of_epoch(trainer).items())
        left = self.phase(trainer, pl_module, epochs).left
        self._tell(trainer, f"{step}: epoch {epochs} of {total}; {values}; {left}")

    def _on_decision(
        self, trainer: Trainer, module: SearchModule, epochs: int, seconds: float, taken: list[dict[str, Any]]
    ) -> None:
        self._pace.note("decision", seconds)
        phase = self.phase(trainer, module, epochs)
        done, count = (0, 0) if self.selector is None else (self.selector.done, self.selector.count)
        what = "; ".join(" ".join(outcome_in_words(decision).split()) for decision in taken) or "nothing to decide"
        self._tell(trainer, f"decision {done} of {count}: {what}; {phase.left}")

    def _tell(self, trainer: Trainer, line: str) -> None:
        if not trainer.is_global_zero:
            return
        if self.prints:
            print(line, flush=True)
        folder = folder_of(trainer)
        if folder is not None and folder.exists:
            with contextlib.suppress(OSError), (folder.path / PROGRESS).open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")


class ProgressBars(ProgressBar):
    """Shows two bars: the phase of the run, with the time left for all of it, and the epoch.

    A third one, while a decision is being measured, says which (see `LiveSupernet`).

    Args:
        log: What knows how far the run is.
        shown: Whether bars are shown at all, as on a terminal.
    """

    def __init__(self, log: ProgressLog, shown: bool = True) -> None:
        super().__init__()
        self.log_of_run, self._shown = log, shown
        self._bars: tuple[Any, Any] | None = None

    @property
    def is_enabled(self) -> bool:
        """Whether bars are shown."""
        return self._shown

    def disable(self) -> None:
        """Shows no bars from now on; Lightning calls it on all devices but the first."""
        self._shown = False

    def enable(self) -> None:
        """Shows bars from now on."""
        self._shown = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Prints above the bars."""
        if self._shown:
            tqdm.write(" ".join(map(str, args)), file=sys.stdout)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the bars."""
        if not self._shown:
            return
        options: dict[str, Any] = {"file": sys.stdout, "dynamic_ncols": True}
        run = tqdm(bar_format="{desc:<10} {n_fmt}/{total_fmt} |{bar}|{postfix}", position=0, **options)
        epoch = tqdm(bar_format="{desc:<10} {n_fmt}/{total_fmt} |{bar}|{postfix}", position=1, leave=False, **options)
        self._bars = run, epoch
        if self.log_of_run.selector is not None:
            self.log_of_run.selector.listeners.append(lambda trainer, module, epochs, *_: self._update(trainer, epochs))
        self._update(trainer, trainer.current_epoch)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins the bar of the epoch."""
        if self._bars is not None:
            epoch = self._bars[1]
            validation = sum(int(count) for count in cast("Any", trainer).num_val_batches)
            epoch.reset(int(trainer.num_training_batches) + validation)
            epoch.set_description(f"epoch {trainer.current_epoch + 1}", refresh=False)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Moves the bar of the epoch."""
        if self._bars is not None:
            self._bars[1].update()

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Moves the bar of the epoch."""
        self.on_train_batch_end()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Moves the bar of the phase, and shows the metrics of the epoch."""
        if self._bars is not None:
            self._bars[1].set_postfix(metrics_of_epoch(trainer))
            self._update(trainer, trainer.current_epoch + 1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes the bars."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Closes the bars."""
        self._close()

    def _update(self, trainer: Trainer, epochs: int) -> None:
        if self._bars is not None:
            phase = self.log_of_run.phase(trainer, trainer.lightning_module, epochs)
            run = self._bars[0]
            run.total, run.n = phase.total, phase.done
            run.set_description(phase.name, refresh=False)
            run.set_postfix_str(f"{phase.left} for the whole run")

    def _close(self) -> None:
        for bar in self._bars or ():
            bar.close()
        self._bars = None


def metrics_of_epoch(trainer: Trainer) -> dict[str, str]:
    """Returns losses and accuracies of the epoch that ends, as text; the trainer keeps those of earlier ones as well.

    Args:
        trainer: The trainer.
    """
    parts = ("train/", "val/") if trainer.limit_val_batches else ("train/",)
    found = sorted(trainer.callback_metrics.items())
    return {name: f"{float(value):.4f}" for name, value in found if name.startswith(parts)}


def _names(step: Step, count: int) -> str:
    name = "decision" if step == "decision" else f"epoch of {step}"
    return name if count == 1 else name.replace("epoch", "epochs").replace("decision", "decisions")


def _rounded(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
