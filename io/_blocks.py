"""Draws on their way to the store: taken from the sampler, then gathered in a block until a chunk is written."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potentia.io._schema import Layout, stat_fill


class Draw(NamedTuple):
    """One draw of every chain, and its statistics: numbers or (chain,).

    ``version`` is what torch counts of the changes in place of ``images`` when they were taken; ``copied`` an event
    after which a copy from another device is there.

    Shapes: images (chain, C, H, W).
    """

    images: Tensor
    stats: Mapping[str, NDArray[Any]]
    version: int
    copied: Any = None

    def check(self) -> None:
        """Refuse images that were changed since they were taken.

        Raises: RuntimeError.
        """
        if _version(self.images) != self.version:
            raise RuntimeError(
                "EnsembleWriter: images were changed in place after they were appended, expected a new tensor for each "
                "draw: a sampler leaves what it has returned alone"
            )


class Taker:
    """Takes draws from a sampler without making it wait.

    On the CPU that is a reference. Images on CUDA go to page-locked memory by a stream of its own, so that copies run
    beside the sampler's kernels, if ``pinned``.
    """

    def __init__(self, pinned: bool) -> None:
        self._stream = torch.cuda.Stream() if pinned else None

    def take(self, images: Tensor, stats: Mapping[str, NDArray[Any]]) -> Draw:
        """One draw, (chain, C, H, W)."""
        source = images.detach()
        if source.is_cuda and self._stream is not None:
            return self._pinned(source, stats, self._stream)
        if not source.is_cpu:
            source = source.cpu()
        elif source.is_inference() or source.untyped_storage().nbytes() > source.nbytes:
            # Changes are not counted, or a part would keep the whole alive.
            source = source.clone()
        return Draw(source, stats, _version(source))

    def _pinned(self, source: Tensor, stats: Mapping[str, NDArray[Any]], stream: Any) -> Draw:
        target = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
        stream.wait_stream(torch.cuda.current_stream(source.device))
        with torch.cuda.stream(stream):
            # A plain copy of contiguous memory, which alone is asynchronous.
            target.copy_(source.resolve_conj().contiguous(), non_blocking=True)
            source.record_stream(stream)
            return Draw(target, stats, _version(target), stream.record_event())


def _version(images: Tensor) -> int:
    return 0 if images.is_inference() else images._version


class Block:
    """Memory for one chunk of draws of one rank's chains, and their statistics, as the store's files hold them.

    What is beyond the draws that it holds says so: NaN, or a statistic's fill.

    Shapes: images (chains, K, channel, y, x); stats (chains of a chunk, K).
    """

    def __init__(self, layout: Layout, num_chains: int) -> None:
        self._is_complex = layout.is_complex
        dtype = torch.float64 if layout.dtype.itemsize == 8 else torch.float32
        self._memory = torch.full((num_chains, layout.block, *layout.stored_shape), torch.nan, dtype=dtype)
        self.images: NDArray[Any] = self._memory.numpy()
        share = len(layout.chains_of(0))  # the last rank may have fewer chains, but its chunks are as large
        self.stats = {n: np.full((share, layout.block), stat_fill(kind), kind) for n, kind in layout.stats.items()}

    def put(self, slot: int, draw: Draw) -> None:
        """Copy one draw of every chain.

        Raises: RuntimeError for images that were changed since they were taken.
        """
        if draw.copied is not None:
            draw.copied.synchronize()
        source, target = draw.images, self._memory[:, slot]
        if self._is_complex:
            # channel = [re, im, re, im, ...]
            source = torch.view_as_real(source.resolve_conj()).movedim(-1, 2)
            target = target.view(len(target), -1, 2, *target.shape[-2:])
        target.copy_(source)
        draw.check()
        for name, values in self.stats.items():
            values[: len(target), slot] = draw.stats[name]

    def clear(self, first: int) -> None:
        """Forget the draws from a slot on."""
        self.images[:, first:] = np.nan
        for values in self.stats.values():
            values[:, first:] = stat_fill(values.dtype.str)
