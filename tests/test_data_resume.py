"""Lightning and the loaders: a run that goes on sees exactly the batches that it would have seen."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn

from dartslight.data import ImageData, Pictures
from dartslight.data.sampling import Batch

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:.*{message}.*")
    for message in (
        "dirpath has changed",
        "exists and is not empty",
        "manual optimization and every_n",
        "Total length of",
    )
]

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


class Numbered(ImageData):
    """Pictures whose labels are their numbers."""

    def load(self, train: bool) -> Pictures:
        assert train, "the test pictures were loaded"
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (46, 3, 6, 6), generator=generator).to(torch.uint8)
        return Pictures(images, torch.arange(46), ("a", "b"))


class Recorder(LightningModule):
    """Writes down what it is given."""

    def __init__(self, manual: bool = False) -> None:
        super().__init__()
        self.automatic_optimization = not manual
        self.layer = nn.Linear(3, 1)
        self.seen: list[tuple[int, int, list[int], list[int], float]] = []
        self.validated: list[int] = []

    def training_step(self, batch: dict[str, Batch], batch_idx: int) -> Tensor | None:
        train, val = batch["train"], batch["val"]
        entry = (train.labels.tolist(), [train.seed, val.seed, *val.labels.tolist()])
        pixels = train.images.double().sum().item() + val.images.double().sum().item()
        self.seen.append((self.current_epoch, batch_idx, *entry, pixels))
        loss: Tensor = self.layer(train.images.mean(dim=(2, 3))).square().mean()
        if self.automatic_optimization:
            return loss
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return None

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        assert batch.images.dtype == torch.float32
        self.validated += batch.labels.tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(folder: Path, ckpt_path: Path | None = None, manual: bool = False, **options: Any) -> Recorder:
    """Runs three epochs of five batches, with a checkpoint after each batch and at each end of an epoch."""
    callbacks: list[Callback] = [
        ModelCheckpoint(folder, "step-{epoch}-{step}", every_n_train_steps=1, save_top_k=-1),
        ModelCheckpoint(folder, "end-{epoch}-{step}", every_n_epochs=1, save_top_k=-1, save_on_train_epoch_end=True),
    ]
    module = Recorder(manual)
    settings = {**QUIET, "max_epochs": 3, "callbacks": callbacks, "default_root_dir": folder, **options}
    trainer = Trainer(**settings)
    trainer.fit(module, datamodule=Numbered(batch_size=5, padding=1, cutout=2, seed=3), ckpt_path=ckpt_path)
    return module


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"manual": True},
        {"limit_train_batches": 3},
        {"max_steps": 12},
        {"max_steps": 8, "limit_train_batches": 3, "manual": True},
        {"limit_val_batches": 0},
        {"val_check_interval": 2},
    ],
    ids=str,
)
def test_a_run_that_goes_on_sees_exactly_the_remaining_batches(tmp_path: Path, options: dict[str, Any]) -> None:
    whole = fit(tmp_path / "whole", **options)
    steps = len(whole.seen)
    assert len({tuple(labels) for _, _, labels, _, _ in whole.seen}) == steps  # or the comparison would be blind
    # Lightning miscounts epochs when a run with max_steps goes on from the end of an epoch, whatever the loader is.
    checkpoints = sorted((tmp_path / "whole").glob("step-*.ckpt" if "max_steps" in options else "*.ckpt"))
    assert len(checkpoints) >= steps
    for checkpoint in checkpoints:
        step = int(checkpoint.stem.rpartition("=")[2])
        resumed = fit(tmp_path / "resumed", checkpoint, **options)
        assert resumed.seen == whole.seen[step:], checkpoint.name


def test_an_epoch_shows_each_picture_once_and_validation_shows_the_val_half(tmp_path: Path) -> None:
    module = fit(tmp_path, max_epochs=1)
    train = [label for _, _, labels, _, _ in module.seen for label in labels]
    val = [label for _, _, _, entry, _ in module.seen for label in entry[2:]]
    assert sorted(train + val) == list(range(46))
    assert sorted(module.validated) == sorted(val)


def test_a_trainer_without_a_val_half_trains_and_does_not_validate() -> None:
    class Retrainer(Recorder):
        def training_step(self, batch: dict[str, Batch], batch_idx: int) -> Tensor:
            assert set(batch) == {"train"}
            self.seen.append((0, batch_idx, batch["train"].labels.tolist(), [], 0.0))
            loss: Tensor = self.layer(batch["train"].images.mean(dim=(2, 3))).mean()
            return loss

    module = Retrainer()
    trainer = Trainer(**QUIET, max_epochs=1, enable_checkpointing=False)
    trainer.fit(module, datamodule=Numbered(batch_size=8, train_portion=1.0))
    assert sorted(label for _, _, labels, _, _ in module.seen for label in labels) == list(range(46))
    assert module.validated == []


def test_the_strategy_prepares_selection_batches(tmp_path: Path) -> None:
    """As a selection does it: batches that the trainer's own loops do not know."""

    class Selection(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            for raw in data.selection_batches(augmented=True, seed=4):
                batch = trainer.strategy.batch_to_device(raw)
                assert raw.images.dtype == torch.uint8
                assert batch.images.dtype == torch.float32
                assert batch.seed == raw.seed >= 0
                seen.extend(batch.labels.tolist())

    seen: list[int] = []
    module = Recorder()
    trainer = Trainer(**QUIET, max_epochs=1, enable_checkpointing=False, callbacks=[Selection()])
    trainer.fit(module, datamodule=Numbered(batch_size=5))
    assert sorted(seen) == sorted(module.validated)
