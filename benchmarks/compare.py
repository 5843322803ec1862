"""What all benchmarks share: two contestants timed in turns, the floor, and how results are shown."""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import SGD, Adam

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import textbook  # the independent re-statement that the tests compare with

from dartslight.nets import Supernet
from dartslight.spaces import Choices, find_space
from dartslight.strategies import Architecture, Softmax

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass
class Result:
    """Times of two contestants, in milliseconds.

    Args:
        name: What was measured.
        textbook: Median time of the textbook form.
        product: Median time of the product.
        ratio: Median of the ratios of neighbouring measurements.
        low: Smallest of these ratios.
        high: Largest of these ratios.
        floor: Time that the arithmetic alone would take at the rate of a large matrix product, if known.
    """

    name: str
    textbook: float
    product: float
    ratio: float
    low: float
    high: float
    floor: float | None = None


def milliseconds(run: Callable[[], Any]) -> float:
    """Returns how long a call takes."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - start)


def in_turns(
    name: str, book: Callable[[], Any], product: Callable[[], Any], repeats: int, macs: float | None = None
) -> Result:
    """Times two contestants in turns after one call of each that does not count.

    Args:
        name: What is measured.
        book: The textbook form.
        product: The product.
        repeats: Number of turns.
        macs: Multiply-adds of one call, for the floor.
    """
    book(), product()
    pairs = [(milliseconds(book), milliseconds(product)) for _ in range(repeats)]
    ratios = [a / b for a, b in pairs]
    floor = None if macs is None else 1000 * macs / matmul_rate()
    middle = statistics.median
    return Result(
        name, middle(a for a, _ in pairs), middle(b for _, b in pairs), middle(ratios), min(ratios), max(ratios), floor
    )


def matmul_rate(size: int = 2048) -> float:
    """Returns multiply-adds per second of a float32 product of two large square matrices, the best of five."""
    a, b = torch.randn(2, size, size, device=DEVICE)
    return size**3 / min(milliseconds(lambda: a @ b) / 1000 for _ in range(5))


class Problem:
    """One supernet in both forms with the same weights, and two batches.

    Args:
        space: Name of the search space.
        num_cells: Number of searched cells.
        init_channels: Channels of the first cell.
        size: Side of the pictures in pixels.
        batch: Pictures per batch.
        track: Whether the product's normalisations keep running statistics.
    """

    def __init__(
        self, space: str, num_cells: int, init_channels: int, size: int = 32, batch: int = 64, track: bool = True
    ) -> None:
        torch.manual_seed(0)
        self.name = f"{space}, {num_cells} cells, {init_channels} channels, {batch} pictures of {size}x{size}"
        self.space = find_space(space)
        self.choices = Choices.everything(self.space)
        self.train, self.val = (
            (torch.randn(batch, 3, size, size, device=DEVICE), torch.randint(0, 10, (batch,), device=DEVICE))
            for _ in range(2)
        )
        self.net = Supernet(self.space, num_cells, init_channels, 10, track).to(DEVICE)
        self.architecture = Architecture(self.space, Softmax()).to(DEVICE)
        self.weight_optimizer = SGD(self.net.parameters(), 0.025, 0.9, weight_decay=3e-4)
        self.alpha_optimizer = Adam(self.architecture.parameters(), 3e-4, betas=(0.5, 0.999), weight_decay=1e-3)
        self.book = textbook.Supernet(space, init_channels, num_cells, 10).to(DEVICE)
        alphas = {name: alpha.detach().clone().requires_grad_() for name, alpha in self.architecture.alphas.items()}
        self.book_search = textbook.TextbookSearch(self.book, alphas)

    def textbook_step(self) -> None:
        """Takes both steps in textbook form."""
        self.book_search.step(self.train, self.val)

    def product_step(self) -> None:
        """Takes both steps as `SearchModule.training_step` does, without Lightning."""
        alphas = list(self.architecture.alphas.values())
        with self.net.constant():
            loss = F.cross_entropy(self.net(self.val[0], self.architecture(self.choices), self.choices), self.val[1])
            gradients = torch.autograd.grad(loss, alphas)
        for alpha, gradient in zip(alphas, gradients, strict=True):
            alpha.grad = gradient
        self.alpha_optimizer.step()
        self.weight_optimizer.zero_grad()
        with torch.no_grad():
            mixing = self.architecture(self.choices)
        F.cross_entropy(self.net(self.train[0], mixing, self.choices), self.train[1]).backward()
        torch.nn.utils.clip_grad_norm_(self.net.weights, 5.0)
        self.weight_optimizer.step()

    def forward_macs(self) -> float:
        """Returns the multiply-adds of all convolutions and the classifier in one forward pass."""
        total = 0.0

        def count(module: torch.nn.Module, inputs: Any, output: Tensor) -> None:
            nonlocal total
            total += output.numel() * module.weight[0].numel()  # type: ignore[index, union-attr]

        hooks = [
            m.register_forward_hook(count)
            for m in self.book.modules()
            if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))
        ]
        with torch.no_grad():
            self.book(self.train[0], textbook.softmax_mixing(dict(self.architecture.alphas)))
        for hook in hooks:
            hook.remove()
        return total


def arguments(description: str | None) -> argparse.Namespace:
    """Returns the options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="small networks; exit code 1 if a ratio is below 1.5")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--repeats", type=int, help="number of turns (default: as many as the benchmark needs)")
    parser.add_argument("--space", action="append", help="only this search space; may be repeated (default: all)")
    parser.add_argument("--threads", type=int, default=2, help="threads of a CPU (default: 2)")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    return given


def show(
    results: Sequence[Result],
    given: argparse.Namespace,
    least: float = 1.5,
    names: tuple[str, str] = ("textbook", "product"),
) -> None:
    """Prints results, and ends the program with code 1 if a short run has a ratio below the least."""
    where = f"{DEVICE.type}, {given.threads} threads, torch {torch.__version__}"
    if given.json:
        print(json.dumps({"where": where, "results": [asdict(result) for result in results]}))
    else:
        print(where)
        for r in results:
            floor = "" if r.floor is None else f", floor {r.floor:.0f} ms"
            print(
                f"{r.name}: {names[0]} {r.textbook:.1f} ms, {names[1]} {r.product:.1f} ms, "
                f"{r.ratio:.2f} x ({r.low:.2f} to {r.high:.2f}){floor}"
            )
    if given.short and any(result.ratio < least for result in results):
        raise SystemExit(1)
