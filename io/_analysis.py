"""What is read off the draws of each pixel: quantiles and probabilities."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from potentia.io._tiles import Draws

_SORTED_AT_ONCE = 2**19  # numbers: they stay within the cache


def pooled_quantiles(
    draws: Draws,
    levels: NDArray[np.float64],
    method: Literal["linear", "weibull"] = "linear",
    *,
    magnitude: bool = False,
    max_bytes: int | None = None,
) -> NDArray[np.float64]:
    """Quantiles over chains and draws together, a tile at a time; ``method`` as NumPy's. NaN where a draw is NaN.

    Shapes: levels (q,) -> (q, channel, y, x), or (q, C, H, W) of magnitudes.
    """
    channels = draws.layout.event_shape[0] if magnitude else draws.shape[2]
    out = np.empty((len(levels), channels, *draws.shape[3:]))

    def of_tile(tile: NDArray[Any]) -> NDArray[np.float64]:
        values = draws.magnitudes(tile) if magnitude else tile
        return _quantiles(values.reshape(-1, *values.shape[2:]), levels, method)

    for rows, columns, found in draws.map_tiles(of_tile, max_bytes):
        out[:, :, rows, columns] = found
    return out


def _quantiles(samples: NDArray[Any], levels: NDArray[np.float64], method: str) -> NDArray[np.float64]:
    """(sample, *event) -> (q, *event).

    A vectorised sort of single precision beats a partition at several places, and serves any number of levels.
    """
    n = len(samples)
    flat = samples.reshape(n, -1)
    place = np.clip((n - 1) * levels if method == "linear" else (n + 1) * levels - 1, 0, n - 1)
    below = np.floor(place).astype(np.int64)
    above = np.minimum(below + 1, n - 1)
    part = (place - below)[:, None]
    out = np.empty((len(levels), flat.shape[1]))
    width = max(1, _SORTED_AT_ONCE // n)
    for start in range(0, flat.shape[1], width):
        ascending = np.ascontiguousarray(flat[:, start : start + width].T)
        ascending.sort(axis=1)
        low = ascending[:, below].T.astype(np.float64)
        high = ascending[:, above].T.astype(np.float64)
        with np.errstate(invalid="ignore"):
            found = np.where(low == high, low, low + (high - low) * part)
        # NaN sorts last
        out[:, start : start + width] = np.where(np.isnan(ascending[:, -1]), np.nan, found)
    return out.reshape(len(levels), *samples.shape[1:])


def event_probability(draws: Draws, event: Callable[[NDArray[Any]], Any]) -> NDArray[np.float64]:
    """Share of the draws for which an event holds at each pixel, a chunk of images at a time; NaN where a draw is.

    Shapes: event (k, C, H, W) -> boolean (k, C, H, W); the result (C, H, W).
    Raises: TypeError, ValueError for an event that gives anything else.
    """

    def checked(images: NDArray[Any]) -> NDArray[np.bool_]:
        held = np.asarray(event(images))
        if held.dtype != np.bool_:
            raise TypeError(
                f"probability: the event gave {held.dtype}, expected booleans, as lambda x: x > 0.5 gives"
                + (" (images are complex: compare abs(x))" if draws.layout.is_complex else "")
            )
        if held.shape != images.shape:
            raise ValueError(
                f"probability: the event gave shape {held.shape}, expected {images.shape}, as it was given"
            )
        return held

    return _share(draws, draws.as_sampled, checked)


def exceedance(draws: Draws, threshold: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the draws above a threshold, magnitudes of complex images. NaN where a draw is NaN.

    Shapes: threshold broadcasts against (C, H, W) -> (C, H, W).
    """
    limit = threshold.astype(draws.dtype) if threshold.ndim else draws.dtype.type(threshold)
    return _share(draws, draws.magnitudes, lambda values: values > limit)


def _share(
    draws: Draws, of: Callable[[NDArray[Any]], NDArray[Any]], holds: Callable[[NDArray[Any]], NDArray[np.bool_]]
) -> NDArray[np.float64]:
    """Share of the draws where something holds ``of`` them, pixel by pixel; NaN where a draw is."""
    hits = np.zeros(draws.layout.event_shape, np.int64)
    unknown = np.zeros(draws.layout.event_shape, bool)
    for _, _, stored in draws.blocks():
        values = of(stored)
        hits += holds(values).sum(axis=0)
        unknown |= np.isnan(values).any(axis=0)
    return np.where(unknown, np.nan, hits / (draws.shape[0] * draws.shape[1]))
