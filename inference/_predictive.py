"""Predictive checks: whether data like those measured could come from the model at all."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from potentia._algebra import Scaled
from potentia._potential import Likelihood, Potential
from potentia._tensor import EVENT_DIMS
from potentia._validate import count, finite, shape_text
from potentia.inference._precondition import terms

Discrepancy = Callable[[Tensor, Tensor], Tensor]
_CHUNK = 2**22  # numbers of replicated data held at once
_METHODS = ("posterior", "sampled")


@runtime_checkable
class Predictive(Protocol):
    """A likelihood that says how badly an image explains other measurements than its own."""

    def misfit(self, x: Tensor, y: Tensor) -> Tensor:
        """L(x) had y been measured: x (*batch, C, H, W) and y (*batch, *measurement) -> (*batch,)."""
        ...


@dataclass(frozen=True, eq=False)
class PredictiveCheck:
    """What a predictive check found.

    ``observed`` are the discrepancies between the measurements and the draws, ``replicated`` those between simulated
    measurements and the same draws. ``p_value`` is the probability that data of the model depart further than those
    measured: small for a misfit too large, near 1 for one too small.

    Shapes: observed and replicated (draws,), or for "sampled" () and (replications,), float64.
    """

    method: str
    statistic: str
    p_value: float
    observed: Tensor = field(repr=False)
    replicated: Tensor = field(repr=False)

    def __repr__(self) -> str:
        return (
            f"Predictive check ({self.method}), {self.statistic}: observed {float(self.observed.mean()):.6g}, "
            f"replicated {float(self.replicated.mean()):.6g} +- {float(self.replicated.std()):.3g}, "
            f"p-value {self.p_value:.3g}"
        )


def posterior_predictive_check(
    posterior: Potential,
    draws: Any,
    statistic: str | Discrepancy = "deviance",
    *,
    method: str = "posterior",
    num_replications: int = 1000,
    seed: int = 0,
) -> PredictiveCheck:
    """Check a model against its data: simulate measurements from draws of the posterior, and compare.

    - "posterior": one replication a draw; the p-value is the share of draws at which the replicated data depart further
      than the measured ones. It sees the data twice: under the right model it is not uniform but crowds around 1/2, so
      that 0.1 may already be rare. Gelman, Meng and Stern's check.
    - "sampled": many replications at a single draw, picked at random. Under the right model, with data from its prior
      predictive distribution, the p-value is uniform, exactly, whatever the statistic: so it can be read as of any
      test. It needs one good draw only, and depends on which is picked: repeat it with other data, not other seeds.

    Ties, of discrete data, are broken at random for "sampled" and count half for "posterior".

    Args:
        posterior: ``prior + likelihood`` with one likelihood of weight one, or the likelihood alone.
        draws: Images of the posterior, (draws, C, H, W) or (chains, draws, C, H, W), or an ensemble.
        statistic: "deviance" is 2 L(x), for Gaussian noise the chi-square of the residuals; or a function of
            measurements (n, *measurement) and images (n, C, H, W) that gives n numbers. Tests of one's own see more:
            the greatest residual, its correlation from pixel to pixel.
        method: "posterior" or "sampled".
        num_replications: Of "sampled".
        seed: Seed of all random numbers.

    All is computed in double precision.

    Raises:
        TypeError: For a posterior without likelihood, with a weighted one, or with one that does not know its misfit
            to other data where "deviance" is asked for; for draws that are neither tensor nor ensemble.
        ValueError: For several likelihoods (check one at a time), an unknown method or statistic, draws of another
            shape or field or that are not finite, or statistics of another shape or that are NaN.
    Source: Gelman, Meng and Stern 1996, section 2; Johnson 2004 and Gosselin 2011 (sampled posterior p-values).
    """
    where = "posterior_predictive_check"
    if method not in _METHODS:
        raise ValueError(f"{where}: method is {method!r}, expected one of {', '.join(map(repr, _METHODS))}")
    replications = count(where, "num_replications", num_replications)
    likelihood = copy.deepcopy(_likelihood_of(where, posterior)).double()
    of, name = _discrepancy(where, likelihood, statistic)
    x = _images(where, likelihood, draws)
    generator = torch.Generator(likelihood.y.device).manual_seed(count(where, "seed", seed, least=0))
    if method == "sampled":
        pick = int(torch.randint(len(x), (), generator=generator, device=generator.device))
        x = x[pick : pick + 1].expand(replications, *x.shape[1:])
    parts = [_compare(likelihood, of, part, generator) for part in x.split(_length(likelihood))]
    observed, replicated = (torch.cat(found) for found in zip(*parts, strict=True))
    if method == "posterior":
        further = (replicated > observed).double() + 0.5 * (replicated == observed).double()
        return PredictiveCheck(method, name, float(further.mean()), observed, replicated)
    equal = int((replicated == observed).sum())
    place = float(torch.rand((), generator=generator, dtype=torch.float64, device=generator.device))
    p = (int((replicated > observed).sum()) + place * (equal + 1)) / (replications + 1)
    return PredictiveCheck(method, name, p, observed[0], replicated)


def _likelihood_of(where: str, posterior: Potential) -> Likelihood:
    found: Sequence[Potential] = [t for t in terms(posterior) if isinstance(t, Likelihood)]
    weighted = [t for t in terms(posterior) if isinstance(t, Scaled) and isinstance(t.term, Likelihood)]
    if weighted:
        raise TypeError(
            f"{where}: {weighted[0].name} is a likelihood with a weight, which is no noise model to simulate from; "
            "expected one without"
        )
    if not found:
        raise TypeError(f"{where}: {posterior.name} holds no likelihood, expected prior + likelihood")
    if len(found) > 1:
        names = ", ".join(t.name for t in found)
        raise ValueError(f"{where}: got {len(found)} likelihoods ({names}), expected one: check them one at a time")
    return cast(Likelihood, found[0])


def _discrepancy(where: str, likelihood: Likelihood, statistic: str | Discrepancy) -> tuple[Discrepancy, str]:
    if not isinstance(statistic, str):
        of = statistic
        return (lambda y, x: _checked(where, of(y, x), x)), getattr(of, "__name__", type(of).__name__)
    if statistic != "deviance":
        raise ValueError(f"{where}: statistic is {statistic!r}, expected 'deviance' or a function of data and images")
    if not isinstance(likelihood, Predictive):
        raise TypeError(f"{where}: {likelihood.name} has no method misfit, expected one or a statistic of your own")
    misfit = likelihood.misfit
    return (lambda y, x: _checked(where, 2 * misfit(x, y), x)), statistic


def _checked(where: str, value: Tensor, x: Tensor) -> Tensor:
    if tuple(value.shape) != (len(x),) or value.is_complex():
        raise ValueError(
            f"{where}: the statistic has shape {shape_text(tuple(value.shape))} and dtype {value.dtype}, expected real "
            f"{shape_text((len(x),))}, one number an image"
        )
    if bool(torch.isnan(value).any()):
        raise ValueError(f"{where}: the statistic is NaN for {int(torch.isnan(value).sum())} images")
    return value.double()


def _images(where: str, likelihood: Likelihood, draws: Any) -> Tensor:
    """Images of all chains in double precision: (draws, C, H, W)."""
    x = draws.samples() if hasattr(draws, "samples") else draws
    if not isinstance(x, Tensor):
        raise TypeError(f"{where}: draws is a {type(x).__name__}, expected a tensor or an ensemble")
    if x.dim() not in (EVENT_DIMS + 1, EVENT_DIMS + 2) or x.numel() == 0:
        raise ValueError(
            f"{where}: draws has shape {shape_text(tuple(x.shape))}, expected (draws, C, H, W) or "
            "(chains, draws, C, H, W)"
        )
    flat = x.detach().reshape(-1, *x.shape[-EVENT_DIMS:])
    likelihood.check(flat)
    finite(where, "draws", flat)
    return flat.to(device=likelihood.y.device, dtype=torch.complex128 if flat.is_complex() else torch.float64)


def _length(likelihood: Likelihood) -> int:
    event = likelihood.event_shape or ()
    return max(1, _CHUNK // max(likelihood.y.numel(), math.prod(event)))


def _compare(likelihood: Likelihood, of: Discrepancy, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Discrepancies of the measured and of simulated data, at each image."""
    with torch.no_grad():
        y = likelihood.y.expand(len(x), *likelihood.y.shape)
        return of(y, x), of(likelihood.simulate(x, generator), x)
