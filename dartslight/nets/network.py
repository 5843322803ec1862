"""The network around the cells, of the supernet and of the discrete network: stem, chain of blocks, classifier."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dartslight.errors import InputError
from dartslight.nets.allocation import keep_freed_memory
from dartslight.nets.cell import CellNetwork, EdgeTerm
from dartslight.nets.depthwise import DepthwiseConv
from dartslight.nets.operations import Conv, FactorizedReduce, Noise, Operation, Setting, Source, mobile_norm
from dartslight.nets.weighted_sum import BatchNorm, value
from dartslight.spaces import MOBILE_START, Block, Cell, layout

Stem = Literal["cifar", "imagenet"]

State = tuple[Source, Source]
"""The outputs of the last two blocks, the newer one second."""

RunCell = Callable[[Block, CellNetwork, Sequence[Source]], Source]
"""Runs one cell of the chain on its inputs."""


class ResidualBlock(nn.Module):
    """The fixed block between two stages of a NAS-Bench-201 network: halves the size, doubles the channels."""

    def __init__(self, in_channels: int, out_channels: int, track: bool) -> None:
        super().__init__()
        self.conv_a = Conv(in_channels, out_channels, 3, stride=2, affine=True, track=track)
        self.conv_b = Conv(out_channels, out_channels, 3, stride=1, affine=True, track=track)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, source: Source) -> Source:
        """Returns the block's output."""
        y = value(self.conv_b(Source(value(self.conv_a(source, None))), None))
        # An odd height or width keeps its last pixels, as the strided convolution beside it does.
        return Source(y + self.shortcut(F.avg_pool2d(source.x, 2, stride=2, ceil_mode=True)))


def _norm(channels: int, track: bool) -> BatchNorm:
    return BatchNorm(channels, track_running_stats=track)


def _small_stem(channels: int, track: bool) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, channels, 3, padding=1, bias=False), _norm(channels, track))


_STEM, _TAIL = 5, 4  # UNAS: 40 channels for an init_channels of 8, and 1728 behind the last 432


def _mobile_stem(init: int, track: bool, stride: int) -> nn.Sequential:
    """A convolution, and a bottleneck that is no wider inside."""
    wide = _STEM * init
    return nn.Sequential(
        nn.Conv2d(3, wide, 3, stride, padding=1, bias=False),
        mobile_norm(wide, track),
        nn.ReLU6(inplace=True),
        DepthwiseConv(wide, 3, 1, 1),
        mobile_norm(wide, track),
        nn.ReLU6(inplace=True),
        nn.Conv2d(wide, MOBILE_START * init, 1, bias=False),
        mobile_norm(MOBILE_START * init, track),
    )


def _mobile_tail(channels: int, track: bool) -> nn.Sequential:
    wide = _TAIL * channels
    return nn.Sequential(nn.Conv2d(channels, wide, 1, bias=False), mobile_norm(wide, track), nn.ReLU6(inplace=True))


class ImageNetStem(nn.Module):
    """Three convolutions that make an eighth of the height and width; gives the last two states, half apart."""

    def __init__(self, channels: int, track: bool) -> None:
        super().__init__()
        half = channels // 2
        self.first = nn.Sequential(
            nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False),
            _norm(half, track),
            nn.ReLU(inplace=True),
            nn.Conv2d(half, channels, 3, stride=2, padding=1, bias=False),
            _norm(channels, track),
        )
        self.second = nn.Sequential(
            nn.ReLU(), nn.Conv2d(channels, channels, 3, stride=2, padding=1, bias=False), _norm(channels, track)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the states at a quarter and at an eighth of the size."""
        first = self.first(images)
        return first, self.second(first)


class Network(nn.Module):
    """Stem, blocks and classifier for cells of any kind.

    Args:
        macro: The chain of blocks, see `dartslight.spaces.layout`.
        cells: The cell types by name.
        num_cells: Number of searched cells.
        init_channels: Channels of the first cell's operations.
        num_classes: Number of classes.
        affine: Whether the batch normalisations inside the cells have a learned scale and shift.
        normalise_pools: Whether a batch normalisation follows a pooling inside the cells.
        track: Whether batch normalisations keep running statistics.
        stem: ``cifar`` for small pictures; ``imagenet`` makes an eighth of the size first in ``darts`` networks, half
            of it in ``mobile`` ones.
        partial_channels: The operations of an edge see one in so many channels (PC-DARTS).
        terms: What every edge carries beside its operations.
    """

    def __init__(
        self,
        macro: str,
        cells: Mapping[str, Cell],
        num_cells: int,
        init_channels: int,
        num_classes: int,
        *,
        affine: bool,
        normalise_pools: bool,
        track: bool = True,
        stem: Stem = "cifar",
        partial_channels: int = 1,
        terms: Sequence[EdgeTerm] = (),
    ) -> None:
        super().__init__()
        keep_freed_memory()
        if init_channels < 2 or num_classes < 2:
            raise InputError(
                f"init_channels is {init_channels} and there are {num_classes} classes, but both must be at least 2."
            )
        self.layout = layout(macro, num_cells)
        if init_channels % partial_channels or init_channels < 2 * partial_channels:
            raise InputError(
                f"init_channels is {init_channels} and partial_channels {partial_channels}, but one in so many "
                "channels must be a whole number of at least 2; give a multiple of "
                f"{partial_channels} from {2 * partial_channels} on."
            )
        setting = Setting(init_channels, 1, affine, track, normalise_pools, partial_channels)
        self.terms: tuple[EdgeTerm, ...] = ("bypass", *terms) if partial_channels > 1 else tuple(terms)
        self.blocks = nn.ModuleList()
        if macro == "darts":
            self.stem, channels = self._add_chain(cells, setting, stem)
            self.tail: nn.Module = nn.Identity()
        elif macro == "mobile":
            self.stem, channels = self._add_layers(cells, setting, stem)
            self.tail = _mobile_tail(channels, track)
            channels *= _TAIL
        elif stem == "cifar":
            self.stem, channels = self._add_stages(cells, setting)
            self.tail = nn.Sequential(_norm(channels, track), nn.ReLU(inplace=True))
        else:
            raise InputError(f"The stem {stem!r} does not go with NAS-Bench-201 networks; use 'cifar'.")
        self.classifier = nn.Linear(channels, num_classes)
        for place, noise in enumerate(m for m in self.modules() if isinstance(m, Noise)):
            noise.place = place
        self.to(memory_format=torch.channels_last)

    def _add_chain(self, cells: Mapping[str, Cell], setting: Setting, stem: Stem) -> tuple[nn.Module, int]:
        """Adds the cells of a DARTS network, each of which reads the two before it."""
        init, track = setting.channels, setting.track
        first: nn.Module = ImageNetStem(init, track) if stem == "imagenet" else _small_stem(3 * init, track)
        older = newer = init if stem == "imagenet" else 3 * init
        halved = stem == "imagenet"  # whether the newer state is half as large as the older one
        for block in self.layout:
            cell, channels = cells[block.cell or ""], init * block.width
            older_op: Operation = (
                FactorizedReduce(older, channels, setting.affine, track)
                if halved
                else Conv(older, channels, 1, 1, setting.affine, track)
            )
            newer_op = Conv(newer, channels, 1, 1, setting.affine, track)
            place = replace(setting, channels=channels, stride=2 if block.reduction else 1)
            self.blocks.append(CellNetwork(cell, (older_op, newer_op), place, self.terms))
            older, newer, halved = newer, channels * cell.num_nodes, block.reduction
        return first, newer

    def _add_stages(self, cells: Mapping[str, Cell], setting: Setting) -> tuple[nn.Module, int]:
        """Adds the cells of a NAS-Bench-201 network, each of which reads the one before it."""
        init = channels = setting.channels
        for block in self.layout:
            if block.cell is None:
                self.blocks.append(ResidualBlock(channels, init * block.width, setting.track))
                channels = init * block.width
            else:
                cell, place = cells[block.cell], replace(setting, channels=channels)
                self.blocks.append(CellNetwork(cell, (), place, self.terms))
        return _small_stem(init, setting.track), channels

    def _add_layers(self, cells: Mapping[str, Cell], setting: Setting, stem: Stem) -> tuple[nn.Module, int]:
        """Adds the layers of a mobile network, each of which reads the one before it.

        Raises:
            InputError: If the number of layers is not that of the cell types.
        """
        if len(cells) != len(self.layout):
            raise InputError(
                f"num_cells is {len(self.layout)}, but there are {len(cells)} layers to choose for; give that many."
            )
        misplaced = [term for term in self.terms if term != "offset"]
        if misplaced:
            raise InputError(
                f"The layers of a mobile network cannot carry {' and '.join(misplaced)} beside their operations, since "
                "some change the number of channels; use another strategy."
            )
        init, channels = setting.channels, MOBILE_START * setting.channels
        for block in self.layout:
            place = replace(
                setting, in_channels=channels, channels=init * block.width, stride=2 if block.reduction else 1
            )
            self.blocks.append(CellNetwork(cells[block.cell or ""], (), place, self.terms))
            channels = init * block.width
        return _mobile_stem(init, setting.track, 2 if stem == "imagenet" else 1), channels

    def start(self, images: Tensor) -> State:
        """Returns the two states in front of the first block."""
        state = self.stem(images.contiguous(memory_format=torch.channels_last))
        if isinstance(state, tuple):
            return Source(state[0]), Source(state[1])
        source = Source(state)
        return source, source

    def advance(self, states: State, blocks: range, run: RunCell) -> State:
        """Runs some blocks and returns the two states behind them.

        Args:
            states: The two states in front of them.
            blocks: The indices of the blocks.
            run: Runs one cell on its inputs.
        """
        older, newer = states
        for index in blocks:
            block = self.blocks[index]
            if isinstance(block, CellNetwork):
                older, newer = newer, run(self.layout[index], block, block.inputs((older, newer)))
            else:
                older, newer = newer, block(newer)
        return older, newer

    def classify(self, state: Source) -> Tensor:
        """Returns the logits, (batch, classes), of the last state."""
        features = self.tail(state.x).mean(dim=(2, 3))
        logits: Tensor = self.classifier(features)
        return logits
