"""The sampler's state as a store keeps it: how many draws it is of, its length and checksum, then its bytes."""

import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np

from potentia.io._errors import StoreError
from potentia.io._location import Location
from potentia.io._schema import STATE_HEADER, find_array

if TYPE_CHECKING:
    import zarr

_HEADER = struct.Struct("<QII")


def pack_state(committed: int, state: bytes, size: int) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
    """Fill ``size`` bytes, which must hold the header and the state."""
    packed = _HEADER.pack(committed, len(state), zlib.crc32(state)) + state
    return np.frombuffer(packed.ljust(size, b"\0"), np.uint8)


def read_state(root: "zarr.Group", location: Location, rank: int) -> tuple[int, bytes]:
    """Draws that a rank has committed, and its sampler's state after them.

    Raises: StoreError if it is cut short or damaged.
    """
    array = find_array(root, "writer/state", location)
    try:
        raw = np.asarray(array[rank], np.uint8).tobytes()
    except Exception as err:  # zarr raises a dozen unrelated types for damaged chunks
        raise StoreError(f"{location}: the sampler state of rank {rank} is cut short or damaged: {err}") from err
    if len(raw) < STATE_HEADER:
        raise StoreError(
            f"{location}: the sampler state is cut short: {len(raw)} bytes, expected at least {STATE_HEADER}"
        )
    committed, length, checksum = _HEADER.unpack_from(raw)
    state = raw[STATE_HEADER : STATE_HEADER + length]
    if len(state) != length or zlib.crc32(state) != checksum:
        raise StoreError(f"{location}: the sampler state is damaged, so that the run cannot be resumed")
    return committed, state
