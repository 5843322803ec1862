"""A budget: the best architecture under it, against an exact solution, and whole runs and ensembles under one."""

import csv
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from children import start_devices, succeed
from test_one_shot import Weighed
from test_strategies_in_training import QUICK, newest

from dartslight.benchmarks import Table
from dartslight.cli import main
from dartslight.criteria import Cost, MultiplyAdds, TableCost
from dartslight.errors import InputError
from dartslight.genotype import Genotype
from dartslight.selection import Budget, FreeDarts, LeaveOneOut, Magnitude, Perturbation, SearchPlan, Sensitivity
from dartslight.selection.average import average, operation_scores
from dartslight.selection.record import read_decisions
from dartslight.spaces import SPACES, Choices, SearchSpace

SPACE = SPACES["nasbench201"]
LATENCY = Path(os.environ.get("DARTSLIGHT_DATA", "")) / "nasbench201_latency.csv.gz"
needs_data = pytest.mark.skipif("DARTSLIGHT_DATA" not in os.environ, reason="DARTSLIGHT_DATA is not set")
RULE = "dartslight.selection"


class Alone(Weighed):
    """A supernet on one device."""

    def on_first(self, compute: Callable[[], Any]) -> Any:
        return compute()


class Priced(Cost):
    """The sum of an integer for each operation on each edge, and of what else is asked for."""

    def __init__(self, space: SearchSpace, target: float, more: Callable[[Genotype], float] = lambda g: 0.0) -> None:
        super().__init__(target)
        rng = np.random.default_rng(1)
        self.prices = {cell.name: rng.integers(1, 20, (len(cell.edges), cell.num_ops)) for cell in space.cells}
        self.space, self.more, self.calls = space, more, 0

    def measure(self, genotype: Genotype) -> float:
        self.calls += 1
        total = 0.0
        for own in genotype.cells:
            cell = self.space.cell(own.name)
            for edge in own.edges:
                e = next(i for i, c in enumerate(cell.edges) if (c.source, c.node) == (edge.source, edge.node))
                total += float(self.prices[own.name][e, cell.edges[e].ops.index(edge.ops[0])])
        return total + self.more(genotype)


def exact(supernet: Weighed, cost: Priced, kept: Choices) -> dict[int, float]:
    """The largest sum of scores by what it costs, over everything that stands on the kept edges, by enumeration."""
    best: dict[int, float] = {0: 0.0}
    for cell in supernet.space.cells:
        for e in kept.kept(cell.name):
            ops = [o for o, op in enumerate(cell.edges[e].ops) if op != "none"]
            grown: dict[int, float] = {}
            for spent, score in best.items():
                for o in ops:
                    total = spent + int(cost.prices[cell.name][e, o])
                    value = score + float(supernet.worth[cell.name][e, o])
                    grown[total] = max(grown.get(total, 0.0), value)
            best = grown
    return best


def worth(supernet: Weighed, choices: Choices) -> float:
    return sum(
        float(supernet.worth[c.name][e, choices.of(c.name)[e][0]])
        for c in supernet.space.cells
        for e in choices.kept(c.name)
    )


@pytest.mark.parametrize("rule", [Sensitivity(), LeaveOneOut()], ids=["sensitivity", "leave one out"])
@pytest.mark.parametrize("space", ["nasbench201", "darts", "s1", "mobile_small"])
def test_the_best_that_can_be_afforded_is_found(space: str, rule: Any) -> None:
    supernet = Alone(SPACES[space], lambda v: 0.0)
    usual = rule.decide(supernet, 0, 0).choices
    best = exact(supernet, Priced(supernet.space, 0.0), usual)
    for target in np.linspace(min(best), max(best), 8).round():
        cost = Priced(supernet.space, float(target))
        outcome = Budget(rule, cost).decide(supernet, 0, 0)
        genotype = Genotype.from_choices(supernet.space, outcome.choices)
        assert cost.measure(genotype) <= target
        assert worth(supernet, outcome.choices) == pytest.approx(max(v for c, v in best.items() if c <= target))
        for cell in supernet.space.cells:
            assert outcome.choices.kept(cell.name) == usual.kept(cell.name)
        assert cost.calls < 1000


def test_the_record_says_what_is_given_up() -> None:
    supernet = Alone(SPACE, lambda v: 0.0)
    usual = Sensitivity().decide(supernet, 0, 0)
    dearest = Priced(SPACE, 0.0).measure(Genotype.from_choices(SPACE, usual.choices))
    same = Budget(Sensitivity(), Priced(SPACE, dearest)).decide(supernet, 0, 0)
    assert same == usual
    less = Budget(Sensitivity(), Priced(SPACE, dearest / 2)).decide(supernet, 0, 0)
    changed = 0
    for before, after in zip(usual.decisions, less.decisions, strict=True):
        (kept,) = [c for c in after.candidates if c.chosen]
        scores = {c.op: c.score_with for c in after.candidates}
        assert scores == {c.op: c.score_with for c in before.candidates}
        if kept == next(c for c in before.candidates if c.chosen):
            assert after == before
            continue
        changed += 1
        assert after.margin == pytest.approx(scores[kept.op] - max(scores.values()))  # type: ignore[type-var]
        assert after.margin < 0  # type: ignore[operator]
        assert after.noise is None
    assert changed > 0
    # Where a node has chosen inputs, their record names what stands on them now.
    supernet = Alone(SPACES["darts"], lambda v: 0.0)
    outcome = Budget(Sensitivity(), Priced(supernet.space, 80.0)).decide(supernet, 0, 0)
    for decision in outcome.decisions:
        cell = supernet.space.cell(decision.cell)
        for c in decision.candidates if decision.kind == "inputs" else ():
            e = next(i for i, edge in enumerate(cell.edges) if (edge.source, edge.node) == (c.source, c.node))
            if c.chosen:
                assert c.op == cell.edges[e].ops[outcome.choices.of(cell.name)[e][0]]


def test_what_does_not_add_up_is_measured_itself() -> None:
    """Whole architectures count: here a cost that falls with every pair of equal neighbours."""

    def pairs(genotype: Genotype) -> float:
        ops = [edge.ops[0] for cell in genotype.cells for edge in cell.edges]
        return -6.0 * sum(a == b for a, b in itertools.pairwise(ops))

    supernet = Alone(SPACE, lambda v: 0.0)
    every = []
    for ops in itertools.product(range(1, 5), repeat=6):
        choices = Choices.everything(SPACE)
        for e, o in enumerate(ops):
            choices = choices.decide(("cell", e), o)
        every.append((choices, Genotype.from_choices(SPACE, choices)))
    cost = Priced(SPACE, 0.0, pairs)
    costs = [cost.measure(genotype) for _, genotype in every]
    for target in np.quantile(costs, [0.05, 0.3, 0.6]):
        budget = Budget(Sensitivity(), Priced(SPACE, float(target), pairs))
        outcome = budget.decide(supernet, 0, 0)
        assert cost.measure(Genotype.from_choices(SPACE, outcome.choices)) <= target
        best = max(worth(supernet, c) for (c, _), spent in zip(every, costs, strict=True) if spent <= target)
        assert worth(supernet, outcome.choices) == pytest.approx(best)


def test_an_affordable_architecture_is_never_refused() -> None:
    """Where costs rise faster than the sum of prices the search begins among what is too dear."""

    class Convex(Priced):
        def measure(self, genotype: Genotype) -> float:
            return super().measure(genotype) ** 2

    supernet = Alone(SPACES["darts"], lambda v: 0.0)
    usual = Convex(supernet.space, 0.0)
    dearest = usual.measure(Genotype.from_choices(supernet.space, Sensitivity().decide(supernet, 0, 0).choices))
    sums = []
    for share in (0.2, 0.4, 0.6, 0.8):
        cost = Convex(supernet.space, share * dearest)
        outcome = Budget(Sensitivity(), cost).decide(supernet, 0, 0)
        assert cost.measure(Genotype.from_choices(supernet.space, outcome.choices)) <= share * dearest
        assert cost.calls < 1000
        sums.append(worth(supernet, outcome.choices))
    best = exact(supernet, usual, Sensitivity().decide(supernet, 0, 0).choices)
    for share, found in zip((0.2, 0.4, 0.6, 0.8), sums, strict=True):
        assert found >= 0.9 * max(v for c, v in best.items() if c**2 <= share * dearest)


@pytest.mark.parametrize("space", ["nasbench201", "darts", "mobile_small"])
def test_the_average_of_one_supernet_is_that_supernet(space: str) -> None:
    """All scores of a supernet are divided by one number, or cell types would be weighed anew."""
    supernet = Alone(SPACES[space], lambda v: 0.0)
    for own in list(supernet.worth.values())[::2]:
        own.mul_(10)
    usual = Sensitivity().decide(supernet, 0, 0)
    target = Priced(supernet.space, 0.0).measure(Genotype.from_choices(supernet.space, usual.choices)) / 2
    budget = Budget(Sensitivity(), Priced(supernet.space, target))
    alone = budget.within(supernet.space, usual, 0)
    together = budget.within(supernet.space, average(supernet.space, [usual.decisions]), 0)
    assert together.choices == alone.choices != usual.choices


@needs_data
def test_a_table_of_latencies_is_kept_to() -> None:
    table, supernet = Table.read(LATENCY), Alone(SPACE, lambda v: 0.0)
    for column, target in (("raspi4", 15.0), ("raspi4", 35.0), ("2080ti_1", 7.5)):
        budget = Budget(Sensitivity(), TableCost(str(LATENCY), column, target))
        arch = Genotype.from_choices(SPACE, budget.decide(supernet, 0, 0).choices).to_nasbench201()
        assert table.value(arch, column) <= target


def test_what_cannot_be_is_refused() -> None:
    supernet = Alone(SPACE, lambda v: 0.0)
    with pytest.raises(InputError, match=r"No architecture was found that costs at most 1 Priced; the cheapest of"):
        Budget(Sensitivity(), Priced(SPACE, 1.0)).decide(supernet, 0, 0)
    with pytest.raises(InputError, match="FreeDarts needs none; give a rule such as Sensitivity"):
        Budget(FreeDarts(), Priced(SPACE, 1.0))
    with pytest.raises(InputError, match="would forget that of a Budget as its rule"):
        Budget(Budget(Sensitivity(), Priced(SPACE, 1.0)), Priced(SPACE, 1.0))
    with pytest.raises(InputError, match="Magnitude decides slots of nodes"):
        Budget(Magnitude(), Priced(SPACE, 1.0)).schedule(SearchPlan(SPACES["unas"], 4, draws_inputs=True))
    with pytest.raises(InputError, match="cost_samples is 3"):
        Budget(Sensitivity(), Priced(SPACE, 1.0), cost_samples=3)
    with pytest.raises(InputError, match=r"Perturbation decides in \d+ steps; give a rule that decides in one"):
        Budget(Perturbation(), Priced(SPACE, 1.0)).schedule(SearchPlan(SPACE, 4))
    with pytest.raises(InputError, match="the rule has scored none"):
        Budget(Magnitude(), Priced(SPACE, 1.0)).within(SPACE, decided_without_scores(), 0)
    assert Budget(Magnitude(), Priced(SPACE, 1.0)).schedule(SearchPlan(SPACE, 4)).points == (4,)
    # What can be afforded needs no scores.
    assert Budget(Magnitude(), Priced(SPACE, 1e9)).within(SPACE, decided_without_scores(), 0).choices


def test_two_costs_are_told_apart() -> None:
    """A run goes on with the cost that it began with."""
    small, large = MultiplyAdds(3, 8, 5.0), MultiplyAdds(20, 36, 5.0, size=224)
    assert repr(Budget(Sensitivity(), small)) == repr(Budget(Sensitivity(), MultiplyAdds(3, 8, 5.0)))
    assert len({repr(Budget(Sensitivity(), cost)) for cost in (small, large, MultiplyAdds(3, 8, 5.0000001))}) == 3


def decided_without_scores() -> Any:
    outcome = Sensitivity().decide(Alone(SPACE, lambda v: 0.0), 0, 0)
    return type(outcome)(outcome.choices, ())


# --------------------------------------------------------------------------------------------------------- whole runs


def budget(folder: Path, target: float) -> list[str]:
    """The options of a budget in a table whose cost is how many convolutions of 3x3 an architecture has."""
    table = folder / "convolutions.csv"
    if not table.exists():
        ops = list(SPACE.cells[0].edges[0].ops)
        with table.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["arch", "convolutions"])
            for own in itertools.product(ops, repeat=6):
                parts = iter(own)
                nodes = ["|" + "|".join(f"{next(parts)}~{i}" for i in range(n)) + "|" for n in (1, 2, 3)]
                writer.writerow(["+".join(nodes), own.count("nor_conv_3x3")])
    return [
        f"--selection={RULE}.Budget",
        f"--selection.rule={RULE}.Sensitivity",
        "--selection.rule.source=search",
        "--selection.cost=dartslight.criteria.TableCost",
        f"--selection.cost.table={table}",
        "--selection.cost.column=convolutions",
        f"--selection.cost.target={target}",
    ]


def convolutions(folder: Path) -> int:
    return Genotype.load(folder / "genotype.json").to_nasbench201().count("nor_conv_3x3")


def test_searches_and_ensembles_keep_to_a_budget(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    own = [*QUICK, "--model.alpha_init_std=0"]
    words = ["ensemble", "--seeds", "0", "1", f"--folder={tmp_path / 'both'}", *own, *budget(tmp_path, 1)]
    assert main(words) == 0
    said = capfd.readouterr().out
    assert said.count("Budget: convolutions may be 1 and is ") == 3
    members = [tmp_path / "both" / f"seed_{seed}" / "version_0" for seed in (0, 1)]
    free = average(SPACE, [read_decisions(m / "decisions.csv") for m in members])
    cells = SPACE.cells[0]
    scores = operation_scores(cells, free.decisions)
    together = Genotype.load(tmp_path / "both" / "genotype.json")
    ops = [edge.ops[0] for edge in together.cells[0].edges]
    best = max(
        (sum(scores[e, o] for e, o in enumerate(picks)), picks)
        for picks in itertools.product(range(1, 5), repeat=6)
        if picks.count(3) <= 1
    )
    assert ops == [cells.edges[e].ops[o] for e, o in enumerate(best[1])]
    for member in members:
        assert convolutions(member) <= 1
    page = tmp_path / "page.html"
    assert main(["report", str(members[0]), "-o", str(page)]) == 0
    assert "gives up 0." in page.read_text()
    # Decided anew without room for any, from the same supernet.
    supernet = f"--supernet={members[0] / 'checkpoints' / 'search.ckpt'}"
    assert main(["select", supernet, *budget(tmp_path, 0), f"--trainer.default_root_dir={tmp_path / 'none'}"]) == 0
    assert convolutions(newest(tmp_path / "none")) == 0


def test_a_table_of_another_space_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["fit", *QUICK, "--model.space=darts", "--model.num_cells=3", *budget(tmp_path, 1)]
    assert main([*words, f"--trainer.default_root_dir={tmp_path / 'runs'}"]) == 2
    assert "TableCost looks architectures of the space 'nasbench201' up" in capfd.readouterr().err


@pytest.mark.ddp
@pytest.mark.parametrize("target", [1, 0])
def test_the_first_device_measures_for_all(tmp_path: Path, forks: Any, target: int) -> None:
    words = ["fit", *QUICK, f"--trainer.default_root_dir={tmp_path}", "--trainer.accelerator=cpu"]
    words += ["--trainer.devices=2", "--data.batch_size=8", "--model.space=nasbench201", *budget(tmp_path, target)]
    words += ["--selection.cost=ddp_probe.Noted", f"--selection.cost.folder={tmp_path}"]
    succeed(start_devices(forks, 2, tmp_path, main, words))
    assert [path.name for path in tmp_path.glob("measured_*")] == ["measured_0"]
    assert convolutions(newest(tmp_path)) <= target
    said = [(tmp_path / f"log_2_{rank}").read_text().count("Budget: convolutions may be") for rank in range(2)]
    assert said == [1, 0]
