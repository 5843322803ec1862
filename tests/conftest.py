"""What all tests share."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

# The networks of the tests are so small that a second thread costs more than it brings.
torch.set_num_threads(1)


@pytest.fixture
def float64() -> Iterator[None]:
    """Double precision and a fixed seed, where arithmetic is compared."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="session")
def forks() -> Any:
    """Makes processes that have imported everything already; that import is left to the tests that need it."""
    import children

    return children.forks()


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A compiler that captures graphs and runs them as they are, since building machine code takes minutes."""
    torch._dynamo.reset()
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, mode, dynamic: compiler(f, backend="aot_eager", dynamic=dynamic))
    yield
    torch._dynamo.reset()
