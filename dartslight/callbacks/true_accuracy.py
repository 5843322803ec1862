"""Follows the leading architecture through the search, and looks up what it is truly worth."""

from lightning.pytorch import Callback, LightningModule, Trainer

from dartslight.benchmarks import Table
from dartslight.errors import InputError
from dartslight.genotype import Genotype
from dartslight.modules import SearchModule
from dartslight.selection.strongest import keep_likeliest


class TrueAccuracy(Callback):
    """Logs, after each epoch, what a table says of the architecture that now leads by its mixing weights.

    Args:
        table: Path of a CSV file (plain or .gz) with a column ``arch`` in NAS-Bench-201's notation and numeric columns;
            each of them is logged as ``true/<column>``.
    """

    def __init__(self, table: str) -> None:
        self.table = Table.read(table)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks that the search is in the space of the table.

        Raises:
            InputError: If it is not.
        """
        space = getattr(pl_module, "space", None)
        if space is None or space.name != "nasbench201":
            raise InputError(
                "The callback TrueAccuracy needs a search in the space 'nasbench201', whose architectures the table "
                "lists; leave the callback out."
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks the leading architecture up and logs what is found."""
        assert isinstance(pl_module, SearchModule)
        entries = self.table.look_up(leading(pl_module).to_nasbench201())
        values = {f"true/{name}": entry.value for name, entry in entries.items()}
        pl_module.log_dict(values, on_step=False, on_epoch=True, rank_zero_only=True)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints what the table says of the architecture that was decided, beside what needs no search."""
        assert isinstance(pl_module, SearchModule)
        if trainer.is_global_zero and not any(pl_module.choices.undecided(c.name) for c in pl_module.space.cells):
            arch = Genotype.from_choices(pl_module.space, pl_module.choices).to_nasbench201()
            print(f"\n{self.table.render(arch)}\n")


def leading(module: SearchModule) -> Genotype:
    """Returns the architecture with the largest mixing weights, decided edges as they are."""
    choices = module.choices
    outcome = keep_likeliest(module.space, choices, module.mixing(choices), module.architecture.slots(choices))
    return Genotype.from_choices(module.space, outcome.choices)
