"""How many modes a posterior has, as far as its draws tell."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from potentia._validate import count, open_unit
from potentia.io._components import centred_gram, spectrum
from potentia.io._dip import dip, dip_p_value
from potentia.io._tiles import Draws

if TYPE_CHECKING:
    import xarray as xr

_LEAST_HALF = 12  # numbers that a dip test is worth
_CLUSTER_SEED = 0


@dataclass(frozen=True, eq=False, repr=False)
class Modes:
    """The modes that were told apart, the heaviest first.

    - ``count``; ``labels`` (chain, draw), the mode of each draw; ``weights``, the share of the draws in each.
    - ``representatives``: chain and draw of the draw nearest to each mode's mean.
    - ``p_values``: of each test of a cluster for a single mode, in the order of the tests, already times the number
      of directions looked at.
    - ``transitions``: how often chains went from one mode to another. Where there are several modes and no
      transition, the weights are those of the starting points and not of the posterior.
    """

    count: int
    labels: "xr.DataArray"
    weights: tuple[float, ...]
    representatives: tuple[tuple[int, int], ...]
    p_values: tuple[float, ...]
    transitions: int

    def __repr__(self) -> str:
        shares = ", ".join(f"{w:.3f}" for w in self.weights)
        note = ""
        if self.count > 1 and self.transitions == 0:
            note = "; no chain went from one to another, so that the weights tell of where the chains began"
        return f"Modes({self.count}: weights {shares}; {self.transitions} transitions{note})"


def count_modes(draws: Draws, num_components: int, level: float, every: int, most: int) -> Modes:
    """See ``Ensemble.modes``."""
    count("modes", "num_components", num_components)
    count("modes", "most", most)
    open_unit("modes", "level", level)
    scores = spectrum(centred_gram("modes", draws, every))[1]
    kept = np.arange(0, draws.shape[1], every)
    labels, p_values = _split(scores, num_components, level, most)
    order = np.argsort(-np.bincount(labels), kind="stable")
    labels = np.argsort(order)[labels]
    table = labels.reshape(draws.shape[0], len(kept))
    nearest = []
    for mode in range(len(order)):
        members = np.flatnonzero(labels == mode)
        off = np.square(scores[members] - scores[members].mean(axis=0)).sum(axis=1)
        chain, draw = divmod(int(members[off.argmin()]), len(kept))
        nearest.append((chain, int(kept[draw])))
    return Modes(
        count=len(order),
        labels=_labelled(table, kept),
        weights=tuple(float(w) for w in np.bincount(labels) / len(labels)),
        representatives=tuple(nearest),
        p_values=tuple(p_values),
        transitions=int(np.count_nonzero(np.diff(table, axis=1))),
    )


def _labelled(table: NDArray[np.int64], kept: NDArray[np.int64]) -> "xr.DataArray":
    import xarray as xr

    return xr.DataArray(
        table, dims=("chain", "draw"), coords={"chain": np.arange(len(table)), "draw": kept}, name="mode"
    )


def _split(
    scores: NDArray[np.float64], num_components: int, level: float, most: int
) -> tuple[NDArray[np.int64], list[float]]:
    """Halve clusters that do not look like one mode, until none is left: labels and p-values.

    Shapes: scores (sample, component).
    """
    labels = np.zeros(len(scores), np.int64)
    p_values: list[float] = []
    waiting = [0]
    while waiting and labels.max() + 1 < most:
        members = np.flatnonzero(labels == waiting.pop(0))
        tested = _two_sides(scores[members], num_components)
        if tested is None:
            continue
        p, right = tested
        p_values.append(p)
        if p < level:
            label, new = int(labels[members[0]]), int(labels.max()) + 1
            labels[members[right]] = new
            waiting += [label, new]
    return labels, p_values


def _two_sides(scores: NDArray[np.float64], num_components: int) -> tuple[float, NDArray[np.bool_]] | None:
    """Test one cluster for a single mode: the p-value, and who lies beyond the dip; None for too few samples.

    Directions are found on one half of the samples and tested on the other: found on the same ones, the best of many
    directions splits any cloud in two.
    """
    search, held = scores[0::2], scores[1::2]
    if len(held) < _LEAST_HALF:
        return None
    directions = _directions(search - search.mean(axis=0), num_components)
    if len(directions) == 0:
        return None
    depths = [dip(line) for line in directions @ held.T]
    best = int(np.argmax(depths))
    along = scores @ directions[best]
    right = along > _cut(along)
    if not 0 < np.count_nonzero(right) < len(right):
        return None
    return min(1.0, len(directions) * dip_p_value(depths[best], len(held))), right


def _directions(centred: NDArray[np.float64], num_components: int) -> NDArray[np.float64]:
    """The leading principal directions, and that between the two clusters that k-means finds in their span.

    Shapes: (sample, component) -> (direction, component), unit length.
    """
    _, size, axes = np.linalg.svd(centred, full_matrices=False)
    leading = axes[: min(num_components, int(np.count_nonzero(size > 1e-9 * size[0])))]
    if len(leading) < 2:
        return leading
    between = _between_two_means(centred @ leading.T) @ leading
    length = float(np.linalg.norm(between))
    return leading if length == 0 else np.concatenate([leading, between[None] / length])


def _between_two_means(points: NDArray[np.float64]) -> NDArray[np.float64]:
    try:
        from sklearn.cluster import KMeans
    except ImportError as err:
        raise ImportError(
            "modes: scikit-learn is missing, expected it for k-means: pip install 'potentia[fit]'"
        ) from err
    found: NDArray[Any] = KMeans(2, random_state=_CLUSTER_SEED).set_params(n_init=4).fit(points).cluster_centers_
    between: NDArray[np.float64] = np.asarray(found[1] - found[0], dtype=np.float64)
    return between


def _cut(along: NDArray[np.float64]) -> float:
    """Where a line is cut so that the two sides spread least about their means (two-means on a line, exact)."""
    x = np.sort(along)
    n = len(x)
    left = np.arange(1, n)
    sums = np.cumsum(x)[:-1]
    total = float(x.sum())
    between = np.square(sums) / left + np.square(total - sums) / (n - left)
    k = int(between.argmax())
    return math.fsum((x[k], x[k + 1])) / 2
