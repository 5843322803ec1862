"""The discrete network: one architecture with the weights of its own, for retraining and use."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dartslight.errors import InputError
from dartslight.genotype import Genotype
from dartslight.nets.cell import NO_DROP, CellNetwork, Drop
from dartslight.nets.network import Network, Stem
from dartslight.nets.operations import Source
from dartslight.spaces import Block


class AuxiliaryHead(nn.Module):
    """A second classifier in the middle of a DARTS network that helps to train its lower half.

    The published head expects states of 8x8 pixels (CIFAR) or 7x7 (ImageNet) and pools them to 2x2 by overlapping
    windows; other sizes are pooled to 2x2 adaptively. For ImageNet the second normalisation is left out, a slip in the
    first code that later ones kept so that results compare.

    Args:
        channels: Channels of the state that it reads.
        num_classes: Number of classes.
        second_norm: Whether the second convolution is normalised.
    """

    _WINDOWED = (7, 8)

    def __init__(self, channels: int, num_classes: int, second_norm: bool = True) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(inplace=True),
            nn.Conv2d(128, 768, 2, bias=False),
            nn.BatchNorm2d(768) if second_norm else nn.Identity(),
            nn.ReLU(inplace=True),
        )
        self.classifier = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits, (batch, classes), of a state (batch, channels, height, width)."""
        x, size = nn.functional.relu(x), x.shape[-1]
        if x.shape[-2] == size and size in self._WINDOWED:
            x = nn.functional.avg_pool2d(x, 5, stride=size - 5)
        else:
            x = nn.functional.adaptive_avg_pool2d(x, 2)
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


class DiscreteNetwork(Network):
    """One architecture as a network.

    Its batch normalisations have a learned scale and shift, and none follows a pooling.

    Args:
        genotype: The architecture.
        num_cells: Number of its cells in the network; for NAS-Bench-201 in all three stages together.
        init_channels: Channels of the first cell's operations.
        num_classes: Number of classes.
        auxiliary: Whether a second classifier stands behind the cell at two thirds of the depth (DARTS networks).
        stem: ``cifar`` for small pictures; ``imagenet`` makes an eighth of the size first.
    """

    def __init__(
        self,
        genotype: Genotype,
        num_cells: int,
        init_channels: int,
        num_classes: int,
        auxiliary: bool = False,
        stem: Stem = "cifar",
    ) -> None:
        super().__init__(
            genotype.macro,
            {cell.name: cell for cell in genotype.cells},
            num_cells,
            init_channels,
            num_classes,
            affine=True,
            normalise_pools=False,
            stem=stem,
        )
        self.auxiliary: AuxiliaryHead | None = None
        if auxiliary:
            if genotype.macro != "darts":
                raise InputError(
                    f"An auxiliary head is for networks of the DARTS kind, but the genotype is of the space "
                    f"{genotype.space!r}; set its weight to 0."
                )
            self._auxiliary_block = 2 * num_cells // 3
            width = self.layout[self._auxiliary_block].width
            self.auxiliary = AuxiliaryHead(4 * init_channels * width, num_classes, second_norm=stem == "cifar")
            self.auxiliary.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor, drop_path: float = 0.0) -> tuple[Tensor, Tensor | None]:
        """Returns the logits, (batch, classes), and those of the auxiliary head in training, if there is one.

        Args:
            images: (batch, 3, height, width).
            drop_path: Probability with which a picture loses the output of an operation (training only).
        """
        drop = Drop(drop_path) if drop_path else NO_DROP

        def apply(_: Block, network: CellNetwork, inputs: Sequence[Source]) -> Source:
            out: Source = network(inputs, drop=drop)
            return out

        states, middle, last = self.start(images), 0, len(self.blocks)
        auxiliary = None
        if self.auxiliary is not None and self.training:
            middle = self._auxiliary_block + 1
            states = self.advance(states, range(middle), apply)
            auxiliary = self.auxiliary(states[1].x)
        states = self.advance(states, range(middle, last), apply)
        return self.classify(states[1]), auxiliary
