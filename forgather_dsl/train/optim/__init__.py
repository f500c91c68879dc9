"""Optimizers of this package: rows at a time, fp32 arithmetic, state and rounding of choice, everything by parameter name."""

from .engine import Engine
from .foreign import Foreign
from .groups import Keeping, parameter_groups, role

__all__ = ["Engine", "Foreign", "Keeping", "parameter_groups", "role"]
