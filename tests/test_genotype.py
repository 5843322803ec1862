"""Genotypes and spaces: round trips, the tables of edges, choices, and what is refused in one sentence."""

import dataclasses
import json
import random
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dartslight.errors import InputError
from dartslight.genotype import FORMAT, Genotype
from dartslight.spaces import DARTS, DARTS8, NASBENCH201, S1, S2, S3, S4, SPACES, Choices, Edge, find_space, layout

NOTATION = "|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|"
MIXED = NOTATION.format("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3", "none")
NORMAL = [("sep_conv_3x3", s) for s in (0, 1, 0, 1)] + [("dil_conv_3x3", s) for s in (1, 2, 0, 4)]
REDUCTION = [("max_pool_3x3", s) for s in (0, 1, 1, 2)] + [("skip_connect", s) for s in (2, 3, 3, 4)]


def nasbench201() -> Genotype:
    return Genotype.from_nasbench201(MIXED)


def darts() -> Genotype:
    return Genotype.from_darts(DARTS, NORMAL, REDUCTION)


# ---------------------------------------------------------------------------------------------------- round trips


def test_nasbench201_notation_and_json_round_trip() -> None:
    rng = random.Random(0)
    for _ in range(200):
        arch = NOTATION.format(*rng.choices(NASBENCH201.cells[0].edges[0].ops, k=6))
        genotype = Genotype.from_nasbench201(arch)
        assert genotype.to_nasbench201() == arch
        assert Genotype.from_json(genotype.to_json()) == genotype
    (cell,) = nasbench201().cells
    assert [(e.node, e.source, e.ops) for e in cell.edges] == [
        (1, 0, ("none",)),
        (2, 0, ("skip_connect",)),
        (2, 1, ("nor_conv_1x1",)),
        (3, 0, ("nor_conv_3x3",)),
        (3, 1, ("avg_pool_3x3",)),
        (3, 2, ("none",)),
    ]


def test_darts_notation_and_json_round_trip() -> None:
    genotype = darts()
    for cell, pairs in zip(genotype.cells, (NORMAL, REDUCTION), strict=True):
        assert [(e.ops[0], e.source) for e in cell.edges] == pairs
        assert [e.node for e in cell.edges] == [2, 2, 3, 3, 4, 4, 5, 5]
    assert Genotype.from_json(genotype.to_json()) == genotype
    # The two inputs of a node may be written in either order.
    swapped = [pair for i in range(0, 8, 2) for pair in (NORMAL[i + 1], NORMAL[i])]
    assert Genotype.from_darts(DARTS, swapped, REDUCTION) == genotype


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_genotypes_of_choices_round_trip(space: Any, tmp_path: Path) -> None:
    rng = random.Random(1)
    choices = Choices.everything(space)
    for cell in space.cells:
        for e, edge in enumerate(cell.edges):
            choices = choices.decide((cell.name, e), rng.randrange(len(edge.ops)))
        if space.inputs_per_node:
            for node in cell.nodes:
                into = cell.edges_into(node)
                choices = choices.drop((cell.name, e) for e in rng.sample(into, len(into) - space.inputs_per_node))
    genotype = Genotype.from_choices(space, choices)
    path = tmp_path / "genotype.json"
    path.write_text(genotype.to_json(), encoding="utf-8")
    assert Genotype.load(path) == Genotype.load(str(path)) == genotype
    assert genotype.space == space.name
    for cell, whole in zip(genotype.cells, space.cells, strict=True):
        assert len(cell.edges) == (2 * 4 if space.inputs_per_node else len(whole.edges))
        allowed = {(e.source, e.node): e.ops for e in whole.edges}
        assert all(e.ops[0] in allowed[e.source, e.node] for e in cell.edges)


def test_undecided_choices_are_no_genotype() -> None:
    with pytest.raises(ValueError, match=r"\(0, 1, 2, 3, 4, 5\) of cell 'cell' are still undecided"):
        Genotype.from_choices(NASBENCH201, Choices.everything(NASBENCH201))


# --------------------------------------------------------------------------------------------- what is refused


def refused(text: str, *expected: str) -> None:
    """The text is refused in one sentence that names the text and what is wrong with it."""
    with pytest.raises(InputError) as error:
        Genotype.from_json(text, "The genotype 'g.json'")
    sentence = str(error.value)
    assert sentence.startswith("The genotype 'g.json' ")
    assert sentence.endswith(".")
    assert "\n" not in sentence
    for part in expected:
        assert part in sentence, sentence


def changed(genotype: Genotype, change: Callable[[Any], object]) -> str:
    data = json.loads(genotype.to_json())
    change(data)
    return json.dumps(data)


def first_edge(data: Any, **values: object) -> None:
    next(iter(data["cells"].values()))["edges"][0].update(values)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ("is not JSON", "give a genotype.json")),
        ("{", ("is not JSON",)),
        ("[" * 100_000, ("is not JSON",)),
        ("9" * 5000, ("is not JSON",)),
        ("[]", ("has no 'format'", FORMAT)),
        ("null", ("has no 'format'",)),
        ('"text"', ("has no 'format'",)),
        ("{}", ("has no 'format'", "give another file")),
        ('{"format": "dartslight.genotype/2"}', ("'dartslight.genotype/2'", "newer version", FORMAT)),
        ('{"format": "other/1"}', ("'other/1'", "give another file")),
        ('{"format": 1}', ("the format 1", "give another file")),
        (json.dumps({"format": FORMAT}), ("is not a whole genotype ('space')",)),
    ],
)
def test_texts_that_are_no_genotype_are_refused(text: str, parts: tuple[str, ...]) -> None:
    refused(text, *parts)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda d: d.pop("space"), ("'space'",)),
        (lambda d: d.pop("macro"), ("'macro'",)),
        (lambda d: d.pop("cells"), ("'cells'",)),
        (lambda d: d["cells"]["normal"].pop("inputs"), ("'inputs'",)),
        (lambda d: d["cells"]["normal"].pop("nodes"), ("'nodes'",)),
        (lambda d: d["cells"]["normal"].pop("output"), ("'output'",)),
        (lambda d: d["cells"]["normal"].pop("edges"), ("'edges'",)),
        (lambda d: d["cells"]["normal"]["edges"][0].pop("op"), ("'op'",)),
        (lambda d: d["cells"]["normal"]["edges"][0].pop("node"), ("'node'",)),
        (lambda d: d["cells"]["normal"]["edges"][0].pop("source"), ("'source'",)),
        (lambda d: d.update(space=3), ("'space' is not a text",)),
        (lambda d: d.update(macro=None), ("'macro' is not a text",)),
        (lambda d: d.update(cells=[]), ("is not a whole genotype",)),
        (lambda d: d.update(cells="normal"), ("is not a whole genotype",)),
        (lambda d: d["cells"].update(normal=7), ("is not a whole genotype",)),
        (lambda d: d["cells"]["normal"].update(edges=7), ("is not a whole genotype",)),
        (lambda d: d["cells"]["normal"].update(edges=["a"]), ("is not a whole genotype",)),
        (lambda d: d["cells"]["normal"].update(inputs="2"), ("'inputs' is not a number",)),
        (lambda d: d["cells"]["normal"].update(nodes=4.0), ("'nodes' is not a number",)),
        (lambda d: d["cells"]["normal"].update(nodes=True), ("'nodes' is not a number",)),
        (lambda d: d["cells"]["normal"].update(nodes=1001), ("'nodes' is not a number between 0 and 1000",)),
        (lambda d: d["cells"]["normal"].update(output="first"), ("the output 'first' is neither 'concat' nor 'last'",)),
        (lambda d: d["cells"]["normal"].update(output=["concat"]), ("the output ['concat']",)),
        (lambda d: first_edge(d, op=None), ("'op' is not a text",)),
        (lambda d: first_edge(d, source=-1), ("'source' is not a number",)),
        (lambda d: first_edge(d, node="2"), ("'node' is not a number",)),
        (lambda d: d.update(macro="resnet"), ("the network 'resnet'", "darts, nasbench201")),
        (lambda d: d.update(macro="nasbench201"), ("the cells ['normal', 'reduction']", "needs ['cell']")),
        (lambda d: d["cells"].pop("reduction"), ("the cells ['normal']", "needs ['normal', 'reduction']")),
        (lambda d: d["cells"].update(extra=d["cells"]["normal"]), ("the cells ['normal', 'reduction', 'extra']",)),
        (lambda d: d.update(cells=dict(reversed(d["cells"].items()))), ("the cells ['reduction', 'normal']",)),
        (lambda d: first_edge(d, source=2), ("an edge 2<-2 in its normal cell that cannot be there",)),
        (lambda d: first_edge(d, source=3), ("an edge 2<-3 in its normal cell", "[2, 3, 4, 5]")),
        (lambda d: first_edge(d, source=1), ("an edge 2<-1 in its normal cell that cannot be there", "leads once")),
        (lambda d: first_edge(d, node=1), ("an edge 1<-0 in its normal cell",)),
        (lambda d: first_edge(d, node=6), ("an edge 6<-0 in its normal cell",)),
        (
            lambda d: d["cells"]["reduction"].update(edges=d["cells"]["reduction"]["edges"][4:]),
            ("a reduction cell that reads none of its inputs", "must lead from one"),
        ),
        (lambda d: d["cells"]["normal"].update(nodes=0, edges=[]), ("a normal cell that reads none of its inputs",)),
        (lambda d: d.update(space="dart"), ("the space 'dart'", "nasbench201, darts, darts8, s1, s2, s3, s4")),
        (lambda d: d.update(space="nasbench201"), ("the space 'nasbench201' but for another network",)),
        (lambda d: d["cells"]["normal"].update(output="last"), ("a normal cell of another shape", "'darts'")),
        (
            lambda d: (
                d["cells"]["normal"].update(nodes=5),
                d["cells"]["normal"]["edges"].append({"node": 6, "source": 0, "op": "skip_connect"}),
            ),
            ("a normal cell of another shape",),
        ),
        (
            lambda d: first_edge(d, op="nor_conv_3x3"),
            ("'nor_conv_3x3' on edge 2<-0 of its normal cell", "max_pool_3x3"),
        ),
        (lambda d: first_edge(d, op="none"), ("'none' on edge 2<-0 of its normal cell",)),
        (lambda d: d.update(space="s2"), ("'s2' allows skip_connect, sep_conv_3x3 there",)),
        (lambda d: d.update(space="s1"), ("'sep_conv_3x3' on edge 2<-0", "'s1' allows skip_connect, dil_conv_3x3")),
    ],
)
def test_genotypes_that_are_wrong_are_refused(change: Callable[[Any], object], parts: tuple[str, ...]) -> None:
    refused(changed(darts(), change), *parts)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\x80\xff\x00\xfe")
    for path, reason in ((tmp_path / "none.json", "No such file"), (tmp_path, "directory"), (binary, "not text")):
        with pytest.raises(InputError, match=rf"cannot be read \(.*{reason}.*\); give a genotype.json of a run.$") as e:
            Genotype.load(path)
        assert repr(str(path)) in str(e.value)
    with pytest.raises(InputError, match=r"cannot be read .*; give a genotype.json of a run\.$"):
        Genotype.load("\0")
    wrong = tmp_path / "wrong.json"
    wrong.write_text("{}")
    with pytest.raises(InputError) as error:
        Genotype.load(wrong)
    assert repr(str(wrong)) in str(error.value)


@pytest.mark.parametrize(
    ("arch", "part"),
    [
        ("", "is not in NAS-Bench-201's notation"),
        ("nor_conv_3x3", "is not in NAS-Bench-201's notation"),
        (MIXED.replace("~2", ""), "is not in NAS-Bench-201's notation"),
        (MIXED.replace("~2", "~two"), "is not in NAS-Bench-201's notation"),
        (MIXED.replace("|none~2", ""), "has 2 inputs of node 3"),
        (MIXED.replace("none~2", "none~3"), "3<-3"),
        (MIXED.replace("none~2", "none~1"), "3<-1"),
        (MIXED + "+|none~0|none~1|none~2|none~3|", "4<-0"),
        (MIXED.replace("none~2", "sep_conv_3x3~2"), "'sep_conv_3x3' on edge 3<-2"),
        (MIXED.replace("~2", "~-1"), "-1"),
    ],
)
def test_texts_in_another_notation_are_refused(arch: str, part: str) -> None:
    with pytest.raises(InputError) as error:
        Genotype.from_nasbench201(arch)
    assert part in str(error.value)
    assert repr(arch) in str(error.value)
    assert str(error.value).endswith(".")


def test_other_spaces_have_no_nasbench201_notation() -> None:
    with pytest.raises(InputError, match=r"of the space 'darts', but only .*'nasbench201'.*\.$"):
        darts().to_nasbench201()


def test_a_space_of_ones_own_is_checked_by_its_structure_alone() -> None:
    own = changed(darts(), lambda d: (d.update(space="my.module.SPACE"), first_edge(d, op="my_conv")))
    genotype = Genotype.from_json(own)
    assert genotype.space == "my.module.SPACE"
    assert genotype.cells[0].edges[0] == Edge(0, 2, ("my_conv",))
    assert Genotype.from_json(genotype.to_json()) == genotype
    refused(changed(genotype, lambda d: first_edge(d, source=5)), "2<-5")


def test_the_order_of_the_edges_in_a_file_does_not_matter() -> None:
    genotype = nasbench201()
    text = changed(genotype, lambda d: d["cells"]["cell"]["edges"].reverse())
    assert Genotype.from_json(text).to_nasbench201() == MIXED


def test_an_architecture_without_an_edge_that_its_space_keeps_is_refused() -> None:
    """NAS-Bench-201 keeps all six edges; without one there is no notation for a look-up."""
    refused(changed(nasbench201(), lambda d: d["cells"]["cell"]["edges"].pop()), "'nasbench201'")


# ----------------------------------------------------------------------------------------------------------- fuzz


def damage_bytes(rng: random.Random, text: str) -> bytes:
    data = bytearray(text.encode())
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data))
        kind = rng.randrange(3)
        if kind == 0:
            data[at] = rng.randrange(256)
        elif kind == 1:
            data[at:at] = rng.choice((b'"', b"{", b"}", b",", b"\x00", b"0", b"-", b"\xff"))
        else:
            del data[at : at + rng.randint(1, 20)]
    return bytes(data)


def places(data: Any) -> list[tuple[Any, Any]]:
    """Every container of a JSON value with each of its keys."""
    keys = list(data) if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
    return [place for key in keys for place in ((data, key), *places(data[key]))]


def damage_values(rng: random.Random, text: str) -> bytes:
    data = json.loads(text)
    for _ in range(rng.randint(1, 3)):
        container, key = rng.choice(places(data))
        kind = rng.randrange(3)
        if kind == 0:
            del container[key]
        elif kind == 1:
            other, other_key = rng.choice(places(data))
            # A value may be put inside itself, so both are copies.
            mine, theirs = json.dumps(container[key]), json.dumps(other[other_key])
            other[other_key], container[key] = json.loads(mine), json.loads(theirs)
        else:
            word = "".join(rng.choices(string.printable, k=5))
            container[key] = rng.choice((None, True, -1, 0, 1, 2, 10**30, 0.5, "", word, [], {}, [[]], {"a": 1}))
        if not places(data):
            break
    return json.dumps(data).encode()


@pytest.mark.parametrize("make", [nasbench201, darts])
def test_damaged_files_are_read_or_refused(make: Callable[[], Genotype], tmp_path: Path) -> None:
    rng = random.Random(0)
    text = make().to_json()
    path = tmp_path / "genotype.json"
    read, sentences = 0, []
    for i in range(500):
        path.write_bytes((damage_bytes, damage_values)[i % 2](rng, text))
        try:
            genotype = Genotype.load(path)
        except InputError as error:
            sentences.append(str(error))
        else:
            read += 1
            assert Genotype.from_json(genotype.to_json()) == genotype
    assert read > 0
    assert len(sentences) == 500 - read > 250
    assert all(sentence.endswith(".") and "\n" not in sentence for sentence in sentences)


# --------------------------------------------------------------------------------------------------------- spaces


def test_spaces_are_found_by_name_and_by_import_path() -> None:
    for name, space in SPACES.items():
        assert find_space(name) is space
        assert space.name == name
    assert find_space("dartslight.spaces.S1") is S1
    assert find_space("dartslight.spaces.nasbench201.NASBENCH201") is NASBENCH201


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("", "There is no search space ''; the known ones are nasbench201, darts"),
        ("dart", "There is no search space 'dart'"),
        ("DARTS", "There is no search space 'DARTS'"),
        ("nowhere.SPACE", "'nowhere.SPACE' cannot be imported (No module named 'nowhere')"),
        ("dartslight.spaces.S5", "'dartslight.spaces.S5' cannot be imported"),
        ("dartslight.spaces.SPACES", "There is no search space 'dartslight.spaces.SPACES'"),
        ("dartslight.spaces.SearchSpace", "There is no search space 'dartslight.spaces.SearchSpace'"),
        (".S1", "There is no search space '.S1'"),
        (".spaces.S1", "'.spaces.S1'"),
        ("..S1", "'..S1'"),
    ],
)
def test_wrong_names_of_spaces_are_refused(name: str, part: str) -> None:
    with pytest.raises(InputError) as error:
        find_space(name)
    assert part in str(error.value)
    assert str(error.value).endswith(".")


def test_edges_of_the_darts_spaces_are_in_the_published_order() -> None:
    pairs = [f"{node}<-{source}" for node, sources in ((2, 2), (3, 3), (4, 4), (5, 5)) for source in range(sources)]
    for space in (DARTS, DARTS8, S1, S2, S3, S4):
        assert [cell.name for cell in space.cells] == ["normal", "reduction"]
        for cell in space.cells:
            assert [str(edge) for edge in cell.edges] == pairs
            assert (cell.num_inputs, list(cell.nodes), cell.output) == (2, [2, 3, 4, 5], "concat")
            assert [cell.edges_into(node) for node in cell.nodes] == [
                (0, 1),
                (2, 3, 4),
                (5, 6, 7, 8),
                (9, 10, 11, 12, 13),
            ]
    assert [str(edge) for edge in NASBENCH201.cells[0].edges] == ["1<-0", "2<-0", "2<-1", "3<-0", "3<-1", "3<-2"]


def test_operations_of_the_spaces() -> None:
    seven = ["max_pool_3x3", "avg_pool_3x3", "skip_connect"]
    seven += ["sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5"]
    same = {
        "nasbench201": ["none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"],
        "darts": seven,
        "darts8": ["none", *seven],
        "s2": ["skip_connect", "sep_conv_3x3"],
        "s3": ["none", "skip_connect", "sep_conv_3x3"],
        "s4": ["noise", "sep_conv_3x3"],
        "unas": [
            "skip_connect",
            "sep_conv_3x3",
            "max_pool_3x3",
            "dil_conv_3x3",
            "sep_conv_5x5",
            "avg_pool_3x3",
            "sep_conv_7x7",
        ],
    }
    assert {*same, "s1", "mobile", "mobile_small"} == set(SPACES)
    for name, ops in same.items():
        assert {edge.ops for cell in SPACES[name].cells for edge in cell.edges} == {tuple(ops)}


def test_operations_of_s1_edge_by_edge() -> None:
    """Zela et al., ICLR 2020: two operations for each edge, which differ between edges and cells."""
    published = """
        2<-0  skip,dil3  max,avg
        2<-1  skip,dil5  max,dil3
        3<-0  skip,dil5  max,avg
        3<-1  skip,sep3  max,avg
        3<-2  skip,dil3  skip,dil5
        4<-0  max,skip   max,avg
        4<-1  skip,sep3  max,sep3
        4<-2  skip,sep3  skip,dil3
        4<-3  skip,dil3  skip,dil5
        5<-0  skip,sep3  max,avg
        5<-1  max,skip   max,avg
        5<-2  skip,dil3  skip,dil5
        5<-3  dil3,dil5  skip,dil5
        5<-4  dil3,dil5  skip,dil5
    """
    short = {
        "skip_connect": "skip",
        "max_pool_3x3": "max",
        "avg_pool_3x3": "avg",
        "sep_conv_3x3": "sep3",
        "dil_conv_3x3": "dil3",
        "dil_conv_5x5": "dil5",
    }
    normal, reduction = S1.cells
    ours = [
        [str(a), ",".join(short[op] for op in a.ops), ",".join(short[op] for op in b.ops)]
        for a, b in zip(normal.edges, reduction.edges, strict=True)
    ]
    assert ours == [line.split() for line in published.strip().splitlines()]


@pytest.mark.parametrize(("num_cells", "reductions"), [(8, [2, 5]), (14, [4, 9]), (20, [6, 13])])
def test_reductions_stand_at_one_third_and_two_thirds(num_cells: int, reductions: list[int]) -> None:
    blocks = layout("darts", num_cells)
    assert len(blocks) == num_cells
    assert [i for i, block in enumerate(blocks) if block.reduction] == reductions
    assert [i for i, block in enumerate(blocks) if block.cell == "reduction"] == reductions
    assert [block.width for block in blocks] == [
        1 + (i >= reductions[0]) + 2 * (i >= reductions[1]) for i in range(num_cells)
    ]


def test_nasbench201_has_a_fixed_block_between_its_stages() -> None:
    cells = [(block.cell, block.width, block.reduction) for block in layout("nasbench201", 6)]
    stage = [("cell", 1, False)] * 2
    assert cells == [
        *stage,
        (None, 2, True),
        *[("cell", 2, False)] * 2,
        (None, 4, True),
        *[("cell", 4, False)] * 2,
    ]
    for macro, number in (("nasbench201", 4), ("nasbench201", 0), ("darts", 0), ("darts", -3)):
        with pytest.raises(InputError, match=rf"num_cells is {number},.*; give .*\.$"):
            layout(macro, number)


# -------------------------------------------------------------------------------------------------------- choices


def test_choices_are_values() -> None:
    everything = Choices.everything(S1)
    assert everything.of("normal") == ((0, 1),) * 14
    assert everything.undecided("normal") == everything.kept("normal") == tuple(range(14))

    decided = everything.decide(("normal", 3), 1)
    assert decided.of("normal")[3] == (1,)
    assert decided.undecided("normal") == tuple(e for e in range(14) if e != 3)
    assert decided.kept("normal") == tuple(range(14))
    assert decided.of("reduction") == everything.of("reduction")

    dropped = decided.drop([("normal", 0), ("normal", 13), ("reduction", 5)])
    assert dropped.kept("normal") == tuple(range(1, 13))
    assert dropped.undecided("normal") == (1, 2, *range(4, 13))
    assert dropped.kept("reduction") == (*range(5), *range(6, 14))
    assert dropped.of("normal")[0] == ()
    assert decided.drop([]) == decided

    # Nothing above has changed what it started from.
    assert everything == Choices.everything(S1)
    assert everything != decided != dropped
    with pytest.raises(dataclasses.FrozenInstanceError):
        everything.open = ()  # type: ignore[misc]
    assert len({everything, decided, dropped, Choices.everything(S1)}) == 3


def test_closing_operations_leaves_the_others() -> None:
    choices = Choices.everything(NASBENCH201).close(("cell", 2), 0)
    assert choices.of("cell")[2] == (1, 2, 3, 4)
    assert choices.close(("cell", 2), 0) == choices
    for op in (4, 2, 1):
        choices = choices.close(("cell", 2), op)
    assert choices.of("cell")[2] == (3,)
    assert choices == Choices.everything(NASBENCH201).decide(("cell", 2), 3)
    assert choices.close(("cell", 2), 3) == choices.drop([("cell", 2)])


@pytest.mark.parametrize("space", [NASBENCH201, DARTS, DARTS8, S1, S2, S3, S4], ids=lambda space: space.name)
def test_the_state_of_choices_round_trips_through_plain_values(space: Any) -> None:
    name = space.cells[-1].name
    choices = Choices.everything(space).decide((name, 1), 1).drop([(name, 0)]).close((name, 3), 0)
    state = json.loads(json.dumps(choices.state()))
    assert Choices.from_state(state) == choices
    assert state[name][:2] == [[], [1]]
    assert list(state) == [cell.name for cell in space.cells]
