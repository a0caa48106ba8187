"""Numbers as few bytes: codes of 8 or 16 bits between the least and the greatest value, in base64."""

import base64
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

RESERVED = 2  # the greatest code is NaN, the one below it infinity
Bits = Literal[8, 16]


@dataclass(frozen=True)
class Coded:
    """Quantised numbers, group by group: a value is ``low + code * step``, or its exponential if ``log``.

    Shapes: codes (group, ...); low and step (group,).
    """

    codes: NDArray[Any]
    low: NDArray[np.float64]
    step: NDArray[np.float64]
    log: bool

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return 8 * self.codes.dtype.itemsize

    def decoded(self) -> NDArray[np.float64]:
        """The numbers that the page shows."""
        most = np.iinfo(self.codes.dtype).max
        over = (slice(None), *(None,) * (self.codes.ndim - 1))
        values = self.low[over] + self.codes * self.step[over]
        values = np.exp(values) if self.log else values
        values[self.codes == most - 1] = math.inf
        values[self.codes == most] = math.nan
        return values

    def text(self) -> str:
        """The codes, little-endian, in base64."""
        return base64_text(self.codes)

    def header(self) -> dict[str, Any]:
        """What a reader needs beside the codes."""
        return {"bits": self.bits, "log": self.log, "low": self.low.tolist(), "step": self.step.tolist()}


def encode(values: NDArray[Any], bits: Bits, *, log: bool = False) -> Coded:
    """Quantise each group evenly between its least and its greatest finite value; ``log`` does so in the logarithm.

    An error is half a step at the most, a step being the range over 252 or 65,532. Minus infinity, and with ``log``
    what is not positive, become NaN.

    Shapes: values (group, ...).
    """
    x = np.array(values, dtype=np.float64)
    over = (slice(None), *(None,) * (x.ndim - 1))
    infinite = np.isposinf(x)
    with np.errstate(invalid="ignore", divide="ignore"):
        x = np.log(np.where(x > 0, x, math.nan)) if log else x
    known = np.isfinite(x)
    axes = tuple(range(1, x.ndim))
    low = np.min(x, axis=axes, where=known, initial=math.inf)
    high = np.max(x, axis=axes, where=known, initial=-math.inf)
    empty = low > high
    low, high = np.where(empty, 0.0, low), np.where(empty, 0.0, high)
    most = 2**bits - 1
    step = high / (most - RESERVED) - low / (most - RESERVED)  # apart, so that the range of doubles does not overflow
    unit = np.where(step > 0, step, 1.0)
    with np.errstate(invalid="ignore"):
        codes = np.rint((x - low[over]) / unit[over])
    codes = np.where(known, np.clip(codes, 0, most - RESERVED), np.where(infinite, most - 1, most))
    return Coded(codes.astype(f"<u{bits // 8}"), low, step, log)


def base64_text(array: NDArray[Any]) -> str:
    """The bytes of an array in base64."""
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")


def base64_size(num_bytes: int) -> int:
    """Characters that so many bytes take in base64."""
    return 4 * -(-num_bytes // 3)
