"""What the trainer adds to a search step: the quickstart's loop against its arithmetic alone.

    python benchmarks/overhead.py [--short] [--json]

In turns: a fit of the quickstart's supernet as the command line runs it, with progress bar, logging and checkpoints,
and the same two steps on the same sizes without a trainer. A step of the fit is the time from the start of one batch to
the start of the next within an epoch, the loading of batches included. The ratio printed is alone / fit: 0.9 says that
a tenth of the time is not arithmetic.
"""

import contextlib
import io
import itertools
import statistics
import tempfile
import time
from typing import Any
from unittest.mock import patch

import torch
from compare import Problem, Result, arguments, milliseconds, show

from dartslight.cli import main
from dartslight.modules import SearchModule

CONFIG = "configs/quickstart.yaml"


def fit(epochs: int) -> tuple[float, tuple[int, ...]]:
    """Returns milliseconds of a step of the quickstart's search, and the shape of its batches."""
    starts: list[tuple[int, float]] = []
    shape: list[tuple[int, ...]] = []

    def note(module: SearchModule, batch: Any, index: int) -> None:
        starts.append((index, time.perf_counter()))
        shape.append(tuple(batch["train"].images.shape))

    silence = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with tempfile.TemporaryDirectory() as folder, patch.object(SearchModule, "on_train_batch_start", note):
        command = ["fit", "--config", CONFIG, "--trainer.max_epochs", str(epochs), "--selection.eval_batches", "1"]
        with silence[0], silence[1]:
            main([*command, "--selection.interval", "0", "--trainer.default_root_dir", folder])
    gaps = [1000 * (b - a) for (i, a), (j, b) in itertools.pairwise(starts) if j == i + 1 and i > 0]
    return statistics.median(gaps), shape[0]


if __name__ == "__main__":
    given = arguments(__doc__)
    _, (batch, _, size, _) = fit(1)
    problem = Problem("nasbench201", 3, 8, size, batch, track=False)
    pairs = []
    for _ in range(given.repeats or (2 if given.short else 7)):
        step, _ = fit(2)
        torch.set_num_threads(given.threads)
        problem.product_step()
        pairs.append((statistics.median(milliseconds(problem.product_step) for _ in range(40)), step))
    ratios = [alone / whole for alone, whole in pairs]
    alone, whole = (statistics.median(column) for column in zip(*pairs, strict=True))
    result = Result(f"a search step, {problem.name}", alone, whole, statistics.median(ratios), min(ratios), max(ratios))
    show([result], given, 0.6, ("alone", "in a fit"))
