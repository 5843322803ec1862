"""What the network of a genotype costs: parameters, multiply-adds, and the time it takes on this machine.

A multiply-add is one product that is added to a sum. Those of convolutions and of the classifier are counted, with one
for each bias of the classifier; normalisations, activations, poolings and sums of operations are not. These are the
figures of NAS-Bench-201 (https://arxiv.org/abs/2001.00326).
"""

import math
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dartslight.errors import InputError, check_least
from dartslight.genotype import Genotype
from dartslight.nets import DiscreteNetwork
from dartslight.nets.network import Stem
from dartslight.shipping.devices import describe, find_device

_SECONDS, _LEAST_RUNS, _WARM_UP_RUNS = 2.0, 10, 3


@dataclass(frozen=True, slots=True)
class Latency:
    """The time that one pass takes, over several.

    Args:
        median: Median in seconds.
        low: A quarter of the runs took at most so many seconds.
        high: A quarter of the runs took at least so many seconds.
        runs: Number of runs.
    """

    median: float
    low: float
    high: float
    runs: int


def parameters(network: nn.Module) -> int:
    """Returns the number of a network's parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def multiply_adds(network: nn.Module, height: int, width: int) -> int:
    """Returns the multiply-adds of a network for one picture.

    Args:
        network: A network on the CPU.
        height: Height of the picture in pixels.
        width: Width of the picture in pixels.
    """
    total = 0

    def add(module: nn.Module, _: Any, out: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            factors = module.in_channels // module.groups * math.prod(module.kernel_size)
        else:
            assert isinstance(module, nn.Linear)
            factors = module.in_features
        total += out.numel() * (factors + (module.bias is not None))

    counted = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    hooks = [module.register_forward_hook(add) for module in counted]
    was_training = network.training
    try:
        with torch.inference_mode():
            network.eval()(torch.zeros(1, 3, height, width))
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    return total


def latency(network: nn.Module, images: Tensor, threads: int) -> Latency:
    """Returns the time that a network takes for some pictures, over at least 10 runs and 2 seconds.

    Args:
        network: The network, which is left in evaluation mode.
        images: The pictures, (n, 3, height, width), on its device.
        threads: Number of CPU threads.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    network.eval()
    times: list[float] = []
    try:
        with torch.inference_mode():
            for _ in range(_WARM_UP_RUNS):
                network(images)
            while len(times) < _LEAST_RUNS or sum(times) < _SECONDS:
                _finish(images.device)
                start = time.perf_counter()
                network(images)
                _finish(images.device)
                times.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return Latency(median, low, high, len(times))


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(
    genotype: Genotype,
    num_cells: int | None = None,
    init_channels: int | None = None,
    num_classes: int = 10,
    size: int = 32,
    stem: Stem = "cifar",
    batch_size: int = 1,
    threads: int | None = None,
    device: str = "auto",
) -> str:
    """Returns in words what the network of a genotype costs on this machine.

    Args:
        genotype: The architecture.
        num_cells: Number of cells; None for the published network's.
        init_channels: Channels of the first cell's operations; None for the published network's.
        num_classes: Number of classes.
        size: Height and width of the pictures in pixels.
        stem: The stem, see `DiscreteNetwork`.
        batch_size: Pictures in a pass whose time is measured.
        threads: Number of CPU threads; None for torch's own choice.
        device: The device, see `find_device`.

    Raises:
        InputError: If there is no such network or no such device, or the memory is too small.
    """
    check_least(1, size=size, batch_size=batch_size, threads=threads)
    place = find_device(device)
    cells, channels = genotype.published_size
    cells = cells if num_cells is None else num_cells
    channels = channels if init_channels is None else init_channels
    network = DiscreteNetwork(genotype, cells, channels, num_classes, stem=stem)
    threads = threads or torch.get_num_threads()
    try:
        products = multiply_adds(network, size, size)
        images = torch.rand(batch_size, 3, size, size, device=place)
        time_of = latency(network.to(place), images, threads)
    except RuntimeError as error:  # among others torch.OutOfMemoryError
        reason = str(error).partition("\n")[0].rstrip(".")
        pictures = f"{_number(batch_size, 'picture')} of {size}x{size}"
        raise InputError(f"The network cannot run on {pictures} ({reason}); give smaller numbers.") from None
    median, low, high = (f"{1000 * seconds:.3g}" for seconds in (time_of.median, time_of.low, time_of.high))
    return "\n".join(
        [
            f"network        {genotype.space}, {cells} cells, {channels} channels, {num_classes} classes",
            f"parameters     {parameters(network):,}",
            f"multiply-adds  {products:,} for a picture of {size}x{size}",
            f"latency        {median} ms, the middle half of {time_of.runs} runs {low} to {high} ms: "
            f"{_number(batch_size, 'picture')} at a time, {_number(threads, 'thread')}, {describe(place)}",
        ]
    )


def _number(count: int, thing: str) -> str:
    return f"{count} {thing}" + ("s" if count != 1 else "")
