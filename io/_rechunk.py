"""A second copy of the draws within the store, in chunks that hold all draws of a tile of pixels."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from potentia.io._errors import StoreError
from potentia.io._location import Location
from potentia.io._schema import BY_PIXEL, IMAGE_DIMS, add_array

if TYPE_CHECKING:
    import zarr

    from potentia.io._tiles import Draws

_CHUNK_BYTES = 8 * 2**20


def by_pixel_array(root: "zarr.Group", location: Location, shape: tuple[int, ...]) -> "zarr.Array[Any] | None":
    """The rechunked draws, or None if there are none or they are not those that are committed now.

    Shapes: shape (chain, draw, channel, y, x), cut to the committed draws.
    Raises: StoreError if they are said to be whole and are not.
    """
    import zarr

    try:
        image = root[f"{BY_PIXEL}/image"]
    except (KeyError, FileNotFoundError):
        return None
    except Exception as err:  # zarr raises a dozen unrelated types for damaged metadata
        raise StoreError(f"{location}: {BY_PIXEL} is damaged ({err}); finalize(rechunk=True) writes it anew") from err
    if not isinstance(image, zarr.Array) or image.attrs.get("draws") != shape[1] or image.shape != shape:
        return None
    return image


def rechunk(draws: "Draws") -> None:
    """Write the draws beside themselves, in chunks of all draws of a tile; an old copy is replaced.

    The new files count for readers all at once when they are whole; where the store keeps no such account, the
    attribute ``draws`` is set last, and a copy without it is never read.

    Raises: StoreError if it cannot be written.
    """
    location = draws.location
    try:
        drop(draws)
        with location.together("draws rechunked by pixel") as root:
            _fill(root, draws)
    except OSError as err:
        if isinstance(err, StoreError):
            raise
        raise StoreError(f"{location}: the draws cannot be written in chunks by pixel ({err}); they are kept") from err


def drop(draws: "Draws") -> None:
    """Remove the second copy.

    Raises: StoreError.
    """
    root = draws.location.open(writable=True)
    if BY_PIXEL in root:
        del root[BY_PIXEL]
        draws.location.commit(root, "draws by pixel removed")


def _fill(root: "zarr.Group", draws: "Draws") -> None:
    shape = draws.shape
    group = root.create_group(BY_PIXEL)
    tall, wide = _sides(shape, draws.dtype.itemsize)
    chunks = (*shape[:3], tall, wide)
    image = add_array(group, "image", shape, chunks, draws.layout.dtype, IMAGE_DIMS, math.nan)
    for rows, columns in _bands(draws, tall, wide):
        band = draws.read(rows, columns)
        for top in range(0, band.shape[3], tall):
            for left in range(0, band.shape[4], wide):
                piece = np.ascontiguousarray(band[..., top : top + tall, left : left + wide])
                y, x = rows.start + top, columns.start + left
                image[:, :, :, y : y + piece.shape[3], x : x + piece.shape[4]] = piece
    image.attrs["draws"] = shape[1]


def _sides(shape: tuple[int, ...], itemsize: int) -> tuple[int, int]:
    """Sides of a nearly square tile whose draws fill a chunk, evened out over the image."""
    chains, draws, channels, height, width = shape
    side = max(1, math.isqrt(_CHUNK_BYTES // (chains * draws * channels * itemsize)))
    return _even(height, side), _even(width, side)


def _even(length: int, side: int) -> int:
    return math.ceil(length / math.ceil(length / min(length, side)))


def _bands(draws: "Draws", tall: int, wide: int) -> Iterator[tuple[slice, slice]]:
    """Rectangles of whole chunks, as large as may be read at once."""
    from potentia.io._tiles import WHOLE_READ_BYTES, rectangles

    chains, num, channels, height, width = draws.shape
    chunks = max(1, WHOLE_READ_BYTES // (chains * num * channels * draws.dtype.itemsize * tall * wide))
    across = min(chunks, math.ceil(width / wide))
    down = max(1, chunks // across) if across * wide >= width else 1
    return rectangles(height, width, down * tall, across * wide)
