"""Searches whose supernet grows: the arithmetic of stages, widening, and whole runs that are stopped on the way."""

import json
import math
from pathlib import Path

import pytest
import torch
from test_kill import result
from test_strategies_in_training import MAGNITUDE, TINY, fit, newest

from dartslight.cli import main
from dartslight.errors import InputError
from dartslight.modules.timetable import Stage, Timetable, check_stages
from dartslight.nets import OPERATIONS, Drop, Setting, Source, Supernet, widen
from dartslight.nets.weighted_sum import value
from dartslight.selection import CurvatureStop, Magnitude, Perturbation, Rule, SearchPlan, Sgas, Staged
from dartslight.spaces import SPACES, Choices
from dartslight.strategies import Architecture, Softmax

GROWING = [
    "--model.space=s2",
    f"--model.stages={json.dumps([{'num_cells': 3, 'skip_dropout': 0.3}, {'num_cells': 5, 'skip_dropout': 0.6}])}",
    "--model.alpha_warmup_epochs=1",
    "--model.min_learning_rate=0",
    "--trainer.max_epochs=4",
    "--data.max_pictures=32",
    *TINY,
    MAGNITUDE,
]
WIDENING = [
    "--model.relaxation=dartslight.strategies.Dirichlet",
    "--model.init_channels=8",
    "--model.stages="
    + json.dumps(
        [{"num_cells": 3, "partial_channels": 4}, {"num_cells": 3, "partial_channels": 2, "start": "widened"}]
    ),
    "--trainer.max_epochs=4",
    "--data.max_pictures=32",
    MAGNITUDE,
]


def test_the_epochs_of_a_search_are_shared_equally() -> None:
    timetable = Timetable([Stage(5), Stage(11), Stage(17)], 75)
    assert timetable.ends == (25, 50, 75)
    assert [timetable.stage(e) for e in (0, 24, 25, 74, 75, 90)] == [0, 0, 1, 2, 2, 2]
    assert [timetable.place(e) for e in (0, 24, 25, 49, 50, 80)] == [0, 24, 0, 24, 0, 30]
    with pytest.raises(InputError, match="cannot be divided into 3 stages"):
        Timetable([Stage(3)] * 3, 10)
    assert [e for e in range(76) if timetable.begins_stage(e)] == [25, 50]
    assert timetable.progress(30) == 0.4
    assert timetable.progress(80) == 1
    assert [timetable.position(e) for e in (0, 37, 74, 75)] == [0, 0.5, 1, 1]
    assert Timetable([Stage(5)], 1).position(0) == 0


def test_one_learning_rate_schedule_runs_through_widened_stages() -> None:
    """P-DARTS begins anew in each stage; DrNAS has one cosine over all of its epochs."""
    anew, widened = Stage(3, 4), Stage(3, 2, start="widened")
    assert [Timetable([anew, anew], 8).training_progress(e) for e in range(8)] == [0, 0.25, 0.5, 0.75] * 2
    assert [Timetable([anew, widened], 8).training_progress(e) for e in range(8)] == [e / 8 for e in range(8)]
    mixed = Timetable([anew, widened, anew], 6)
    assert [mixed.training_progress(e) for e in range(6)] == [0, 0.25, 0.5, 0.75, 0, 0.5]


def test_parameters_are_untaught_until_a_warm_up_is_over() -> None:
    anew, widened = Stage(3, 4), Stage(3, 2, start="widened")
    assert Timetable([anew], 5).untaught == set()
    assert Timetable([anew], 5, alpha_warmup_epochs=2).untaught == {1, 2}
    assert Timetable([anew, anew], 10, 2).untaught == {1, 2, 6, 7}
    assert Timetable([anew, widened], 10, 2).untaught == {1, 2}
    assert [e for e in range(10) if Timetable([anew, widened], 10, 2).teaches(e)] == [2, 3, 4, 7, 8, 9]
    assert 5 in Timetable([anew], 5, 9).untaught


@pytest.mark.parametrize(
    "rule", [Magnitude(), Perturbation(criterion="weight"), Staged([]), CurvatureStop(min_epoch=20)]
)
def test_rules_that_go_by_weights_refuse_those_of_a_warm_up(rule: Rule) -> None:
    space = SPACES["nasbench201"]
    rule.schedule(SearchPlan(space, 50, (50,), untaught=frozenset(range(1, 20))))
    with pytest.raises(InputError, match="after 50 epochs, but a warm-up leaves them at their random start"):
        rule.schedule(SearchPlan(space, 50, (50,), untaught=frozenset(range(1, 51))))


def test_rules_that_decide_on_the_way_refuse_points_in_a_warm_up() -> None:
    space = SPACES["nasbench201"]
    with pytest.raises(InputError, match="SGAS goes by the mixing weights after 10 epochs"):
        Sgas().schedule(SearchPlan(space, 50, (50,), untaught=frozenset(range(1, 11))))
    with pytest.raises(InputError, match="Staged goes by the mixing weights after 25 epochs"):
        Staged([3]).schedule(SearchPlan(space, 50, (50,), untaught=frozenset(range(1, 26))))
    # The first end is after 22 epochs, with the architecture of epoch 10.
    CurvatureStop().schedule(SearchPlan(space, 50, (50,), untaught=frozenset(range(1, 10))))
    with pytest.raises(InputError, match="CurvatureStop goes by the mixing weights after 10 epochs"):
        CurvatureStop().schedule(SearchPlan(space, 50, (50,), untaught=frozenset(range(1, 16))))


def test_dropout_falls_linearly_then_exponentially() -> None:
    """P-DARTS: rate * (E - 1 - e) / E in the 10 epochs of warm-up, then rate * exp(-0.2 (e - 10)), for E = 25."""
    timetable = Timetable([Stage(5, skip_dropout=0.1), Stage(11, skip_dropout=0.4)], 50, alpha_warmup_epochs=10)
    assert timetable.skip_dropout(0) == pytest.approx(0.1 * 24 / 25)
    assert timetable.skip_dropout(9) == pytest.approx(0.1 * 15 / 25)
    assert timetable.skip_dropout(10) == pytest.approx(0.1)
    assert timetable.skip_dropout(25 + 15) == pytest.approx(0.4 * math.exp(-1))
    assert timetable.skip_dropout(50) == 0


def test_dropout_takes_numbers_of_skip_connections_alone() -> None:
    torch.manual_seed(0)
    space = SPACES["nasbench201"]
    cell = Supernet(space, 3, 4, 10, terms=("auxiliary_skip",)).blocks[0]
    x = torch.randn(8, 4, 16, 16).contiguous(memory_format=torch.channels_last)
    weights = [[torch.full((4,), w) for w in (0.5,) * 5 + (0.0,)] for _ in range(6)]
    edge = Choices.everything(space).drop([("cell", e) for e in range(6) if e != 3])  # from the first node to the last

    def output(op: int, skip: float) -> torch.Tensor:
        return cell([Source(x)], weights, edge.decide(("cell", 3), op).of("cell"), Drop(skip=skip)).x

    dropped = output(1, 0.4)
    assert float((dropped == 0).float().mean()) == pytest.approx(0.4, abs=0.02)
    torch.testing.assert_close(dropped[dropped != 0], (0.5 / 0.6 * x)[dropped != 0])
    for op in (2, 3, 4):
        assert torch.equal(output(op, 0.4), output(op, 0.0))
    weights[3][5].fill_(0.5)
    torch.testing.assert_close(output(0, 0.4), 0.5 * x)  # the auxiliary skip is no operation
    cell.eval()
    torch.testing.assert_close(output(1, 0.4), x)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "empty list"),
        ([Stage(3, skip_dropout=1.0)], "from 0 to below 1"),
        ([Stage(3), Stage(3, partial_channels=2)], "all of them a partial_channels above 1"),
        ([Stage(0)], "num_cells is 0"),
        ([Stage(3, partial_channels=0)], "partial_channels is 0"),
        ([Stage(3, start="widened")], "first stage"),
        ([Stage(3, 2), Stage(3, 4, start="widened")], "no larger partial_channels"),
        ([Stage(3), Stage(5, start="widened")], "equal num_cells"),
    ],
)
def test_stages_that_cannot_follow_each_other_are_refused(stages: list[Stage], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_stages(stages)


def test_a_widened_factorized_reduce_keeps_statistics_and_channels_together() -> None:
    torch.manual_seed(0)
    narrow, wide = (OPERATIONS["skip_connect"](Setting(c, 2, False, True, True)).double() for c in (5, 9))
    x = torch.randn(4, 5, 8, 8, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    value(narrow(Source(x), None))
    widen(wide, narrow, torch.Generator().manual_seed(1))
    narrow.eval()
    wide.eval()
    drawn = torch.Generator().manual_seed(1)
    # In the order of the tensors: the channels of the even pixels, of the input, of the odd pixels.
    even, inputs, odd = (
        torch.cat([torch.arange(n), torch.randint(n, (w - n,), generator=drawn)]) for n, w in ((2, 4), (5, 9), (3, 5))
    )
    copied = x[:, inputs].contiguous(memory_format=torch.channels_last)
    expected, found = value(narrow(Source(x), None)), value(wide(Source(copied), None))
    torch.testing.assert_close(found, expected[:, torch.cat([even, odd + 2])], rtol=1e-10, atol=1e-12)


def test_widening_takes_the_momentum_along() -> None:
    torch.manual_seed(0)
    narrow, wide = (OPERATIONS["nor_conv_3x3"](Setting(c, 1, False, True, True)).double() for c in (3, 5))
    optimizer = torch.optim.SGD([*narrow.parameters(), *wide.parameters()], 0.1, momentum=0.9)
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    value(narrow(Source(x), None)).square().mean().backward()
    optimizer.step()
    (old,), (new,) = narrow.parameters(), wide.parameters()
    before = optimizer.state[old]["momentum_buffer"].clone()
    widen(wide, narrow, torch.Generator().manual_seed(1), optimizer)
    of = torch.cat([torch.arange(3), torch.randint(3, (2,), generator=torch.Generator().manual_seed(1))])
    assert torch.equal(optimizer.state[new]["momentum_buffer"], before[of][:, of])
    assert old not in optimizer.state


@pytest.mark.parametrize("name", ["sep_conv_3x3", "dil_conv_5x5", "nor_conv_3x3", "avg_pool_3x3"])
def test_a_widened_operation_computes_the_same(name: str) -> None:
    torch.manual_seed(0)
    narrow, wide = (OPERATIONS[name](Setting(c, 1, False, True, True)).double() for c in (3, 5))
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    for _ in range(3):
        narrow(Source(x), None)
    widen(wide, narrow, torch.Generator().manual_seed(1))
    of = torch.cat([torch.arange(3), torch.randint(3, (2,), generator=torch.Generator().manual_seed(1))])
    copied = x[:, of].contiguous(memory_format=torch.channels_last)
    expected, found = value(narrow(Source(x), None)), value(wide(Source(copied), None))
    torch.testing.assert_close(found, expected[:, of], rtol=1e-10, atol=1e-12)


def test_a_widened_supernet_keeps_what_has_no_new_channels() -> None:
    torch.manual_seed(0)
    narrow, wide = (Supernet(SPACES["nasbench201"], 3, 8, 10, partial_channels=k) for k in (4, 2))
    widen(wide, narrow, torch.Generator().manual_seed(0))
    assert torch.equal(wide.stem[0].weight, narrow.stem[0].weight)
    assert torch.equal(wide.classifier.weight, narrow.classifier.weight)
    choices = Choices.everything(SPACES["nasbench201"])
    mixing = Architecture(SPACES["nasbench201"], Softmax(), 1.0, terms=wide.terms)(choices)
    assert torch.isfinite(wide(torch.randn(4, 3, 8, 8), mixing, choices)).all()


@pytest.mark.parametrize("options", [GROWING, WIDENING], ids=["anew", "widened"])
def test_a_growing_search_goes_on_to_the_same_bits(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = result(fit(tmp_path / "whole", *options, "--checkpoint_every_n_batches=1"))
    for stop in (3, 4, 5):  # within the first stage, on its last batch, within the second
        root = tmp_path / str(stop)
        fit(root, *options, "--checkpoint_every_n_batches=1", f"--trainer.max_steps={stop}")
        last = newest(root) / "checkpoints" / "last.ckpt"
        assert main(["fit", f"--ckpt_path={last}", "--trainer.max_steps=-1"]) == 0
        assert result(newest(root)) == expected


def test_each_stage_trains_its_own_supernet_from_its_own_start(tmp_path: Path) -> None:
    states = {}
    for epochs in (2, 4):
        folder = fit(tmp_path / str(epochs), *GROWING, "--selection=null", f"--trainer.max_steps={epochs}")
        states[epochs] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    first = [k for k in states[2] if k.startswith("supernets.0.") and k.endswith("weight")]
    second = [k for k in states[2] if k.startswith("supernets.1.") and k.endswith("weight")]
    assert all(torch.equal(states[2][k], states[4][k]) for k in first)
    assert any(not torch.equal(states[2][k], states[4][k]) for k in second)
    assert len(second) > len(first)
    alphas = [states[e]["architecture.alphas.normal"] for e in (2, 4)]
    assert not torch.equal(*alphas)  # drawn anew
