"""The estimate of least mean squared error: the posterior mean, from an ensemble."""

import math
from typing import Any, NamedTuple

from torch import Tensor

from potentia._potential import Potential
from potentia._validate import count
from potentia.inference._diagnostics import LEAST_DRAWS, mcse
from potentia.inference._protocol import Sampler
from potentia.inference._sample import default_sampler, sample


class MmseEstimate(NamedTuple):
    """The mean of an ensemble, and the Monte-Carlo standard error of each pixel.

    Shapes: image (C, H, W); std_error (C, H, W), real: of complex images that of sqrt(|error|^2).
    """

    image: Tensor
    std_error: Tensor


def mmse(
    posterior: Potential, sampler: Sampler | None = None, *, num_chains: int, num_draws: int = 1, **settings: Any
) -> MmseEstimate:
    """The posterior mean, which has the least mean squared error of all estimates, and how well it is known.

    Runs ``sample`` and keeps nothing else of the ensemble. The standard error of independent draws is std / sqrt(n); of
    chains with four draws or more each, it counts their autocorrelation (``mcse``); of fewer, it comes from the scatter
    of the chains' means. Chains of ``SMC`` and ``TwistedSMC`` share ancestors, so that theirs are too small.

    Args:
        posterior: What to sample: usually ``prior + likelihood``.
        sampler: How; by default as ``sample`` does.
        num_chains: Chains side by side, two or more.
        num_draws: Draws of each chain.
        **settings: Of ``sample``: seed, init, num_warmup, device, dtype and so on.

    Raises:
        TypeError: As ``sample``.
        ValueError: As ``sample``, and for a single chain.
    """
    chains = count("mmse", "num_chains", num_chains, least=2)
    sampler = default_sampler(posterior) if sampler is None else sampler
    ensemble = sample(posterior, sampler, num_chains=chains, num_draws=num_draws, **settings)
    draws = ensemble.samples()
    image = draws.mean(dim=(0, 1))
    parts = (draws.real, draws.imag) if draws.is_complex() else (draws,)
    variance = sum(_error(part, sampler.independent_draws).square() for part in parts)
    assert isinstance(variance, Tensor)
    return MmseEstimate(image, variance.sqrt().to(image.real.dtype))


def _error(draws: Tensor, independent: bool) -> Tensor:
    """Standard error of the mean over (chains, draws), by pixel."""
    wide = draws.double()
    if independent:
        each = wide.flatten(0, 1)
        return each.std(0) / math.sqrt(len(each))
    if wide.shape[1] >= LEAST_DRAWS:
        return mcse(wide)
    means = wide.mean(1)
    return means.std(0) / math.sqrt(len(means))
