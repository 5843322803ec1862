"""The textbook networks themselves: their numbers of parameters are known exactly."""

import pytest
import torch
from textbook import (
    Discrete,
    Supernet,
    SupernetCell,
    TextbookSearch,
    drop_path,
    operation,
    search_step,
    softmax_mixing,
    unrolled_gradient,
)
from torch import nn

from dartslight.spaces import NASBENCH201, SPACES

NAMES = {
    "max": "max_pool_3x3",
    "avg": "avg_pool_3x3",
    "skip": "skip_connect",
    "sep3": "sep_conv_3x3",
    "dil3": "dil_conv_3x3",
    "conv1": "nor_conv_1x1",
    "conv3": "nor_conv_3x3",
    "none": "none",
}


def darts_cell(text):
    """Reads ``op@source,op@source | …``, one group for each of the nodes 2, 3, 4, 5."""
    edges = []
    for node, group in enumerate(text.split("|"), start=2):
        for entry in group.split(","):
            op, source = entry.strip().split("@")
            edges.append((int(source), node, NAMES[op]))
    return edges


def nasbench201_cell(*ops):
    """Reads the six operations in the order of the edges."""
    return {"cell": [(e.source, e.node, NAMES[op]) for e, op in zip(NASBENCH201.cell("cell").edges, ops, strict=True)]}


DARTS_V1 = {
    "normal": darts_cell("sep3@1,sep3@0 | skip@0,sep3@1 | skip@0,sep3@1 | sep3@0,skip@2"),
    "reduction": darts_cell("max@0,max@1 | skip@2,max@0 | max@0,skip@2 | skip@2,avg@0"),
}
DARTS_V2 = {
    "normal": darts_cell("sep3@0,sep3@1 | sep3@0,sep3@1 | sep3@1,skip@0 | skip@0,dil3@2"),
    "reduction": darts_cell("max@0,max@1 | skip@2,max@1 | max@0,skip@2 | skip@2,max@1"),
}
ALL_SEP3 = dict.fromkeys(
    ("normal", "reduction"), darts_cell("sep3@0,sep3@1 | sep3@0,sep3@1 | sep3@0,sep3@1 | sep3@0,sep3@1")
)
ALL_SKIP = nasbench201_cell(*["skip"] * 6)
ONE_CONV3 = nasbench201_cell("skip", "skip", "conv3", "skip", "skip", "skip")
ALL_CONV3 = nasbench201_cell(*["conv3"] * 6)


def count(network, *args, **kwargs):
    """Returns the number of parameters of a network, which is built without memory."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in network(*args, **kwargs).parameters())


def uniform(space_name, dtype=torch.float32):
    return {
        cell.name: torch.full((len(cell.edges), len(cell.edges[0].ops)), 1 / len(cell.edges[0].ops), dtype=dtype)
        for cell in SPACES[space_name].cells
    }


@pytest.mark.parametrize(
    ("space_name", "num_cells", "num_classes", "expected"),
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
def test_parameters_of_supernet(space_name, num_cells, num_classes, expected):
    assert count(Supernet, space_name, 16, num_cells, num_classes) == expected


@pytest.mark.parametrize(
    ("cells", "init_channels", "num_cells", "expected"),
    [
        (DARTS_V1, 36, 20, 3_169_414),
        (DARTS_V2, 36, 20, 3_349_342),
        (ALL_SEP3, 36, 20, 4_701_718),
        (ALL_SEP3, 16, 8, 411_002),
    ],
)
def test_parameters_of_discrete_cifar_network(cells, init_channels, num_cells, expected):
    assert count(Discrete, "darts", cells, init_channels, num_cells, 10) == expected


def test_parameters_of_discrete_imagenet_network():
    assert count(Discrete, "darts", DARTS_V2, 48, 14, 1000, stem="imagenet") == 4_718_752


@pytest.mark.parametrize(("cells", "expected"), [(ALL_SKIP, 73_306), (ONE_CONV3, 316_346), (ALL_CONV3, 1_531_546)])
def test_parameters_of_discrete_nasbench201_network(cells, expected):
    assert count(Discrete, "nasbench201", cells, 16, 15, 10) == expected


@pytest.mark.parametrize("space_name", ["nasbench201", "darts", "darts8", "s1", "s2", "s3", "s4", "unas"])
def test_supernet_gives_logits(space_name):
    net = Supernet(space_name, 4, 3, 7)
    assert net(torch.randn(2, 3, 16, 16), uniform(space_name)).shape == (2, 7)


def test_structure_of_nasbench201():
    net = Supernet("nasbench201", 4, 6, 10)
    assert [type(block).__name__ for block in net.blocks] == [
        *["SupernetCell"] * 2,
        "ResidualBlock",
        *["SupernetCell"] * 2,
        "ResidualBlock",
        *["SupernetCell"] * 2,
    ]
    assert all(len(block.preprocess) == 0 for block in net.blocks if isinstance(block, SupernetCell))


def test_discrete_gives_logits_and_in_training_those_of_the_auxiliary_head():
    net = Discrete("darts", DARTS_V1, 4, 3, 10, auxiliary=True)
    logits, auxiliary_logits = net(torch.randn(2, 3, 32, 32))
    assert logits.shape == auxiliary_logits.shape == (2, 10)
    assert net.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    expected = 4 * 16 * 128 + 2 * 128 + 128 * 768 * 4 + 2 * 768 + 768 * 10 + 10
    assert sum(parameter.numel() for parameter in net.auxiliary.parameters()) == expected


def test_discrete_imagenet_stem_divides_by_eight():
    net = Discrete("darts", DARTS_V2, 4, 3, 10, stem="imagenet")
    images = torch.randn(2, 3, 64, 64)
    assert net.stem1(net.stem0(images)).shape == (2, 4, 8, 8)
    assert net(images).shape == (2, 10)


def test_discrete_nasbench201_may_hold_none():
    net = Discrete("nasbench201", nasbench201_cell("none", "skip", "conv1", "none", "conv3", "skip"), 4, 3, 10)
    assert net(torch.randn(2, 3, 16, 16)).shape == (2, 10)


@pytest.mark.parametrize(
    "name",
    sorted({op for s in SPACES.values() if s.macro != "mobile" for c in s.cells for e in c.edges for op in e.ops}),
)
@pytest.mark.parametrize("stride", [1, 2])
def test_operation_halves_by_its_stride(name, stride):
    op = operation(name, 4, stride, affine=False, pool_norm=True)
    assert op(torch.randn(2, 4, 8, 8)).shape == (2, 4, 8 // stride, 8 // stride)
    assert all(module.track_running_stats for module in op.modules() if isinstance(module, nn.BatchNorm2d))


def test_average_excludes_padding_and_noise_is_fresh():
    ones = torch.ones(1, 2, 6, 6, requires_grad=True)
    assert torch.equal(operation("avg_pool_3x3", 2, 1, True, pool_norm=False)(ones), ones)
    noise = operation("noise", 2, 1, False, pool_norm=True)
    assert not noise(ones).requires_grad
    assert not torch.equal(noise(ones), noise(ones))


def test_none_contributes_nothing():
    torch.manual_seed(0)
    net = Supernet("s3", 4, 3, 10).double()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    mixing = uniform("s3", torch.float64)
    other = {name: weights.clone() for name, weights in mixing.items()}
    for weights in other.values():
        weights[:, 0] = 5.0
    assert torch.equal(net(images, mixing), net(images, other))


@pytest.mark.parametrize("edge", [3, 4, 5])
def test_last_node_is_linear_in_the_mixing_of_one_edge(edge):
    torch.manual_seed(0)
    block = Supernet("nasbench201", 4, 3, 10).double().blocks[0]
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    left = torch.rand(6, 5, dtype=torch.float64)
    right = left.clone()
    right[edge] = torch.rand(5, dtype=torch.float64)
    between = block([x], 0.3 * left + 0.7 * right)
    assert torch.allclose(between, 0.3 * block([x], left) + 0.7 * block([x], right))
    assert not torch.allclose(block([x], left), block([x], right))


def test_drop_path_drops_samples_but_no_identity():
    x = torch.ones(2, 3, 4, 4)
    assert torch.equal(drop_path(x, torch.tensor([1.0, 0.0]), 0.5)[:, 0, 0, 0], torch.tensor([2.0, 0.0]))
    net = Discrete("darts", DARTS_V1, 4, 3, 10)
    images = torch.randn(2, 3, 16, 16)
    # One normal and two reduction cells; each has three identity skips and five other operations.
    masks = iter([torch.ones(2)] * (5 + 5 + 5))
    net(images, 0.2, masks)
    assert next(masks, None) is None
    net.eval()
    assert torch.equal(net(images, 0.2), net(images))


def test_search_step_moves_alphas_and_weights():
    torch.manual_seed(0)
    net = Supernet("s2", 4, 3, 10)
    alphas = {name: torch.zeros_like(weights).requires_grad_() for name, weights in uniform("s2").items()}
    before = [parameter.detach().clone() for parameter in net.parameters()]
    batches = [(torch.randn(4, 3, 16, 16), torch.randint(10, (4,))) for _ in range(2)]
    search = TextbookSearch(net, alphas)
    losses = search.step(*batches)
    assert all(loss > 0 for loss in losses)
    # Adam's first step is the learning rate in the direction of the sign.
    for alpha in alphas.values():
        assert torch.allclose(alpha.detach().abs(), torch.full_like(alpha, 3e-4), rtol=1e-2)
    assert all(not torch.equal(new, old) for new, old in zip(net.parameters(), before, strict=True))


def test_search_step_is_the_first_step_of_a_search():
    results = []
    for step in (search_step, lambda net, alphas, *batches: TextbookSearch(net, alphas).step(*batches)):
        torch.manual_seed(0)
        net = Supernet("nasbench201", 2, 3, 10)
        alphas = {"cell": torch.zeros(6, 5, requires_grad=True)}
        batches = [(torch.randn(4, 3, 8, 8), torch.randint(10, (4,))) for _ in range(2)]
        results.append((step(net, alphas, *batches), alphas["cell"].detach()))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])


def test_softmax_is_over_operations():
    mixing = softmax_mixing({"cell": torch.randn(6, 5)})
    assert torch.allclose(mixing["cell"].sum(1), torch.ones(6))


def test_unrolled_gradient_of_a_parabola():
    w, a, buffer = (torch.tensor([value], dtype=torch.float64) for value in (1.5, -0.5, 0.25))
    lr, momentum, decay = 0.1, 0.9, 0.01
    (gradient,) = unrolled_gradient(
        lambda ws, alphas: 0.5 * ((ws[0] - alphas[0]) ** 2).sum(),
        lambda ws, alphas: 0.5 * (ws[0] ** 2).sum() + alphas[0].sum(),
        [w],
        [a],
        lr,
        [buffer],
        momentum,
        decay,
    )
    unrolled = w - lr * ((w - a) + decay * w + momentum * buffer)
    assert torch.allclose(gradient, 1 + lr * unrolled)


def test_unrolled_gradient_agrees_with_differences():
    torch.manual_seed(0)
    x, y = torch.randn(2, 5, 3, dtype=torch.float64)
    w, a = torch.randn(3, dtype=torch.float64), torch.randn(2, dtype=torch.float64)

    def loss(data):
        def of(ws, alphas):
            mixing = torch.softmax(alphas[0], 0)
            hidden = data @ ws[0]
            return (mixing[0] * hidden.tanh() + mixing[1] * hidden).square().mean()

        return of

    def unrolled_loss(alpha):
        weight = w.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(x)([weight], [alpha]), weight)
        return loss(y)([w - 0.2 * (gradient + 3e-4 * w)], [alpha])

    (gradient,) = unrolled_gradient(loss(x), loss(y), [w], [a], 0.2, [None], 0.9, 3e-4)
    for index in range(2):
        shift = torch.zeros(2, dtype=torch.float64)
        shift[index] = 1e-5
        difference = (unrolled_loss(a + shift) - unrolled_loss(a - shift)) / 2e-5
        assert torch.allclose(gradient[index], difference, rtol=1e-6)
