"""What has been measured for the decision at hand, on disk, so that an interrupted decision goes on where it was."""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dartslight.run_folder import write_whole_tensors

SCORES = "scores.pt"
"""Name of the file, beside the checkpoints."""

SECONDS = 2.0
"""Measurements shorter than this are not worth a file; where writing takes long they must be longer."""


@dataclass
class ScoresFile:
    """Measurements by a digest of everything that they depend on; one of another network is never found.

    Args:
        path: The file, or None to keep nothing.
    """

    path: Path | None
    _entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    _found: dict[str, dict[str, Any]] = field(default_factory=dict)
    _last: float = field(default_factory=time.monotonic)
    _took: float = 0.0

    def __post_init__(self) -> None:
        if self.path is not None and self.path.is_file():
            try:
                self._found = torch.load(self.path, weights_only=True, map_location="cpu")
            except Exception:  # a damaged file can make the reader fail in any way; all is measured again
                self._found = {}

    def get(self, digest: str) -> dict[str, Any] | None:
        """Returns what was kept for a measurement, finished or not."""
        entry = self._found.get(digest)
        if entry is not None:
            self._entries[digest] = entry
        return entry

    def keep(self, digest: str, entry: Mapping[str, Any]) -> None:
        """Keeps the state of a measurement; it goes to disk where enough time has passed."""
        self._entries[digest] = dict(entry)
        begin = time.monotonic()
        if self.path is not None and begin - self._last >= SECONDS * max(1.0, 10 * self._took):
            write_whole_tensors(self.path, self._entries)
            self._last = time.monotonic()
            self._took = self._last - begin


def digest(network: nn.Module, *settings: object) -> str:
    """Returns a number for the state of a network and some settings, as text."""
    found = hashlib.blake2b(repr(settings).encode(), digest_size=16)
    for name, tensor in network.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
