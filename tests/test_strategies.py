"""Every strategy's formulas against closed forms and the textbook, in float64, and what must not go together."""

import math
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import textbook
import torch
import torch._dynamo
from test_captured import Waits
from test_networks import assert_same, assert_same_everywhere, copy_weights, decide_some, pairs, share_noise
from torch import Tensor, nn
from torch.distributions import Dirichlet as Distribution
from torch.distributions import kl_divergence
from torch.func import functional_call

import dartslight.strategies
from dartslight.data import Batch
from dartslight.errors import InputError
from dartslight.genotype import Genotype
from dartslight.modules import SearchModule
from dartslight.nets import Drop, Source, Supernet
from dartslight.nets.cell import CellNetwork
from dartslight.nets.operations import FactorizedReduce, Identity
from dartslight.spaces import DARTS, NASBENCH201, SPACES, Choices, SearchSpace
from dartslight.strategies import (
    AdversarialSmoothing,
    Architecture,
    Bilevel,
    Dirichlet,
    FirstOrder,
    Gumbel,
    RandomSmoothing,
    Relaxation,
    Rows,
    Sigmoid,
    Softmax,
    Unrolled,
    check_combination,
)

DECIDED = {"nothing": 0.0, "half": 0.5, "all": 1.0}


pytestmark = pytest.mark.usefixtures("float64")


def all_open(alphas: Tensor) -> Tensor:
    return torch.ones_like(alphas, dtype=torch.bool)


def mask_of(choices: Choices, cell: str, ops: int) -> Tensor:
    return torch.tensor([[o in columns for o in range(ops)] for columns in choices.of(cell)])


def present(choices: Choices, cell: str) -> list[bool]:
    return [bool(columns) for columns in choices.of(cell)]


# --------------------------------------------------------------------------------------------- the textbook's numbers


def book_rows(alphas: dict[str, Tensor], choices: Choices) -> dict[str, Tensor]:
    """The softmax over what is open; one-hot where an edge is decided and 0 where it is gone."""
    rows = {}
    for cell, alpha in alphas.items():
        own = []
        for row, columns in zip(alpha, choices.of(cell), strict=True):
            full = torch.zeros_like(row)
            if len(columns) == 1:
                full[columns[0]] = 1
            elif columns:
                full = full.index_put((torch.tensor(columns),), torch.softmax(row[list(columns)], dim=0))
            own.append(full)
        rows[cell] = torch.stack(own)
    return rows


def book_edges(space: SearchSpace, betas: dict[str, Tensor], choices: Choices) -> dict[str, Tensor]:
    """The weight of every edge; without parameters 1 where it is there."""
    return {
        cell.name: textbook.edge_shares(cell, betas[cell.name], present(choices, cell.name))
        if cell.name in betas
        else torch.tensor([float(p) for p in present(choices, cell.name)])
        for cell in space.cells
    }


class Twins:
    """A supernet and its architecture parameters, in the product and in textbook form, with the same numbers."""

    def __init__(
        self,
        name: str,
        relaxation: Relaxation | None = None,
        share: int = 1,
        edges: bool = False,
        skip: str | None = None,
        **settings: Any,
    ) -> None:
        self.space = SPACES[name]
        relaxation = relaxation or Softmax()
        terms = ("auxiliary_skip",) * bool(skip) + ("offset",) * relaxation.samples_one
        channels = max(4, 2 * share)
        self.ours = Supernet(self.space, 3, channels, 5, partial_channels=share, terms=terms, **settings)
        self.theirs = textbook.Supernet(name, channels, 3, 5, share, bool(skip), extended=True)
        copy_weights(self.ours, self.theirs)
        share_noise(self.ours, self.theirs)
        with torch.no_grad():
            for a, b in self.skips():
                for p, q in zip(a.parameters(), b.parameters(), strict=True):
                    q.copy_(p)
        self.architecture = Architecture(self.space, relaxation, 0.5, edges, skip, self.ours.terms)
        self.alphas = self.copies(self.architecture.alphas)
        self.betas = self.copies(self.architecture.betas)

    @staticmethod
    def copies(parameters: nn.ParameterDict) -> dict[str, Tensor]:
        return {cell: p.detach().clone().requires_grad_() for cell, p in parameters.items()}

    def skips(self) -> list[tuple[nn.Module, nn.Module]]:
        """The auxiliary skips with weights of their own."""
        if "auxiliary_skip" not in self.ours.terms:
            return []
        found = []
        for a, b in zip(self.ours.blocks, self.theirs.blocks, strict=True):
            if isinstance(a, CellNetwork):
                column = len(a.cell.edges[0].ops) + self.ours.terms.index("auxiliary_skip")
                found += [(a.operation(e, column), b.skips[e]) for e in range(len(a.cell.edges))]
        return [(a, b) for a, b in found if list(b.parameters())]

    def idle(self, choices: Choices) -> set[nn.Module]:
        """What has no gradient, since it is not open or nothing behind it is."""
        closed = {
            block.operation(e, o)
            for block in self.ours.blocks
            if isinstance(block, CellNetwork)
            for e, columns in enumerate(choices.of(block.cell.name))
            for o in range(len(block.cell.edges[e].ops))
            if o not in columns
        }
        return closed | {a for a, _ in pairs(self.ours, self.theirs) if any(p.grad is None for p in a.parameters())}

    def compare(self, a: Tensor, b: Tensor, choices: Choices) -> None:
        """Logits, weight gradients, gradients of all architecture parameters, and running statistics are the same."""
        assert_same(a, b)
        labels = torch.arange(len(a)) % 5
        for logits in (a, b):
            nn.functional.cross_entropy(logits, labels).backward()
        idle = self.idle(choices)
        assert choices != Choices.everything(self.space) or not idle
        assert_same_everywhere(self.ours, self.theirs, idle)
        for p, q in self.skips():
            for ours, theirs in zip(p.parameters(), q.parameters(), strict=True):
                if theirs.grad is not None and theirs.grad.any():
                    assert_same(ours.grad, theirs.grad)
        for mine, books in ((self.architecture.alphas, self.alphas), (self.architecture.betas, self.betas)):
            for cell, p in mine.items():
                assert_same(p.grad, torch.zeros_like(p) if books[cell].grad is None else books[cell].grad)


def images_of(count: int = 6, size: int = 8) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


# ------------------------------------------------------------------------------------------------- PC-DARTS and DARTS-


@pytest.mark.parametrize("decided", DECIDED)
@pytest.mark.parametrize("name", ["nasbench201", "darts", "s1", "s2", "s3", "s4"])
def test_partial_channels_and_edge_normalisation_equal_textbook(name: str, decided: str) -> None:
    twins = Twins(name, share=4, edges=True)
    choices = decide_some(twins.space, DECIDED[decided], seed=2)
    mixing = twins.architecture(choices)
    extras = {c: textbook.Extras(edges=e) for c, e in book_edges(twins.space, twins.betas, choices).items()}
    a = twins.ours(images_of(), mixing, choices)
    b = twins.theirs(images_of(), book_rows(twins.alphas, choices), extras)
    twins.compare(a, b, choices)
    for beta in twins.architecture.betas.values():
        assert beta.grad.any() or (decided == "all" and name == "nasbench201")
    twins.ours.eval(), twins.theirs.eval()
    assert_same(
        twins.ours(images_of(), mixing, choices),
        twins.theirs(images_of(), book_rows(twins.alphas, choices), extras),
    )


@pytest.mark.parametrize("share", [1, 2])
@pytest.mark.parametrize("edges", [False, True])
@pytest.mark.parametrize("decided", DECIDED)
@pytest.mark.parametrize("name", ["nasbench201", "s3"])
def test_auxiliary_skip_equals_textbook(name: str, decided: str, edges: bool, share: int) -> None:
    twins = Twins(name, share=share, edges=edges, skip="linear")
    choices = decide_some(twins.space, DECIDED[decided], seed=2)
    extras = {c: textbook.Extras(edges=e, skip=0.7) for c, e in book_edges(twins.space, twins.betas, choices).items()}
    a = twins.ours(images_of(), twins.architecture(choices, progress=0.3), choices)
    twins.compare(a, twins.theirs(images_of(), book_rows(twins.alphas, choices), extras), choices)


def test_partial_channels_without_edge_normalisation_pass_by_with_weight_1() -> None:
    twins = Twins("s2", share=2)
    choices = decide_some(twins.space, 0.5, seed=2)
    extras = {c: textbook.Extras(edges=e) for c, e in book_edges(twins.space, {}, choices).items()}
    a = twins.ours(images_of(), twins.architecture(choices), choices)
    twins.compare(a, twins.theirs(images_of(), book_rows(twins.alphas, choices), extras), choices)


def test_operations_see_their_channels_alone() -> None:
    net = Supernet(NASBENCH201, 3, 8, 5, partial_channels=4)
    cell = net.blocks[0]
    assert isinstance(cell, CellNetwork)
    assert net.terms == ("bypass",)
    for e in range(6):
        assert cell.operation(e, 2).conv.weight.shape == (2, 2, 1, 1)
        assert cell.operation(e, 3).conv.weight.shape == (2, 2, 3, 3)
    alone = Choices.everything(NASBENCH201).drop([("cell", e) for e in range(6) if e != 3])  # the edge 3<-0
    weights = [[torch.full((8,), 0.1 * (o + 1)) for o in range(6)] for _ in range(6)]
    x = torch.randn(2, 8, 6, 6)
    other = torch.cat([x[:, :2], torch.randn(2, 6, 6, 6)], dim=1)
    a, b = (cell([Source(y)], weights, alone.of("cell")).x for y in (x, other))
    assert torch.equal(a[:, ::4], b[:, ::4])
    assert not torch.isclose(a[:, 1::4], b[:, 1::4]).any()
    for group in (1, 2, 3):
        assert_same(a[:, group::4], 0.6 * x[:, 2 * group : 2 * group + 2])  # the weight of the bypass
    # Nothing but the bypass reads the other channels.
    y = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cell([Source(y)], weights, alone.of("cell")).x[:, ::4].square().sum(), [y])
    assert gradient[:, :2].abs().min() > 0
    assert not gradient[:, 2:].any()


def test_channels_that_pass_a_stride_are_the_largest_of_2x2() -> None:
    net = Supernet(DARTS, 3, 8, 5, partial_channels=2)
    reduction = net.blocks[1]
    bypass = reduction.operation(0, len(DARTS.cells[1].edges[0].ops))
    x = torch.randn(1, 8, 6, 6)
    expected = x.view(1, 8, 3, 2, 3, 2).amax(dim=(3, 5))
    assert torch.equal(bypass(Source(x), None).x, expected)
    assert reduction.operation(13, len(DARTS.cells[1].edges[0].ops))(Source(x), None).x is x


def test_edges_of_partial_channels_of_odd_size_run() -> None:
    net = Supernet(DARTS, 3, 4, 5, partial_channels=2, terms=("auxiliary_skip",))
    architecture = Architecture(DARTS, Softmax(), 0.5, True, "linear", net.terms)
    choices = Choices.everything(DARTS)
    assert net(torch.randn(2, 3, 27, 19), architecture(choices, 0.5), choices).shape == (2, 5)


@pytest.mark.parametrize("name", ["nasbench201", "darts"])
def test_the_shares_of_the_edges_into_a_node_sum_to_1(name: str) -> None:
    space = SPACES[name]
    architecture = Architecture(space, Softmax(), 2.0, edge_normalisation=True)
    for share in (0.0, 0.5, 1.0):
        choices = decide_some(space, share, seed=3)
        last = len(space.cells[0].edges) - 1
        choices = choices.drop([(space.cells[0].name, last), (space.cells[0].name, 0)])
        mixing = architecture(choices)
        for cell in space.cells:
            shares = mixing[cell.name].sum(dim=1)
            there = torch.tensor(present(choices, cell.name))
            for node in cell.nodes:
                into = [e for e in cell.edges_into(node) if there[e]]
                assert not into or float(shares[into].detach().sum()) == pytest.approx(1, abs=1e-12)
            assert not shares[~there].any()
            expected = textbook.edge_shares(cell, architecture.betas[cell.name], there.tolist())
            assert_same(shares, expected.detach())


def test_shares_of_edges_far_apart_are_still_shares() -> None:
    """The parameters of another node, however large, change nothing."""
    architecture = Architecture(NASBENCH201, Softmax(), 0.0, edge_normalisation=True)
    with torch.no_grad():
        architecture.betas["cell"].copy_(torch.tensor([0.0, 5e3, -5e3, -5e3, -5e3, -5e3]))
    shares = architecture(Choices.everything(NASBENCH201))["cell"].sum(dim=1)
    torch.testing.assert_close(shares, torch.tensor([1, 1, 0, 1 / 3, 1 / 3, 1 / 3]))


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_weight_of_the_auxiliary_skip_falls_from_1_to_0(schedule: str) -> None:
    module = search("nasbench201", epochs=10, auxiliary_skip=schedule)
    for epoch in range(13):
        module._trainer.current_epoch = epoch
        share = min(1.0, epoch / 10)
        expected = 1 - share if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * share))
        for mixing in (
            module.mixing(module.choices),
            module.passes.weight_sample(batch_of(2), module.smoothing).mixing,
        ):
            assert mixing["cell"].shape == (6, 6)
            torch.testing.assert_close(mixing["cell"][:, 5], torch.full((6,), expected), rtol=0, atol=1e-15)
    assert not module.mixing(module.choices, epochs=10)["cell"][:, 5].any()  # what a rule decides by after the search
    assert module.mixing(module.choices, epochs=9)["cell"][:, 5].all()


def test_auxiliary_skips_have_weights_of_their_own_and_are_never_chosen() -> None:
    net = Supernet(DARTS, 3, 4, 5, terms=("auxiliary_skip",))
    width = len(DARTS.cells[0].edges[0].ops)
    column = DARTS.cells[1].edges[0].ops.index("skip_connect")
    reduction = net.blocks[1]
    for e, edge in enumerate(DARTS.cells[1].edges):
        own, candidate = reduction.operation(e, width), reduction.operation(e, column)
        assert isinstance(own, FactorizedReduce if edge.source < 2 else Identity)
        assert list(own.parameters()) == [] or not {*own.parameters()} & {*candidate.parameters()}
    architecture = Architecture(DARTS, Softmax(), 0.5, auxiliary_skip="linear", terms=net.terms)
    everything = Choices.everything(DARTS)
    dropped = everything.decide(("normal", 0), 3).drop([("normal", 1)])
    rows = architecture(dropped, progress=0.25)["normal"]
    assert rows[:2, width].tolist() == [0.75, 0]
    for genotype in random_genotypes(DARTS):
        assert {edge.ops[0] for cell in genotype.cells for edge in cell.edges} <= set(DARTS.cells[0].edges[0].ops)


def random_genotypes(space: SearchSpace) -> Iterator[Genotype]:
    """What a rule that looks at the weights decides on when the auxiliary skip weighs more than all operations."""
    from dartslight.selection.strongest import keep_strongest

    for seed in range(3):
        torch.manual_seed(seed)
        architecture = Architecture(space, Softmax(), 0.5, False, "linear", ("auxiliary_skip",))
        mixing = architecture(Choices.everything(space), progress=0.0)
        strengths = {cell: m.detach().numpy() for cell, m in mixing.items()}
        assert all((m[:, -1] == 1).all() for m in strengths.values())
        yield Genotype.from_choices(
            space, keep_strongest(space, Choices.everything(space), strengths, "weight").choices
        )


def test_a_decided_edge_keeps_its_auxiliary_skip_and_a_dropped_one_loses_it() -> None:
    net = Supernet(NASBENCH201, 3, 4, 5, terms=("auxiliary_skip",)).eval()
    architecture = Architecture(NASBENCH201, Softmax(), 0.5, False, "linear", net.terms)
    calls = counted(net)
    everything = Choices.everything(NASBENCH201)
    none = everything.decide(("cell", 3), 0)
    for choices, keeps in ((everything, True), (none, True), (everything.drop([("cell", 3)]), False)):
        calls.clear()
        a, b = (net(images_of(), architecture(choices, progress), choices) for progress in (0.0, 0.5))
        assert (("cell", 3, 5) in calls) == keeps
        # With one edge into the last node alone, only its skip can tell the two apart.
        alone = choices.drop([("cell", e) for e in range(6) if e != 3])
        a, b = (net(images_of(), architecture(alone, progress), alone) for progress in (0.0, 0.5))
        assert (not torch.equal(a, b)) == keeps


def counted(net: Supernet) -> list[tuple[str, int, int]]:
    """Notes the operations of the first cell of each type that are computed, by edge and column."""
    calls: list[tuple[str, int, int]] = []
    seen = set()
    for block in net.blocks:
        if not isinstance(block, CellNetwork) or block.cell.name in seen:
            continue
        seen.add(block.cell.name)
        term = block._term

        def noted(nodes: Any, edge: int, column: int, weights: Any, term: Any = term, block: Any = block) -> Any:
            calls.append((block.cell.name, edge, column))
            return term(nodes, edge, column, weights)

        block._term = noted
    return calls


# ------------------------------------------------------------------------ checkpoints, one graph, variants, derivatives


@pytest.mark.parametrize("name", ["nasbench201", "s2"])
def test_checkpointed_cells_give_the_same_numbers_with_all_terms(name: str) -> None:
    found = []
    for checkpoint in (False, True):
        torch.manual_seed(0)
        twins = Twins(name, Gumbel(), share=4, edges=True, skip="cosine", checkpoint_cells=checkpoint)
        torch.manual_seed(5)
        choices = Choices.everything(twins.space).decide((twins.space.cells[0].name, 0), 1)
        mixing, computed = twins.architecture.sample(choices, 0.5, 0.5)
        logits = twins.ours(images_of(), mixing, computed, Drop(0.4))
        logits.square().sum().backward()
        parameters = [*twins.ours.parameters(), *twins.architecture.parameters()]
        found.append([logits, *(p.grad for p in parameters), *twins.ours.buffers()])
    for a, b in zip(*found, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.usefixtures("captures")
@pytest.mark.parametrize("name", ["nasbench201", "s2"])
def test_one_graph_serves_partial_channels_and_edge_terms(name: str) -> None:
    space = SPACES[name]
    terms = ("auxiliary_skip",)
    plain, captured = (Supernet(space, 3, 8, 5, partial_channels=4, terms=terms) for _ in range(2))
    captured.load_state_dict(plain.state_dict())
    captured.capture("default")
    architecture = Architecture(space, Softmax(), 0.5, True, "linear", plain.terms)
    everything, cell = Choices.everything(space), space.cells[0].name
    decided = everything.decide((cell, 1), 1).drop([(cell, 2)])
    variants = [(everything, everything.close((cell, 0), 1)), (decided, decided), (everything, decided)]
    torch._dynamo.utils.counters.clear()
    for step, (mixed, computed) in enumerate(variants):
        found = []
        for net in (plain, captured):
            logits = net(images_of(), architecture(mixed, step / 3), computed)
            wanted = [*architecture.parameters(), *net.classifier.parameters(), next(iter(net.stem.parameters()))]
            found.append([logits, *torch.autograd.grad(logits.square().sum(), wanted)])
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("share", [1, 2])
@pytest.mark.parametrize("name", ["nasbench201", "darts"])
def test_variants_in_one_pass_equal_single_calls_with_all_terms(name: str, share: int) -> None:
    space = SPACES[name]
    net = Supernet(space, 3, 4, 5, partial_channels=share, terms=("auxiliary_skip", "offset"))
    architecture = Architecture(space, Softmax(), 0.5, True, "linear", net.terms)
    first, last = space.cells[0].name, space.cells[-1].name
    whole = Choices.everything(space).decide((last, 1), 3).decide((first, 2), 2)
    mixing = architecture(whole, 0.3)
    variants = [(mixing, whole)]
    variants += [(mixing, whole.close((last, 4), op)) for op in range(5)]
    variants += [(mixing, whole.close((last, 1), 3)), (mixing, whole.drop([(first, 0), (last, 3), (last, 4)]))]
    images = images_of(4)
    found = net.forward_each(images, variants)
    for logits, (m, c) in zip(found, variants, strict=True):
        assert_same(logits, net(images, m, c))
    assert not torch.allclose(found[0], found[6])  # an edge without its only operation


@pytest.mark.parametrize("edges", [False, True])
@pytest.mark.parametrize("name", ["nasbench201", "darts"])
def test_rows_of_each_picture_with_all_terms_equal_one_call_for_each(name: str, edges: bool) -> None:
    space = SPACES[name]
    net = Supernet(space, 3, 4, 5, partial_channels=2, terms=("auxiliary_skip", "offset")).eval()
    architecture = Architecture(space, Softmax(), 0.5, edges, "linear", net.terms)
    choices = decide_some(space, 0.3, seed=1)
    rows = [
        {
            cell: torch.rand_like(alpha) * mask_of(choices, cell, alpha.shape[1])
            for cell, alpha in architecture.alphas.items()
        }
        for _ in range(3)
    ]
    together = architecture.compose({cell: torch.stack([row[cell] for row in rows]) for cell in rows[0]}, choices, 0.3)
    apart = [architecture.compose(row, choices, 0.3) for row in rows]
    for cell, mixing in together.items():
        assert_same(mixing, torch.stack([own[cell] for own in apart]))
    images = images_of(3)
    logits = net(images, together, choices)
    for i, own in enumerate(apart):
        assert_same(logits[i : i + 1], net(images[i : i + 1], own, choices))


@pytest.mark.parametrize("name", ["nasbench201", "s2"])
def test_second_order_with_partial_channels_equals_double_autograd(name: str) -> None:
    space = SPACES[name]
    net = Supernet(space, 3, 4, 3, partial_channels=2, terms=("auxiliary_skip",))
    architecture = Architecture(space, Softmax(), 0.5, True, "linear", net.terms)
    choices = decide_some(space, 0.3, seed=1)
    names, weights = zip(*net.named_parameters(), strict=True)
    own = [n for n, _ in architecture.named_parameters()]

    def loss_on(images: Tensor, labels: Tensor) -> Any:
        def loss(at: Any, alphas: Any = None) -> Tensor:
            other = {} if alphas is None else dict(zip(own, alphas, strict=True))
            mixing = functional_call(architecture, other, (choices, 0.4))
            state = {n: b.clone() for n, b in net.named_buffers()}
            state.update(zip(names, weights if at is None else at, strict=True))
            return nn.functional.cross_entropy(functional_call(net, state, (images, mixing, choices)), labels)

        return loss

    labels = torch.arange(6) % 3
    parts = loss_on(torch.randn(6, 3, 8, 8), labels), loss_on(torch.randn(6, 3, 8, 8), labels)
    buffers = [torch.randn_like(w) * 0.1 for w in weights]
    problem = Bilevel(*parts, weights, tuple(architecture.parameters()), 0.1, 0.9, 3e-4, buffers)
    expected = textbook.unrolled_gradient(*parts, weights, problem.alphas, 0.1, buffers, 0.9, 3e-4)
    exact, first = Unrolled()(problem), FirstOrder()(problem)
    assert len(exact) == 2 * len(space.cells)
    for name_, a, b, c in zip(own, exact, expected, first, strict=True):
        assert float((a - b).norm() / b.norm()) < 1e-6, name_
        assert float((c - b).norm() / b.norm()) > 1e-3, name_


# ------------------------------------------------------------------------------------------------------------- GDAS


def gumbel_noise(seed: int, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """The noise that a draw after this seed uses: minus the logarithm of exponential numbers."""
    torch.manual_seed(seed)
    return [-torch.empty(shape).exponential_().log() for shape in shapes]


def test_a_gumbel_draw_is_one_hot_with_the_derivative_of_the_soft_sample() -> None:
    relaxation, tau = Gumbel(4.0, 1.0), 3.25
    alphas = torch.randn(50, 5, requires_grad=True)
    is_open = torch.ones(50, 5, dtype=torch.bool)
    is_open[:20, 1] = False
    is_open[:10, 4] = False
    torch.manual_seed(3)
    drawn = relaxation.sample(alphas, is_open, 0.25)
    assert set(drawn.flatten().tolist()) == {0.0, 1.0}
    assert torch.equal(drawn.sum(dim=1), torch.ones(50))
    assert not drawn[~is_open].any()
    (noise,) = gumbel_noise(3, [alphas.shape])
    probe = torch.randn(50, 5)
    expected = torch.zeros(50, 5)
    for i in range(50):
        columns = is_open[i].nonzero().flatten()
        row = alphas.detach()[i, columns].requires_grad_()
        soft = torch.softmax((torch.log_softmax(row, 0) + noise[i, columns]) / tau, 0)
        assert int(columns[soft.argmax()]) == int(drawn[i].argmax())
        (expected[i, columns],) = torch.autograd.grad((soft * probe[i, columns]).sum(), [row])
    (found,) = torch.autograd.grad((drawn * probe).sum(), [alphas])
    assert_same(found, expected)


def test_gumbel_draws_have_the_probabilities_of_the_softmax() -> None:
    alpha = torch.tensor([0.3, -1.0, 1.2, 0.0, -0.4])
    is_open = torch.tensor([True, True, True, False, True])
    count = 200_000
    rows = alpha.expand(count, 5)
    for progress in (0.0, 0.5, 1.0):  # the temperature changes none of them
        observed = Gumbel().sample(rows, is_open.expand(count, 5), progress).sum(dim=0)
        expected = count * torch.softmax(alpha[is_open], dim=0)
        assert observed[3] == 0
        chi_square = ((observed[is_open] - expected).square() / expected).sum()
        assert chi_square < 20  # 3 degrees of freedom: exceeded once in 6,000 times
    torch.testing.assert_close(
        Gumbel()(rows[:1], is_open.expand(1, 5))[0, is_open], torch.softmax(alpha[is_open], dim=0)
    )


def test_the_temperature_falls_linearly() -> None:
    assert [Gumbel().temperature(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([10, 5.05, 0.1])
    assert Gumbel(3.0, 3.0).temperature(0.7) == pytest.approx(3)
    # It is the temperature of the derivative: at a high one all derivatives are small.
    alphas = torch.zeros(1, 4, requires_grad=True)
    slopes = []
    for progress in (0.0, 1.0):
        torch.manual_seed(1)
        drawn = Gumbel(10.0, 0.5).sample(alphas, all_open(alphas), progress)
        slopes.append(torch.autograd.grad(drawn[0, 0], [alphas])[0])
        (noise,) = gumbel_noise(1, [alphas.shape])
        soft = torch.softmax(noise[0] / (10.0, 0.5)[int(progress)], 0)
        one = torch.tensor([1.0, 0, 0, 0])
        assert_same(slopes[-1][0], soft[0] * (one - soft) / (10.0, 0.5)[int(progress)])


def test_the_temperature_reaches_its_end_in_the_last_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Published: tau_max - (tau_max - tau_min) * epoch / (epochs - 1), from 10 to 0.1."""
    seen: list[float] = []
    temperature = Gumbel.temperature
    monkeypatch.setattr(
        Gumbel, "temperature", lambda own, position: seen.append(temperature(own, position)) or seen[-1]
    )
    module = search("nasbench201", epochs=250, relaxation=Gumbel(), auxiliary_skip="linear")
    batch = {"train": batch_of(2), "val": batch_of(2)}
    for epoch in (0, 83, 249, 260):  # the last one is of the fine-tuning
        module._trainer.current_epoch = epoch
        problem_of(module, batch).val_loss(None)
        mixing, _ = module.passes.weight_sample(batch["train"], module.smoothing)
        assert float(mixing["cell"][0, 5]) == pytest.approx(max(0, 1 - epoch / 250))  # DARTS- falls to 0 after it
    expected = [10, 10 - 9.9 * 83 / 249, 0.1, 0.1]
    assert seen == pytest.approx([t for t in expected for _ in range(2)])


@pytest.mark.parametrize("decided", ["nothing", "half"])
@pytest.mark.parametrize(("share", "edges"), [(1, False), (2, True)])
@pytest.mark.parametrize("name", ["nasbench201", "s3", "darts"])
def test_gumbel_supernet_equals_textbook(name: str, share: int, edges: bool, decided: str) -> None:
    """The published form, sum(w_i * op_i(x) if i was drawn else w_i), gives the same gradient of every parameter."""
    twins = Twins(name, Gumbel(), share, edges)
    choices = decide_some(twins.space, DECIDED[decided], seed=2)
    torch.manual_seed(12)
    mixing, computed = twins.architecture.sample(choices, 0.5, 0.5)
    a = twins.ours(images_of(), mixing, computed)
    rows, extras = {}, {}
    shares = book_edges(twins.space, twins.betas, choices)
    noises = gumbel_noise(12, [alpha.shape for alpha in twins.alphas.values()])
    for (cell, alpha), noise in zip(twins.alphas.items(), noises, strict=True):
        own, drawn = [], []
        for row, g, columns in zip(alpha, noise, choices.of(cell), strict=True):
            w, index = torch.zeros_like(row), columns[0] if columns else 0
            if len(columns) == 1:
                w[index] = 1
            elif columns:
                soft = torch.softmax((torch.log_softmax(row, dim=0) + g) / 5.05, dim=0)
                index = int(soft.argmax())
                w = nn.functional.one_hot(torch.tensor(index), len(row)) - soft.detach() + soft
            own.append(w), drawn.append(index)
        rows[cell] = torch.stack(own)
        extras[cell] = textbook.Extras(edges=shares[cell], drawn=drawn)
        for e, columns in enumerate(computed.of(cell)):
            assert columns == ((drawn[e],) if choices.of(cell)[e] else ())
    twins.compare(a, twins.theirs(images_of(), rows, extras), computed)
    for cell, alpha in twins.architecture.alphas.items():
        undecided = torch.tensor([len(columns) > 1 for columns in choices.of(cell)])
        assert alpha.grad[undecided].all()
        assert not alpha.grad[~undecided].any()


def test_only_drawn_operations_are_computed() -> None:
    net = Supernet(NASBENCH201, 3, 4, 5, terms=("offset",))
    architecture = Architecture(NASBENCH201, Gumbel(), 0.5, terms=net.terms)
    calls = counted(net)
    choices = Choices.everything(NASBENCH201).decide(("cell", 2), 4).drop([("cell", 5)]).close(("cell", 0), 0)
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        calls.clear()
        mixing, computed = architecture.sample(choices, 0.5, 0.5)
        net(images_of(2), mixing, computed)
        drawn = mixing["cell"][:, :5].argmax(dim=1).tolist()
        assert sorted(c for c in calls if c[2] < 5) == [("cell", e, drawn[e]) for e in range(5)]
        assert drawn[2] == 4
        assert drawn[0] != 0
        seen.add(tuple(drawn))
    assert len(seen) > 10
    assert computed.undecided("cell") == ()
    assert choices.undecided("cell") == (0, 1, 3, 4)  # a draw decides nothing


# -------------------------------------------------------------------------------------------------------- Dirichlet


def concentration(alpha: Tensor) -> Tensor:
    return torch.where(alpha > 0, alpha + 1, alpha.exp())


def test_dirichlet_samples_have_the_mean_and_variance_of_the_distribution() -> None:
    alpha = torch.tensor([0.7, -0.9, 0.0, 3.0, 2.0])
    is_open = torch.tensor([True, True, True, True, False])
    count = 400_000
    rows, masks = alpha.expand(count, 5), is_open.expand(count, 5)
    sample = Dirichlet().sample(rows, masks, 0.0)
    c = concentration(alpha[is_open])
    mean = c / c.sum()
    variance = mean * (1 - mean) / (c.sum() + 1)
    assert not sample[:, 4].any()
    torch.testing.assert_close(sample.sum(dim=1), torch.ones(count))
    error = (variance / count).sqrt()
    assert ((sample[:, :4].mean(dim=0) - mean).abs() < 4.5 * error).all()
    torch.testing.assert_close(sample[:, :4].var(dim=0), variance, rtol=0.02, atol=0)
    torch.testing.assert_close(Dirichlet()(rows[:1], masks[:1])[0], torch.cat([mean, torch.zeros(1)]))


@pytest.mark.parametrize("power", [1, 2])
def test_dirichlet_samples_carry_the_derivative_of_the_expectation(power: int) -> None:
    """Of E[sum v p] = sum v c / c0, and of E[sum v p^2] = sum v c (c + 1) / (c0 (c0 + 1)), by the parameters."""
    alpha, v = torch.tensor([0.7, -0.9, 0.4, 5.0]), torch.tensor([1.0, -2.0, 0.5, 9.0])
    is_open = torch.tensor([True, True, True, False])
    count = 400_000
    rows = alpha.repeat(count, 1).requires_grad_()  # a row for each draw, so that the error can be told
    sample = Dirichlet().sample(rows, is_open.expand(count, 4), 0.0)
    (slopes,) = torch.autograd.grad((v * sample.pow(power)).sum(), [rows])
    leaf = alpha[:3].clone().requires_grad_()
    c = concentration(leaf)
    moment = c / c.sum() if power == 1 else c * (c + 1) / (c.sum() * (c.sum() + 1))
    (expected,) = torch.autograd.grad((v[:3] * moment).sum(), [leaf])
    error = slopes.std(dim=0)[:3] / math.sqrt(count)
    assert ((slopes.mean(dim=0)[:3] - expected).abs() < 4.5 * error).all()
    assert (expected.abs() > 10 * error).all()
    assert not slopes[:, 3].any()


def test_the_divergence_is_that_of_the_library_on_what_is_open() -> None:
    architecture = Architecture(DARTS, Dirichlet(divergence_weight=1e-3), 1.0)
    choices = decide_some(DARTS, 0.3, seed=4).close(("normal", 2), 0).close(("reduction", 5), 6)
    expected = torch.zeros(())
    copies = Twins.copies(architecture.alphas)
    for cell, alpha in copies.items():
        for row, columns in zip(alpha, choices.of(cell), strict=True):
            if len(columns) > 1:
                c = concentration(row[list(columns)])
                expected = expected + 1e-3 * kl_divergence(Distribution(c), Distribution(torch.ones_like(c)))
    penalty = architecture.penalty(choices)
    assert float(penalty.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    found = torch.autograd.grad(penalty, list(architecture.alphas.values()))
    for a, b in zip(found, torch.autograd.grad(expected, list(copies.values())), strict=True):
        assert_same(a, b)
    assert Architecture(DARTS, Dirichlet(), 1.0).penalty(choices) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dirichlet_bears_parameters_far_out(dtype: torch.dtype) -> None:
    alphas = torch.tensor([[-5.0, 0, 40], [-20, -30, 0], [-900, -900, -900]], dtype=dtype, requires_grad=True)
    relaxation = Dirichlet(1e-3)
    for value in (relaxation.sample(alphas, all_open(alphas), 0.0), relaxation(alphas, all_open(alphas))):
        assert torch.isfinite(value).all()
        (gradient,) = torch.autograd.grad(value[:, 0].sum(), [alphas])
        assert torch.isfinite(gradient).all()
    penalty = relaxation.penalty(alphas, all_open(alphas))
    assert torch.isfinite(penalty)
    assert torch.isfinite(torch.autograd.grad(penalty, [alphas])[0]).all()


@pytest.mark.parametrize("relaxation", [Softmax(), Sigmoid(), Dirichlet(1e-3)], ids=lambda r: type(r).__name__)
def test_draws_and_penalties_wait_for_no_value(relaxation: Relaxation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)  # a compiler switches it off
    terms = ("bypass", "auxiliary_skip")
    architecture = Architecture(NASBENCH201, relaxation, 0.5, True, "linear", terms)
    choices = decide_some(NASBENCH201, 0.3, seed=1)
    architecture(choices)  # masks are made once
    with Waits() as waits:
        architecture.sample(choices, 0.5, 0.5)
        architecture.penalty(choices)
    assert waits.count > 5
    assert waits.seen == []


# ---------------------------------------------------------------------------------------------------------- Sigmoid


@pytest.mark.parametrize("kind", ["l2", "l1"])
@pytest.mark.parametrize("decided", ["nothing", "half"])
def test_the_zero_one_loss_is_over_all_open_operations_together(kind: str, decided: str) -> None:
    architecture = Architecture(DARTS, Sigmoid(10.0, kind), 1.0)
    choices = Choices.everything(DARTS)
    if decided == "half":  # of one cell type more than of the other
        for e in range(10):
            choices = choices.decide(("normal", e), 2)
        choices = choices.decide(("reduction", 0), 1).close(("reduction", 1), 3)
    each = []
    for cell, alpha in architecture.alphas.items():
        for row, columns in zip(alpha.tolist(), choices.of(cell), strict=True):
            if len(columns) > 1:
                each += [1 / (1 + math.exp(-row[o])) - 0.5 for o in columns]
    mean = sum(d * d if kind == "l2" else abs(d) for d in each) / len(each)
    penalty = architecture.penalty(choices)
    assert float(penalty.detach()) == pytest.approx(-10 * mean, rel=1e-12)
    if decided == "nothing":
        together = torch.sigmoid(torch.cat(list(architecture.alphas.values())))
        loss = nn.functional.mse_loss if kind == "l2" else nn.functional.l1_loss
        assert_same(penalty, -10 * loss(together, torch.full_like(together, 0.5)))
    for cell, gradient in zip(
        architecture.alphas, torch.autograd.grad(penalty, list(architecture.alphas.values())), strict=True
    ):
        alpha = architecture.alphas[cell].detach()
        counts = mask_of(choices, cell, 7) & torch.tensor([[len(c) > 1] for c in choices.of(cell)])
        # A step against the gradient takes every weight further from 1/2.
        assert torch.equal((-gradient).sign()[counts], alpha.sign()[counts])
        assert not gradient[~counts].any()


def test_sigmoid_weights_do_not_compete() -> None:
    alphas = torch.randn(3, 4)
    is_open = torch.tensor([[True, True, False, True]]).expand(3, 4)
    weights = Sigmoid()(alphas, is_open)
    assert_same(weights[is_open], (1 / (1 + (-alphas).exp()))[is_open])
    assert not weights[~is_open].any()
    other = alphas.clone()
    other[:, 0] += 3
    assert torch.equal(Sigmoid()(other, is_open)[:, 1:], weights[:, 1:])


@pytest.mark.parametrize("relaxation", [Sigmoid(10.0), Dirichlet(1.0)], ids=["sigmoid", "dirichlet"])
def test_penalties_reach_the_architecture_step_alone(relaxation: Relaxation) -> None:
    module = search("nasbench201", relaxation=relaxation, alpha_init_std=0.5)
    batch = {"train": batch_of(6), "val": batch_of(6, seed=1)}
    problem = problem_of(module, batch)
    torch.manual_seed(4)
    penalised = problem.val_loss(None)
    torch.manual_seed(4)
    mixing, computed = module.architecture.sample(module.choices, module.progress, 0.5)
    plain = nn.functional.cross_entropy(module.supernet(batch["val"].images, mixing, computed), batch["val"].labels)
    added = float((penalised - plain).detach())
    assert added == pytest.approx(float(module.architecture.penalty(module.choices).detach()), abs=1e-12)
    assert abs(added) > 1e-3
    torch.manual_seed(4)
    train = problem.train_loss(None)
    torch.manual_seed(4)
    mixing, computed = module.passes.weight_sample(batch["train"], module.smoothing)
    logits = module.supernet(batch["train"].images, mixing, computed)
    assert_same(train, nn.functional.cross_entropy(logits, batch["train"].labels))


# ------------------------------------------------------------------------------------------------------------ SDARTS


def search(space: str, epochs: int = 10, epoch: int = 4, **settings: Any) -> SearchModule:
    """A search without a trainer, in its fifth epoch of ten."""
    module = SearchModule(space, num_cells=3, init_channels=settings.pop("init_channels", 4), **settings)
    data = SimpleNamespace(has_val=True, num_classes=5)
    state = {"current_epoch": epoch, "precision_plugin": None, "strategy": None, "world_size": 1}
    module._trainer = SimpleNamespace(datamodule=data, **state)
    module.search_epochs = epochs
    module.configure_model()
    module.double()
    return module


def problem_of(module: SearchModule, batch: dict[str, Batch]) -> Bilevel:
    (weights, _) = module.configure_optimizers()
    return module.passes.problem(batch, module.gradient, weights, list)


def batch_of(count: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(torch.randn(count, 3, 8, 8, generator=generator), torch.arange(count) % 5, -1)


def is_within(p: Tensor, q: Tensor, radius: float) -> bool:
    """Whether a row that was changed by at most the radius, within [0, 1], can have become q by dividing by its sum."""
    low, high = (p - radius).clamp(min=0), (p + radius).clamp(max=1)
    least = (low / q).nan_to_num(0).max()
    most = torch.where(q > 0, high / q, math.inf).min()
    return bool(least <= most * (1 + 1e-12)) and bool((low[q == 0] == 0).all())


def test_within_is_seen() -> None:
    p = torch.tensor([0.2, 0.3, 0.5])
    moved = torch.tensor([0.25, 0.25, 0.55])
    assert is_within(p, moved / moved.sum(), 0.05 + 1e-9)
    assert not is_within(p, moved / moved.sum(), 0.04)


def some_rows() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Mixing weights of 200 edges with closed operations, decided edges, and edges that are gone."""
    is_open = torch.rand(200, 5) < 0.8
    is_open[:10] = torch.nn.functional.one_hot(torch.arange(10) % 5, 5).bool()
    is_open[10:15] = False
    is_open[15:] |= torch.nn.functional.one_hot(torch.arange(185) % 4, 5).bool()
    is_open[15:] |= torch.nn.functional.one_hot(torch.arange(185) % 4 + 1, 5).bool()
    logits = (2 * torch.randn(200, 5)).masked_fill(~is_open, -math.inf)
    return {"cell": torch.softmax(logits, dim=1).nan_to_num(0)}, {"cell": is_open}


def refused(rows: Rows) -> Tensor:
    raise AssertionError("random smoothing needs no loss")


@pytest.mark.parametrize("progress", [0.0, 0.6, 1.0])
def test_random_smoothing_stays_in_its_radius(progress: float) -> None:
    rows, is_open = some_rows()
    before = rows["cell"].clone()
    smoothing = RandomSmoothing()
    radius = 0.03 + 0.27 * progress
    assert smoothing.radius(progress) == pytest.approx(radius)
    moved = smoothing(rows, is_open, refused, progress)["cell"]
    assert torch.equal(rows["cell"], before)
    undecided = is_open["cell"].sum(dim=1) > 1
    assert torch.equal(moved[~undecided], before[~undecided])
    assert not moved[~is_open["cell"]].any()
    torch.testing.assert_close(moved[undecided].sum(dim=1), torch.ones(int(undecided.sum())))
    assert all(is_within(p, q, radius) for p, q in zip(before, moved, strict=True))
    assert not all(is_within(p, q, 0.8 * radius) for p, q in zip(before, moved, strict=True))
    torch.manual_seed(9)
    moved = smoothing(rows, is_open, refused, progress)["cell"]
    torch.manual_seed(9)
    noisy = (before + (2 * torch.rand(200, 5) - 1) * radius).clamp(0, 1) * is_open["cell"]
    torch.testing.assert_close(moved[undecided], (noisy / noisy.sum(dim=1, keepdim=True))[undecided])


def test_noise_is_uniform() -> None:
    rows = {"cell": torch.full((100_000, 2), 0.5)}
    moved = RandomSmoothing(0.1, 0.1)(rows, {"cell": all_open(rows["cell"])}, refused, 0.3)["cell"][:, 0]
    # With a, b uniform in +-r: (1/2 + a) / (1 + a + b), whose mean is 1/2 and deviation r / sqrt(6) up to r^2.
    assert float(moved.mean()) == pytest.approx(0.5, abs=5e-4)
    assert float(moved.std()) == pytest.approx(0.05 / math.sqrt(1.5), rel=0.02)


def test_a_row_that_is_emptied_keeps_its_largest_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dartslight.strategies.smoothing._uniform", lambda like, radius: torch.full_like(like, -radius))
    rows = {"cell": torch.tensor([[0.4, 0.5, 0.1], [0.7, 0.0, 0.3]])}
    is_open = {"cell": torch.tensor([[True, True, True], [True, False, True]])}
    moved = RandomSmoothing(1.0, 1.0)(rows, is_open, refused, 0.0)["cell"]
    assert moved.tolist() == [[0, 1, 0], [1, 0, 0]]
    moved = RandomSmoothing(0.45, 0.45)(rows, is_open, refused, 0.0)["cell"]
    assert moved.tolist() == [[0, 1, 0], [1, 0, 0]]  # what is left alone is all


def test_the_attack_reaches_the_corner_that_the_gradient_points_to() -> None:
    rows = {"a": torch.tensor([[0.2, 0.3, 0.3, 0.2], [0.25] * 4]), "b": torch.tensor([[0.3, 0.7]])}
    slopes = {"a": torch.tensor([[1.0, 2, -1, -0.1], [-3, 1, 0.5, -1]]), "b": torch.tensor([[-1.0, 2]])}
    is_open = {cell: all_open(row) for cell, row in rows.items()}

    def loss(at: Rows) -> Tensor:
        return sum((slopes[cell] * row).sum() for cell, row in at.items())

    attack = AdversarialSmoothing(0.1, 0.1, steps=7)
    for seed in range(5):
        torch.manual_seed(seed)
        moved = attack(rows, is_open, loss, 0.0)
        for cell, row in rows.items():
            assert_same(moved[cell], row + 0.1 * slopes[cell].sign())  # sums to 1 as it is
            assert not moved[cell].requires_grad
        assert loss(moved) > loss(rows)


@pytest.mark.parametrize("progress", [0.0, 1.0])
def test_an_attack_stays_in_its_radius_and_raises_the_loss(progress: float) -> None:
    rows, is_open = some_rows()
    before = rows["cell"].clone()
    slopes = torch.randn(200, 5)
    attack, evaluated = AdversarialSmoothing(), []

    def loss(at: Rows) -> Tensor:
        evaluated.append(at["cell"].detach())
        return (slopes * at["cell"]).sum() + at["cell"].square().sum()

    torch.manual_seed(9)
    moved = attack(rows, is_open, loss, progress)["cell"]
    radius = (0.03, 0.3)[int(progress)]
    undecided = is_open["cell"].sum(dim=1) > 1
    assert len(evaluated) == 7 + 2
    torch.manual_seed(9)
    start = (before + (2 * torch.rand(200, 5) - 1) * radius).clamp(0, 1) * is_open["cell"]  # anywhere in the ball
    torch.testing.assert_close(evaluated[0][undecided], (start / start.sum(dim=1, keepdim=True))[undecided])
    for at in [*evaluated, moved]:
        assert all(is_within(p, q, radius) for p, q in zip(before, at, strict=True))
        assert torch.equal(at[~undecided], before[~undecided])
        assert not at[~is_open["cell"]].any()
        torch.testing.assert_close(at[undecided].sum(dim=1), torch.ones(int(undecided.sum())))
    assert not all(is_within(p, q, 0.9 * radius) for p, q in zip(before, moved, strict=True))
    assert loss({"cell": moved}) > loss(rows) + 0.1
    assert torch.equal(rows["cell"], before)


def test_an_attack_that_fails_changes_nothing() -> None:
    rows, is_open = some_rows()
    before = rows["cell"].clone()
    moved = AdversarialSmoothing()(rows, is_open, lambda at: -(at["cell"] - before).square().sum(), 0.5)["cell"]
    assert torch.equal(moved, before)


def test_an_attack_bears_rows_that_the_loss_does_not_depend_on() -> None:
    """As where every edge of a cell type is decided to be nothing."""
    rows = {"a": torch.tensor([[0.3, 0.7]]), "b": torch.tensor([[0.0, 1.0]])}
    is_open = {"a": all_open(rows["a"]), "b": torch.tensor([[False, True]])}
    moved = AdversarialSmoothing(0.1, 0.1)(rows, is_open, lambda at: at["a"][0, 1] - at["a"][0, 0], 0.0)
    assert_same(moved["a"], torch.tensor([[0.2, 0.8]]))
    assert torch.equal(moved["b"], rows["b"])


@pytest.mark.parametrize("track", [True, False])
def test_an_attack_leaves_the_supernet_as_it_was(track: bool) -> None:
    module = search("nasbench201", smoothing=AdversarialSmoothing(), track_statistics=track, alpha_init_std=0.5)
    module.train()
    batch = batch_of(6)
    module.supernet(batch.images, module.mixing(module.choices), module.choices)  # running statistics of its own
    state = {name: value.clone() for name, value in module.supernet.state_dict().items()}
    modes: list[tuple[bool, bool]] = []
    forward = module.supernet.forward

    def watched(*words: Any) -> Tensor:
        modes.append((module.supernet.training, any(p.requires_grad for p in module.supernet.parameters())))
        return forward(*words)

    module.supernet.forward = watched
    torch.manual_seed(2)
    sample = module.passes.weight_sample(batch, module.smoothing)
    assert modes == [(False, False)] * 9
    assert all(m.training for m in module.supernet.modules())
    assert all(p.requires_grad and p.grad is None for p in module.supernet.parameters())
    assert all(p.grad is None for p in module.architecture.parameters())
    assert all(torch.equal(value, state[name]) for name, value in module.supernet.state_dict().items())
    clean = module.mixing(module.choices)["cell"].detach()
    assert not sample.mixing["cell"].requires_grad
    assert sample.choices == module.choices
    assert all(is_within(p, q, 0.03 + 0.27 * 0.4) for p, q in zip(clean, sample.mixing["cell"], strict=True))
    module.supernet.eval()
    losses = [
        nn.functional.cross_entropy(forward(batch.images, {"cell": m}, module.choices), batch.labels)
        for m in (clean, sample.mixing["cell"])
    ]
    assert losses[1] > losses[0] or torch.equal(sample.mixing["cell"], clean)


@pytest.mark.parametrize("smoothing", [RandomSmoothing(), AdversarialSmoothing(steps=2)], ids=["random", "attack"])
def test_the_architecture_step_sees_weights_as_they_are(smoothing: Any) -> None:
    module = search("s2", smoothing=smoothing, edge_normalisation=True, partial_channels=2, alpha_init_std=0.5)
    batch = {"train": batch_of(4), "val": batch_of(4, seed=1)}
    seen: list[Any] = []
    forward = module.supernet.forward
    module.supernet.forward = lambda images, mixing, *rest: (seen.append(mixing), forward(images, mixing, *rest))[1]
    module.gradient(problem_of(module, batch))
    clean = module.mixing(module.choices)
    assert len(seen) == 1
    assert all(torch.equal(seen[0][cell], clean[cell]) for cell in clean)
    sample = module.passes.weight_sample(batch["train"], module.smoothing)
    for cell, m in sample.mixing.items():
        assert not torch.equal(m, clean[cell])
        # What edges weigh is not disturbed: neither the sums of their operations nor the channels that pass by.
        torch.testing.assert_close(m[:, :2].sum(dim=1), clean[cell][:, :2].sum(dim=1))
        assert torch.equal(m[:, 2:], clean[cell][:, 2:])


# --------------------------------------------------------------------------------------------------------- drop path


def test_drop_path_grows_linearly() -> None:
    module = search("nasbench201", epochs=10, drop_path=0.4)
    found = []
    for epoch in (0, 1, 5, 9, 10, 14):
        module._trainer.current_epoch = epoch
        found.append(module._drop.edge)
    assert found == pytest.approx([0, 0.4 / 9, 2 / 9, 0.4, 0.4, 0.4])
    assert search("nasbench201")._drop == Drop()


@pytest.mark.parametrize(("name", "share", "skip"), [("nasbench201", 1, None), ("s2", 1, "linear"), ("s3", 2, None)])
def test_drop_path_in_the_supernet_equals_textbook(name: str, share: int, skip: str | None) -> None:
    twins = Twins(name, share=share, skip=skip)
    choices = Choices.everything(twins.space)
    mixing = twins.architecture(choices, 0.5)
    images = images_of(8)
    whole = twins.ours.eval()(images, mixing, choices)
    assert torch.equal(twins.ours(images, mixing, choices, Drop(edge=0.5)), whole)  # evaluation is untouched
    twins.ours.train()
    torch.manual_seed(3)
    a = twins.ours(images, mixing, choices, Drop(edge=0.5))
    torch.manual_seed(3)
    masks = (torch.empty(8, 1, 1, 1).bernoulli_(0.5).flatten() for _ in range(10_000))
    extras = {cell.name: textbook.Extras(skip=0.5, drop=0.5, masks=masks) for cell in twins.space.cells}
    twins.compare(a, twins.theirs(images, book_rows(twins.alphas, choices), extras), choices)


def test_drop_path_takes_skips_like_convolutions() -> None:
    net = Supernet(NASBENCH201, 3, 4, 5)
    architecture = Architecture(NASBENCH201, Softmax(), 0.5)
    everything = Choices.everything(NASBENCH201)
    for op, changes in ((1, True), (0, False), (2, True), (4, True)):
        choices = everything
        for e in range(6):
            choices = choices.decide(("cell", e), op)
        mixing = architecture(choices, 0.5)
        a, b = (net(images_of(8), mixing, choices, drop) for drop in (Drop(), Drop(edge=0.6)))
        assert (not torch.equal(a, b)) == changes


# ------------------------------------------------------------------------------------------------------- the module


def test_gradients_of_the_architecture_are_clipped_together() -> None:
    for limit, factor in ((None, 1.0), (1.0, 0.2), (100.0, 1.0)):
        module = search("s2", edge_normalisation=True, alpha_clip_norm=limit)
        module._trainer.global_step = 0
        shapes = [p.shape for p in module.architecture.parameters()]
        gradients = [torch.zeros(shape) for shape in shapes]
        gradients[0].view(-1)[0], gradients[-1].view(-1)[0] = 3.0, 4.0
        module._assign_alpha_gradients(gradients, [])
        first, *_, last = module.architecture.parameters()
        assert float(first.grad.view(-1)[0]) == pytest.approx(3 * factor, rel=1e-5)
        assert float(last.grad.view(-1)[0]) == pytest.approx(4 * factor, rel=1e-5)


def test_edge_parameters_are_architecture_parameters() -> None:
    module = search("s2", edge_normalisation=True)
    weights, alphas = module.configure_optimizers()
    own = {id(p) for group in alphas.param_groups for p in group["params"]}
    assert own == {id(p) for p in [*module.architecture.alphas.values(), *module.architecture.betas.values()]}
    assert len(own) == 4
    assert not own & {id(p) for group in weights.param_groups for p in group["params"]}
    assert set(module._ddp_params_and_buffers_to_ignore) >= {
        "architecture.betas.normal",
        "architecture.betas.reduction",
    }


# --------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("gradient", ["Unrolled", "FiniteDifference"])
@pytest.mark.parametrize("relaxation", [Gumbel(), Dirichlet()], ids=["Gumbel", "Dirichlet"])
def test_random_weights_and_second_order_are_refused(relaxation: Relaxation, gradient: str) -> None:
    name = type(relaxation).__name__
    with pytest.raises(InputError, match=f"{gradient} compares passes at several weights, but {name} draws other.*use"):
        check_combination(relaxation, getattr(dartslight.strategies, gradient)())


@pytest.mark.parametrize("relaxation", [Gumbel(), Sigmoid()], ids=["Gumbel", "Sigmoid"])
@pytest.mark.parametrize("smoothing", [RandomSmoothing(), AdversarialSmoothing()], ids=["random", "attack"])
def test_smoothing_of_weights_without_a_sum_is_refused(relaxation: Relaxation, smoothing: Any) -> None:
    words = (
        f"{type(smoothing).__name__} disturbs mixing weights that sum to 1, but those of {type(relaxation).__name__}"
    )
    with pytest.raises(InputError, match=f"{words} do not.*use Softmax, or no smoothing"):
        check_combination(relaxation, FirstOrder(), smoothing)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"gradient": Unrolled(), "checkpoint_cells": True}, "checkpoint_cells computes cells again.*Unrolled needs"),
        ({"gradient": Unrolled(), "compile": "default"}, "compile is 'default', but.*differentiated twice"),
        ({"checkpoint_cells": True, "compile": "default"}, "compile is 'default', but.*checkpoint_cells"),
        ({"drop_path": 0.1, "compile": "default"}, "compile is 'default', but.*drop_path.*no compile"),
        ({"relaxation": Gumbel(), "compile": "default"}, "compile is 'default', but.*Gumbel.*no compile"),
        ({"drop_path": 1.0}, "drop_path is 1.0 .*must be below 1"),
        ({"drop_path": -0.1}, "drop_path is -0.1, but it must be at least 0"),
        ({"drop_path": math.nan}, "drop_path is nan"),
        ({"alpha_momentum": 1.0}, "alpha_momentum 1.0, but they must be below 1"),
        ({"partial_channels": 3}, "partial_channels 3, but.*multiple of 3 from 6 on"),
        ({"partial_channels": 4}, "init_channels is 4 and partial_channels 4.*multiple of 4 from 8 on"),
        ({"partial_channels": 0}, "partial_channels is 0"),
        ({"auxiliary_skip": "linaer"}, "auxiliary_skip is 'linaer', but it must be linear or cosine"),
    ],
)
def test_what_does_not_go_together_is_refused(words: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        search("nasbench201", **words)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Sigmoid(-1.0), "zero_one_weight is -1.0"),
        (lambda: Sigmoid(1.0, "l3"), "zero_one_loss is 'l3', but it must be l2 or l1"),
        (lambda: Gumbel(0.0), "temperatures are 0.0 and 0.1, but they must be finite and above 0"),
        (lambda: Gumbel(10.0, math.nan), "temperatures are 10.0 and nan"),
        (lambda: Gumbel(math.inf), "temperatures are inf"),
        (lambda: Dirichlet(-0.1), "divergence_weight is -0.1"),
        (lambda: RandomSmoothing(-0.1), "start_radius is -0.1"),
        (lambda: RandomSmoothing(0.1, math.nan), "end_radius is nan"),
        (lambda: AdversarialSmoothing(steps=0), "steps is 0, but an attack takes at least 1 step"),
    ],
)
def test_settings_out_of_range_are_refused(make: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        make()


@pytest.mark.parametrize("gradient", ["FirstOrder", "Fixed"])
def test_all_other_combinations_go_together(gradient: str) -> None:
    rule = getattr(dartslight.strategies, gradient)()
    for relaxation in (Softmax(), Sigmoid(), Gumbel(), Dirichlet()):
        check_combination(relaxation, rule, None, 0.3, True)
    for relaxation in (Softmax(), Dirichlet()):
        check_combination(relaxation, rule, AdversarialSmoothing(), 0.3, True)
    check_combination(Sigmoid(), Unrolled(), None, 0.3)
    check_combination(Softmax(), Unrolled(), RandomSmoothing(), 0.3)
    check_combination(Dirichlet(), rule, RandomSmoothing(), compile="default")
