"""Staged shrinking (P-DARTS): what each stage closes, how skip connections are taken away, whole runs."""

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from test_command_line import decisions, same_weights
from test_selection import SEP3, SKIP, Given
from test_strategies_in_training import QUICK, fit, newest

from dartslight.cli import main
from dartslight.errors import InputError
from dartslight.genotype import Genotype
from dartslight.selection import Magnitude, SearchPlan, Staged
from dartslight.selection.record import in_words, record
from dartslight.spaces import DARTS8, NASBENCH201, S2, S3, SPACES, Choices, SearchSpace

POOL, DIL3 = "max_pool_3x3", "dil_conv_3x3"


def given(space: SearchSpace, weights: dict[str, np.ndarray]) -> Given:
    supernet = Given(space)
    supernet.mixing = lambda choices: {k: torch.from_numpy(v) for k, v in weights.items()}  # type: ignore[method-assign]
    return supernet


def random_weights(space: SearchSpace, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {cell.name: rng.dirichlet(np.ones(len(cell.edges[0].ops)), len(cell.edges)) for cell in space.cells}


def weights_of(edges: dict[int, dict[str, float]]) -> dict[str, np.ndarray]:
    """Weights of the 8-operation space: 0.01, but for some operations of the normal cell."""
    weights = {cell.name: np.full((14, 8), 0.01) for cell in DARTS8.cells}
    for e, ops in edges.items():
        for op, weight in ops.items():
            weights["normal"][e, DARTS8.cells[0].edges[e].ops.index(op)] = weight
    return weights


def kept(space: SearchSpace, choices: Choices, cell: str = "normal") -> dict[str, str]:
    edges = next(c for c in Genotype.from_choices(space, choices).cells if c.name == cell).edges
    return {str(edge): edge.ops[0] for edge in edges}


# ------------------------------------------------------------------------------------------------------------ stages


def test_each_stage_keeps_the_operations_with_the_largest_weights() -> None:
    weights = random_weights(DARTS8, 0)
    supernet, rule = given(DARTS8, weights), Staged([5, 3])
    for point, count in enumerate((5, 3)):
        outcome = rule.decide(supernet, point, 0)
        for cell in DARTS8.cells:
            largest = np.argsort(-weights[cell.name], axis=1)[:, :count]
            assert outcome.choices.of(cell.name) == tuple(tuple(sorted(row)) for row in largest.tolist())
        assert len(outcome.decisions) == 28
        first, row = outcome.decisions[0], np.sort(weights["normal"][0])[::-1]
        assert (first.kind, first.criterion, sum(c.chosen for c in first.candidates)) == ("operations", "weight", count)
        assert first.margin == pytest.approx(row[count - 1] - row[count])
        supernet.choices = outcome.choices
    # `none` stayed where it was strong, and it may be among the three; at the end it cannot be kept.
    with_none = [e for e in range(14) if 0 in supernet.choices.of("normal")[e]]
    assert with_none
    outcome = rule.decide(supernet, 2, 0)
    assert "none" not in kept(DARTS8, outcome.choices).values()
    genotype = Genotype.from_choices(DARTS8, outcome.choices)
    words = in_words(genotype, [record(first, 0, 25, 0.1)])
    assert "normal    2<-0    3 of 5 left     by weight, margin" in words


def test_an_edge_with_few_operations_keeps_them() -> None:
    supernet = given(S2, random_weights(S2, 0))
    supernet.choices = supernet.choices.decide(("normal", 3), 1)
    outcome = Staged([1]).decide(supernet, 0, 0)
    assert outcome.choices.of("normal")[3] == (1,)
    assert len(outcome.decisions) == 27
    # `none` cannot be the last one, except where it can be chosen.
    strong_none = {cell.name: np.tile([0.8, 0.1, 0.15], (14, 1)) for cell in S3.cells}
    assert Staged([1]).decide(given(S3, strong_none), 0, 0).choices.of("normal") == ((2,),) * 14
    weights = {"cell": np.tile([0.8, 0.1, 0.15, 0.0, 0.0], (6, 1))}
    assert Staged([1]).decide(given(NASBENCH201, weights), 0, 0).choices.of("cell") == ((0,),) * 6


def test_stages_end_where_the_strategy_says_or_are_equally_long() -> None:
    assert Staged().schedule(SearchPlan(DARTS8, 75)).points == (25, 50, 75)
    assert Staged().schedule(SearchPlan(DARTS8, 4)).points == (1, 3, 4)
    assert Staged().schedule(SearchPlan(DARTS8, 75, (20, 40, 75))).points == (20, 40, 75)
    assert Staged([4]).schedule(SearchPlan(DARTS8, 50, (50,))).points == (25, 50)
    assert Staged([]).schedule(SearchPlan(DARTS8, 7, is_over=True)).points == (7,)
    with pytest.raises(InputError, match=r"has 2 stages, but keep is \[5, 3\], which is for 3; give"):
        Staged().schedule(SearchPlan(DARTS8, 50, (25, 50)))
    with pytest.raises(InputError, match=r"for 3 stages, but the search has 2 epochs; give --trainer.max_epochs 3"):
        Staged().schedule(SearchPlan(DARTS8, 2))
    with pytest.raises(InputError, match="closes operations during the search, but this search is over"):
        Staged().schedule(SearchPlan(DARTS8, 75, is_over=True))
    with pytest.raises(InputError, match=r"'nasbench201' has 5 operations at most, so that .*; give smaller numbers"):
        Staged().schedule(SearchPlan(NASBENCH201, 75))
    for keep in ([3, 5], [3, 3], [0], [5, -1]):
        with pytest.raises(InputError, match="it must be numbers of operations from 1 on in descending order"):
            Staged(keep)
    with pytest.raises(InputError, match="max_skips is -1"):
        Staged(max_skips=-1)


# ------------------------------------------------------------------------------------------------- skip connections

# Edges into nodes 2, 3, 4 and 5 of the normal cell begin at 0, 2, 5 and 9.
SKIPS = weights_of(
    {
        **{0: {SKIP: 0.5, SEP3: 0.2}, 1: {SKIP: 0.3, DIL3: 0.1}},
        **{2: {SKIP: 0.4, POOL: 0.05}, 3: {SEP3: 0.35}, 4: {SEP3: 0.15, "none": 0.9}},
        **{5: {SKIP: 0.6, DIL3: 0.55}, 6: {SKIP: 0.2}, 7: {SEP3: 0.1}},
        **{9: {SEP3: 0.5}, 10: {SEP3: 0.4}, 11: {SKIP: 0.39}},
    }
)
FIVE = {
    **{"2<-0": SKIP, "2<-1": SKIP, "3<-0": SKIP, "3<-1": SEP3, "4<-0": SKIP, "4<-1": SKIP},
    **{"5<-0": SEP3, "5<-1": SEP3},
}


def test_skips_are_taken_away_weakest_first() -> None:
    """By hand: 4<-1 (0.2) makes room for 4<-2, 2<-1 (0.3) becomes dil_conv, 3<-0 (0.4) for 3<-2 (0.15), and so on."""
    left = {5: {}, 4: {"4<-1": None, "4<-2": SEP3}, 3: {"2<-1": DIL3}, 2: {"3<-0": None, "3<-2": SEP3}}
    left |= {1: {"2<-0": SEP3}, 0: {"4<-0": DIL3}}
    expected: dict[str, str | None] = dict(FIVE)
    for max_skips, changes in left.items():
        expected |= changes
        outcome = Staged([], max_skips).decide(given(DARTS8, SKIPS), 0, 0)
        assert kept(DARTS8, outcome.choices) == {k: v for k, v in expected.items() if v}
        taken = [d for d in outcome.decisions if d.criterion == "skips"]
        assert [str(f"{d.candidates[0].node}<-{d.candidates[0].source}") for d in taken] == [
            "4<-1",
            "2<-1",
            "3<-0",
            "2<-0",
            "4<-0",
        ][: 5 - max_skips]
        assert all([c.op for c in d.candidates if not c.chosen] == [SKIP] for d in taken)
    free = Staged([], None).decide(given(DARTS8, SKIPS), 0, 0)
    assert kept(DARTS8, free.choices) == FIVE
    assert free == Magnitude().decide(given(DARTS8, SKIPS), 0, 0)


def published(weights: np.ndarray, max_skips: int) -> dict[str, str]:
    """The end of P-DARTS' search, restated: probabilities of what may not be chosen are set to 0."""
    cell = DARTS8.cells[0]
    skip = cell.edges[0].ops.index(SKIP)
    p = weights.copy()
    p[:, 0] = 0
    while True:
        pairs: list[tuple[int, int]] = []
        for node in cell.nodes:
            into = sorted(cell.edges_into(node), key=lambda e: p[e].max())
            pairs += [(e, int(p[e].argmax())) for e in into[-2:]]
        skips = [e for e, op in pairs if op == skip]
        if len(skips) <= max_skips:
            return {str(cell.edges[e]): cell.edges[e].ops[op] for e, op in sorted(pairs)}
        p[min(skips, key=lambda e: p[e, skip]), skip] = 0


def test_skips_are_taken_away_as_published() -> None:
    changed = 0
    for seed, max_skips in itertools.product(range(20), (0, 1, 2)):
        weights = random_weights(DARTS8, seed)
        weights["normal"][:, 3] += 0.2  # which makes skip connections win on many edges
        outcome = Staged([], max_skips).decide(given(DARTS8, weights), 0, 0)
        assert kept(DARTS8, outcome.choices) == published(weights["normal"], max_skips)
        plain = Magnitude().decide(given(DARTS8, weights), 0, 0).choices
        changed += kept(DARTS8, outcome.choices) != kept(DARTS8, plain)
        # The reduction cell may keep its skip connections.
        assert kept(DARTS8, outcome.choices, "reduction") == kept(DARTS8, plain, "reduction")
    assert changed > 50


def test_what_nothing_can_replace_stays() -> None:
    weights = {cell.name: np.tile([0.1, 0.6, 0.3], (14, 1)) for cell in S3.cells}
    supernet = given(S3, weights)
    for e in (0, 2, 3, 4, 5):  # all edges into node 3, one into node 2 and one into node 4
        supernet.choices = supernet.choices.close(("normal", e), 2)
    edges = kept(S3, Staged([], 0).decide(supernet, 0, 0).choices)
    assert edges == {
        **{"2<-0": SKIP, "2<-1": SEP3, "3<-1": SKIP, "3<-2": SKIP},  # 3<-0 could go, since two others were left
        **{"4<-1": SEP3, "4<-2": SEP3, "5<-0": SEP3, "5<-1": SEP3},
    }


def test_the_cell_of_nasbench201_has_few_skips_too() -> None:
    weights = {"cell": np.array([[0.3 - 0.01 * e, 0.6 - 0.02 * e, 0.1, 0.2, 0.0] for e in range(6)])}
    outcome = Staged([], 2).decide(given(NASBENCH201, weights), 0, 0)
    genotype = Genotype.from_choices(NASBENCH201, outcome.choices)
    assert genotype.to_nasbench201() == "|skip_connect~0|+|skip_connect~0|none~1|+|none~0|none~1|none~2|"


@pytest.mark.parametrize("name", SPACES)
def test_every_space_is_decided(name: str) -> None:
    space = SPACES[name]
    supernet, rule = Given(space), Staged([3, 2], 1)
    for point in range(3):
        supernet.choices = rule.decide(supernet, point, 0).choices
    genotype = Genotype.from_choices(space, supernet.choices)
    assert Genotype.from_json(genotype.to_json()) == genotype
    for cell in genotype.cells:
        assert [len(cell.edges_into(n)) for n in cell.nodes] == [space.inputs_per_node or n for n in cell.nodes]
        assert space.none_selectable or all(edge.ops != ("none",) for edge in cell.edges)


# -------------------------------------------------------------------------------------------------------- whole runs


def test_a_search_in_stages_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    words = ["--selection=dartslight.selection.Staged", "--selection.keep=[3,2]", "--selection.max_skips=1"]
    words += ["--trainer.max_epochs=4", "--data.max_pictures=32"]
    whole = fit(tmp_path / "whole", *words)
    with (whole / "decisions.csv").open(newline="") as file:
        rows = [(row["kind"], int(row["epoch"]), row["criterion"]) for row in csv.DictReader(file)]
    assert {row for row in rows if row[2] != "skips"} == {
        ("operations", 1, "weight"),
        ("operations", 3, "weight"),
        ("operation", 4, "weight"),
    }
    ops = [edge.ops[0] for edge in Genotype.load(whole / "genotype.json").cells[0].edges]
    assert ops.count(SKIP) <= 1
    stopped = fit(tmp_path / "stopped", *words, "--trainer.max_steps=2")
    assert main(["fit", f"--ckpt_path={stopped / 'checkpoints' / 'last.ckpt'}", "--trainer.max_steps=-1"]) == 0
    assert decisions(stopped) == decisions(whole)
    assert (stopped / "genotype.json").read_text() == (whole / "genotype.json").read_text()
    assert same_weights(stopped, whole)


def test_the_defaults_and_their_limits_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rule, root = "--selection=dartslight.selection.Staged", f"--trainer.default_root_dir={tmp_path}"
    tiny = ["--data.size=8", "--data.padding=1", "--data.max_pictures=32", "--model.space=darts8"]
    folder = fit(tmp_path, rule, *tiny, "--trainer.max_epochs=3")
    config = (folder / "config.yaml").read_text()
    assert "keep:\n    - 5\n    - 3\n" in config
    capsys.readouterr()
    assert main(["fit", *QUICK, root, rule, "--model.space=darts8"]) == 2
    assert "is for 3 stages, but the search has 2 epochs" in capsys.readouterr().err
    assert newest(tmp_path) == folder
