"""What the diffusion samplers from the literature share: one run down an annealer's scales, and its pieces."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from potentia._algebra import unscaled
from potentia._potential import Energy, Potential
from potentia._random import Generators, generator_device, standard_normal
from potentia._validate import count, positive
from potentia.annealers import Annealer
from potentia.inference._precondition import Preconditioner, linear_term, terms
from potentia.inference._protocol import Info, Sampler, State

SPACING = 7.0  # of the scales within one denoising, Karras et al. 2022


@dataclass(frozen=True)
class Guided(Sampler):
    """A sampler that goes down an annealer's scales once a draw, from white noise to a clean image.

    Subclasses give ``_check``, which refuses posteriors, and ``_move``. Every draw is a run of its own.
    ``tolerance`` is the relative residual for likelihoods that need conjugate gradients (None: the solver's own).

    Raises: TypeError for what is no annealer; ValueError for levels with a temperature or step size other than 1, or
        more steps than ``_visits`` allows.
    """

    annealer: Annealer
    tolerance: float | None = field(default=1e-4, kw_only=True)
    _scales: tuple[float, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        where = type(self).__name__
        if not isinstance(self.annealer, Annealer):
            raise TypeError(
                f"{where}: annealer is a {type(self.annealer).__name__}, expected one of potentia.annealers"
            )
        if self.tolerance is not None:
            positive(where, "tolerance", self.tolerance)
        for level in self.annealer:
            if level.temperature != 1 or level.step_size != 1:
                raise ValueError(
                    f"{where}: the level at sigma {level.sigma:g} has temperature {level.temperature:g} and step size "
                    f"{level.step_size:g}, expected 1 and 1"
                )
        scales = tuple(level.sigma for level in self.annealer for _ in range(self._visits(level.sigma, level.steps)))
        if not scales:
            raise ValueError(f"{where}: annealer has no levels, expected at least one")
        object.__setattr__(self, "_scales", scales)

    def _visits(self, sigma: float, steps: int | None) -> int:
        """How often to visit a level."""
        if steps not in (None, 1):
            raise ValueError(
                f"{type(self).__name__}: the level at sigma {sigma:g} has {steps} steps, expected one a level"
            )
        return 1

    @property
    def steps_per_draw(self) -> int:
        """Steps of one run, one a scale."""
        return len(self._scales)

    @property
    def independent_draws(self) -> bool:
        """True: a draw does not remember the one before."""
        return True

    def start(self, posterior: Potential, shape: Sequence[int], dtype: torch.dtype, generator: Generators) -> Tensor:
        """White noise of the first scale. ``shape`` is (chains, C, H, W)."""
        device = generator_device(generator)
        return self._scales[0] * standard_normal(shape, generator, dtype=dtype, device=device)

    def init(self, posterior: Potential, x0: Tensor, generator: Generators) -> State:
        """State of chains at the beginning of a run from x0, (chains, C, H, W), at the first scale.

        Raises: TypeError for a posterior without exactly one multi-scale prior, of weight one, or with terms that the
            sampler cannot use.
        """
        self._check(posterior)
        posterior.check(x0)
        return State(x0.detach(), None, 0, generator)

    def step(self, posterior: Potential, state: State) -> tuple[State, Info]:
        """One step, from a scale to the next; the step after the last one of a run starts the next."""
        k = state.step % self.steps_per_draw
        x = state.x
        if k == 0 and state.step > 0:
            x = self.start(posterior, x.shape, x.dtype, state.generator)
        sigma = self._scales[k]
        below = self._scales[k + 1] if k + 1 < self.steps_per_draw else 0.0
        x, n_grad, n_vjp = self._move(posterior, x, sigma, below, state.generator)
        return State(x, None, state.step + 1, state.generator), Info(sigma, 1.0, n_grad, n_vjp=n_vjp)

    def _check(self, posterior: Potential) -> None:
        """Refuse a posterior that has not the parts it needs."""
        where = type(self).__name__
        prior_of(where, posterior)
        check_quadratic(where, posterior)

    @abstractmethod
    def _move(
        self, posterior: Potential, x: Tensor, sigma: float, below: float, generator: Generators
    ) -> tuple[Tensor, int, int]:
        """Go from scale sigma to the one below, 0 at the end: x, denoisings and vector-Jacobian products."""

    def _conditioned(self, posterior: Potential, centre: Tensor, scale: float, generator: Generators | None) -> Tensor:
        """A draw from ``exp(-L(x) - ||x - centre||^2 / (2 scale^2))`` up to its norm; without generator, its mean.

        L is the sum of the quadratic forms of all terms but the prior: with P = (Λ + I / scale^2)^-1 the draw is
        ``P (b + centre / scale^2) + P^(1/2) xi``.
        """
        p = Preconditioner.annealed(posterior, scale).adapted(centre, self.tolerance)
        rhs = linear_term(posterior, scale, centre, multiscale=False) + centre / scale**2
        if generator is not None:
            rhs = rhs + p.perturb(p.white(generator, centre.shape, centre.dtype))
        return p.solve(rhs)


def prior_of(where: str, posterior: Potential) -> Energy:
    """The multi-scale prior of a posterior.

    Raises: TypeError unless there is exactly one, of weight one.
    """
    found = [t for t in terms(posterior) if t.multiscale_weight != 0]
    prior = unscaled(found[0]) if found else None
    if len(found) != 1 or not isinstance(prior, Energy) or found[0].multiscale_weight != 1:
        got = " and ".join(t.describe() for t in found) or "none"
        raise TypeError(f"{where}: expected a posterior with exactly one multi-scale prior, of weight 1, got {got}")
    if len(terms(posterior)) == 1:
        raise TypeError(f"{where}: the posterior is a prior alone, expected prior + likelihood")
    return prior


def check_quadratic(where: str, posterior: Potential) -> None:
    """Refuse terms beside the prior that have no quadratic form.

    Raises: TypeError that names the term.
    """
    for term in terms(posterior):
        if term.multiscale_weight == 0 and term.quadratic() is None:
            raise TypeError(f"{where}: {term.name} has no quadratic form, expected a linear-Gaussian likelihood")


def scales_below(sigma: float, end: float, num: int) -> list[float]:
    """``num`` scales from sigma to ``end``, spaced as Karras et al. 2022 do; one only if sigma is there already.

    Source: Karras et al. 2022 (arXiv 2206.00364), eq. 5, with rho = 7.
    """
    if num == 1 or sigma <= end * (1 + 1e-9):
        return [sigma]
    top, bottom = sigma ** (1 / SPACING), end ** (1 / SPACING)
    inner = [(top + i / (num - 1) * (bottom - top)) ** SPACING for i in range(1, num - 1)]
    return [sigma, *inner, end]


def ancestral(x: Tensor, clean: Tensor, sigma: float, below: float, generator: Generators) -> Tensor:
    """Draw the image at scale r = ``below`` given the one at sigma, were ``clean`` the truth.

    ``D + (r/s)^2 (x - D) + r sqrt(1 - (r/s)^2) xi``: the Markov bridge of the noise, the step of DDPM in the
    variance-exploding frame.

    Source: Ho et al. 2020 (arXiv 2006.11239), eq. 6 and 7; Song et al. 2021 (arXiv 2011.13456), appendix F.
    """
    if below == 0:
        return clean
    kept = (below / sigma) ** 2
    noise = standard_normal(x.shape, generator, dtype=x.dtype, device=x.device)
    return clean + kept * (x - clean) + below * math.sqrt(max(0.0, 1 - kept)) * noise


def denoised(
    prior: Energy, x: Tensor, sigma: float, end: float, num: int, generator: Generators | None
) -> tuple[Tensor, int]:
    """Take an image at scale sigma to a clean one in ``num`` steps; also how many evaluations that took.

    With a generator it is a draw from p(clean | x), by ancestral steps; without, the end of the probability-flow ODE
    ``dx/ds = (x - D(x, s)) / s``, by Euler steps. ``end`` is the last scale above zero, raised to the prior's least.
    """
    low = 0.0 if prior.scales is None else prior.scales[0]
    scales = scales_below(sigma, max(end, low), num)
    for s, r in zip(scales, [*scales[1:], 0.0], strict=True):
        clean: Tensor = prior.denoise(x, s)
        x = clean + (r / s) * (x - clean) if generator is None else ancestral(x, clean, s, r, generator)
    return x, len(scales)


def positive_count(where: str, **values: int) -> None:
    """Refuse numbers of steps below one."""
    for name, value in values.items():
        count(where, name, value)
