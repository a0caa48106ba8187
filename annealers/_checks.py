"""Checks of numbers: each failure is one sentence that says what, got and expected."""

import math
from numbers import Integral, Real


def number(what: str, value: object) -> float:
    """Return a finite real number as a float.

    Raises: TypeError if it is no real number (a bool is none); ValueError if it is not finite.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{what} must be a real number, got {value!r}")
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if not math.isfinite(result):
        raise ValueError(f"{what} must be finite, got {result}")
    return result


def positive(what: str, value: object) -> float:
    """Return a finite number above zero as a float.

    Raises: TypeError if it is no real number; ValueError if it is not finite and above zero.
    """
    result = number(what, value)
    if result <= 0:
        raise ValueError(f"{what} must be above zero, got {result:g}")
    return result


def not_negative(what: str, value: object) -> float:
    """Return a finite number of at least zero as a float.

    Raises: TypeError if it is no real number; ValueError if it is not finite or below zero.
    """
    result = number(what, value)
    if result < 0:
        raise ValueError(f"{what} must be zero or more, got {result:g}")
    return result


def count(what: str, value: object) -> int:
    """Return an integer of at least one.

    Raises: TypeError if it is no integer (a bool is none, nor is 2.0); ValueError if it is below one.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{what} must be an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{what} must be one or more, got {int(value)}")
    return int(value)
