"""Statistics over draws that need all of them at once, in tiles that fit in memory."""

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import zarr

_TILE_BYTES = 64 * 2**20


def pooled_quantiles(
    image: "zarr.Array[Any]",
    committed: int,
    levels: NDArray[np.float64],
    method: Literal["linear", "weibull"] = "linear",
) -> NDArray[Any]:
    """Quantiles over chains and draws together, rows of the image at a time; ``method`` as NumPy's.

    Shapes: image (chain, draw, channel, y, x); levels (q,) -> (q, channel, y, x).
    """
    chains, _, channels, height, width = image.shape
    row_bytes = chains * committed * channels * width * image.dtype.itemsize
    rows = max(1, min(height, _TILE_BYTES // row_bytes))
    out = np.empty((len(levels), channels, height, width))
    for start in range(0, height, rows):
        tile = np.asarray(image[:, :committed, :, start : start + rows])
        flat = tile.reshape(chains * committed, channels, -1, width)
        out[:, :, start : start + rows] = np.quantile(flat, levels, axis=0, method=method)
    return out
