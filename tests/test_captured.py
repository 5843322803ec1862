"""What lets a GPU run ahead: a step that asks for no value, and a supernet that is one graph for all masks.

On a CPU nothing waits, so the first is seen by the operations that are dispatched, and the second by a compiler that
captures graphs and runs them as they are.
"""

import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dartslight.cli import main
from dartslight.modules import SearchModule
from dartslight.nets import Supernet
from dartslight.spaces import SPACES, Choices
from dartslight.strategies import Architecture, Softmax

WAITING = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "equal", "unique", "_unique2")
"""Operations whose result, or its shape, a processor must wait for."""


class Waits(TorchDispatchMode):
    """Collects the operations for whose values a program waits."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        name = func._schema.name.split("::")[1]
        # An optimizer counts its steps in a tensor on the CPU, for which nothing waits.
        if name in WAITING and not any("torch/optim/" in frame.filename for frame in traceback.extract_stack()):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def test_waiting_is_seen() -> None:
    with Waits() as waits:
        assert torch.ones(2).sum() > 1
        torch.ones(2).nonzero()
    assert waits.seen == ["_local_scalar_dense", "nonzero"]


@pytest.mark.parametrize("gradient", ["FirstOrder", "FiniteDifference", "Unrolled", "Fixed"])
def test_a_search_step_waits_for_nothing(gradient: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    counts: list[int] = []
    step = SearchModule.training_step

    def watched(module: SearchModule, *batch: Any) -> None:
        with Waits() as waits:
            step(module, *batch)
        seen.extend(waits.seen)
        counts.append(waits.count)

    monkeypatch.setattr(SearchModule, "training_step", watched)
    short = [
        "--model.init_channels",
        "4",
        "--trainer.max_epochs",
        "1",
        "--data.max_pictures",
        "128",
        "--data.batch_size",
        "16",
    ]
    chosen = ["--model.gradient", f"dartslight.strategies.{gradient}", "--selection", "dartslight.selection.Random"]
    start = ["fit", "--config", "configs/quickstart.yaml", "--trainer.default_root_dir", str(tmp_path)]
    main([*start, *short, *chosen])
    assert len(counts) >= 2
    assert min(counts) > 100
    assert seen == []


@pytest.mark.usefixtures("captures")
@pytest.mark.parametrize("name", ["nasbench201", pytest.param("darts", marks=pytest.mark.slow)])
def test_one_graph_serves_all_masks_and_decisions(name: str) -> None:
    torch.manual_seed(0)
    space = SPACES[name]
    plain, captured = (Supernet(space, 3, 4, 5).double() for _ in range(2))
    captured.load_state_dict(plain.state_dict())
    captured.capture("default")
    architecture = Architecture(space, Softmax(), init_std=0.5).double()
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    everything = Choices.everything(space)
    cell = space.cells[0].name
    decided = everything.decide((cell, 1), 3)
    variants = [(everything, everything.close((cell, 0), o)) for o in range(3)] + [(decided, decided)]
    torch._dynamo.utils.counters.clear()
    for mixed, computed in variants:
        found = []
        for net in (plain, captured):
            logits = net(images, architecture(mixed), computed)
            found.append([logits, *gradients(logits, net, architecture)])
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def gradients(logits: Tensor, net: Supernet, architecture: Architecture) -> list[Tensor]:
    inputs = [*architecture.parameters(), *net.classifier.parameters(), next(iter(net.stem.parameters()))]
    return list(torch.autograd.grad(logits.square().sum(), inputs))
