"""The commands for a network in use: what it costs, what it says of pictures, and as a file for other programs."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dartslight.cli import command_parser, parse
from dartslight.errors import InputError
from dartslight.genotype import Genotype
from dartslight.nets.network import Stem
from dartslight.shipping.cost import measure
from dartslight.shipping.devices import find_device

# Lightning takes seconds to import, which cost and --help need not wait for.

_DEVICE = "Where it runs: auto for a GPU where there is one, or cpu, or cuda."
_PUBLISHED = "null for those of the published network for CIFAR-10."


def cost(words: Sequence[str]) -> None:
    """Tells what the network of a genotype costs."""
    parser = command_parser("cost", "Count a genotype's parameters and multiply-adds, and time its network here.")
    parser.add_argument("genotype", type=str, help="Path of a genotype.json.")
    parser.add_argument("--num_cells", type=int | None, default=None, help=f"Number of cells; {_PUBLISHED}")
    parser.add_argument(
        "--init_channels",
        type=int | None,
        default=None,
        help=f"Channels of the first cell's operations; {_PUBLISHED}",
    )
    parser.add_argument("--num_classes", type=int, default=10, help="Number of classes.")
    parser.add_argument("--size", type=int, default=32, help="Height and width of the pictures in pixels.")
    parser.add_argument("--stem", type=Stem, default="cifar", help="cifar, or imagenet for large pictures.")
    parser.add_argument("--batch_size", type=int, default=1, help="Pictures in a pass whose time is measured.")
    parser.add_argument("--threads", type=int | None, default=None, help="Number of CPU threads; null for torch's own.")
    parser.add_argument("--device", type=str, default="auto", help=_DEVICE)
    options = parse(parser, words).as_dict()
    print(measure(Genotype.load(options.pop("genotype")), **options))


def predict(words: Sequence[str]) -> None:
    """Tells the classes of pictures by a retrained or exported network.

    Pictures that cannot be read are told and left out of the table; the exit code is then 2.
    """
    parser = command_parser("predict", "Tell the classes of pictures by a retrained or exported network, as CSV.")
    parser.add_argument("pictures", type=str, nargs="+", help="Pictures, and folders of PNG and JPEG pictures.")
    parser.add_argument(
        "--model", type=str, required=True, help="Folder or checkpoint of a retraining, or an exported .onnx or .pt2."
    )
    parser.add_argument(
        "-o", "--output", type=str | None, default=None, help="Path of the CSV file; null prints the table."
    )
    parser.add_argument("--all", action="store_true", help="Give the probability of every class.")
    parser.add_argument("--batch_size", type=int, default=256, help="Pictures per pass.")
    parser.add_argument("--device", type=str, default="auto", help=_DEVICE)
    parser.add_argument(
        "--trust", action="store_true", help="Read a .pt2, whose reader runs code that a stranger can have put there."
    )
    given = parse(parser, words)

    from dartslight.run_folder import check_output, write_output
    from dartslight.shipping.model import open_model
    from dartslight.shipping.predict import find_pictures, predict

    if given.output is not None:
        check_output(Path(given.output))
    files = find_pictures(given.pictures)
    model = open_model(given.model, find_device(given.device), given.trust)
    predictions = predict(files, model, given.batch_size)
    # Names of files may hold bytes that are no text.
    table = predictions.csv(given.all).encode("utf-8", "surrogateescape")
    if given.output is None:
        sys.stdout.buffer.write(table)
    else:
        write_output(Path(given.output), table)
        print(given.output)
    for problem in predictions.problems:
        print(f"dartslight: {problem}", file=sys.stderr)
    if predictions.problems:
        raise InputError(
            f"{len(predictions.problems)} of {len(files)} pictures are not in the table, for the reasons above; mend "
            "them and give the command again."
        )


def export(words: Sequence[str]) -> None:
    """Writes a retrained network as a file for other programs."""
    parser = command_parser("export", "Write a retrained network as a file for other programs, after trying it.")
    parser.add_argument("run", type=str, help="Folder of a retraining, or a checkpoint of it.")
    parser.add_argument(
        "-o", "--output", type=str, default="model.onnx", help="Path of the model, which ends in .onnx or .pt2."
    )
    parser.add_argument(
        "--int8", action="store_true", help="Compute with integers of 8 bits (.onnx), and tell the accuracy."
    )
    parser.add_argument(
        "--data",
        type=dict[str, Any],
        default={},
        help="With --int8, options of the run's data that are others now, such as --data.root pictures.",
    )
    given = parse(parser, words)

    from dartslight.run_folder import check_output, write_output
    from dartslight.shipping.export import check_format, export
    from dartslight.shipping.int8 import quantize, run_pictures
    from dartslight.shipping.model import load_classifier

    path = Path(given.output)
    check_format(path.suffix)
    check_output(path)
    if given.int8 and path.suffix != ".onnx":
        raise InputError(f"--int8 is for .onnx, but the model is {given.output!r}; give a path that ends in .onnx.")
    if given.data and not given.int8:
        raise InputError("Options of the data are for --int8; give it too, or leave them out.")
    classifier = load_classifier(given.run)
    pictures = run_pictures(given.run, given.data) if given.int8 else None
    model, said = export(classifier, path.suffix)
    if pictures is not None:
        model, cost = quantize(model, pictures)
        said = f"{said}\n{cost}"
    write_output(path, model)
    print(f"{said}\n{given.output}")


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {"cost": cost, "predict": predict, "export": export}
