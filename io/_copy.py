"""Copying a whole store."""

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from potentia.io._create import create_archive, create_at
from potentia.io._location import Location, StorePath
from potentia.io._schema import add_array

if TYPE_CHECKING:
    import zarr


def copy_store(source: Location, path: StorePath, *, overwrite: bool) -> Location:
    """Copy every group, array and attribute, chunk by chunk; to ``*.zip`` as an archive.

    Raises: StoreExistsError, StoreError.
    """
    target = Location.of(path)
    root = source.open()

    def fill(new: "zarr.Group") -> None:
        new.attrs.update(root.attrs.asdict())
        _copy_group(root, new)

    create = create_at if target.archive is None else create_archive
    create(target, fill, overwrite=overwrite)
    return target


def _copy_group(old: "zarr.Group", new: "zarr.Group") -> None:
    # The counts of a store that is being written come first, so that they never exceed what was copied.
    for name, group in sorted(old.groups(), key=lambda member: member[0] != "writer"):
        made = new.create_group(name)
        made.attrs.update(group.attrs.asdict())
        _copy_group(group, made)
    for name, array in old.arrays():
        dims = getattr(array.metadata, "dimension_names", None) or ()
        dtype = str if array.dtype.kind in "TOU" else array.dtype
        copied = add_array(new, name, array.shape, array.chunks, dtype, dims, array.fill_value)
        for place in itertools.product(*map(_spans, array.shape, array.chunks)):
            copied[place] = np.asarray(array[place], dtype=object) if dtype is str else array[place]


def _spans(length: int, step: int) -> Iterator[slice]:
    """The chunks of one dimension."""
    return (slice(start, min(start + step, length)) for start in range(0, length, step))
