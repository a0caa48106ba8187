"""Whether a store is whole: zarr reads a missing chunk as fill values, which must not pass for results."""

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from potentia.io._errors import StoreError
from potentia.io._location import Location
from potentia.io._schema import Layout, find_array, find_group

if TYPE_CHECKING:
    import zarr

_COORDINATES = ("posterior/chain", "posterior/draw", "posterior/channel")


def committed_draws(root: "zarr.Group", layout: Layout, location: Location) -> int:
    """Return how many draws every chain has committed, possibly none.

    Raises: StoreError as ``committed_counts``.
    """
    return int(committed_counts(root, layout, location).min())


def committed_counts(root: "zarr.Group", layout: Layout, location: Location) -> "np.ndarray[Any, Any]":
    """Return how many draws each chain has committed; the chains of different ranks may differ.

    Raises: StoreError if the count is missing, cut short or out of range.
    """
    array = find_array(root, "writer/n_committed", location)
    check_chunks(location, array)
    try:
        counts = np.asarray(array[:])
    except StoreError:
        raise
    except Exception as err:  # zarr raises a dozen unrelated types for damaged chunks
        raise StoreError(f"{location}: the count of committed draws cannot be read: {err}") from err
    if counts.shape != (layout.num_chains,) or not bool(((counts >= 0) & (counts <= layout.num_draws)).all()):
        raise StoreError(
            f"{location}: the count of committed draws is damaged: got {counts.tolist()}, expected {layout.num_chains} "
            f"counts from 0 to {layout.num_draws}"
        )
    return counts


def check_whole(root: "zarr.Group", layout: Layout, location: Location, committed: int) -> None:
    """Refuse a store without one of its arrays, or, on a local disk, with missing or short chunks of committed draws.

    Raises: StoreError.
    """
    for path in (*_COORDINATES, "writer/state"):
        check_chunks(location, find_array(root, path, location))
    for path in ("posterior/image", *(layout.path_of(name) for name in layout.stats)):
        array = find_array(root, path, location)
        if array.shape[:2] != (layout.num_chains, layout.num_draws):
            want = (layout.num_chains, layout.num_draws)
            raise StoreError(f"{location}: {path} has shape {array.shape}, expected {want} chains and draws")
        check_chunks(location, array, committed)
    for name in ("observed_data", "constant_data"):
        for _, array in find_group(root, name, location).arrays():
            check_chunks(location, array)
    stored_sums(root, layout, location, committed)


def stored_sums(
    root: "zarr.Group", layout: Layout, location: Location, committed: int
) -> "tuple[zarr.Array[Any], zarr.Array[Any]] | None":
    """Return the arrays of running means and squares, or None if they are not those of the committed draws.

    Raises: StoreError if they are missing or cut short.
    """
    count, mean, m2 = (find_array(root, f"posterior_summary/{name}", location) for name in ("count", "mean", "m2"))
    check_chunks(location, count)
    counts = np.asarray(count[:])
    if committed == 0 or counts.shape != (layout.num_chains,) or not bool((counts == committed).all()):
        return None
    for array in (mean, m2):
        if array.shape != (layout.num_chains, *layout.stored_shape):
            raise StoreError(
                f"{location}: {array.path} has shape {array.shape}, "
                f"expected {(layout.num_chains, *layout.stored_shape)}"
            )
        check_chunks(location, array)
    return mean, m2


def check_chunks(location: Location, array: "zarr.Array[Any]", committed: int | None = None) -> None:
    """Refuse an array with chunks that were never recorded, and compare the sizes of local files.

    ``committed`` cuts the second dimension, that of the draws. What the chunks hold is checked when they are read.

    Raises: StoreError.
    """
    from potentia.io._checked import CheckedStore

    store = array.store if isinstance(array.store, CheckedStore) else None
    if store is None and location.folder is None:
        return
    shape = array.shape if committed is None else (array.shape[0], committed, *array.shape[2:])
    # strings are stored at variable length
    size = None if array.dtype.kind in "TOU" else math.prod(array.chunks) * array.dtype.itemsize
    grid = [range(math.ceil(n / k)) for n, k in zip(shape, array.chunks, strict=True)]
    for index in itertools.product(*grid):
        name = ".".join(["c", *map(str, index)])
        if store is not None and not store.accepted(f"{array.path}/{name}"):
            raise StoreError(f"{location}: the store is cut short: chunk {name} of {array.path} was never recorded")
        if location.folder is None:
            continue
        try:
            found = (location.folder / array.path / name).stat().st_size
        except OSError:
            found = 0
        if found != size and not (size is None and found):
            want = "some" if size is None else size
            raise StoreError(
                f"{location}: the store is cut short: chunk {name} of {array.path} has {found} bytes, expected {want}"
            )
