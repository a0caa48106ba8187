"""Hamiltonian Monte Carlo with a path of given length."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from potentia._potential import Potential
from potentia._validate import count, positive, real_number
from potentia.inference._metric import MetricCache
from potentia.inference._metropolis import DRIFT, Adjusted, decide, leapfrog, settle
from potentia.inference._precondition import Preconditioner
from potentia.inference._protocol import Info, State


@dataclass(frozen=True)
class HMC(Adjusted):
    """Preconditioned Hamiltonian Monte Carlo, a Metropolis test for every chain.

    Momenta are drawn from N(0, T P^-1), moved by leapfrog steps of length h, ``m -= h/2 grad U; x += h P m;
    m -= h/2 grad U``, and the end is accepted with probability min(1, exp(-ΔH / T)), H = U + <m, P m> / 2.

    ``step_size`` is h. **One step of MALA with eps is one leapfrog step with h = sqrt(2 eps)**: with ``num_leapfrog=1``
    and ``jitter=0`` the two samplers are one. None adapts h in the warm-up to ``target_acceptance`` as MALA does.

    The path has ``num_leapfrog`` steps, or as many as ``trajectory_length`` takes (by default π/2, with which a
    Gaussian whose covariance is P is sampled independently), at most ``max_leapfrog``. Each chain's h is stretched at
    every step by a factor uniform in ``1 ± jitter``, without which paths return to where they began wherever the period
    of a direction divides their length.

    ``preconditioner``, ``sigma``, ``per_chain``, ``steps_per_draw``, ``tolerance``, ``curvature``, ``rank`` and what
    counts as diverging: as for ``MALA``. ``per_chain`` needs ``num_leapfrog``: the length of a path in steps is shared.

    Raises: ValueError for numbers out of range, both or neither way to give the path's length where one is needed, an
        unknown preconditioner; TypeError for a preconditioner of another type.
    Source: Neal 2011, algorithm of section 5.3.2; jitter section 5.4.2.2; 0.8: Stan's default, above the 0.651 that is
        best for independent coordinates (Beskos et al. 2013).
    """

    step_size: float | None = None
    num_leapfrog: int | None = None
    trajectory_length: float | None = None
    preconditioner: Preconditioner | str | None = None
    sigma: float | None = None
    target_acceptance: float = 0.8
    jitter: float = 0.2
    max_leapfrog: int = 100
    per_chain: bool = False
    steps_per_draw: int = 1
    default_warmup: int = 200
    temperature: float = 1.0
    curvature: float | None = None
    tolerance: float | None = 1e-5
    rank: int = 16
    _cache: MetricCache = field(default_factory=MetricCache, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._check()
        count("HMC", "max_leapfrog", self.max_leapfrog)
        if not 0 <= real_number("HMC", "jitter", self.jitter) < 1:
            raise ValueError(f"HMC: jitter is {self.jitter:g}, expected 0 or more and below 1")
        if self.num_leapfrog is not None:
            count("HMC", "num_leapfrog", self.num_leapfrog)
            if self.trajectory_length is not None:
                raise ValueError("HMC: got num_leapfrog and trajectory_length, expected one of them")
        elif self.per_chain:
            raise ValueError("HMC: per_chain is True without num_leapfrog, expected a number of steps for all chains")
        if self.trajectory_length is not None:
            positive("HMC", "trajectory_length", self.trajectory_length)

    def step(self, posterior: Potential, state: State) -> tuple[State, Info]:
        """One path and its test, for all chains."""
        metric, memory = self._metric(posterior, state), dict(state.memory)
        old = self._point(state, metric)
        numbers, kept = self._numbers(state, metric)
        velocity = math.sqrt(self.temperature) * metric.colour(numbers.white)
        h, spent = self._opening(posterior, metric, old, velocity, memory)
        num = self._length(h)
        stretched = self._stretched(h, numbers.extra[:, 1])
        new, _, ratio = leapfrog(posterior, self.sigma, metric, old, velocity, stretched, num, self.temperature)
        decision = decide(ratio, numbers.extra[:, 0])
        point = settle(decision.accepted, new, old)
        memory |= {**kept, DRIFT: point.drift}
        if not self._frozen(memory):
            memory |= self._adapt(memory, point, decision.acceptance)
        return self._finish(state, point, memory), self._info(h, num + spent, decision)

    def _length(self, h: Tensor | float) -> int:
        if self.num_leapfrog is not None:
            return self.num_leapfrog
        length = math.pi / 2 if self.trajectory_length is None else self.trajectory_length
        return max(1, min(self.max_leapfrog, math.ceil(length / float(h) - 1e-9)))

    def _stretched(self, h: Tensor | float, normal: Tensor) -> Tensor | float:
        if self.jitter == 0:
            return h
        factor: Tensor = 1 + self.jitter * (2 * torch.special.ndtr(normal) - 1)
        return h * factor
