"""What of an ensemble goes into a page of limited size."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from potentia.report._encode import Bits, base64_size

MAP_SHARE = 0.45  # of the page, at the most, for mean, std and the other maps
TRACE_SHARE = 0.5  # of what the maps leave
MOST_DRAWS = 1000  # of all chains together, beyond which a trace shows no more


@dataclass(frozen=True)
class Plan:
    """Which pixels and draws a page holds.

    - ``rows``, ``columns``: pixels of the maps, out of the image's. ``trace_rows``, ``trace_columns``: those, out of
      the image's, whose draws are kept, ``trace_draws`` of each chain.
    - ``sample_chains``, ``sample_draws``: whole images that are kept.
    - ``trace_bits``, ``sample_bits``: of one number.
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    trace_rows: NDArray[np.int64]
    trace_columns: NDArray[np.int64]
    trace_draws: NDArray[np.int64]
    trace_bits: Bits
    sample_chains: NDArray[np.int64]
    sample_draws: NDArray[np.int64]
    sample_bits: Bits


def make_plan(chains: int, draws: int, channels: int, height: int, width: int, maps: int, limit: int) -> Plan:
    """Share ``limit`` bytes of a page among the maps, the draws of single pixels, and whole images.

    Everything is kept, at 16 bits, if it fits. Otherwise pixels and draws are taken evenly spaced; those with draws
    are among those of the maps.

    Args:
        chains: Chains of the ensemble.
        draws: Draws of each.
        channels: Channels as they are stored.
        height: Rows of the image.
        width: Columns of the image.
        maps: How many maps there are, at 16 bits.
        limit: Bytes of base64 that they may take together.
    """
    per_map_pixel = base64_size(3 * 2 * maps * channels) / 3
    step = _stride(height, width, MAP_SHARE * limit / per_map_pixel)
    rows, columns = every(height, step), every(width, step)
    left = limit - per_map_pixel * len(rows) * len(columns)

    kept = every_of(draws, max(1, MOST_DRAWS // chains))
    wide = base64_size(3 * 2 * channels) / 3 * len(kept) * chains  # a pixel, at 16 bits
    whole = base64_size(3 * 2 * channels) / 3 * len(rows) * len(columns)  # an image, at 16 bits
    everything = wide * len(rows) * len(columns) + whole * chains * draws
    trace_room = left * TRACE_SHARE
    if everything <= left:
        return Plan(rows, columns, rows, columns, kept, 16, np.arange(chains), np.arange(draws), 16)
    most_samples = max(1, int((left - trace_room) / (whole / 2)))
    sample_chains = every_of(chains, most_samples)
    sample_draws = every_of(draws, max(1, most_samples // len(sample_chains)))
    left -= whole / 2 * len(sample_chains) * len(sample_draws)
    # One pixel costs its limits beside its draws.
    thin = _stride(len(rows), len(columns), left / (wide / 2 + 24 * channels))
    traced = rows[every(len(rows), thin)], columns[every(len(columns), thin)]
    return Plan(rows, columns, *traced, kept, 8, sample_chains, sample_draws, 8)


def _stride(height: int, width: int, most: float) -> int:
    """The least stride that leaves no more than ``most`` pixels, or one that leaves a single pixel."""
    step = max(1, math.isqrt(max(1, int(height * width / max(most, 1.0)))))
    while step < max(height, width) and len(every(height, step)) * len(every(width, step)) > most:
        step += 1
    return step


def every(size: int, step: int) -> NDArray[np.int64]:
    """Indices a stride apart, beginning in the middle of the first stride."""
    return np.arange(min(step // 2, size - 1), size, step)


def every_of(size: int, most: int) -> NDArray[np.int64]:
    """At most so many indices, a stride apart, the last one among them."""
    step = math.ceil(size / most)
    return np.arange(size - 1, -1, -step)[::-1].copy()
