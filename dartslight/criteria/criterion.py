"""What all criteria have in common."""

from abc import ABC
from typing import ClassVar


class Criterion(ABC):
    """Something to minimise; holds settings, no parameters."""

    differentiable: ClassVar[bool]
    """Whether it is a loss of relaxed samples; otherwise it is measured on hard ones and needs a surrogate."""
