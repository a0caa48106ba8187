"""Which diagnostics suit how many chains and draws, and how far they must stray before chance no longer explains it."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from potentia.inference._diagnostics import LEAST_DRAWS, Pixels, ascending, nested, normal_scores, quantile
from potentia.inference._special import f_tail

RHAT_LIMIT = 1.01
ESS_PER_CHAIN = 100
FALSE_ALARMS = 0.01  # a statistic, over all pixels and the log posterior together
_MANY_CHAINS = 16
_LEAST_LAGS = 10  # below this, Geyer's sequence has no lags to go by
# Of chains at the limit: log10 of the probability that the estimated ESS is exp(-y) of the truth is at most
# (_OFFSET - y sqrt(ESS)) / _DECADE; found on independent and on AR(1) chains, 2 to 16 of them, down to 1e-5.
_OFFSET = -4.0
_DECADE = 8.0

RhatKind = Literal["split", "nested"]
EssKind = Literal["autocorrelation", "between chains", "independent"]


@dataclass(frozen=True)
class Method:
    """How chains of this number and length are looked at.

    R-hat is ``split``, or ``nested`` for 16 or more chains of fewer than 100 draws, or None below four draws or two
    chains. ESS comes from the autocorrelation; below ten draws a chain it is the number of draws if the sampler says
    that they are ``independent``, or else comes from the spread between chains, and is None for one chain so short.
    ``superchains`` are those of nested R-hat, each of ``superchain_size`` chains.
    """

    chains: int
    draws: int
    independent: bool = False

    @property
    def told(self) -> str:
        """The numbers in words."""
        return f"{self.chains} chain{'s' * (self.chains > 1)} of {self.draws} draw{'s' * (self.draws > 1)}"

    @property
    def rhat(self) -> RhatKind | None:
        """Which R-hat."""
        if self.draws < LEAST_DRAWS or self.chains < 2:
            return None
        return "nested" if self.chains >= _MANY_CHAINS and self.draws < ESS_PER_CHAIN else "split"

    @property
    def ess(self) -> EssKind | None:
        """Where the ESS comes from."""
        if self.draws >= _LEAST_LAGS:
            return "autocorrelation"
        if self.independent:
            return "independent"
        return "between chains" if self.chains > 1 else None

    @property
    def superchains(self) -> int:
        """Superchains of nested R-hat."""
        return 4 if self.chains < 64 else 8

    @property
    def superchain_size(self) -> int:
        """Chains in each."""
        return self.chains // self.superchains

    @property
    def ess_wanted(self) -> float | None:
        """The ESS below which a run is suspect, 100 a chain; None for chains of fewer draws, which cannot have it.

        Those are judged by R-hat alone, which grows as the draws become fewer than their autocorrelation asks for.
        """
        return float(ESS_PER_CHAIN * self.chains) if self.draws >= ESS_PER_CHAIN else None

    def rhat_and_excess(self, pixels: Pixels) -> tuple[Tensor, Tensor]:
        """R-hat, and the F statistic to judge it by: twice (pixels,).

        Split: the means of half-chains of n draws, min(n, 50) of them independent, are compared by an F test; that is
        a run of 100 effective draws a chain, or of independent draws if it is shorter. Nested: chains whose first
        draws are neighbours make a superchain, so that it tells whether later draws, those of the second half, remember
        where the chain began; the means of the superchains are compared by an F test, which is exact for independent
        chains whatever the autocorrelation within.
        """
        if self.rhat is None:
            return torch.full_like(pixels.std, torch.nan), torch.full_like(pixels.std, torch.nan)
        if self.rhat == "nested":
            return self._nested(pixels)
        value = pixels.rhat
        n, m = self.draws // 2, self._effective_half
        return value, (m - 1) * (value.square() * n / (n - 1) - 1)

    @property
    def _effective_half(self) -> int:
        """Independent draws that a half-chain of a run just good enough stands for."""
        return min(self.draws // 2, ESS_PER_CHAIN // 2)

    def rhat_tail(self, excess: Tensor) -> Tensor:
        """Probability of an F statistic as great in a run that is just good enough; shape of the excess."""
        if self.rhat is None:
            return torch.full_like(excess, torch.nan)
        if self.rhat == "nested":
            degrees = self.superchains - 1, self.superchains * (self.superchain_size - 1)
        else:
            degrees = 2 * self.chains - 1, 2 * self.chains * (self._effective_half - 1)
        # The greater of two, bulk and spread, has twice the chance.
        return (2 * f_tail(excess, *degrees)).clamp(max=1.0)

    def _nested(self, pixels: Pixels) -> tuple[Tensor, Tensor]:
        used = self.superchains * self.superchain_size
        first, later = pixels.x[:, :used, 0], pixels.x[:, :used, self.draws // 2 :]
        middle = quantile(ascending(later.flatten(1))[0], 0.5)
        found = []
        for start, rest in ((first, later), ((first - middle[:, None]).abs(), (later - middle[:, None, None]).abs())):
            scores = normal_scores(*ascending(rest.flatten(1))).reshape(rest.shape)
            order = ascending(start)[1][:, :, None].expand(rest.shape)
            found.append(nested(scores.gather(1, order), self.superchains))
        (bulk, of_bulk), (spread, of_spread) = found
        value = torch.where(torch.isnan(spread), bulk, torch.maximum(bulk, spread))
        return value, torch.where(torch.isnan(of_spread), of_bulk, torch.maximum(of_bulk, of_spread))

    def sizes(self, pixels: Pixels) -> tuple[Tensor, Tensor, Tensor]:
        """Bulk, tail and mean ESS: (pixels,) each."""
        if self.ess == "autocorrelation":
            return pixels.ess_bulk, pixels.ess_tail, pixels.ess_mean
        if self.ess is None:
            unknown = torch.full_like(pixels.x[:, 0, 0], torch.nan)
            return unknown, unknown, unknown
        if self.ess == "independent":
            size = torch.full_like(pixels.x[:, 0, 0], float(self.chains * self.draws))
            return size, size, size
        flat = pixels.x.flatten(1)
        values, order = ascending(flat)
        scores = normal_scores(values, order).reshape(pixels.x.shape)
        tails = [(pixels.x <= quantile(values, p)[:, None, None]).double() for p in (0.05, 0.95)]
        return (
            between_chain_ess(scores),
            torch.minimum(*(between_chain_ess(t) for t in tails)),
            between_chain_ess(pixels.x),
        )

    def ess_tail(self, size: Tensor) -> Tensor:
        """Probability of an estimate as small from a run that has just the ESS wanted; shape of the sizes."""
        wanted = self.ess_wanted
        if wanted is None:
            return torch.full_like(size, torch.nan)
        decades = (_OFFSET - (wanted / size).log() * math.sqrt(wanted)) / _DECADE
        return torch.pow(10.0, decades.clamp(max=0.0))


def between_chain_ess(x: Tensor) -> Tensor:
    """ESS of all chains by how much the means of chains, which are independent, differ: chains * var / var(means).

    Exactly the number of chains for one draw a chain; relative error sqrt(2 / (chains - 1)). At most S log10 S, S for
    constant numbers.

    Shapes: x (pixels, chains, draws) -> (pixels,).
    """
    chains, draws = x.shape[1:]
    size = chains * draws
    flat = x.flatten(1)
    constant = flat.amax(dim=1) == flat.amin(dim=1)
    effective = chains * flat.var(dim=1) / x.mean(dim=2).var(dim=1)
    most = size * max(1.0, math.log10(size))
    return torch.where(constant, float(size), effective.clamp(max=most))


def beyond_chance(tails: Tensor, lp_tail: float) -> list[str]:
    """Which of three tests fail: that of the median pixel, of the worst pixel, and of the log posterior.

    The chance of a false alarm is a third of FALSE_ALARMS each, however the pixels depend on one another: the least
    of n p-values times n is a p-value (Bonferroni), and so is the median times two (Rüger 1978).

    Shapes: tails (pixels,); NaN has no say.
    """
    known = tails[~torch.isnan(tails)]
    p_values = {"log posterior": lp_tail}
    if len(known):
        p_values = {"median": 2 * float(known.median()), "worst": len(known) * float(known.min()), **p_values}
    return [test for test, p in p_values.items() if p <= FALSE_ALARMS / 3]
