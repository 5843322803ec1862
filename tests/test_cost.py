"""The command ``cost``: multiply-adds and parameters against published figures, times against a clock."""

import collections
import csv
import gzip
import itertools
import os
import random
import time
from pathlib import Path

import pytest
import textbook
import torch
from test_networks import as_lists, darts_v2, random_genotype
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dartslight.cli import main
from dartslight.genotype import Genotype
from dartslight.nets import DiscreteNetwork
from dartslight.shipping.cost import latency, multiply_adds, parameters
from dartslight.spaces import SPACES

DATA = os.environ.get("DARTSLIGHT_DATA")
FREE = ("none", "skip_connect", "avg_pool_3x3")


def nasbench201(ops: list[str]) -> DiscreteNetwork:
    arch = "|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|".format(*ops)
    return DiscreteNetwork(Genotype.from_nasbench201(arch), 15, 16, 10)


@pytest.mark.skipif(DATA is None, reason="DARTSLIGHT_DATA is not set")
def test_all_15625_architectures_cost_what_the_table_says() -> None:
    """What a cell costs depends only on how many convolutions of each size it has: 28 networks stand for all."""
    rng = random.Random(0)
    counted = {}
    for ones in range(7):
        for threes in range(7 - ones):
            rest = [rng.choice(FREE) for _ in range(6 - ones - threes)]
            ops = ["nor_conv_1x1"] * ones + ["nor_conv_3x3"] * threes + rest
            rng.shuffle(ops)
            network = nasbench201(ops)
            counted[ones, threes] = (multiply_adds(network, 32, 32), parameters(network))
    with gzip.open(Path(DATA or "") / "nasbench201.csv.gz", "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    wrong = []
    for row in rows:
        ours = counted[row["arch"].count("nor_conv_1x1"), row["arch"].count("nor_conv_3x3")]
        if ours != (int(row["macs"]), int(row["params"])):
            wrong.append(row)
    assert len(rows) == 15_625
    assert not wrong


@pytest.mark.parametrize(
    ("name", "stem", "size"), [("nasbench201", "cifar", 16), ("darts", "cifar", 16), ("darts", "imagenet", 64)]
)
def test_multiply_adds_equal_those_of_the_textbook_as_torch_counts_them(name: str, stem: str, size: int) -> None:
    for seed in range(2):
        genotype = random_genotype(SPACES[name], seed)
        ours = DiscreteNetwork(genotype, 6, 4, 7, stem=stem)
        theirs = textbook.Discrete(name, as_lists(genotype), 4, 6, 7, stem=stem).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            theirs(torch.zeros(1, 3, size, size))
        # Torch counts two operations for each, and none for the 7 biases of the classifier.
        assert multiply_adds(ours, size, size) == counter.get_total_flops() / 2 + 7
        assert parameters(ours) == parameters(theirs)
        assert ours.training


def test_counting_leaves_a_network_as_it_was() -> None:
    network = nasbench201(["nor_conv_3x3"] * 6)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert multiply_adds(network, 32, 32) == multiply_adds(network, 32, 32)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_the_time_of_a_pass_is_measured() -> None:
    class Slow(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            threads[torch.get_num_threads()] += 1
            time.sleep(0.2)
            return images

    threads: collections.Counter[int] = collections.Counter()
    found = latency(Slow(), torch.zeros(1, 3, 4, 4), threads=2)
    assert 0.2 <= found.low <= found.median <= found.high < 0.4
    assert found.runs == 10
    assert threads == {2: 13}
    assert torch.get_num_threads() == 1


def test_the_command_tells_the_published_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    darts_v2_file, all_skip = tmp_path / "v2.json", tmp_path / "skip.json"
    darts_v2_file.write_text(darts_v2().to_json())
    arch = "|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|".format(*["skip_connect"] * 6)
    all_skip.write_text(Genotype.from_nasbench201(arch).to_json())
    assert main(["cost", str(darts_v2_file), "--size=8", "--threads=1", "--device=cpu"]) == 0
    out = capsys.readouterr().out
    assert "darts, 20 cells, 36 channels, 10 classes" in out
    assert "parameters     3,349,342\n" in out
    assert "picture of 8x8" in out
    assert "1 picture at a time, 1 thread, cpu" in out
    big = ["--num_cells=14", "--init_channels=48", "--num_classes=1000", "--stem=imagenet", "--size=32"]
    assert main(["cost", str(darts_v2_file), *big, "--batch_size=2"]) == 0
    out = capsys.readouterr().out
    assert "parameters     4,718,752\n" in out
    assert "2 pictures at a time" in out
    assert main(["cost", str(all_skip)]) == 0
    out = capsys.readouterr().out
    assert "parameters     73,306\n" in out
    assert "multiply-adds  7,783,050 for a picture of 32x32\n" in out


def test_wrong_input_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "genotype.json"
    path.write_text(random_genotype(SPACES["nasbench201"], 0).to_json())
    cases = {
        "cannot be read": ["no.json"],
        "multiple of 3, such as 6": [str(path), "--num_cells=4"],
        "num_cells is 0": [str(path), "--num_cells=0"],
        "threads is 0": [str(path), "--threads=0"],
        "size is 0": [str(path), "--size=0"],
        "batch_size is -1": [str(path), "--batch_size=-1"],
        "no device 'banana'": [str(path), "--device=banana"],
        "no device 'meta'": [str(path), "--device=meta"],
        "use 'cifar'": [str(path), "--stem=imagenet"],
        "cannot run on 1 picture of 2000000x2000000": [str(path), "--size=2000000"],
        "num_cellz": [str(path), "--num_cellz=3"],
    }
    for sentence, words in cases.items():
        assert main(["cost", *words]) == 2, sentence
        captured = capsys.readouterr()
        assert sentence in captured.err
        assert captured.err.count("\n") == 1
        assert not captured.out


def test_operations_without_weights_cost_nothing() -> None:
    costs = {
        multiply_adds(nasbench201(list(ops)), 8, 8)
        for ops in itertools.islice(itertools.product(FREE, repeat=6), 0, 729, 91)
    }
    assert len(costs) == 1
