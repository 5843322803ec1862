"""Shows a run on the dashboards among its loggers, Weights & Biases and TensorBoard: pictures, decisions, files.

The curves of the metrics and the whole configuration reach every logger without it.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from dartslight.callbacks.live_supernet import undisturbed
from dartslight.callbacks.selector import Selector
from dartslight.callbacks.true_accuracy import leading
from dartslight.genotype import Genotype
from dartslight.modules import RetrainModule, SearchModule
from dartslight.report import draw_cells
from dartslight.report.history import heat_map
from dartslight.run_folder import GENOTYPE, LAST, SEARCHED, by_first_device, folder_of, write_whole
from dartslight.selection.record import decision_rows
from dartslight.selection.strongest import mixing_weights

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DASHBOARDS = "dashboards.json"
"""Name of the file with the names under which the loggers know a run."""

_Picture = npt.NDArray[np.uint8]


class Dashboard(Callback):
    """Shows a run on Weights & Biases and TensorBoard, whichever of them is among its loggers.

    After each epoch of a search: a heat map of the mixing weights of each cell type, and the drawing of the
    architecture that leads by them; in a retraining the drawing of what is trained. At the end: the decisions as a
    table, and for Weights & Biases ``genotype.json`` and the checkpoints as artifacts, whose aliases are ``decided``,
    ``last`` and ``search``. Showing changes no bit of the run.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes in the run's folder how the loggers call this run, and draws what is retrained."""
        folder = folder_of(trainer)
        if folder is not None:
            path = folder.path / DASHBOARDS
            by_first_device(trainer, lambda: write_whole(path, json.dumps(dict(_names(trainer)), indent=2) + "\n"))
        if trainer.is_global_zero and isinstance(pl_module, RetrainModule):
            _show(trainer, "genotype", draw_cells(pl_module.genotype))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows the mixing weights and the architecture that leads by them."""
        # Not where something has ended the run within the epoch.
        if not (trainer.is_global_zero and trainer.is_last_batch and isinstance(pl_module, SearchModule)):
            return
        with undisturbed(trainer.strategy.root_device):
            choices = pl_module.choices
            weights = mixing_weights(pl_module.space, pl_module.mixing(choices))
            genotype = leading(pl_module)
        for cell in pl_module.space.cells:
            _show(trainer, f"mixing/{cell.name}", heat_map(cell, choices, weights))
        _show(trainer, "genotype", draw_cells(genotype))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows the decisions and hands the files over."""
        if not trainer.is_global_zero:
            return
        selector = next((c for c in cast("Any", trainer).callbacks if isinstance(c, Selector)), None)
        decisions = [] if selector is None else selector.decisions
        if decisions:
            header, *rows = decision_rows(decisions)
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.log_table("decisions", columns=header, data=rows, step=trainer.global_step)
                elif isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_text("decisions", _markdown(header, rows), trainer.global_step)
        folder = folder_of(trainer)
        if folder is not None:
            if selector is not None and selector.is_complete:
                _show(trainer, "genotype", draw_cells(Genotype.load(folder.path / GENOTYPE)))
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    _hand_over(logger, folder.path)


def known_names(run: Path) -> dict[str, str]:
    """Returns how the loggers have called a run, by the loggers' classes; nothing where that is not known.

    Args:
        run: The folder of the run.
    """
    try:
        found = json.loads((run / DASHBOARDS).read_text(encoding="utf-8"))
        return {str(key): value for key, value in found.items() if re.fullmatch(r"\w{1,64}", value)}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def go_on_under(names: Mapping[str, str], loggers: list[Logger]) -> None:
    """Lets loggers go on with the run that they know under a name, unless the user has given them another one.

    Neither logger can be told so once it is made, hence the private names; they open their run with the first use.

    Args:
        names: How they have called it, see `known_names`.
        loggers: The loggers, none of them used yet.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger) and "WandbLogger" in names and logger._id is None:
            logger._id = logger._wandb_init["id"] = names["WandbLogger"]
        if isinstance(logger, TensorBoardLogger) and "TensorBoardLogger" in names and logger._version is None:
            logger._version = names["TensorBoardLogger"]


def _names(trainer: Trainer) -> Iterator[tuple[str, str]]:
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            yield "WandbLogger", str(logger.experiment.id)
        if isinstance(logger, TensorBoardLogger):
            yield "TensorBoardLogger", Path(logger.log_dir).name


def _show(trainer: Trainer, name: str, figure: "Figure") -> None:
    """Hands a drawing to the loggers."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    picture: _Picture = np.asarray(canvas.buffer_rgba())[..., :3].copy()  # (height, width, 3)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(name, [picture], step=trainer.global_step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, picture, trainer.global_step, dataformats="HWC")


def _hand_over(logger: WandbLogger, run: Path) -> None:
    """Adds the files of a run to its artifacts."""
    import wandb

    run_id = logger.experiment.id
    files = (("genotype", GENOTYPE, "decided"), ("checkpoint", LAST, "last"), ("checkpoint", SEARCHED, "search"))
    for kind, name, alias in files:
        path = run / name if kind == "genotype" else run / "checkpoints" / name
        if path.is_file():
            # Every checkpoint is an artifact of its own, so that `latest` of one is never the other.
            artifact = wandb.Artifact(f"{path.stem}-{run_id}", kind)
            artifact.add_file(str(path))
            logger.experiment.log_artifact(artifact, aliases=["latest", alias])


def _markdown(header: list[str], rows: list[list[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join("" if value is None else str(value) for value in line) + " |" for line in lines)
