"""Architectures as other programs write them: all notations of one architecture give the same genotype."""

import json
from pathlib import Path

import pytest

from dartslight.cli import main
from dartslight.errors import InputError
from dartslight.genotype import Genotype
from dartslight.spaces import DARTS, S4

# The second-order architecture of the DARTS paper, and its reduction cell.
NORMAL = [("sep_conv_3x3", s) for s in (0, 1, 0, 1, 1)] + [("skip_connect", 0), ("skip_connect", 0)]
NORMAL += [("dil_conv_3x3", 2)]
REDUCE = [("max_pool_3x3", 0), ("max_pool_3x3", 1), ("skip_connect", 2), ("max_pool_3x3", 1)]
REDUCE += [("max_pool_3x3", 0), ("skip_connect", 2), ("skip_connect", 2), ("max_pool_3x3", 1)]
DARTS_V2 = Genotype.from_darts(DARTS, NORMAL, REDUCE)
NUMBERS = {"max_pool_3x3": 0, "skip_connect": 2, "sep_conv_3x3": 3, "dil_conv_3x3": 5}
EDGES_BEFORE = {2: 0, 3: 2, 4: 5, 5: 9}


def nni(wrapped: bool) -> str:
    found: dict[str, object] = {"depth": 20, "width": 36}
    for cell, pairs in (("normal", NORMAL), ("reduce", REDUCE)):
        for i, (op, source) in enumerate(pairs):
            found[f"{cell}/op_{2 + i // 2}_{i % 2}"] = op
            found[f"{cell}/input_{2 + i // 2}_{i % 2}"] = [source] if wrapped else source
    return json.dumps(found)


def nasbench301() -> str:
    found = {}
    for cell, pairs in (("normal", NORMAL), ("reduce", REDUCE)):
        for i, (op, source) in enumerate(pairs):
            edge = EDGES_BEFORE[2 + i // 2] + source
            found[f"NetworkSelectorDatasetInfo:darts:edge_{cell}_{edge}"] = op
            found[f"NetworkSelectorDatasetInfo:darts:inputs_node_{cell}_{2 + i // 2}"] = "0_1"
    return json.dumps(found)


WHOLE = f"Genotype(normal={NORMAL}, normal_concat=range(2, 6), reduce={REDUCE}, reduce_concat=[2, 3, 4, 5])"
SAME = {
    "printed": WHOLE,
    "assigned": f"# best of 4\nDARTS_V2 = {WHOLE}\n",
    "positional": f"Genotype({NORMAL}, range(2, 6), {REDUCE}, range(2, 6))",
    "fields": json.dumps({"normal": NORMAL, "reduce": REDUCE}),
    "nni": nni(wrapped=False),
    "nni 3": nni(wrapped=True),
    "naslib": str(tuple(tuple((source, NUMBERS[op]) for op, source in pairs) for pairs in (NORMAL, REDUCE))),
    "nasbench301": nasbench301(),
    "ours": DARTS_V2.to_json(),
}


def load(tmp_path: Path, text: str) -> Genotype:
    (tmp_path / "found.txt").write_text(text, encoding="utf-8")
    return Genotype.load(tmp_path / "found.txt")


@pytest.mark.parametrize("notation", SAME)
def test_every_notation_gives_the_same_genotype(notation: str, tmp_path: Path) -> None:
    assert load(tmp_path, SAME[notation]) == DARTS_V2


def test_noise_is_of_s4(tmp_path: Path) -> None:
    text = WHOLE.replace("skip_connect", "noise").replace("dil_conv_3x3", "noise").replace("max_pool_3x3", "noise")
    assert load(tmp_path, text).space == S4.name


def test_naslib_counts_the_edges_of_nasbench201_by_their_sources(tmp_path: Path) -> None:
    arch = "|nor_conv_3x3~0|+|skip_connect~0|none~1|+|nor_conv_1x1~0|avg_pool_3x3~1|skip_connect~2|"
    found = load(tmp_path, "(2, 0, 3, 1, 4, 0)")
    assert found.to_nasbench201() == arch
    assert load(tmp_path, arch + "\n") == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (WHOLE.replace("range(2, 6)", "[2, 3, 4, 5, 6]"), "normal_concat is"),
        (
            f"Genotype(normal={NORMAL[:6]}, normal_concat=range(2, 6), reduce={REDUCE}, reduce_concat=range(2, 6))",
            "four",
        ),
        (f"Genotype(normal={[(0, 'none')] * 8}, reduce={REDUCE})", "not an operation and a source"),
        (WHOLE.replace("dil_conv_3x3", "conv_9x9"), "'conv_9x9'"),
        (WHOLE.replace("('dil_conv_3x3', 2)", "('dil_conv_3x3', 7)"), "cannot be there"),
        (nni(False).replace('"normal/op_5_1"', '"other"'), "no normal/op_5_1"),
        (nasbench301().replace("edge_reduce_0", "edge_reduce_13"), "needs 2"),
        ("(0, 1, 2, 3, 4, 5)", "from 0 to 4"),
        (SAME["naslib"].replace("(0, 3)", "(0, 7)"), "from 0 to 6"),
        ("((1, 2), (3, 4))", "8 pairs"),
        ("__import__('os').system('true')", "not JSON"),
        ("Genotype(normal=open('/etc/passwd'))", "not JSON"),
        ("(" * 2000, "not JSON"),
        ("|nor_conv_3x3~0|", "give the whole cell"),
    ],
)
def test_what_is_not_whole_is_refused_in_one_sentence(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        load(tmp_path, text)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_commands_take_every_notation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "theirs.py").write_text(SAME["assigned"], encoding="utf-8")
    assert main(["cost", str(tmp_path / "theirs.py"), "--num_cells=4", "--init_channels=4", "--size=8"]) == 0
    assert "parameters" in capsys.readouterr().out.lower()
