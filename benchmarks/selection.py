"""All masks of one edge, and a whole selection phase, against the textbook form.

    python benchmarks/selection.py [--short] [--json]

The masks of an edge: the supernet without each of its operations in turn, on one batch, with the statistics of the
batch; with nothing decided, and with every other edge decided. Of each cell type the middle edge is taken. The whole
phase: the published schedule for NAS-Bench-201 (six edges, 30 evaluations, 25 epochs of tuning) with a few batches
instead of all in each evaluation and epoch, in the same proportion. It is measured twice: without and with the passes
over train and val pictures that the published code takes after every epoch to watch the network, which decide nothing
and which the product leaves out.
"""

import random
from typing import Any

import torch
from compare import Problem, Result, arguments, in_turns, show

from dartslight.spaces import Choices


def half_decided(problem: Problem) -> Choices:
    """Returns choices in which every other edge has one operation, other than `none`."""
    rng = random.Random(0)
    choices = problem.choices
    for cell in problem.space.cells:
        for e in range(0, len(cell.edges), 2):
            ops = [o for o, name in enumerate(cell.edges[e].ops) if name != "none"]
            choices = choices.decide((cell.name, e), rng.choice(ops))
    return choices


def textbook_masks(problem: Problem, mixing: dict[str, torch.Tensor], cell: str, edge: int, ops: Any) -> None:
    """Runs the textbook supernet once for each operation, with its weight set to 0."""
    for op in ops:
        masked = {name: weights.clone() for name, weights in mixing.items()}
        masked[cell][edge, op] = 0
        problem.book(problem.val[0], masked)


def masks(problem: Problem, choices: Choices, cell: str, edge: int, repeats: int, label: str) -> Result:
    """Measures all masks of one edge."""
    ops = choices.of(cell)[edge]
    with torch.no_grad():
        mixing = problem.architecture(choices)
        variants = [(mixing, choices.close((cell, edge), op)) for op in ops]
        return in_turns(
            f"masks of edge {edge} ({cell}), {label}, {problem.name}",
            lambda: textbook_masks(problem, mixing, cell, edge, ops),
            lambda: problem.net.forward_each(problem.val[0], variants),
            repeats,
        )


def textbook_watch(problem: Problem, choices: Choices) -> None:
    """Runs the textbook supernet once on a train and once on a val batch, as one would to see how good it is."""
    problem.book.eval()
    with torch.no_grad():
        mixing = problem.architecture(choices)
        for images, _ in (problem.train, problem.val):
            problem.book(images, mixing)
    problem.book.train()


def whole_phase(problem: Problem, repeats: int, batches: int, watched: bool) -> Result:
    """Measures a whole selection phase: masks of six edges, and the tuning between them.

    Args:
        problem: The supernet.
        repeats: Number of turns.
        batches: Batches of an evaluation and of an epoch of tuning.
        watched: Whether the textbook form watches its network after every epoch.
    """

    def run(is_product: bool) -> None:
        choices, rng = problem.choices, random.Random(0)
        for epochs in (0, 5, 5, 5, 5, 4):
            for _ in range(epochs * batches):
                if is_product:
                    problem.choices = choices
                    problem.product_step()
                else:
                    problem.textbook_step()
                    if watched:
                        textbook_watch(problem, choices)
            edge = rng.choice(choices.undecided("cell"))
            ops = choices.of("cell")[edge]
            with torch.no_grad():
                mixing = problem.architecture(choices)
                variants = [(mixing, choices.close(("cell", edge), op)) for op in ops]
                for _ in range(batches):
                    if is_product:
                        problem.net.forward_each(problem.val[0], variants)
                    else:
                        textbook_masks(problem, mixing, "cell", edge, ops)
            choices = choices.decide(("cell", edge), rng.choice(ops[1:]))
        problem.choices = Choices.everything(problem.space)

    label = "with published watching" if watched else "decisions and tuning alone"
    return in_turns(f"selection phase ({label}), {problem.name}", lambda: run(False), lambda: run(True), repeats)


if __name__ == "__main__":
    given = arguments(__doc__)
    results = []
    full = [("nasbench201", 15, 16), *((space, 8, 16) for space in ("darts", "s1", "s2", "s3", "s4"))]
    for space, num_cells, channels in [("nasbench201", 3, 8), ("darts", 3, 8)] if given.short else full:
        if given.space and space not in given.space:
            continue
        problem = Problem(space, num_cells, channels)
        for label, choices in (("nothing decided", problem.choices), ("half decided", half_decided(problem))):
            for cell in problem.space.cells:
                open_edges = choices.undecided(cell.name)
                edge = open_edges[len(open_edges) // 2]
                repeats = given.repeats or (1 if given.short else 3)
                results.append(masks(problem, choices, cell.name, edge, repeats, label))
    if not given.space or "nasbench201" in given.space:
        batches, repeats = (1, 1) if given.short else (4, 3)  # published: 391 batches
        problem = Problem("nasbench201", 3, 8)
        ways = (False,) if given.short else (False, True)
        results += [whole_phase(problem, given.repeats or repeats, batches, watched) for watched in ways]
    show(results, given)
