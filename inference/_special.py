"""Tail probabilities of the distributions that diagnostics are judged by, in double precision."""

import math

import torch
from torch import Tensor

_TINY = 1e-300
_MOST_TERMS = 20_000


def beta_cdf(x: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
    """Regularised incomplete beta function I_x(a, b): the probability that a Beta(a, b) variable is at most x.

    Good to 1e-9 in both tails, as a share of the lesser one; NaN where an argument is.

    Shapes: x, a and b broadcast.
    Source: the continued fraction of DLMF 8.17.22, summed by Lentz's method.
    """
    x, a, b = torch.broadcast_tensors(*(torch.as_tensor(v, dtype=torch.float64, device=x.device) for v in (x, a, b)))
    # The fraction converges fast below the mean; above it, I_x(a, b) = 1 - I_{1-x}(b, a).
    swap = x > (a + 1) / (a + b + 2)
    p, q = torch.where(swap, b, a), torch.where(swap, a, b)
    z = torch.where(swap, 1 - x, x).clamp(0, 1)
    log_front = p * z.log() + torch.xlogy(q, 1 - z) + torch.lgamma(p + q) - torch.lgamma(p) - torch.lgamma(q)
    part = torch.where(z > 0, log_front.exp() / p * _fraction(z, p, q), 0.0)
    return torch.where(torch.isnan(x + a + b), torch.nan, torch.where(swap, 1 - part, part))


def _fraction(z: Tensor, p: Tensor, q: Tensor) -> Tensor:
    c = torch.ones_like(z)
    d = 1 / _off_zero(1 - (p + q) * z / (p + 1))
    h = d.clone()
    for m in range(1, _MOST_TERMS):
        even = m * (q - m) * z / ((p + 2 * m - 1) * (p + 2 * m))
        odd = -(p + m) * (p + q + m) * z / ((p + 2 * m) * (p + 2 * m + 1))
        for term in (even, odd):
            d = 1 / _off_zero(1 + term * d)
            c = _off_zero(1 + term / c)
            h = h * d * c
        if not bool(((d * c - 1).abs() > 1e-15).any()):  # NaN counts as done
            break
    return h


def _off_zero(t: Tensor) -> Tensor:
    return torch.where(t.abs() < _TINY, _TINY, t)


def binomial_cdf(k: Tensor, n: int, p: Tensor) -> Tensor:
    """Probability that a Binomial(n, p) variable is at most k.

    Shapes: k and p broadcast. k below 0 gives 0, k of n or more gives 1.
    """
    k = torch.as_tensor(k, dtype=torch.float64)
    inner = k.clamp(0, n - 1)
    inside = beta_cdf(1 - torch.as_tensor(p, dtype=torch.float64), n - inner, inner + 1)
    return torch.where(k < 0, 0.0, torch.where(k >= n, 1.0, inside))


def f_tail(value: Tensor, d1: float, d2: float) -> Tensor:
    """Probability that an F(d1, d2) variable exceeds a value; shape of the value."""
    value = torch.as_tensor(value, dtype=torch.float64)
    return torch.where(torch.isinf(value), 0.0, beta_cdf(d2 / (d2 + d1 * value.clamp(min=0)), d2 / 2, d1 / 2))


def chi_square_tail(value: Tensor, degrees: float) -> Tensor:
    """Probability that a chi-square variable exceeds a value; shape of the value."""
    value = torch.as_tensor(value, dtype=torch.float64)
    tail: Tensor = torch.special.gammaincc(torch.full_like(value, degrees / 2), value / 2)
    return tail


def normal_tail(value: Tensor) -> Tensor:
    """Probability that a standard normal variable exceeds the value in magnitude; shape of the value."""
    tail: Tensor = torch.special.erfc(torch.as_tensor(value, dtype=torch.float64).abs() / math.sqrt(2))
    return tail


def kolmogorov_tail(distance: float, n: int) -> float:
    """Probability that n uniform numbers have a Kolmogorov distance above this one.

    Good to 0.02 for n of 10, to 0.005 for 1,000.

    Source: Stephens 1970, the limit law at (sqrt(n) + 0.12 + 0.11 / sqrt(n)) times the distance.
    """
    root = math.sqrt(n)
    t = (root + 0.12 + 0.11 / root) * distance
    if t < 0.2:
        return 1.0
    total = math.fsum((-1.0) ** (j - 1) * math.exp(-2 * (j * t) ** 2) for j in range(1, 101))
    return min(1.0, max(0.0, 2 * total))
