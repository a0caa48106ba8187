"""The block of draws that is being filled, in memory, in the shape of the chunks it will become."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potentia.io._schema import STATS, Layout


def to_stored(images: Tensor) -> Tensor:
    """Split complex channels into real ones, re before im; real images pass.

    Shapes: (..., C, H, W) complex -> (..., 2C, H, W) real.
    """
    if not images.is_complex():
        return images
    parts = torch.view_as_real(images.resolve_conj()).movedim(-1, -3)
    return parts.reshape(*images.shape[:-3], -1, *images.shape[-2:])


def from_stored(images: Tensor, is_complex: bool) -> Tensor:
    """Undo ``to_stored``.

    Shapes: (..., 2C, H, W) real -> (..., C, H, W) complex.
    """
    if not is_complex:
        return images
    parts = images.reshape(*images.shape[:-3], -1, 2, *images.shape[-2:])
    return torch.view_as_complex(parts.movedim(-3, -1).contiguous())


class Block:
    """Draws ``[first, first + fill)`` of all chains, with room for ``layout.block``.

    Shapes: images (chain, K, channel, y, x); stats (chain, K) each.
    """

    def __init__(self, layout: Layout, first: int, reuse: "Block | None" = None) -> None:
        self._layout = layout
        self.first = first
        self.fill = 0
        shape = (layout.num_chains, layout.block)
        if reuse is None:
            self.images: NDArray[Any] = np.empty((*shape, *layout.stored_shape), layout.dtype)
            self.stats: dict[str, NDArray[Any]] = {name: np.zeros(shape, dtype) for name, dtype in STATS.items()}
        else:
            self.images, self.stats = reuse.images, reuse.stats

    @property
    def rows(self) -> int:
        """Draws that this block holds when full; fewer than K at the end of the run."""
        return min(self._layout.block, self._layout.num_draws - self.first)

    @property
    def full(self) -> bool:
        """Whether no further draw fits."""
        return self.fill == self.rows

    def append(self, images: Tensor, stats: Mapping[str, Tensor | float]) -> None:
        """Copy one draw of every chain.

        Shapes: images (chain, C, H, W); stats (chain,) or a number for all.
        Raises: ValueError for another shape, for complex where real is expected or the reverse, for unknown stats.
        """
        expected = (self._layout.num_chains, *self._layout.event_shape)
        if tuple(images.shape) != expected:
            raise ValueError(f"EnsembleWriter.append: images have shape {tuple(images.shape)}, expected {expected}")
        if images.is_complex() != self._layout.is_complex:
            wanted = "complex" if self._layout.is_complex else "real"
            raise ValueError(f"EnsembleWriter.append: images have dtype {images.dtype}, expected {wanted} ones")
        values = self._read_stats(stats)  # all checks come before the first write
        images = images.detach()
        target = torch.from_numpy(self.images)[:, self.fill]
        if images.is_complex():
            parts = torch.view_as_real(images.resolve_conj()).movedim(-1, -3)
            target.view(parts.shape).copy_(parts)
        else:
            target.copy_(images)
        for name, value in values.items():
            self.stats[name][:, self.fill] = value
        self.fill += 1

    def _read_stats(self, stats: Mapping[str, Tensor | float]) -> dict[str, Any]:
        unknown = sorted(set(stats) - set(STATS))
        if unknown:
            raise ValueError(f"EnsembleWriter.append: unknown stats {unknown}, expected some of {list(STATS)}")
        values: dict[str, Any] = {}
        for name, dtype in STATS.items():
            missing = math.nan if dtype == "<f8" else 0
            given = stats.get(name, missing)
            value = given.detach().cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
            if value.shape not in ((), (self._layout.num_chains,)):
                where = f"EnsembleWriter.append: {name} has shape {value.shape}"
                raise ValueError(f"{where}, expected ({self._layout.num_chains},) or a number")
            values[name] = value
        return values

    def blank_rest(self) -> None:
        """Fill the rows that no draw has reached, so that a chunk written early holds no stale image."""
        self.images[:, self.fill : self.rows] = math.nan
        for name, dtype in STATS.items():
            self.stats[name][:, self.fill : self.rows] = math.nan if dtype == "<f8" else 0
