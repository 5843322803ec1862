"""The commands ``predict`` and ``export``, on real digits that training never saw, and on what strangers may send."""

import csv
import io
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from PIL import Image
from test_command_line import CONFIGS, QUICK, newest
from test_hostile import ARCH, Evil, at_most_one_sentence, edits, many, mutated
from test_networks import random_genotype

from dartslight.cli import main
from dartslight.data import Digits, ImageFolder, Signature
from dartslight.data.augmentation import normalise
from dartslight.errors import InputError
from dartslight.genotype import Genotype
from dartslight.modules.checkpoint import read_checkpoint
from dartslight.nets import DiscreteNetwork
from dartslight.shipping.export import export
from dartslight.shipping.model import Classifier, load_classifier, of_module, of_onnx, of_program
from dartslight.shipping.predict import predict
from dartslight.spaces import SPACES

CPU = torch.device("cpu")
RETRAIN = [
    "fit",
    "--config",
    str(CONFIGS / "cifar10" / "retrain_small.yaml"),
    "--model.init_channels=8",
    "--trainer.max_epochs=2",
    "--trainer.enable_progress_bar=false",
]


@pytest.fixture(scope="module")
def retrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("retrained")
    (root / "genotype.json").write_text(Genotype.from_nasbench201(ARCH).to_json())
    words = ["--data=dartslight.data.Digits", f"--model.genotype={root / 'genotype.json'}"]
    assert main([*RETRAIN, *words, f"--trainer.default_root_dir={root}"]) == 0
    return newest(root)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 299 test digits as files, those of each class in a folder."""
    root = tmp_path_factory.mktemp("digits")
    pictures = Digits().load(train=False)
    for i, (image, label) in enumerate(zip(pictures.images, pictures.labels.tolist(), strict=True)):
        (root / str(label)).mkdir(exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(root / str(label) / f"{i:03}.png")
    return root


@pytest.fixture(scope="module")
def exported(retrained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exported")
    paths = {suffix: folder / f"model.{suffix}" for suffix in ("onnx", "pt2")}
    for path in paths.values():
        assert main(["export", str(retrained), "-o", str(path)]) == 0
    assert sorted(p.name for p in folder.iterdir()) == ["model.onnx", "model.pt2"]
    return paths


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def share_right(rows: list[dict[str, str]]) -> float:
    return sum(Path(row["file"]).parent.name == row["class"] for row in rows) / len(rows)


# ------------------------------------------------------------------------------------------------------- predictions


def test_predictions_are_those_of_the_test(
    retrained: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = retrained / "checkpoints" / "last.ckpt"
    assert main(["test", f"--ckpt_path={checkpoint}"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "test/accuracy" in line)
    output = tmp_path / "new" / "predictions.csv"
    assert main(["predict", str(digits), "--model", str(retrained), "-o", str(output), "--batch_size=100"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{output}\n"
    assert not captured.err
    rows = table(output.read_text())
    assert list(rows[0]) == ["file", "class", "probability"]
    assert [row["file"] for row in rows] == sorted(str(p) for p in digits.rglob("*.png"))
    assert share_right(rows) == pytest.approx(float(line.split("│")[-2] if "│" in line else line.split()[-1]))
    assert share_right(rows) > 0.3  # of ten classes, after two epochs


def test_probabilities_are_the_softmax_of_the_networks_output_on_test_pictures(
    retrained: Path, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Digits(train_portion=1.0)
    data.setup("fit"), data.setup("test")
    checkpoint = read_checkpoint(retrained / "checkpoints" / "last.ckpt")
    network = DiscreteNetwork(Genotype.from_nasbench201(ARCH), 3, 8, 10).eval()
    weights = {k.removeprefix("network."): v for k, v in checkpoint["state_dict"].items() if k.startswith("network.")}
    network.load_state_dict(weights)
    (batch,) = list(data.test_dataloader())[:1]
    with torch.no_grad():
        expected = torch.softmax(network(data.on_after_batch_transfer(batch, 0).images)[0], dim=1)
    files = [str(digits / str(label) / f"{i:03}.png") for i, label in enumerate(batch.labels[:50].tolist())]
    model = ["--model", str(retrained / "checkpoints" / "last.ckpt")]
    assert main(["predict", *files, *model, "--all", "--device=cpu"]) == 0
    rows = table(capsys.readouterr().out)
    assert [row["file"] for row in rows] == files
    for row, probabilities in zip(rows, expected.tolist(), strict=False):
        assert [float(row[f"probability of {c}"]) for c in range(10)] == pytest.approx(probabilities, abs=2e-6)
        assert row["class"] == str(np.argmax(probabilities))
        assert row["probability"] == row[f"probability of {row['class']}"]


def test_exported_models_predict_the_same(
    retrained: Path, exported: dict[str, Path], digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for model in ([str(retrained)], [str(exported["onnx"])], [str(exported["pt2"]), "--trust"]):
        assert main(["predict", str(digits), "--all", "--model", *model]) == 0
        found.append(table(capsys.readouterr().out))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert (a.pop("file"), a.pop("class")) == (b["file"], b["class"])
            for name, value in a.items():
                assert float(b[name]) == pytest.approx(float(value), abs=1e-5)
            a.update(file=b["file"])
            a["class"] = b["class"]


def test_pictures_that_cannot_be_read_are_told_and_left_out(
    retrained: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = next(digits.rglob("*.png"))
    (tmp_path / "empty").mkdir()
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for name, data in {
        "bad.png": b"no picture",
        "cut.png": good.read_bytes()[:60],
        "good.png": good.read_bytes(),
    }.items():
        (mixed / name).write_bytes(data)
    output = tmp_path / "predictions.csv"
    words = ["--model", str(retrained), "-o", str(output)]
    assert main(["predict", str(mixed), str(mixed / "good.png"), *words]) == 2
    captured = capsys.readouterr()
    sentences = captured.err.splitlines()
    assert [s.partition(";")[0] for s in sentences] == [
        f"dartslight: The picture {str(mixed / 'bad.png')!r} cannot be read",
        f"dartslight: The picture {str(mixed / 'cut.png')!r} cannot be read",
        "dartslight: 2 of 3 pictures are not in the table, for the reasons above",
    ]
    assert [row["file"] for row in table(output.read_text())] == [str(mixed / "good.png")]
    output.unlink()
    (mixed / "good.png").unlink()
    assert main(["predict", str(mixed), *words]) == 2
    assert "None of the 2 pictures can be used; the first: The picture" in capsys.readouterr().err
    assert not output.exists()


def test_pictures_of_any_kind_are_prepared_like_those_of_an_image_folder(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i, (width, height, mode) in enumerate([(40, 30, "RGB"), (16, 16, "L"), (7, 9, "RGBA"), (50, 33, "P")]):
        folder = tmp_path / "pictures" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)
        picture.save(folder / f"{i}.png", exif=Image.Exif())
    pictures = ImageFolder(str(tmp_path / "pictures"), size=16, cache_dir=str(tmp_path / "cache")).load(train=True)
    seen = []

    def network(images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return torch.zeros(len(images), 2)

    signature = Signature((16, 16), (0.5, 0.5, 0.5), (1.0, 1.0, 1.0), ("a", "b"))
    predict(sorted((tmp_path / "pictures").rglob("*.png")), of_module(network, signature, CPU))
    assert torch.equal(torch.cat(seen), pictures.images)


def test_a_network_of_oblong_pictures_takes_those_alone(tmp_path: Path) -> None:
    for name, size in {"right": (8, 6), "wrong": (6, 8)}.items():
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    signature = Signature((6, 8), (0.5, 0.5, 0.5), (1.0, 1.0, 1.0), ("a", "b"))
    classifier = Classifier(DiscreteNetwork(Genotype.from_nasbench201(ARCH), 3, 4, 2), signature)
    found = predict([tmp_path / "right.png", tmp_path / "wrong.png"], of_module(classifier, signature, CPU))
    assert [file.name for file in found.files] == ["right.png"]
    assert [p.partition("is")[2] for p in found.problems] == [" 6x8 pixels, but the network reads 8x6; resize it."]


def test_names_that_are_no_text_are_kept(retrained: Path, digits: Path, tmp_path: Path) -> None:
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    (tmp_path / name).write_bytes(next(digits.rglob("*.png")).read_bytes())
    assert main(["predict", str(tmp_path), "--model", str(retrained), "-o", str(tmp_path / "p.csv")]) == 0
    assert b"caf\xe9.png," in (tmp_path / "p.csv").read_bytes()


# ----------------------------------------------------------------------------------------------------------- exports


def test_another_program_can_use_the_exported_model(retrained: Path, exported: dict[str, Path]) -> None:
    session = onnxruntime.InferenceSession(exported["onnx"])
    told = json.loads(session.get_modelmeta().custom_metadata_map["signature.json"])
    assert told["classes"] == [str(i) for i in range(10)]
    assert told["size"] == [16, 16]
    (given,) = session.get_inputs()
    assert (given.name, given.type, given.shape) == ("images", "tensor(uint8)", ["batch", 3, 16, 16])
    classifier = load_classifier(retrained)
    mean, std = told["mean"], told["std"]
    for count in (1, 2, 33):
        images = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8)
        with torch.no_grad():
            expected = classifier.network(normalise(images, mean, std))[0].numpy()
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        assert logits.shape == (count, 10)
        assert np.abs(logits - expected).max() < 1e-5 * max(1, np.abs(expected).max())
    for path in exported.values():
        assert str(Path(__file__).parent.parent).encode() not in path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("stem", "suffix"), [("cifar", "onnx"), ("imagenet", "pt2")])
def test_networks_of_the_darts_kind_are_exported_without_their_auxiliary_head(
    tmp_path: Path, stem: str, suffix: str
) -> None:
    (tmp_path / "genotype.json").write_text(random_genotype(SPACES["darts8"], 3).to_json())
    words = [f"--model.genotype={tmp_path / 'genotype.json'}", "--model.auxiliary_weight=0.4", f"--model.stem={stem}"]
    words += ["--data=dartslight.data.Digits", "--data.max_pictures=200", "--data.size=33", "--trainer.max_epochs=1"]
    assert main([*RETRAIN, *words, f"--trainer.default_root_dir={tmp_path}"]) == 0
    path = tmp_path / f"model.{suffix}"
    assert main(["export", str(newest(tmp_path)), "-o", str(path)]) == 0
    assert b"auxiliary" not in path.read_bytes()


def test_int8_tells_the_accuracy_before_and_after(
    retrained: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "small.onnx"
    assert main(["export", str(retrained), "-o", str(output), "--int8"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "Accuracy" in line)
    assert line.startswith("Accuracy on 299 test pictures: ")
    shares = []
    for model in (retrained, output):
        assert main(["predict", str(digits), "--model", str(model)]) == 0
        shares.append(share_right(table(capsys.readouterr().out)))
    assert f": {shares[0]:.2%} before, {shares[1]:.2%} with 8 bits; " in line
    assert abs(shares[0] - shares[1]) < 0.05
    assert list(tmp_path.iterdir()) == [output]
    weights = [i.data_type for i in onnx.load(output).graph.initializer if len(i.dims) == 4]
    assert len(weights) > 10
    assert set(weights) == {onnx.TensorProto.INT8}


@pytest.mark.slow
def test_int8_measures_the_validation_half_where_there_is_one(
    tmp_path: Path, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "genotype.json").write_text(Genotype.from_nasbench201(ARCH).to_json())
    words = [f"--model.genotype={tmp_path / 'genotype.json'}", f"--data.root={digits}", "--seed_everything=5"]
    words += ["--data.train_portion=0.7", f"--data.cache_dir={tmp_path / 'cache'}"]
    assert main([*RETRAIN, *words, f"--trainer.default_root_dir={tmp_path}"]) == 0
    run, moved = newest(tmp_path), tmp_path / "moved"
    capsys.readouterr()
    assert main(["validate", f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "val/accuracy" in line)
    moved.symlink_to(digits)
    assert main(["export", str(run), "-o", str(tmp_path / "small.onnx"), "--int8", f"--data.root={moved}"]) == 0
    told = capsys.readouterr().out
    assert "Accuracy on 90 validation pictures: " in told
    before = float(told.partition("validation pictures: ")[2].partition("%")[0]) / 100
    assert before == pytest.approx(float(line.split()[-1].strip("│")), abs=1e-4)


def test_an_export_that_computes_something_else_is_not_written(
    retrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in (1e-4, float("nan")):

        def wrong(data: bytes, name: str, device: torch.device, value: float = value) -> Any:
            model = of_program(data, name, device)
            return type(model)(model.signature, lambda images: model.logits(images) + value * 10)

        monkeypatch.setattr("dartslight.shipping.export.of_program", wrong)
        assert main(["export", str(retrained), "-o", str(tmp_path / "model.pt2")]) == 2
        assert "logits differ from the network's" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_random_operations_are_not_exported() -> None:
    choices = random_genotype(SPACES["s4"], 1)
    assert any(edge.ops == ("noise",) for cell in choices.cells for edge in cell.edges)
    signature = Signature((8, 8), (0.5, 0.5, 0.5), (1.0, 1.0, 1.0), ("a", "b"))
    with pytest.raises(InputError, match="draws random numbers"):
        export(Classifier(DiscreteNetwork(choices, 3, 4, 2), signature), ".pt2")


def test_without_the_packages_the_extra_is_named(
    retrained: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.onnx").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for words in (
        ["export", str(retrained), "-o", str(tmp_path / "b.onnx")],
        ["predict", str(digits), "--model", str(tmp_path / "a.onnx")],
    ):
        assert main(words) == 2
        assert "pip install 'dartslight[export]'" in capsys.readouterr().err


# ------------------------------------------------------------------------------------- classes, mistakes and strangers


def test_pictures_of_other_classes_are_refused_and_others_are_normalised_as_in_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for root, names, least in (("a", "cat dog", 0), ("b", "bird dog", 0), ("c", "cat dog", 200)):
        for name in names.split():
            for part in ("train", "test"):
                folder = tmp_path / root / part / name
                folder.mkdir(parents=True)
                for i in range(20):
                    pixels = rng.integers(least, 256, (16, 16, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / f"{i}.png")
    (tmp_path / "genotype.json").write_text(Genotype.from_nasbench201(ARCH).to_json())
    words = [f"--model.genotype={tmp_path / 'genotype.json'}", f"--data.root={tmp_path / 'a'}"]
    words += [f"--data.cache_dir={tmp_path / 'cache'}", "--trainer.max_epochs=1"]
    assert main([*RETRAIN, *words, f"--trainer.default_root_dir={tmp_path}"]) == 0
    checkpoint = newest(tmp_path) / "checkpoints" / "last.ckpt"
    capsys.readouterr()
    assert main(["test", f"--ckpt_path={checkpoint}", f"--data.root={tmp_path / 'b'}"]) == 2
    error = capsys.readouterr().err
    assert "trained on the classes 'cat', 'dog', but the pictures have 'bird', 'dog'; give" in error

    assert main(["test", f"--ckpt_path={checkpoint}", f"--data.root={tmp_path / 'c'}"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "test/accuracy" in line)
    assert main(["predict", str(tmp_path / "c" / "test"), "--model", str(checkpoint)]) == 0
    rows = table(capsys.readouterr().out)
    assert share_right(rows) == pytest.approx(float(line.split()[-1].strip("│")))
    own = ImageFolder(str(tmp_path / "c"), size=16, train_portion=1.0, cache_dir=str(tmp_path / "cache"))
    own.setup("fit")
    signature = load_classifier(checkpoint).signature
    assert abs(own.normalisation[0][0] - signature.mean[0]) > 0.1
    own.follow(signature)
    assert own.normalisation == (signature.mean, signature.std)


@pytest.mark.parametrize(
    "change",
    [
        {"size": [16]},
        {"size": [0, 16]},
        {"size": ["16", "16"]},
        {"mean": [0.5, 0.5]},
        {"std": [0.5, 0.0, 0.5]},
        {"std": [0.5, float("nan"), 0.5]},
        {"classes": ["a"]},
        {"classes": ["a", 1]},
        {"classes": None},
    ],
)
def test_signatures_are_checked(change: dict[str, Any]) -> None:
    whole = Signature((16, 12), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), ("a", "b"))
    assert Signature.from_state(whole.state(), "x") == whole
    assert Signature.from_json(json.dumps(whole.state()), "x") == whole
    for state in ({**whole.state(), **change}, None, [], "x"):
        with pytest.raises(InputError, match=r"^It does not say how its pictures were prepared"):
            Signature.from_state(state, "It")
    with pytest.raises(InputError, match="does not say"):
        Signature.from_json("{", "It")


def test_wrong_input_is_one_sentence_and_writes_nothing(
    retrained: Path, exported: dict[str, Path], digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *QUICK, "--trainer.max_epochs=1", f"--trainer.default_root_dir={tmp_path / 'runs'}"]) == 0
    searched = str(newest(tmp_path / "runs"))
    foreign, oblong, mute = (tmp_path / f"{name}.onnx" for name in ("foreign", "oblong", "mute"))
    foreign.write_bytes(b"no model")
    model = onnx.load(exported["onnx"])
    signature = json.loads(model.metadata_props[0].value)
    onnx.helper.set_model_props(model, {"signature.json": json.dumps({**signature, "size": [16, 12]})})
    onnx.save(model, oblong)
    onnx.helper.set_model_props(model, {})
    del model.metadata_props[:]
    onnx.save(model, mute)
    stripped = tmp_path / "stripped.ckpt"
    checkpoint = read_checkpoint(retrained / "checkpoints" / "last.ckpt")
    checkpoint["state_dict"].popitem()
    torch.save(checkpoint, stripped)
    (tmp_path / "nothing").mkdir()
    run, folder, output = str(retrained), str(digits), str(tmp_path / "out.csv")
    cases = {
        "no checkpoint": ["predict", folder, "--model", str(tmp_path / "nothing")],
        "of the kind 'search'": ["predict", folder, "--model", searched],
        "is not whole": ["predict", folder, "--model", str(stripped)],
        "cannot be read (No such file": ["predict", folder, "--model", str(tmp_path / "no.onnx")],
        "cannot be read by ONNX Runtime": ["predict", folder, "--model", str(foreign)],
        "does not give 10 numbers": ["predict", folder, "--model", str(oblong)],
        "does not say how": ["predict", folder, "--model", str(mute)],
        "no picture or folder": ["predict", str(tmp_path / "no"), "--model", run],
        "no PNG or JPEG files": ["predict", str(tmp_path / "nothing"), "--model", run],
        "batch_size is 0": ["predict", folder, "--model", run, "--batch_size=0"],
        "no device 'gpu'": ["predict", folder, "--model", run, "--device=gpu"],
        "required: model": ["predict", folder],
        "required: pictures": ["predict", "--model", run],
        "exported as .onnx or .pt2": ["export", run, "-o", str(tmp_path / "model.pb")],
        "retrain the run's genotype.json": ["export", searched, "-o", str(tmp_path / "model.onnx")],
        "There is no checkpoint": ["export", str(tmp_path / "no"), "-o", str(tmp_path / "model.onnx")],
        "--int8 is for .onnx": ["export", run, "-o", str(tmp_path / "model.pt2"), "--int8"],
        "are for --int8": ["export", run, "-o", str(tmp_path / "model.pt2"), "--data.size=8"],
        "sizes": ["export", run, "-o", str(tmp_path / "model.onnx"), "--int8", "--data.sizes=8"],
    }
    for sentence, words in cases.items():
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()
        assert main([*words, "-o", output] if words[0] == "predict" else words) == 2, sentence
        captured = capsys.readouterr()
        assert sentence in captured.err, captured.err
        assert captured.err.count("\n") == 1, captured.err
        assert sorted(tmp_path.rglob("*")) == before, sentence
    for path in (str(tmp_path), f"{foreign}/out.csv"):
        assert main(["predict", folder, "--model", run, "-o", path]) == 2
        assert "cannot be written; give a path" in capsys.readouterr().err


def test_a_strangers_program_runs_nothing_unless_it_is_trusted(
    exported: dict[str, Path], digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace, path = tmp_path / "trace", tmp_path / "evil.pt2"
    code = io.BytesIO()
    torch.save(Evil(trace), code)
    with zipfile.ZipFile(exported["pt2"]) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("weights_config.json"):
                config = json.loads(data)
                first = next(iter(config["config"].values()))
                first["use_pickle"] = True
                data = json.dumps(config).encode()
            target.writestr(name, code.getvalue() if name.endswith("weights/weight_0") else data)
    assert main(["predict", str(digits), "--model", str(path)]) == 2
    assert "runs code that a stranger can have put" in capsys.readouterr().err
    assert not trace.exists()
    assert main(["predict", str(digits), "--model", str(path), "--trust"]) == 2
    assert "cannot be read by torch" in capsys.readouterr().err
    assert trace.exists()  # it would have


@many(150)
@given(changes=edits)
def test_mutated_models(exported: dict[str, Path], changes: Any) -> None:
    with at_most_one_sentence():
        model = of_onnx(mutated(exported["onnx"].read_bytes(), changes), "The model", CPU)
        model.probabilities(torch.zeros(2, 3, *model.signature.size, dtype=torch.uint8))
