"""Adaptive sequential Monte Carlo over noise scales."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from potentia._potential import Potential
from potentia._random import Generators, generator_device
from potentia._validate import count, positive, real_number
from potentia.annealers import Annealer
from potentia.inference._local_moves import Place, adapted, move, uniform
from potentia.inference._paths import Leg, Scales, Start, gaussian_start
from potentia.inference._precondition import Preconditioner
from potentia.inference._protocol import Info, Sampler, State
from potentia.inference._resampling import (
    conditional_effective_sample_size,
    effective_sample_size,
    normalised,
    systematic,
)

_MOST_TRIES = 40  # to find a stride
_LEAST_CURVATURE = 1e-3  # of that at the scale, 1 / sigma^2: a prior that is flatter counts as this


@dataclass(frozen=True)
class Plan:
    """How a population is led along a path; ``SMC`` documents the fields."""

    moves: int = 8
    target: float = 0.8
    resample_below: float = 0.9
    tolerance: float | None = None
    max_levels: int = 2000


class Population(NamedTuple):
    """Weighted particles, and what is known of the way they came.

    ``angle`` and ``curvature`` are those of the last moves, made at scale ``sigma``: see ``move``.
    ``log_integral`` is the logarithm of the estimated integral of exp(-U) for the target at which they stand;
    ``ancestors`` are the particles at the start that they descend from. ``least_ess`` is the smallest effective sample
    size on the way, as a fraction.

    Shapes: x (n, C, H, W); log_weights (n,), normalised; ancestors (n,); acceptance and diverging (n,), summed over
        the moves made at each place of the batch.
    """

    x: Tensor
    log_weights: Tensor
    log_integral: Tensor
    ancestors: Tensor
    angle: float
    curvature: float
    sigma: float
    acceptance: Tensor
    diverging: Tensor
    n_grad: int = 0
    num_levels: int = 0
    num_moves: int = 0
    least_ess: float = 1.0
    place: Place | None = None


def population(x: Tensor, log_integral: float, curvature: float, sigma: float) -> Population:
    """Independent draws of a density whose integral is known, equally weighted."""
    n = len(x)
    even = torch.full((n,), -math.log(n), dtype=torch.float64, device=x.device)
    total = torch.tensor(log_integral, dtype=torch.float64, device=x.device)
    none = torch.zeros(n, dtype=torch.int64, device=x.device)
    return Population(
        x, even, total, torch.arange(n, device=x.device), 1.0, curvature, sigma, torch.zeros_like(even), none
    )


def walk(population: Population, leg: Leg, plan: Plan, generator: Generators, where: str) -> Population:
    """Lead a population from the beginning of a leg to its end.

    Each level: choose how far to go, weigh, resample below the threshold, move.

    Raises: FloatingPointError where weights are not finite, no step keeps the wanted size, or ``max_levels`` run out.
    """
    t, stride = 0.0, 1.0
    while t < 1.0:
        if population.num_levels >= plan.max_levels:
            raise FloatingPointError(
                f"{where}: still at sigma {leg.target(t)[1]:.4g} after {plan.max_levels} levels; "
                "expected to arrive: more moves a level, or more particles, are needed"
            )
        before = t
        t, change, tries = _next(population, leg, t, stride, plan)
        stride = t - before
        population = population._replace(n_grad=population.n_grad + leg.evaluations * (tries + 1))
        population = _weighed(population, change, where, leg.target(t)[1])
        if float(effective_sample_size(population.log_weights)) < plan.resample_below * len(population.x):
            population = resampled(population, generator)
        population = refreshed(population, *leg.target(t), plan, generator)
    return population


def resampled(population: Population, generator: Generators) -> Population:
    """Equal weights: particles copied and dropped by systematic resampling."""
    index = systematic(population.log_weights, generator)
    place = population.place
    return population._replace(
        x=population.x[index],
        log_weights=torch.full_like(population.log_weights, -math.log(len(index))),
        ancestors=population.ancestors[index],
        place=None if place is None else place.at(index),
    )


def _weighed(population: Population, change: Tensor, where: str, sigma: float) -> Population:
    logs = population.log_weights + change
    total = logs.logsumexp(-1)
    if not bool(torch.isfinite(total)):
        bad = int((~torch.isfinite(logs)).sum())
        raise FloatingPointError(
            f"{where}: the weights of {bad} of {len(logs)} particles are not finite on the way to sigma {sigma:.4g}"
        )
    logs = logs - total
    share = float(effective_sample_size(logs)) / len(logs)
    return population._replace(
        log_weights=logs,
        log_integral=population.log_integral + total,
        num_levels=population.num_levels + 1,
        least_ess=min(population.least_ess, share),
    )


def _next(population: Population, leg: Leg, t: float, stride: float, plan: Plan) -> tuple[float, Tensor, int]:
    """How far to go so that the conditional effective sample size is the wanted one: t, log factors, tries.

    The loss -log(CESS / n) grows like the square of the distance, which makes good first guesses. NaN is handed on.
    """
    increment = leg.increment(population.x, t)
    if leg.stops is not None:
        following = next(s for s in leg.stops if s > t)
        return following, increment(following), 1
    goal = -math.log(plan.target)
    near, far, far_known = t, 1.0, False
    guess = min(1.0, t + stride)
    best: tuple[float, Tensor] | None = None
    for tries in range(1, _MOST_TRIES + 1):
        change = increment(guess)
        size = float(conditional_effective_sample_size(population.log_weights, change)) / len(change)
        if math.isnan(size):
            return guess, change, tries
        loss = -math.log(size) if size > 0 else math.inf
        if loss <= 1.02 * goal:
            best = guess, change
            if guess == 1.0 or loss >= 0.85 * goal or (far_known and far - guess <= 1e-3 * (guess - t)):
                return guess, change, tries
            near = guess
        else:
            far, far_known = guess, True
        scaled = t + (guess - t) * math.sqrt(goal / loss) * 0.98 if 0 < loss < math.inf else math.nan
        if loss < 1e-12:
            scaled = 1.0 if not far_known else math.nan
        inside = near < scaled < far or (scaled >= far and not far_known)
        # Where one end is the beginning, halving takes too long to reach small distances.
        middle = t + (far - t) / 8 if near == t else 0.5 * (near + far)
        guess = min(far, scaled) if inside else middle
    if best is None:
        sigma = leg.target(t)[1]
        raise FloatingPointError(
            f"SMC: no step from sigma {sigma:.4g} keeps an effective sample size of {plan.target:g} of the particles; "
            "the energy jumps there"
        )
    return (*best, _MOST_TRIES)


def refreshed(population: Population, target: Potential, sigma: float, plan: Plan, generator: Generators) -> Population:
    """Moves at the place where the particles now stand; their angle follows the acceptance seen."""
    p = Preconditioner.annealed(target, sigma).adapted(population.x, plan.tolerance)
    shift = _carried_over(population, target.multiscale_weight, sigma, _LEAST_CURVATURE * p.shift)
    value, grad = target.value_and_grad(population.x, sigma)
    place = Place(population.x, value.double(), grad)
    h, acceptance, diverging = population.angle, population.acceptance, population.diverging
    weights = normalised(population.log_weights)
    bent = torch.zeros(2, dtype=torch.float64, device=place.x.device)
    evaluations = len(place.x)
    for _ in range(plan.moves):
        noise = p.structure.draw(generator, place.x.shape, shift, dtype=place.x.dtype)
        u = uniform(tuple(place.value.shape), generator, place.x.device)
        place, moved = move(lambda z, _: target.value_and_grad(z, sigma), place, p.structure, shift, h, noise, u)
        acceptance, diverging = acceptance + moved.acceptance, diverging + moved.diverging
        # One number for the population: its dependence on any one particle is of order 1 / n. (A step for each particle
        # that follows its own acceptance biases the moves: it cost two nats of evidence on a Gaussian of 50 pixels.)
        h = adapted(h, float((weights * moved.acceptance).sum()))
        bent = bent + moved.curvature.sum(1)
        evaluations += moved.evaluations
    along, length = (float(v) for v in bent)
    return population._replace(
        x=place.x,
        place=place,
        angle=h,
        sigma=sigma,
        curvature=along / length if length > 0 else population.curvature,
        n_grad=population.n_grad + math.ceil(evaluations / len(place.x)),
        acceptance=acceptance,
        diverging=diverging,
        num_moves=population.num_moves + plan.moves,
    )


def _carried_over(population: Population, weight: float, sigma: float, least: float) -> float:
    """Curvature along the last moves, as that of a smoothed Gaussian w / (tau^2 + s^2) is at this scale."""
    found = max(population.curvature, least)
    if weight <= 0:
        return found
    return weight / (max(weight / found - population.sigma**2, 0.0) + sigma**2)


@dataclass(frozen=True)
class SMC(Sampler):
    """Adaptive sequential Monte Carlo over noise scales: chains are particles that are weighed and resampled together.

    The path begins with exact draws of a Gaussian (the likelihood's quadratic form with an isotropic Gaussian in place
    of the prior), goes by tempering to the static posterior exp(-U_s(x) - L(x)) at the annealer's largest scale, and
    then down to its smallest. From one scale to the next a particle's weight changes by exp(U_s(x) - U_r(x)), in which
    the likelihood cancels. The next scale is the one at which the conditional effective sample size is ``target`` of
    the particles; below an effective sample size of ``resample_below`` they are resampled, which pays at almost every
    level where moves mix; then each makes ``moves`` Metropolis-adjusted, preconditioned Langevin moves.

    One step is a whole pass, and one draw; it ends with resampling and moves, so that particles are equally weighted.
    The number of levels, and with it the cost, follows from the posterior: it grows like the square root of the number
    of pixels. Where chains start does not matter. **Chains are not independent**: they share ancestors, and an estimate
    from one draw has a larger error than its number of chains suggests; successive draws are passes of their own, and
    independent. As chains meet in resampling, each also depends on how many others there are.

    The state's memory holds of the last pass, as 0-d tensors: ``log_integral``, the logarithm of the estimated integral
    of exp(-U) at the last scale; ``least_ess``, the smallest effective sample size as a fraction; ``num_levels``; and
    ``num_ancestors``, how many of the first particles the last ones descend from.

    Where a mode has almost no weight in the static posteriors at middling scales it is lost, however large in the end:
    then ``TwistedSMC`` is the better sampler.

    With ``adaptive=False`` the annealer's own scales are used: where they lie too far apart the weights collapse, which
    ``least_ess`` shows. ``tolerance`` is the relative residual for likelihoods that need conjugate gradients (None: the
    solver's own).

    Raises: TypeError for what is no annealer; ValueError for numbers out of range or temperatures other than 1.
    Source: Del Moral, Doucet and Jasra 2006 (SMC samplers); Zhou, Johansen and Aston 2016 (adaptation).
    """

    annealer: Annealer
    moves: int = 8
    target: float = 0.8
    resample_below: float = 0.9
    adaptive: bool = True
    tolerance: float | None = None
    max_levels: int = 2000

    def __post_init__(self) -> None:
        check_annealer("SMC", self.annealer)
        count("SMC", "moves", self.moves)
        count("SMC", "max_levels", self.max_levels)
        for name in ("target", "resample_below"):
            value = real_number("SMC", name, getattr(self, name))
            if not 0 < value < 1 and not (name == "resample_below" and value in (0, 1)):
                raise ValueError(f"SMC: {name} must lie between 0 and 1, got {value:g}")
        if self.tolerance is not None:
            positive("SMC", "tolerance", self.tolerance)

    @property
    def couples_chains(self) -> bool:
        """True: particles are weighed against one another."""
        return True

    @property
    def independent_draws(self) -> bool:
        """True: a draw is a pass of its own, of all chains together."""
        return True

    @property
    def plan(self) -> Plan:
        """How particles are led."""
        return Plan(self.moves, self.target, self.resample_below, self.tolerance, self.max_levels)

    def start(self, posterior: Potential, shape: Sequence[int], dtype: torch.dtype, generator: Generators) -> Tensor:
        """Draws of the Gaussian that the path begins with. ``shape`` is (chains, C, H, W)."""
        like = torch.zeros(tuple(shape)[1:], dtype=dtype, device=generator_device(generator))
        return gaussian_start(posterior, self.annealer.sigma_max, like, self.tolerance).draw(shape[0], generator)

    def init(self, posterior: Potential, x0: Tensor, generator: Generators) -> State:
        """State of as many particles as x0 has images, (chains, C, H, W); where they are does not matter.

        Raises: TypeError for a posterior without a value.
        """
        posterior.check(x0)
        check_value("SMC", posterior)
        return State(x0.detach(), None, 0, generator)

    def step(self, posterior: Potential, state: State) -> tuple[State, Info]:
        """One pass over all scales, from a fresh start.

        Raises: FloatingPointError if every weight vanishes, or ``max_levels`` do not suffice.
        """
        found = self.run(posterior, torch.zeros_like(state.x[0]), len(state.x), state.generator)
        generator = state.generator
        found = refreshed(resampled(found, generator), posterior, self.annealer.sigma_min, self.plan, generator)
        assert found.place is not None
        memory = {
            "log_integral": found.log_integral,
            "least_ess": torch.tensor(found.least_ess, dtype=torch.float64),
            "num_levels": torch.tensor(found.num_levels),
            "num_ancestors": torch.tensor(len(found.ancestors.unique())),
        }
        x, value, grad = found.place
        info = Info(
            self.annealer.sigma_min,
            1 - math.cos(found.angle),
            found.n_grad,
            acceptance=found.acceptance / found.num_moves,
            diverging=found.diverging > 0,
        )
        return State(x, None, state.step + 1, generator, value, grad, memory), info

    def run(
        self, posterior: Potential, like: Tensor, num: int, generator: Generators, start: Start | None = None
    ) -> Population:
        """Weighted particles at the smallest scale.

        Shapes: like (C, H, W), for its shape, dtype and device.
        """
        high, low = self.annealer.sigma_max, self.annealer.sigma_min
        start = gaussian_start(posterior, high, like, self.tolerance) if start is None else start
        found = population(start.draw(num, generator), start.log_integral, start.precision.shift, high)
        found = walk(found, start.leg, self.plan, generator, "SMC")
        leg = Scales(posterior, high, low, None if self.adaptive else self.annealer.sigmas)
        return walk(found, leg, self.plan, generator, "SMC")


def check_annealer(where: str, annealer: Annealer) -> None:
    """Refuse what is no annealer, one without levels, and temperatures other than 1.

    Raises: TypeError or ValueError.
    """
    if not isinstance(annealer, Annealer):
        raise TypeError(f"{where}: annealer is a {type(annealer).__name__}, expected one of potentia.annealers")
    if not len(annealer):
        raise ValueError(f"{where}: the annealer has no levels")
    warm = [level.temperature for level in annealer if level.temperature != 1]
    if warm:
        raise ValueError(f"{where}: expected temperature 1 at every level, got {warm[0]:g}")


def check_value(where: str, posterior: Potential) -> None:
    """Refuse posteriors with score-only priors.

    Raises: TypeError.
    """
    if not posterior.has_value:
        raise TypeError(f"{where}: the posterior has a score-only prior, expected energies: weights need values")
