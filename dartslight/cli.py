"""The command line: Lightning's commands and ``select`` for what trains, small commands for what does not."""

import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dartslight import __version__
from dartslight.errors import InputError, check_least

if TYPE_CHECKING:
    from dartslight.genotype import Genotype

_OVERVIEW = """\
usage: python -m dartslight COMMAND [options]

Search a neural architecture for your images, decide it, train it.

  fit       search and select, or retrain, as the configuration says; goes on with --ckpt_path
  select    decide the supernet of an earlier search, or several together, by another rule
  ensemble  search with several seeds and decide by the averaged scores
  test      measure a retrained network on the test pictures
  validate  measure a network on the validation pictures
  lookup    tell what a table of known architectures says of a genotype
  draw      draw the cells of genotypes, their networks, or how a search went on
  report    write one page about one run or many
  cost      count a genotype's parameters and multiply-adds, and time its network
  predict   tell the classes of pictures by a retrained or exported network
  export    write a retrained network as a file for other programs

python -m dartslight COMMAND --help tells the options of a command. Start with:
  python -m dartslight fit --config configs/quickstart.yaml
"""

_TRAINING = ("fit", "validate", "test", "select")
_SHIPPING = ("cost", "predict", "export")


def draw(words: Sequence[str]) -> None:
    """Draws the cells of genotypes and their networks, or how a search went on."""
    from dartslight.genotype import Genotype
    from dartslight.report import save_drawing

    parser = command_parser("draw", "Draw the cells of genotypes side by side, networks, or how a search went on.")
    parser.add_argument("genotypes", type=str, nargs="+", help="Paths of a genotype.json, or folders of runs.")
    parser.add_argument(
        "-o",
        "--output",
        type=str,
        default="cell.svg",
        help="Path of the drawing, which ends in .svg, .png or .pdf; or in .gif for the leading cells of each epoch of "
        "one run.",
    )
    parser.add_argument("--alphas", action="store_true", help="Draw the mixing weights of one run as heat maps.")
    parser.add_argument("--network", action="store_true", help="Draw the network of the cells above them.")
    size = "with --network; null for the retraining's, or else those of the published network for CIFAR-10."
    parser.add_argument("--num_cells", type=int | None, default=None, help=f"Number of cells {size}")
    parser.add_argument(
        "--init_channels", type=int | None, default=None, help=f"Channels of the first cell's operations {size}"
    )
    given = parse(parser, words)
    paths, output = [Path(path) for path in given.genotypes], Path(given.output)
    asked = given.num_cells, given.init_channels
    if not given.network and asked != (None, None):
        raise InputError("--num_cells and --init_channels are for --network; give it too, or leave them out.")
    is_search = given.alphas or output.suffix.lower() == ".gif"
    if given.network and is_search:
        raise InputError("--network is for drawings of architectures; leave it out for --alphas and for a .gif.")
    if is_search:
        _draw_search(paths, output, given.alphas)
    else:
        files = [path / "genotype.json" if path.is_dir() else path for path in paths]
        genotypes = [Genotype.load(str(file)) for file in files]
        names = [str(path) for path in paths] if len(paths) > 1 else []
        networks = [_network_size(*own, *asked) for own in zip(paths, genotypes, strict=True)] if given.network else []
        save_drawing(output, *genotypes, names=names, networks=networks)
    print(given.output)


def _network_size(
    path: Path, genotype: "Genotype", num_cells: int | None, init_channels: int | None
) -> tuple[int, int]:
    """Returns the size of the network to draw: what was asked for, the one of a retraining, or the published one."""
    from dartslight.report.runs import read_run

    cells, channels = (read_run(path).network_size if path.is_dir() else None) or genotype.published_size
    check_least(1, num_cells=num_cells, init_channels=init_channels)
    return num_cells or cells, init_channels or channels


def _draw_search(paths: Sequence[Path], output: Path, alphas: bool) -> None:
    from dartslight.report.draw import FORMATS
    from dartslight.report.history import animation, heat_maps
    from dartslight.report.runs import read_run
    from dartslight.run_folder import write_output

    if len(paths) > 1 or not paths[0].is_dir():
        raise InputError("A search is drawn from the folder of one run; give one, such as runs/version_0.")
    run = read_run(paths[0])
    if not alphas:
        write_output(output, animation(run))
        return
    kind = output.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise InputError(f"Heat maps are .svg, .png or .pdf, but the drawing is {str(output)!r}; give such a path.")
    contents = io.BytesIO()
    heat_maps(run).savefig(contents, format=kind, dpi=150)
    write_output(output, contents.getvalue())


def lookup(words: Sequence[str]) -> None:
    """Tells what a table of known architectures says of a genotype."""
    from dartslight.benchmarks import Table
    from dartslight.genotype import Genotype

    parser = command_parser("lookup", "Tell what a table of known architectures says of a genotype.")
    parser.add_argument("genotype", type=str, help="Path of a genotype.json of the space nasbench201.")
    parser.add_argument(
        "--table",
        type=str,
        required=True,
        help="Path of a CSV file (plain or .gz) with a column arch in NAS-Bench-201's notation and numeric columns.",
    )
    given = parse(parser, words)
    arch = Genotype.load(given.genotype).to_nasbench201()
    print(Table.read(given.table).render(arch))


def report(words: Sequence[str]) -> None:
    """Writes one page about one run or many."""
    parser = command_parser("report", "Write one self-contained HTML page about one run or many.")
    parser.add_argument(
        "runs", type=str, nargs="+", help="Folders of runs, or folders that hold some, such as that of a job array."
    )
    parser.add_argument("-o", "--output", type=str, default="report.html", help="Path of the page.")
    parser.add_argument(
        "--table",
        type=str | None,
        default=None,
        help="Path of a CSV file (plain or .gz) with true accuracies of NAS-Bench-201, as for lookup.",
    )
    given = parse(parser, words)
    if Path(given.output).suffix not in (".html", ".htm"):
        raise InputError(f"The report {given.output!r} is a page; give a path that ends in .html.")

    from dartslight.report.page import write_report

    count = write_report(given.runs, Path(given.output), given.table)
    print(f"{given.output}: {count} run{'s' * (count != 1)}")


_SMALL: dict[str, Callable[[Sequence[str]], None]] = {"draw": draw, "lookup": lookup, "report": report}


def command_parser(command: str, description: str) -> Any:
    """Returns the parser of a small command.

    Args:
        command: Its name.
        description: What it does, in one sentence.
    """
    from jsonargparse import ArgumentParser

    return ArgumentParser(prog=f"python -m dartslight {command}", description=description, exit_on_error=False)


def parse(parser: Any, words: Sequence[str]) -> Any:
    """Parses words with a jsonargparse parser.

    Raises:
        InputError: If the words are not understood.
    """
    try:
        return parser.parse_args(list(words))
    except Exception as error:  # beside its own errors it lets those of what it reads and calls pass
        mistake = inner_input_error(error) or InputError(
            f"{one_line(error)}; --help of the command tells what is allowed."
        )
    raise mistake


def inner_input_error(error: BaseException | None) -> InputError | None:
    """Returns the user's mistake around which other errors have been wrapped, or None."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or error.__context__
    return error


def one_line(error: Exception) -> str:
    """Returns what an error says, on one line; of jsonargparse's tree of reasons, the part about what was given."""
    lines = [line.strip().removeprefix("- ") for line in str(error).splitlines()]
    starts = [i for i, line in enumerate(lines) if line.startswith("Problem with given class_path")]
    lines = lines[starts[-1] :] if starts else lines
    ends = [i for i, line in enumerate(lines) if line.startswith(("Expected a <class 'NoneType'>", "Given value"))]
    return " ".join(lines[: ends[0]] if ends else lines).strip().rstrip(".:")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: The words after ``python -m dartslight``; None takes them from the command line.

    Returns:
        The exit code: 0; 2 where the input was wrong; 130 where the run was told to stop.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _run(*words[:1], words=words[1:])
        sys.stdout.flush()
    except InputError as error:
        print(f"dartslight: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"dartslight: {stop or 'Stopped.'}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read the output has heard enough; nothing more may be written to it when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _run(command: str = "--help", *, words: list[str]) -> None:
    if command in ("-h", "--help"):
        print(_OVERVIEW, end="")
    elif command == "--version":
        print(__version__)
    elif command in _SMALL:
        _SMALL[command](words)
    elif command in _TRAINING:
        # torch and Lightning take seconds to import, which the small commands need not wait for.
        from dartslight.training_cli import run_training

        run_training(command, words)
    elif command in _SHIPPING:
        from dartslight.shipping_cli import COMMANDS

        COMMANDS[command](words)
    elif command == "ensemble":
        from dartslight.ensemble import ensemble

        ensemble(words)
    else:
        known = ", ".join([*_TRAINING, "ensemble", *_SHIPPING, *_SMALL])
        raise InputError(f"There is no command {command!r}; the known ones are {known}.")
