"""Running mean and sum of squared deviations (Welford), by blocks of draws."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Numbers taken at once: in float64 they stay near the processor, and the interpreter has little to do between tiles.
_TILE_SIZE = 262144


@dataclass
class Moments:
    """Per chain: how many draws were seen, their mean and the sum of squared deviations ``m2``, in float64.

    Shapes: mean and m2 (chain, channel, y, x).
    Source: Chan, Golub and LeVeque 1979, the pairwise update of Welford's sums.
    """

    count: int
    mean: NDArray[np.float64]
    m2: NDArray[np.float64]

    @classmethod
    def empty(cls, num_chains: int, shape: tuple[int, ...]) -> "Moments":
        """Sums over no draws."""
        return cls(0, np.zeros((num_chains, *shape)), np.zeros((num_chains, *shape)))

    def update(self, block: NDArray[Any]) -> None:
        """Add draws.

        Shapes: block (chain, draw, channel, y, x), any real dtype.
        """
        for chain, draws in enumerate(block):
            self.update_chain(chain, draws)
        self.count += block.shape[1]

    def update_chain(self, chain: int, draws: NDArray[Any]) -> None:
        """Add draws to one chain and leave the count, which is common to all chains, to the caller."""
        n = len(draws)
        flat = draws.reshape(n, -1)
        mean, m2 = self.mean[chain].reshape(-1), self.m2[chain].reshape(-1)
        width = max(1, min(flat.shape[1], _TILE_SIZE // n))
        scratch = np.empty((n, width))
        for start in range(0, flat.shape[1], width):
            tile = slice(start, start + width)
            values = scratch[:, : len(mean[tile])]
            values[...] = flat[:, tile]
            block_mean = values.mean(axis=0)
            values -= block_mean
            delta = block_mean - mean[tile]
            mean[tile] += delta * (n / (self.count + n))
            with np.errstate(over="ignore", invalid="ignore"):  # chains that exploded are told of by ``sample``
                m2[tile] += np.einsum("ij,ij->j", values, values)
                m2[tile] += delta * delta * (self.count * n / (self.count + n))

    def pooled(self, ddof: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and std over all chains and draws together.

        Shapes: both (channel, y, x).
        """
        mean: NDArray[np.float64] = self.mean.mean(axis=0)
        with np.errstate(over="ignore", invalid="ignore"):
            squares = self.m2.sum(axis=0) + self.count * np.square(self.mean - mean).sum(axis=0)
        return mean, np.sqrt(squares / (len(self.mean) * self.count - ddof))
