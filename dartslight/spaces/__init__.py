"""What can be chosen: search spaces as pure data, without torch."""

import importlib

from dartslight.errors import InputError
from dartslight.spaces.choices import Choices, EdgeKey
from dartslight.spaces.darts import DARTS, DARTS8, S1, S2, S3, S4, UNAS
from dartslight.spaces.layouts import MOBILE_START, layout, mobile_cell
from dartslight.spaces.mobile import MOBILE, MOBILE_SMALL
from dartslight.spaces.nasbench201 import NASBENCH201
from dartslight.spaces.space import Block, Cell, Edge, SearchSpace

SPACES = {space.name: space for space in (NASBENCH201, DARTS, DARTS8, S1, S2, S3, S4, UNAS, MOBILE, MOBILE_SMALL)}
"""The spaces that the product brings along, by name."""


def find_space(name: str) -> SearchSpace:
    """Returns a search space by its name, or your own by its import path.

    Args:
        name: A name in `SPACES`, or ``package.module.ATTRIBUTE`` for a `SearchSpace` of your own.

    Raises:
        InputError: If there is no such space.
    """
    if name in SPACES:
        return SPACES[name]
    module, _, attribute = name.rpartition(".")
    if module:
        try:
            space = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            raise InputError(
                f"The search space {name!r} cannot be imported ({error}); check the import path."
            ) from None
        if isinstance(space, SearchSpace):
            return space
    raise InputError(
        f"There is no search space {name!r}; the known ones are {', '.join(SPACES)}, "
        "or give the import path of a SearchSpace of your own."
    )


__all__ = [
    "DARTS",
    "DARTS8",
    "MOBILE",
    "MOBILE_SMALL",
    "MOBILE_START",
    "NASBENCH201",
    "S1",
    "S2",
    "S3",
    "S4",
    "SPACES",
    "UNAS",
    "Block",
    "Cell",
    "Choices",
    "Edge",
    "EdgeKey",
    "SearchSpace",
    "find_space",
    "layout",
    "mobile_cell",
]
