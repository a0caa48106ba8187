"""Whether ranks are uniform: histograms with exact expectations, chi-square tests, simultaneous bands of the ECDF."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from potentia.inference._special import binomial_cdf, chi_square_tail

_SIMULATED = 1000
_MOST_BINS = 20
_A_BIN = 10  # ranks that a bin should expect


def random_ranks(below: Tensor, equal: Tensor, generator: torch.Generator) -> Tensor:
    """Ranks of truths among draws, those that tie with draws put among them at random.

    Shapes: below and equal, the draws below and equal to each truth, of one shape -> the same, int64.
    """
    places = torch.rand(below.shape, generator=generator, dtype=torch.float64, device=below.device)
    return below + (places * (equal + 1)).floor().to(torch.int64).clamp(max=equal)


def num_bins(num_ranks: int, num_draws: int) -> int:
    """Bins for so many ranks from 0 to ``num_draws``: ten ranks each, 20 bins at most, no more than there are ranks."""
    return max(2, min(num_draws + 1, _MOST_BINS, num_ranks // _A_BIN))


def expected_shares(bins: int, num_draws: int) -> Tensor:
    """Share of uniform ranks that falls in each bin; unequal where the ranks do not divide evenly. (bins,)."""
    return _share_of(torch.arange(num_draws + 1), bins, num_draws)


def _share_of(ranks: Tensor, bins: int, num_draws: int) -> Tensor:
    return torch.bincount(ranks * bins // (num_draws + 1), minlength=bins).double() / len(ranks)


def histogram(ranks: Tensor, bins: int, num_draws: int) -> Tensor:
    """Counts of ranks in bins: (n,) -> (bins,), int64."""
    return torch.bincount(ranks * bins // (num_draws + 1), minlength=bins)


def chi_square_p(ranks: Tensor, bins: int, num_draws: int) -> float:
    """P-value of Pearson's chi-square test of independent ranks from 0 to ``num_draws`` for uniformity.

    Shapes: ranks (n,), integer.
    """
    expected = expected_shares(bins, num_draws) * len(ranks)
    value = ((histogram(ranks, bins, num_draws) - expected).square() / expected).sum()
    return float(chi_square_tail(value, bins - 1))


def _levels(n: int) -> Tensor:
    points = min(n, 100)
    return torch.arange(1, points, dtype=torch.float64) / points


def _counts_up_to(uniform: Tensor, levels: Tensor) -> Tensor:
    """How many of the numbers lie at or below each level: (rows, n) -> (rows, levels)."""
    return torch.searchsorted(uniform.sort(dim=1).values, levels.expand(len(uniform), -1).contiguous(), right=True)


@lru_cache(maxsize=8)
def _null(n: int) -> tuple[Tensor, Tensor]:
    """Binomial distribution functions at the levels, (levels, n + 1), and sorted extremes of uniform samples."""
    levels = _levels(n)
    cdf = binomial_cdf(torch.arange(n + 1, dtype=torch.float64), n, levels[:, None])
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(10):  # a tenth at a time, for the sake of memory
        uniform = torch.rand(_SIMULATED // 10, n, generator=generator, dtype=torch.float64)
        found.append(_extremes(_counts_up_to(uniform, levels), cdf))
    return cdf, torch.cat(found).sort().values


def _extremes(counts: Tensor, cdf: Tensor) -> Tensor:
    """The least two-sided binomial p-value over the levels: (rows, levels) -> (rows,)."""
    place = torch.arange(len(cdf))
    below = cdf[place, counts]
    above = 1 - torch.where(counts > 0, cdf[place, (counts - 1).clamp(min=0)], 0.0)
    return 2 * torch.minimum(below, above).amin(dim=1)


def ecdf_p(uniform: Tensor) -> float:
    """P-value of a test that numbers are uniform, by the greatest departure of their ECDF from its binomial law.

    More powerful than a chi-square test against ranks that are a little too wide, too narrow or off to one side. The
    p-value is the share of 1,000 simulated samples that depart as far, or, for departures beyond all of them, at most
    the sum of the binomial probabilities over the levels.

    Shapes: uniform (n,).
    Source: Säilynoja, Bürkner and Vehtari 2022, section 3.1.
    """
    cdf, null = _null(len(uniform))
    found = _extremes(_counts_up_to(uniform.double()[None].cpu(), _levels(len(uniform))), cdf)
    simulated = float(1 + (null <= found * (1 + 1e-9)).sum()) / (1 + _SIMULATED)
    return min(simulated, float(found) * len(cdf))


def ecdf_band(n: int, coverage: float = 0.95) -> tuple[Tensor, Tensor, Tensor]:
    """Levels, and the simultaneous band that the ECDF of n uniform numbers stays within with this probability.

    Shapes: three times (levels,).
    Source: Säilynoja, Bürkner and Vehtari 2022, algorithm 2, by simulation.
    """
    cdf, null = _null(n)
    # A little less, so that counts which are just as extreme stay within.
    share = float(null[round((1 - coverage) * _SIMULATED)]) / 2 * (1 - 1e-9)
    low = (cdf < share).sum(dim=1)
    high = (cdf < 1 - share).sum(dim=1)
    return _levels(n), low / n, high / n


def bonferroni(p_values: "list[float] | np.ndarray | Tensor") -> float:
    """The least p-value times their number, at most 1: valid however the tests depend on one another."""
    values = np.asarray(p_values, dtype=np.float64)
    return float(min(1.0, np.nanmin(values) * np.isfinite(values).sum()))
