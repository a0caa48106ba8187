"""Blocks into the store: chunks first, then the sampler's state, and the count of committed draws last."""

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from potentia.io._blocks import Block, Draw
from potentia.io._location import Location
from potentia.io._moments import Moments
from potentia.io._schema import STATE_HEADER, Layout, find_array
from potentia.io._state import pack_state

if TYPE_CHECKING:
    import zarr

Chunks = dict[tuple[str, tuple[int, ...]], NDArray[Any]]  # by the array's path and the chunk's place


class Sink:
    """Writes the chains of one rank: its images chunk by chunk, statistics, state, count and running sums.

    Draws are added one by one to the chunk under way, and written by ``write``. ``num_committed`` draws are safely
    written; ``moments`` are the sums over them.
    """

    def __init__(self, location: Location, root: "zarr.Group", layout: Layout, rank: int) -> None:
        self.location = location
        self._root = root
        self._layout = layout
        self._rank = rank
        self._chains = layout.chains_of(rank)
        self._rows = slice(self._chains.start, self._chains.stop)
        self.moments = Moments.empty(len(self._chains), layout.stored_shape)
        self._block: Block | None = None  # the draws of the chunk under way
        self._summed_at_once = max(8, 2**24 // self.moments.mean.nbytes)  # draws
        self._added = 0  # draws so far, those not committed among them
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

    def prepare(self) -> None:
        """Have the memory for a chunk, which the first draw would have to wait for."""
        if self._block is None:
            self._block = Block(self._layout, len(self._chains))

    def add(self, draw: Draw) -> None:
        """Take the next draw into the chunk, to be written with the next commit.

        Raises: RuntimeError for images that were changed since they were taken.
        """
        self.prepare()
        assert self._block is not None
        self._block.put(self._added % self._layout.block, draw)
        self._added += 1
        if self._added - self.moments.count >= self._summed_at_once:
            self._sum()

    def _sum(self) -> None:
        """Bring the running sums up to the draws of the chunk under way."""
        assert self._block is not None
        begun = self._committed - self._committed % self._layout.block
        if self._added > self.moments.count:
            self.moments.update(self._block.images[:, self.moments.count - begun : self._added - begun])

    def write(self, state: bytes) -> None:
        """Write the chunk as far as it goes, and mark its draws committed, with the sampler's state after them.

        Raises: OSError, StoreError.
        """
        block, k = self._block, self._layout.block
        if block is None or self._added == self._committed:
            return
        self._sum()
        number = self._committed // k
        block.clear(self._added - number * k)
        images: Chunks = {
            ("posterior/image", (c, number, 0, 0, 0)): block.images[row] for row, c in enumerate(self._chains)
        }
        self._put(images | {(self._layout.path_of(n), (self._rank, number)): v for n, v in block.stats.items()})
        self.location.flush(self._root)
        self._mark(self._added, state)
        self.location.commit(self._root, f"draw {self._added}")
        self._committed = self._added
        if self._committed == self._layout.num_draws:
            self.write_sums()

    def _put(self, chunks: Chunks) -> None:
        """Write whole chunks at once, without the copy that an assignment makes of each.

        The chunks are plain bytes: a chunk's file is its numbers in memory.
        """
        from zarr.core.buffer import default_buffer_prototype
        from zarr.core.sync import sync

        make = default_buffer_prototype().buffer.from_array_like
        files = []
        for (path, index), values in chunks.items():
            array = self.array(path)
            plain: Any = np.ascontiguousarray(values, array.dtype).reshape(-1).view(np.uint8)
            files.append((f"{array.path}/{array.metadata.encode_chunk_key(index)}", make(plain)))

        async def put() -> None:
            writes = [self._root.store.set(*file) for file in files]
            for failed in await asyncio.gather(*writes, return_exceptions=True):
                if isinstance(failed, BaseException):
                    raise failed

        sync(put())

    def _mark(self, committed: int, state: bytes) -> None:
        """Write the state, then the count."""
        size = self.array("writer/state").shape[1]
        self._put({("writer/state", (self._rank, 0)): pack_state(committed, state, size)})
        self._count(committed)

    def _count(self, committed: int) -> None:
        """Say how many draws are committed."""
        share = len(self._layout.chains_of(0))
        self._put({("writer/n_committed", (self._rank,)): np.full(share, committed)})
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
        self._committed = self._added = committed
        self._count(committed)
        if committed % block:
            self._fill(slice(committed - committed % block, committed))

    def _fill(self, draws: slice) -> None:
        """Put the draws of a chunk that is written in part back into memory."""
        self.prepare()
        assert self._block is not None
        n, rows = draws.stop - draws.start, len(self._chains)
        self._block.images[:, :n] = self.array("posterior/image")[self._rows, draws]
        for name, values in self._block.stats.items():
            values[:rows, :n] = self.array(self._layout.path_of(name))[self._rows, draws]
