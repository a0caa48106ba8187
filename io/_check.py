"""Is a store on this machine whole? Looked at by file sizes, without reading the draws."""

import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potentia.io._errors import StoreError
from potentia.io._schema import STATS, find_array

if TYPE_CHECKING:
    import zarr


def check_whole(root: "zarr.Group", folder: Path | None, draws: int, where: object) -> None:
    """Check that every array is there and, on a local disk, that every committed chunk has its full size.

    Chunks are plain bytes, so that their sizes are known.
    Raises: StoreError that names the first array or file that is missing or short.
    """
    for name in ("posterior/channel", "posterior/chain", "posterior/draw", "writer/state"):
        find_array(root, name, where)
    committed = ["posterior/image", *(f"sample_stats/{name}" for name in STATS), "writer/n_committed"]
    if find_array(root, "posterior_summary/count", where)[:].any():
        committed += ["posterior_summary/mean", "posterior_summary/m2"]
    for path in committed:
        array = find_array(root, path, where)
        if folder is not None:
            _check_sizes(array, folder / path, draws, where)


def _check_sizes(array: "zarr.Array[Any]", folder: Path, draws: int, where: object) -> None:
    if array.shards is not None or array.compressors or array.filters:
        return  # rewritten by someone else in another layout, whose sizes cannot be foretold
    dims = getattr(array.metadata, "dimension_names", None) or ()
    lengths = [draws if dim == "draw" else n for dim, n in zip(dims, array.shape, strict=True)]
    grid = [range(math.ceil(n / chunk)) for n, chunk in zip(lengths, array.chunks, strict=True)]
    expected = math.prod(array.chunks) * array.dtype.itemsize
    for index in itertools.product(*grid):
        file = folder / array.metadata.encode_chunk_key(index)
        try:
            got = file.stat().st_size
        except FileNotFoundError:
            raise StoreError(f"{where}: the store is cut short: the committed chunk {file} is missing") from None
        if got != expected:
            raise StoreError(f"{where}: the store is cut short: {file} has {got} bytes, expected {expected}")
