"""The networks around the cells: which block follows which."""

from dartslight.errors import InputError
from dartslight.spaces.space import Block

MOBILE_START = 3
"""Channels in front of the first searched layer of a mobile network, in multiples of its initial channels."""

# Number of layers: for each stage its first layer, its channels, and whether they are half as large.
_MOBILE_STAGES = {
    21: ((1, 4, True), (5, 7, True), (9, 14, True), (13, 16, False), (17, 32, True), (21, 54, False)),
    9: ((1, 4, False), (4, 7, True), (7, 14, True)),
}


def layout(macro: str, num_cells: int) -> tuple[Block, ...]:
    """Returns the blocks of a network, first to last.

    ``darts`` is a chain of cells with reduction cells, which double the channels, at one third and two thirds of the
    depth (Liu et al., ICLR 2019, https://arxiv.org/abs/1806.09055). ``nasbench201`` is three stages of equally many
    cells with a fixed residual block, which doubles the channels, between the stages (Dong and Yang, ICLR 2020,
    https://arxiv.org/abs/2001.00326). ``mobile`` is a chain of layers that are searched one by one, in stages of
    growing channels (UNAS, Vahdat et al., CVPR 2020, https://arxiv.org/abs/1912.07651).

    Args:
        macro: ``darts``, ``nasbench201`` or ``mobile``.
        num_cells: Number of searched cells in the network; for ``nasbench201`` a multiple of 3, for ``mobile`` 21 or 9.

    Raises:
        InputError: If the number of cells does not fit the network.
    """
    if num_cells < 1:
        raise InputError(f"num_cells is {num_cells}, but a network needs at least 1 cell; give a larger number.")
    if macro == "nasbench201":
        return _three_stages(num_cells)
    if macro == "mobile":
        return _layers(num_cells)
    return _chain(num_cells)


def _chain(num_cells: int) -> tuple[Block, ...]:
    blocks = []
    width = 1
    for index in range(num_cells):
        reduction = index in (num_cells // 3, 2 * num_cells // 3)
        width *= 2 if reduction else 1
        blocks.append(Block("reduction" if reduction else "normal", width, reduction))
    return tuple(blocks)


def _three_stages(num_cells: int) -> tuple[Block, ...]:
    if num_cells % 3:
        raise InputError(
            f"num_cells is {num_cells}, but a NAS-Bench-201 network has three stages of equally many cells; "
            f"give a multiple of 3, such as {3 * (num_cells // 3 + 1)}."
        )
    blocks: list[Block] = []
    for width in (1, 2, 4):
        if blocks:
            blocks.append(Block(None, width, reduction=True))
        blocks.extend(Block("cell", width, reduction=False) for _ in range(num_cells // 3))
    return tuple(blocks)


def mobile_cell(layer: int) -> str:
    """Returns the name of a layer's cell type.

    Args:
        layer: Number of the layer, from 1.
    """
    return f"layer_{layer}"


def _layers(num_layers: int) -> tuple[Block, ...]:
    if num_layers not in _MOBILE_STAGES:
        known = " or ".join(map(str, _MOBILE_STAGES))
        raise InputError(
            f"num_cells is {num_layers}, but a mobile network has {known} searched layers; give that many."
        )
    blocks = []
    for layer in range(1, num_layers + 1):
        first, width, halves = max(stage for stage in _MOBILE_STAGES[num_layers] if stage[0] <= layer)
        blocks.append(Block(mobile_cell(layer), width, reduction=halves and layer == first))
    return tuple(blocks)
