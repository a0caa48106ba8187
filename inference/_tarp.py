"""Expected coverage by random points (TARP): are the regions that samples span as probable as they claim?"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from potentia._tensor import squared_norm
from potentia._validate import finite, same_shape, shape_text
from potentia.inference._special import kolmogorov_tail
from potentia.inference._uniformity import random_ranks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LEVELS = 51


@dataclass(frozen=True, eq=False)
class TARPResult:
    """Expected coverage of the regions around random points that samples span.

    - ``uniform``: (replications,), the credibility of the smallest such region that holds the truth; uniform if the
      samples are of the posteriors.
    - ``levels``, ``coverage``: the curve, the share of truths within the region of each level.
    - ``coverage_error``: its greatest distance from the diagonal, and ``p_value`` that of Kolmogorov's test.
    - ``area``: the area between curve and diagonal above level one half, positive where regions hold more than they
      claim, for samples that are too wide, and negative for samples that are too narrow; a bias bends the curve one way
      over all levels.
    """

    uniform: Tensor = field(repr=False)
    num_draws: int

    @property
    def levels(self) -> Tensor:
        """Levels of the curve, from 0 to 1. Shapes: (levels,), float64."""
        return torch.linspace(0, 1, _LEVELS, dtype=torch.float64)

    @property
    def coverage(self) -> Tensor:
        """Expected coverage at each level. Shapes: (levels,), float64."""
        return (self.uniform[:, None] <= self.levels).double().mean(dim=0)

    @property
    def coverage_error(self) -> float:
        """The greatest distance between coverage and level."""
        u = self.uniform.sort().values
        n = len(u)
        step = torch.arange(n + 1, dtype=torch.float64) / n
        return float(torch.maximum((step[1:] - u).max(), (u - step[:-1]).max()))

    @property
    def p_value(self) -> float:
        """P-value of the coverage error."""
        return kolmogorov_tail(self.coverage_error, len(self.uniform))

    @property
    def area(self) -> float:
        """Area to the curve above level one half, in units of level: at most an eighth in magnitude."""
        # The integral of 1[u <= a] - a from one half to one.
        return float(torch.minimum(1 - self.uniform, torch.tensor(0.5)).mean()) - 0.375

    def __repr__(self) -> str:
        return (
            f"TARP: {len(self.uniform)} truths, {self.num_draws} samples each, coverage error "
            f"{self.coverage_error:.3f}, area {self.area:+.4f}, p-value {self.p_value:.3g}"
        )

    def plot(self, path: str | Path | None = None) -> "Figure":
        """Coverage against level, with the band that a calibrated curve stays within with a probability of 95 %.

        Raises: ImportError without matplotlib.
        """
        from potentia.inference._calibration_plots import plot_tarp

        return plot_tarp(self, path)


def tarp(
    samples: Any,
    truths: Tensor,
    *,
    references: Tensor | None = None,
    seed: int = 0,
) -> TARPResult:
    """Check posterior samples of whole images at once, by distances from random points.

    For each truth, the share of its samples that lie nearer to a reference point than the truth does is uniform if the
    samples are of the posterior; it is so for any reference that is independent of the truth given the data. By default
    that is the truth of another replication. Samples of the prior pass as well, which no reference independent of
    the data tells from the posterior: give ``references`` that depend on the data, such as a simple reconstruction.

    Shapes: samples (replications, draws, *event), or a sequence of ensembles; truths (replications, *event); references
        as the truths. Complex images count with both parts.
    Raises: ValueError for shapes that do not fit, fewer than two replications, or NaN.
    Source: Lemos, Coogan, Hezaveh and Perreault-Levasseur 2023, algorithm 2.
    """
    x = stacked("tarp", samples)
    if x.dim() < 3 or len(x) < 2:
        raise ValueError(
            f"tarp: samples have shape {shape_text(tuple(x.shape))}, expected (replications, draws, *event), "
            "two replications or more"
        )
    same_shape("tarp", "truths", tuple(truths.shape), (x.shape[0], *x.shape[2:]))
    generator = torch.Generator().manual_seed(seed)
    if references is None:
        # A shuffled ring: everybody gets somebody else's.
        order = torch.randperm(len(x), generator=generator)
        references = torch.empty_like(truths)
        references[order] = truths[order.roll(1)]
    else:
        same_shape("tarp", "references", tuple(references.shape), tuple(truths.shape))
    for what, t in (("samples", x), ("truths", truths), ("references", references)):
        finite("tarp", what, t)
    dims = x.dim() - 2
    reference = references.to(x)
    own = squared_norm(truths.to(x) - reference, dims).cpu()
    theirs = torch.stack([squared_norm(s - r, dims).cpu() for s, r in zip(x, reference, strict=True)])
    ranks = random_ranks((theirs < own[:, None]).sum(dim=1), (theirs == own[:, None]).sum(dim=1), generator)
    places = torch.rand(len(ranks), generator=generator, dtype=torch.float64)
    return TARPResult((ranks + places) / (x.shape[1] + 1), x.shape[1])


def stacked(where: str, samples: Any) -> Tensor:
    """Samples of several posteriors, (replications, draws, *event), from a tensor or from ensembles.

    Raises: TypeError, ValueError.
    """
    if isinstance(samples, Tensor):
        return samples.detach()
    if not isinstance(samples, Sequence) or not samples or not all(hasattr(e, "samples") for e in samples):
        raise TypeError(f"{where}: samples is a {type(samples).__name__}, expected a tensor or a sequence of ensembles")
    drawn = [e.samples().flatten(0, 1) for e in samples]
    for other in drawn[1:]:
        same_shape(where, "the samples of an ensemble", tuple(other.shape), tuple(drawn[0].shape))
    return torch.stack(drawn)
