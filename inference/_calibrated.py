"""The recipe whose spread is right: an anneal that ends below the finest texture, and a Metropolis stage."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from potentia._potential import Potential
from potentia._random import Generators, generator_device, standard_normal
from potentia._tensor import inner, squared_norm, to_event
from potentia._validate import count, positive
from potentia.inference._metric import metric_of
from potentia.inference._metropolis import Point, decide, leapfrog, settle
from potentia.inference._precondition import Preconditioner, linear_term
from potentia.inference._protocol import ADAPTED, Info, Memory, Sampler, State
from potentia.inference._rules import leimkuhler_matthews, lost

TEXTURE, END, STEP = ADAPTED + "texture", ADAPTED + "end", ADAPTED + "step_size"
_PILOTS = 4  # chains that look at the posterior first
_RESOLVED = 0.3  # of the texture's std: a scale that sees it
_BELOW = 0.1  # of the texture's std: where smoothing adds half a per cent to it
_TARGET = 0.8  # acceptance: the stage certifies, so that it need not travel far


class _Plan(NamedTuple):
    """Steps of one draw: levels of the anneal, Langevin steps at the end, and Metropolis steps."""

    levels: int
    per_level: int
    settle: int
    metropolis: int


@dataclass(frozen=True)
class Calibrated(Sampler):
    """Annealed Langevin sampling tuned to the posterior at hand, and certified by a Metropolis stage.

    Every draw is an anneal of its own at ``budget`` gradient evaluations: Leimkuhler-Matthews noise on every step,
    geometric scales from ``sigma_max`` (cut to the prior's own) down to the finest texture, then Langevin steps at a
    tenth of it, or at the prior's least scale, and Metropolis-adjusted steps there whose acceptance the ensemble keeps.

    The finest texture of variance t is where the prior is stiffest: its Hessian at scale s has 1 / (t + s^2) for its
    greatest eigenvalue, which power iteration finds at a few pilot chains. Steps are preconditioned by
    P = (Λ + I / (t + s^2))^-1, Λ the quadratic terms' precision, so that a step is as long as the posterior allows
    however small s is, and the end can lie below everything that the prior resolves. The pilots have generators of
    their own, so that a chain's draws do not depend on the others'; they cost about 200 evaluations of four chains,
    once, which ``n_grad`` leaves out.

    With ``anneal=False`` it only settles and certifies chains that come from elsewhere, at the same budget.
    A score-only prior has no Metropolis stage.

    Shapes: chains (n, C, H, W), real or complex. Units: sigma_max in the image's unit.
    Raises: ValueError for a budget below 10; TypeError, at the start, for a posterior without noise scales, which
        alone say how long a step may be on the way down.
    Source: Leimkuhler and Matthews 2013 (the rule); Chand and Jacob 2026 (the anneal); the end and the preconditioner
        are ours.
    """

    budget: int = 100
    sigma_max: float = 10.0
    anneal: bool = True
    tolerance: float | None = 1e-4

    def __post_init__(self) -> None:
        count("Calibrated", "budget", self.budget, least=10)
        positive("Calibrated", "sigma_max", self.sigma_max)
        if self.tolerance is not None:
            positive("Calibrated", "tolerance", self.tolerance)

    @property
    def steps_per_draw(self) -> int:
        """One gradient evaluation each."""
        return self.budget

    @property
    def independent_draws(self) -> bool:
        """True, where it anneals: a draw does not remember the one before."""
        return self.anneal

    def _plan(self, posterior: Potential) -> _Plan:
        metropolis = max(5, round(0.12 * self.budget)) if posterior.has_value else 0
        settle = self.budget - metropolis
        if not self.anneal:
            return _Plan(0, 0, settle, metropolis)
        per_level = max(1, round(math.sqrt(0.15 * self.budget)))
        levels = max(1, min(round(0.6 * self.budget / per_level), (settle - 2) // per_level))
        return _Plan(levels, per_level, settle - levels * per_level, metropolis)

    def start(self, posterior: Potential, shape: Sequence[int], dtype: torch.dtype, generator: Generators) -> Tensor:
        """``P b + P^(1/2) n`` at the largest scale. ``shape`` is (chains, C, H, W)."""
        like = torch.zeros(tuple(shape)[1:], dtype=dtype, device=generator_device(generator))
        sigma = _range(posterior, self.sigma_max)[1]
        p = _preconditioner(posterior, sigma, 0.0, like, self.tolerance)
        mean = p.solve(linear_term(posterior, sigma, like, multiscale=False))
        return mean + p.draw(generator, shape, dtype)

    def init(self, posterior: Potential, x0: Tensor, generator: Generators) -> State:
        """State of chains that start from x0, (chains, C, H, W); looks at the posterior first."""
        posterior.check(x0)
        found = _look(self, posterior, x0.detach())
        memory = {
            name: torch.tensor(v, dtype=torch.float64) for name, v in zip((TEXTURE, END, STEP), found, strict=True)
        }
        return State(x0.detach(), None, 0, generator, memory=memory)

    def step(self, posterior: Potential, state: State) -> tuple[State, Info]:
        """One step; the step after the last one of a draw starts the next."""
        plan = self._plan(posterior)
        k = state.step % self.budget
        if k == 0 and state.step > 0:
            state = state._replace(white=None, value=None, grad=None)
            if self.anneal:
                x = self.start(posterior, state.x.shape, state.x.dtype, state.generator)
                state = state._replace(x=x)
        if k >= self.budget - plan.metropolis:
            return self._certify(posterior, state, first=k == self.budget - plan.metropolis)
        sigma = _sigma(posterior, plan, k, self.sigma_max, state.memory)
        p = _preconditioner(posterior, sigma, float(state.memory[TEXTURE]), state.x, self.tolerance)
        grad = posterior.grad(state.x, sigma)
        x, white = leimkuhler_matthews(p, state.x, grad, 1.0, 1.0, state.white, state.generator)
        last = k + 1 == self.budget - plan.metropolis
        info = Info(sigma, 1.0, 1, diverging=lost(p, grad) if last else None)
        return state._replace(x=x, white=white, step=state.step + 1), info

    def _certify(self, posterior: Potential, state: State, first: bool) -> tuple[State, Info]:
        end, eps = float(state.memory[END]), float(state.memory[STEP])
        if first:  # an evaluation without a move, so that every step costs one
            value, grad = posterior.value_and_grad(state.x, end)
            return state._replace(value=value.double(), grad=grad, white=None, step=state.step + 1), Info(end, eps, 1)
        p = _preconditioner(posterior, end, float(state.memory[TEXTURE]), state.x, self.tolerance)
        state, info = _metropolis(posterior, p, state, end, eps)
        return state._replace(step=state.step + 1), info


def _range(posterior: Potential, sigma_max: float) -> tuple[float, float]:
    """Least and greatest scale to use.

    Raises: TypeError for a posterior without scales.
    """
    if posterior.scales is None:
        raise TypeError(
            f"Calibrated: {posterior.name} has no noise scales, expected a multi-scale prior among the terms; "
            "Langevin, MALA and HMC take any posterior"
        )
    low, high = posterior.scales
    return low, min(sigma_max, high)


def _sigma(posterior: Potential, plan: _Plan, k: int, sigma_max: float, memory: Memory) -> float:
    """The scale of step k before the Metropolis stage."""
    end = float(memory[END])
    level = k // plan.per_level if plan.levels else plan.levels
    if level >= plan.levels:
        return end
    top = _range(posterior, sigma_max)[1]
    bottom = min(max(end, math.sqrt(float(memory[TEXTURE]))), top)
    return float(top * (bottom / top) ** (level / max(1, plan.levels - 1)))


def _preconditioner(
    posterior: Potential, sigma: float, texture: float, like: Tensor, tolerance: float | None
) -> Preconditioner:
    """(Λ + w I / (t + s^2))^-1, w the weight of the multi-scale terms."""
    annealed = Preconditioner.annealed(posterior, sigma)
    shift = annealed.shift * sigma**2 / (texture + sigma**2)
    return Preconditioner(annealed.structure, shift).adapted(like, tolerance)


def _metropolis(posterior: Potential, p: Preconditioner, state: State, sigma: float, eps: float) -> tuple[State, Info]:
    """One Metropolis-adjusted Langevin step from a state with value and gradient: a leapfrog step of sqrt(2 eps)."""
    x, value, grad = state.x, state.value, state.grad
    if value is None or grad is None:
        raise RuntimeError("Calibrated: the Metropolis stage was entered without a value")
    metric = metric_of(p)
    old = Point(x, value, grad, metric.solve(grad))
    velocity = p.draw(state.generator, x.shape, x.dtype)
    normal = standard_normal((len(x), 1), state.generator, dtype=torch.float64, device=x.device)[:, 0]
    new, _, log_ratio = leapfrog(posterior, sigma, metric, old, velocity, math.sqrt(2 * eps), 1)
    decision = decide(log_ratio, normal)
    point = settle(decision.accepted, new, old)
    info = Info(sigma, eps, 1, decision.acceptance, decision.accepted, decision.log_ratio, decision.diverging)
    return state._replace(x=point.x, value=point.value, grad=point.grad), info


def _look(sampler: Calibrated, posterior: Potential, x0: Tensor) -> tuple[float, float, float]:
    """Texture (a variance), the scale to end at, and the step size of the Metropolis stage."""
    generator = torch.Generator(device=x0.device).manual_seed(0)
    low, high = _range(posterior, sampler.sigma_max)
    # Pilots of their own, also where chains come from elsewhere: what is found must not depend on these.
    x = sampler.start(posterior, (_PILOTS, *x0.shape[1:]), x0.dtype, generator)
    for k in range(40):
        sigma = high * (max(low, 0.1 * min(1.0, high)) / high) ** (k / 39)
        x = _langevin(posterior, x, sigma, 0.0, sampler, generator)
    texture, end, x = _texture(sampler, posterior, x, low, high, generator)
    for _ in range(20):
        x = _langevin(posterior, x, end, texture, sampler, generator)
    eps = _step_size(sampler, posterior, x, end, texture, generator) if posterior.has_value else 1.0
    return texture, end, eps


def _langevin(
    posterior: Potential, x: Tensor, sigma: float, texture: float, sampler: Calibrated, generator: Generators
) -> Tensor:
    p = _preconditioner(posterior, sigma, texture, x, sampler.tolerance)
    return leimkuhler_matthews(p, x, posterior.grad(x, sigma), 1.0, 1.0, None, generator)[0]


def _texture(
    sampler: Calibrated, posterior: Potential, x: Tensor, low: float, high: float, generator: torch.Generator
) -> tuple[float, float, Tensor]:
    """Come down until a scale sees the finest texture: its variance, the scale to end at, and where the pilots are."""
    weight = posterior.multiscale_weight
    sigma = min(high, 0.1)
    while True:
        sigma = max(sigma, low)
        for _ in range(8):
            x = _langevin(posterior, x, sigma, 0.0, sampler, generator)
        stiffest = _stiffness(posterior, x, sigma, generator)
        variance = weight / stiffest - sigma**2 if stiffest > 0 else math.inf
        texture = min(max(variance, 0.0), high**2)
        # Differences of gradients see no more in single precision; images may be small against sigma_max.
        least = 1e-4 * min(high, math.sqrt(float(squared_norm(x).mean()) / x[0].numel()))
        if sigma <= low * (1 + 1e-9) or sigma**2 <= _RESOLVED**2 * texture or sigma < least:
            return texture, min(max(low, _BELOW * math.sqrt(texture), least), high), x
        sigma *= 0.5


def _stiffness(posterior: Potential, x: Tensor, sigma: float, generator: torch.Generator, rounds: int = 12) -> float:
    """The greatest eigenvalue of the Hessian of what has no quadratic form, by power iteration over differences."""
    forms = Preconditioner.annealed(posterior, sigma).adapted(x).structure
    base = posterior.grad(x, sigma)
    v = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    size = 0.0
    for _ in range(rounds):
        v = v / to_event((squared_norm(v) / v[0].numel()).sqrt().clamp_min(1e-30).to(x.real.dtype))
        step = 0.05 * sigma
        product = (posterior.grad(x + step * v, sigma) - base) / step - forms.apply(v)
        size = float((inner(v, product) / squared_norm(v)).max())
        v = product
    return size


def _step_size(
    sampler: Calibrated, posterior: Potential, x: Tensor, end: float, texture: float, generator: torch.Generator
) -> float:
    """A step size at which the Metropolis test accepts about four in five, by the pilots' acceptance."""
    p = _preconditioner(posterior, end, texture, x, sampler.tolerance)
    value, grad = posterior.value_and_grad(x, end)
    state = State(x, None, 0, generator, value.double(), grad)
    log_eps, kept = math.log(0.5), []
    for k in range(1, 41):
        state, info = _metropolis(posterior, p, state, end, math.exp(log_eps))
        assert info.acceptance is not None
        log_eps = min(log_eps + 2.0 / k**0.6 * (float(info.acceptance.mean()) - _TARGET), 0.0)
        kept.append(log_eps)
    return math.exp(sum(kept[20:]) / 20)
