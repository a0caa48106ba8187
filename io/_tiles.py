"""Reading draws in pieces that fit in memory: by tile of pixels with all draws, or by block of whole images."""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from potentia.io._errors import StoreError
from potentia.io._location import Location
from potentia.io._rechunk import by_pixel_array
from potentia.io._schema import Layout

if TYPE_CHECKING:
    import zarr

# What a tile may hold. Chunks that are plain files are read in part, once they were read and checked as a whole; of
# stores of any other kind each tile reads all chunks.
TILE_BYTES = 32 * 2**20
WHOLE_READ_BYTES = 192 * 2**20
_MOST_WORKERS = 4

Result = TypeVar("Result")


@dataclass(frozen=True)
class Tile:
    """All draws of a rectangle of the image.

    Shapes: draws (chain, draw, channel, rows, columns).
    """

    rows: slice
    columns: slice
    draws: NDArray[Any]


class Draws:
    """The committed draws of a store, read in pieces.

    ``is_complex`` images come as real channels ``re``, ``im`` unless a method says otherwise.
    """

    def __init__(
        self, location: Location, root: "zarr.Group", image: "zarr.Array[Any]", layout: Layout, committed: int
    ):
        self.location = location
        self.layout = layout
        self.committed = committed
        self._image = image
        self._root = root
        self._files = _plain_files(location, image)
        self._whole: set[tuple[int, int]] = set()  # chunks that were read, and so checked, as a whole
        self.grams: dict[int, NDArray[np.float64]] = {}  # those that were computed, by thinning

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """(chain, draw, channel, y, x), cut to the committed draws."""
        return (self.layout.num_chains, self.committed, *self.layout.stored_shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the draws in this machine's byte order."""
        return self.layout.dtype.newbyteorder("=")

    def read(self, rows: slice, columns: slice) -> NDArray[Any]:
        """All draws of a rectangle: (chain, draw, channel, rows, columns).

        Raises: StoreError if a chunk is missing or damaged.
        """
        height, width = (len(range(*s.indices(n))) for s, n in zip((rows, columns), self.shape[3:], strict=True))
        out = np.empty((*self.shape[:3], height, width), self.dtype)
        for chain, span in self._chunks():
            out[chain, span] = self._images(chain, span)[..., rows, columns]
        return out

    def _chunks(self) -> Iterator[tuple[int, slice]]:
        k = self.layout.block
        for chain in range(self.shape[0]):
            for start in range(0, self.committed, k):
                yield chain, slice(start, min(start + k, self.committed))

    def _images(self, chain: int, span: slice) -> NDArray[Any]:
        """The images of one chunk, for looking at only: (k, channel, y, x)."""
        if self._files is not None and (chain, span.start) in self._whole:
            name = f"c.{chain}.{span.start // self.layout.block}.0.0.0"
            return _mapped(self._files / name, self.layout)[: span.stop - span.start]
        images = np.asarray(self._image[chain, span])  # holds the file to its checksum
        self._whole.add((chain, span.start))
        return images

    def tiles(self, max_bytes: int | None = None) -> Iterator[Tile]:
        """Tiles that cover the image once, row by row."""
        for rows, columns, read in self._plan(max_bytes):
            yield Tile(rows, columns, read())

    def map_tiles(
        self, function: Callable[[NDArray[Any]], Result], max_bytes: int | None = None
    ) -> Iterator[tuple[slice, slice, Result]]:
        """Apply a function to the draws of every tile, as many at a time as torch uses threads, four at the most.

        Shapes: the function takes (chain, draw, channel, rows, columns).
        """
        workers = min(_MOST_WORKERS, torch.get_num_threads())
        if workers == 1:
            for rows, columns, read in self._plan(max_bytes):
                yield rows, columns, function(read())
            return
        waiting: list[tuple[slice, slice, Future[Result]]] = []
        with ThreadPoolExecutor(workers) as pool:
            try:
                for rows, columns, read in self._plan(max_bytes):
                    waiting.append((rows, columns, pool.submit(_after, read, function)))
                    if len(waiting) > workers:
                        first = waiting.pop(0)
                        yield first[0], first[1], first[2].result()
                while waiting:
                    first = waiting.pop(0)
                    yield first[0], first[1], first[2].result()
            finally:
                for _, _, future in waiting:
                    future.cancel()

    def blocks(self) -> Iterator[tuple[int, slice, NDArray[Any]]]:
        """Chunks of whole images: chain, which of its draws, and those, (k, channel, y, x).

        Raises: StoreError if a chunk is missing or damaged.
        """
        for chain, span in self._chunks():
            yield chain, span, np.asarray(self._image[chain, span], dtype=self.dtype)

    def as_sampled(self, images: NDArray[Any]) -> NDArray[Any]:
        """Complex numbers of complex images, others as they are: (..., channel, y, x) -> (..., C, H, W)."""
        if not self.layout.is_complex:
            return images
        wide = np.complex64 if images.dtype == np.float32 else np.complex128
        out = np.empty((*images.shape[:-3], images.shape[-3] // 2, *images.shape[-2:]), wide)
        out.real, out.imag = images[..., 0::2, :, :], images[..., 1::2, :, :]
        return out

    def magnitudes(self, images: NDArray[Any]) -> NDArray[Any]:
        """Magnitudes of complex images, others as they are: (..., channel, y, x) -> (..., C, H, W)."""
        return np.hypot(images[..., 0::2, :, :], images[..., 1::2, :, :]) if self.layout.is_complex else images

    def _plan(self, max_bytes: int | None) -> Iterator[tuple[slice, slice, Callable[[], NDArray[Any]]]]:
        """Rectangles, and for each a function that reads it."""
        rechunked = by_pixel_array(self._root, self.location, self.shape)
        chains, draws, channels, height, width = self.shape
        pixel_bytes = chains * draws * channels * self.dtype.itemsize
        if rechunked is not None:
            for rows, columns in rectangles(height, width, rechunked.chunks[3], rechunked.chunks[4]):
                yield rows, columns, partial(_cut, rechunked, rows, columns, self.dtype)
            return
        limit = max_bytes or (WHOLE_READ_BYTES if self._files is None else TILE_BYTES)
        tall, wide = tile_sides(height, width, limit // pixel_bytes)
        for rows, columns in rectangles(height, width, tall, wide):
            yield rows, columns, partial(self.read, rows, columns)


def _after(read: Callable[[], NDArray[Any]], function: Callable[[NDArray[Any]], Result]) -> Result:
    return function(read())


def _cut(image: "zarr.Array[Any]", rows: slice, columns: slice, dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.asarray(image[:, :, :, rows, columns], dtype=dtype)


def tile_sides(height: int, width: int, pixels: int) -> tuple[int, int]:
    """Sides of a tile of at most so many pixels, whole rows where they fit, and one pixel at the least."""
    if pixels < width:
        return 1, max(1, pixels)
    return max(1, min(height, pixels // width)), width


def rectangles(height: int, width: int, tall: int, wide: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the tiles that cover an image."""
    for top in range(0, height, tall):
        for left in range(0, width, wide):
            yield slice(top, min(top + tall, height)), slice(left, min(left + wide, width))


def _plain_files(location: Location, image: "zarr.Array[Any]") -> Path | None:
    """The folder of an array's chunks if each is a file of plain numbers, else None."""
    from zarr.codecs import BytesCodec

    if location.folder is None or image.compressors or image.filters or not isinstance(image.serializer, BytesCodec):
        return None
    folder = location.folder / image.path
    return folder if (folder / "c.0.0.0.0.0").is_file() else None


def _mapped(file: Path, layout: Layout) -> NDArray[Any]:
    shape = (layout.block, *layout.stored_shape)
    want = math.prod(shape) * layout.dtype.itemsize
    try:
        found = file.stat().st_size
        if found == want:
            return np.memmap(file, layout.dtype, "r", shape=shape)
    except OSError as err:
        raise StoreError(f"{file}: a chunk of committed draws cannot be read: {err}") from err
    raise StoreError(f"{file}: the store is cut short: the chunk has {found} bytes, expected {want}")
