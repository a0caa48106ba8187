"""Blocks into the store: chunks first, then the sampler's state, and the count of committed draws last."""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from potentia.io._blocks import Commit
from potentia.io._location import Location
from potentia.io._moments import Moments
from potentia.io._schema import STATE_HEADER, Layout, find_array
from potentia.io._state import pack_state

if TYPE_CHECKING:
    import zarr


class Sink:
    """Writes the chains of one rank: its images chunk by chunk, statistics, state, count and running sums.

    ``num_committed`` draws are safely written; ``moments`` are the sums over them.
    """

    def __init__(self, location: Location, root: "zarr.Group", layout: Layout, rank: int) -> None:
        self.location = location
        self._root = root
        self._layout = layout
        self._rank = rank
        self._chains = layout.chains_of(rank)
        self._rows = slice(self._chains.start, self._chains.stop)
        self.moments = Moments.empty(len(self._chains), layout.stored_shape)
        self._committed = 0
        self._sums_written = 0  # draws that the sums in the store are of
        self._arrays: dict[str, zarr.Array[Any]] = {}

    @property
    def num_committed(self) -> int:
        return self._committed

    @property
    def state_bytes(self) -> int:
        """The largest state that there is room for."""
        return int(self.array("writer/state").shape[1]) - STATE_HEADER

    def array(self, path: str) -> "zarr.Array[Any]":
        """An array of the store."""
        if path not in self._arrays:
            found = find_array(self._root, path, self.location)
            # The setting is not kept in the store: without it a block of zeros would leave no chunk behind.
            self._arrays[path] = found.with_config({"write_empty_chunks": True})
        return self._arrays[path]

    def write(self, commit: Commit) -> None:
        """Write the draws, or the whole chunk once it is full, and mark them committed."""
        block, k = commit.block, self._layout.block
        block.wait()
        chunk = commit.start - commit.start % k
        with ThreadPoolExecutor(1) as pool:  # numpy and the disk both let go of the interpreter's lock
            sums = pool.submit(self.moments.update, block.images[:, commit.start - chunk : commit.stop - chunk])
            # A chunk is written at once when it is full; before, beside what it holds, so that the rest stays NaN.
            first = chunk if commit.done else commit.start
            draws, slots = slice(first, commit.stop), slice(first - chunk, commit.stop - chunk)
            if commit.done:
                block.images[:, slots.stop :] = np.nan
                self._put_chunks(block.images, chunk // k)
            else:
                for row, chain in enumerate(self._chains):
                    self.array("posterior/image")[chain, draws] = block.images[row, slots]
            for name, values in block.stats.items():
                self.array(f"sample_stats/{name}")[self._rows, draws] = values[:, slots]
            self.location.flush(self._root)
            self._mark(commit.stop, commit.state)
            self.location.commit(self._root, f"draw {commit.stop}")
            self._committed = commit.stop
            sums.result()
        if commit.stop == self._layout.num_draws:
            self.write_sums()

    def _put_chunks(self, images: "np.ndarray[Any, Any]", number: int) -> None:
        """Write one whole chunk a chain: all at once, and without the copy that an assignment makes of each.

        The chunks are plain bytes: a chunk's file is its draws in memory.
        """
        from zarr.core.buffer import default_buffer_prototype
        from zarr.core.sync import sync

        array = self.array("posterior/image")
        make = default_buffer_prototype().buffer.from_array_like
        plain = images.astype(array.dtype, copy=False)

        async def put() -> None:
            writes = []
            for row, chain in enumerate(self._chains):
                key = f"{array.path}/{array.metadata.encode_chunk_key((chain, number, 0, 0, 0))}"
                writes.append(array.store.set(key, make(plain[row].reshape(-1).view(np.uint8))))
            for failed in await asyncio.gather(*writes, return_exceptions=True):
                if isinstance(failed, BaseException):
                    raise failed

        sync(put())

    def _mark(self, committed: int, state: bytes) -> None:
        """Write the state, then the count."""
        array = self.array("writer/state")
        array[self._rank] = pack_state(committed, state, array.shape[1])
        self.array("writer/n_committed")[self._rows] = committed
        self.location.flush(self._root)

    def write_sums(self) -> None:
        """Write the running sums; their count says of which draws they are, none while they are being written."""
        if self._sums_written == self.num_committed:
            return
        self.array("posterior_summary/count")[self._rows] = 0
        for k, chain in enumerate(self._chains):
            self.array("posterior_summary/mean")[chain] = self.moments.mean[k]
            self.array("posterior_summary/m2")[chain] = self.moments.m2[k]
        self.array("posterior_summary/count")[self._rows] = self.num_committed
        self.location.flush(self._root)
        self._sums_written = self.num_committed

    def finish(self, attrs: Mapping[str, Any]) -> None:
        """Write the running sums; rank 0 updates the root's attributes."""
        self.write_sums()
        if self._rank == 0:
            self._root.attrs.update(dict(attrs))
        self.location.flush(self._root, settle=True)
        self.location.commit(self._root, "finished")

    def recount(self, committed: int) -> None:
        """Take the sums anew over the draws in the store, and the count: a kill may have come before either."""
        block = self._layout.block
        self.moments = Moments.empty(len(self._chains), self._layout.stored_shape)
        for start in range(0, committed, block):
            stop = min(start + block, committed)
            drawn = np.asarray(self.array("posterior/image")[self._rows, start:stop])
            self.moments.update(drawn)
        self._committed = committed
        self.array("writer/n_committed")[self._rows] = committed
        self.location.flush(self._root)

    def fill(self, block: Any, committed: int) -> None:
        """Put the draws of a chunk that is written in part back into a block."""
        first = committed - committed % self._layout.block
        draws, n = slice(first, committed), committed - first
        block.images[:, :n] = self.array("posterior/image")[self._rows, draws]
        for name, values in block.stats.items():
            values[:, :n] = self.array(f"sample_stats/{name}")[self._rows, draws]
