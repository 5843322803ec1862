"""What all devices do together; every message between them that the loop sends is here."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn

from dartslight.errors import InputError


def average(trainer: Trainer, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Returns the means of tensors over all devices, in one message.

    Args:
        trainer: The trainer.
        tensors: The tensors on this device.
    """
    if trainer.world_size == 1:
        return tensors
    flat = torch.cat([t.reshape(-1) for t in tensors])
    torch.distributed.all_reduce(flat)  # the strategy's own reduction lets the processor wait at a barrier first
    parts = torch.split_with_sizes(flat / trainer.world_size, [t.numel() for t in tensors])
    return [m.view_as(t) for m, t in zip(parts, tensors, strict=True)]


def share_statistics(trainer: Trainer, network: nn.Module) -> None:
    """Gives all devices the mean of a network's running statistics, so that one checkpoint is the state of all.

    Args:
        trainer: The trainer.
        network: The network.
    """
    if trainer.world_size == 1:  # there are thousands of modules to ask, in each step
        return
    running = [b for b in network.buffers() if b.dtype.is_floating_point]
    if running:
        for buffer, mean in zip(running, average(trainer, running), strict=True):
            buffer.copy_(mean)


def on_first(trainer: Trainer, compute: Callable[[], Any]) -> Any:
    """Returns on all devices what the first one computes while the others wait and disturb no measurement.

    Args:
        trainer: The trainer.
        compute: Computes it; tensors in it are on the CPU.

    Raises:
        InputError: On all devices, if it is raised on the first.
    """
    if trainer.world_size == 1:
        return compute()
    trainer.strategy.barrier("before a measurement")
    result, failure = None, None
    if trainer.is_global_zero:
        try:
            result = compute()
        except InputError as error:
            failure = str(error)
    result, failure = trainer.strategy.broadcast((result, failure))
    if failure is not None:
        raise InputError(failure)
    return result


def end_if_told(trainer: Trainer) -> None:
    """Ends the run on all devices where one of them has been told to by SIGTERM.

    Args:
        trainer: The trainer.

    Raises:
        SIGTERMException: On all devices, at the same place.
    """
    is_told = trainer._signal_connector.received_sigterm
    if trainer.world_size > 1:
        told = torch.tensor(int(is_told), device=trainer.strategy.root_device)
        torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
        is_told = bool(told)
    if is_told:
        raise SIGTERMException
