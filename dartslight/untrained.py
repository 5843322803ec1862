"""The command ``select`` without a supernet: decides one that is drawn and never trained."""

import time
from typing import Any, cast

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from dartslight.benchmarks import Table
from dartslight.callbacks import RunConfig, Selector, TrueAccuracy
from dartslight.callbacks.live_supernet import LiveSupernet
from dartslight.callbacks.scores_file import ScoresFile
from dartslight.data import NoPictures
from dartslight.errors import InputError
from dartslight.genotype import Genotype
from dartslight.modules import SearchModule
from dartslight.report.conclusion import write_conclusion
from dartslight.run_folder import folder_of
from dartslight.seeding import run_seed
from dartslight.selection.record import in_words, record


def decide_untrained(trainer: Trainer, model: LightningModule, data: LightningDataModule) -> None:
    """Lets a rule that needs no search decide the supernet of a search, and shows what it must be compared with.

    Nothing is trained and no loader is asked for. What the rule decides is written like the end of any selection.

    Args:
        trainer: The trainer, with its callbacks.
        model: The search whose supernet is drawn.
        data: The pictures, or `NoPictures`.

    Raises:
        InputError: If the rule needs a search or pictures that are not there, or there are several devices.
    """
    callbacks = cast("Any", trainer).callbacks
    rule = next((c.rule for c in callbacks if isinstance(c, Selector)), None)
    if rule is None:
        raise InputError("select decides a search, but the model is none; give a search, such as SearchModule.")
    assert isinstance(model, SearchModule)
    if rule.needs_search:
        raise InputError(
            f"{type(rule).__name__} decides a supernet that has been searched; give its checkpoint with --supernet, or "
            "a rule that needs none, such as --config configs/select/freeflow.yaml."
        )
    if trainer.world_size > 1:
        raise InputError(
            f"A supernet without training is decided by one CPU core, but there are {trainer.world_size} devices; give "
            "--trainer.devices 1 and --trainer.num_nodes 1."
        )
    tables = [c for c in callbacks if isinstance(c, TrueAccuracy)]
    for callback in tables:
        callback.setup(trainer, model, "fit")
    if not isinstance(data, NoPictures):
        data.prepare_data()
        data.setup("fit")
    cast("Any", trainer).datamodule = data
    start = time.perf_counter()
    supernet = LiveSupernet(trainer, model, "", ScoresFile(None), {}, epochs=0)
    outcome = rule.decide(supernet, 0, run_seed())
    seconds = time.perf_counter() - start
    decisions = [record(decision, i, 0, seconds) for i, decision in enumerate(outcome.decisions)]
    genotype = Genotype.from_choices(model.space, outcome.choices)
    controls = {name: Genotype.from_choices(model.space, c) for name, c in rule.controls(supernet, run_seed()).items()}
    for callback in callbacks:
        if isinstance(callback, RunConfig):
            callback.on_fit_start(trainer, model)
    folder = folder_of(trainer)
    if folder is not None:
        write_conclusion(folder.path, genotype, decisions)
    print(f"\n{in_words(genotype, decisions)}\n")
    print(f"{compared(genotype, controls, tables[0].table if tables else None)}\n")
    print(f"Decided in {seconds:.2f} s without training.")


def compared(genotype: Genotype, controls: dict[str, Genotype], table: Table | None) -> str:
    """Returns an architecture beside those that cost nothing to find, for a person to read.

    Args:
        genotype: The architecture.
        controls: The others, by name.
        table: What is truly known of all of them, or None.
    """
    own = _places(genotype)
    found: dict[str, str] = {}
    for name, other in {"this": genotype, **controls}.items():
        entries = {} if table is None else table.look_up(other.to_nasbench201())
        known = [f"{title} {entry.value:,.10g}" for title, entry in entries.items()]
        found[name] = ", ".join([f"{len(own & _places(other))} of {len(own)} in common", *known])
    if table is not None:
        found |= {f"table: {n}": ", ".join(f"{t} {v}" for t, v in of.items()) for n, of in table.controls().items()}
    width = max(map(len, found))
    return "\n".join(
        ["Beside what needs no score (in common: edges with the same operation)"]
        + [f"  {name:<{width}}  {text}" for name, text in found.items()]
    )


def _places(genotype: Genotype) -> set[tuple[str, str, str]]:
    return {(cell.name, str(edge), edge.ops[0]) for cell in genotype.cells for edge in cell.edges}
