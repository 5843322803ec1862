"""What every process of a run writes down, and what one of them suffers, for the tests of several processes."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from dartslight.callbacks.live_supernet import LiveSupernet
from dartslight.callbacks.scores_file import ScoresFile
from dartslight.criteria import TableCost
from dartslight.genotype import Genotype
from dartslight.modules import SearchModule
from dartslight.nets import Supernet


class Probe(Callback):
    """Writes alphas, weights, the batches' labels of each process, and how many barriers its steps had.

    Args:
        folder: Where to.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.labels: list[list[int]] = []
        self.barriers = 0
        self._barrier = torch.distributed.barrier

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: dict, batch_idx: int) -> None:
        self.labels.append(batch["train"].labels.tolist())
        torch.distributed.barrier = self._count

    def on_train_batch_end(self, *_: Any) -> None:
        torch.distributed.barrier = self._barrier

    def _count(self, *args: Any, **kwargs: Any) -> Any:
        self.barriers += 1
        return self._barrier(*args, **kwargs)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        state = {
            "alphas": pl_module.architecture.state_dict(),
            "weights": {name: p.detach() for name, p in pl_module.supernet.named_parameters()},
            "choices": pl_module.choices.state(),
            "remembered": {k: v for k, v in pl_module.state_dict().items() if k.startswith("gradient.")},
            "labels": self.labels,
            "steps": trainer.global_step,
            "barriers": self.barriers,
        }
        torch.save(state, self.folder / f"rank{trainer.global_rank}.pt")


class Measured(Callback):
    """Writes how many pictures the supernet of each process saw in evaluations, times variants, in batches of 16.

    Args:
        folder: Where to.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.passes = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        forward_each = pl_module.supernet.forward_each

        def counted(images: torch.Tensor, variants: list, *rest: object) -> list:
            self.passes += len(variants)
            return forward_each(images, variants, *rest)

        pl_module.supernet.forward_each = counted

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.folder.mkdir(exist_ok=True)
        (self.folder / f"{trainer.world_size}_{trainer.global_rank}.txt").write_text(str(self.passes))


class Poison(Callback):
    """Makes the training pictures of the last process NaN in the third step."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: dict, batch_idx: int) -> None:
        if trainer.global_rank == trainer.world_size - 1 and trainer.global_step == 2:
            batch["train"].images.fill_(torch.nan)


class Told(Callback):
    """Tells the last process to stop while the first one waits for its message.

    Args:
        moment: ``step`` for the third step, ``decision`` for the first measurement.
    """

    def __init__(self, moment: str) -> None:
        self.moment = moment

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        owner, name = (SearchModule, "training_step") if self.moment == "step" else (Supernet, "forward_each")
        method = getattr(owner, name)

        def told(*args: Any) -> Any:
            due = trainer.global_step == 2 if self.moment == "step" else len(args[2]) > 1
            if due and trainer.global_rank == trainer.world_size - 1:
                time.sleep(0.3)
                os.kill(os.getpid(), signal.SIGTERM)
            return method(*args)

        setattr(owner, name, told)


class Curved(Callback):
    """Writes the curvature that each process finds before the first step.

    Args:
        folder: Where to.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.folder.mkdir(exist_ok=True)
        live = LiveSupernet(trainer, pl_module, "curvature", ScoresFile(None), {}, 1)
        values = [live.curvature(3, batches) for batches in (1, 3)]
        torch.save(values, self.folder / f"{trainer.world_size}_{trainer.global_rank}.pt")


class Noted(TableCost):
    """Leaves a file for each process that measures.

    Args:
        folder: Where to.
        table: As in `TableCost`.
        column: As in `TableCost`.
        target: As in `TableCost`.
    """

    def __init__(self, folder: str, table: str, column: str, target: float) -> None:
        super().__init__(table, column, target)
        self.folder = Path(folder)

    def measure(self, genotype: Genotype) -> float:
        (self.folder / f"measured_{torch.distributed.get_rank()}").touch()
        return super().measure(genotype)
