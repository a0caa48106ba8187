"""Moment matching posterior sampling: reverse diffusion guided with the denoiser's own covariance."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from potentia._potential import Potential, Pullback
from potentia._quadratic import Quadratic
from potentia._random import Generators, generator_device, standard_normal
from potentia._tensor import inner, to_event
from potentia._validate import count, positive
from potentia.annealers import Annealer
from potentia.inference._moments import split
from potentia.inference._protocol import Info, Sampler, State

_LEAST = 0.9


@dataclass(frozen=True)
class MMPS(Sampler):
    """Moment matching posterior sampling: ancestral steps towards the mean of the clean image given the data.

    Given x at scale s, the clean image is taken for N(D, C), C = s^2 J the denoiser's covariance; a likelihood with
    precision Λ and linear term b moves its mean to

        D_y = D + (C^-1 + Λ)^-1 (b - Λ D),     x' = (1 - r^2/s^2) D_y + r^2/s^2 x + r sqrt(1 - r^2/s^2) xi

    which conjugate gradients find, at one vector-Jacobian product each: they solve (I + C Λ) z = C (b - Λ D) in the
    inner product <u, Λ v>, where that operator is symmetric and one or more. A direction along which it is less, which
    the J of a network may have, ends an image's iterations where they are. After ``steps_per_level - 1`` Langevin
    corrections ``x += c (D_y - x) + sqrt(2 c) s xi`` at a scale, c = ``correction``, chains go to the next.

    The moves know the mean alone: spread is right to the order of the steps, and mode weights are better than those of
    static posteriors, not right (``TwistedSMC`` weighs). What is drawn is an image at the annealer's least scale; hand
    it on: ``MMPS(...) >> Langevin(...)``. Every draw is a run of its own.

    Raises: TypeError, at the start, for a posterior other than one multi-scale prior of weight one and terms with
        quadratic forms; ValueError for numbers out of range.
    Source: Rozet et al. 2024 (arXiv 2405.13712), algorithms 2 and 3. There J^T is used for J and GMRES for CG; the
        ancestral step is DDPM's for a variance-exploding process, the corrections are those of its predictor-corrector.
    """

    annealer: Annealer
    steps_per_level: int = 1
    max_iterations: int = 3
    correction: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.annealer, Annealer):
            raise TypeError(f"MMPS: annealer is a {type(self.annealer).__name__}, expected one of potentia.annealers")
        count("MMPS", "steps_per_level", self.steps_per_level)
        count("MMPS", "max_iterations", self.max_iterations)
        positive("MMPS", "correction", self.correction)

    @property
    def _steps(self) -> list[tuple[float, float | None]]:
        """The scale of each step, and the scale it leads to, or None for a correction."""
        levels = list(self.annealer)
        plan: list[tuple[float, float | None]] = []
        for level, following in zip(levels, [*levels[1:], None], strict=True):
            plan += [(level.sigma, None)] * ((level.steps or self.steps_per_level) - 1)
            if following is not None:
                plan.append((level.sigma, following.sigma))
        return plan or [(levels[0].sigma, None)]

    @property
    def steps_per_draw(self) -> int:
        """Steps from the largest scale to the least: one denoising each."""
        return len(self._steps)

    @property
    def independent_draws(self) -> bool:
        """True: a draw does not remember the one before."""
        return True

    def start(self, posterior: Potential, shape: Sequence[int], dtype: torch.dtype, generator: Generators) -> Tensor:
        """Noise of the largest scale: ``shape`` is (chains, C, H, W)."""
        noise = standard_normal(shape, generator, dtype=dtype, device=generator_device(generator))
        return self._steps[0][0] * noise

    def init(self, posterior: Potential, x0: Tensor, generator: Generators) -> State:
        """State of chains at the largest scale, (chains, C, H, W)."""
        posterior.check(x0)
        split("MMPS", posterior, x0)
        return State(x0.detach(), None, 0, generator)

    def step(self, posterior: Potential, state: State) -> tuple[State, Info]:
        """One denoising and what follows from it."""
        k = state.step % self.steps_per_draw
        x = state.x
        if k == 0 and state.step > 0:
            x = self.start(posterior, x.shape, x.dtype, state.generator)
        prior, form = split("MMPS", posterior, x)
        sigma, following = self._steps[k]
        clean, pull = prior.denoise_with_vjp(x, sigma)
        guided, products = matched_mean(form, clean, pull, sigma, self.max_iterations)
        noise = standard_normal(x.shape, state.generator, dtype=x.dtype, device=x.device)
        if following is None:
            x = x + self.correction * (guided - x) + math.sqrt(2 * self.correction) * sigma * noise
        else:
            share = (following / sigma) ** 2
            x = (1 - share) * guided + share * x + following * math.sqrt(1 - share) * noise
        return state._replace(x=x, step=state.step + 1), Info(sigma, 1.0, 1, n_vjp=products)


def matched_mean(
    form: Quadratic, clean: Tensor, pull: Pullback, sigma: float, max_iterations: int, tolerance: float = 1e-3
) -> tuple[Tensor, int]:
    """D + (C^-1 + Λ)^-1 (b - Λ D) by conjugate gradients, and the vector-Jacobian products that it took.

    An image is done when its residual has fallen to ``tolerance``, or where C shows a negative part.

    Shapes: clean (N, C, H, W) -> the same.
    """
    structure = form.structure

    def covariance(v: Tensor) -> Tensor:
        return sigma**2 * pull(v)

    slope = form.linear - structure.apply(clean)
    z = torch.zeros_like(clean)
    r = covariance(slope)
    products = 1
    p = r
    seen = structure.apply(r)
    size = inner(r, seen)
    goal = tolerance**2 * size
    active = size > 0
    for _ in range(max_iterations):
        if not bool(active.any()):
            break
        pushed = structure.apply(p)
        along = p + covariance(pushed)
        products += 1
        curvature = inner(pushed, along)
        # Of I + C Λ in this product; where C has no negative part, it is <p, Λ p> at the least.
        active = active & (curvature > _LEAST * inner(p, pushed)) & torch.isfinite(curvature)
        alpha = to_event(torch.where(active, size / torch.where(active, curvature, 1.0), 0.0).to(clean.real.dtype))
        z = z + alpha * p
        r = r - alpha * along
        new = inner(r, structure.apply(r))
        beta = to_event(torch.where(active, new / torch.where(active, size, 1.0), 0.0).to(clean.real.dtype))
        p = r + beta * p
        size = torch.where(active, new, size)
        active = active & (size > goal)
    return clean + z, products
