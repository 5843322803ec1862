"""Trained networks in use: from the checkpoint of a retraining, or exported."""

import importlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dartslight.data import Signature
from dartslight.data.augmentation import normalise
from dartslight.errors import InputError
from dartslight.genotype import Genotype
from dartslight.modules.checkpoint import HEADER, read_checkpoint
from dartslight.nets import DiscreteNetwork
from dartslight.run_folder import LAST

INPUT, OUTPUT, SIGNATURE = "images", "logits", "signature.json"
"""What an exported model calls its input, its output, and the JSON text of its signature."""


class Classifier(nn.Module):
    """A trained network that takes pictures as bytes.

    Args:
        network: The network.
        signature: What it reads and tells.
    """

    def __init__(self, network: DiscreteNetwork, signature: Signature) -> None:
        super().__init__()
        self.network, self.signature = network, signature
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits, (n, classes), of pictures as RGB bytes, (n, 3, height, width)."""
        logits: Tensor = self.network(normalise(images, self.signature.mean, self.signature.std))[0]
        return logits


@dataclass(frozen=True, slots=True)
class Model:
    """A trained network of whatever form.

    Args:
        signature: What it reads and tells.
        logits: Returns the logits, (n, classes), of pictures as RGB bytes, (n, 3, height, width), both on the CPU.
    """

    signature: Signature
    logits: Callable[[Tensor], Tensor]

    def probabilities(self, images: Tensor) -> Tensor:
        """Returns the probability of each class, (n, classes), for pictures as RGB bytes."""
        return torch.softmax(self.logits(images).double(), dim=1)


def open_model(path: str | Path, device: torch.device, trust: bool = False) -> Model:
    """Returns a trained network.

    Args:
        path: A retraining's folder or checkpoint, or an exported model that ends in .onnx or .pt2.
        device: Where it runs; ONNX Runtime knows CPU and CUDA.
        trust: Whether a .pt2 may be read, whose reader runs code that a stranger can have put there.

    Raises:
        InputError: If it cannot be used.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".onnx", ".pt2"):
        classifier = load_classifier(path)
        return of_module(classifier.to(device), classifier.signature, device)
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"The model {str(path)!r} cannot be read ({error.strerror}); give another.") from None
    if suffix == ".onnx":
        return of_onnx(data, f"The model {str(path)!r}", device)
    if not trust:
        raise InputError(
            f"Torch's reader of .pt2 files runs code that a stranger can have put into {str(path)!r}; give --trust if "
            "you have exported it yourself, or else an .onnx or a checkpoint."
        )
    return of_program(data, f"The model {str(path)!r}", device)


def load_classifier(path: str | Path) -> Classifier:
    """Returns the network of a retraining.

    Args:
        path: The folder of the run, or a checkpoint of it.

    Raises:
        InputError: If it cannot be used.
    """
    path = checkpoint_of(path)
    checkpoint = read_checkpoint(path)
    header, name = checkpoint[HEADER], f"The checkpoint {str(path)!r}"
    if header.get("kind") != "retrain":
        raise InputError(
            f"{name} is of a run of the kind {header.get('kind')!r}, but only a retrained network can be used; retrain "
            "the run's genotype.json with fit, and give the folder of that run."
        )
    signature = Signature.from_state(header.get("signature"), name)
    try:
        genotype = Genotype.from_json(header["genotype"], f"The genotype in {str(path)!r}")
        network = DiscreteNetwork(
            genotype, header["num_cells"], header["init_channels"], len(signature.classes), stem=header["stem"]
        )
        network.load_state_dict(_own_weights(checkpoint["state_dict"]))
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name} is not whole; give one that a retraining has written.") from None
    return Classifier(network, signature)


def checkpoint_of(path: str | Path) -> Path:
    """Returns the newest checkpoint of a run's folder, or the path itself where it is no folder."""
    path = Path(path)
    return path / "checkpoints" / LAST if path.is_dir() else path


def _own_weights(state: dict[str, Any]) -> dict[str, Any]:
    """The weights of the network without those of its auxiliary head, which only training needs."""
    names = [name for name in state if name.startswith("network.") and not name.startswith("network.auxiliary.")]
    return {name.removeprefix("network."): state[name] for name in names}


def of_module(module: Callable[[Tensor], Tensor], signature: Signature, device: torch.device) -> Model:
    """Returns a module in use.

    Args:
        module: Gives logits for pictures as bytes.
        signature: Its signature.
        device: Where it is.
    """

    def logits(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return module(images.to(device)).cpu()

    return Model(signature, logits)


def of_onnx(data: bytes, name: str, device: torch.device) -> Model:
    """Returns an exported model in use by ONNX Runtime.

    Args:
        data: The bytes of the .onnx file.
        name: What messages call it.
        device: Where it runs.

    Raises:
        InputError: If it is none that `export` has written, or ONNX Runtime is not there.
    """
    runtime = needed("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = torch.get_num_threads()
    wanted = ["CUDAExecutionProvider", "CPUExecutionProvider"][device.type != "cuda" :]
    providers = [provider for provider in wanted if provider in runtime.get_available_providers()]
    try:
        session = runtime.InferenceSession(data, options, providers=providers)
        texts = session.get_modelmeta().custom_metadata_map
    except Exception:  # ONNX Runtime has exceptions of its own for every way to fail
        raise InputError(f"{name} cannot be read by ONNX Runtime; give one that dartslight has exported.") from None
    signature = Signature.from_json(texts.get(SIGNATURE, ""), name)

    def logits(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: images.contiguous().numpy()})[0])

    return _tried(Model(signature, logits), name)


def of_program(data: bytes, name: str, device: torch.device) -> Model:
    """Returns a model of `torch.export` in use; reading it can run code.

    Args:
        data: The bytes of the .pt2 file.
        name: What messages call it.
        device: Where it runs.

    Raises:
        InputError: If it is none that `export` has written.
    """
    from torch.export.passes import move_to_device_pass

    texts = {SIGNATURE: ""}
    try:
        program = torch.export.load(io.BytesIO(data), extra_files=texts)
    except Exception:  # what is not a .pt2 can make the reader fail in any way
        raise InputError(f"{name} cannot be read by torch; give one that dartslight has exported.") from None
    signature = Signature.from_json(texts[SIGNATURE], name)
    return _tried(of_module(move_to_device_pass(program, device).module(), signature, device), name)


def _tried(model: Model, name: str) -> Model:
    """Returns a model that does what its signature says.

    Raises:
        InputError: If it does not.
    """
    classes = len(model.signature.classes)
    try:
        shape = tuple(model.logits(torch.zeros(1, 3, *model.signature.size, dtype=torch.uint8)).shape)
    except Exception:  # each runtime has exceptions of its own
        shape = ()
    if shape != (1, classes):
        raise InputError(
            f"{name} does not give {classes} numbers for a picture, as its signature says; give one that dartslight "
            "has exported."
        )
    return model


def needed(*packages: str) -> Any:
    """Returns the first of some packages that only exported models need.

    Raises:
        InputError: If one is not installed.
    """
    try:
        first, *_ = [importlib.import_module(package) for package in packages]
    except ImportError:
        raise InputError(
            f"This needs the packages {', '.join(packages)}; install them with pip install 'dartslight[export]'."
        ) from None
    return first
