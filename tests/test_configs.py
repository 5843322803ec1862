"""Every configuration that is shipped: it builds what its name says, with the settings of its paper."""

import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_command_line import CONFIGS

from dartslight.callbacks import RunConfig, Selector
from dartslight.cli import main
from dartslight.criteria import GeneralisationGap
from dartslight.errors import InputError
from dartslight.foreign import foreign_classes
from dartslight.genotype import Genotype
from dartslight.run_folder import folder_of
from dartslight.selection import CurvatureStop, Magnitude, Perturbation, Sgas
from dartslight.strategies import (
    AdversarialSmoothing,
    Dirichlet,
    FiniteDifference,
    Gumbel,
    RandomSmoothing,
    Sampled,
    Sigmoid,
)
from dartslight.training_cli import DartslightCLI, run_training

BASES = ["cifar10", "cifar100", "svhn"]
WHOLE = ["quickstart", *(f"cifar10/{name}" for name in ("darts_pt", "darts_small", "nasbench201_small", "s2_small"))]
WHOLE += ["cifar10/s4_small"]
ADDED = sorted(
    f"{kind}/{p.stem}" for kind in ("callbacks", "criteria", "loggers", "select") for p in (CONFIGS / kind).iterdir()
)
RETRAINED = {"cifar10": (20, 36), "cifar100": (8, 16), "svhn": (8, 16)}
"""The numbers of cells and channels that architectures of S1 to S4 are retrained with."""
ELSEWHERE = ["cifar10/retrain_small", "cluster/gpus", "cluster/nodes", "cluster/kubernetes", "sweeps/wandb"]
"""Configurations with tests of their own."""

# What has been published, space by space; the same names stand behind each other space.

IN_ALL_SPACES = [
    "first-order_magnitude",
    "first-order_perturbation",
    "blank_perturbation",
    "first-order_sgas-perturbation",
]
SMOOTHED = [f"sdarts-{kind}_{selection}" for kind, selection in product(("rs", "adv"), ("magnitude", "perturbation"))]
ROBUST = ["second-order_magnitude", "second-order_curvature-stop", "r-darts-dp_magnitude", "r-darts-l2_magnitude"]
SINGLE = ["pc-darts_magnitude", "darts-minus_magnitude"]
PUBLISHED = {
    **dict.fromkeys(("s1", "s2", "s3", "s4"), (*IN_ALL_SPACES, *SMOOTHED, *ROBUST, *SINGLE)),
    "darts": [
        *IN_ALL_SPACES,
        *SMOOTHED,
        "first-order_progressive-magnitude",
        "first-order_sgas1",
        "fairdarts_magnitude",
        "drnas_staged",
    ],
    "darts8": [
        *SINGLE,
        "first-order_magnitude",
        "second-order_magnitude",
        "first-order_sgas1",
        "first-order_sgas2",
        "first-order_sgas-perturbation",
        "r-darts-l2_magnitude",
        "gdas_magnitude",
        "p-darts_staged",
    ],
    "nasbench201": [
        *IN_ALL_SPACES,
        "sdarts-rs_perturbation",
        "sdarts-adv_perturbation",
        "pc-darts_magnitude",
        "gdas_magnitude",
        "drnas_magnitude",
        "drnas_staged",
        "unas_magnitude",
    ],
    "unas": ["unas_magnitude"],
}
COMBINATIONS = sorted(f"{space}_{name}" for space, names in PUBLISHED.items() for name in names)

# The settings of the papers and their code: those of DARTS-PT, and in what the others depart from them.

DARTS_PT = {
    "max_epochs": 50,
    "num_cells": 8,
    "init_channels": 16,
    "learning_rate": 0.025,
    "min_learning_rate": 0.001,
    "momentum": 0.9,
    "nesterov": False,
    "weight_decay": 3e-4,
    "clip_norm": 5.0,
    "alpha_learning_rate": 3e-4,
    "alpha_weight_decay": 1e-3,
    "alpha_momentum": 0.5,
    "alpha_clip_norm": None,
    "alpha_init_std": 1e-3,
    "alpha_warmup_epochs": 0,
    "drop_path": 0.0,
    "track_statistics": True,
    "train_portion": 0.5,
    "split": "official",
    "batch_size": 64,
    "padding": 4,
    "flip": True,
    "cutout": 0,
    "cutout_epochs": 0,
    "augment_val": True,
}
SPACES = {"nasbench201": {"num_cells": 15, "max_epochs": 100}}
PC_DARTS = {
    "partial_channels": 4,
    "edge_normalisation": True,
    "learning_rate": 0.1,
    "min_learning_rate": 0.0,
    "alpha_learning_rate": 6e-4,
    "alpha_warmup_epochs": 15,
    "batch_size": 256,
}
GDAS = {"relaxation": "Gumbel", "nesterov": True, "weight_decay": 5e-4, "max_epochs": 250}
UNAS = {
    "max_epochs": 100,
    "gradient": "ScoreFunction",
    "weight_optimizer": "adam",
    "learning_rate": 3e-4,
    "min_learning_rate": 1e-4,
    "alpha_learning_rate": 1e-3,
    "alpha_min_learning_rate": 3e-4,
    "alpha_weight_decay": 1e-6,
    "alpha_momentum": 0.9,
    "alpha_init_std": 0.0,
    "alpha_warmup_epochs": 15,
    "reference_batch_size": 64,
    "batch_size": 128,
    "train_portion": 0.9,
}
STRATEGIES: dict[str, dict[str, Any]] = {
    "first-order": {},
    "second-order": {"gradient": "FiniteDifference"},
    "blank": {"gradient": "Fixed"},
    "sdarts-rs": {"smoothing": "RandomSmoothing"},
    "sdarts-adv": {"smoothing": "AdversarialSmoothing"},
    "pc-darts": PC_DARTS,
    "nasbench201_pc-darts": {**PC_DARTS, "max_epochs": 50},
    "darts-minus": {"auxiliary_skip": "linear"},
    "r-darts-dp": {"gradient": "FiniteDifference", "drop_path": 0.2, "cutout": 16, "cutout_epochs": 50},
    "r-darts-l2": {"gradient": "FiniteDifference", "weight_decay": 27e-4},
    "fairdarts": {
        "relaxation": "Sigmoid",
        "learning_rate": 0.005,
        "alpha_learning_rate": 3e-3,
        "alpha_momentum": 0.9,
        "alpha_init_std": 0.0,
        "batch_size": 128,
        "selection.threshold": 0.85,
    },
    "gdas": GDAS,
    "darts8_gdas": {**GDAS, "batch_size": 256},
    "p-darts": {
        "max_epochs": 75,
        "stages": [
            {"num_cells": 5, "skip_dropout": 0.1},
            {"num_cells": 11, "skip_dropout": 0.4},
            {"num_cells": 17, "skip_dropout": 0.7},
        ],
        "min_learning_rate": 0.0,
        "alpha_learning_rate": 6e-4,
        "alpha_clip_norm": 5.0,
        "alpha_warmup_epochs": 10,
        "batch_size": 96,
        "selection.keep": [5, 3],
        "selection.max_skips": 2,
    },
    "unas_unas": {"relaxation": "Factorised", **UNAS},
    "nasbench201_unas": {"relaxation": "Sampled", **UNAS},
    "drnas": {"relaxation": "Dirichlet"},
    "darts_drnas_staged": {
        "relaxation": "Dirichlet",
        "init_channels": 36,
        "stages": [
            {"num_cells": 20, "partial_channels": 6},
            {"num_cells": 20, "partial_channels": 4, "start": "widened"},
        ],
        "learning_rate": 0.1,
        "min_learning_rate": 0.0,
        "alpha_learning_rate": 6e-4,
        "alpha_warmup_epochs": 10,
        "normalise_pools": False,
        "selection.keep": [4],
        "selection.max_skips": None,
    },
    "nasbench201_drnas_staged": {
        "relaxation": "Dirichlet",
        "stages": [
            {"num_cells": 15, "partial_channels": 4},
            {"num_cells": 15, "partial_channels": 2, "start": "widened"},
        ],
        "alpha_warmup_epochs": 10,
        "selection.keep": [3],
        "selection.max_skips": None,
    },
}
OFFICIAL = {"class_path": "dartslight.selection.Perturbation", "init_args": {"preset": "official"}}
SELECTIONS: dict[str, dict[str, Any]] = {
    "magnitude": {"selection": "Magnitude"},
    "perturbation": {"selection": "Perturbation", "selection.preset": "official"},
    "progressive-magnitude": {
        "selection": "Perturbation",
        "selection.preset": "official",
        "selection.criterion": "weight",
    },
    "sgas1": {"selection": "Sgas", "selection.criterion": 1},
    "sgas2": {"selection": "Sgas", "selection.criterion": 2},
    "sgas-perturbation": {"selection": "Sgas", "selection.criterion": 1, "selection.perturbation": OFFICIAL},
    "staged": {"selection": "Staged"},
    "curvature-stop": {"selection": "CurvatureStop"},
}


def config(*names: str) -> list[str]:
    """The words that give configurations, one on top of the other."""
    return [word for name in names for word in ("--config", str(CONFIGS / f"{name}.yaml"))]


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs fit up to where training would begin; whatever does not go together is refused on the way."""
    found: list[DartslightCLI] = []
    monkeypatch.setattr(DartslightCLI, "_run_subcommand", lambda cli, subcommand: found.append(cli))

    def build(*words: str) -> DartslightCLI:
        run_training("fit", words)
        cli = found.pop()
        for callback in cli.trainer.callbacks:
            if isinstance(callback, Selector):
                callback.setup(cli.trainer, cli.model, "fit")
            if isinstance(callback, RunConfig):
                assert not list(foreign_classes(yaml.safe_load(callback._text)))  # a checkpoint is trusted with it
        return cli

    return build


def settings(content: dict[str, Any]) -> dict[str, Any]:
    """What a configuration sets, by the names of the options; classes by their names."""
    found = {**content["trainer"]} if "trainer" in content else {}
    for part in ("model", "data"):
        found |= content.get(part, {}).get("init_args", {})
    if content.get("selection") is not None:
        found["selection"] = content["selection"]
    for key, value in list(found.items()):
        name = value
        if isinstance(value, dict) and "class_path" in value:
            name = value["class_path"]
            found |= {f"{key}.{option}": given for option, given in value.get("init_args", {}).items()}
        found[key] = name.rpartition(".")[2] if isinstance(name, str) else name
    return found


# ------------------------------------------------------------------------------------------------ combinations


def test_there_is_a_configuration_for_each_published_combination() -> None:
    assert sorted(path.stem for path in (CONFIGS / "cifar10").glob("*_*_*.yaml")) == COMBINATIONS


def test_these_tests_know_every_configuration() -> None:
    known = [*WHOLE, *ADDED, *ELSEWHERE, *(f"{name}/{kind}" for name in BASES for kind in ("base", "retrain"))]
    known += [f"cifar10/{name}" for name in COMBINATIONS]
    assert sorted(known) == sorted(str(p.relative_to(CONFIGS).with_suffix("")) for p in CONFIGS.rglob("*.yaml"))


def test_what_comments_and_documents_name_exists() -> None:
    root = CONFIGS.parent
    named = re.compile(r"configs/[\w./-]+\.yaml|\b(?:darts8?|s\d|nasbench201|unas)_[a-z\d-]+_[a-z\d-]+[a-z\d]")
    texts = [*CONFIGS.rglob("*.*"), root / "README.md", *(root / "docs").glob("*.md"), *(root / "docker").glob("*.md")]
    found = {name for path in texts for name in named.findall(path.read_text(encoding="utf-8"))}
    assert {"configs/cifar10/darts_pt.yaml", "darts_first-order_sgas1"} <= found
    for name in found - {"configs/cifar10/SPACE_STRATEGY_SELECTION.yaml"}:
        assert (root / name).is_file() or name in COMBINATIONS, name


@pytest.mark.parametrize("name", COMBINATIONS)
def test_a_combination_sets_what_its_name_says_and_nothing_else(name: str) -> None:
    space, strategy, selection = name.split("_")
    own = next(STRATEGIES[key] for key in (name, f"{space}_{strategy}", strategy) if key in STRATEGIES)
    expected = {"space": space, **SPACES.get(space, {}), **own, **SELECTIONS[selection]}
    if "stages" in expected:
        expected.pop("num_cells", None)
    expected = {key: value for key, value in expected.items() if key not in DARTS_PT or value != DARTS_PT[key]}
    content = yaml.safe_load((CONFIGS / "cifar10" / f"{name}.yaml").read_text())
    assert set(content) <= {"trainer", "model", "data", "selection"}
    assert all(set(content[part]) == {"init_args"} for part in ("model", "data") if part in content)
    assert settings(content) == expected


ONE_SPACE_EACH = {name.partition("_")[2]: name for name in COMBINATIONS}.values()


@pytest.mark.parametrize(
    ("base", "name"),
    [
        *product(["cifar10"], COMBINATIONS),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in product(["cifar100", "svhn"], ONE_SPACE_EACH)),
    ],
)
def test_a_combination_can_begin_on_every_data_set(built: Any, base: str, name: str) -> None:
    cli = built(*config(f"{base}/base", f"cifar10/{name}"))
    assert type(cli.datamodule).__name__.lower() == base
    assert folder_of(cli.trainer).path.parent == Path("runs", base)
    assert any(isinstance(callback, Selector) for callback in cli.trainer.callbacks)


@pytest.mark.parametrize(
    ("name", "word", "sentence"),
    [
        ("s1_first-order_magnitude", "--model.num_cels=3", "'num_cels'"),
        ("darts_blank_perturbation", "--selection=dartslight.selection.Magnitude", "at their random start"),
        ("darts_first-order_sgas1", "--trainer.max_epochs=40", "needs 45 epochs"),
        ("darts_drnas_staged", "--trainer.max_epochs=51", "a multiple of 2"),
        ("darts8_p-darts_staged", "--selection.keep=[5]", "has 3 stages"),
    ],
)
def test_what_does_not_go_together_cannot_begin(built: Any, name: str, word: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        built(*config("cifar10/base", f"cifar10/{name}"), word)


@pytest.mark.parametrize("name", BASES)
def test_a_base_has_the_settings_of_darts_pt(built: Any, name: str) -> None:
    found = settings(built(*config(f"{name}/base")).config["fit"].as_dict())
    assert {key: found[key] for key in DARTS_PT} == DARTS_PT


@pytest.mark.parametrize(
    ("part", "published"),
    [
        (Sigmoid(), {"zero_one_weight": 10.0, "zero_one_loss": "l2"}),
        (Gumbel(), {"start_temperature": 10.0, "end_temperature": 0.1}),
        (Dirichlet(), {"divergence_weight": 0.0}),
        (Sampled(), {"temperature": 0.4, "soften": 0.0}),
        (GeneralisationGap(), {"weight": 0.5}),
        (RandomSmoothing(), {"start_radius": 0.03, "end_radius": 0.3}),
        (AdversarialSmoothing(), {"start_radius": 0.03, "end_radius": 0.3, "steps": 7}),
        (FiniteDifference(), {"radius": 0.01}),
        (Sgas(), {"criterion": 1, "warmup_epochs": 10, "interval": 5, "history": 4, "perturbation": None}),
        (
            CurvatureStop(),
            {"every": 2, "window": 5, "lag": 4, "ratio": 1.3, "min_epoch": 10, "batches": 1},
        ),
        (Magnitude(), {"threshold": None}),
        (
            Perturbation("official").tuning(),
            {"learning_rate": 0.0025, "schedule": "constant", "warm_momentum": False, "train_alphas": True},
        ),
        (Perturbation("official"), {"interval": 5, "interleave": "normal_then_reduce", "tune_after_last": True}),
        (
            Perturbation("official").settings,
            {
                **{"criterion": "accuracy", "order": "random", "paired": False, "mask": "raw", "edge_mode": "reg"},
                **{"exclude_none": False, "eval_bn": "batch_update", "eval_transform": "train", "eval_batches": None},
            },
        ),
    ],
    ids=lambda value: "" if isinstance(value, dict) else type(value).__name__,
)
def test_what_configurations_leave_to_a_method_is_as_published(part: Any, published: dict[str, Any]) -> None:
    assert {name: getattr(part, name) for name in published} == published


def test_the_protocol_of_the_paper_is_one_of_the_combinations(built: Any) -> None:
    ways = [config("cifar10/darts_pt"), config("cifar10/base", "cifar10/darts_first-order_perturbation")]
    one, other = (settings(built(*words).config["fit"].as_dict()) for words in ways)
    assert one.pop("default_root_dir") == "runs/darts_pt"
    assert other.pop("default_root_dir") == "runs/cifar10"
    assert one == other


@pytest.mark.parametrize(
    "words",
    [
        config("cifar10/s2_sdarts-rs_perturbation"),
        config("cifar10/s2_pc-darts_magnitude", "cifar10/base"),
        [*config("cifar10/s1_first-order_magnitude"), "--data=dartslight.data.Digits"],
        ["--model=SearchModule", *config("cifar10/s2_pc-darts_magnitude")],
        ["--model=SearchModule", "--data.batch_size=3"],
        [],
    ],
    ids=["alone", "before_its_base", "without_model", "without_data", "option_without_data", "nothing"],
)
def test_a_combination_without_its_base_is_one_sentence(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dartslight: Nothing has said yet which ")
    assert line.endswith("--config configs/cifar10/base.yaml, and put other configurations and options after it.")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------ the others


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_configuration_can_begin(built: Any, name: str) -> None:
    cli = built(*config(name))
    assert folder_of(cli.trainer).path.parent == Path("runs", Path(name).name)
    assert any(isinstance(callback, Selector) for callback in cli.trainer.callbacks)


def assert_holds(whole: Any, part: Any) -> None:
    """Checks that all values of a configuration stand in another one."""
    if isinstance(part, dict):
        for key, value in part.items():
            assert_holds(whole[key], value)
    elif isinstance(part, list):
        for one, other in zip(whole, part, strict=True):
            assert_holds(one, other)
    else:
        assert whole == part


@pytest.mark.parametrize("name", ADDED)
def test_an_addition_is_understood_by_a_search(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["fit", *config("quickstart", name), "--print_config"])
    shown = yaml.safe_load(capsys.readouterr().out)
    assert_holds(shown, yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()))
    assert not list(foreign_classes(shown))


@pytest.mark.parametrize(
    ("name", "expected"),
    {
        "magnitude": SELECTIONS["magnitude"],
        "official": SELECTIONS["perturbation"],
        "paired": {"selection": "Perturbation", "selection.preset": "paired"},
        "progressive_magnitude": SELECTIONS["progressive-magnitude"],
        "random": {"selection": "Random"},
    }.items(),
)
def test_a_rule_for_select_is_what_its_name_says(name: str, expected: dict[str, Any]) -> None:
    assert settings(yaml.safe_load((CONFIGS / "select" / f"{name}.yaml").read_text())) == expected


@pytest.mark.parametrize("name", RETRAINED)
def test_retraining_has_the_published_settings(built: Any, name: str, tmp_path: Path) -> None:
    ops = ["nor_conv_3x3"] * 6
    genotype = tmp_path / "genotype.json"
    genotype.write_text(Genotype.from_nasbench201("|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|".format(*ops)).to_json())
    configs = config("cifar10/retrain") if name == "cifar10" else config("cifar10/retrain", f"{name}/retrain")
    cli = built(*configs, f"--model.genotype={genotype}")
    found = settings(cli.config["fit"].as_dict())
    published = {
        "max_epochs": 600,
        "batch_size": 96,
        "train_portion": 1.0,
        "cutout": 16,
        "learning_rate": 0.025,
        "momentum": 0.9,
        "weight_decay": 3e-4,
        "clip_norm": 5.0,
        "drop_path": 0.2,
        "auxiliary_weight": 0.4,
    }
    assert {key: found[key] for key in published} == published
    assert (found["num_cells"], found["init_channels"]) == RETRAINED[name]
    assert type(cli.datamodule).__name__.lower() == name


@pytest.mark.parametrize(
    "base", [["cifar10/nasbench201_small"], ["cifar10/base", "cifar10/nasbench201_unas_magnitude"]]
)
@pytest.mark.parametrize("estimator", ["GumbelSoftmax", "Reinforce", "Rebar"])
def test_a_latency_goes_on_top_of_a_search(built: Any, tmp_path: Path, base: list[str], estimator: str) -> None:
    table = tmp_path / "table.csv"
    table.write_text(f"arch,watch\n{'|{0}~0|+|{0}~0|{0}~1|+|{0}~0|{0}~1|{0}~2|'.format('none')},3\n")
    last = "--model.gradient.criteria"
    cli = built(
        *config(*base, "criteria/latency"),
        *(f"{last}.table={table}", f"{last}.column=watch", f"{last}.target=7"),
        f"--model.gradient.estimator=dartslight.strategies.{estimator}",
    )
    assert type(cli.model.relaxation).__name__ == "Sampled"
    assert type(cli.model.gradient.of_losses).__name__ == type(cli.model.gradient.of_costs).__name__ == estimator
    (cost,) = cli.model.gradient.costs
    assert (cost.column, cost.target, cost.coefficient, cost.warmup_steps) == ("watch", 7.0, 0.1, 1000)
