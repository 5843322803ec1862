"""The networks against the independent textbook form: outputs, gradients and running statistics, in float64."""

import csv
import json
import os
import random
from pathlib import Path

import pytest
import textbook
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from dartslight.errors import InputError
from dartslight.genotype import Genotype
from dartslight.nets import DiscreteNetwork, Source, Supernet
from dartslight.nets.cell import CellNetwork, drop_path
from dartslight.nets.operations import OPERATIONS, FactorizedReduce, Noise, make_operation
from dartslight.nets.weighted_sum import value
from dartslight.spaces import DARTS, NASBENCH201, SPACES, Choices, SearchSpace

SPACE_NAMES = ("nasbench201", "darts", "darts8", "s1", "s2", "s3", "s4", "unas")

DATA = os.environ.get("DARTSLIGHT_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="DARTSLIGHT_DATA is not set")

pytestmark = pytest.mark.usefixtures("float64")


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def pairs(ours: nn.Module, theirs: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """Modules of ours and of the textbook that do the same."""
    found: list[tuple[nn.Module, nn.Module]] = [(ours.tail, theirs.tail), (ours.classifier, theirs.classifier)]
    if hasattr(theirs, "stem0"):
        found += [(ours.stem.first, theirs.stem0), (ours.stem.second, theirs.stem1)]
    else:
        found.append((ours.stem, theirs.stem))
    for a, b in zip(ours.blocks, theirs.blocks, strict=True):
        if not isinstance(a, CellNetwork):
            found += [(a.conv_a, b.conv_a), (a.conv_b, b.conv_b), (a.shortcut, b.shortcut)]
            continue
        found += list(zip(a.preprocess, b.preprocess, strict=True))
        for e, edge in enumerate(a.cell.edges):
            twins = b.edges[e] if isinstance(b.edges[e], nn.ModuleList) else [b.edges[e]]
            found += [(a.operation(e, o), twins[o]) for o in range(len(edge.ops))]
    if getattr(theirs, "auxiliary", None) is not None:
        found.append((ours.auxiliary, theirs.auxiliary))
    return found


def ordered(module: nn.Module, kind: str) -> list[Tensor]:
    """The parameters, or the running statistics, of a module in the order in which a picture meets them."""
    found = []
    for m in module.modules() if not hasattr(module, "depthwise") else in_order(module):
        own = m.parameters(recurse=False) if kind == "parameters" else m.buffers(recurse=False)
        found += [t for t in own if t.dtype.is_floating_point]
    return found


def in_order(separable: nn.Module) -> list[nn.Module]:
    stages = zip(separable.depthwise, separable.pointwise, separable.norm, strict=True)
    return [m for stage in stages for m in stage]


def copy_weights(ours: nn.Module, theirs: nn.Module) -> None:
    with torch.no_grad():
        for a, b in pairs(ours, theirs):
            for source, target in zip(ordered(a, "parameters"), ordered(b, "parameters"), strict=True):
                assert source.shape == target.shape
                target.copy_(source)


def assert_same(a: Tensor, b: Tensor) -> None:
    """Equal to 1e-12 of the largest number of the tensor, or of 1e-3 where all are smaller, as sums that cancel are."""
    largest = float(b.detach().abs().max()) if b.numel() else 0.0
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12 * max(largest, 1e-3))


def share_noise(ours: nn.Module, theirs: nn.Module) -> None:
    """Lets the textbook's noise be the numbers that ours draws."""
    for a, b in pairs(ours, theirs):
        if isinstance(a, Noise):
            b.forward = lambda x, op=a: op(Source(x), None).x


def assert_same_everywhere(ours: nn.Module, theirs: nn.Module, unused: set[nn.Module] | None = None) -> None:
    """Weight gradients and running statistics agree."""
    for a, b in pairs(ours, theirs):
        if a in (unused or set()):
            continue
        for p, q in zip(ordered(a, "parameters"), ordered(b, "parameters"), strict=True):
            assert p.grad is not None
            assert_same(p.grad, q.grad)
        for p, q in zip(ordered(a, "buffers"), ordered(b, "buffers"), strict=True):
            assert_same(p, q)


def random_mixing(space: SearchSpace, generator: torch.Generator) -> dict[str, Tensor]:
    return {
        cell.name: torch.rand(len(cell.edges), len(cell.edges[0].ops), generator=generator, dtype=torch.float64)
        for cell in space.cells
    }


def decide_some(space: SearchSpace, share: float, seed: int) -> Choices:
    """Decides a share of the edges of each cell type at random, and drops one of the decided ones where nodes allow."""
    rng = random.Random(seed)
    choices = Choices.everything(space)
    for cell in space.cells:
        for e in rng.sample(range(len(cell.edges)), round(share * len(cell.edges))):
            choices = choices.decide((cell.name, e), rng.randrange(len(cell.edges[e].ops)))
        if share and space.inputs_per_node:
            choices = choices.drop([(cell.name, len(cell.edges) - 1)])
    return choices


def masked(mixing: dict[str, Tensor], choices: Choices) -> dict[str, Tensor]:
    """The mixing weights with one-hot rows for decided edges and zero rows for edges that are gone."""
    result = {}
    for cell, weights in mixing.items():
        rows = []
        for row, columns in zip(weights, choices.of(cell), strict=True):
            one_hot = torch.zeros_like(row)
            one_hot[list(columns)] = 1
            rows.append(row if len(columns) == len(row) else one_hot)
        result[cell] = torch.stack(rows)
    return result


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", SPACE_NAMES)
def test_supernet_equals_textbook(name: str, share: float) -> None:
    space = SPACES[name]
    num_cells = 3
    ours, theirs = Supernet(space, num_cells, 4, 5), textbook.Supernet(name, 4, num_cells, 5)
    copy_weights(ours, theirs)
    share_noise(ours, theirs)
    generator = torch.Generator().manual_seed(1)
    choices = decide_some(space, share, seed=2)
    images, labels = torch.randn(6, 3, 8, 8, generator=generator), torch.arange(6) % 5
    mixing = {c: m.requires_grad_() for c, m in masked(random_mixing(space, generator), choices).items()}
    twin = {c: m.detach().clone().requires_grad_() for c, m in mixing.items()}
    for training in (True, False):
        ours.train(training), theirs.train(training)
        ours.zero_grad(), theirs.zero_grad()
        a = ours(images, mixing, choices)
        b = theirs(images, twin)
        assert_same(a, b)
        loss_a = nn.functional.cross_entropy(a, labels)
        gradients = torch.autograd.grad(loss_a, list(mixing.values()), retain_graph=True)
        expected = torch.autograd.grad(nn.functional.cross_entropy(b, labels), list(twin.values()), retain_graph=True)
        for cell, g, h in zip(mixing, gradients, expected, strict=True):
            # A closed operation is not computed, so its weight, which no relaxation can move, gets no gradient.
            is_open = torch.tensor([[o in columns for o in range(g.shape[1])] for columns in choices.of(cell)])
            assert_same(g[is_open], h[is_open])
            assert not g[~is_open].any()
        loss_a.backward()
        nn.functional.cross_entropy(b, labels).backward()
        closed = {
            block.operation(e, o)
            for block in ours.blocks
            if isinstance(block, CellNetwork)
            for e, columns in enumerate(choices.of(block.cell.name))
            for o in range(len(block.cell.edges[e].ops))
            if o not in columns
        }
        idle = closed | {a for a, _ in pairs(ours, theirs) if any(p.grad is None for p in a.parameters())}
        assert share or not idle
        assert_same_everywhere(ours, theirs, idle)


def test_poolings_without_normalisation_equal_the_textbook_without_theirs() -> None:
    """DrNAS' supernet has none."""
    ours, theirs = Supernet(SPACES["darts"], 3, 4, 5, normalise_pools=False), textbook.Supernet("darts", 4, 3, 5)
    for block in theirs.blocks:
        for ops in block.edges:
            for o, op in enumerate(ops):
                if isinstance(op, nn.Sequential) and isinstance(op[0], nn.MaxPool2d | nn.AvgPool2d):
                    ops[o] = op[0]
    copy_weights(ours, theirs)
    generator = torch.Generator().manual_seed(1)
    images, mixing = torch.randn(6, 3, 8, 8, generator=generator), random_mixing(SPACES["darts"], generator)
    assert_same(ours(images, mixing), theirs(images, mixing))
    plain = Supernet(SPACES["darts"], 3, 4, 5)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in plain.modules()) > sum(
        isinstance(m, nn.BatchNorm2d) for m in ours.modules()
    )


class Storages(TorchDispatchMode):
    """Tells how many bytes of all results since are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(t, Tensor):
                storage = t.untyped_storage()
                self.seen[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes()
        return out

    def alive(self) -> int:
        return sum(size for reference, size in self.seen.values() if not reference.expired())


@pytest.mark.parametrize("channels", [4, 32])
@pytest.mark.parametrize("name", ["nasbench201", "s4"])
def test_checkpointed_cells_give_the_same_numbers(name: str, channels: int) -> None:
    space = SPACES[name]
    plain, checked = (Supernet(space, 3, channels, 5, checkpoint_cells=flag) for flag in (False, True))
    checked.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 8, 8)
    mixing = random_mixing(space, torch.Generator().manual_seed(1))
    graph_sizes = []
    for net in (plain, checked):
        weights = {cell: m.clone().requires_grad_() for cell, m in mixing.items()}
        with Storages() as storages:
            loss = net(images, weights).square().sum()
        graph_sizes.append(storages.alive())
        loss.backward()
        net.found = [weights[cell].grad for cell in mixing]
    assert graph_sizes[1] < graph_sizes[0] / 2
    for a, b in zip(plain.found, checked.found, strict=True):
        assert torch.equal(a, b)
    for (_, a), (_, b) in zip(plain.named_parameters(), checked.named_parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    for a, b in zip(plain.buffers(), checked.buffers(), strict=True):
        assert torch.equal(a, b)


def test_noise_is_mixed_in_without_a_gradient() -> None:
    space = SPACES["s4"]
    ours, theirs = Supernet(space, 3, 4, 5), textbook.Supernet("s4", 4, 3, 5)
    copy_weights(ours, theirs)
    mixing = {cell.name: torch.tensor([[0.3, 0.7]] * 14) for cell in space.cells}
    alone = {cell.name: torch.tensor([[0.0, 0.7]] * 14) for cell in space.cells}
    images = torch.randn(2, 3, 8, 8)
    assert_same(ours(images, alone), theirs(images, alone))
    torch.manual_seed(7)
    first = ours(images, mixing)
    assert torch.equal(first, ours(images, mixing))
    torch.manual_seed(8)
    assert not torch.allclose(first, ours(images, mixing))
    draws = [ours.blocks[0].operation(e, 0)(Source(images), None).x for e in range(2)]
    assert abs(float((draws[0] * draws[1]).mean())) < 0.2
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    out = ours.blocks[0].operation(0, 0)(Source(x), None).x
    assert not out.requires_grad
    assert out.std() > 0.5


@pytest.mark.parametrize("name", ["nasbench201", "darts", "s1"])
def test_weights_for_each_picture_equal_one_call_for_each(name: str) -> None:
    space = SPACES[name]
    ours = Supernet(space, 3, 4, 5).eval()
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(3, 3, 8, 8, generator=generator)
    rows = [random_mixing(space, generator) for _ in range(3)]
    together = {cell: torch.stack([row[cell] for row in rows]) for cell in rows[0]}
    logits = ours(images, together)
    for i, row in enumerate(rows):
        assert_same(logits[i : i + 1], ours(images[i : i + 1], row))


class OfEachPicture:
    """The weights of one operation, one for each picture, which multiply its output picture by picture."""

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights

    def __mul__(self, output: Tensor) -> Tensor:
        return torch.stack([weight * picture for weight, picture in zip(self.weights, output, strict=True)])


@pytest.mark.parametrize("checkpoint_cells", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("name", ["nasbench201", "s2", "darts"])
def test_weights_for_each_picture_equal_the_textbook_in_training(
    name: str, share: float, checkpoint_cells: bool
) -> None:
    """The statistics are those of an operation's output on all pictures; the weights come after."""
    space = SPACES[name]
    ours = Supernet(space, 3, 4, 5, checkpoint_cells=checkpoint_cells)
    theirs = textbook.Supernet(name, 4, 3, 5)
    copy_weights(ours, theirs)
    generator = torch.Generator().manual_seed(1)
    choices = decide_some(space, share, seed=2)
    images, labels = torch.randn(6, 3, 8, 8, generator=generator), torch.arange(6) % 5
    rows = [masked(random_mixing(space, generator), choices) for _ in images]
    mixing = {cell: torch.stack([row[cell] for row in rows]).requires_grad_() for cell in rows[0]}
    twin = {cell: m.detach().clone().requires_grad_() for cell, m in mixing.items()}
    book = {
        cell: [[OfEachPicture(m[:, e, o]) for o in range(m.shape[2])] for e in range(m.shape[1])]
        for cell, m in twin.items()
    }
    a, b = ours(images, mixing, choices), theirs(images, book)
    assert_same(a, b)
    nn.functional.cross_entropy(a, labels).backward()
    nn.functional.cross_entropy(b, labels).backward()
    for cell, m in mixing.items():
        is_open = torch.tensor([[o in columns for o in range(m.shape[2])] for columns in choices.of(cell)])
        assert_same(m.grad[:, is_open], twin[cell].grad[:, is_open])
        assert m.grad[:, is_open].any(dim=0).sum() > is_open.sum() / 2
    idle = {own for own, _ in pairs(ours, theirs) if any(p.grad is None for p in own.parameters())}
    assert bool(idle) == bool(share)
    if not share:
        assert_same_everywhere(ours, theirs)


@pytest.mark.parametrize("decided", [0, 3])
@pytest.mark.parametrize("name", ["nasbench201", "darts"])
def test_variants_in_one_pass_equal_single_calls(name: str, decided: int) -> None:
    space = SPACES[name]
    ours = Supernet(space, 3, 4, 5)
    images = torch.randn(4, 3, 8, 8)
    mixing = random_mixing(space, torch.Generator().manual_seed(1))
    whole = Choices.everything(space)
    for cell in space.cells:
        for edge in range(decided):
            whole = whole.decide((cell.name, edge), 3)
    first, last = space.cells[0].name, space.cells[-1].name
    variants = [(mixing, whole)]
    variants += [(mixing, whole.close((last, 4), op)) for op in (0, 1, 2, 3)]
    variants += [(mixing, whole.close((first, 5), 3)), (mixing, whole.drop([(first, 3), (last, 3)]))]
    for op in (1, 2, 3):
        weights = mixing[last].clone()
        weights[4, op] = 0
        variants.append(({**mixing, last: weights}, whole.close((last, 4), op)))
    logits = ours.forward_each(images, variants)
    for own, (m, c) in zip(logits, variants, strict=True):
        assert_same(own, ours(images, m, c))
    assert_same(logits[2], logits[7])  # closed, or without weight
    assert not torch.allclose(logits[0], logits[2])
    same = ours.forward_each(images, [variants[0], variants[0]])
    assert_same(same[0], same[1])


def test_removing_an_operation_changes_the_node_by_its_weighted_output() -> None:
    cell = Supernet(NASBENCH201, 3, 4, 5).blocks[0]
    weights = [[torch.full((4,), 0.1 * (o + 1)) for o in range(5)] for _ in range(6)]
    source = [Source(torch.randn(2, 4, 6, 6))]
    everything = [range(5)] * 6
    whole = cell(source, weights, everything).x
    without = cell(source, weights, [*everything[:3], [0, 1, 2, 4], *everything[4:]]).x  # 3x3 on the edge 3<-0
    assert_same(whole - without, value(cell.operation(3, 3)(source[0], weights[3][3])))
    without_none = cell(source, weights, [*everything[:3], [1, 2, 3, 4], *everything[4:]]).x
    assert torch.equal(whole, without_none)


def test_a_node_without_any_operation_is_zero() -> None:
    for name in ("nasbench201", "darts"):
        space = SPACES[name]
        net = Supernet(space, 3, 4, 5)
        choices = Choices.everything(space)
        for cell in space.cells:
            choices = choices.drop((cell.name, e) for e in cell.edges_into(cell.nodes[0]))
        mixing = random_mixing(space, torch.Generator())
        zero_rows = {
            cell.name: mixing[cell.name] * torch.tensor([float(bool(c)) for c in choices.of(cell.name)]).unsqueeze(1)
            for cell in space.cells
        }
        theirs = textbook.Supernet(name, 4, 3, 5)
        copy_weights(net, theirs)
        images = torch.randn(2, 3, 8, 8)
        assert_same(net(images, mixing, choices), theirs(images, zero_rows))


# ---------------------------------------------------------------------- discrete networks


def as_lists(genotype: Genotype) -> dict[str, list[tuple[int, int, str]]]:
    return {cell.name: [(e.source, e.node, e.ops[0]) for e in cell.edges] for cell in genotype.cells}


def darts_v2(space: SearchSpace = DARTS) -> Genotype:
    sep, skip, dil, pool = "sep_conv_3x3", "skip_connect", "dil_conv_3x3", "max_pool_3x3"
    normal = [(sep, 0), (sep, 1), (sep, 0), (sep, 1), (sep, 1), (skip, 0), (skip, 0), (dil, 2)]
    reduction = [(pool, 0), (pool, 1), (skip, 2), (pool, 1), (pool, 0), (skip, 2), (skip, 2), (pool, 1)]
    return Genotype.from_darts(space, normal, reduction)


def random_genotype(space: SearchSpace, seed: int) -> Genotype:
    rng = random.Random(seed)
    choices = Choices.everything(space)
    for cell in space.cells:
        for e, edge in enumerate(cell.edges):
            choices = choices.decide((cell.name, e), rng.randrange(len(edge.ops)))
        if space.inputs_per_node:
            for node in cell.nodes:
                edges = list(cell.edges_into(node))
                gone = rng.sample(edges, len(edges) - space.inputs_per_node)
                choices = choices.drop((cell.name, e) for e in gone)
    return Genotype.from_choices(space, choices)


@pytest.mark.parametrize("name", ["nasbench201", "darts", "darts8", "s1", "s2", "s3"])
def test_discrete_network_equals_textbook(name: str) -> None:
    for seed in range(3):
        genotype = random_genotype(SPACES[name], seed)
        ours = DiscreteNetwork(genotype, 3, 4, 5)
        theirs = textbook.Discrete(name, as_lists(genotype), 4, 3, 5)
        copy_weights(ours, theirs)
        images, labels = torch.randn(6, 3, 8, 8), torch.arange(6) % 5
        a, b = ours(images)[0], theirs(images)
        assert_same(a, b)
        nn.functional.cross_entropy(a, labels).backward()
        nn.functional.cross_entropy(b, labels).backward()
        idle = {m for m, _ in pairs(ours, theirs) if any(p.grad is None for p in m.parameters())}
        assert_same_everywhere(ours, theirs, idle)


@pytest.mark.parametrize(("stem", "size"), [("cifar", 32), ("imagenet", 224)])
def test_auxiliary_head_and_stem_equal_textbook(stem: str, size: int) -> None:
    genotype = darts_v2()
    ours = DiscreteNetwork(genotype, 3, 4, 5, auxiliary=True, stem=stem)
    theirs = textbook.Discrete("darts", as_lists(genotype), 4, 3, 5, auxiliary=True, stem=stem)
    copy_weights(ours, theirs)
    images = torch.randn(2, 3, size, size)
    (a, aux_a), (b, aux_b) = ours(images), theirs(images)
    assert_same(a, b)
    assert_same(aux_a, aux_b)
    assert ours.eval()(images)[1] is None


def test_auxiliary_head_takes_any_size() -> None:
    net = DiscreteNetwork(darts_v2(), 3, 4, 5, auxiliary=True)
    assert net(torch.randn(2, 3, 16, 16))[1].shape == (2, 5)
    assert net(torch.randn(2, 3, 36, 28))[1].shape == (2, 5)


@pytest.mark.parametrize("genotype", [darts_v2(), random_genotype(NASBENCH201, 1)], ids=["darts", "nasbench201"])
def test_odd_sizes_run(genotype: Genotype) -> None:
    assert DiscreteNetwork(genotype, 3, 4, 5)(torch.randn(2, 3, 27, 19))[0].shape == (2, 5)


def test_drop_path_equals_textbook() -> None:
    x = torch.randn(8, 2, 3, 3)
    torch.manual_seed(5)
    ours = drop_path(x, 0.3)
    torch.manual_seed(5)
    keep = torch.empty(8, 1, 1, 1).bernoulli_(0.7).flatten()
    assert 0 < keep.sum() < 8
    assert_same(ours, textbook.drop_path(x, keep, 0.3))


def test_drop_path_acts_in_training_only_and_spares_identities() -> None:
    skip = Genotype.from_nasbench201("|skip_connect~0|+|none~0|skip_connect~1|+|none~0|none~1|skip_connect~2|")
    conv = Genotype.from_nasbench201("|nor_conv_1x1~0|+|none~0|nor_conv_1x1~1|+|none~0|none~1|nor_conv_1x1~2|")
    images = torch.randn(16, 3, 8, 8)
    for genotype, changes in ((skip, False), (conv, True)):
        net = DiscreteNetwork(genotype, 3, 4, 5)
        assert (not torch.equal(net(images, 0.9)[0], net(images)[0])) == changes
        assert torch.equal(net.eval()(images, 0.9)[0], net(images)[0])


# ---------------------------------------------------------------------- numbers of parameters


@pytest.mark.parametrize(
    ("name", "num_cells", "classes", "expected"),
    [
        ("darts", 8, 10, 1_930_618),
        ("darts8", 8, 10, 1_930_618),
        ("s1", 8, 10, 405_146),
        ("s2", 8, 10, 665_466),
        ("s3", 8, 10, 665_466),
        ("s4", 8, 10, 624_506),
        ("nasbench201", 15, 10, 1_686_106),
        ("nasbench201", 15, 100, 1_691_956),
        ("nasbench201", 15, 120, 1_693_256),
    ],
)
def test_supernet_parameters(name: str, num_cells: int, classes: int, expected: int) -> None:
    with torch.device("meta"):
        assert count(Supernet(SPACES[name], num_cells, 16, classes)) == expected


def test_darts_v2_parameters() -> None:
    with torch.device("meta"):
        assert count(DiscreteNetwork(darts_v2(), 20, 36, 10)) == 3_349_342
        assert count(DiscreteNetwork(darts_v2(), 14, 48, 1000, stem="imagenet")) == 4_718_752


def published() -> list[tuple[str, Genotype, str]]:
    with (Path(DATA or "") / "published_genotypes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = []
    for row in rows:
        name = next((s for s in ("s1", "s2", "s3", "s4") if f"_{s}_" in row["name"]), "darts")
        normal, reduction = ([(op, source) for op, source in json.loads(row[k])] for k in ("normal", "reduce"))
        found.append((row["name"], Genotype.from_darts(SPACES[name], normal, reduction), row["comment"]))
    return found


@needs_data
@pytest.mark.slow
def test_published_genotypes_have_their_printed_parameters() -> None:
    exact = {
        "darts_pt_s5_0": 2_851_246,
        "darts_pt_s5_1": 3_053_206,
        "darts_pt_s5_2": 2_658_142,
        "darts_pt_s5_3": 3_328_174,
        "darts_pt_s1_1": 1_870_822,
        "darts_pt_s2_2": 2_789_254,
        "darts_pt_s3_2": 3_535_318,
        "darts_pt_s4_1": 4_701_718,
        "blank_pt_s5_3": 3_404_854,
        "blank_pt_s2_2": 4_311_622,
    }
    genotypes = published()
    assert len(genotypes) == 56
    checked = 0
    for name, genotype, comment in genotypes:
        assert Genotype.from_json(genotype.to_json()) == genotype
        with torch.device("meta"):
            parameters = count(DiscreteNetwork(genotype, 20, 36, 100 if "c100" in name else 10))
        if name in exact:
            assert parameters == exact[name], name
        number = comment.strip("# ").split()[0] if comment.strip("# ") else ""
        if number.replace(".", "", 1).isdigit():
            decimals = len(number.partition(".")[2])
            assert abs(parameters / 1e6 - float(number)) < 10.0**-decimals, name  # some are cut off, not rounded
            checked += 1
    assert checked >= 20


@needs_data
@pytest.mark.slow
def test_nasbench201_parameters_equal_the_table() -> None:
    import gzip

    with gzip.open(Path(DATA or "") / "nasbench201.csv.gz", "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in random.Random(0).sample(rows, 300):
        genotype = Genotype.from_nasbench201(row["arch"])
        assert genotype.to_nasbench201() == row["arch"]
        with torch.device("meta"):
            assert count(DiscreteNetwork(genotype, 15, 16, 10)) == int(row["params"]), row["arch"]


# ---------------------------------------------------------------------- wrong input


def test_wrong_networks_are_refused() -> None:
    with pytest.raises(InputError, match="multiple of 3, such as 6"):
        Supernet(NASBENCH201, 4, 4, 5)
    with pytest.raises(InputError, match="at least 1 cell"):
        Supernet(DARTS, 0, 4, 5)
    with pytest.raises(InputError, match="at least 2"):
        Supernet(DARTS, 3, 1, 5)
    with pytest.raises(InputError, match="auxiliary head is for networks of the DARTS kind"):
        DiscreteNetwork(random_genotype(NASBENCH201, 0), 3, 4, 5, auxiliary=True)
    with pytest.raises(InputError, match="stem 'imagenet'"):
        DiscreteNetwork(random_genotype(NASBENCH201, 0), 3, 4, 5, stem="imagenet")
    with pytest.raises(InputError, match="no operation 'conv_9x9'; the known ones are none"):
        make_operation("conv_9x9", None)
    assert set(OPERATIONS) >= {op for s in SPACES.values() for c in s.cells for e in c.edges for op in e.ops}


def test_skips_that_halve_the_size_are_factorized() -> None:
    reduction = Supernet(SPACES["s2"], 3, 4, 5).blocks[1]
    assert isinstance(reduction.operation(0, 0), FactorizedReduce)
    assert not isinstance(reduction.operation(4, 0), FactorizedReduce)
