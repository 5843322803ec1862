"""The DARTS space, its reduced versions S1 to S4, and UNAS' version of it.

Papers: DARTS (Liu et al., ICLR 2019, https://arxiv.org/abs/1806.09055); S1 to S4 (Zela et al., "Understanding and
Robustifying Differentiable Architecture Search", ICLR 2020, https://arxiv.org/abs/1909.09656); UNAS (Vahdat et al.,
CVPR 2020, https://arxiv.org/abs/1912.07651).

``darts`` has the seven operations that SDARTS and DARTS-PT search over; ``darts8`` adds ``none``, as the original does.
``unas`` has seven others, and its nodes may read one input through two operations.
"""

from collections.abc import Callable, Sequence

from dartslight.spaces.space import Cell, Edge, SearchSpace

DARTS_OPS = (
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)

UNAS_OPS = (
    "skip_connect",
    "sep_conv_3x3",
    "max_pool_3x3",
    "dil_conv_3x3",
    "sep_conv_5x5",
    "avg_pool_3x3",
    "sep_conv_7x7",
)

_NUM_INPUTS, _NUM_NODES = 2, 4


def _cell(name: str, ops_of_edge: Callable[[int], Sequence[str]]) -> Cell:
    pairs = [(source, node) for node in range(_NUM_INPUTS, _NUM_INPUTS + _NUM_NODES) for source in range(node)]
    edges = tuple(Edge(source, node, tuple(ops_of_edge(e))) for e, (source, node) in enumerate(pairs))
    return Cell(name, _NUM_INPUTS, _NUM_NODES, "concat", edges)


def _space(
    name: str,
    normal: Callable[[int], Sequence[str]],
    reduction: Callable[[int], Sequence[str]],
    parallel: bool = False,
) -> SearchSpace:
    cells = (_cell("normal", normal), _cell("reduction", reduction))
    return SearchSpace(name, "darts", cells, inputs_per_node=2, none_selectable=False, parallel=parallel)


def _same_everywhere(name: str, *ops: str, parallel: bool = False) -> SearchSpace:
    return _space(name, lambda _: ops, lambda _: ops, parallel)


_SKIP, _MAX, _AVG = "skip_connect", "max_pool_3x3", "avg_pool_3x3"
_SEP3, _DIL3, _DIL5 = "sep_conv_3x3", "dil_conv_3x3", "dil_conv_5x5"

_S1_NORMAL = (
    (_SKIP, _DIL3),
    (_SKIP, _DIL5),
    (_SKIP, _DIL5),
    (_SKIP, _SEP3),
    (_SKIP, _DIL3),
    (_MAX, _SKIP),
    (_SKIP, _SEP3),
    (_SKIP, _SEP3),
    (_SKIP, _DIL3),
    (_SKIP, _SEP3),
    (_MAX, _SKIP),
    (_SKIP, _DIL3),
    (_DIL3, _DIL5),
    (_DIL3, _DIL5),
)
_S1_REDUCTION = (
    (_MAX, _AVG),
    (_MAX, _DIL3),
    (_MAX, _AVG),
    (_MAX, _AVG),
    (_SKIP, _DIL5),
    (_MAX, _AVG),
    (_MAX, _SEP3),
    (_SKIP, _DIL3),
    (_SKIP, _DIL5),
    (_MAX, _AVG),
    (_MAX, _AVG),
    (_SKIP, _DIL5),
    (_SKIP, _DIL5),
    (_SKIP, _DIL5),
)

DARTS = _same_everywhere("darts", *DARTS_OPS)
DARTS8 = _same_everywhere("darts8", "none", *DARTS_OPS)
S1 = _space("s1", _S1_NORMAL.__getitem__, _S1_REDUCTION.__getitem__)
S2 = _same_everywhere("s2", _SKIP, _SEP3)
S3 = _same_everywhere("s3", "none", _SKIP, _SEP3)
S4 = _same_everywhere("s4", "noise", _SEP3)
UNAS = _same_everywhere("unas", *UNAS_OPS, parallel=True)
