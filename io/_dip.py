"""Hartigan's dip test: whether numbers come from a distribution with one mode."""

import functools
import math

import numpy as np
from numpy.typing import NDArray

_SIMULATED = 2000
_MOST_SIMULATED_SIZE = 400
_SEED = 19850301


def dip(values: NDArray[np.float64]) -> float:
    """The greatest distance of the empirical distribution function from the nearest one of a single mode.

    Shapes: values (n,), n at least 1, distinct except by chance.
    Source: Hartigan and Hartigan 1985, section 4: greatest convex minorant below, least concave majorant above, the
        modal interval shrunk until the two come closer than what lies outside.
    """
    x, counts = np.unique(values, return_counts=True)
    if len(x) == 1:
        return 0.0
    after = np.cumsum(counts) / len(values)
    before = after - counts / len(values)
    first, last = 0, len(x) - 1
    found = 0.0
    while True:
        span = slice(first, last + 1)
        below = _hull(x[span], before[span], 1.0)
        above = _hull(x[span], after[span], -1.0)
        inner = x[span]
        minorant = np.interp(inner, inner[below], before[span][below])
        majorant = np.interp(inner, inner[above], after[span][above])
        gap = majorant - minorant
        at_below, at_above = below[np.argmax(gap[below])], above[np.argmax(gap[above])]
        if gap[at_below] >= gap[at_above]:
            left, right = int(at_below), int(above[np.searchsorted(above, at_below)])
            widest = gap[at_below]
        else:
            left, right = int(below[np.searchsorted(below, at_above, side="right") - 1]), int(at_above)
            widest = gap[at_above]
        if widest <= found:
            break
        outside = max(float((after[span] - minorant)[: left + 1].max()), float((majorant - before[span])[right:].max()))
        found = max(found, outside)
        if (left, right) == (0, last - first):
            break
        first, last = first + left, first + right
    return found / 2


def _hull(x: NDArray[np.float64], y: NDArray[np.float64], sign: float) -> NDArray[np.int64]:
    """Places of the corners of the lower hull (sign 1) or the upper one (-1), x rising."""
    kept: list[int] = []
    xs, ys = x.tolist(), (sign * y).tolist()
    for i in range(len(xs)):
        while len(kept) > 1:
            a, b = kept[-2], kept[-1]
            if (ys[b] - ys[a]) * (xs[i] - xs[b]) < (ys[i] - ys[b]) * (xs[b] - xs[a]):
                break
            kept.pop()
        kept.append(i)
    return np.array(kept, dtype=np.int64)


def dip_p_value(value: float, n: int) -> float:
    """Probability that n uniform numbers have a dip of at least this, by simulation; never below 1 in 2,001.

    The uniform has the greatest dip of the distributions with one mode, asymptotically. Above 400 numbers the dip is
    scaled by sqrt(n), as its limit law is.

    Source: Hartigan and Hartigan 1985, section 5.
    """
    size = min(n, _MOST_SIMULATED_SIZE)
    scaled = value * math.sqrt(n / size)
    return float(1 + np.count_nonzero(_uniform_dips(size) >= scaled)) / (1 + _SIMULATED)


@functools.lru_cache(maxsize=64)
def _uniform_dips(n: int) -> NDArray[np.float64]:
    generator = np.random.default_rng([_SEED, n])
    return np.array([dip(generator.random(n)) for _ in range(_SIMULATED)])
