"""Searches of drawn architectures (UNAS): the whole architecture step against enumeration, and whole runs."""

import csv
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from children import start_devices, succeed
from test_ddp import words_for
from test_strategies import batch_of, search
from test_strategies_in_training import QUICK, newest
from torch import Tensor, nn

from dartslight.cli import main
from dartslight.criteria import Cost, CrossEntropy, GeneralisationGap, MultiplyAdds, TableCost
from dartslight.data import Batch
from dartslight.errors import InputError
from dartslight.genotype import Genotype
from dartslight.modules import SearchModule
from dartslight.spaces.nasbench201 import NASBENCH201_OPS
from dartslight.strategies import (
    AdversarialSmoothing,
    Estimator,
    FirstOrder,
    GumbelSoftmax,
    Rebar,
    Reinforce,
    Sampled,
    ScoreFunction,
)

MILLISECONDS = dict(zip(NASBENCH201_OPS, (0.0, 1.0, 3.0, 9.0, 2.0), strict=True))
"""What an operation costs in the table of these tests, which is linear."""


class Convolutions(Cost):
    """The number of convolutions, squared: no sum over edges."""

    def measure(self, genotype: Genotype) -> float:
        (cell,) = genotype.cells
        return float(sum("conv" in edge.ops[0] for edge in cell.edges) ** 2)


# ------------------------------------------------------------------------------------------------------ the step


def step_of(criteria: list[Any], estimator: Estimator, per_batch: bool = False) -> SearchModule:
    """A search with two undecided edges of two and three operations.

    Its pictures do not see each other, unless they share an architecture.
    """
    gradient = ScoreFunction(estimator, criteria, cost_samples=400, surrogate_samples=200)
    relaxation = Sampled(per_batch=per_batch)
    module = search("nasbench201", init_channels=2, relaxation=relaxation, gradient=gradient, alpha_init_std=0.7)
    choices = module.choices
    for e, op in enumerate((3, 1, 3, 1)):
        choices = choices.decide(("cell", e), op)
    for op in (1, 2, 4):
        choices = choices.close(("cell", 4), op)
    module.choices = choices.close(("cell", 5), 0).close(("cell", 5), 2)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d) and not per_batch:
            layer.eval()
    return module


def pairs(count: int) -> dict[str, Batch]:
    """Two pairs of pictures, so many times."""
    found = {}
    for seed, part in enumerate(("train", "val")):
        two = batch_of(2, seed)
        images, labels = two.images[..., :4, :4].repeat(count, 1, 1, 1), two.labels.repeat(count)
        found[part] = two._replace(images=images, labels=labels)
    return found


def estimate(module: SearchModule, batch: Mapping[str, Batch], seed: int, step: int) -> Tensor:
    torch.manual_seed(seed)
    problem = module.passes.expectation(batch, seed, step, list, lambda compute: compute())
    (gradient,) = module.gradient(problem)
    return gradient


def enumerated(module: SearchModule, step: int) -> Tensor:
    """The derivative of the sum over all architectures of probability times criteria."""
    batch, alphas = pairs(1), module.architecture.alphas["cell"]
    leaf = alphas.detach().clone().requires_grad_()
    options = [list(columns) for columns in module.choices.of("cell")]
    expected = torch.zeros(())
    for columns in itertools.product(*options):
        shares = [
            torch.softmax(leaf[e, own], dim=0)[own.index(c)]
            for e, (own, c) in enumerate(zip(options, columns, strict=True))
        ]
        mixing = {"cell": nn.functional.one_hot(torch.tensor(columns), 5).double()}
        losses = {}
        for part, own in batch.items():
            logits = module.supernet(own.images, mixing)
            losses[part] = nn.functional.cross_entropy(logits, own.labels, reduction="none")
        value = (losses["train"] + 0.5 * (losses["val"] - losses["train"]).abs()).mean()
        count = sum("conv" in NASBENCH201_OPS[c] for c in columns)
        value = value + 0.3 * min(step / 4, 1.0) * max(0.0, count**2 - 5.0)
        expected = expected + torch.stack(shares).prod() * value.detach()
    return torch.autograd.grad(expected, leaf)[0]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("estimator", "is_right"), [(Rebar, True), (Reinforce, True), (GumbelSoftmax, False)])
def test_the_whole_step_is_the_gradient_over_all_architectures(estimator: type[Estimator], is_right: bool) -> None:
    criteria = [GeneralisationGap(0.5), Convolutions(target=5.0, coefficient=0.3, warmup_steps=4)]
    module, step = step_of(criteria, estimator()), 2
    batch = pairs(100)
    with torch.no_grad():
        module.supernet(batch["train"].images, module.mixing(module.choices), module.choices)
    found = torch.stack([estimate(module, batch, seed, step) for seed in range(60)])
    true = enumerated(module, step)
    undecided = [(4, 0), (4, 3), (5, 1), (5, 3), (5, 4)]
    mask = torch.zeros_like(true, dtype=torch.bool)
    mask[tuple(zip(*undecided, strict=True))] = True
    assert not found[:, ~mask].any()
    assert true[mask].abs().min() > 1e-3
    errors = (found.mean(dim=0) - true)[mask] * len(found) ** 0.5 / found.std(dim=0)[mask]
    assert (errors.abs().max() < 4) == is_right, errors


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("estimator", [Rebar, Reinforce])
def test_one_architecture_for_a_batch_is_right_with_the_statistics_of_the_batch(estimator: type[Estimator]) -> None:
    """What each picture does to the others is part of the loss, since all have the same architecture."""
    module = step_of([GeneralisationGap(0.5)], estimator(), per_batch=True)
    module.train()
    batch = pairs(3)
    count = 800 if estimator is Rebar else 2500
    found = torch.stack([estimate(module, batch, seed, step=0) for seed in range(count)])
    true = enumerated(module, step=0)  # at which costs count nothing yet; pictures that come thrice change no mean
    mask = true.abs() > 1e-4
    assert mask.sum() == 5
    assert not found[:, ~mask].any()
    errors = (found.mean(dim=0) - true)[mask] * count**0.5 / found.std(dim=0)[mask]
    assert errors.abs().max() < 4, errors


@pytest.mark.usefixtures("float64")
def test_one_architecture_for_a_batch_is_the_same_in_both_steps_and_its_hard_pass_computes_what_was_drawn() -> None:
    module = step_of([CrossEntropy()], Rebar(), per_batch=True)
    module.train()
    batch = {"train": batch_of(6), "val": batch_of(4, seed=1)}
    passes = module.passes
    torch.manual_seed(3)
    problem = passes.expectation(batch, 0, 0, list, lambda compute: compute())
    (own,) = problem.draws.values()
    assert own.hard.shape == (1, 6, 5)
    seen: list[Any] = []
    module.supernet.register_forward_pre_hook(lambda net, inputs: seen.append(inputs))
    assert problem.discrete({"cell": own.hard})("val").shape == (4,)
    assert problem.relaxed({"cell": own.relaxed})("val").shape == (4,)
    (_, hard, drawn), (_, relaxed, everything) = seen
    assert torch.equal(hard["cell"], own.hard[0])
    assert [list(columns) for columns in drawn.of("cell")] == [[int(row.argmax())] for row in own.hard[0]]
    assert torch.equal(relaxed["cell"], own.relaxed[0])
    assert everything == module.choices
    mixing, choices = passes.weight_sample(batch["train"], None)
    assert choices == module.choices
    assert torch.equal(mixing["cell"], own.relaxed[0])
    assert not mixing["cell"].requires_grad


@pytest.mark.usefixtures("float64")
def test_both_steps_see_the_same_draws_and_hard_passes_leave_statistics_alone() -> None:
    module = step_of([CrossEntropy()], Rebar())
    module.train()
    batch = {"train": batch_of(6), "val": batch_of(4, seed=1)}  # of a last pair of batches
    passes = module.passes
    torch.manual_seed(3)
    problem = passes.expectation(batch, 0, 0, list, lambda compute: compute())
    before = {name: buffer.clone() for name, buffer in module.supernet.named_buffers()}
    hard = problem.discrete({cell: own.hard for cell, own in problem.draws.items()})("val")
    assert hard.shape == (4,)
    assert all(torch.equal(before[name], buffer) for name, buffer in module.supernet.named_buffers())
    relaxed = problem.relaxed({cell: own.relaxed for cell, own in problem.draws.items()})("val")
    assert any(not torch.equal(before[name], buffer) for name, buffer in module.supernet.named_buffers())
    assert not torch.equal(hard, relaxed)
    mixing, choices = passes.weight_sample(batch["train"], None)
    assert choices == module.choices
    assert not mixing["cell"].requires_grad
    assert torch.equal(mixing["cell"][:4], problem.draws["cell"].relaxed)
    assert mixing["cell"].shape == (6, 6, 5)
    assert mixing["cell"][:, 4].unique(dim=0).shape[0] == 6  # each picture has its own


def test_the_rates_of_the_paper() -> None:
    module = search(
        "nasbench201",
        epochs=10,
        weight_optimizer="adam",
        learning_rate=3e-4,
        min_learning_rate=1e-4,
        alpha_learning_rate=1e-3,
        alpha_min_learning_rate=3e-4,
        reference_batch_size=64,
    )
    module._trainer.datamodule.batch_size = 32
    weights, alphas = module.configure_optimizers()
    assert type(weights) is type(alphas) is torch.optim.Adam
    assert weights.defaults["betas"] == (0.9, 0.999)
    assert module.learning_rate_at(0) == pytest.approx(1.5e-4)
    assert module.alpha_learning_rate_at(0) == pytest.approx(5e-4)
    assert module.alpha_learning_rate_at(5) == pytest.approx(3.25e-4)
    assert module.alpha_learning_rate_at(12) == pytest.approx(1.5e-4)
    module.reference_batch_size = None
    assert module.learning_rate_at(0) == pytest.approx(3e-4)
    assert search("nasbench201").alpha_learning_rate_at(7) == 3e-4


SCORES: dict[str, Any] = {"gradient": ScoreFunction()}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SearchModule(gradient=ScoreFunction()), "Softmax has no hard and relaxed samples.*use Sampled"),
        (lambda: SearchModule(relaxation=Sampled()), "FirstOrder does not learn from; use ScoreFunction or Fixed"),
        (lambda: SearchModule(relaxation=Sampled(), edge_normalisation=True, **SCORES), "edge_normalisation gives"),
        (lambda: SearchModule(relaxation=Sampled(), smoothing=AdversarialSmoothing(), **SCORES), "smoothing takes"),
        (lambda: SearchModule(relaxation=Sampled(), compile="default", **SCORES), "compile takes one set"),
        (lambda: Sampled(0.0), "temperature is 0.0"),
        (lambda: Sampled(soften=-1.0), "soften is -1"),
        (lambda: ScoreFunction(criteria=[Convolutions(1.0)]), "criteria has no loss of the network"),
        (lambda: ScoreFunction(cost_samples=0), "cost_samples is 0"),
        (lambda: ScoreFunction(surrogate_samples=1), "surrogate_samples is 1"),
        (lambda: SearchModule(weight_optimizer="lion"), "weight_optimizer is 'lion'"),
        (lambda: SearchModule(weight_optimizer="adam", nesterov=True), "nesterov needs the momentum of SGD"),
        (lambda: SearchModule(reference_batch_size=0), "reference_batch_size is 0"),
        (lambda: SearchModule(alpha_min_learning_rate=-1.0), "alpha_min_learning_rate is -1"),
    ],
)
def test_what_does_not_go_together_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_costs_need_a_space_whose_draws_are_architectures(table: Path) -> None:
    looked_up = ScoreFunction(criteria=[CrossEntropy(), TableCost(str(table), "phone", 20.0)])
    with pytest.raises(InputError, match=r"TableCost looks architectures of the space 'nasbench201' up.*'s2'"):
        SearchModule("s2", relaxation=Sampled(), gradient=looked_up)
    counted = ScoreFunction(criteria=[CrossEntropy(), MultiplyAdds(3, 4, 1.0)])
    with pytest.raises(InputError, match=r"MultiplyAdds measures whole architectures.*'darts' keep only 2 inputs"):
        SearchModule("darts", relaxation=Sampled(), gradient=counted)
    assert FirstOrder().seen() == {}


# ------------------------------------------------------------------------------------------------------ whole runs


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every architecture of NAS-Bench-201 costs, a sum over its edges."""
    path = tmp_path_factory.mktemp("table") / "latency.csv"
    with path.open("w") as file:
        file.write("arch,phone\n")
        for ops in itertools.product(NASBENCH201_OPS, repeat=6):
            groups = (ops[:1], ops[1:3], ops[3:])
            arch = "+".join("".join(f"|{op}~{i}" for i, op in enumerate(group)) + "|" for group in groups)
            file.write(f"{arch},{sum(MILLISECONDS[op] for op in ops)}\n")
    return path


def words(table: Path, estimator: str, cost: str = "dartslight.criteria.TableCost", **given: Any) -> list[str]:
    """A configuration with a latency, beside the quick search on digits."""
    arguments = {"table": str(table), "column": "phone", "target": 10.0, **given}
    gradient = {
        "class_path": "dartslight.strategies.ScoreFunction",
        "init_args": {
            "estimator": {"class_path": f"dartslight.strategies.{estimator}"},
            "criteria": [
                {"class_path": "dartslight.criteria.GeneralisationGap"},
                {"class_path": cost, "init_args": arguments},
            ],
            "cost_samples": 8,
            "surrogate_samples": 200,
        },
    }
    model = {"init_args": {"relaxation": {"class_path": "dartslight.strategies.Sampled"}, "gradient": gradient}}
    selection = {"class_path": "dartslight.selection.Magnitude"}
    path = table.parent / f"{estimator}_{cost}_{'_'.join(map(str, given.values())).replace('/', '.')}.yaml"
    path.write_text(yaml.safe_dump({"model": model, "selection": selection}))
    return [*QUICK, "--config", str(path)]


def same(a: Path, b: Path) -> bool:
    x, y = (torch.load(p / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for p in (a, b))
    # What was never fitted is not a number.
    return x.keys() == y.keys() and all(torch.allclose(x[k], y[k], rtol=0, atol=0, equal_nan=True) for k in x)


@pytest.mark.parametrize("estimator", ["Rebar", "Reinforce"])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(table: Path, tmp_path: Path, estimator: str) -> None:
    own = ["fit", *words(table, estimator, warmup_steps=6), "--checkpoint_every_n_batches=1"]
    own += ["--model.track_statistics=true", "--model.weight_optimizer=adam", "--model.learning_rate=0.001"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main([*own, f"--trainer.default_root_dir={whole}"]) == 0
    for more in (["--trainer.max_steps=3"], [f"--ckpt_path={stopped}/version_0/checkpoints/last.ckpt"]):
        assert main([*own, f"--trainer.default_root_dir={stopped}", *more]) == 0
    assert same(newest(whole), newest(stopped))
    state = torch.load(newest(whole) / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    if estimator == "Reinforce":
        assert state["gradient.of_losses._total"] > 0
    else:
        assert state["gradient.surrogates.0._error"] < 1  # the table is linear, but the ridge shrinks its numbers
    assert Genotype.load(newest(whole) / "genotype.json").space == "nasbench201"
    with (newest(whole) / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(0 < float(row["cost/phone"]) < 54 for row in rows)
    assert ("surrogate_error/phone" in rows[0]) == (estimator == "Rebar")


@pytest.mark.parametrize("estimator", ["Rebar", "Reinforce", "GumbelSoftmax"])
def test_a_latency_moves_the_expected_latency(table: Path, tmp_path: Path, estimator: str) -> None:
    costs = torch.tensor([MILLISECONDS[op] for op in NASBENCH201_OPS])
    expected = []
    for coefficient in (0.0, 5.0):
        own = words(table, estimator, coefficient=coefficient)
        own += ["--model.alpha_learning_rate=0.1", f"--trainer.default_root_dir={tmp_path / str(coefficient)}"]
        assert main(["fit", *own]) == 0
        folder = newest(tmp_path / str(coefficient))
        state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        shares = torch.softmax(state["architecture.alphas.cell"], dim=1)
        expected.append(float((shares @ costs).sum()))
    assert expected[1] < expected[0] - 2


def test_the_noise_of_an_estimate_is_seen_and_changes_nothing(table: Path, tmp_path: Path) -> None:
    variances = {}
    for estimator in ("Rebar", "Reinforce"):
        own = ["fit", *words(table, estimator), "--model.track_statistics=true"]
        noise = ["--trainer.callbacks=dartslight.callbacks.EstimateNoise", "--trainer.callbacks.draws=20"]
        for name, more in (("plain", []), ("watched", noise)):
            assert main([*own, *more, f"--trainer.default_root_dir={tmp_path / estimator / name}"]) == 0
        plain, watched = (newest(tmp_path / estimator / name) for name in ("plain", "watched"))
        assert same(plain, watched)
        with (watched / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert all(float(row["estimate/squared_length"]) > 0 for row in rows)
        variances[estimator] = float(rows[-1]["estimate/variance"])
    assert variances["Rebar"] < variances["Reinforce"]


def test_the_noise_needs_an_estimate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise = ["--trainer.callbacks=dartslight.callbacks.EstimateNoise", f"--trainer.default_root_dir={tmp_path}"]
    assert main(["fit", *QUICK, *noise]) == 2
    assert "EstimateNoise watches a search whose gradient is a ScoreFunction" in capsys.readouterr().err


@pytest.mark.ddp
@pytest.mark.parametrize("estimator", ["Rebar", "Reinforce"])
def test_the_first_of_two_processes_measures_for_both(table: Path, tmp_path: Path, forks: Any, estimator: str) -> None:
    own = words(table, estimator, "ddp_probe.Noted", folder=str(tmp_path))[len(QUICK) :]
    if estimator == "Reinforce":
        own += ["--trainer.callbacks+=dartslight.callbacks.EstimateNoise", "--trainer.callbacks.draws=2"]
        own += ["--trainer.callbacks+=dartslight.callbacks.FreeStart"]
    command = words_for(tmp_path, 2, "--model.track_statistics=true", "--data.max_pictures=64", *own)
    succeed(start_devices(forks, 2, tmp_path, main, command))
    a, b = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    for part in ("alphas", "weights", "remembered"):
        assert all(torch.allclose(a[part][k], b[part][k], rtol=0, atol=0, equal_nan=True) for k in a[part])
    assert any(
        k.startswith("gradient.of_losses" if estimator == "Reinforce" else "gradient.surr") for k in a["remembered"]
    )
    assert a["alphas"]["alphas.cell"].abs().max() > 0.005  # it has learned
    assert a["choices"] == b["choices"]
    assert a["labels"] != b["labels"]
    assert [p.name for p in tmp_path.glob("measured_*")] == ["measured_0"]
