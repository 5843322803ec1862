"""The commands that need a trainer: Lightning's command line with a selection rule beside model, data and trainer."""

import logging
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.memory import is_oom_error

from dartslight.callbacks import Dashboard, History, ProgressBars, ProgressLog, RunCheckpoints, RunConfig, Selector
from dartslight.callbacks.dashboard import go_on_under, known_names
from dartslight.carried_config import with_carried_config
from dartslight.cli import inner_input_error, one_line, parse
from dartslight.data import ImageData
from dartslight.ensemble import select_several
from dartslight.errors import InputError
from dartslight.modules import SearchModule
from dartslight.modules.checkpoint import HEADER, read_checkpoint
from dartslight.run_folder import CONFIG, LAST, RunFolder, folder_of
from dartslight.selection import Rule
from dartslight.trainer import SearchTrainer
from dartslight.unfinished import what_is_unfinished

_LIGHTNING = ("lightning.pytorch", "lightning.fabric")
_UNNAMED = {
    "model": r"class_path 'lightning\.LightningModule'|required: .*fit\.model",
    "data": r"Not a valid subclass of ImageData|ImageData is abstract|required: .*fit\.data",
}
"""What the parser says of an option whose class it has not been told: it tries the base class."""


class DartslightCLI(LightningCLI):
    """LightningCLI with ``selection``, ``checkpoint_every_n_batches`` and a run folder."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Returns the commands and the arguments of theirs that are not options."""
        hidden = {"weights_only"}  # always true: nothing in a checkpoint can run code
        known = {name: skipped | hidden for name, skipped in LightningCLI.subcommands().items() if name != "predict"}
        return {**known, "select": {"model", "datamodule"}}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Returns a parser that raises its errors."""
        return super().init_parser(**kwargs, exit_on_error=False)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the options that stand beside model, data and trainer."""
        parser.add_subclass_arguments(
            Rule,
            "selection",
            required=False,
            help="The rule that decides the supernet after the search; null searches without deciding.",
        )
        parser.add_argument(
            "--checkpoint_every_n_batches",
            type=int | None,
            default=None,
            help="Also write last.ckpt within an epoch, every so many batches; null for the ends of epochs only.",
        )

        parser.add_argument(
            "--quiet",
            action="store_true",
            help="Show no progress and no summary of the model; results, warnings and the run's folder are still told.",
        )

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the seed."""
        parser.add_argument("--seed_everything", type=int, default=0, help="The seed of every random draw of the run.")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        for action in parser._actions:
            if action.dest == "ckpt_path":  # Lightning's own text names sources that are not offered here
                action.help = "Path of a checkpoint in a run's folder: what to go on from, or what to measure."
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses the words of the command line.

        Raises:
            InputError: If they are not understood.
        """
        try:
            self.config = parse(parser, args)
        except InputError as error:
            unnamed = [part for part, said in _UNNAMED.items() if re.search(said, str(error))]
            if not unnamed:
                raise
            raise InputError(
                f"Nothing has said yet which {' and '.join(unnamed)} to use; begin with a configuration that does, "
                "such as --config configs/cifar10/base.yaml, and put other configurations and options after it."
            ) from None

    def _parse_ckpt_path(self) -> None:
        """Does nothing: checkpoints carry their configuration, see `_configured`."""

    def instantiate_classes(self) -> None:
        """Makes model, data and trainer, and turns what their classes say of wrong values into one sentence."""
        try:
            super().instantiate_classes()
        except InputError:
            raise
        except (ValueError, TypeError, RuntimeError, NotImplementedError, MisconfigurationException) as error:
            raise _as_input_error(error) from None

    def _set_seed(self) -> None:
        if self._get(self.config, "quiet"):  # this is the first step that tells something
            for name in _LIGHTNING:
                logging.getLogger(name).setLevel(logging.WARNING)
        try:
            super()._set_seed()
        except ValueError as error:
            raise _as_input_error(error) from None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Returns the trainer with the run folder as its first logger and the callbacks that keep the folder."""
        config = self._get(self.config_init, "trainer")
        writes = self.subcommand in ("fit", "select")
        goes_on = _run_to_go_on(self._get(self.config_init, "ckpt_path")) if writes else None
        folder = RunFolder(config["default_root_dir"] or "runs", resumed=goes_on)
        if self._get(self.config_init, "quiet"):
            config["enable_progress_bar"] = config["enable_model_summary"] = False
        callbacks, loggers = _as_list(config["callbacks"]), _as_list(config["logger"])
        if writes:
            callbacks += self._own_callbacks(config)
        if goes_on is not None:
            go_on_under(known_names(goes_on), loggers)
        config["callbacks"] = callbacks
        return super().instantiate_trainer(logger=[folder, *loggers], **kwargs)

    def _own_callbacks(self, config: dict[str, Any]) -> list[Callback]:
        rule = self._get(self.config_init, "selection")
        is_search = isinstance(self.model, SearchModule)
        if rule is not None and not is_search and self.subcommand == "fit":
            raise InputError("A selection decides a search, but the model is none; leave --selection out.")
        if rule is None and self.subcommand == "select":
            raise InputError("select needs a rule; give --selection, or one of the configurations in configs/select.")
        selector = Selector(rule) if rule is not None and is_search else None
        is_shown = config["enable_progress_bar"] is not False
        is_terminal = sys.stdout.isatty()
        log = ProgressLog(selector, prints=is_shown and not is_terminal)
        # Both come before the selector, so that the time of an epoch is without that of the decisions after it.
        callbacks: list[Callback] = [log, History()]
        callbacks += [] if selector is None else [selector]
        if is_shown and not any(isinstance(callback, ProgressBar) for callback in _as_list(config["callbacks"])):
            callbacks.append(ProgressBars(log, is_terminal))
        if any(isinstance(logger, WandbLogger | TensorBoardLogger) for logger in _as_list(config["logger"])):
            callbacks.append(Dashboard())
        if config["enable_checkpointing"] is not False:
            callbacks.append(RunCheckpoints(self._get(self.config_init, "checkpoint_every_n_batches")))
        return callbacks

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        return kwargs if subcommand == "select" else {**kwargs, "weights_only": True}

    def before_fit(self) -> None:
        """Checks what the trainer was given.

        Raises:
            InputError: If there is no epoch to train, the precision is one in which nothing here is tested, or a search
                is to go on with another length.
        """
        epochs, precision = self.trainer.max_epochs, self.trainer.precision
        if epochs is None or epochs < 1:
            raise InputError(f"--trainer.max_epochs is {epochs}, but a run needs at least 1; give a larger number.")
        if precision.endswith("true") and not precision.startswith("32"):
            raise InputError(f"The precision {precision!r} is not supported; use 32-true, bf16-mixed or 16-mixed.")
        path = self._get(self.config_init, "ckpt_path")
        header = {} if path is None else read_checkpoint(path)[HEADER]
        if isinstance(self.model, SearchModule) and header.get("search_epochs", epochs) != epochs:
            length, stages = header["search_epochs"], len(header["num_cells"])
            raise InputError(
                f"The search of {path!r} has {length} epochs" + (f" in {stages} stages" if stages > 1 else "") + ", by "
                "which its learning rates, its stages and the decisions of its rule are placed, but this run has "
                f"{epochs}; go on with --trainer.max_epochs {length}, or begin another search."
            )

    def before_test(self) -> None:
        """Checks that there are trained weights to measure.

        Raises:
            InputError: If no checkpoint is given.
        """
        if self._get(self.config_init, "ckpt_path") is None:
            raise InputError("There are no trained weights to measure; give them with --ckpt_path.")

    before_validate = before_test

    def after_fit(self) -> None:
        """Says how a run goes on that a limit has ended early, and names its folder."""
        if not self.trainer.is_global_zero:
            return
        unfinished = what_is_unfinished(self.trainer, self.model)
        if unfinished is not None:
            print(f"\n{unfinished}")
        folder = folder_of(self.trainer)
        if folder is not None and folder.exists:
            print(f"Run folder: {folder.path}")

    def after_select(self) -> None:
        """Does the same after a selection; one of a supernet that is drawn has nothing unfinished."""
        if self._get(self.config_init, "supernet") is not None:
            self.after_fit()
        elif (folder := folder_of(self.trainer)) is not None:
            print(f"Run folder: {folder.path}")

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
        except SystemExit as stop:
            if not isinstance(stop, SIGTERMException) and not isinstance(stop.__context__, KeyboardInterrupt):
                raise
            trains = subcommand in ("fit", "select")
            unfinished = what_is_unfinished(self.trainer, self.model) if trains else None
            raise KeyboardInterrupt(*([] if unfinished is None else [unfinished])) from None


def run_training(command: str, words: Sequence[str]) -> None:
    """Runs one of the commands that need a trainer.

    Args:
        command: fit, validate, test or select.
        words: The words that follow it.

    Raises:
        InputError: If what the user gave is wrong.
        KeyboardInterrupt: If the run was told to stop, by Ctrl-C or by SIGTERM; it says how the run goes on.
    """
    if command == "select" and sum(word.partition("=")[0] == "--supernet" for word in words) > 1:
        select_several(words)
        return
    _quieten()
    saved, levels = sys.argv, {name: logging.getLogger(name).level for name in _LIGHTNING}
    # Lightning starts the processes of further devices with these words.
    sys.argv = ["dartslight", command, *words]
    try:
        DartslightCLI(
            LightningModule,
            ImageData,
            save_config_callback=RunConfig,
            trainer_class=SearchTrainer,
            trainer_defaults={"max_epochs": 50, "log_every_n_steps": 1, "num_sanity_val_steps": 0},
            seed_everything_default=0,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=[command, *with_carried_config(command, list(words))],
        )
    except MisconfigurationException as error:
        raise _as_input_error(error) from None
    except RuntimeError as error:
        if not is_oom_error(error):
            raise
        reason = str(error).partition("\n")[0].rpartition("DefaultCPUAllocator: ")[2].rstrip(".")
        raise InputError(
            f"The memory is too small for this run ({reason}); give a smaller --data.batch_size, --model.init_channels "
            "or --model.num_cells, or for a search --model.checkpoint_cells true."
        ) from None
    finally:
        sys.argv = saved
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _as_input_error(error: Exception) -> InputError:
    """The user's mistake that an error speaks of, in one sentence."""
    return inner_input_error(error) or InputError(f"{one_line(error)}; --help of the command tells what is allowed.")


def _as_list(given: Any) -> list[Any]:
    """What a trainer's option holds, which may be one thing, a list, or a switch."""
    if isinstance(given, list):
        return list(given)
    return [] if given is None or isinstance(given, bool) else [given]


def _run_to_go_on(ckpt_path: str | None) -> Path | None:
    """The folder of the run that goes on in place: the one whose last.ckpt is given."""
    if ckpt_path is None or Path(ckpt_path).name != LAST:
        return None
    folder = Path(ckpt_path).resolve().parent.parent
    return folder if (folder / CONFIG).is_file() else None


def _quieten() -> None:
    """Hides warnings that a user can do nothing about."""
    for message in (
        ".*isinstance.treespec, LeafSpec.. is deprecated.*",
        ".*Total length of `list` across ranks is zero.*",
        ".*instantiate_classes.*was deprecated.*",
        ".*Please add the following callbacks: .'Timer'.*",  # of a run whose time was up
        ".*By default only one JsonargparseDeprecationWarning.*",
    ):
        warnings.filterwarnings("ignore", "\\s*" + message)
