"""Static quantization: an exported network that computes with integers of 8 bits.

The range of every state is measured on pictures of the training half; nothing is trained. What it costs in accuracy is
measured on pictures that the network has not learned from.
"""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from dartslight.carried_config import carried_config
from dartslight.cli import inner_input_error, one_line
from dartslight.data import Batch, EvaluationBatches, ImageData, Signature
from dartslight.errors import InputError
from dartslight.modules.checkpoint import HEADER, read_checkpoint
from dartslight.shipping.model import INPUT, SIGNATURE, Model, checkpoint_of, needed, of_onnx

_CALIBRATION, _BATCH = 512, 32  # pictures by which ranges are measured, and how many at a time
_CPU = torch.device("cpu")


def run_pictures(run: str | Path, changes: Mapping[str, Any]) -> ImageData:
    """Returns the pictures of a retraining, set up with its halves.

    Args:
        run: The folder of the retraining, or its checkpoint.
        changes: Options of its data that are others now, such as the root of a folder that was moved.

    Raises:
        InputError: If the pictures cannot be had, or are others.
    """
    from jsonargparse import ArgumentParser

    path = checkpoint_of(run)
    header, name = read_checkpoint(path)[HEADER], f"The checkpoint {str(path)!r}"
    given = carried_config(header, str(path), "export without --int8").get("data")
    if not isinstance(given, dict) or not isinstance(given.get("init_args"), dict):
        raise InputError(f"{name} does not say which pictures it was trained on; export without --int8.")
    options = {**given["init_args"], **changes}
    if options.get("seed") is None:
        options["seed"] = header.get("seed")  # the halves are those of the run
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ImageData, "data")
    try:
        config = parser.parse_object({"data": {**given, "init_args": options}})
        data: ImageData = parser.instantiate(config).data
    except Exception as error:  # as in `dartslight.cli.parse`
        mistake = inner_input_error(error) or InputError(f"{name} has pictures that cannot be used: {one_line(error)}.")
        raise mistake from None
    data.setup("fit")
    if not data.has_val:
        data.setup("test")
    data.follow(Signature.from_state(header.get("signature"), name))
    return data


def accuracy(model: Model, data: ImageData) -> tuple[float, str]:
    """Returns the share of pictures never learned from that a network tells right, and in words which pictures.

    Args:
        model: The network.
        data: Its pictures: those of the validation half count, or the test pictures where there is no such half.
    """
    batches = data.val_dataloader() if data.has_val else data.test_dataloader()
    assert isinstance(batches, EvaluationBatches)
    right = total = 0
    for batch in batches:
        right += int((model.logits(batch.images).argmax(dim=1) == batch.labels).sum())
        total += len(batch.labels)
    return right / total, f"{total:,} {'validation' if data.has_val else 'test'} pictures"


def quantize(data: bytes, pictures: ImageData) -> tuple[bytes, str]:
    """Returns an exported model with weights and states of 8 bits, and in words what that costs in accuracy.

    Args:
        data: The bytes of the .onnx file.
        pictures: The pictures: those of its training half tell the range of every state.
    """
    small = _quantized(data, iter(pictures.calibration_batches(_CALIBRATION, _BATCH)))
    models = [of_onnx(model, "The exported model", _CPU) for model in (data, small)]
    (before, which), (after, _) = (accuracy(model, pictures) for model in models)
    told = f"Accuracy on {which}: {before:.2%} before, {after:.2%} with 8 bits; {len(data):,} bytes are {len(small):,}."
    return small, told


def _quantized(data: bytes, batches: Iterator[Batch]) -> bytes:
    onnx = needed("onnx", "onnxruntime")
    from onnxruntime import quantization
    from onnxruntime.quantization.registry import QDQRegistry
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Any] | None:
            batch = next(batches, None)
            return None if batch is None else {INPUT: batch.images.contiguous().numpy()}

    with tempfile.TemporaryDirectory() as folder:
        plain, prepared, small = (Path(folder) / f"{name}.onnx" for name in ("plain", "prepared", "small"))
        plain.write_bytes(data)
        quant_pre_process(plain, prepared)
        # Normalisations that could not be put into a convolution are cheap and stay as they are.
        ops = [op for op in QDQRegistry if op != "BatchNormalization"]
        quantization.quantize_static(
            prepared,
            small,
            Reader(),
            activation_type=quantization.QuantType.QUInt8,
            per_channel=True,
            reduce_range=True,  # weights of 7 bits: with 8, sums overflow on processors without VNNI instructions
            op_types_to_quantize=ops,
        )
        model = onnx.load(small)
    signature = {entry.key: entry.value for entry in onnx.load_from_string(data).metadata_props}[SIGNATURE]
    onnx.helper.set_model_props(model, {SIGNATURE: signature})
    result: bytes = model.SerializeToString()
    return result
