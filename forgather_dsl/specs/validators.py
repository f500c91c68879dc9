"""The constraints that specs put on fields, as attrs validators."""

from __future__ import annotations

from typing import Any

from attrs import validators as v

LARGEST_FLOAT = 3.4e38  # that 32 bits hold

positive: Any = v.optional(v.and_(v.gt(0.0), v.lt(LARGEST_FLOAT)))
base: Any = v.and_(v.gt(1.0), v.lt(LARGEST_FLOAT))  # of wavelengths
fraction: Any = v.and_(v.ge(0.0), v.lt(1.0))
fractions: Any = v.deep_iterable(fraction)
share: Any = v.and_(v.ge(0.0), v.le(1.0))

MOST = 2**63 - 1  # what 64 bits hold
LARGEST_SIZE = 2**24  # of one side of a weight: two of them still make a tensor that can be counted in 64 bits


def at_least(minimum: int, most: int = MOST) -> Any:
    """An optional number that is not below `minimum`, nor above `most`."""
    return v.optional(v.and_(v.ge(minimum), v.le(most)))
