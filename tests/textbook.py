"""The networks and search steps in textbook form, to compare the product against.

Written from the papers alone, without a look at the product's networks: one module for each candidate on each edge,
``sum(w * op(x))``, nothing shared and nothing fast. Only the lists of edges and operations come from the product.

Papers: DARTS (Liu et al., ICLR 2019, https://arxiv.org/abs/1806.09055), S1 to S4 (Zela et al., ICLR 2020,
https://arxiv.org/abs/1909.09656), NAS-Bench-201 (Dong and Yang, ICLR 2020, https://arxiv.org/abs/2001.00326), PC-DARTS
(Xu et al., ICLR 2020, https://arxiv.org/abs/1907.05737), DARTS- (Chu et al., ICLR 2021,
https://arxiv.org/abs/2009.01027), GDAS (Dong and Yang, CVPR 2019, https://arxiv.org/abs/1910.04465).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from dartslight.spaces import SPACES, Cell

# --------------------------------------------------------------------------------------------------------------------
# Operations
# --------------------------------------------------------------------------------------------------------------------


def batch_norm(channels: int, affine: bool) -> nn.BatchNorm2d:
    """Returns a batch normalization that tracks running statistics."""
    return nn.BatchNorm2d(channels, affine=affine, track_running_stats=True)


class Zero(nn.Module):
    """The operation ``none``: zeros of the sub-sampled shape."""

    def __init__(self, stride: int):
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])


class Noise(nn.Module):
    """The operation ``noise``: fresh N(0, 1) of the sub-sampled shape, without gradient."""

    def __init__(self, stride: int):
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return torch.randn_like(x[:, :, :: self.stride, :: self.stride]).detach()


class FactorizedReduce(nn.Module):
    """Halves height and width by two 1x1 convolutions with stride 2, the second one pixel further; even sizes only."""

    def __init__(self, in_channels: int, out_channels: int, affine: bool):
        super().__init__()
        self.relu = nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, out_channels // 2, 1, stride=2, bias=False)
        self.conv2 = nn.Conv2d(in_channels, out_channels // 2, 1, stride=2, bias=False)
        self.bn = batch_norm(out_channels, affine)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        return self.bn(torch.cat([self.conv1(x), self.conv2(x[:, :, 1:, 1:])], dim=1))


def relu_conv_bn(in_channels: int, out_channels: int, kernel: int, stride: int, affine: bool) -> nn.Sequential:
    """Returns ReLU, convolution with "same" padding, batch normalization."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False),
        batch_norm(out_channels, affine),
    )


def separable(channels: int, kernel: int, stride: int, affine: bool) -> nn.Sequential:
    """Returns ReLU, depthwise, pointwise, BN twice; only the first one has the stride."""
    padding = kernel // 2
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(channels, channels, kernel, stride=stride, padding=padding, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
        batch_norm(channels, affine),
        nn.ReLU(),
        nn.Conv2d(channels, channels, kernel, stride=1, padding=padding, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
        batch_norm(channels, affine),
    )


def dilated(channels: int, kernel: int, stride: int, affine: bool) -> nn.Sequential:
    """Returns ReLU, depthwise with dilation 2, pointwise, BN."""
    padding = {3: 2, 5: 4}[kernel]
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(channels, channels, kernel, stride, padding, dilation=2, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
        batch_norm(channels, affine),
    )


def operation(name: str, channels: int, stride: int, affine: bool, pool_norm: bool) -> nn.Module:
    """Returns one candidate operation.

    Args:
        name: The operation's name.
        channels: Channels of both input and output.
        stride: 1 or 2.
        affine: Whether batch normalizations are affine: off in the supernet, on in the discrete network.
        pool_norm: Whether a pooling is followed by a batch normalization, never affine: in DARTS' supernet only.
    """
    match name:
        case "none":
            return Zero(stride)
        case "noise":
            return Noise(stride)
        case "skip_connect":
            return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, affine)
        case "max_pool_3x3" | "avg_pool_3x3":
            if name == "max_pool_3x3":
                pool: nn.Module = nn.MaxPool2d(3, stride=stride, padding=1)
            else:
                pool = nn.AvgPool2d(3, stride=stride, padding=1, count_include_pad=False)
            return nn.Sequential(pool, batch_norm(channels, affine=False)) if pool_norm else pool
        case "sep_conv_3x3" | "sep_conv_5x5" | "sep_conv_7x7":
            return separable(channels, int(name[-1]), stride, affine)
        case "dil_conv_3x3":
            return dilated(channels, 3, stride, affine)
        case "dil_conv_5x5":
            return dilated(channels, 5, stride, affine)
        case "nor_conv_1x1":
            return relu_conv_bn(channels, channels, 1, stride, affine)
        case "nor_conv_3x3":
            return relu_conv_bn(channels, channels, 3, stride, affine)
    raise ValueError(name)


def drop_path(x: Tensor, mask_keep: Tensor, p: float) -> Tensor:
    """Returns x with whole samples set to zero and the others scaled by 1 / (1 - p).

    Args:
        x: Output of an operation.
        mask_keep: One number for each sample: 1 to keep it, 0 to drop it.
        p: Probability with which a sample is dropped.
    """
    return x / (1 - p) * mask_keep.view(-1, 1, 1, 1)


# --------------------------------------------------------------------------------------------------------------------
# Blocks
# --------------------------------------------------------------------------------------------------------------------


class ResidualBlock(nn.Module):
    """NAS-Bench-201's fixed block between the stages: stride 2, twice the channels, always affine."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv_a = relu_conv_bn(in_channels, out_channels, 3, 2, affine=True)
        self.conv_b = relu_conv_bn(out_channels, out_channels, 3, 1, affine=True)
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2, stride=2, padding=0), nn.Conv2d(in_channels, out_channels, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.conv_b(self.conv_a(x))


def edge_stride(cell: Cell, source: int, reduction: bool) -> int:
    """Returns 2 for the edges of a reduction cell that read one of its inputs, else 1."""
    return 2 if reduction and source < cell.num_inputs else 1


def cell_output(cell: Cell, nodes: Sequence[Tensor]) -> Tensor:
    """Returns the concatenation of a cell's own nodes, or its last node."""
    return torch.cat(list(nodes[cell.num_inputs :]), dim=1) if cell.output == "concat" else nodes[-1]


class SupernetCell(nn.Module):
    """A cell with every candidate on every edge."""

    def __init__(self, cell: Cell, preprocess: nn.ModuleList, channels: int, reduction: bool):
        super().__init__()
        self.cell = cell
        self.preprocess = preprocess
        pool_norm = cell.num_inputs == 2  # DARTS yes, NAS-Bench-201 no
        self.edges = nn.ModuleList()
        for edge in cell.edges:
            stride = edge_stride(cell, edge.source, reduction)
            self.edges.append(nn.ModuleList(operation(op, channels, stride, False, pool_norm) for op in edge.ops))

    def forward(self, inputs: Sequence[Tensor], mixing: Tensor) -> Tensor:
        nodes = [module(x) for module, x in zip(self.preprocess, inputs, strict=True)] if self.preprocess else [*inputs]
        for node in self.cell.nodes:
            total: Tensor | int = 0
            for edge, ops, weights in zip(self.cell.edges, self.edges, mixing, strict=True):
                if edge.node == node:
                    total = total + sum(w * op(nodes[edge.source]) for w, op in zip(weights, ops, strict=True))
            nodes.append(total)
        return cell_output(self.cell, nodes)


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Returns the channels such that neighbours come from different groups: 0, n/g, 2n/g, ..., 1, n/g + 1, ..."""
    size = x.shape[1] // groups
    return torch.stack([x[:, g * size + c] for c in range(size) for g in range(groups)], dim=1)


def edge_shares(cell: Cell, betas: Tensor, present: Sequence[bool]) -> Tensor:
    """Returns PC-DARTS' edge normalisation: a softmax over the edges into each node that are present, else 0."""
    shares = [torch.zeros((), dtype=betas.dtype)] * len(cell.edges)
    for node in cell.nodes:
        into = [e for e, edge in enumerate(cell.edges) if edge.node == node and present[e]]
        if into:
            for e, share in zip(into, torch.softmax(torch.stack([betas[e] for e in into]), dim=0), strict=True):
                shares[e] = share
    return torch.stack(shares)


@dataclass
class Extras:
    """What a mixed operation has in one pass beside the weights of its operations, for one cell type.

    Args:
        edges: The weight of each edge; 1 for all edges by default. An edge that is gone has 0.
        skip: The weight of the auxiliary skip connection on each edge.
        drawn: Of each edge the operation that was drawn; all others count as numbers, not as outputs. None for all.
        drop: Probability with which a picture loses the output of an edge.
        masks: One keep mask, (samples,), for each edge, in the order of computation.
    """

    edges: Tensor | None = None
    skip: float = 0.0
    drawn: Sequence[int] | None = None
    drop: float = 0.0
    masks: Iterator[Tensor] | None = None


class ExtendedCell(SupernetCell):
    """A supernet's cell in which only some channels meet the operations, or with an auxiliary skip on every edge.

    Args:
        cell: The edges and their operations.
        preprocess: What stands in front of the nodes.
        channels: Channels of a node.
        reduction: Whether it halves the size.
        share: One in so many channels meets the operations (PC-DARTS).
        skips: Whether every edge has a skip connection of its own beside them (DARTS-).
    """

    def __init__(
        self, cell: Cell, preprocess: nn.ModuleList, channels: int, reduction: bool, share: int = 1, skips: bool = False
    ):
        super().__init__(cell, preprocess, channels // share, reduction)
        self.share = share
        strides = [edge_stride(cell, edge.source, reduction) for edge in cell.edges]
        self.skips = nn.ModuleList(
            operation("skip_connect", channels // share, stride, False, False) for stride in strides if skips
        )
        self.pools = [nn.MaxPool2d(2, stride=2) if stride == 2 else nn.Identity() for stride in strides]

    def forward(self, inputs: Sequence[Tensor], mixing: Tensor, extras: Extras | None = None) -> Tensor:
        extras = extras or Extras()
        nodes = [module(x) for module, x in zip(self.preprocess, inputs, strict=True)] if self.preprocess else [*inputs]
        shares = [1.0] * len(self.cell.edges) if extras.edges is None else extras.edges
        for node in self.cell.nodes:
            total: Tensor | int = 0
            for e, edge in enumerate(self.cell.edges):
                if edge.node == node:
                    total = total + self.lose(shares[e] * self.mixed(e, nodes[edge.source], mixing[e], extras), extras)
            nodes.append(total)
        return cell_output(self.cell, nodes)

    def mixed(self, e: int, x: Tensor, weights: Tensor, extras: Extras) -> Tensor:
        """Returns the output of one edge: of its operations, its skip and the channels that pass by them."""
        size = x.shape[1] // self.share
        part, rest = x[:, :size], x[:, size:]
        y = sum(self.term(e, o, part, w, extras) for o, w in enumerate(weights))
        if len(self.skips):
            y = y + extras.skip * self.skips[e](part)
        if self.share == 1:
            return y
        return channel_shuffle(torch.cat([y, self.pools[e](rest)], dim=1), self.share)

    def term(self, e: int, o: int, x: Tensor, weight: Tensor, extras: Extras) -> Tensor:
        """Returns what one operation adds."""
        if extras.drawn is not None and extras.drawn[e] != o:
            return weight
        return weight * self.edges[e][o](x)

    def lose(self, y: Tensor, extras: Extras) -> Tensor:
        """Returns an edge's output of which some pictures are lost in training."""
        if not (self.training and extras.drop):
            return y
        return drop_path(y, next(extras.masks), extras.drop)


class DiscreteCell(nn.Module):
    """A cell with one operation on each listed edge, affine."""

    def __init__(
        self,
        cell: Cell,
        choices: Sequence[tuple[int, int, str]],
        preprocess: nn.ModuleList,
        channels: int,
        reduction: bool,
    ):
        super().__init__()
        self.cell = cell
        self.choices = choices
        self.preprocess = preprocess
        self.edges = nn.ModuleList(
            operation(op, channels, edge_stride(cell, source, reduction), affine=True, pool_norm=False)
            for source, _, op in choices
        )

    def forward(self, inputs: Sequence[Tensor], p: float = 0.0, masks: Iterator[Tensor] | None = None) -> Tensor:
        nodes = [module(x) for module, x in zip(self.preprocess, inputs, strict=True)] if self.preprocess else [*inputs]
        for node in self.cell.nodes:
            total: Tensor | int = 0
            for (source, target, _), op in zip(self.choices, self.edges, strict=True):
                if target == node:
                    y = op(nodes[source])
                    if self.training and p > 0 and not isinstance(op, nn.Identity):
                        keep = torch.full((len(y),), 1 - p, dtype=y.dtype, device=y.device)
                        y = drop_path(y, torch.bernoulli(keep) if masks is None else next(masks), p)
                    total = total + y
            nodes.append(total)
        return cell_output(self.cell, nodes)


MakeCell = Callable[[str, nn.ModuleList, int, bool], nn.Module]
"""Makes a cell from its type, its preprocessing, its channels and whether it is a reduction."""


def darts_blocks(
    make_cell: MakeCell, stem_channels: int, init_channels: int, num_cells: int, affine: bool, after_reduction: bool
) -> tuple[nn.ModuleList, int]:
    """Returns DARTS' chain of cells and the channels of its output."""
    blocks = nn.ModuleList()
    channels = init_channels
    channels_before_last, channels_last = stem_channels, stem_channels
    for index in range(num_cells):
        reduction = index in (num_cells // 3, 2 * num_cells // 3)
        if reduction:
            channels *= 2
        if after_reduction:
            preprocess0: nn.Module = FactorizedReduce(channels_before_last, channels, affine)
        else:
            preprocess0 = relu_conv_bn(channels_before_last, channels, 1, 1, affine)
        preprocess1 = relu_conv_bn(channels_last, channels, 1, 1, affine)
        name = "reduction" if reduction else "normal"
        blocks.append(make_cell(name, nn.ModuleList([preprocess0, preprocess1]), channels, reduction))
        channels_before_last, channels_last = channels_last, 4 * channels
        after_reduction = reduction
    return blocks, channels_last


def nasbench201_blocks(make_cell: MakeCell, init_channels: int, num_cells: int) -> tuple[nn.ModuleList, int]:
    """Returns NAS-Bench-201's three stages of cells, a residual block between them, and the channels of its output."""
    blocks = nn.ModuleList()
    for stage in range(3):
        channels = init_channels * 2**stage
        if stage > 0:
            blocks.append(ResidualBlock(channels // 2, channels))
        for _ in range(num_cells // 3):
            blocks.append(make_cell("cell", nn.ModuleList(), channels, False))
    return blocks, 4 * init_channels


# --------------------------------------------------------------------------------------------------------------------
# Networks
# --------------------------------------------------------------------------------------------------------------------


def plain_stem(channels: int) -> nn.Sequential:
    """Returns the stem for small images: a 3x3 convolution and an affine BN, no ReLU."""
    return nn.Sequential(nn.Conv2d(3, channels, 3, padding=1, bias=False), batch_norm(channels, affine=True))


def make_tail(space_name: str, channels: int) -> nn.Module:
    """Returns BN and ReLU for NAS-Bench-201, nothing for DARTS."""
    if space_name == "nasbench201":
        return nn.Sequential(batch_norm(channels, affine=True), nn.ReLU())
    return nn.Identity()


class Supernet(nn.Module):
    """The network that holds every candidate.

    Args:
        space_name: A name in `SPACES`.
        init_channels: Channels of the first cell.
        num_cells: Number of searched cells in all; a multiple of 3 for NAS-Bench-201.
        num_classes: Number of classes.
        share: One in so many channels meets the operations (PC-DARTS).
        skips: Whether every edge has an auxiliary skip connection (DARTS-).
        extended: Whether the cells take `Extras`, also without such channels and skips.
    """

    def __init__(
        self,
        space_name: str,
        init_channels: int,
        num_cells: int,
        num_classes: int,
        share: int = 1,
        skips: bool = False,
        extended: bool = False,
    ):
        super().__init__()

        def make_cell(name: str, preprocess: nn.ModuleList, channels: int, reduction: bool) -> nn.Module:
            cell = SPACES[space_name].cell(name)
            if extended or share > 1 or skips:
                return ExtendedCell(cell, preprocess, channels, reduction, share, skips)
            return SupernetCell(cell, preprocess, channels, reduction)

        if space_name == "nasbench201":
            self.stem = plain_stem(init_channels)
            self.blocks, channels = nasbench201_blocks(make_cell, init_channels, num_cells)
        else:
            self.stem = plain_stem(3 * init_channels)
            self.blocks, channels = darts_blocks(make_cell, 3 * init_channels, init_channels, num_cells, False, False)
        self.tail = make_tail(space_name, channels)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor, mixing: dict[str, Tensor], extras: dict[str, Extras] | None = None) -> Tensor:
        """Returns the logits; ``mixing`` has a tensor of shape (edges, operations) for each cell type."""
        x = self.stem(images)
        before_last, last = x, x
        for block in self.blocks:
            if isinstance(block, ResidualBlock):
                new = block(last)
            else:
                inputs = [before_last, last] if block.cell.num_inputs == 2 else [last]
                own = () if extras is None else (extras[block.cell.name],)
                new = block(inputs, mixing[block.cell.name], *own)
            before_last, last = last, new
        return self.classifier(self.tail(last).mean(dim=(2, 3)))


class AuxiliaryHead(nn.Module):
    """DARTS' auxiliary head for 8x8 features, or for ImageNet's 7x7 with stride 2 and without the second BN."""

    def __init__(self, channels: int, num_classes: int, imagenet: bool = False):
        super().__init__()
        self.features = nn.Sequential(
            nn.ReLU(),
            nn.AvgPool2d(5, stride=2 if imagenet else 3, padding=0, count_include_pad=False),
            nn.Conv2d(channels, 128, 1, bias=False),
            batch_norm(128, affine=True),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            nn.Identity() if imagenet else batch_norm(768, affine=True),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


class Discrete(nn.Module):
    """The network of one architecture, affine everywhere.

    Args:
        space_name: A name in `SPACES`.
        cells: For each cell type the list of (source, node, operation).
        init_channels: Channels of the first cell.
        num_cells: Number of searched cells in all.
        num_classes: Number of classes.
        auxiliary: Whether there is an auxiliary head (DARTS only).
        stem: ``cifar`` or ``imagenet`` (DARTS only).
    """

    def __init__(
        self,
        space_name: str,
        cells: dict[str, list[tuple[int, int, str]]],
        init_channels: int,
        num_cells: int,
        num_classes: int,
        auxiliary: bool = False,
        stem: str = "cifar",
    ):
        super().__init__()

        def make_cell(name: str, preprocess: nn.ModuleList, channels: int, reduction: bool) -> nn.Module:
            return DiscreteCell(SPACES[space_name].cell(name), cells[name], preprocess, channels, reduction)

        c = init_channels
        self.is_imagenet = stem == "imagenet"
        if space_name == "nasbench201":
            self.stem = plain_stem(c)
            self.blocks, channels = nasbench201_blocks(make_cell, c, num_cells)
        elif self.is_imagenet:
            self.stem0 = nn.Sequential(
                nn.Conv2d(3, c // 2, 3, stride=2, padding=1, bias=False),
                batch_norm(c // 2, affine=True),
                nn.ReLU(),
                nn.Conv2d(c // 2, c, 3, stride=2, padding=1, bias=False),
                batch_norm(c, affine=True),
            )
            self.stem1 = relu_conv_bn(c, c, 3, 2, affine=True)
            self.blocks, channels = darts_blocks(make_cell, c, c, num_cells, affine=True, after_reduction=True)
        else:
            self.stem = plain_stem(3 * c)
            self.blocks, channels = darts_blocks(make_cell, 3 * c, c, num_cells, affine=True, after_reduction=False)
        self.tail = make_tail(space_name, channels)
        self.classifier = nn.Linear(channels, num_classes)
        # From floor(2 * num_cells / 3) on every cell has the channels of the last one.
        self.auxiliary_index = 2 * num_cells // 3
        self.auxiliary = AuxiliaryHead(channels, num_classes, self.is_imagenet) if auxiliary else None

    def forward(
        self, images: Tensor, p: float = 0.0, masks: Iterator[Tensor] | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Returns the logits, in training with an auxiliary head also its logits.

        Args:
            images: A batch of images.
            p: Probability of drop path, in training only.
            masks: Keep masks of shape (samples,) in the order of use, or None for fresh ones. They are used cell by
                cell, node by node, edges of a node in the listed order; identity skips use none.
        """
        if self.is_imagenet:
            before_last = self.stem0(images)
            last = self.stem1(before_last)
        else:
            before_last = last = self.stem(images)
        auxiliary_logits = None
        for index, block in enumerate(self.blocks):
            if isinstance(block, ResidualBlock):
                new = block(last)
            else:
                new = block([before_last, last] if block.cell.num_inputs == 2 else [last], p, masks)
            before_last, last = last, new
            if self.auxiliary is not None and self.training and index == self.auxiliary_index:
                auxiliary_logits = self.auxiliary(last)
        logits = self.classifier(self.tail(last).mean(dim=(2, 3)))
        return logits if auxiliary_logits is None else (logits, auxiliary_logits)


# --------------------------------------------------------------------------------------------------------------------
# Search
# --------------------------------------------------------------------------------------------------------------------


def softmax_mixing(alphas: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the softmax over the operations of each edge."""
    return {name: torch.softmax(alpha, dim=-1) for name, alpha in alphas.items()}


class TextbookSearch:
    """First-order DARTS: the architecture learns from validation data, then the weights from training data.

    Args:
        net: The supernet.
        alphas: Architecture parameters for each cell type: leaves that require a gradient.
    """

    def __init__(self, net: Supernet, alphas: dict[str, Tensor]):
        self.net = net
        self.alphas = alphas
        self.alpha_optimizer = torch.optim.Adam(list(alphas.values()), lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3)
        self.weight_optimizer = torch.optim.SGD(net.parameters(), lr=0.025, momentum=0.9, weight_decay=3e-4)

    def step(self, train_batch: tuple[Tensor, Tensor], val_batch: tuple[Tensor, Tensor]) -> tuple[float, float]:
        """Makes both steps on batches of (images, labels) and returns the training and the validation loss."""
        val_loss = self._backward(val_batch)
        self.alpha_optimizer.step()
        train_loss = self._backward(train_batch)
        nn.utils.clip_grad_norm_(self.net.parameters(), max_norm=5.0)
        self.weight_optimizer.step()
        return train_loss, val_loss

    def _backward(self, batch: tuple[Tensor, Tensor]) -> float:
        images, labels = batch
        self.alpha_optimizer.zero_grad()
        self.weight_optimizer.zero_grad()
        loss = functional.cross_entropy(self.net(images, softmax_mixing(self.alphas)), labels)
        loss.backward()
        return loss.item()


def search_step(
    net: Supernet, alphas: dict[str, Tensor], train_batch: tuple[Tensor, Tensor], val_batch: tuple[Tensor, Tensor]
) -> tuple[float, float]:
    """Makes the very first step of a `TextbookSearch` and returns the training and the validation loss."""
    return TextbookSearch(net, alphas).step(train_batch, val_batch)


Loss = Callable[[list[Tensor], list[Tensor]], Tensor]
"""A loss as a function of weights and architecture parameters."""


def unrolled_gradient(
    loss_train: Loss,
    loss_val: Loss,
    weights: Sequence[Tensor],
    alphas: Sequence[Tensor],
    lr: float,
    momentum_buffers: Sequence[Tensor | None],
    momentum: float,
    weight_decay: float,
) -> list[Tensor]:
    """Returns second-order DARTS' gradient by explicit double differentiation, without finite differences.

    That is the derivative by alpha of ``L_val(w - lr * (dL_train/dw(w, alpha) + weight_decay * w + momentum * buf),
    alpha)``, with w and buf held constant. A momentum buffer of None counts as zeros.
    """
    w = [weight.detach().clone().requires_grad_() for weight in weights]
    a = [alpha.detach().clone().requires_grad_() for alpha in alphas]
    gradients = torch.autograd.grad(loss_train(w, a), w, create_graph=True, materialize_grads=True)
    unrolled = []
    for weight, gradient, buffer in zip(w, gradients, momentum_buffers, strict=True):
        moment = torch.zeros_like(weight) if buffer is None else buffer
        unrolled.append(weight - lr * (gradient + weight_decay * weight + momentum * moment))
    return list(torch.autograd.grad(loss_val(unrolled, a), a, materialize_grads=True))
