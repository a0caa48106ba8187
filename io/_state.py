"""The sampler's saved state: opaque bytes behind a header that says how many draws they stand for."""

import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from potentia.io._errors import StoreError
from potentia.io._schema import STATE_HEADER

if TYPE_CHECKING:
    import zarr

_HEADER = struct.Struct("<QII")  # draw count, bytes, CRC-32


def write_state(array: "zarr.Array[Any]", draws: int, state: bytes) -> None:
    """Replace the saved state in one step: the array is a single chunk, renamed into place.

    Raises: ValueError if the state is longer than the room made for it.
    """
    room = array.shape[0] - STATE_HEADER
    if len(state) > room:
        raise ValueError(f"EnsembleWriter: the sampler state has {len(state)} bytes, expected at most state_bytes={room}")
    buffer = np.zeros(array.shape[0], dtype=np.uint8)
    buffer[:STATE_HEADER] = np.frombuffer(_HEADER.pack(draws, len(state), zlib.crc32(state)), np.uint8)
    buffer[STATE_HEADER : STATE_HEADER + len(state)] = np.frombuffer(state, np.uint8)
    array[:] = buffer


def read_state(array: "zarr.Array[Any]", where: object) -> tuple[int, bytes]:
    """Return the draw count and the state; ``(0, b"")`` where none was ever saved.

    Raises: StoreError if it is damaged.
    """
    try:
        raw = np.asarray(array[:]).tobytes()
        draws, length, checksum = _HEADER.unpack(raw[:STATE_HEADER])
    except (ValueError, struct.error, OSError) as err:
        raise StoreError(f"{where}: the saved sampler state is cut short: {err}") from err
    state = raw[STATE_HEADER : STATE_HEADER + length]
    if length and (len(state) != length or zlib.crc32(state) != checksum):
        raise StoreError(f"{where}: the saved sampler state is damaged: its checksum does not match")
    return int(draws), state
