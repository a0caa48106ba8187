"""Reading one table of a recipe: known keys only, each of the type that it must have."""

import math
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

D = TypeVar("D")


class Table:
    """A table of a recipe whose values are checked as they are read.

    Raises: ValueError if it is no table, or holds a key that is not known.
    """

    def __init__(self, where: str, values: object, known: Collection[str]) -> None:
        if not isinstance(values, Mapping):
            raise ValueError(f"{where}: got {values!r}, expected a table")  # noqa: TRY004
        for key in values:
            if key not in known:
                raise ValueError(f"{where}: unknown key {key!r}, expected {', '.join(sorted(known))}")
        self.where = where
        self.values: Mapping[str, Any] = values

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def fault(self, key: str, expected: str) -> ValueError:
        """Make the error for a value that will not do."""
        return ValueError(f"{self.where}: {key} is {self.values.get(key)!r}, expected {expected}")

    def required(self, key: str) -> Any:
        """Return a value of any type.

        Raises: ValueError if it is missing.
        """
        if key not in self.values:
            raise ValueError(f"{self.where}: {key} is missing")
        return self.values[key]

    def flag(self, key: str, default: D) -> bool | D:
        """Return true or false, or the default."""
        if key not in self.values:
            return default
        value = self.values[key]
        if not isinstance(value, bool):
            raise self.fault(key, "true or false")
        return value

    def choice(self, key: str, default: D, allowed: Collection[str]) -> str | D:
        """Return one of several words, or the default."""
        if key not in self.values:
            return default
        value = self.values[key]
        if not isinstance(value, str) or value not in allowed:
            raise self.fault(key, "one of " + ", ".join(repr(word) for word in allowed))
        return value

    def number(self, key: str, default: D, *, least: float = -math.inf, most: float = math.inf) -> float | D:
        """Return a finite number from ``least`` to ``most``, or the default."""
        if key not in self.values:
            return default
        value = self.values[key]
        if not _is_number(value) or not least <= value <= most:
            raise self.fault(key, "a finite number" + _bounds(least, most))
        return float(value)

    def whole(self, key: str, default: D, *, least: int = 0) -> int | D:
        """Return an integer of at least ``least``, or the default."""
        if key not in self.values:
            return default
        value = self.values[key]
        if not _is_whole(value) or value < least:
            raise self.fault(key, f"an integer of at least {least}")
        return int(value)

    def numbers(self, key: str, default: D) -> tuple[float, float] | D:
        """Return two finite numbers, the first not above the second, or the default."""
        if key not in self.values:
            return default
        value = self.values[key]
        if not _is_pair(value) or not all(_is_number(v) for v in value) or value[0] > value[1]:
            raise self.fault(key, "two finite numbers, the lower one first")
        return float(value[0]), float(value[1])

    def wholes(self, key: str, default: D, *, least: int = 0) -> tuple[int, int] | D:
        """Return two integers of at least ``least``, or the default."""
        if key not in self.values:
            return default
        value = self.values[key]
        if not _is_pair(value) or not all(_is_whole(v) and v >= least for v in value):
            raise self.fault(key, f"two integers of at least {least}")
        return int(value[0]), int(value[1])

    def interval(self, key: str, default: D, stop: int) -> tuple[int, int] | D:
        """Return a half-open range [a, b) that is not empty and lies within [0, stop), or the default."""
        pair = self.wholes(key, None)
        if pair is None:
            return default
        if not pair[0] < pair[1] <= stop:
            raise self.fault(key, f"a half-open range within [0, {stop}]")
        return pair


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_pair(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2


def _bounds(least: float, most: float) -> str:
    if math.isinf(least) and math.isinf(most):
        return ""
    if math.isinf(most):
        return f" of at least {least:g}"
    return f" from {least:g} to {most:g}"
