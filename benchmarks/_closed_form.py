"""Posteriors known in closed form, and how far an ensemble is from them.

A prior that is a mixture of Gaussians, a linear operator and Gaussian noise have a posterior that is a mixture of
Gaussians again. ``problem("box-16/0")`` is one such case; ``statistics`` compares an ensemble with its posterior.

Names are ``OPERATOR-SIDE[-low][-sharp][-smooth]/INSTANCE``:

- OPERATOR: ``box`` hides a centred box of half the width, ``random50`` and ``random80`` hide that share of the pixels,
  ``blur`` is a periodic Gaussian blur of std SIDE / 8 pixels;
- SIDE: 8 or 16; ``low``: noise of std 0.05 in place of 0.2; ``sharp``: the components' isotropic std is 0.03 in place
  of 0.05; ``smooth``: the components differ by smooth images, where they otherwise differ by textures;
- INSTANCE: 0, 1, ...: prior, truth, mask and noise are all drawn from it.

The prior counts what is asked of it, so that costs are measured and not claimed.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from potentia import energies, likelihoods
from potentia._algebra import Sum

COMPONENTS, RANK = 5, 8
WEIGHTS = (0.3, 0.25, 0.2, 0.15, 0.1)
OPERATORS = ("box", "random50", "random80", "blur")
FLAGS = ("low", "sharp", "smooth")
NOISE_STD, LOW_NOISE_STD = 0.2, 0.05
LEVEL = 0.9
PROJECTIONS, REFERENCES = 256, 8
LEAST_SECOND, TRIES = 0.1, 50


@dataclass(frozen=True, eq=False)
class MixturePosterior:
    """A mixture of K Gaussians over d numbers, in double precision.

    Shapes: weights (K,); means (K, d); covariances (K, d, d).
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "_root", torch.linalg.cholesky(self.covariances))
        object.__setattr__(self, "std", torch.diagonal(self.covariances, dim1=-2, dim2=-1).sqrt())

    _root: Tensor = None  # type: ignore[assignment]
    std: Tensor = None  # type: ignore[assignment]

    def sample(self, generator: torch.Generator, num: int) -> Tensor:
        """Independent draws, (num, d)."""
        label = torch.multinomial(self.weights, num, replacement=True, generator=generator)
        z = torch.randn(num, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        out = torch.empty_like(z)
        for k, root in enumerate(self._root):
            here = label == k
            out[here] = self.means[k] + z[here] @ root.T
        return out

    def responsibilities(self, x: Tensor) -> Tensor:
        """Probabilities of the components given x: (n, d) -> (n, K)."""
        logs = [
            w.log()
            - 0.5 * torch.linalg.solve_triangular(root, (x - m).T, upper=False).square().sum(0)
            - root.diagonal().log().sum()
            for w, m, root in zip(self.weights, self.means, self._root, strict=True)
        ]
        return torch.stack(logs, -1).softmax(-1)

    def cdf(self, q: Tensor) -> Tensor:
        """Distribution function of each entry by itself: (d,) -> (d,)."""
        each = torch.special.ndtr((q - self.means) / self.std)
        return (self.weights[:, None] * each).sum(0)


def condition(
    weights: Tensor, means: Tensor, covariances: Tensor, matrix: Tensor, y: Tensor, noise_std: float
) -> MixturePosterior:
    """The posterior given y = A x + noise, by the conjugate formulas, component by component.

    Shapes: weights (K,); means (K, d); covariances (K, d, d); matrix (m, d); y (m,).
    """
    w, mu, sigma, a, data = (t.double() for t in (weights, means, covariances, matrix, y))
    logs, centres, spreads = [], [], []
    for k in range(len(w)):
        cross = sigma[k] @ a.T
        seen = a @ cross + noise_std**2 * torch.eye(len(a), dtype=torch.float64)
        root = torch.linalg.cholesky(seen)
        misfit = data - a @ mu[k]
        white = torch.linalg.solve_triangular(root, misfit[:, None], upper=False)[:, 0]
        logs.append(w[k].log() - 0.5 * white.square().sum() - root.diagonal().log().sum())
        gain = torch.cholesky_solve(cross.T, root).T
        centres.append(mu[k] + gain @ misfit)
        spread = sigma[k] - gain @ cross.T
        spreads.append(0.5 * (spread + spread.T))
    return MixturePosterior(torch.stack(logs).softmax(0), torch.stack(centres), torch.stack(spreads))


@dataclass
class Cost:
    """Images evaluated (value, gradient or denoised image, alone or together) and vector-Jacobian products."""

    evaluations: int = 0
    products: int = 0


class CountedMixture(energies.GaussianMixture):
    """A mixture of Gaussians that counts, in ``cost``, what is asked of it."""

    def __init__(self, *args: Tensor, **named: Tensor) -> None:
        super().__init__(*args, **named)
        self.cost = Cost()
        self._inside = False

    def _counting(self, x: Tensor, ask: Callable[[], Any]) -> Any:
        if self._inside:  # grad asks value_and_grad
            return ask()
        self.cost.evaluations += x.shape[:-3].numel()
        self._inside = True
        try:
            return ask()
        finally:
            self._inside = False

    def forward(self, x: Tensor, sigma: Any = None) -> Tensor:
        return self._counting(x, lambda: super(CountedMixture, self).forward(x, sigma))

    def value_and_grad(self, x: Tensor, sigma: Any = None) -> tuple[Tensor, Tensor]:
        return self._counting(x, lambda: super(CountedMixture, self).value_and_grad(x, sigma))

    def grad(self, x: Tensor, sigma: Any = None) -> Tensor:
        return self._counting(x, lambda: super(CountedMixture, self).grad(x, sigma))

    def denoise(self, x: Tensor, sigma: Any = None) -> Tensor:
        return self._counting(x, lambda: super(CountedMixture, self).denoise(x, sigma))

    def denoise_with_vjp(self, x: Tensor, sigma: Any = None) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        clean, pull = self._counting(x, lambda: super(CountedMixture, self).denoise_with_vjp(x, sigma))

        def counted(v: Tensor) -> Tensor:
            self.cost.products += v.shape[:-3].numel()
            return pull(v)

        return clean, counted


@dataclass(frozen=True, eq=False)
class Problem:
    """A posterior potential with its closed form.

    Shapes: truth (1, side, side); hidden (side side,), True where nothing is measured, None for the blur.
    """

    name: str
    prior: CountedMixture
    likelihood: likelihoods.Gaussian
    truth: Tensor
    hidden: Tensor | None
    posterior: MixturePosterior

    @property
    def potential(self) -> Sum:
        """The sum of prior and likelihood, for a sampler."""
        return self.prior + self.likelihood

    @property
    def shape(self) -> tuple[int, int, int]:
        """(1, side, side)."""
        return (1, *self.truth.shape[-2:])

    @property
    def noise_std(self) -> float:
        return float(self.likelihood.noise_std)

    def regions(self) -> Mapping[str, Tensor]:
        """Observed and hidden pixels, True in their own: (side side,) each; without a mask, all are observed."""
        if self.hidden is None:
            return {"observed": torch.ones(self.truth.numel(), dtype=torch.bool)}
        return {"observed": ~self.hidden, "hidden": self.hidden}


def field(generator: torch.Generator, num: int, side: int, length: float, coarse: float | None = None) -> Tensor:
    """Periodic random images of root mean square 1 and Gaussian correlation, without what is coarser than ``coarse``.

    Shapes: returns (num, side, side). Units: lengths in pixels.
    """
    f = torch.fft.fftfreq(side, dtype=torch.float64)
    squared = -2 * math.pi**2 * (f[:, None].square() + f.square())
    response = torch.exp(squared * length**2)
    if coarse is not None:
        response = response * (1 - torch.exp(squared * coarse**2))
    white = torch.randn(num, side, side, generator=generator, dtype=torch.float64)
    out = torch.fft.ifft2(torch.fft.fft2(white) * response).real
    return out / out.square().mean((-2, -1), keepdim=True).sqrt()


def centre(side: int) -> Tensor:
    """True in the centred box of half the width: (side, side)."""
    box = torch.zeros(side, side, dtype=torch.bool)
    start = side // 4
    box[start : start + side // 2, start : start + side // 2] = True
    return box


def mixture(side: int, seed: int, isotropic_std: float, smooth: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (K,), means (K, d) and factors (K, d, r) of a prior.

    The components share a smooth mean of std 0.5 and smooth factors of std 0.3 down to 0.1. They differ by a texture of
    std 0.35 in the centre, which a box hides and a blur takes away, by one of 0.012 elsewhere, in the factors' sizes,
    and in the factors' shapes in the centre. The first two are close to one another (correlation 0.94), so that a
    random mask leaves some doubt as well. With ``smooth``, what takes the texture's place has no lack of coarse scales,
    so that a blur does not take it away.
    """
    g = torch.Generator().manual_seed(7919 * seed + 31 * side + round(1000 * isotropic_std))
    unit = side / 16
    inside = centre(side)
    common = 0.5 * field(g, 1, side, 3 * unit)
    texture = field(g, COMPONENTS, side, *((2.5 * unit, None) if smooth else (unit, 2.5 * unit)))
    stds = torch.logspace(math.log10(0.3), math.log10(0.1), RANK, dtype=torch.float64)
    lengths = torch.logspace(math.log10(3.0), math.log10(1.2), RANK).tolist()
    shared = torch.stack([field(g, 1, side, length * unit)[0] for length in lengths])
    own = torch.stack([field(g, COMPONENTS, side, length * unit) for length in lengths], 1)
    size = torch.exp(0.1 * torch.randn(COMPONENTS, RANK, generator=g, dtype=torch.float64))
    near = 0.35
    for parts in (texture, own):
        parts[1] = math.sqrt(1 - near**2) * parts[0] + near * parts[1]
    size[1] = size[0]
    means = common + torch.where(inside, 0.35, 0.012) * texture
    factors = (size * stds)[..., None, None] * (shared + torch.where(inside, 0.3, 0.0) * own)
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)
    return weights, means.flatten(1), factors.flatten(2).mT.contiguous()


def operator_of(kind: str, side: int, seed: int) -> likelihoods.Operator:
    """The forward operator of a problem, in double precision."""
    if kind == "box":
        return likelihoods.Mask((~centre(side)).double())
    if kind == "blur":
        return likelihoods.GaussianBlur(side / 8, (side, side)).double()
    pixels = side**2
    hidden = torch.randperm(pixels, generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(pixels, dtype=torch.float64)
    mask[hidden[: round(int(kind.removeprefix("random")) / 100 * pixels)]] = 0
    return likelihoods.Mask(mask.reshape(side, side))


def problem_names(instances: int = 2) -> list[str]:
    """All problems up to a number of instances; of the sharp and the smooth prior only some."""
    kinds = [(kind, side, "") for side in (8, 16) for kind in OPERATORS]
    kinds += [("box", 8, "-smooth"), ("box", 16, "-sharp"), ("blur", 16, "-sharp"), ("box", 16, "-smooth")]
    noises = ("", "-low")
    return [f"{k}-{side}{low}{sharp}/{i}" for k, side, sharp in kinds for low in noises for i in range(instances)]


@lru_cache(maxsize=64)
def problem(name: str) -> Problem:
    """The problem of that name.

    Truths are drawn until the second of the posterior's modes has a weight of 0.1 at least, so that there are weights
    to get wrong, or until 50 have been drawn, of which the most ambiguous is then taken.

    Raises: ValueError for a name that is none.
    """
    kind, side, flags, instance = parse(name)
    low, _, smooth = (flag in flags for flag in FLAGS)
    isotropic = isotropic_std(name)
    noise = LOW_NOISE_STD if low else NOISE_STD
    weights, means, factors = mixture(side, instance, isotropic, smooth)
    variances = torch.full((COMPONENTS,), isotropic**2, dtype=torch.float64)
    shape = (1, side, side)
    prior = CountedMixture(weights, means.reshape(-1, *shape), factors=factors, variances=variances)
    operator = operator_of(kind, side, 100 + instance)
    identity = torch.eye(side**2, dtype=torch.float64)
    matrix = operator(identity.reshape(-1, *shape)).flatten(1).T
    covariances = factors @ factors.mT + isotropic**2 * identity
    g = torch.Generator().manual_seed(1000 * instance + 10 * OPERATORS.index(kind) + side + 500_000 * low)
    best: tuple[float, Tensor, Tensor, MixturePosterior] | None = None
    for _ in range(TRIES):
        truth = prior.sample(g, 1)
        y = operator.measure(truth, noise, g)[0]
        posterior = condition(weights, means, covariances, matrix, y.flatten(), noise)
        second = float(posterior.weights.sort().values[-2])
        if best is None or second > best[0]:
            best = second, truth[0], y, posterior
        if second >= LEAST_SECOND:
            break
    assert best is not None
    _, truth, y, posterior = best
    hidden = (operator.mask == 0).flatten() if isinstance(operator, likelihoods.Mask) else None
    return Problem(name, prior, likelihoods.Gaussian(y, operator, noise), truth, hidden, posterior)


def isotropic_std(name: str) -> float:
    """Std in the directions that no factor of the prior reaches, of the problem of that name."""
    return 0.03 if "sharp" in parse(name)[2] else 0.05


def parse(name: str) -> tuple[str, int, tuple[str, ...], int]:
    """Operator, side, flags and instance of a name.

    Raises: ValueError for a name that is none.
    """
    body, _, instance = name.partition("/")
    kind, side, *flags = [*body.split("-"), ""] if "-" in body else [body, "", ""]
    flags = flags[:-1]
    known = kind in OPERATORS and side in ("8", "16") and instance.isdigit()
    if not known or flags != [flag for flag in FLAGS if flag in flags]:
        form = f"OPERATOR-SIDE{''.join(f'[-{flag}]' for flag in FLAGS)}/INSTANCE"
        raise ValueError(f"problem: name is {name!r}, expected {form}, such as 'box-16-low/0'")
    return kind, int(side), tuple(flags), int(instance)


def statistics(problem: Problem, ensemble: Tensor, seed: int = 0) -> dict[str, float]:
    """What tells an ensemble from the posterior, region by region where that makes sense.

    - ``within, REGION``: std within a mode over the truth's, root mean square over pixels and modes. Samples are given
      to modes at random with their responsibilities, so that overlapping modes bring no bias.
    - ``cov, REGION``: the posterior's mass inside the central 90 % interval of the ensemble, mean over pixels: the
      chance that the interval holds a truth drawn from the posterior. Interval ends are the ensemble's entries of rank
      p (n + 1), below which an exact ensemble leaves the share p on the average.
    - ``tv``: total variation between the mean responsibilities and the modes' weights.
    - ``sw2``: sliced 2-Wasserstein distance to exact sample sets of the same size, over 256 random directions of unit
      length: the root of the mean square over directions, averaged over 8 sets.
    - ``tv floor``, ``sw2 floor``: the same of exact sample sets, averages over 8 of them.

    Shapes: ensemble (n, 1, side, side) or (n, d), n at least 20.
    Raises: ValueError for ensembles of another shape, or that are not finite.
    """
    x = ensemble.detach().double().cpu().flatten(1)
    exact = problem.posterior
    n, d = len(x), exact.means.shape[1]
    if x.shape[1] != d or n < 20:
        raise ValueError(f"statistics: ensemble has shape {tuple(ensemble.shape)}, expected (20 or more, {d} entries)")
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"statistics: {int((~torch.isfinite(x)).any(1).sum())} of {n} samples are not finite")
    share = exact.responsibilities(x)
    label = torch.multinomial(share, 1, generator=torch.Generator().manual_seed(seed))[:, 0]
    variance = torch.zeros(d, dtype=torch.float64)
    freedom = 0
    for k in range(len(exact.weights)):
        mine = x[label == k]
        if len(mine) > 1:
            variance += (mine - mine.mean(0)).square().sum(0) / exact.std[k].square()
            freedom += len(mine) - 1
    low, high = (ranked(x, p) for p in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    inside = exact.cdf(high) - exact.cdf(low)
    found: dict[str, float] = {}
    for region, mask in problem.regions().items():
        found[f"within, {region}"] = math.sqrt(float(variance[mask].mean()) / freedom)
        found[f"cov, {region}"] = float(inside[mask].mean())
    tv_floor, sw2_floor, references = floors(problem.name, n)
    found["tv"] = 0.5 * float((share.mean(0) - exact.weights).abs().sum())
    found["tv floor"] = tv_floor
    projected = (x @ directions(d)).sort(0).values
    found["sw2"] = sum(wasserstein(projected, r) for r in references) / len(references)
    found["sw2 floor"] = sw2_floor
    return found


def ranked(x: Tensor, p: float) -> Tensor:
    """Entry of rank p (n + 1), interpolated, along the first dimension."""
    position = min(max(p * (len(x) + 1) - 1, 0.0), len(x) - 1.0)
    return torch.quantile(x, position / (len(x) - 1), dim=0)


def directions(d: int) -> Tensor:
    """Fixed random directions of unit length: (d, PROJECTIONS)."""
    z = torch.randn(d, PROJECTIONS, generator=torch.Generator().manual_seed(d), dtype=torch.float64)
    return z / z.norm(dim=0)


def wasserstein(a: Tensor, b: Tensor) -> float:
    """Root mean square distance of two sorted sets of projections, (n, directions) each."""
    return math.sqrt(float((a - b).square().mean()))


@lru_cache(maxsize=64)
def floors(name: str, n: int) -> tuple[float, float, tuple[Tensor, ...]]:
    """Total variation and sliced distance of exact sample sets, and the sorted projections of 8 of them."""
    exact = problem(name).posterior
    g = torch.Generator().manual_seed(2_000_003)
    sets = [exact.sample(g, n) for _ in range(2 * REFERENCES)]
    weights = [exact.responsibilities(x).mean(0) for x in sets]
    tv = sum(0.5 * float((w - exact.weights).abs().sum()) for w in weights) / len(sets)
    lines = directions(exact.means.shape[1])
    projected = [(x @ lines).sort(0).values for x in sets]
    first, second = projected[:REFERENCES], projected[REFERENCES:]
    pairs = [wasserstein(a, b) for a in first for b in second]
    return tv, sum(pairs) / len(pairs), tuple(first)
