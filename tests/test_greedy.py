"""SGAS: its scores against the paper's formulas, the order in which edges go, what is remembered, whole runs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_command_line import decisions, same_weights
from test_selection import Given
from test_strategies_in_training import fit
from torch.distributions import Categorical

from dartslight.cli import main
from dartslight.errors import InputError
from dartslight.genotype import Genotype
from dartslight.selection import Decision, Perturbation, Rule, SearchPlan, Sgas, Variant
from dartslight.selection.greedy import edge_scores
from dartslight.selection.record import in_words, record
from dartslight.spaces import DARTS8, NASBENCH201, S2, S3, SPACES, Cell, Edge, SearchSpace

THREE = Cell("cell", 1, 2, "last", tuple(Edge(s, n, ("none", "a", "b")) for s, n in ((0, 1), (0, 2), (1, 2))))


# ---------------------------------------------------------------------------------------------------------- formulas


def test_scores_of_three_edges_by_hand() -> None:
    weights = np.array([[0.2, 0.6, 0.2], [0.5, 0.4, 0.1], [0.1, 0.54, 0.36]])
    # Importance 0.8, 0.5, 0.9, scaled 3/4, 0, 1. Shares 3/4, 4/5, 3/5 with entropies of 0.811278, 0.721928, 0.970951
    # bits, so that the certainty is 0.188722, 0.278072, 0.029049, scaled 0.641197, 1, 0.
    assert edge_scores(THREE, weights) == pytest.approx([0.75 * 0.641197, 0, 0], abs=1e-6)
    # Without none the importance is 1 everywhere and says nothing.
    alone = replace(THREE, edges=tuple(replace(edge, ops=("a", "b")) for edge in THREE.edges))
    pairs = np.array([[0.75, 0.25], [0.8, 0.2], [0.6, 0.4 + 1e-8]])
    assert edge_scores(alone, pairs) == pytest.approx([0.641197, 1, 0], abs=1e-6)
    # The means of what the shares have in common with two earlier epochs are 0.8, 0.7 and 1, scaled 1/3, 0 and 1.
    earlier = [
        [[0.65, 0.35], [0.6, 0.4], [0.6, 0.4]],
        [[0.45, 0.55], [0.4, 0.6], [0.6, 0.4]],
    ]
    assert edge_scores(alone, pairs, earlier) == pytest.approx([0.641197 / 3, 0, 0], abs=1e-6)


def restated(alphas: torch.Tensor, history: list[torch.Tensor] | None) -> torch.Tensor:
    """The scores of section 3.2 of the paper for alphas whose first column is none."""

    def norm(x: torch.Tensor) -> torch.Tensor:
        return (x - x.min()) / (x.max() - x.min())

    def split(a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        p = a.softmax(dim=1)
        importance = 1 - p[:, 0]
        return importance, p[:, 1:] / importance.unsqueeze(1)

    importance, q = split(alphas)
    score = norm(importance) * norm(1 - Categorical(probs=q).entropy() / np.log(q.shape[1]))
    if history is None:
        return score
    stability = torch.stack([torch.minimum(q, split(then)[1]).sum(dim=1) for then in history]).mean(dim=0)
    return score * norm(stability)


@pytest.mark.parametrize("space", [DARTS8, S3, NASBENCH201], ids=lambda space: space.name)
def test_scores_are_those_of_the_paper(space: SearchSpace) -> None:
    generator = torch.Generator().manual_seed(0)
    cell = space.cells[0]
    shape = (len(cell.edges), len(cell.edges[0].ops))
    now, *history = (torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(5))
    weights = now.softmax(dim=1).numpy()
    shares = [(h.softmax(dim=1)[:, 1:] / h.softmax(dim=1)[:, 1:].sum(dim=1, keepdim=True)).tolist() for h in history]
    assert edge_scores(cell, weights) == pytest.approx(restated(now, None).numpy(), rel=1e-9)
    assert edge_scores(cell, weights, shares) == pytest.approx(restated(now, history).numpy(), rel=1e-9)
    assert edge_scores(cell, weights, []) == pytest.approx(edge_scores(cell, weights))


def test_what_is_the_same_everywhere_says_nothing() -> None:
    assert edge_scores(THREE, np.full((3, 3), 1 / 3)) == pytest.approx([1, 1, 1])
    # An operation that has everything; one alone beside none; an edge that is all none.
    odd = replace(THREE, edges=(THREE.edges[0], replace(THREE.edges[1], ops=("none", "a")), THREE.edges[2]))
    weights = np.array([[0.0, 1.0, 0.0], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    assert edge_scores(odd, weights) == pytest.approx([1, 0.5, 0])


# --------------------------------------------------------------------------------------------------------- decisions


def search(rule: Rule, supernet: Given, epochs: int, seed: int = 0) -> list[list[Decision]]:
    """Lets a rule see and decide a search whose parameters move a little in every epoch."""
    points = rule.schedule(SearchPlan(supernet.space, epochs)).points
    decided = []
    for epoch in range(1, epochs + 1):
        with torch.no_grad():
            for alphas in supernet.architecture.alphas.values():
                alphas.add_(0.1 * torch.randn(alphas.shape))
        rule.observe(supernet, epoch)
        if epoch in points:
            outcome = rule.decide(supernet, points.index(epoch), seed)
            supernet.choices = outcome.choices
            decided.append(list(outcome.decisions))
    return decided


@pytest.mark.parametrize("criterion", [1, 2])
@pytest.mark.parametrize("name", [name for name, space in SPACES.items() if space.macro != "mobile"])
def test_one_edge_of_each_cell_type_at_each_point(name: str, criterion: int) -> None:
    supernet = Given(SPACES[name])
    points = search(Sgas(criterion, warmup_epochs=2, interval=2), supernet, 20)
    count = 6 if name == "nasbench201" else 8
    assert [[d.cell for d in point] for point in points] == [
        [cell.name for cell in supernet.space.cells for _ in range(2)]
    ] * count
    assert all([d.kind for d in point] == ["edge", "operation"] * len(supernet.space.cells) for point in points)
    genotype = Genotype.from_choices(supernet.space, supernet.choices)
    for cell in genotype.cells:
        assert all(len(cell.edges_into(n)) == (supernet.space.inputs_per_node or n) for n in cell.nodes)
        assert all(edge.ops != ("none",) for edge in cell.edges)
    assert Genotype.from_json(genotype.to_json()) == genotype
    for edge, operation in zip(*[iter(d for point in points for d in point)] * 2, strict=True):
        assert edge.criterion == f"sgas{criterion}"
        best = next(c for c in edge.candidates if c.chosen)
        assert best.score_with == max(c.score_with for c in edge.candidates)
        assert {(c.node, c.source) for c in operation.candidates} == {(best.node, best.source)}
        kept = next(c for c in operation.candidates if c.chosen)
        assert kept.score_with == max(c.score_with for c in operation.candidates)
        assert kept.op == best.op
        assert "none" not in {c.op for c in operation.candidates}
        assert (edge.margin is None) == (len(edge.candidates) == 1)
    records = [record(d, i, 1, 0.1) for i, d in enumerate(d for point in points for d in point)]
    assert "is next" in in_words(genotype, records)


@pytest.mark.parametrize("criterion", [1, 2])
def test_edges_go_in_the_order_of_their_scores(criterion: int) -> None:
    """Restated with alphas of decided edges that are remembered, while the real ones move on."""
    rule, supernet = Sgas(criterion, warmup_epochs=3, interval=1, history=2), Given(DARTS8)
    cell = DARTS8.cells[0]
    remembered: dict[int, torch.Tensor] = {}
    seen: list[torch.Tensor] = []
    chosen: list[int] = []
    generator = torch.Generator().manual_seed(3)
    for epoch in range(1, 11):
        alphas = 0.5 * torch.randn(14, 8, generator=generator)
        with torch.no_grad():
            supernet.architecture.alphas["normal"].copy_(alphas)
            supernet.architecture.alphas["reduction"].copy_(alphas)
        for e, row in remembered.items():
            alphas[e] = row
        rule.observe(supernet, epoch)
        if epoch >= 3:
            scores = restated(alphas.double(), [a.double() for a in seen[-2:]] if criterion == 2 else None)
            left = [e for e in range(14) if e not in remembered]
            best = max(left, key=lambda e, scores=scores: float(scores[e]))
            outcome = rule.decide(supernet, epoch - 3, 0)
            supernet.choices = outcome.choices
            compared = [c.score_with for c in outcome.decisions[0].candidates]
            assert compared == pytest.approx([float(scores[e]) for e in left], abs=1e-5)
            for name in ("normal", "reduction"):
                op = 1 + int(alphas[best, 1:].argmax())
                assert outcome.choices.of(name)[best] == (op,)
            chosen.append(best)
            remembered[best] = alphas[best]
            into = cell.edges_into(cell.edges[best].node)
            if sum(e in chosen for e in into) == 2:
                remembered |= {e: alphas[e] for e in into}
            kept = [e for e in range(14) if e in chosen or e not in remembered]
            assert list(outcome.choices.kept("normal")) == kept
        seen.append(alphas)
    assert len(chosen) == 8
    assert len(remembered) == 14
    epochs = sorted(supernet.memory["shares"]["normal"]) if criterion == 2 else []
    assert epochs == ([8, 9, 10] if criterion == 2 else [])


def test_a_perturbation_chooses_the_operation_of_the_edge() -> None:
    def loss(variant: Variant) -> float:
        return 1.0 if "without dil_conv_5x5" in variant.label else 0.0

    supernet = Given(DARTS8, loss)
    measured = Perturbation(eval_batches=3, eval_bn="running", interval=7)
    points = search(Sgas(warmup_epochs=1, interval=1, perturbation=measured), supernet, 8)
    assert supernet.passes == 8 * 2 * 7
    assert {(e.batches, e.statistics) for e in supernet.evaluations} == {(3, "running")}
    assert len({e.seed for e in supernet.evaluations}) == 16
    genotype = Genotype.from_choices(DARTS8, supernet.choices)
    assert {edge.ops for cell in genotype.cells for edge in cell.edges} == {("dil_conv_5x5",)}
    by_weight = Given(DARTS8)
    plain = search(Sgas(warmup_epochs=1, interval=1), by_weight, 8)
    edges = [[[c for c in d.candidates if c.chosen] for d in point if d.kind == "edge"] for point in (points + plain)]
    assert edges[:8] == edges[8:]
    assert {d.criterion for point in points for d in point} == {"sgas1", "loss"}
    # The normal cell's decision is in place when the other is measured.
    last = supernet.variants[-8]
    assert (last.label, len(last.choices.undecided("normal"))) == ("nothing removed", 0)


def test_searches_that_sgas_cannot_decide_are_refused() -> None:
    published = Sgas().schedule(SearchPlan(DARTS8, 50))
    assert (published.points, published.tuning_epochs) == (tuple(range(10, 46, 5)), 0)
    assert Sgas().schedule(SearchPlan(NASBENCH201, 35)).points == tuple(range(10, 36, 5))
    with pytest.raises(InputError, match=r"8 decisions in the space 's2', which needs 45 epochs, but .* has 44; give"):
        Sgas().schedule(SearchPlan(S2, 44))
    with pytest.raises(InputError, match="SGAS decides during the search, but this search is over"):
        Sgas().schedule(SearchPlan(S2, 50, is_over=True))
    with pytest.raises(InputError, match="criterion is 3"):
        Sgas(3)
    for setting in ("warmup_epochs", "interval", "history"):
        with pytest.raises(InputError, match=f"{setting} is 0"):
            Sgas(**{setting: 0})


# -------------------------------------------------------------------------------------------------------- whole runs

RUN = ["--selection=dartslight.selection.Sgas", "--selection.warmup_epochs=1", "--selection.interval=1"]
STABLE = [*RUN, "--selection.criterion=2", "--selection.history=2", "--trainer.max_epochs=7"]
MEASURED = ["--selection.perturbation=dartslight.selection.Perturbation", "--selection.perturbation.eval_batches=1"]


def test_a_search_with_sgas_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    words = [*STABLE, *MEASURED, "--data.max_pictures=32"]
    whole = fit(tmp_path / "whole", *words)
    assert len(decisions(whole)) == sum(range(1, 7)) + 6 * 4
    # Three of seven epochs, of a batch each, are over.
    stopped = fit(tmp_path / "stopped", *words, "--trainer.max_steps=3")
    assert not (stopped / "genotype.json").exists()
    assert len({row["decision"] for row in decisions(stopped)}) == 6
    last = stopped / "checkpoints" / "last.ckpt"
    assert main(["fit", f"--ckpt_path={last}", "--trainer.max_steps=-1"]) == 0
    assert decisions(stopped) == decisions(whole)
    assert (stopped / "genotype.json").read_text() == (whole / "genotype.json").read_text()
    assert same_weights(stopped, whole)


def test_a_search_stopped_within_an_epoch_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    words = [*STABLE, "--checkpoint_every_n_batches=1"]
    whole = fit(tmp_path / "whole", *words)
    stopped = fit(tmp_path / "stopped", *words, "--trainer.max_steps=7")
    assert main(["fit", f"--ckpt_path={stopped / 'checkpoints' / 'last.ckpt'}", "--trainer.max_steps=-1"]) == 0
    assert decisions(stopped) == decisions(whole)
    assert (stopped / "genotype.json").read_text() == (whole / "genotype.json").read_text()
    assert same_weights(stopped, whole)


def test_sgas_decides_a_darts_space_and_no_finished_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = ["--data.size=8", "--data.padding=1", "--data.max_pictures=32", "--model.space=s3"]
    folder = fit(tmp_path, *RUN, "--trainer.max_epochs=8", *tiny)
    genotype = Genotype.load(folder / "genotype.json")
    assert all([len(cell.edges_into(node)) for node in cell.nodes] == [2, 2, 2, 2] for cell in genotype.cells)
    assert all(edge.ops != ("none",) for cell in genotype.cells for edge in cell.edges)
    assert {row["kind"] for row in decisions(folder)} == {"edge", "operation"}
    assert {row["criterion"] for row in decisions(folder)} == {"sgas1", "weight"}
    root = f"--trainer.default_root_dir={tmp_path}"
    searched = fit(tmp_path, "--trainer.max_epochs=1", *tiny, "--selection=null")
    capsys.readouterr()
    assert main(["select", f"--supernet={searched / 'checkpoints' / 'last.ckpt'}", root, *RUN]) == 2
    assert "SGAS decides during the search, but this search is over" in capsys.readouterr().err
