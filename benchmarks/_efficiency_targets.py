"""Targets of the efficiency benchmark, as NumPy arrays: the same numbers for every library."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
NAMES = ("gaussian-100", "gaussian-1024", "mixture-50")
CONDITION = 100.0


class Target(NamedTuple):
    """U(x) = -log sum_k exp(log_weights_k - (x - means_k)^T precisions_k (x - means_k) / 2).

    Shapes: log_weights (K,), normalising constants included; means (K, d); precisions, covariances (K, d, d).
    """

    log_weights: Array
    means: Array
    precisions: Array
    covariances: Array

    @property
    def dim(self) -> int:
        return self.means.shape[1]

    def weights(self) -> Array:
        """Weights of the modes, (K,)."""
        logs = self.log_weights + 0.5 * np.linalg.slogdet(self.covariances)[1]
        w = np.exp(logs - logs.max())
        return w / w.sum()

    def variance(self) -> Array:
        """Variances of the coordinates."""
        w = self.weights()
        mean = w @ self.means
        inside = np.einsum("k,kii->i", w, self.covariances)
        spread: Array = inside + w @ (self.means - mean) ** 2
        return spread


def _turned(values: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    q, _ = np.linalg.qr(rng.standard_normal((len(values), len(values))))
    return (q * values) @ q.T, (q / values) @ q.T


def target(name: str) -> Target:
    """``gaussian-D``: condition number 100, randomly rotated. ``mixture-50``: two overlapping modes.

    The modes have weights 0.6 and 0.4, standard deviations from 0.5 to 1 along axes of their own, and stand 2.5 apart.
    """
    kind, size = name.split("-")
    d, rng = int(size), np.random.default_rng(7)
    if kind == "gaussian":
        precision, covariance = _turned(np.logspace(0, np.log10(CONDITION), d), rng)
        return Target(np.zeros(1), np.zeros((1, d)), precision[None], covariance[None])
    parts = [_turned(1 / rng.uniform(0.5, 1.0, d) ** 2, rng) for _ in range(2)]
    direction = rng.standard_normal(d)
    means = np.outer([1.25, -1.25], direction / np.linalg.norm(direction))
    precisions, covariances = (np.stack([p[k] for p in parts]) for k in range(2))
    logs = np.log([0.6, 0.4]) - 0.5 * np.linalg.slogdet(covariances)[1]
    return Target(logs, means, precisions, covariances)


def starts(name: str, chains: int) -> Array:
    """Where chains start, (chains, d): twice as wide as the target's widest direction."""
    t = target(name)
    widest = float(np.linalg.eigvalsh(t.covariances)[:, -1].max()) ** 0.5
    return 2 * widest * np.random.default_rng(99).standard_normal((chains, t.dim))
