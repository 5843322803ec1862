"""The space of mobile networks: a chain of inverted bottlenecks, of which each layer has a choice of its own.

Papers: the layers, MobileNetV2, Sandler et al., CVPR 2018, https://arxiv.org/abs/1801.04381; the choice of kernel and
expansion, ProxylessNAS, Cai et al., ICLR 2019, https://arxiv.org/abs/1812.00332; with these 21 layers, UNAS, Vahdat et
al., CVPR 2020, https://arxiv.org/abs/1912.07651.

Every layer is a cell type of one edge. Where the shape stays the same a bottleneck has a shortcut around it and may be
skipped. ``mobile`` is UNAS' for ImageNet; ``mobile_small``, of 9 layers, is ours for pictures of 32x32.
"""

from dartslight.spaces.layouts import MOBILE_START, layout
from dartslight.spaces.space import Cell, Edge, SearchSpace

MOBILE_OPS = tuple(f"mb_conv_{k}x{k}_e{expansion}" for k in (3, 5, 7) for expansion in (3, 6))
"""Bottlenecks by the side of their kernel and by how many times wider they are inside."""


def _space(name: str, num_layers: int) -> SearchSpace:
    blocks = layout("mobile", num_layers)
    cells = []
    for block, width in zip(blocks, (MOBILE_START, *(block.width for block in blocks)), strict=False):
        same = block.width == width and not block.reduction
        edge = Edge(0, 1, ("skip_connect", *MOBILE_OPS) if same else MOBILE_OPS)
        cells.append(Cell(block.cell or "", num_inputs=1, num_nodes=1, output="last", edges=(edge,)))
    return SearchSpace(name, "mobile", tuple(cells), inputs_per_node=None, none_selectable=False)


MOBILE = _space("mobile", 21)
MOBILE_SMALL = _space("mobile_small", 9)
