"""The layers with derivatives or an order of computing of their own, against the library's, in float64."""

import platform
import resource
import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dartslight.nets import node_sums
from dartslight.nets.allocation import keep_freed_memory
from dartslight.nets.depthwise import DepthwiseConv
from dartslight.nets.operations import OPERATIONS, Setting, Source
from dartslight.nets.weighted_sum import BatchNorm, Normalised, Scaled, value, weighted_sum

pytestmark = pytest.mark.usefixtures("float64")
is_compiled = pytest.mark.skipif(node_sums._LIBRARY is None, reason="node_sums.c is not compiled")


@pytest.fixture(params=[pytest.param("compiled", marks=is_compiled), "by torch"])
def by_both(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a test with the compiled passes, and without them."""
    if request.param == "by torch":
        monkeypatch.setattr(node_sums, "_LIBRARY", None)


@pytest.mark.skipif(platform.system() != "Linux" or shutil.which("gcc") is None, reason="needs gcc on Linux")
def test_the_compiled_passes_are_installed() -> None:
    assert node_sums.takes(pictures(2, 4, 4, 4))


def pictures(*shape: int) -> Tensor:
    return torch.randn(*shape).to(memory_format=torch.channels_last).requires_grad_()


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def assert_same_to_the_second_derivative(ours: Tensor, theirs: Tensor, inputs: list[Tensor]) -> None:
    assert_same(ours, theirs)
    outer = torch.randn_like(theirs)
    first = [
        torch.autograd.grad(y, inputs, outer, retain_graph=True, create_graph=create)
        for create in (False, True)
        for y in (ours, theirs)
    ]
    for k in (0, 2):
        for mine, other in zip(first[k], first[k + 1], strict=True):
            assert_same(mine, other)
    directions = [torch.randn_like(x) for x in inputs]
    seconds = [
        torch.autograd.grad(
            sum((g * d).sum() for g, d in zip(gradients, directions, strict=True)), inputs, materialize_grads=True
        )
        for gradients in (first[2], first[3])
    ]
    for mine, other in zip(*seconds, strict=True):
        assert_same(mine, other)


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (5, 6)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_depthwise_convolution(kernel: int, dilation: int, stride: int, size: tuple[int, int]) -> None:
    x = pictures(2, 3, *size)
    conv = DepthwiseConv(3, kernel, stride, dilation)
    padding = dilation * (kernel // 2)
    theirs = F.conv2d(x, conv.weight, None, stride, padding, dilation, 3)
    assert_same_to_the_second_derivative(conv(x), theirs, [x, conv.weight])


@pytest.mark.usefixtures("by_both")
@pytest.mark.parametrize("channels", [3, 4, 16, 36])
@pytest.mark.parametrize("affine", [False, True])
def test_batch_normalisation(channels: int, affine: bool) -> None:
    x = pictures(4, channels, 6, 4)
    ours, theirs = BatchNorm(channels, affine=affine), nn.BatchNorm2d(channels, affine=affine)
    inputs = [x]
    if affine:
        for p in (ours.weight, ours.bias):
            nn.init.normal_(p)
        theirs.load_state_dict(ours.state_dict())
        inputs += [ours.weight, ours.bias]
    # The library's on the very same parameters, so that derivatives compare.
    expected = F.batch_norm(x, None, None, *inputs[1:], training=True)
    assert_same_to_the_second_derivative(ours(x), expected, inputs)
    theirs(x)
    assert_same(ours.running_mean, theirs.running_mean)
    assert_same(ours.running_var, theirs.running_var)
    theirs.running_mean, theirs.running_var = ours.running_mean.clone(), ours.running_var.clone()
    assert_same(ours.eval()(x), theirs.eval()(x))


@pytest.mark.usefixtures("by_both")
@pytest.mark.parametrize("shape", [(4,), (2, 1, 1, 1)])
def test_batch_normalisation_carries_a_mixing_weight(shape: tuple[int, ...]) -> None:
    x, weight = pictures(2, 4, 4, 4), torch.rand(shape).requires_grad_()
    factor = weight.view(1, -1, 1, 1) if len(shape) == 1 else weight
    expected = F.batch_norm(x, None, None, training=True) * factor
    assert_same_to_the_second_derivative(BatchNorm(4, affine=False)(x, weight), expected, [x, weight])


@pytest.mark.usefixtures("by_both")
def test_a_sum_of_terms() -> None:
    x, y, z = (pictures(2, 4, 6, 4) for _ in range(3))
    norms = BatchNorm(4), BatchNorm(4, affine=False)
    for p in norms[0].parameters():
        nn.init.normal_(p)
    weights = [torch.rand(4).requires_grad_() for _ in range(4)]
    total = weighted_sum(
        [
            Scaled(x, weights[0]),
            Normalised(y, norms[0], weights[1]),
            z,
            None,
            Scaled(y, weights[2]),
            Normalised(z, norms[1], weights[3]),
        ]
    )
    assert total is not None
    across = [w.view(1, -1, 1, 1) for w in weights]
    expected = (
        x * across[0]
        + F.batch_norm(y, None, None, norms[0].weight, norms[0].bias, training=True) * across[1]
        + z
        + y * across[2]
        + F.batch_norm(z, None, None, training=True) * across[3]
    )
    inputs = [x, y, z, *weights, norms[0].weight, norms[0].bias]
    assert_same_to_the_second_derivative(total, expected, inputs)


def test_a_sum_of_nothing_and_of_one() -> None:
    x = pictures(2, 4, 6, 4)
    assert weighted_sum([None, None]) is None
    assert weighted_sum([None, Scaled(x, None)]) is x


@pytest.mark.usefixtures("by_both")
def test_a_normalisation_in_several_sums_is_followed_once() -> None:
    x, norm, twin = pictures(2, 4, 6, 4), BatchNorm(4), nn.BatchNorm2d(4)
    term = Normalised(x, norm, None)
    with torch.no_grad():
        sums = [value(term), weighted_sum([term, x])]
        expected = twin(x)
    for ours, theirs in zip(sums, (expected, expected + x), strict=True):
        assert ours is not None
        assert_same(ours, theirs)
    assert_same(norm.running_mean, twin.running_mean)
    assert_same(norm.running_var, twin.running_var)


def test_another_normalisation_in_its_place_keeps_the_mixing_weight() -> None:
    x, weight = pictures(2, 4, 6, 4), torch.rand(4)
    expected = F.batch_norm(x, None, None, training=True) * weight.view(1, -1, 1, 1)
    assert_same(value(Normalised(x, nn.BatchNorm2d(4), weight)), expected)


def test_other_pictures_are_left_to_the_library() -> None:
    assert not node_sums.takes(pictures(1, 4, 1, 1))
    assert not node_sums.takes(torch.randn(2, 4, 4, 4))
    x = torch.randn(2, 4, 4, 4, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    assert BatchNorm(4).float()(x).dtype == torch.bfloat16


def passes(xs: list[Tensor], g: Tensor) -> list[Tensor]:
    """All that the compiled passes compute of a sum of normalised terms."""
    mean, variance, inverse = node_sums.moments(xs, 1e-5)
    nothing = [None] * len(xs)
    _, slopes = node_sums.weighted(xs, nothing, nothing, mean, inverse)
    by_x, by_scale, by_shift = node_sums.derivatives(xs, mean, inverse, slopes, g, [True] * len(xs))
    return [mean, variance, inverse, by_scale, by_shift, *(x for x in by_x if x is not None)]


@is_compiled
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("shape", [(64, 8, 16, 16), (3, 5, 7, 9)])
def test_compiled_passes_in_float32(shape: tuple[int, ...], threads: int) -> None:
    """As near to float64 as the library, far from 0 too; the same bits each time with the same number of threads."""
    exact = [pictures(*shape).detach() * 0.1 + 10 * i for i in range(3)]
    xs, g = [x.float() for x in exact], pictures(*shape).detach().float()
    exact = [x.double() for x in xs]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        once, again = (passes(xs, g) for _ in range(2))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    mean, variance, inverse, by_scale, by_shift, *by_x = once
    pixels = g[:, 0].numel()
    for i, x in enumerate(exact):
        expected, spread = x.var((0, 2, 3), correction=0), g.double().abs().sum((0, 2, 3))
        assert torch.allclose(mean[i].double(), x.mean((0, 2, 3)), rtol=1e-6)
        assert torch.allclose(variance[i].double(), expected, rtol=1e-5)
        assert torch.allclose(inverse[i].double(), (expected + 1e-5).rsqrt(), rtol=1e-5)
        leaf, scale = x.clone().requires_grad_(), torch.ones(x.shape[1], requires_grad=True)
        F.batch_norm(leaf, None, None, scale, None, True, 0.0, 1e-5).backward(g.double())
        assert leaf.grad is not None
        assert scale.grad is not None
        slack = 1e-5 * float(spread.max()) / pixels**0.5
        assert torch.allclose(by_scale[i].double(), scale.grad, atol=slack, rtol=1e-5)
        assert torch.allclose(by_x[i].double(), leaf.grad, atol=1e-5 * float(leaf.grad.abs().max()), rtol=1e-4)
    assert torch.allclose(by_shift.double(), g.double().sum((0, 2, 3)), atol=1e-6 * float(spread.max()))


@is_compiled
def test_a_constant_channel_has_no_variance() -> None:
    x = torch.full((2, 3, 4, 4), 0.1).to(memory_format=torch.channels_last)
    mean, variance, inverse = node_sums.moments([x], 0.25)
    assert torch.equal(mean[0], x[0, :, 0, 0])
    assert not variance.any()
    assert torch.equal(inverse, torch.full_like(inverse, 2))


@pytest.mark.usefixtures("by_both")
@pytest.mark.parametrize("size", [(7, 6), (1, 2), (2, 1), (1, 1)])
@pytest.mark.parametrize("stride", [1, 2])
def test_average_pooling(stride: int, size: tuple[int, int]) -> None:
    x = pictures(2, 4, *size)
    (y, weight) = OPERATIONS["avg_pool_3x3"](Setting(4, stride, False, False, False))(Source(x), None)
    assert weight is None
    theirs = F.avg_pool2d(x, 3, stride, padding=1, count_include_pad=False)
    # Squares, since a mean alone has no second derivative.
    assert_same_to_the_second_derivative(y.square(), theirs.square(), [x])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs the GNU C library")
def test_freed_memory_is_kept() -> None:
    assert keep_freed_memory()
    for _ in range(3):
        torch.zeros(1 << 20).add_(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        torch.zeros(1 << 20).add_(1)  # 8 MiB, or 2048 pages
    # Memory that is given back each time would cost 50 times as many; other threads and a busy system cost some.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 5 * 2048
