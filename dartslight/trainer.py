"""The trainer with the command ``select``: another selection rule on a supernet that has been searched before."""

import functools
from typing import Any, cast

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

from dartslight.errors import InputError
from dartslight.modules import SearchModule
from dartslight.modules.checkpoint import HEADER, read_checkpoint
from dartslight.modules.devices import end_if_told
from dartslight.spaces import Choices
from dartslight.untrained import decide_untrained


class SearchTrainer(Trainer):
    """Lightning's trainer, with `select`, and devices that agree on when to stop."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Lightning's own handler sends a message to the other devices from wherever the signal has found this one;
        # where they are at another message, none of them ever ends.
        cast("Any", self._signal_connector)._sigterm_notifier_fn = self._note_sigterm
        cast("Any", self.fit_loop.epoch_loop)._broadcast_sigterm_tensor = functools.partial(end_if_told, self)

    def _note_sigterm(self, signum: int, frame: Any) -> None:
        """Notes that the run has been told to stop; `end_if_told` asks before the next batch."""
        launcher: Any = self.strategy.launcher
        if launcher is not None and not self._signal_connector.received_sigterm:
            launcher.kill(signum)  # the processes that this one has started
        self._signal_connector.received_sigterm = True

    @property
    def received_sigterm(self) -> bool:
        """Whether the run may end at once, as one device may; several have to agree."""
        return self.world_size == 1 and self._signal_connector.received_sigterm

    def select(self, model: LightningModule, datamodule: LightningDataModule, supernet: str | None = None) -> None:
        """Decides the supernet of an earlier search by the selection rule at hand.

        Args:
            model: The search.
            datamodule: The pictures.
            supernet: Path of a checkpoint of a search, finished (search.ckpt) or interrupted (last.ckpt); null for
                rules that need no search.

        Raises:
            InputError: If the checkpoint is none of a search, or decisions have been taken in it already.
        """
        if supernet is None:
            decide_untrained(self, model, datamodule)
            return
        checkpoint = read_checkpoint(supernet)
        header = checkpoint[HEADER]
        if not isinstance(model, SearchModule) or header.get("kind") != "search":
            raise InputError(
                f"{supernet!r} is a checkpoint of a run of the kind {header.get('kind')!r}, but select needs one of a "
                "search; give the checkpoints/search.ckpt of a search."
            )
        if (
            Choices.from_state(header["choices"]) != Choices.everything(model.space)
            and header["space"] == model.space.name
        ):
            raise InputError(
                f"In {supernet!r} some edges have been decided already, and the operations left out were not trained "
                "since; give the checkpoints/search.ckpt of that run."
            )
        if len(model.stages) > 1 and header["epochs"] < header["search_epochs"]:
            raise InputError(
                f"The search of {supernet!r} was stopped after {header['epochs']} of {header['search_epochs']} epochs, "
                "so its last stage is not trained; go on with fit --ckpt_path first."
            )
        model.search_epochs = int(header["epochs"])
        cast("Any", self).callbacks.append(_FromTheTop())
        self.fit(model, datamodule=datamodule, ckpt_path=supernet, weights_only=True)


class _FromTheTop(Callback):
    """Lets a selection begin at the end of an epoch, whatever the checkpoint's place in the run was."""

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Forgets the place within an epoch and what other callbacks remember of their run."""
        assert isinstance(pl_module, SearchModule)
        epochs = pl_module.search_epochs
        checkpoint["callbacks"] = {}
        loop = checkpoint["loops"]["fit_loop"]
        for scope in ("total", "current"):
            loop["epoch_progress"][scope].update(ready=epochs, started=epochs, processed=epochs, completed=epochs)
        loop["epoch_loop.batch_progress"]["current"].update(ready=0, started=0, processed=0, completed=0)
        loop["epoch_loop.batch_progress"]["is_last_batch"] = False
        loop["state_dict"]["combined_loader"] = []
