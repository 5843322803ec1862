"""The report: what the page says is what the runs' files say, and a browser shows all of it."""

import csv
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from scipy.stats import permutation_test
from test_command_line import QUICK, newest

from dartslight.cli import main
from dartslight.errors import InputError
from dartslight.genotype import Genotype
from dartslight.report import draw_cells
from dartslight.report.charts import Bar, bar_chart, line_chart
from dartslight.report.history import epochs_of, heat_maps
from dartslight.report.marks import family_colour
from dartslight.report.page import render, write_report
from dartslight.report.runs import find_runs, read_run
from dartslight.run_folder import write_whole
from dartslight.selection.statistics import sign_flip

BROWSER = next((path for name in ("chromium", "google-chrome", "chrome") if (path := shutil.which(name))), None)

# ------------------------------------------------------------------------------------------------------ a real run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a job array leaves it: two seeds, each with a selection of its supernet by magnitude."""
    root = tmp_path_factory.mktemp("seeds")
    for seed in ("0", "1"):
        folder = root / f"seed_{seed}"
        assert main(["fit", *QUICK, f"--seed_everything={seed}", f"--trainer.default_root_dir={folder}"]) == 0
        supernet = newest(folder) / "checkpoints" / "search.ckpt"
        rule = ["--selection=dartslight.selection.Magnitude", f"--seed_everything={seed}"]
        assert main(["select", f"--supernet={supernet}", *rule, f"--trainer.default_root_dir={folder}"]) == 0
    return root


@pytest.fixture(scope="module")
def page(runs: Path) -> str:
    output = runs / "report.html"
    assert main(["report", str(runs), "-o", str(output)]) == 0
    return output.read_text()


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_history_has_every_open_operation_of_every_epoch_and_the_alphas_of_the_checkpoint(runs: Path) -> None:
    import torch

    run = runs / "seed_0" / "version_0"
    alphas, times = rows_of(run / "alphas.csv"), rows_of(run / "times.csv")
    assert [row["phase"] for row in times] == ["search"] * 2 + ["tuning"] * 5
    assert all(float(row["seconds"]) > 0 and float(row["memory_mib"]) > 50 for row in times)
    # All 30 operations until the first decision, then 4 fewer after each.
    assert [sum(row["epoch"] == str(e) for row in alphas) for e in range(7)] == [30, 30, 26, 22, 18, 14, 10]
    kept = torch.load(run / "checkpoints" / "search.ckpt", weights_only=True)["state_dict"]["architecture.alphas.cell"]
    last = [row for row in alphas if row["epoch"] == "1"]
    assert np.array_equal(kept.numpy().ravel(), np.float32([row["alpha"] for row in last]))
    assert np.allclose([float(row["weight"]) for row in last], kept.double().softmax(-1).numpy().ravel(), rtol=1e-5)


def test_a_run_that_goes_on_continues_its_history(runs: Path, tmp_path: Path) -> None:
    root = [*QUICK, f"--trainer.default_root_dir={tmp_path}", "--checkpoint_every_n_batches=1"]
    assert main(["fit", *root, "--trainer.max_steps=3"]) == 0
    run = newest(tmp_path)
    interrupted = read_run(run)
    assert interrupted.genotype is None
    assert "Not decided yet" in render([interrupted])
    assert main(["fit", *root, f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"]) == 0
    assert (run / "alphas.csv").read_text() == (runs / "seed_0" / "version_0" / "alphas.csv").read_text()
    assert [row["epoch"] for row in rows_of(run / "times.csv")] == [str(e) for e in range(7)]


def test_the_page_says_what_the_files_say(runs: Path, page: str) -> None:
    run = runs / "seed_0" / "version_0"
    text = html.unescape(page)
    assert json.loads((run / "genotype.json").read_text()) == json.loads(
        re.findall(r"genotype.json</summary><pre>(.*?)</pre>", text, re.DOTALL)[0]
    )
    decisions = rows_of(run / "decisions.csv")
    for number in range(6):
        own = [row for row in decisions if row["decision"] == str(number)]
        kept = next(row for row in own if row["chosen"] == "1")
        assert f"<h3>{number + 1}. cell {kept['edge']}: {kept['op']}</h3>" in text
        for row in own:
            assert f">{float(row['score_without']) - float(row['score_with']):.4g}</text>" in text
    unclear = {row["decision"] for row in decisions if float(row["margin"]) < 2 * float(row["noise"])}
    assert f"6 decisions; {len(unclear)} within the noise" in text
    assert "dartslight==" in text
    assert "torch==" in text
    # One file, which loads nothing.
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:)|url\(|@import|<script""", page)


def test_magnitude_and_perturbation_disagree_where_the_weights_say_so(runs: Path) -> None:
    run = read_run(runs / "seed_0" / "version_0")
    weights = {
        (row["epoch"], row["edge"], row["op"]): float(row["weight"])
        for row in rows_of(runs / "seed_0" / "version_0" / "alphas.csv")
    }
    for taken in run.decisions:
        candidates = taken.decision.candidates
        known = [weights[str(taken.epochs - 1), f"{c.node}<-{c.source}", c.op] for c in candidates]
        assert taken.by_magnitude is candidates[int(np.argmax(known))]


def test_runs_of_one_method_are_one_row(runs: Path, page: str) -> None:
    table = re.findall(r'aria-label="the table as CSV">(.*?)</textarea>', page, re.DOTALL)
    rows = list(csv.DictReader(html.unescape(table[0]).splitlines()))
    assert [(row["method"], row["runs"]) for row in rows] == [
        ("DARTS, first order: Perturbation (paired)", "2"),
        ("DARTS, first order: Magnitude", "2"),
    ]
    last = [float(rows_of(runs / f"seed_{s}" / "version_0" / "metrics.csv")[1]["val/accuracy"]) for s in (0, 1)]
    assert "decisions within the noise" in rows[0]
    assert rows[1]["decisions within the noise"] == ""  # of which magnitude knows nothing
    assert rows[0]["validation accuracy"] == f"{np.mean(last):.4g} ± {np.std(last, ddof=1):.2g}"


def test_a_retraining_and_an_average_have_their_pages(runs: Path, tmp_path: Path) -> None:
    members = [f"../seeds/seed_{seed}/version_0" for seed in (0, 1)]
    shutil.copytree(runs, tmp_path / "seeds")
    average = tmp_path / "average"
    average.mkdir()
    write_whole(average / "config.yaml", yaml.safe_dump({"average_of": members}))
    for name in ("genotype.json", "decisions.csv"):
        shutil.copy(runs / "seed_0" / "version_0" / name, average)
    found = read_run(average)
    assert found.method.endswith(", 2 supernets averaged")
    assert found.seed is None
    assert len(found.decisions) == 6
    retraining = tmp_path / "retraining"
    retraining.mkdir()
    settings = {"genotype": str(average / "genotype.json"), "num_cells": 5, "init_channels": 8}
    model = {"class_path": "dartslight.modules.RetrainModule", "init_args": settings}
    write_whole(retraining / "config.yaml", yaml.safe_dump({"model": model, "seed_everything": 3}))
    write_whole(retraining / "metrics.csv", "step,epoch,train/loss,test/accuracy\n9,0,1.5,\n19,1,0.5,0.75\n")
    run = read_run(retraining)
    assert (run.method, run.seed, run.last("test/accuracy")) == ("retraining", 3, 0.75)
    assert "train/loss" in render([run, found])


# ------------------------------------------------------------------------------------------- drawings of a search


def test_the_animation_ends_with_the_architecture_that_was_decided(runs: Path, tmp_path: Path) -> None:
    run = runs / "seed_0" / "version_0"
    assert main(["draw", str(run), "-o", str(tmp_path / "search.gif")]) == 0
    with Image.open(tmp_path / "search.gif") as film:
        # Frames that are equal become one, which is shown longer.
        lengths = []
        for frame in range(film.n_frames):
            film.seek(frame)
            lengths.append(film.info["duration"])
        assert sum(lengths) == 7 * 400 + 3000
        last = np.asarray(film.convert("RGB"), dtype=float)
    decided = draw_cells(Genotype.load(str(run / "genotype.json")), names=["decided"])
    decided.set_dpi(72)
    canvas: Any = FigureCanvasAgg(decided)
    canvas.draw()
    drawn = np.asarray(canvas.buffer_rgba())[..., :3].astype(float)
    assert last.shape == drawn.shape
    assert np.abs(last - drawn).mean() < 1  # a GIF has fewer colours
    _, epochs = epochs_of(read_run(run))
    left = [epoch.choices.undecided("cell") for epoch in epochs]
    assert [len(edges) for edges in left] == [6, 6, 5, 4, 3, 2, 1]


def test_heat_maps_and_several_genotypes_are_drawn(runs: Path, tmp_path: Path) -> None:
    run = runs / "seed_0" / "version_0"
    assert main(["draw", str(run), "--alphas", "-o", str(tmp_path / "alphas.png")]) == 0
    with Image.open(tmp_path / "alphas.png") as image:
        assert min(image.size) > 200
    # The weights that each edge had before it was decided, and a frame around what was kept.
    (axes, _) = heat_maps(read_run(run)).axes
    genotype = Genotype.load(str(run / "genotype.json"))
    names = [label.get_text() for label in axes.get_xticklabels()]
    frames = [(p.get_x() + 0.47, p.get_y() + 0.44) for p in axes.patches if p.get_gid() == "kept"]
    kept = [(names.index(edge.ops[0]), e) for e, edge in enumerate(genotype.cells[0].edges)]
    np.testing.assert_allclose(sorted(frames), sorted(kept))
    known = {(r["edge"], r["op"], int(r["epoch"])): float(r["weight"]) for r in rows_of(run / "alphas.csv")}
    for row in rows_of(run / "decisions.csv"):
        e = [str(edge) for edge in genotype.cells[0].edges].index(row["edge"])
        before = known[row["edge"], row["op"], int(row["epoch"]) - 1]
        assert axes.images[0].get_array()[e, names.index(row["op"])] == before
    both = [str(run), str(runs / "seed_1" / "version_0" / "genotype.json")]
    assert main(["draw", *both, "-o", str(tmp_path / "both.png")]) == 0
    assert main(["draw", both[0], "-o", str(tmp_path / "one.png")]) == 0
    with Image.open(tmp_path / "both.png") as two, Image.open(tmp_path / "one.png") as one:
        assert two.width > 1.9 * one.width


@pytest.mark.parametrize("words", [["{run}/genotype.json", "-o", "a.gif"], ["{run}", "{run}", "-o", "a.gif"]])
def test_only_one_run_is_a_search(runs: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    run = str(runs / "seed_0" / "version_0")
    assert main(["draw", *[word.format(run=run) for word in words]]) == 2
    assert "the folder of one run" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ several methods


def made(root: Path, method: str, seed: int, accuracy: float) -> None:
    selection = {"class_path": f"dartslight.selection.{method}", "init_args": {}}
    model = {"class_path": "dartslight.modules.SearchModule", "init_args": {"space": "nasbench201"}}
    config = {"seed_everything": seed, "model": model, "selection": selection}
    write_whole(root / f"{method}_{seed}" / "config.yaml", yaml.safe_dump(config))
    write_whole(root / f"{method}_{seed}" / "metrics.csv", f"step,epoch,val/accuracy\n5,0,{accuracy}\n")


def test_methods_are_compared_on_common_seeds(tmp_path: Path) -> None:
    first, second = [0.50, 0.52, 0.49, 0.55, 0.60], [0.53, 0.51, 0.56, 0.59, 0.66]
    for seed in range(5):
        made(tmp_path, "Magnitude", seed, first[seed])
        made(tmp_path, "Random", seed + 1, second[seed])  # seeds 1 to 5: four in common
    differences = np.array(second[:4]) - np.array(first[1:])
    expected = permutation_test(
        (differences,), lambda x, axis: x.mean(axis=axis), permutation_type="samples", n_resamples=np.inf
    ).pvalue
    made(tmp_path, "Sensitivity", 1, 0.5)
    (tmp_path / "Sensitivity_1" / "metrics.csv").unlink()
    write_report([str(tmp_path)], tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    said = f"{differences.mean():+.4g}, more in {(differences > 0).sum()} of 4, p = {expected:.3f}"
    assert said in html.unescape(text)
    assert '"DARTS, first order: Sensitivity",1,,\n' in html.unescape(text)  # nothing to compare
    chart = re.findall(r'<svg class="chart".*?</svg>', text)[0]
    dots = [float(value) for value in re.findall(r'class="dot"[^>]*><title>([\d.]+)', chart)]
    assert dots == [*first, *second]
    means = [float(x) for x in re.findall(r'class="mean" x1="([\d.]+)"', chart)]
    places = [float(x) for x in re.findall(r'class="dot" cx="([\d.]+)"', chart)]
    np.testing.assert_allclose(means, [np.mean(places[:5]), np.mean(places[5:])], atol=0.1)


@pytest.mark.parametrize("count", [4, 9])
def test_sign_flip_is_the_exact_permutation_test(count: int) -> None:
    differences = np.random.default_rng(count).normal(0.3, 1.0, count)
    exact = permutation_test((differences,), lambda x, axis: x.sum(axis=axis), permutation_type="samples")
    assert sign_flip(list(differences)) == pytest.approx(exact.pvalue)
    assert sign_flip([0.3]) == 1.0
    assert sign_flip([1.0] * 20) == pytest.approx(2**-16, abs=2**-15)


def test_what_decides_without_training_is_called_so(tmp_path: Path) -> None:
    made(tmp_path, "FreeDarts", 0, 0.5)
    config = yaml.safe_load((tmp_path / "FreeDarts_0" / "config.yaml").read_text())
    config["selection"]["init_args"]["score"] = {"class_path": "dartslight.selection.Snip"}
    write_whole(tmp_path / "FreeDarts_0" / "config.yaml", yaml.safe_dump(config))
    assert read_run(tmp_path / "FreeDarts_0").method == "without training: FreeDarts (Snip)"


def test_methods_that_share_a_name_tell_what_they_differ_in(tmp_path: Path) -> None:
    for seed, rate in ((0, 0.1), (1, 0.2)):
        made(tmp_path, "Magnitude", seed, 0.5)
        path = tmp_path / f"Magnitude_{seed}" / "config.yaml"
        config = yaml.safe_load(path.read_text())
        config["model"]["init_args"]["learning_rate"] = rate
        write_whole(path, yaml.safe_dump(config))
    text = html.unescape(render(find_runs([str(tmp_path)])))
    assert "[learning_rate 0.1]" in text
    assert "[learning_rate 0.2]" in text


# ----------------------------------------------------------------------------------------------------- bad input


def test_what_files_say_is_text_and_never_markup(tmp_path: Path) -> None:
    made(tmp_path, "Magnitude", 0, 0.5)
    evil = "<script>alert(1)</script>"
    write_whole(tmp_path / "Magnitude_0" / "metrics.csv", f"step,epoch,true/{evil}\n5,0,0.5\n")
    with (tmp_path / "Magnitude_0" / "config.yaml").open("a") as file:
        file.write(f"note: '{evil}'\n")
    assert "<script" not in render(find_runs([str(tmp_path)]))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.yaml", b"\xff\xfe", "is no configuration"),
        ("metrics.csv", b"step,epoch,val/loss\n1,zero,0.5\n", "is not as dartslight writes it"),
        ("alphas.csv", b"epoch,cell\n0,cell\n", "is not as dartslight writes it"),
        ("times.csv", b"epoch,phase,seconds,memory_mib\n0,search,nan,1\n", "is not as dartslight writes it"),
        ("decisions.csv", b"decision\n0\n", "cannot be read"),
        ("genotype.json", b"{", "genotype.json"),
    ],
)
def test_damaged_files_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes, said: str
) -> None:
    made(tmp_path, "Magnitude", 0, 0.5)
    (tmp_path / "Magnitude_0" / name).write_bytes(content)
    assert main(["report", str(tmp_path / "Magnitude_0"), "-o", str(tmp_path / "r.html")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "r.html").exists()


def test_folders_without_runs_and_other_formats_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="There is no run"):
        find_runs([str(tmp_path)])
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "r.pdf")]) == 2
    assert "ends in .html" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------- what one sees


def test_curves_of_operations_have_the_colours_of_drawings_and_marks_where_edges_were_decided(runs: Path) -> None:
    run = read_run(runs / "seed_0" / "version_0")
    charts = [chart for chart in re.findall(r"<svg.*?</svg>", render([run])) if "mixing weights</text>" in chart]
    assert len(charts) == 6
    for chart in charts:
        legend = re.findall(r'<line [^>]*?(stroke="#\w+"[^>]*?) stroke-width="2.4"/><text[^>]*>(\w+)<', chart)
        assert len({look for look, _ in legend}) == 5
        assert all(f'stroke="{family_colour(op)}"' in look for look, op in legend)
        assert chart.count('class="mark"') == 1


def test_a_chart_of_equal_values_and_one_of_negative_bars_stay_within_their_frame() -> None:
    drawings = [
        line_chart("x", {"a": [(1, 0.0)], "b" * 90: [(2, 0.0)]}),
        bar_chart("y", [Bar("a", -1.0), Bar("b", None)]),
    ]
    for drawing in drawings:
        assert "nan" not in drawing
        width = float(re.findall(r'viewBox="0 0 (\d+)', drawing)[0])
        assert all(-1 <= float(x) <= width for x in re.findall(r' x1?="(-?[\d.]+)"', drawing))


# The page is looked at in a frame, because windows have a least width, and by a script of its own.
_LOOK = """<script>
addEventListener("load", () => {
  document.querySelectorAll("details").forEach(d => d.open = true);
  const found = {dark: matchMedia("(prefers-color-scheme: dark)").matches, width: innerWidth, errors: window.errors,
    figures: 0, flat: [], cut: [], outside: [], faint: [], covered: []};
  for (const figure of document.querySelectorAll("svg, img")) {
    const box = figure.getBoundingClientRect();
    found.figures += 1;
    if (!(box.width > 100 && box.height > 30)) found.flat.push(figure.outerHTML.slice(0, 80));
  }
  for (const figure of document.querySelectorAll("svg")) {
    const frame = figure.viewBox.baseVal, boxes = [...figure.querySelectorAll("text")].map(t => [t, t.getBBox()]);
    boxes.forEach(([text, box], i) => {
      if (box.x < 0 || box.y < 0 || box.x + box.width > frame.width || box.y + box.height > frame.height)
        found.outside.push(text.textContent);
      for (const [other, b] of boxes.slice(i + 1)) {
        const beside = box.x >= b.x + b.width || b.x >= box.x + box.width;
        if (!beside && box.y + 2 < b.y + b.height && b.y + 2 < box.y + box.height)
          found.covered.push(text.textContent + " / " + other.textContent);
      }
    });
  }
  for (const block of document.querySelectorAll("body, section, h1, h2, h3, p, summary, .badge, div:not(.wide)"))
    if (block.scrollWidth > block.clientWidth + 1 && getComputedStyle(block).display !== "inline")
      found.cut.push(block.tagName + " " + block.className);
  // Contrast as in https://www.w3.org/TR/WCAG21/#dfn-contrast-ratio.
  const linear = c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .05 + .2126 * linear(r / 255) + .7152 * linear(g / 255) + .0722 * linear(b / 255);
  const parts = colour => colour.match(/[\\d.]+/g).map(Number);
  for (const text of document.querySelectorAll("h1, h2, h3, p, td, th, summary, pre, textarea, .badge, svg text")) {
    const style = getComputedStyle(text);
    let back = text, paper;
    do paper = parts(getComputedStyle(back).backgroundColor); while (paper[3] === 0 && (back = back.parentElement));
    const pair = [light(parts(text.closest("svg") ? style.fill : style.color)), light(paper)].sort((a, b) => b - a);
    if (!(pair[0] / pair[1] >= 4.5)) found.faint.push(text.textContent.trim().slice(0, 40));
  }
  const result = parent.document.createElement("pre");
  result.id = "result";
  result.textContent = JSON.stringify(found);
  parent.document.body.append(result);
});
</script>"""
_LISTEN = """<script>window.errors = [];
addEventListener("error", e => window.errors.push(String(e.message)), true);
console.error = (...words) => window.errors.push(words.join(" "));</script>"""
_QUIET = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
_QUIET += ["--disable-background-networking", "--disable-component-update"]


@pytest.mark.skipif(BROWSER is None, reason="there is no browser")
@pytest.mark.parametrize(("width", "dark"), [(360, True), (1280, False)], ids=["narrow and dark", "wide and light"])
def test_a_browser_shows_all_of_it(page: str, tmp_path: Path, width: int, dark: bool) -> None:
    inner = page.replace("<head>", f"<head>{_LISTEN}").replace("</body>", f"{_LOOK}</body>")
    path = tmp_path / "page.html"
    path.write_text(
        f'<iframe srcdoc="{html.escape(inner)}" style="width: {width}px; height: 900px; border: 0"></iframe>'
    )
    assert BROWSER is not None
    words = [BROWSER, *_QUIET, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,1000"]
    words += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--virtual-time-budget=5000", "--dump-dom"]
    shown = subprocess.run([*words, path.as_uri()], capture_output=True, text=True, timeout=120, check=True).stdout
    found: dict[str, Any] = json.loads(html.unescape(re.findall(r'<pre id="result">(.*?)</pre>', shown, re.DOTALL)[0]))
    # For each of four runs the cells, curves and decisions.
    assert found.pop("figures") > 4 * 8
    assert (found.pop("width"), found.pop("dark")) == (width, dark)
    assert not any(found.values()), found
