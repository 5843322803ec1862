"""The device that a network runs on outside training."""

from pathlib import Path

import torch

from dartslight.errors import InputError


def find_device(name: str) -> torch.device:
    """Returns a device by its name.

    Args:
        name: ``auto`` for a GPU where there is one, or a name of torch such as ``cpu`` or ``cuda:1``.

    Raises:
        InputError: If there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(f"There is no device {name!r} here; give auto, cpu, or cuda where there is a GPU.") from None
    return device


def describe(device: torch.device) -> str:
    """Returns what a device is called where figures are told that depend on it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{device} ({models[0]})" if models and device.type == "cpu" else str(device)
