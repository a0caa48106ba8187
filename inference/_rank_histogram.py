"""Rank histograms of images: where the true pixels stand among the samples'."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from potentia._validate import count, finite, same_shape, shape_text
from potentia.inference._special import normal_tail
from potentia.inference._tarp import stacked
from potentia.inference._uniformity import bonferroni, expected_shares, histogram, random_ranks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BINS = 20


@dataclass(frozen=True, eq=False)
class RankHistogram:
    """Ranks of true pixels among those of samples, over pixels and images; flat if the samples' spread is right.

    - ``counts``, ``expected``: (bins,), pixels in each bin of ranks, and how many a flat histogram has there.
    - ``mean_rank``: 0.5 if samples are unbiased, above where they are too low. ``spread``: 12 times the mean squared
      distance of ranks from one half: 1 if calibrated, up to 3 if samples are too narrow, towards 0 if too wide.
    - ``mean_rank_error``, ``spread_error``: standard errors from the differences between images, as pixels of one image
      depend on one another; NaN for a single image.
    """

    counts: Tensor
    expected: Tensor
    num_draws: int
    num_images: int
    mean_rank: float
    mean_rank_error: float
    spread: float
    spread_error: float

    @property
    def p_value(self) -> float:
        """P-value that mean rank and spread are those of calibrated samples, for many images; NaN for a single one."""
        if self.num_images < 2:
            return math.nan
        z = [(self.mean_rank - 0.5) / self.mean_rank_error, (self.spread - 1) / self.spread_error]
        return bonferroni(normal_tail(torch.tensor(z, dtype=torch.float64)))

    def __repr__(self) -> str:
        n = int(self.counts.sum())
        return (
            f"Rank histogram: {n} pixels of {self.num_images} image{'s' * (self.num_images > 1)} among "
            f"{self.num_draws} samples, mean rank {self.mean_rank:.3f} ± {self.mean_rank_error:.3f} (0.5 if unbiased), "
            f"spread {self.spread:.3f} ± {self.spread_error:.3f} (1 if calibrated, above if samples are too narrow)"
        )

    def plot(self, path: str | Path | None = None) -> "Figure":
        """The histogram beside a flat one.

        Raises: ImportError without matplotlib.
        """
        from potentia.inference._calibration_plots import plot_rank_histogram

        return plot_rank_histogram(self, path)


def rank_histogram(
    samples: Any, truth: Tensor, *, mask: Tensor | None = None, bins: int | None = None, seed: int = 0
) -> RankHistogram:
    """Count where true pixels rank among the samples of their posteriors.

    Of a single ensemble with its truth the histogram is a picture, not a test: neighbouring pixels go astray together.
    Of several, the differences between images give errors and a p-value.

    Shapes: samples an ensemble, with truth (C, H, W); or (images, draws, *event), or a sequence of ensembles, with
        truth (images, *event). Real and imaginary parts count one each. mask broadcasts against (*event), True where
        pixels count.
    Raises: TypeError, ValueError for what does not fit, for NaN, or a mask that leaves nothing.
    Source: Hamill 2001; ties are put in order at random.
    """
    if hasattr(samples, "samples") and not isinstance(samples, Tensor):
        samples, truth = [samples], truth[None]
    x = stacked("rank_histogram", samples)
    if x.dim() < 3 or len(x) == 0:
        raise ValueError(
            f"rank_histogram: samples have shape {shape_text(tuple(x.shape))}, expected (images, draws, *event)"
        )
    same_shape("rank_histogram", "truth", tuple(truth.shape), (x.shape[0], *x.shape[2:]))
    finite("rank_histogram", "samples", x)
    finite("rank_histogram", "truth", truth)
    keep = torch.ones(x.shape[2:], dtype=torch.bool) if mask is None else torch.as_tensor(mask, dtype=torch.bool).cpu()
    keep = keep.expand(x.shape[2:])
    if not bool(keep.any()):
        raise ValueError("rank_histogram: mask leaves no pixel to count")
    truth = truth.to(x)
    if x.is_complex():
        x, truth, keep = torch.view_as_real(x), torch.view_as_real(truth), keep[..., None].expand(*keep.shape, 2)
    generator = torch.Generator().manual_seed(seed)
    below = torch.stack([(s < t).sum(dim=0) for s, t in zip(x, truth, strict=True)]).cpu()[:, keep]
    equal = torch.stack([(s == t).sum(dim=0) for s, t in zip(x, truth, strict=True)]).cpu()[:, keep]
    ranks = random_ranks(below, equal, generator)
    size = x.shape[1]
    number = min(size + 1, _BINS) if bins is None else count("rank_histogram", "bins", bins, least=2)
    number = min(number, size + 1)
    # Each rank stands for an interval of 1 / (size + 1), whose own spread belongs to the whole.
    centred = (ranks.double() + 0.5) / (size + 1) - 0.5
    squares = 12 * (centred.square() + 1 / (12 * (size + 1) ** 2))
    mean, mean_error = _mean(centred)
    spread, spread_error = _mean(squares)
    counts = histogram(ranks.flatten(), number, size)
    expected = expected_shares(number, size) * ranks.numel()
    return RankHistogram(counts, expected, size, len(x), mean + 0.5, mean_error, spread, spread_error)


def _mean(values: Tensor) -> tuple[float, float]:
    """Mean over (images, pixels), and its error from the images' means."""
    each = values.mean(dim=1).numpy()
    error = float(each.std(ddof=1) / math.sqrt(len(each))) if len(each) > 1 else math.nan
    return float(np.mean(each)), error
