"""The commands as a user types them, on real digits."""

import csv
import json
from pathlib import Path

import pytest
import torch

from dartslight.cli import main
from dartslight.nets import Supernet

CONFIGS = Path(__file__).parent.parent / "configs"
QUICK = [
    "--config",
    str(CONFIGS / "quickstart.yaml"),
    "--trainer.max_epochs=2",
    "--model.init_channels=4",
    "--data.max_pictures=256",
    "--trainer.enable_progress_bar=false",
]


def newest(root: Path) -> Path:
    return max(root.glob("version_*"), key=lambda p: int(p.name.removeprefix("version_")))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    assert main(["fit", *QUICK, f"--trainer.default_root_dir={root}"]) == 0
    return newest(root)


def same_weights(a: Path, b: Path) -> bool:
    x, y = (torch.load(p / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for p in (a, b))
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


def decisions(folder: Path) -> list[dict[str, str]]:
    with (folder / "decisions.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def test_a_run_leaves_its_files(run: Path) -> None:
    for name in ("config.yaml", "genotype.json", "decisions.csv", "metrics.csv", "cell.png", "cell.svg"):
        assert (run / name).stat().st_size > 0
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"last.ckpt", "search.ckpt"}
    assert json.loads((run / "genotype.json").read_text())["format"] == "dartslight.genotype/1"
    assert len(decisions(run)) == 24
    assert {row["decision"] for row in decisions(run)} == {str(i) for i in range(6)}
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    # global_step counts batches: 128 pictures in batches of 64 are 2 steps an epoch; 2 + 5 epochs.
    assert [int(row["step"]) for row in rows] == [1, 3, 5, 7, 9, 11, 13]
    assert all(float(row["train/loss"]) > 0 for row in rows)


def test_the_same_seed_gives_the_same_bits_and_another_folder(run: Path) -> None:
    assert main(["fit", *QUICK, f"--trainer.default_root_dir={run.parent}"]) == 0
    again = newest(run.parent)
    assert again != run
    assert same_weights(run, again)
    assert decisions(run) == decisions(again)
    assert (run / "cell.svg").read_bytes() == (again / "cell.svg").read_bytes()


def test_select_repeats_the_decisions_of_the_run_and_takes_other_rules(run: Path, tmp_path: Path) -> None:
    supernet = f"--supernet={run / 'checkpoints' / 'search.ckpt'}"
    root = f"--trainer.default_root_dir={tmp_path}"
    rule = ["--selection=dartslight.selection.Perturbation", "--selection.interval=1"]
    assert main(["select", supernet, root, *rule]) == 0
    assert decisions(newest(tmp_path)) == decisions(run)
    assert same_weights(newest(tmp_path), run)
    raced = [*rule, "--selection.racing=0.9", "--selection.eval_batches=4"]
    assert main(["select", supernet, root, *raced]) == 0
    assert len({row["decision"] for row in csv.DictReader((newest(tmp_path) / "decisions.csv").open())}) == 6
    for name in ("magnitude", "random"):
        assert main(["select", "--config", str(CONFIGS / "select" / f"{name}.yaml"), supernet, root]) == 0
        assert json.loads((newest(tmp_path) / "genotype.json").read_text())["space"] == "nasbench201"
        assert len(list(csv.DictReader((newest(tmp_path) / "decisions.csv").open()))) == 30


@pytest.mark.parametrize("stop", [{"--trainer.max_steps=3"}, {"--trainer.max_steps=7"}], ids=["mid_epoch", "tuning"])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(run: Path, tmp_path: Path, stop: set[str]) -> None:
    root = f"--trainer.default_root_dir={tmp_path}"
    assert main(["fit", *QUICK, root, "--checkpoint_every_n_batches=1", *stop]) == 0
    stopped = newest(tmp_path)
    assert not (stopped / "genotype.json").exists()
    last = stopped / "checkpoints" / "last.ckpt"
    assert main(["fit", *QUICK, root, "--checkpoint_every_n_batches=1", f"--ckpt_path={last}"]) == 0
    assert newest(tmp_path) == stopped
    assert same_weights(stopped, run)
    assert decisions(stopped) == decisions(run)
    assert (stopped / "metrics.csv").read_text().splitlines()[0].startswith("step")


def test_retrain_test_draw(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "--config",
        str(CONFIGS / "cifar10" / "retrain_small.yaml"),
        "--data=dartslight.data.Digits",
        "--data.train_portion=1.0",
        f"--model.genotype={run / 'genotype.json'}",
        "--model.init_channels=8",
        f"--trainer.default_root_dir={tmp_path}",
        "--trainer.enable_progress_bar=false",
    ]
    assert main(["fit", *arguments]) == 0
    folder = newest(tmp_path)
    checkpoint = folder / "checkpoints" / "last.ckpt"
    assert (folder / "genotype.json").read_bytes() == (run / "genotype.json").read_bytes()
    capsys.readouterr()
    assert main(["test", f"--ckpt_path={checkpoint}"]) == 0
    assert "test/accuracy" in capsys.readouterr().out
    assert len(list(tmp_path.glob("version_*"))) == 1
    # Its network is drawn as it is trained, another one as it is asked for.
    for words, size in (([], "3 cells"), (["--num_cells=6"], "6 cells")):
        assert main(["draw", str(folder), "--network", *words, "-o", str(tmp_path / "network.svg")]) == 0
        drawn = (tmp_path / "network.svg").read_text()
        assert f"<!-- Network of {size} -->" in drawn
        assert "<!-- 8 channels -->" in drawn
    for words, said in ((["--num_cells=3"], "for --network"), (["--network", "--alphas"], "leave it out")):
        assert main(["draw", str(folder), *words, "-o", str(tmp_path / "no.svg")]) == 2
        assert said in capsys.readouterr().err
    assert main(["draw", str(run / "genotype.json"), "-o", str(tmp_path / "cell.svg")]) == 0
    assert "<svg" in (tmp_path / "cell.svg").read_text()


@pytest.mark.parametrize("where", ["CPU", "GPU"])
def test_too_little_memory_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    words = ["fit", *QUICK, f"--trainer.default_root_dir={tmp_path}"]
    if where == "CPU":
        words.append("--model.init_channels=8000000")  # a convolution has more weights than a process has addresses
    else:

        def full(*_: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 GiB.\nSee the documentation.")

        monkeypatch.setattr(Supernet, "forward", full)
    assert main(words) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("dartslight: The memory is too small for this run (")
    assert "allocate" in said
    assert "--data.batch_size" in said


def test_wrong_input_is_one_sentence_and_exit_code_2(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "damaged.ckpt"
    damaged.write_bytes((run / "checkpoints" / "last.ckpt").read_bytes()[:5000])
    bad_genotype = tmp_path / "genotype.json"
    bad_genotype.write_text((run / "genotype.json").read_text().replace("genotype/1", "genotype/2"))
    (tmp_path / "pictures" / "only").mkdir(parents=True)
    root = f"--trainer.default_root_dir={tmp_path / 'runs'}"
    folder = ["--data=dartslight.data.ImageFolder", f"--data.root={tmp_path / 'pictures'}"]
    cases = {
        "no search space 'dart'": ["fit", *QUICK, root, "--model.space=dart"],
        "no checkpoint": ["fit", *QUICK, root, "--ckpt_path=nowhere.ckpt"],
        "it is damaged": ["fit", *QUICK, root, f"--ckpt_path={damaged}"],
        "has space 'nasbench201', but this run has space 's2'": [
            "fit",
            *QUICK,
            root,
            "--model.space=s2",
            f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}",
        ],
        "already": ["select", root, f"--supernet={run / 'checkpoints' / 'last.ckpt'}", "--selection=Random"],
        "only one class folder": ["fit", *QUICK, root, *folder],
        "newer version": ["draw", str(bad_genotype)],
        "no command 'fti'": ["fti"],
        "does_not_exist": ["fit", *QUICK, root, "--model.does_not_exist=1"],
        "train_portion is 1.0": ["fit", *QUICK, root, "--data.train_portion=1.0"],
        "cannot be read": ["lookup", str(run / "genotype.json"), "--table", str(tmp_path / "no.csv")],
    }
    for sentence, words in cases.items():
        capsys.readouterr()
        assert main(words) == 2, sentence
        error = capsys.readouterr().err
        assert sentence in error
        assert "Traceback" not in error
        assert not (tmp_path / "runs").exists(), sentence


def test_overview_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == main(["--version"]) == 0
    assert "lookup" in capsys.readouterr().out
