"""Staging blocks: the memory in which draws gather until a chunk of them is written."""

import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from potentia.io._schema import STATS, Layout, stat_fill


class Block:
    """Memory for one chunk of draws of some chains, and their statistics.

    On CUDA the memory is pinned and filled by a stream of its own, so that copies run beside the sampler's kernels.

    Shapes: images (chains, K, channel, y, x), as they are stored.
    """

    def __init__(self, layout: Layout, num_chains: int, pinned: bool) -> None:
        dtype = torch.float64 if layout.dtype.itemsize == 8 else torch.float32
        self._is_complex = layout.is_complex
        self.memory = torch.empty(num_chains, layout.block, *layout.stored_shape, dtype=dtype, pin_memory=pinned)
        self.images: np.ndarray[Any, Any] = self.memory.numpy()
        self.stats = {name: np.full((num_chains, layout.block), stat_fill(kind), kind) for name, kind in STATS.items()}
        self._stream = torch.cuda.Stream() if pinned else None
        self._copied: Any = None

    def stage(self, slot: int, images: Tensor, stats: Mapping[str, "np.ndarray[Any, Any]"]) -> None:
        """Take a copy of one draw of every chain: (chains, C, H, W)."""
        for name, held in self.stats.items():
            held[:, slot] = stats[name]
        source = images.detach()
        if self._stream is None or not source.is_cuda:
            self._copy(slot, source)
            return
        self._stream.wait_stream(torch.cuda.current_stream(source.device))
        with torch.cuda.stream(self._stream):
            self._copy(slot, source)
            source.record_stream(self._stream)
            self._copied = self._stream.record_event()

    def _copy(self, slot: int, source: Tensor) -> None:
        target = self.memory[:, slot]
        if self._is_complex:
            # channel = [re, im, re, im, ...]
            source = torch.view_as_real(source.resolve_conj()).movedim(-1, 2)
            target = target.view(len(target), -1, 2, *target.shape[-2:])
        if not source.is_cuda:
            target.copy_(source)
            return
        for chain in range(len(target)):  # each a plain copy of contiguous memory, which alone is asynchronous
            target[chain].copy_(source[chain].contiguous(), non_blocking=self._stream is not None)

    def wait(self) -> None:
        """Return when all that was staged is in memory."""
        if self._copied is not None:
            self._copied.synchronize()


class Commit(NamedTuple):
    """What is to be written and marked: draws ``start`` to ``stop`` of the chains, the sampler's state after them.

    ``done`` says that the block is not needed any more; until then later draws gather in it.
    """

    block: Block
    start: int
    stop: int
    state: bytes
    done: bool


class Pool:
    """At most ``most`` blocks, made when they are first wanted; whoever takes one waits until there is one."""

    def __init__(self, layout: Layout, num_chains: int, most: int, pinned: bool) -> None:
        self._layout = layout
        self._num_chains = num_chains
        self._pinned = pinned
        self._free: list[Block] = []
        self._made = 0
        self._most = most
        self._changed = threading.Condition()

    def prepare(self, wanted: int) -> None:
        """Make blocks ahead, and touch their memory, which the first use would have to wait for."""
        for _ in range(min(wanted, self._most)):
            with self._changed:
                if self._made == self._most:
                    return
                self._made += 1
            block = Block(self._layout, self._num_chains, self._pinned)
            block.memory.zero_()
            self.give_back(block)

    def take(self) -> Block:
        """A free block."""
        with self._changed:
            while not self._free and self._made == self._most:
                # Waits with a limit, so that Ctrl-C is heard on every platform.
                self._changed.wait(timeout=0.5)
            if self._free:
                return self._free.pop()
            self._made += 1
            return Block(self._layout, self._num_chains, self._pinned)

    def give_back(self, block: Block) -> None:
        """Put a block back."""
        with self._changed:
            self._free.append(block)
            self._changed.notify()
