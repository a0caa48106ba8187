"""Annealed Langevin posterior sampling."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from potentia._potential import Potential
from potentia._random import Generators, generator_device
from potentia._validate import count, positive
from potentia.annealers import Annealer
from potentia.inference._precondition import Preconditioner, linear_term
from potentia.inference._protocol import Info, Sampler, State
from potentia.inference._rules import Rule, euler, leimkuhler_matthews, lost


class _Step(NamedTuple):
    sigma: float
    temperature: float
    step_size: float


@dataclass(frozen=True)
class ALPS(Sampler):
    """Annealed Langevin posterior sampling: walk the static posteriors from large noise scales to small ones.

    At scale s the target is ``exp(-U_s(x) - L(x))``; a step is ``x - eps P grad U`` plus noise with
    ``P = (Λ + I / s^2)^-1``, Λ the likelihood's precision. At eps = 1 and for a linear-Gaussian likelihood its drift
    is ``P (b + D(x, s) / s^2)``: denoise, solve, add noise. Every draw is an anneal of its own, from a fresh start, so
    that draws are independent; it costs one gradient evaluation a step.

    ``rule`` says how noise is made (see Rule): the default is exact within a mode where scales fall geometrically to
    0.4 of the finest texture's std or below; "published" is the paper's update to the letter.
    ``steps_per_level`` holds for levels that do not state their own. ``tolerance`` is the relative residual for
    likelihoods that need conjugate gradients (None: the solver's own).

    Raises: TypeError for what is no annealer; ValueError for an unknown rule, or step sizes other than 1 with
        "published".
    Source: Chand and Jacob 2026 (arXiv 2601.02594), algorithm 1. The paper draws complex noise with variance 1/2 in
        each part and ignores coil maps in it; here both are exact.
    """

    annealer: Annealer
    steps_per_level: int = 5
    rule: Rule | str = Rule.LEIMKUHLER_MATTHEWS
    tolerance: float | None = 1e-4
    _steps: tuple[_Step, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.annealer, Annealer):
            raise TypeError(f"ALPS: annealer is a {type(self.annealer).__name__}, expected one of potentia.annealers")
        count("ALPS", "steps_per_level", self.steps_per_level)
        if self.tolerance is not None:
            positive("ALPS", "tolerance", self.tolerance)
        object.__setattr__(self, "rule", Rule.parse("ALPS", self.rule))
        steps = [
            _Step(level.sigma, level.temperature, level.step_size)
            for level in self.annealer
            for _ in range(level.steps or self.steps_per_level)
        ]
        if self.rule is Rule.PUBLISHED and any(s.step_size != 1 for s in steps):
            raise ValueError("ALPS: the published rule has step size 1, got a level with another")
        object.__setattr__(self, "_steps", tuple(steps))

    @staticmethod
    def calibrated(budget: int = 100, modes: bool = False) -> Sampler:
        """The recipe that measurements on posteriors known in closed form support: the default of ``sample``.

        ``budget`` gradient evaluations a draw: ``Calibrated``, whose spread is right within a mode. Chains settle in
        modes whose weights are decided at large scales, and are not those of the posterior where it has several.
        ``modes=True`` weighs them: ``TwistedSMC``, 512 chains or more, each of 20 denoisings and about 370
        vector-Jacobian products, then the end of the recipe at ``budget / 2`` evaluations. It asks for one multi-scale
        prior and linear-Gaussian likelihoods.
        """
        from potentia.inference._calibrated import Calibrated
        from potentia.inference._twisted import TwistedSMC

        if not modes:
            return Calibrated(budget)
        return TwistedSMC() >> Calibrated(max(10, budget // 2), anneal=False)

    @property
    def steps_per_draw(self) -> int:
        """Steps of one anneal: gradient evaluations a draw."""
        return len(self._steps)

    @property
    def independent_draws(self) -> bool:
        """True: a draw does not remember the one before."""
        return True

    def start(self, posterior: Potential, shape: Sequence[int], dtype: torch.dtype, generator: Generators) -> Tensor:
        """``P b + sqrt(T) P^(1/2) n`` at the first scale, as published. ``shape`` is (chains, C, H, W)."""
        first = self._steps[0]
        p = self._preconditioner(
            posterior, first.sigma, torch.empty(0, dtype=dtype, device=generator_device(generator))
        )
        like = torch.zeros(tuple(shape)[1:], dtype=dtype, device=generator_device(generator))
        mean = p.solve(linear_term(posterior, first.sigma, like, multiscale=False))
        return mean + math.sqrt(first.temperature) * p.draw(generator, shape, dtype)

    def init(self, posterior: Potential, x0: Tensor, generator: Generators) -> State:
        """State of chains at the beginning of an anneal from x0, (chains, C, H, W)."""
        posterior.check(x0)
        return State(x0.detach(), None, 0, generator)

    def step(self, posterior: Potential, state: State) -> tuple[State, Info]:
        """One step; the step after the last one of an anneal starts the next."""
        k = state.step % self.steps_per_draw
        if k == 0 and state.step > 0:
            x = self.start(posterior, state.x.shape, state.x.dtype, state.generator)
            state = state._replace(x=x, white=None)
        now = self._steps[k]
        x = state.x
        p = self._preconditioner(posterior, now.sigma, x)
        grad = posterior.grad(x, now.sigma)
        white = None
        if self.rule is Rule.PUBLISHED:
            x = self._published(posterior, p, x, grad, k, state.generator)
        elif self.rule is Rule.EULER:
            x = euler(p, x, grad, now.step_size, now.temperature, state.generator)
        else:
            x, white = leimkuhler_matthews(p, x, grad, now.step_size, now.temperature, state.white, state.generator)
        diverging = lost(p, grad) if k + 1 == self.steps_per_draw else None
        return State(x, white, state.step + 1, state.generator), Info(now.sigma, now.step_size, 1, diverging=diverging)

    def _published(
        self, posterior: Potential, p: Preconditioner, x: Tensor, grad: Tensor, k: int, generator: Generators
    ) -> Tensor:
        x = x - p.solve(grad)
        if k + 1 == self.steps_per_draw:
            return x
        # The noise after the last step at a scale is that of the next scale.
        following = self._steps[k + 1]
        if following.sigma != self._steps[k].sigma:
            p = self._preconditioner(posterior, following.sigma, x)
        if following.temperature == 0:
            return x
        return x + math.sqrt(following.temperature) * p.draw(generator, x.shape, x.dtype)

    def _preconditioner(self, posterior: Potential, sigma: float, like: Tensor) -> Preconditioner:
        return Preconditioner.annealed(posterior, sigma).adapted(like, self.tolerance)
