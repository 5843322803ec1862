"""One search step, architecture and weights, against the textbook form.

    python benchmarks/search_step.py [--short] [--json]

The floor counts three forward passes' worth of multiply-adds for the weight step and two for the architecture step.
"""

from compare import Problem, arguments, in_turns, show

FULL = [("nasbench201", 15, 16), *((space, 8, 16) for space in ("darts", "s1", "s2", "s3", "s4"))]
SHORT = [("nasbench201", 3, 8), ("darts", 3, 8)]

if __name__ == "__main__":
    given = arguments(__doc__)
    results = []
    for space, num_cells, channels in SHORT if given.short else FULL:
        if given.space and space not in given.space:
            continue
        problem = Problem(space, num_cells, channels)
        macs = 5 * problem.forward_macs()
        results.append(
            in_turns(
                problem.name,
                problem.textbook_step,
                problem.product_step,
                given.repeats or (3 if given.short else 5),
                macs,
            )
        )
    show(results, given)
