"""Mixed precision: scaled losses, unscaled clipping, second order outside autocast, decisions in float32.

float16 with a scaler runs on a CPU here, which Lightning's command line would turn into bfloat16.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

from dartslight import strategies
from dartslight.cli import main
from dartslight.data import Digits
from dartslight.errors import InputError
from dartslight.genotype import Genotype
from dartslight.modules import RetrainModule, SearchModule
from dartslight.nets import Supernet
from dartslight.strategies import AdversarialSmoothing, ArchitectureGradient, Bilevel, FirstOrder


class Watch(Callback):
    """Writes down the gradients that the optimizers get, unscaled, what their steps change, and the scale."""

    def __init__(self) -> None:
        self.alphas: list[Tensor] = []
        self.norms: list[float] = []
        self.states: list[dict[str, Tensor]] = []
        self.scales: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if not self.states:
            self._note(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if isinstance(pl_module, SearchModule):
            self.alphas.append(pl_module.architecture.alphas["cell"].grad.clone())
        norms = [p.grad.norm() for p in network_of(pl_module).parameters() if p.grad is not None]
        self.norms.append(float(torch.stack(norms).norm()))
        self._note(trainer, pl_module)

    def _note(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.states.append({name: p.detach().clone() for name, p in pl_module.named_parameters()})
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self.scales.append(1.0 if scaler is None else scaler.get_scale())

    def moved(self, part: str) -> list[bool]:
        """Whether each step has changed some parameter of a part."""
        pairs = itertools.pairwise(self.states)
        return [any(not torch.equal(a[k], b[k]) for k in a if k.startswith(part)) for a, b in pairs]


def network_of(module: LightningModule) -> nn.Module:
    return module.supernet if isinstance(module, SearchModule) else module.network


def small_search(gradient: ArchitectureGradient, **words: Any) -> SearchModule:
    return SearchModule(num_cells=3, init_channels=4, gradient=gradient, alpha_init_std=0.5, **words)


def search(precision: str, gradient: str, **words: Any) -> Watch:
    """Takes four search steps from the same start."""
    return watched(small_search(getattr(strategies, gradient)(), **words), precision)


def scaling(init_scale: float = 2.0**10, **words: Any) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=init_scale, **words)


def watched(
    module: LightningModule,
    precision: str,
    scaler: torch.amp.GradScaler | None = None,
    more: Sequence[Callback] = (),
    ckpt_path: Path | None = None,
) -> Watch:
    """Takes four steps and watches the gradients."""
    seed_everything(0)
    scaler = scaler or scaling() if precision == "16-mixed" else None
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
        callbacks=[watch, *more],
    )
    trainer.fit(module, datamodule=Digits(batch_size=32, max_pictures=256), ckpt_path=ckpt_path, weights_only=True)
    assert trainer.global_step == 4  # whether a step was left out or not
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
    unclipped = search(precision, "FirstOrder", clip_norm=1e6)
    clipped = search(precision, "FirstOrder", clip_norm=0.5, alpha_clip_norm=0.01)
    assert unclipped.norms[0] > 1
    assert clipped.norms[0] == pytest.approx(0.5, rel=1e-3)
    assert unclipped.alphas[0].norm() > 0.02
    assert clipped.alphas[0].norm() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_retraining_clips_unscaled_gradients(precision: str, tmp_path: Path) -> None:
    unclipped, clipped = (watched(small_retraining(tmp_path, norm), precision) for norm in (1e6, 0.1))
    assert 0.5 < unclipped.norms[0] < 50
    assert clipped.norms[0] == pytest.approx(0.1, rel=1e-3)


def small_retraining(tmp_path: Path, clip_norm: float) -> RetrainModule:
    path = tmp_path / "genotype.json"
    # The output of a convolution of 1x1 is computed again in the backward pass, which is outside of autocast here.
    arch = "|nor_conv_3x3~0|+|none~0|nor_conv_1x1~1|+|skip_connect~0|none~1|nor_conv_3x3~2|"
    path.write_text(Genotype.from_nasbench201(arch).to_json())
    return RetrainModule(str(path), num_cells=3, init_channels=4, auxiliary_weight=0, clip_norm=clip_norm)


# ------------------------------------------------------------------------------------------------- the scale of losses


def test_the_scale_grows_with_the_steps_of_both_optimizers() -> None:
    watch = watched(small_search(FirstOrder()), "16-mixed", scaling(2.0**4, growth_interval=4))
    assert watch.scales == [2.0**4, 2.0**4, 2.0**5, 2.0**5, 2.0**6]


class Spiked(FirstOrder):
    """A gradient that is infinite in some steps.

    Args:
        steps: Their numbers.
    """

    def __init__(self, *steps: int) -> None:
        self.steps, self.count = steps, 0

    def __call__(self, problem: Bilevel) -> tuple[Tensor, ...]:
        self.count += 1
        found = super().__call__(problem)
        return tuple(g + torch.inf for g in found) if self.count - 1 in self.steps else found


class Spike(Callback):
    """Makes a weight gradient infinite in some steps.

    Args:
        steps: Their numbers.
    """

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step in self.steps:
            next(p for p in network_of(pl_module).parameters() if p.grad is not None).grad[0] = torch.inf


@pytest.mark.parametrize(("alphas", "weights"), [((1,), ()), ((), (1,)), ((1,), (1,)), ((0,), (0, 1))])
def test_only_the_step_whose_gradient_is_infinite_is_left_out(
    alphas: tuple[int, ...], weights: tuple[int, ...]
) -> None:
    watch = watched(small_search(Spiked(*alphas)), "16-mixed", more=[Spike(*weights)])
    assert watch.moved("architecture.") == [step not in alphas for step in range(4)]
    assert watch.moved("supernets.") == [step not in weights for step in range(4)]
    halvings = [sum(step < done for step in (*alphas, *weights)) for done in range(5)]
    assert watch.scales == [2.0 ** (10 - n) for n in halvings]
    assert all(torch.isfinite(p).all() for p in watch.states[-1].values())


@pytest.mark.parametrize("gradient", ["FirstOrder", "FiniteDifference"])
def test_gradients_are_unscaled_once_while_the_scale_changes(gradient: str) -> None:
    steady, growing = (
        watched(
            small_search(getattr(strategies, gradient)(), learning_rate=1e-4),
            "16-mixed",
            scaling(2.0**8, growth_interval=interval),
        )
        for interval in (1000, 1)
    )
    assert steady.scales == [2.0**8] * 5
    assert growing.scales == [2.0 ** (8 + 2 * batches) for batches in range(5)]
    assert growing.norms == pytest.approx(steady.norms, rel=0.1)
    for a, b in zip(growing.alphas, steady.alphas, strict=True):
        assert (a - b).norm() < 0.1 * b.norm()


def test_small_losses_do_not_vanish_in_sixteen_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the architecture step, the weight step, and the attack of SDARTS, which goes by the sign."""
    entropy, forward = F.cross_entropy, Supernet.forward
    monkeypatch.setattr(F, "cross_entropy", lambda *args, **words: entropy(*args, **words) * 2.0**-24)
    mixings: list[Tensor] = []

    def noted(net: Supernet, images: Tensor, mixing: Any, *rest: Any) -> Tensor:
        mixings.append(mixing["cell"].detach())
        return forward(net, images, mixing, *rest)

    monkeypatch.setattr(Supernet, "forward", noted)

    def run(precision: str) -> tuple[Watch, Tensor]:
        mixings.clear()
        attack = AdversarialSmoothing(start_radius=0.2, steps=3)
        watch = watched(small_search(FirstOrder(), smoothing=attack), precision, scaling(2.0**24))
        assert (
            len(mixings) == 4 * 7
        )  # one pass of the architecture step, three and two of the attack, the weight step's
        return watch, mixings[6] - mixings[0]

    (exact, moves), (mixed, mixed_moves) = run("32-true"), run("16-mixed")
    a, b = exact.alphas[0], mixed.alphas[0]
    assert a.norm() > 1e-10
    assert (a - b).norm() / a.norm() < 0.3
    assert mixed.norms[0] == pytest.approx(exact.norms[0], rel=0.1)
    assert moves.abs().max() > 0.05
    assert (moves - mixed_moves).abs().median() < 1e-3  # a derivative of almost 0 may have another sign


@pytest.mark.parametrize("kind", ["architecture", "weight", "retraining"])
def test_a_gradient_that_stays_infinite_ends_the_run(kind: str, tmp_path: Path) -> None:
    always = range(4)
    module = small_retraining(tmp_path, 1.0) if kind == "retraining" else small_search(Spiked(*always))
    if kind == "weight":
        module = small_search(FirstOrder())
    name = {"architecture": "architecture gradient", "weight": "weight gradient", "retraining": "gradient"}[kind]
    with pytest.raises(InputError, match=f"In step 3 the {name} is not a finite number.*more bits"):
        watched(module, "16-mixed", scaling(4.0), [] if kind == "architecture" else [Spike(*always)])


class Save(Callback):
    """Writes a checkpoint after the second step.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 2:
            trainer.save_checkpoint(self.path)


def test_a_run_goes_on_with_the_scale_that_it_had(tmp_path: Path) -> None:
    path = tmp_path / "second.ckpt"
    whole, again = (
        watched(small_search(FirstOrder()), "16-mixed", scaling(2.0**4, growth_interval=3), [Save(path)], start)
        for start in (None, path)
    )
    assert whole.scales == [2.0**4, 2.0**4, 2.0**5, 2.0**6, 2.0**6]
    assert again.scales == whole.scales[2:]
    assert len(again.states) == 3
    assert all(torch.equal(a, whole.states[-1][name]) for name, a in again.states[-1].items())


# ------------------------------------------------------------------------------------------------------ what is exact


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
