"""Langevin dynamics at one noise scale."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from potentia._potential import Potential, Sigma
from potentia._random import Generators, generator_device
from potentia._validate import count, positive, real_number
from potentia.inference._precondition import Preconditioner, linear_term
from potentia.inference._protocol import Info, Sampler, State
from potentia.inference._rules import Rule, euler, leimkuhler_matthews


@dataclass(frozen=True)
class Langevin(Sampler):
    """Unadjusted preconditioned Langevin dynamics: ``x - eps P grad U`` plus noise.

    By default P comes from the posterior's own terms (``Preconditioner.of``): the quadratic forms of the terms that
    have one, ``curvature`` for the others. Without a Metropolis test a step size too large for the curvature biases
    what it draws; with the Leimkuhler-Matthews rule it does not on a Gaussian, and is of second order elsewhere.

    ``sigma`` is the noise scale at which multi-scale energies are taken (None: the finest);
    ``steps_per_draw`` thins; ``tolerance`` is the relative residual where P needs conjugate gradients (None: the
    solver's own).

    Raises: ValueError for a step size, temperature or curvature out of range, or an unknown rule.
    Source: Roberts and Tweedie 1996; Leimkuhler and Matthews 2013.
    """

    step_size: float = 1.0
    preconditioner: Preconditioner | None = None
    rule: Rule | str = Rule.LEIMKUHLER_MATTHEWS
    sigma: float | None = None
    steps_per_draw: int = 10  # pyright: ignore[reportIncompatibleMethodOverride]
    temperature: float = 1.0
    curvature: float | None = None
    tolerance: float | None = 1e-4
    default_warmup: int = 10  # pyright: ignore[reportIncompatibleMethodOverride]

    def __post_init__(self) -> None:
        positive("Langevin", "step_size", self.step_size)
        count("Langevin", "steps_per_draw", self.steps_per_draw)
        count("Langevin", "default_warmup", self.default_warmup, least=0)
        if self.sigma is not None:
            positive("Langevin", "sigma", self.sigma)
        if real_number("Langevin", "temperature", self.temperature) < 0:
            raise ValueError(f"Langevin: temperature must not be negative, got {self.temperature:g}")
        if self.curvature is not None:
            positive("Langevin", "curvature", self.curvature)
        if self.tolerance is not None:
            positive("Langevin", "tolerance", self.tolerance)
        object.__setattr__(self, "rule", Rule.parse("Langevin", self.rule))
        if self.rule is Rule.PUBLISHED:
            raise ValueError("Langevin: rule 'published' belongs to ALPS, expected 'leimkuhler-matthews' or 'euler'")

    def start(self, posterior: Potential, shape: Sequence[int], dtype: torch.dtype, generator: Generators) -> Tensor:
        """Twice as wide as ``N(P b, P)``, b the linear term of the forms there are. ``shape`` is (chains, C, H, W)."""
        like = torch.zeros(tuple(shape)[1:], dtype=dtype, device=generator_device(generator))
        p = self._preconditioner(posterior, like)
        return p.solve(linear_term(posterior, self.sigma, like, multiscale=True)) + 2 * p.draw(generator, shape, dtype)

    def init(self, posterior: Potential, x0: Tensor, generator: Generators) -> State:
        """State of chains that start from x0, (chains, C, H, W)."""
        posterior.check(x0)
        return State(x0.detach(), None, 0, generator)

    def step(self, posterior: Potential, state: State) -> tuple[State, Info]:
        """One step of all chains."""
        x, white = state.x, state.white
        p = self._preconditioner(posterior, x)
        grad = posterior.grad(x, self.sigma)
        if self.rule is Rule.EULER:
            x = euler(p, x, grad, self.step_size, self.temperature, state.generator)
        else:
            x, white = leimkuhler_matthews(p, x, grad, self.step_size, self.temperature, white, state.generator)
        return State(x, white, state.step + 1, state.generator), Info(self.sigma, self.step_size, 1)

    def _preconditioner(self, posterior: Potential, like: Tensor) -> Preconditioner:
        sigma: Sigma = self.sigma
        p = self.preconditioner
        return (Preconditioner.of(posterior, sigma, self.curvature) if p is None else p).adapted(like, self.tolerance)
