"""The commands that need a trainer: Lightning's command line with a selection rule beside model, data and trainer."""

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger

from dartslight.callbacks import RunCheckpoints, RunConfig, Selector
from dartslight.cli import parse
from dartslight.data import ImageData
from dartslight.errors import InputError
from dartslight.modules import SearchModule
from dartslight.modules.checkpoint import HEADER, read_checkpoint
from dartslight.run_folder import CONFIG, LAST, RunFolder, folder_of
from dartslight.selection import Rule
from dartslight.trainer import SearchTrainer


class DartslightCLI(LightningCLI):
    """LightningCLI with ``selection``, ``checkpoint_every_n_batches`` and a run folder."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Returns the commands and the arguments of theirs that are not options."""
        return {**LightningCLI.subcommands(), "select": {"model", "datamodule"}}

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

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the seed."""
        parser.add_argument("--seed_everything", type=int, default=0, help="The seed of every random draw of the run.")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses the words of the command line."""
        self.config = parse(parser, args)

    def _parse_ckpt_path(self) -> None:
        """Does nothing: checkpoints carry their configuration, see `_configured`."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Returns the trainer with the run folder as its first logger and the callbacks that keep the folder."""
        config = self._get(self.config_init, "trainer")
        ckpt_path = self._get(self.config_init, "ckpt_path")
        folder = RunFolder(config["default_root_dir"] or "runs", resumed=_run_to_go_on(ckpt_path))
        given = config["logger"]
        others: list[Any] = given if isinstance(given, list) else [given] if isinstance(given, Logger) else []
        callbacks: list[Any] = []
        rule = self._get(self.config_init, "selection")
        if rule is not None and isinstance(self.model, SearchModule):
            callbacks.append(Selector(rule))
        elif self.subcommand == "select":
            raise InputError("select needs a rule; give --selection, or one of the configurations in configs/select.")
        if config["enable_checkpointing"] is not False:
            callbacks.append(RunCheckpoints(self._get(self.config_init, "checkpoint_every_n_batches")))
        config["callbacks"] = [*(config["callbacks"] or []), *callbacks]
        return super().instantiate_trainer(logger=[folder, *others], **kwargs)

    def after_fit(self) -> None:
        """Names the run's folder."""
        folder = folder_of(self.trainer)
        if folder is not None and folder.exists and self.trainer.is_global_zero:
            print(f"Run folder: {folder.path}")

    def after_select(self) -> None:
        """Names the run's folder."""
        self.after_fit()


def run_training(command: str, words: Sequence[str]) -> None:
    """Runs one of the commands that need a trainer.

    Args:
        command: fit, validate, test, predict or select.
        words: The words that follow it.

    Raises:
        InputError: If what the user gave is wrong.
    """
    _quieten()
    saved = sys.argv
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
            args=[command, *_configured(command, list(words))],
        )
    except MisconfigurationException as error:
        raise InputError(" ".join(str(error).split())) from None
    except ValueError as error:
        cause = _input_error(error)
        if cause is None:
            raise
        raise cause from None
    finally:
        sys.argv = saved


def _input_error(error: BaseException | None) -> InputError | None:
    """The user's mistake behind an error in which jsonargparse has wrapped it."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or error.__context__
    return error


def _configured(command: str, words: list[str]) -> list[str]:
    """Puts the configuration that a checkpoint carries in front of the user's own, which then has the last word.

    ``select`` always begins with the configuration of its supernet; other commands with that of their checkpoint only
    where the user gives none.
    """
    option = "--supernet" if command == "select" else "--ckpt_path"
    path = _value_of(option, words)
    if path is None:
        return words
    header = read_checkpoint(path)[HEADER]
    if command != "select" and _value_of("--config", words) is not None:
        return words
    if not isinstance(header.get("config"), str):
        return words
    config = yaml.safe_load(header["config"])
    for key in ("ckpt_path", "supernet", "weights_only"):
        config.pop(key, None)
    if command == "select":
        config["selection"] = None
    allowed = _keys_of(command)
    return ["--config", yaml.safe_dump({k: v for k, v in config.items() if k in allowed}), *words]


def _keys_of(command: str) -> set[str]:
    common = {"seed_everything", "trainer", "model", "data", "selection", "checkpoint_every_n_batches"}
    return common | ({"verbose"} if command in ("test", "validate") else set())


def _value_of(option: str, words: Sequence[str]) -> str | None:
    """The last value that is given for an option."""
    value = None
    for i, word in enumerate(words):
        if word == option and i + 1 < len(words):
            value = words[i + 1]
        elif word.startswith(f"{option}="):
            value = word.partition("=")[2]
    return value


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
        ".*By default only one JsonargparseDeprecationWarning.*",
    ):
        warnings.filterwarnings("ignore", "\\s*" + message)
