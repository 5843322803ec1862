"""The mobile spaces: their layers, their networks against plain torch, and a search under a cost."""

import csv
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from children import start_devices, succeed
from test_ddp import words_for
from test_strategies_in_training import QUICK, newest
from torch import Tensor, nn

from dartslight.cli import main
from dartslight.errors import InputError
from dartslight.genotype import Genotype
from dartslight.modules import SearchModule
from dartslight.nets import DiscreteNetwork, Supernet
from dartslight.nets.cell import CellNetwork
from dartslight.report import save_drawing
from dartslight.spaces import MOBILE, MOBILE_SMALL, Choices, SearchSpace, layout
from dartslight.spaces.mobile import MOBILE_OPS

PUBLISHED = [32] * 4 + [56] * 4 + [112] * 4 + [128] * 4 + [256] * 4 + [432]


def random_genotype(space: SearchSpace, seed: int) -> Genotype:
    rng, choices = random.Random(seed), Choices.everything(space)
    for cell in space.cells:
        choices = choices.decide((cell.name, 0), rng.randrange(cell.num_ops))
    return Genotype.from_choices(space, choices)


class Bottleneck(nn.Module):
    """An inverted bottleneck, or nothing, as plain torch states it."""

    def __init__(self, name: str, before: int, after: int, stride: int, affine: bool) -> None:
        super().__init__()
        self.skips = name == "skip_connect"
        if self.skips:
            return
        kernel, wide = int(name[8]), before * int(name[-1])

        def norm(channels: int) -> nn.BatchNorm2d:
            return nn.BatchNorm2d(channels, eps=1e-3, affine=affine)

        self.layers = nn.Sequential(
            *(nn.Conv2d(before, wide, 1, bias=False), norm(wide), nn.ReLU6()),
            *(nn.Conv2d(wide, wide, kernel, stride, kernel // 2, groups=wide, bias=False), norm(wide), nn.ReLU6()),
            *(nn.Conv2d(wide, after, 1, bias=False), norm(after)),
        )
        self.adds = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        if self.skips:
            return x
        return self.layers(x) + x if self.adds else self.layers(x)


class Book(nn.Module):
    """The small network for given candidates of each layer, weighted by a mixing."""

    def __init__(self, ops: list[tuple[str, ...]], init: int, classes: int, affine: bool) -> None:
        super().__init__()

        def norm(channels: int) -> nn.BatchNorm2d:
            return nn.BatchNorm2d(channels, eps=1e-3)

        wide, before = 5 * init, 3 * init
        self.stem = nn.Sequential(
            *(nn.Conv2d(3, wide, 3, padding=1, bias=False), norm(wide), nn.ReLU6()),
            *(nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), norm(wide), nn.ReLU6()),
            *(nn.Conv2d(wide, before, 1, bias=False), norm(before)),
        )
        self.layers = nn.ModuleList()
        for i, names in enumerate(ops):
            after, stride = init * (4, 7, 14)[i // 3], 2 if i in (3, 6) else 1
            self.layers.append(nn.ModuleList(Bottleneck(name, before, after, stride, affine) for name in names))
            before = after
        self.tail = nn.Sequential(nn.Conv2d(before, 4 * before, 1, bias=False), norm(4 * before), nn.ReLU6())
        self.classifier = nn.Linear(4 * before, classes)

    def forward(self, x: Tensor, weights: list[Tensor]) -> Tensor:
        x = self.stem(x)
        for layer, own in zip(self.layers, weights, strict=True):
            # Weights of each picture stand in front of its pixels.
            x = sum(own[..., o].reshape(-1, 1, 1, 1) * op(x) for o, op in enumerate(layer))
        return self.classifier(self.tail(x).mean(dim=(2, 3)))


def copy_weights(ours: nn.Module, book: Book) -> None:
    twins = [(ours.stem, book.stem), (ours.tail, book.tail), (ours.classifier, book.classifier)]
    for block, layer in zip(ours.blocks, book.layers, strict=True):
        assert isinstance(block, CellNetwork)
        for o, op in enumerate(layer):
            if not op.skips:
                own = block.operation(0, o)
                first, second, third = own.norms
                a, b = (own.expand, first, own.depthwise, second, own.project, third), op.layers
                twins += list(zip(a, (b[0], b[1], b[3], b[4], b[6], b[7]), strict=True))
    with torch.no_grad():
        for a, b in twins:
            for p, q in zip(a.parameters(), b.parameters(), strict=True):
                q.copy_(p)


def test_the_layers_are_the_published_ones() -> None:
    blocks = layout("mobile", 21)
    assert [8 * block.width for block in blocks] == PUBLISHED
    assert [i + 1 for i, block in enumerate(blocks) if block.reduction] == [1, 5, 9, 17]
    assert len(MOBILE.cells) == 21
    assert len(MOBILE_SMALL.cells) == 9
    changes = [i + 1 for i, cell in enumerate(MOBILE.cells) if cell.num_ops == 6]
    assert changes == [1, 5, 9, 13, 17, 21]
    assert sum(cell.num_ops for cell in MOBILE.cells) == 15 * 7 + 6 * 6
    assert set(MOBILE_OPS) == {f"mb_conv_{k}x{k}_e{e}" for k in (3, 5, 7) for e in (3, 6)}
    with torch.device("meta"), torch.no_grad():
        net = DiscreteNetwork(random_genotype(MOBILE, 0), 21, 8, 1000, stem="imagenet")
        assert net(torch.empty(1, 3, 224, 224))[0].shape == (1, 1000)
        assert net.start(torch.empty(1, 3, 224, 224))[1].x.shape == (1, 24, 112, 112)
    assert net.classifier.in_features == 1728


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("per_picture", [False, True])
def test_the_supernet_is_that_of_plain_torch(per_picture: bool) -> None:
    ours = Supernet(MOBILE_SMALL, 9, 2, 5)
    book = Book([cell.edges[0].ops for cell in MOBILE_SMALL.cells], 2, 5, affine=False)
    copy_weights(ours, book)
    images = torch.randn(6, 3, 9, 9)
    rows = (6,) if per_picture else ()
    mixing = {c.name: torch.rand(*rows, 1, c.num_ops).requires_grad_() for c in MOBILE_SMALL.cells}
    logits = ours(images, mixing)
    expected = book(images, [own[..., 0, :] for own in mixing.values()])
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-10)
    inputs = [*mixing.values()]
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), inputs) for y in (logits, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)
    weights = sum(p.numel() for p in ours.parameters())
    assert weights == sum(p.numel() for p in book.parameters())


@pytest.mark.usefixtures("float64")
def test_a_discrete_network_is_that_of_plain_torch() -> None:
    for seed in range(3):
        genotype = random_genotype(MOBILE_SMALL, seed)
        ours = DiscreteNetwork(genotype, 9, 2, 5)
        book = Book([cell.edges[0].ops for cell in genotype.cells], 2, 5, affine=True)
        copy_weights(ours, book)
        images = torch.randn(4, 3, 16, 16)
        expected = book(images, [torch.ones(1)] * 9)
        torch.testing.assert_close(ours(images)[0], expected, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(ours(images, 0.5)[0], expected, rtol=1e-9, atol=1e-10)  # no path to drop


@pytest.mark.parametrize("space", [MOBILE, MOBILE_SMALL], ids=["mobile", "mobile_small"])
def test_a_genotype_is_kept_and_drawn(space: SearchSpace, tmp_path: Path) -> None:
    genotype = random_genotype(space, 1)
    assert Genotype.from_json(genotype.to_json()) == genotype
    save_drawing(tmp_path / "cell.svg", genotype)
    ops = re.findall(r"<!-- ((?:mb_conv|skip)\w+) -->", (tmp_path / "cell.svg").read_text())
    assert ops == [cell.edges[0].ops[0] for cell in genotype.cells]
    text = json.loads(genotype.to_json())
    text["cells"].pop(f"layer_{len(space.cells)}")
    with pytest.raises(InputError, match="layers, but the space 'mobile"):
        Genotype.from_json(json.dumps(text))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_cells": 15}, "num_cells is 15, but the space 'mobile_small' has 9 layers"),
        ({"partial_channels": 2}, "partial_channels needs cells in which edges stand beside each other"),
        ({"auxiliary_skip": "linear"}, "auxiliary_skip needs cells"),
        ({"drop_path": 0.2}, "drop_path needs cells"),
    ],
)
def test_what_a_layer_cannot_do_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SearchModule("mobile_small", **{"num_cells": 9, **settings})


def test_wrong_networks_are_refused() -> None:
    with pytest.raises(InputError, match="num_cells is 7, but a mobile network has 21 or 9 searched layers"):
        Supernet(MOBILE_SMALL, 7, 2, 5)
    with pytest.raises(InputError, match="num_cells is 21, but there are 9 layers to choose for"):
        Supernet(MOBILE_SMALL, 21, 2, 5)
    with pytest.raises(InputError, match="cannot carry auxiliary_skip beside their operations"):
        Supernet(MOBILE_SMALL, 9, 2, 5, terms=("auxiliary_skip",))
    with pytest.raises(InputError, match="auxiliary head is for networks of the DARTS kind"):
        DiscreteNetwork(random_genotype(MOBILE_SMALL, 0), 9, 2, 5, auxiliary=True)


@pytest.mark.parametrize("cost", ["MultiplyAdds", "Latency"])
def test_a_search_under_a_cost_decides_every_layer(cost: str, tmp_path: Path) -> None:
    criteria = [
        {"class_path": "dartslight.criteria.CrossEntropy"},
        {
            "class_path": f"dartslight.criteria.{cost}",
            "init_args": {"num_cells": 9, "init_channels": 2, "target": 0.1, "size": 8, "coefficient": 10.0},
        },
    ]
    if cost == "Latency":
        criteria[1]["init_args"] |= {"batch_size": 1, "repeats": 1}
    own = ["fit", *QUICK, "--model.space=mobile_small", "--model.num_cells=9", "--data.size=8", "--data.padding=1"]
    own += ["--model.relaxation=dartslight.strategies.Sampled", "--model.gradient=dartslight.strategies.ScoreFunction"]
    own += [f"--model.gradient.criteria={json.dumps(criteria)}", "--model.gradient.surrogate_samples=20"]
    own += ["--selection=dartslight.selection.Magnitude", f"--trainer.default_root_dir={tmp_path}"]
    assert main([*own, "--data.max_pictures=32"]) == 0
    folder = newest(tmp_path)
    genotype = Genotype.load(folder / "genotype.json")
    assert (genotype.space, len(genotype.cells)) == ("mobile_small", 9)
    with (folder / "metrics.csv").open(newline="") as file:
        row = list(csv.DictReader(file))[-1]
    name = {"MultiplyAdds": "multiply_adds", "Latency": "latency"}[cost]
    assert float(row[f"cost/{name}"]) > 0
    assert float(row[f"surrogate_error/{name}"]) >= 0


@pytest.mark.ddp
def test_two_processes_hold_the_same_layers(tmp_path: Path, forks: Any) -> None:
    words = ["--model.space=mobile_small", "--model.num_cells=9", "--data.size=8", "--data.padding=1"]
    words += ["--model.init_channels=2", "--model.track_statistics=true", "--data.max_pictures=64"]
    command = words_for(tmp_path, 2, *words, "--selection=dartslight.selection.Magnitude")
    succeed(start_devices(forks, 2, tmp_path, main, command))
    a, b = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    for part in ("alphas", "weights"):
        assert a[part].keys() == b[part].keys()
        assert all(torch.equal(a[part][k], b[part][k]) for k in a[part])
    assert a["choices"] == b["choices"]
    assert a["labels"] != b["labels"]
