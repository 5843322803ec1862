"""Mixed precision: scaled losses, unscaled clipping, second order outside autocast, decisions in float32.

float16 with a scaler runs on a CPU here, which Lightning's command line would turn into bfloat16.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

from dartslight import strategies
from dartslight.cli import main
from dartslight.data import Digits
from dartslight.genotype import Genotype
from dartslight.modules import RetrainModule, SearchModule
from dartslight.nets import Supernet


class Watch(Callback):
    """Writes down the gradients that the optimizers get, unscaled."""

    def __init__(self) -> None:
        self.alphas: list[Tensor] = []
        self.norms: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if isinstance(pl_module, SearchModule):
            self.alphas.append(pl_module.architecture.alphas["cell"].grad.clone())
        network = pl_module.supernet if isinstance(pl_module, SearchModule) else pl_module.network
        norms = [p.grad.norm() for p in network.parameters() if p.grad is not None]
        self.norms.append(float(torch.stack(norms).norm()))


def search(precision: str, gradient: str, clip_norm: float = 5.0) -> Watch:
    """Takes four search steps from the same start."""
    rule = getattr(strategies, gradient)()
    return watched(
        SearchModule(num_cells=3, init_channels=4, gradient=rule, alpha_init_std=0.5, clip_norm=clip_norm), precision
    )


def watched(module: LightningModule, precision: str) -> Watch:
    """Takes four steps and watches the gradients."""
    seed_everything(0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10) if precision == "16-mixed" else None
    plugins = [] if precision == "32-true" else [MixedPrecision(precision, "cpu", scaler)]
    watch = Watch()
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        plugins=plugins,
        max_epochs=1,
        limit_train_batches=4,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[watch],
    )
    trainer.fit(module, datamodule=Digits(batch_size=32, max_pictures=256))
    return watch


@pytest.mark.parametrize("gradient", ["FirstOrder", "Unrolled", "FiniteDifference"])
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_alpha_gradients_have_their_size_in_every_precision(precision: str, gradient: str) -> None:
    exact, mixed = search("32-true", gradient), search(precision, gradient)
    a, b = exact.alphas[0], mixed.alphas[0]
    assert a.norm() > 1e-4
    # The first order is rounded by so small a network, but not scaled; the second is computed in float32 throughout.
    assert (a - b).norm() / a.norm() < (0.3 if gradient == "FirstOrder" else 1e-4)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_clipping_sees_unscaled_gradients(precision: str) -> None:
    unclipped, clipped = search(precision, "FirstOrder", 1e6), search(precision, "FirstOrder", 0.5)
    assert unclipped.norms[0] > 1
    assert clipped.norms[0] == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_retraining_clips_unscaled_gradients(precision: str, tmp_path: Path) -> None:
    path = tmp_path / "genotype.json"
    arch = "|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|nor_conv_3x3~2|"
    path.write_text(Genotype.from_nasbench201(arch).to_json())
    unclipped, clipped = (
        watched(RetrainModule(str(path), num_cells=3, init_channels=4, auxiliary_weight=0, clip_norm=norm), precision)
        for norm in (1e6, 0.1)
    )
    assert 0.5 < unclipped.norms[0] < 50
    assert clipped.norms[0] == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("gradient", ["FiniteDifference", "Unrolled"])
def test_second_order_runs_outside_autocast(gradient: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[bool, set[bool]] = {True: set(), False: set()}
    forward = Supernet.forward

    def noted(net: Supernet, images: Tensor, mixing: Any, *rest: Any) -> Tensor:
        seen[next(iter(mixing.values())).requires_grad].add(torch.is_autocast_enabled("cpu"))
        return forward(net, images, mixing, *rest)

    monkeypatch.setattr(Supernet, "forward", noted)
    search("bf16-mixed", gradient)
    assert seen == {True: {False}, False: {True}}  # the architecture gradient's passes, and the weight step's
    seen[True].clear(), seen[False].clear()
    search("bf16-mixed", "FirstOrder")
    assert seen == {True: {True}, False: {True}}


def test_decisions_are_measured_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    forward_each = Supernet.forward_each

    def watched(net: Supernet, images: Tensor, variants: Any, *rest: Any) -> list[Tensor]:
        logits = forward_each(net, images, variants, *rest)
        if len(variants) > 1:
            seen.add(logits[0].dtype)
        return logits

    monkeypatch.setattr(Supernet, "forward_each", watched)
    words = ["fit", "--config", "configs/quickstart.yaml", "--trainer.max_epochs=1", "--selection.interval=0"]
    words += ["--data.max_pictures=128", "--model.init_channels=4", "--trainer.precision=bf16-mixed"]
    assert main([*words, f"--trainer.default_root_dir={tmp_path}", "--trainer.accelerator=cpu"]) == 0
    assert seen == {torch.float32}
