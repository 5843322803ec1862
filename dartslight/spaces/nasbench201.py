"""The NAS-Bench-201 space: four nodes, six edges, five operations, every architecture's accuracy is known.

Paper: Dong and Yang, "NAS-Bench-201: Extending the Scope of Reproducible Neural Architecture Search", ICLR 2020,
https://arxiv.org/abs/2001.00326.
"""

from dartslight.spaces.space import Cell, Edge, SearchSpace

NASBENCH201_OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")

_EDGES = tuple(Edge(source, node, NASBENCH201_OPS) for node in (1, 2, 3) for source in range(node))

NASBENCH201 = SearchSpace(
    name="nasbench201",
    macro="nasbench201",
    cells=(Cell("cell", num_inputs=1, num_nodes=3, output="last", edges=_EDGES),),
    inputs_per_node=None,
    none_selectable=True,
)
