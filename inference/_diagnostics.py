"""Convergence diagnostics of Markov chains, for every pixel of an image at once.

All take draws of shape (chains, draws, *event), real, and compute in double precision, a few pixels at a time, so that
memory beside the draws stays bounded. They equal ArviZ's (0.2x) to rounding. Where nothing can be said they give NaN:
fewer than four draws a chain, one chain alone for R-hat, a NaN among the draws of that pixel.
"""

import math
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from potentia._validate import count, shape_text
from potentia.inference._special import beta_cdf

LEAST_DRAWS = 4  # a half-chain needs two for its variance
_CHUNK = 2**17  # numbers worked on at once: a megabyte, so that they stay within the cache
_FEW_THREADS = 3
_NO_SPREAD = 1e-20  # normal scores that differ at all differ by far more than 1e-10

EssKind = Literal["bulk", "tail", "mean", "std", "median"] | float
McseKind = Literal["mean", "std", "median"] | float
_PLUS_MINUS_ONE_STD = (0.1586553, 0.8413447)


def rhat(draws: Tensor) -> Tensor:
    """Rank-normalised split R-hat, the greater of the bulk's and of the folded draws', which tells of the spread.

    1 where the chains agree; the customary limit is 1.01. The maximum over many pixels of a short run exceeds it by
    chance: ``summary`` knows by how much. Infinite where every half-chain stands still at a value of its own, NaN
    where all draws are one value.

    Shapes: draws (chains, draws, *event) -> (*event,), float64. The middle one of an odd number of draws is left out.
    Raises: TypeError for complex draws, ValueError for fewer than two dimensions.
    Source: Vehtari, Gelman, Simpson, Carpenter and Bürkner 2021, sections 4.1 and 4.2.
    """
    x = checked_draws("rhat", draws)
    if x.shape[0] < 2 or x.shape[1] < LEAST_DRAWS:
        return _undefined(x)
    return by_pixel(x, lambda pixels: pixels.rhat)


def ess(draws: Tensor, kind: EssKind = "bulk") -> Tensor:
    """Effective sample size of all chains together.

    - ``"bulk"``: of the rank-normalised draws, for location; ``"tail"``: the lesser of those of the 5 % and the 95 %
      quantile.
    - ``"mean"``, ``"std"``, ``"median"``, or a number p between 0 and 1 for the p-quantile: of that estimate.

    It is S / max(tau, 1 / log10 S) for S draws, tau the autocorrelation time by Geyer's initial monotone sequence, so
    that antithetic chains count at most S log10 S. Below ten draws a chain the sequence has no lags to go by, and the
    formula gives that cap whatever the draws are. A constant pixel has S.

    Shapes: draws (chains, draws, *event) -> (*event,), float64.
    Raises: TypeError for complex draws; ValueError for fewer than two dimensions or an unknown kind.
    Source: Vehtari et al. 2021, sections 3.2 and 4.3; Geyer 1992; ArviZ, whose halves leave an odd middle draw out.
    """
    x = checked_draws("ess", draws)
    of = _ess_of(kind)
    if x.shape[1] < LEAST_DRAWS:
        return _undefined(x)
    return by_pixel(x, of)


def mcse(draws: Tensor, kind: McseKind = "mean") -> Tensor:
    """Monte-Carlo standard error of an estimate, in the unit of the draws: the estimate's std over repeated runs.

    - ``"mean"``: std / sqrt(ESS). ``"std"``: by the delta method from the squared deviations.
    - ``"median"``, or a number p between 0 and 1 for the p-quantile: half the distance between the order statistics
      that bound the central 68 % of the quantile's distribution.

    Shapes: draws (chains, draws, *event) -> (*event,), float64.
    Raises: TypeError for complex draws; ValueError for fewer than two dimensions or an unknown kind.
    Source: Vehtari et al. 2021, section 4.4; for the std, Kenney and Keeping 1951, as ArviZ has it.
    """
    x = checked_draws("mcse", draws)
    named: dict[object, Callable[[Pixels], Tensor]] = {"mean": lambda p: p.mcse_mean, "std": lambda p: p.mcse_std}
    of = named.get(kind)
    p = 0.5 if kind == "median" or of is not None else _probability("mcse", kind, "mean, std, median")
    if x.shape[1] < LEAST_DRAWS:
        return _undefined(x)
    return _mcse_quantile(x, p) if of is None else by_pixel(x, of)


def nested_rhat(draws: Tensor, num_superchains: int) -> Tensor:
    """Nested R-hat for many short chains: sqrt(1 + B / W), B the variance between means of superchains.

    Superchain k holds the k-th run of ``chains / num_superchains`` consecutive chains. These are meant to have started
    at one point, and different superchains at different points: then B tells how much of the start is left. Of chains
    that all start apart it tells little: B is a fraction of what R-hat would see. Draws are neither split nor ranked;
    one draw a chain is enough.

    Shapes: draws (chains, draws, *event) -> (*event,), float64.
    Raises: TypeError for complex draws; ValueError if there are fewer than two superchains, if they do not divide the
        chains, or if each is one chain of one draw.
    Source: Margossian, Hoffman, Sountsov, Riou-Durand, Vehtari and Gelman 2024, definition 2.2.
    """
    x = checked_draws("nested_rhat", draws)
    k = count("nested_rhat", "num_superchains", num_superchains, least=2)
    chains = x.shape[0]
    if chains % k:
        raise ValueError(f"nested_rhat: num_superchains is {k}, expected a divisor of the {chains} chains")
    if chains == k and x.shape[1] == 1:
        raise ValueError("nested_rhat: superchains of one chain with one draw have no spread, expected more of either")
    return by_pixel(x, lambda pixels: nested(pixels.x, k)[0])


def checked_draws(where: str, draws: Tensor) -> Tensor:
    """Refuse what is no table of real draws; what is not a tensor is made one.

    Raises: TypeError, ValueError.
    """
    x = draws.detach() if isinstance(draws, Tensor) else torch.as_tensor(np.asarray(draws))
    if x.is_complex():
        raise TypeError(
            f"{where}: draws are complex ({x.dtype}), expected real ones: split them first, for example by "
            "torch.view_as_real(draws), and look at each part"
        )
    if x.dim() < 2 or x.shape[0] == 0 or x.shape[1] == 0:
        raise ValueError(f"{where}: draws have shape {shape_text(tuple(x.shape))}, expected (chains, draws, *event)")
    return x.cpu() if x.device.type == "mps" else x  # Apple's GPUs have no float64


def _undefined(x: Tensor) -> Tensor:
    return torch.full(x.shape[2:], torch.nan, dtype=torch.float64, device=x.device)


def by_pixel(x: Tensor, of: "Callable[[Pixels], Tensor]") -> Tensor:
    """Compute a statistic of every pixel, some pixels at a time.

    Shapes: x (chains, draws, *event); ``of`` gives (*out, pixels) -> (*out, *event).
    """
    chains, num, *event = x.shape
    flat = x.reshape(chains * num, -1)
    width = max(1, _CHUNK // (chains * num))
    parts = []
    for start in range(0, flat.shape[1], width):
        span = slice(start, start + width)
        tile = flat[:, span].t().contiguous().reshape(-1, chains, num)
        wrong = torch.isnan(tile.sum(dim=(1, 2)))
        if bool(wrong.any()):  # also where infinities cancel
            wrong = torch.isnan(tile).any(dim=2).any(dim=1)
        parts.append(torch.where(wrong, torch.nan, of(Pixels(tile, span))))
    if not parts:
        return _undefined(x)
    joined = torch.cat(parts, dim=-1)
    return joined.reshape((*joined.shape[:-1], *event))


class Pixels:
    """The draws of some pixels, and what several statistics of them share.

    ``span`` says which of the image's pixels, counted through, they are.

    Shapes: drawn (pixels, chains, draws), at least four draws where halves are asked for.
    """

    def __init__(self, drawn: Tensor, span: slice = slice(None)) -> None:
        self._drawn = drawn
        self.span = span

    @cached_property
    def x(self) -> Tensor:
        """The draws in double precision: (pixels, chains, draws)."""
        return self._drawn.to(torch.float64)

    @cached_property
    def halves(self) -> Tensor:
        """Half-chains: (pixels, 2 chains, draws // 2)."""
        return _halved(self.x)

    @cached_property
    def sorted_halves(self) -> tuple[Tensor, Tensor]:
        """The half-chains' draws in ascending order, and where they come from: both (pixels, all)."""
        if self._drawn.dtype == torch.float32 and _sorts_by_numpy(self._drawn):
            return _ascending_single(_halved(self._drawn).flatten(1))
        return ascending(self.halves.flatten(1))

    def _as_halves(self, flat: Tensor) -> Tensor:
        pixels, chains, draws = self._drawn.shape
        return flat.reshape(pixels, 2 * chains, draws // 2)

    @cached_property
    def scores(self) -> Tensor:
        """Normal scores of the half-chains, in their shape."""
        return self._as_halves(normal_scores(*self.sorted_halves))

    @cached_property
    def folded_scores(self) -> Tensor:
        """Normal scores of the distances from the median, in the shape of the half-chains."""
        values, order = self.sorted_halves
        # Distances of sorted numbers fall, then rise: two runs, which a merge sort joins in linear time.
        distance, place = ascending((values - _median(values)[:, None]).abs_(), runs=True)
        return self._as_halves(normal_scores(distance, order.gather(1, place)))

    @cached_property
    def sorted_all(self) -> Tensor:
        """All draws of a pixel in ascending order, (pixels, all)."""
        even = self._drawn.shape[2] % 2 == 0
        return self.sorted_halves[0] if even else ascending(self.x.flatten(1))[0]

    @property
    def rhat(self) -> Tensor:
        """R-hat: (pixels,)."""
        bulk, tail = split_rhat(self.scores), split_rhat(self.folded_scores)
        # Folding may leave a single value, of which nothing can be said.
        return torch.where(torch.isnan(tail), bulk, torch.maximum(bulk, tail))

    @property
    def ess_bulk(self) -> Tensor:
        """Bulk ESS: (pixels,)."""
        return geyer_ess(self.scores)

    @property
    def ess_tail(self) -> Tensor:
        """Tail ESS: (pixels,)."""
        return torch.minimum(self.ess_quantile(0.05), self.ess_quantile(0.95))

    @cached_property
    def ess_mean(self) -> Tensor:
        """ESS of the mean: (pixels,)."""
        return geyer_ess(self.halves)

    def ess_quantile(self, p: float) -> Tensor:
        """ESS of the p-quantile: (pixels,)."""
        return geyer_ess(self.below(p, self.halves))

    def below(self, p: float, x: Tensor) -> Tensor:
        """Where x is at most the p-quantile of all draws, as ones and zeros in the shape of x."""
        return (x <= quantile(self.sorted_all, p)[:, None, None]).to(torch.float64)

    @cached_property
    def constant(self) -> Tensor:
        """Where all draws are one value: (pixels,)."""
        return self.x.amax(dim=(1, 2)) == self.x.amin(dim=(1, 2))

    @cached_property
    def std(self) -> Tensor:
        """Std over all draws together: (pixels,)."""
        if self.x[0].numel() == 1:
            return torch.full_like(self.x[:, 0, 0], torch.nan)
        off = self.x - self.x.mean(dim=(1, 2), keepdim=True)
        variance = off.square().sum(dim=(1, 2)) / (self.x[0].numel() - 1)
        return torch.where(self.constant, 0.0, variance.sqrt())

    @property
    def mcse_mean(self) -> Tensor:
        """Monte-Carlo error of the mean: (pixels,)."""
        return self.std / self.ess_mean.sqrt()

    @property
    def squared_deviations(self) -> "Pixels":
        """Squared distances from the mean over all draws."""
        return Pixels((self.x - self.x.mean(dim=(1, 2), keepdim=True)).square())

    @property
    def mcse_std(self) -> Tensor:
        """Monte-Carlo error of the std: (pixels,)."""
        squares = self.squared_deviations
        variance = squares.x.mean(dim=(1, 2))
        spread = (squares.x.square().mean(dim=(1, 2)) - variance.square()) / squares.ess_mean
        return torch.where(self.constant, 0.0, (spread / variance / 4).sqrt())


def _ess_of(kind: EssKind) -> Callable[[Pixels], Tensor]:
    if isinstance(kind, str):
        named: dict[str, Callable[[Pixels], Tensor]] = {
            "bulk": lambda p: p.ess_bulk,
            "tail": lambda p: p.ess_tail,
            "mean": lambda p: p.ess_mean,
            "std": lambda p: p.squared_deviations.ess_mean,
            "median": lambda p: p.ess_quantile(0.5),
        }
        if kind in named:
            return named[kind]
    probability = _probability("ess", kind, "bulk, tail, mean, std, median")
    return lambda p: p.ess_quantile(probability)


def _mcse_quantile(x: Tensor, p: float) -> Tensor:
    effective = by_pixel(x, lambda pixels: pixels.ess_quantile(p)).flatten()
    size = x.shape[0] * x.shape[1]
    # Two passes over the draws, since the Beta distribution function is fast only for many pixels at once.
    low, high = (_first_place(effective * p + 1, effective * (1 - p) + 1, size, q) for q in _PLUS_MINUS_ONE_STD)
    places = torch.stack([(low - 1).clamp(min=0), high])  # the last at or below, the first at or above
    bounds = by_pixel(x, lambda pixels: pixels.sorted_all.gather(1, places[:, pixels.span].t()).t())
    return ((bounds[1] - bounds[0]) / 2).reshape(x.shape[2:])


def _probability(where: str, kind: object, names: str) -> float:
    if isinstance(kind, int | float) and not isinstance(kind, bool) and 0 < kind < 1:
        return float(kind)
    raise ValueError(f"{where}: kind is {kind!r}, expected {names}, or a number between 0 and 1 for a quantile")


def ascending(x: Tensor, runs: bool = False) -> tuple[Tensor, Tensor]:
    """Sort rows: values and where they come from. ``runs`` says that rows consist of a few sorted runs.

    Shapes: x (rows, n) -> twice the same.
    """
    if not _sorts_by_numpy(x):
        return tuple(x.sort(dim=1))  # type: ignore[return-value]
    # On one processor NumPy's sort is two and a half times as fast as torch's, and ten times on runs.
    order = torch.from_numpy(np.argsort(x.numpy(), axis=1, kind="stable" if runs else None))
    return x.gather(1, order), order


def _halved(x: Tensor) -> Tensor:
    half = x.shape[2] // 2
    if 2 * half == x.shape[2]:
        return x.reshape(len(x), -1, half)
    return torch.cat([x[..., :half], x[..., -half:]], dim=1)


def _sorts_by_numpy(x: Tensor) -> bool:
    return x.device.type == "cpu" and torch.get_num_threads() <= _FEW_THREADS


def _ascending_single(x: Tensor) -> tuple[Tensor, Tensor]:
    """Sort rows of float32 numbers as ``ascending``, in two thirds of its time; the values in double precision.

    The bits of a float32 number, those of a negative one turned round, are an integer of the same order. Its place in
    the row goes into the lower half of a 64-bit integer, and NumPy sorts integers faster than it tells their order.

    Shapes: x (rows, n) -> twice the same.
    """
    bits = x.numpy().view(np.int32)
    turned = bits >> 31
    turned &= 0x7FFFFFFF
    turned ^= bits
    keys = turned.astype(np.int64)
    keys <<= 32
    keys |= np.arange(x.shape[1])
    keys.sort(axis=1)
    keys &= 0xFFFFFFFF
    order = torch.from_numpy(keys)
    return x.gather(1, order).to(torch.float64), order


@lru_cache(maxsize=8)
def _score_tables(n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Scores of the ranks, and of the mean ranks, which come in halves: entry r of these is that of rank 1 + r / 2."""
    twice = torch.arange(2 * n - 1, dtype=torch.float64, device=device)
    halves = torch.special.ndtri((1 + twice / 2 - 0.375) / (n + 0.25))
    return halves[::2].contiguous(), halves


def normal_scores(values: Tensor, order: Tensor) -> Tensor:
    """Scores Phi^-1((rank - 3/8) / (n + 1/4)) at where the sorted values come from; ties share their mean rank.

    Shapes: values and order (rows, n) -> (rows, n).
    Source: Blom 1958.
    """
    n = values.shape[1]
    whole, halves = _score_tables(n, values.device)
    through = values.flatten()
    equal = through[1:] == through[:-1]
    equal[n - 1 :: n] = False  # the last of a row and the first of the next
    first = equal.nonzero().flatten()  # of two neighbours, counted through all rows
    scores = whole.expand(values.shape)
    if len(first):
        # Half the draws are above the median of an even number: the two next to it are as good as always tied.
        scores = whole.repeat(len(values), 1)
        begins = torch.ones_like(first, dtype=torch.bool)
        begins[1:] = first[1:] != first[:-1] + 1
        run = begins.cumsum(0) - 1
        last = first[begins.roll(-1)] + 1
        mean = halves[first[begins] % n + last % n]
        flat = scores.view(-1)
        flat[first], flat[last] = mean[run], mean
    return torch.empty_like(values).scatter_(1, order, scores)


def _median(values: Tensor) -> Tensor:
    """Median of sorted rows: (rows, n) -> (rows,)."""
    n = values.shape[1]
    return (values[:, (n - 1) // 2] + values[:, n // 2]) / 2


def quantile(values: Tensor, p: float) -> Tensor:
    """The p-quantile of sorted rows by linear interpolation (R's type 7): (rows, n) -> (rows,)."""
    n = values.shape[1]
    place = n * p + (1 - p)
    below = math.floor(min(max(place, 1), n - 1))
    part = min(max(place - below, 0.0), 1.0)
    return (1 - part) * values[:, below - 1] + part * values[:, below]


def split_rhat(z: Tensor) -> Tensor:
    """R-hat of chains of normal scores: sqrt((n - 1) / n + B / W), B of chain means, W within chains.

    Shapes: z (pixels, chains, n) -> (pixels,).
    """
    chains, n = z.shape[1:]
    means = z.mean(dim=2)
    # torch's own variances take four times as long.
    within = torch.linalg.vector_norm((z - means[..., None]).flatten(1), dim=1).square() / (chains * (n - 1))
    between = means.var(dim=1)
    within = torch.where(within < _NO_SPREAD, 0.0, within)
    between = torch.where(between < _NO_SPREAD, 0.0, between)
    return ((n * between / within + n - 1) / n).sqrt()


def nested(x: Tensor, num_superchains: int) -> tuple[Tensor, Tensor]:
    """Nested R-hat, and the F statistic of the superchains' means against the spread of the chains' means.

    Shapes: x (pixels, chains, draws) -> twice (pixels,).
    """
    pixels, chains, num = x.shape
    size = chains // num_superchains
    means = x.mean(dim=2).reshape(pixels, num_superchains, size)
    within = x.new_zeros(pixels) if num == 1 else x.var(dim=2).mean(dim=1)
    among = x.new_zeros(pixels) if size == 1 else means.var(dim=2).mean(dim=1)
    between = means.mean(dim=2).var(dim=1)
    # Rounding errors of equal numbers are no spread.
    moved = x.amax(dim=(1, 2)) > x.amin(dim=(1, 2))
    between = torch.where(moved, between, 0.0)
    within = torch.where((x.amax(dim=2) > x.amin(dim=2)).any(dim=1), within, 0.0)
    among = torch.where(moved, among, 0.0)
    return (1 + between / (among + within)).sqrt(), size * between / among


def geyer_ess(x: Tensor) -> Tensor:
    """Effective sample size of chains by Geyer's initial monotone sequence of autocorrelations.

    Shapes: x (pixels, chains, n) -> (pixels,).
    """
    chains, n = x.shape[1:]
    size = chains * n
    means = x.mean(dim=2)
    covariance = _autocovariance(x - means[..., None])
    within = covariance[:, 0] * (n / (n - 1))
    total = covariance[:, 0] + (means.var(dim=1) if chains > 1 else 0.0)
    rho = 1 - (within[:, None] - covariance) / total[:, None]
    rho[:, 0] = 1.0
    num_pairs = 1 + max(0, (n - 3) // 2)
    even, odd = rho[:, 0 : 2 * num_pairs : 2], rho[:, 1 : 2 * num_pairs : 2]
    pairs = even + odd
    # Pairs are looked at one after the other, up to the first that is not positive.
    positive = (pairs > 0).to(torch.int64).cumprod(dim=1)
    last = positive[:, :-1].sum(dim=1, keepdim=True)
    before = torch.arange(num_pairs, device=x.device) < last
    tau = -1 + 2 * torch.where(before, pairs.cummin(dim=1).values, 0.0).sum(dim=1)
    final, sum_of_final = even.gather(1, last)[:, 0], pairs.gather(1, last)[:, 0]
    tau = tau + torch.where((final > 0) | (sum_of_final >= 0), final, 0.0)
    effective = size / tau.clamp(min=1 / math.log10(size))
    effective = torch.where(torch.isnan(rho[:, 1]), torch.nan, effective)
    flat = x.flatten(1)
    return torch.where(flat.amax(dim=1) == flat.amin(dim=1), float(size), effective)


def _autocovariance(x: Tensor) -> Tensor:
    """Mean over chains of the autocovariances of centred chains, divided by n at every lag.

    Shapes: x (pixels, chains, n) -> (pixels, n).
    """
    n = x.shape[2]
    padded = fast_length(2 * n)
    spectrum = torch.fft.rfft(x, n=padded)
    power = (spectrum.real.square() + spectrum.imag.square()).mean(dim=1)
    covariance: Tensor = torch.fft.irfft(power, n=padded)[:, :n] / n
    return covariance


def fast_length(least: int) -> int:
    """The smallest length from ``least`` on that has no prime factors above 5."""
    n = least
    while True:
        rest = n
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return n
        n += 1


def _first_place(a: Tensor, b: Tensor, size: int, probability: float) -> Tensor:
    """The least k from 0 to size - 1 at which the Beta(a, b) distribution function at (k + 1) / size reaches p.

    Shapes: a and b (pixels,) -> (pixels,), integer.
    """
    low = torch.zeros_like(a, dtype=torch.int64)
    high = torch.full_like(low, size - 1)
    for _ in range(size.bit_length()):
        middle = (low + high) // 2
        reached = beta_cdf((middle + 1) / size, a, b) >= probability
        low, high = torch.where(reached, low, (middle + 1).clamp(max=size - 1)), torch.where(reached, middle, high)
    return high
