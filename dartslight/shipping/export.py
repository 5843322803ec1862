"""Exports: a trained network as a file for other programs, which is tried before it is written.

    python -m dartslight export RETRAIN_RUN -o model.onnx

The model reads pictures as RGB bytes, (n, 3, height, width), with any n, and normalises them itself; it returns logits,
(n, classes). Its size and the names of its classes are JSON in the metadata (.onnx) or extra file (.pt2)
``signature.json``.
"""

import io
import json
import warnings

import torch
from torch import Tensor

from dartslight.errors import InputError
from dartslight.nets.operations import Noise
from dartslight.shipping.model import INPUT, OUTPUT, SIGNATURE, Classifier, Model, needed, of_onnx, of_program

FORMATS = (".onnx", ".pt2")
_TOLERANCE = 1e-5
_BATCHES = (1, 7)  # pictures in the batches by which an exported model is tried
_CPU = torch.device("cpu")


def export(classifier: Classifier, suffix: str) -> tuple[bytes, str]:
    """Returns a network as the bytes of a file, and in words how it was tried.

    Args:
        classifier: The network, on the CPU.
        suffix: The format: ``.onnx`` or ``.pt2``.

    Raises:
        InputError: If the network cannot be exported or computes something else when it is.
    """
    check_format(suffix)
    if any(isinstance(module, Noise) for module in classifier.modules()):
        raise InputError(
            "The network draws random numbers (the operation noise), which an exported one would not repeat; retrain "
            "an architecture without it."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters warn of their own inner workings
        program = torch.export.export(
            classifier, (_random_pictures(classifier, 2),), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
        )
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # it names files of this machine
        data = _onnx(program, classifier) if suffix == ".onnx" else _pt2(program, classifier)
        model = (of_onnx if suffix == ".onnx" else of_program)(data, "The exported model", _CPU)
    distance = _distance(classifier, model)
    return data, f"Tried on random pictures: logits differ from the network's by at most {distance:.0e}."


def check_format(suffix: str) -> None:
    """Checks that models can be exported in a format.

    Raises:
        InputError: If there is no such format, or it needs packages that are not there.
    """
    if suffix not in FORMATS:
        raise InputError(f"Models are exported as {' or '.join(FORMATS)}, but not as {suffix!r}; give such a path.")
    if suffix == ".onnx":
        needed("onnx", "onnxscript", "onnxruntime")


def _onnx(program: torch.export.ExportedProgram, classifier: Classifier) -> bytes:
    exported = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=({0: "batch"},),
    )
    assert exported is not None
    exported.model.metadata_props[SIGNATURE] = _text(classifier)
    model = exported.model_proto
    for node in model.graph.node:
        node.ClearField("metadata_props")  # where it was in the program: a quarter of the file
    data: bytes = model.SerializeToString()
    return data


def _pt2(program: torch.export.ExportedProgram, classifier: Classifier) -> bytes:
    data = io.BytesIO()
    torch.export.save(program, data, extra_files={SIGNATURE: _text(classifier)})
    return data.getvalue()


def _text(classifier: Classifier) -> str:
    return json.dumps(classifier.signature.state())


def _random_pictures(classifier: Classifier, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    size = (count, 3, *classifier.signature.size)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)


def _distance(classifier: Classifier, model: Model) -> float:
    """Returns the largest difference of logits for random pictures, in the unit of the largest logit where that is > 1.

    Raises:
        InputError: If the exported model is not the same network.
    """
    found = []
    for count in _BATCHES:
        images = _random_pictures(classifier, count)
        with torch.inference_mode():
            expected = classifier(images)
        found.append((model.logits(images) - expected).abs().max() / expected.abs().max().clamp(min=1.0))
    worst = float(torch.stack(found).max())  # NaN where one is NaN
    if not worst <= _TOLERANCE or model.signature != classifier.signature:
        raise InputError(
            f"The exported model's logits differ from the network's by {worst:.1e}, but {_TOLERANCE} is allowed, so it "
            "was not written; export the other format, and report this with the run's config.yaml and genotype.json."
        )
    return worst
