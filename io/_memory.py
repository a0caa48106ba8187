"""A store in memory that shares no memory with whoever writes to it."""

from typing import Any

import numpy as np
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

_NAMED: "dict[str, OwnMemoryStore]" = {}  # stores of this process, by their URL


class OwnMemoryStore(MemoryStore):
    """Copies what it is given: zarr's own keeps uncompressed chunks as views of the caller's array."""

    async def set(self, key: str, value: Buffer, byte_range: tuple[int, int] | None = None) -> None:
        """Keep a copy of one value."""
        numbers: Any = np.array(
            value.as_numpy_array(), copy=True
        )  # zarr's protocol asks for more than NumPy's types say
        own = type(value).from_array_like(numbers)
        await super().set(key, own, byte_range)


def named_store(url: str) -> OwnMemoryStore | None:
    """Return the store that this process keeps under a ``memory://`` URL, if there is one."""
    return _NAMED.get(url)


def name_store(url: str, store: OwnMemoryStore) -> None:
    """Keep a store under a ``memory://`` URL until the process ends."""
    _NAMED[url] = store
