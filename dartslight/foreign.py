"""What in a configuration comes from elsewhere and would run: to be asked before a stranger's one is parsed.

The parser imports what a text names wherever it expects a class or a function, and reads a file or JSON that stands
there. The configurations that runs write have dictionaries in such places, so texts in them are foreign.
"""

import importlib
import inspect
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer

from dartslight.data import ImageData
from dartslight.selection import Rule
from dartslight.spaces import SPACES

_TRUSTED = ("dartslight.", "lightning.")
_PARTS = {"model": LightningModule, "data": ImageData, "selection": Rule, "trainer": Trainer}
"""The options that take classes."""
_PLAIN = {bool, int, float, type(None), Path}  # beside texts; the parser makes nothing else of them
_WORD = re.compile(r"[\w:,+-]*")  # names no module and no file with an ending


def foreign_classes(config: Mapping[str, Any]) -> Iterator[str]:
    """Yields what a configuration names that is not part of the product and would be imported, called or read.

    Args:
        config: The configuration of a run.
    """
    for key, kind in _PARTS.items():
        yield from _foreign(config.get(key), kind)


def _foreign(value: Any, annotation: Any) -> Iterator[str]:
    if isinstance(value, str):
        kinds = set(_kinds(annotation))
        has_text = kinds & {str, Any}
        if not has_text or (kinds - _PLAIN - {str} and not _WORD.fullmatch(value)):
            yield value
    elif isinstance(value, list):
        for item in value:
            yield from _foreign(item, annotation)
    elif isinstance(value, dict) and "class_path" in value:
        yield from _foreign_class(value)
    elif isinstance(value, dict):
        # The parameters of what is expected there, such as those of a stage.
        options = {k: a for kind in _kinds(annotation) if inspect.isclass(kind) for k, a in _parameters(kind).items()}
        for key, item in value.items():
            yield from _foreign(item, options.get(key, Any))


def _foreign_class(value: Mapping[str, Any]) -> Iterator[str]:
    path = str(value["class_path"])
    found = _find(path)
    if found is None:
        yield path
        return
    options, given = _parameters(found), value.get("init_args")
    if not isinstance(given, dict | None):
        yield str(given)
        return
    for key, item in (given or {}).items():
        if key == "space" and str(item) not in SPACES:
            yield str(item)
        yield from _foreign(item, options.get(key, Any))
    yield from _foreign(value.get("dict_kwargs"), Any)


def _find(path: str) -> type | None:
    """Returns a class of the product or of Lightning, by its import path; not one that they have imported."""
    if not path.startswith(_TRUSTED):
        return None
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None
    return found if inspect.isclass(found) and found.__module__.startswith(_TRUSTED) else None


def _parameters(kind: type) -> dict[str, Any]:
    """Returns the annotations of what a class is made with, also of what it hands on to its bases."""
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if "__init__" in vars(base) and base is not object:
            own = inspect.signature(base.__init__).parameters.values()  # type: ignore[misc]
            found |= {p.name: Any if p.annotation is p.empty else p.annotation for p in own}
    return found


def _kinds(annotation: Any) -> Iterator[Any]:
    """Yields the types that an annotation is made of; one of several words is a text."""
    origin = typing.get_origin(annotation)
    if origin is Literal:
        yield str
    elif origin is None or origin is Callable:
        yield annotation
    else:
        for part in typing.get_args(annotation):
            yield from _kinds(part)
