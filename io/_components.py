"""How the draws lie to one another: their Gram matrix, principal components and distances."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from potentia._validate import count
from potentia.io._tiles import Draws

if TYPE_CHECKING:
    import xarray as xr

_MOST_SAMPLES = 8192  # a Gram matrix of half a gigabyte
_TILE_BYTES = 16 * 2**20


def centred_gram(where: str, draws: Draws, every: int) -> NDArray[np.float64]:
    """Inner products of the draws' deviations from their mean, every k-th draw of each chain, in double precision.

    Shapes: (sample, sample), samples chain by chain.
    Raises: ValueError for fewer than two samples, more than fit in memory, or draws that are not finite.
    """
    count(where, "every", every)
    samples = draws.shape[0] * len(range(0, draws.shape[1], every))
    if samples < 2:
        raise ValueError(f"{where}: there is {samples} sample, expected at least 2")
    if samples > _MOST_SAMPLES:
        least = math.ceil(every * samples / _MOST_SAMPLES)
        raise ValueError(
            f"{where}: there are {samples} samples, expected at most {_MOST_SAMPLES}: thin them by every={least}"
        )
    if every not in draws.grams:
        gram = np.zeros((samples, samples))
        for tile in draws.tiles(_TILE_BYTES):
            off, _ = _deviations(tile.draws, every)
            gram += off @ off.T
        if not bool(np.isfinite(gram).all()):
            raise ValueError(f"{where}: the draws hold NaN or infinite numbers, expected finite ones")
        draws.grams[every] = gram
    return draws.grams[every]


def _deviations(tile: NDArray[Any], every: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Deviations (sample, pixel) and their mean (pixel,)."""
    chosen = tile[:, ::every]
    flat = chosen.reshape(chosen.shape[0] * chosen.shape[1], -1).astype(np.float64)
    mean: NDArray[np.float64] = flat.mean(axis=0)
    flat -= mean
    return flat, mean


def spectrum(gram: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Variances along the principal components, falling, and the draws' scores on them.

    Shapes: gram (n, n) -> variances (n - 1,), scores (n, n - 1).
    """
    values, vectors = np.linalg.eigh(gram)
    values, vectors = np.maximum(values[:0:-1], 0.0), vectors[:, :0:-1]
    return values / (len(gram) - 1), vectors * np.sqrt(values)


def principal_components(draws: Draws, num: int, every: int) -> "xr.Dataset":
    """Two passes over the draws; see ``Ensemble.components``."""
    import xarray as xr

    count("components", "num", num)
    gram = centred_gram("components", draws, every)
    if num > len(gram) - 1:
        raise ValueError(f"components: num is {num}, expected at most {len(gram) - 1}, one less than the samples")
    variances, scores = spectrum(gram)
    variances, scores = variances[:num], scores[:, :num]
    norms = np.sqrt(variances * (len(gram) - 1))
    # a direction without variance is none
    weights = np.divide(scores, norms**2, out=np.zeros_like(scores), where=norms > 1e-9 * max(norms[0], 1e-300))
    components = np.empty((num, *draws.shape[2:]))
    mean = np.empty(draws.shape[2:])
    for tile in draws.tiles(_TILE_BYTES):
        off, middle = _deviations(tile.draws, every)
        shape = tile.draws.shape[2:]
        components[:, :, tile.rows, tile.columns] = (weights.T @ off).reshape(num, *shape)
        mean[:, tile.rows, tile.columns] = middle.reshape(shape)
    flat = components.reshape(num, -1)
    signs = np.sign(flat[np.arange(num), np.abs(flat).argmax(axis=1)])
    signs[signs == 0] = 1.0
    flat *= signs[:, None]
    kept = np.arange(0, draws.shape[1], every)
    total = float(np.trace(gram)) / (len(gram) - 1)
    ratio = variances / total if total > 0 else np.zeros(num)
    return xr.Dataset(
        {
            "mean": (("channel", "y", "x"), mean),
            "component": (("component", "channel", "y", "x"), components),
            "explained_variance": (("component",), variances),
            "explained_variance_ratio": (("component",), ratio),
            "score": (("chain", "draw", "component"), (scores * signs).reshape(draws.shape[0], len(kept), num)),
        },
        coords={"channel": draws.layout.channel_names, "chain": np.arange(draws.shape[0]), "draw": kept},
    )


def rms_distances(draws: Draws, every: int) -> "xr.DataArray":
    """See ``Ensemble.distances``."""
    import xarray as xr

    gram = centred_gram("distances", draws, every)
    squares = np.diag(gram)
    apart = np.maximum(squares[:, None] + squares[None, :] - 2 * gram, 0.0)
    np.fill_diagonal(apart, 0.0)
    kept = np.arange(0, draws.shape[1], every)
    chains = np.arange(draws.shape[0])
    coords = {
        "chain": ("sample", np.repeat(chains, len(kept))),
        "draw": ("sample", np.tile(kept, len(chains))),
    }
    values = np.sqrt(apart / math.prod(draws.layout.event_shape))
    return xr.DataArray(values, dims=("sample", "other"), coords=coords, name="distance")
