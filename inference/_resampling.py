"""Weights of particles: how even they are, and resampling."""

import math

import torch
from torch import Tensor

from potentia._random import Generators, generator_device
from potentia._validate import count, shape_text


def normalised(log_weights: Tensor) -> Tensor:
    """Weights that sum to one over the last dimension, in float64: (..., N) -> (..., N)."""
    return log_weights.double().softmax(-1)


def log_mean_exp(log_weights: Tensor) -> Tensor:
    """Log of the mean of exp over the last dimension, in float64: (..., N) -> (...,)."""
    return log_weights.double().logsumexp(-1) - math.log(log_weights.shape[-1])


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2: how many equally weighted particles the weights are worth, between 1 and N.

    Zero where all weights are; NaN where one is. Adding a constant to the log weights changes nothing.

    Shapes: log_weights (..., N) -> (...,), float64.
    Source: Kong, Liu and Wong 1994.
    """
    logs = log_weights.double()
    size = (2 * logs.logsumexp(-1) - (2 * logs).logsumexp(-1)).exp()
    return torch.where((logs == -torch.inf).all(-1), 0.0, size)


def conditional_effective_sample_size(log_weights: Tensor, increment: Tensor) -> Tensor:
    """N (sum W v)^2 / sum W v^2, W the normalised weights and v the factors about to multiply them.

    It measures the step from one target to the next alone: N where the factors are equal, however uneven W is.

    Shapes: log_weights and increment (log v), (..., N) -> (...,), float64.
    Source: Zhou, Johansen and Aston 2016, eq. 3.17.
    """
    logs = log_weights.double().log_softmax(-1)
    step = increment.double()
    first, second = (logs + step).logsumexp(-1), (logs + 2 * step).logsumexp(-1)
    size = logs.shape[-1] * (2 * first - second).exp()
    return torch.where((logs + step == -torch.inf).all(-1), 0.0, size)


def systematic(log_weights: Tensor, generator: Generators, num: int | None = None) -> Tensor:
    """Indices of the particles to go on with: systematic resampling.

    Particle i is drawn floor(num w_i) or ceil(num w_i) times, num w_i times on average; indices come in increasing
    order, so that particles of equal weight stay as they are.

    Shapes: log_weights (..., N), one uniform number for each row of weights -> (..., num), int64; num is N by default.
        Of a sequence of generators the first one draws.
    Raises: ValueError if a row of weights holds NaN, or no finite entry, or plus infinity.
    Source: Carpenter, Clifford and Fearnhead 1999.
    """
    if log_weights.dim() == 0 or log_weights.shape[-1] == 0:
        raise ValueError(
            f"systematic: log_weights has shape {shape_text(tuple(log_weights.shape))}, expected (..., N) with N >= 1"
        )
    n = count("systematic", "num", log_weights.shape[-1] if num is None else num)
    logs = log_weights.detach().double()
    top = logs.amax(-1)
    if not bool(torch.isfinite(top).all()):  # NaN wins in amax
        bad = int((~torch.isfinite(top)).sum())
        raise ValueError(
            f"systematic: {bad} of {top.numel()} rows of log_weights hold NaN, plus infinity or no finite entry"
        )
    source = generator if isinstance(generator, torch.Generator) else generator[0]
    u = torch.rand((*logs.shape[:-1], 1), generator=source, dtype=torch.float64, device=generator_device(source))
    places = (torch.arange(n, dtype=torch.float64, device=logs.device) + u.to(logs.device)) / n
    sums = logs.softmax(-1).cumsum(-1)
    # Below the last sum, so that no particle of weight zero is taken, whatever the rounding.
    places = torch.minimum(places * sums[..., -1:], sums[..., -1:] * (1 - 2**-52))
    return torch.searchsorted(sums, places.contiguous(), right=True)
