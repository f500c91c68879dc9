"""The constraints that specs put on fields, as attrs validators."""

from __future__ import annotations

from typing import Any

from attrs import validators as v

positive: Any = v.optional(v.gt(0))
fraction: Any = v.and_(v.ge(0.0), v.lt(1.0))
share: Any = v.and_(v.ge(0.0), v.le(1.0))


def at_least(minimum: int) -> Any:
    """An optional number that is not below `minimum`."""
    return v.optional(v.ge(minimum))
