"""Checks of arguments: each failure is one sentence that says where, what, got and expected."""

import math
from typing import SupportsFloat

import torch
from torch import Tensor

Shape = tuple[int, ...]


def shape_text(shape: Shape) -> str:
    """Print a shape the way the docstrings do, ``(8, 96, 96)``."""
    return "(" + ", ".join(str(n) for n in shape) + ("," if len(shape) == 1 else "") + ")"


def positive(where: str, what: str, value: SupportsFloat) -> float:
    """Return a finite number above zero as a float.

    Raises: TypeError if it is no number; ValueError if it is not finite and positive.
    """
    number = real_number(where, what, value)
    if number <= 0:
        raise ValueError(f"{where}: {what} must be positive, got {number:g}")
    return number


def real_number(where: str, what: str, value: SupportsFloat) -> float:
    """Return a finite real number as a float.

    Raises: TypeError if it is no number; ValueError if it is not finite.
    """
    number = _number(where, what, value)
    if not math.isfinite(number):
        raise ValueError(f"{where}: {what} must be finite, got {number}")
    return number


def _number(where: str, what: str, value: SupportsFloat) -> float:
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"{where}: {what} must be a number, got {type(value).__name__}")
    return float(value)


def open_unit(where: str, what: str, value: SupportsFloat) -> float:
    """Return a number above 0 and below 1 as a float.

    Raises: TypeError if it is no number; ValueError if it lies elsewhere.
    """
    number = _number(where, what, value)
    if not 0 < number < 1:
        raise ValueError(f"{where}: {what} is {value}, expected a number between 0 and 1")
    return number


def count(where: str, what: str, value: int, least: int = 1) -> int:
    """Return an integer of at least ``least``.

    Raises: TypeError if it is no integer; ValueError if it is too small.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{where}: {what} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{where}: {what} must be at least {least}, got {value}")
    return value


def tensor(where: str, what: str, value: object) -> Tensor:
    """Return a detached tensor made of a tensor or an array, floating or complex, with finite entries.

    Shapes: any. Integers and booleans become float32.
    Raises: TypeError for what cannot be a tensor; ValueError for empty, NaN or infinite data.
    """
    try:
        t = value.detach() if isinstance(value, Tensor) else torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as err:
        raise TypeError(f"{where}: {what} must be a tensor or an array, got {type(value).__name__}") from err
    if not (t.is_floating_point() or t.is_complex()):
        t = t.to(torch.float32)
    if t.dtype in (torch.float16, torch.bfloat16):
        raise ValueError(f"{where}: {what} has dtype {t.dtype}, expected float32, float64, complex64 or complex128")
    if t.numel() == 0:
        raise ValueError(f"{where}: {what} is empty, shape {shape_text(tuple(t.shape))}")
    finite(where, what, t)
    return t


def finite(where: str, what: str, t: Tensor) -> None:
    """Refuse NaN and infinite entries.

    Raises: ValueError that says how many of them there are.
    """
    bad = int((~torch.isfinite(t)).sum())
    if bad:
        raise ValueError(f"{where}: {what} has {bad} NaN or infinite of {t.numel()} entries, expected finite data")


def same_shape(where: str, what: str, got: Shape, expected: Shape) -> None:
    """Refuse a shape other than the expected one.

    Raises: ValueError with both shapes.
    """
    if tuple(got) != tuple(expected):
        raise ValueError(f"{where}: {what} has shape {shape_text(tuple(got))}, expected {shape_text(tuple(expected))}")
