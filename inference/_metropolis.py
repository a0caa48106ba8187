"""The Metropolis rule for Langevin and Hamiltonian proposals, and what the samplers built on it share."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from potentia._potential import Potential
from potentia._random import Generators, generator_device, standard_normal
from potentia._tensor import inner, to_event
from potentia._validate import count, positive
from potentia.inference import _dual_averaging as averaging
from potentia.inference._learned import STATISTICS, Kind, Learner, ends_window
from potentia.inference._metric import Metric, MetricCache, White
from potentia.inference._precondition import Preconditioner, linear_term
from potentia.inference._protocol import ADAPTED, NOTHING, Info, Memory, Sampler, State

MOST_NATS = 1000.0  # a proposal less likely by this much is called a divergence
STEP, RECORD, STEPS, FROZEN = (ADAPTED + name for name in ("step_size", "averaging", "steps", "frozen"))
DRIFT, NOISE, EXTRA = "drift", "noise", "extra"
_MOST_DOUBLINGS = 60
_BLOCK_NUMBERS, _LONGEST_BLOCK = 8192, 32


class Point(NamedTuple):
    """Chains with what a step needs to know of them; ``drift`` is P grad.

    Shapes: x, grad, drift (chains, C, H, W); value (chains,), float64.
    """

    x: Tensor
    value: Tensor
    grad: Tensor
    drift: Tensor


class Numbers(NamedTuple):
    """The random numbers of one step: those behind a draw from N(0, P), and two standard normal ones a chain.

    Shapes: extra (chains, 2), float64.
    """

    white: White
    extra: Tensor


class Decision(NamedTuple):
    """The Metropolis test. Shapes: (chains,)."""

    acceptance: Tensor
    accepted: Tensor
    log_ratio: Tensor
    diverging: Tensor


def decide(log_ratio: Tensor, normal: Tensor, most_nats: float = MOST_NATS) -> Decision:
    """Accept with probability min(1, exp(log_ratio)); what is not finite is refused, and counted as diverging.

    The uniform number behind each decision is the distribution function of a standard normal one.
    """
    finite = torch.isfinite(log_ratio)
    ratio = torch.where(finite, log_ratio, -math.inf)
    accepted = torch.special.log_ndtr(normal) < ratio
    return Decision(ratio.clamp(max=0.0).exp(), accepted, log_ratio, ~(ratio >= -most_nats))


def settle(accepted: Tensor, new: Point, old: Point) -> Point:
    """Take the new point where it is accepted, all of the old one elsewhere: x, U, gradient and drift."""
    chosen = to_event(accepted)
    x, grad = (torch.where(chosen, a, b) for a, b in ((new.x, old.x), (new.grad, old.grad)))  # type: ignore[arg-type]
    value = torch.where(accepted, new.value, old.value)
    if new.drift is new.grad and old.drift is old.grad:  # P is the identity
        return Point(x, value, grad, grad)
    return Point(x, value, grad, torch.where(chosen, new.drift, old.drift))  # type: ignore[arg-type]


def leapfrog(
    posterior: Potential,
    sigma: float | None,
    metric: Metric,
    start: Point,
    velocity: Tensor,
    step: Tensor | float,
    num: int,
    temperature: float = 1.0,
) -> tuple[Point, Tensor, Tensor]:
    """``num`` leapfrog steps of length h from velocity v = P m: the end, its velocity, and the log of the ratio.

    Each step is ``v -= h/2 P grad; x += h v; v -= h/2 P grad`` at the new x. With d the moves and w = P g the change of
    U + <m, P m> / 2 along the way telescopes, so that neither the momentum nor P^-1 is needed:

        log ratio = [U_0 - U_L + 1/2 sum <d_k, g_k + g_{k+1}> - h^2/8 (<g_L, w_L> - <g_0, w_0>)] / T

    One step is a Langevin proposal with eps = h^2 / 2, and this its Metropolis-Hastings ratio. For a P solved for by
    conjugate gradients, errors of relative size t in w and in the noise enter at order t^2 a dimension.

    Shapes: velocity as x; step a number or (chains,); returns log ratio (chains,), float64, not finite where U or a
        gradient is not.
    Source: Neal 2011, section 5.2.3; Roberts and Tweedie 1996. The sum without P^-1: <m, P m> changes by
        -h/2 <v + v', g + g'> in a step, and v + v' = 2 d/h + h/2 (w - w').
    """
    h = to_event(step.to(start.x.real.dtype)) if isinstance(step, Tensor) else step
    point, path, v = start, torch.zeros_like(start.value), velocity
    for k in range(num):
        v = v - (h / 2 if k == 0 else h) * point.drift
        move = h * v
        x = point.x + move
        if k < num - 1:
            value, grad = point.value, posterior.grad(x, sigma)
        else:
            value, grad = posterior.value_and_grad(x, sigma)
        path = path + inner(move, point.grad + grad)
        if metric.iterative:
            clean = torch.isfinite(path)
            grad = torch.where(to_event(clean), grad, torch.zeros_like(grad))  # type: ignore[arg-type]
        point = Point(x, value, grad, metric.solve(grad))
    v = v - h / 2 * point.drift
    length = step.double() if isinstance(step, Tensor) else step
    kinetic = inner(point.grad, point.drift) - inner(start.grad, start.drift)
    point = point._replace(value=point.value.double())
    return point, v, (start.value - point.value + 0.5 * path - length**2 / 8 * kinetic) / temperature


class Adjusted(Sampler):
    """What the Metropolis-adjusted samplers share; they are dataclasses with these fields.

    Inside, a step size is the time step h of the leapfrog rule.
    """

    step_size: float | None
    preconditioner: Preconditioner | str | None
    sigma: float | None
    target_acceptance: float
    temperature: float
    curvature: float | None
    tolerance: float | None
    rank: int
    per_chain: bool
    # Fields stand in for the sampler's read-only properties.
    steps_per_draw: int  # pyright: ignore[reportIncompatibleMethodOverride]
    default_warmup: int  # pyright: ignore[reportIncompatibleMethodOverride]
    _cache: MetricCache

    @property
    def _where(self) -> str:
        return type(self).__name__

    @property
    def adapts(self) -> bool:
        return self.step_size is None or isinstance(self.preconditioner, str)

    @property
    def couples_chains(self) -> bool:
        return self.adapts and not self.per_chain

    def _check(self) -> None:
        """Check the fields that all of them have.

        Raises: ValueError and TypeError that name the field.
        """
        where = self._where
        for name in ("step_size", "sigma", "curvature", "tolerance"):
            value = getattr(self, name)
            if value is not None:
                positive(where, name, value)
        positive(where, "temperature", self.temperature)
        for name, least in (("steps_per_draw", 1), ("default_warmup", 0), ("rank", 1)):
            count(where, name, getattr(self, name), least=least)
        if positive(where, "target_acceptance", self.target_acceptance) >= 1:
            raise ValueError(f"{where}: target_acceptance must be below 1, got {self.target_acceptance:g}")
        p = self.preconditioner
        if isinstance(p, str):
            object.__setattr__(self, "preconditioner", Kind.parse(where, p).value)
            if self.per_chain:
                raise ValueError(
                    f"{where}: per_chain is True, but a preconditioner is learned from all chains together; "
                    "expected a Preconditioner or None"
                )
        elif not (p is None or isinstance(p, Preconditioner)):
            raise TypeError(
                f"{where}: preconditioner is a {type(p).__name__}, expected a Preconditioner, 'diagonal', 'low-rank', "
                "'dense' or None"
            )

    @property
    def _learner(self) -> Learner | None:
        p = self.preconditioner
        return Learner(self._where, Kind(p), self.rank) if isinstance(p, str) else None

    def start(self, posterior: Potential, shape: Sequence[int], dtype: torch.dtype, generator: Generators) -> Tensor:
        """Twice as wide as ``N(P b, P)``, b the linear term of the forms there are, P made of them or given.

        Shapes: ``shape`` is (chains, C, H, W).
        """
        like = torch.zeros(tuple(shape)[1:], dtype=dtype, device=generator_device(generator))
        p = self._given(posterior, like)
        centre = p.solve(linear_term(posterior, self.sigma, like, multiscale=True))
        return centre + 2 * math.sqrt(self.temperature) * p.draw(generator, shape, dtype)

    def init(self, posterior: Potential, x0: Tensor, generator: Generators) -> State:
        """State of chains that start from x0, (chains, C, H, W).

        Raises: TypeError for a score-only prior; FloatingPointError for a start where U or its gradient is not finite.
        """
        posterior.check(x0)
        if not posterior.has_value:
            raise TypeError(
                f"{self._where}: {posterior.name} holds a score-only prior, which has no value for the Metropolis "
                "test; expected energies"
            )
        x = x0.detach()
        value, grad = posterior.value_and_grad(x, self.sigma)
        bad = ~(torch.isfinite(value) & torch.isfinite(x).flatten(1).all(1) & torch.isfinite(grad).flatten(1).all(1))
        if bool(bad.any()):
            raise FloatingPointError(
                f"{self._where}: chain {int(bad.nonzero()[0])} starts where U or its gradient is not finite (sigma "
                f"{self.sigma}), with {int(bad.sum())} of {len(bad)} chains affected"
            )
        memory: dict[str, Tensor] = {}
        if self._learner is not None:
            memory = self._learner.begin(x, grad)
        else:
            self._metric(posterior, State(x, None, 0, generator))  # to refuse a singular one at once
        if self.adapts:
            shape = (len(x),) if self.per_chain else ()
            first = 1.65 * x[0].numel() ** (-1 / 6) if self.step_size is None else self._time_step(self.step_size)
            step = torch.full(shape, first, dtype=torch.float64, device=x.device)
            memory |= {
                **self._restarted(step),
                STEPS: torch.tensor(0),
                FROZEN: torch.tensor(False),
            }
        return State(x, None, 0, generator, value.double(), grad, memory or NOTHING)

    def freeze(self, memory: Memory) -> Memory:
        """Memory after the warm-up: the averaged step size, the learned P; the statistics are let go of."""
        if not self.adapts:
            return memory
        kept = {k: v for k, v in memory.items() if not k.startswith(STATISTICS)}
        frozen = kept.get(FROZEN)
        done = torch.ones((), dtype=torch.bool, device=None if frozen is None else frozen.device)
        if self.step_size is None and RECORD in kept:
            kept[STEP] = averaging.averaged(kept[RECORD])
        return {**kept, FROZEN: done}

    @staticmethod
    def _time_step(step_size: float) -> float:
        """The leapfrog rule's h for the sampler's own step size."""
        return step_size

    def _given(self, posterior: Potential, like: Tensor) -> Preconditioner:
        """The preconditioner handed in, or that of the posterior's quadratic forms, in the precision of the images."""
        p = self.preconditioner
        if not isinstance(p, Preconditioner):
            scale = self.sigma
            if scale is None and posterior.scales is not None and posterior.scales[0] > 0:
                scale = posterior.scales[0]
            p = Preconditioner.of(posterior, scale, self.curvature)
        return p.adapted(like, self.tolerance)

    def _metric(self, posterior: Potential, state: State) -> Metric:
        learner = self._learner
        if learner is not None:
            return learner.metric(state.memory)
        try:
            return self._cache.get(posterior, state.x, lambda: self._given(posterior, state.x))
        except ValueError as err:
            raise ValueError(
                f"{self._where}: {err}; give a curvature for what the posterior's quadratic forms leave free"
            ) from err

    def _opening(
        self, posterior: Potential, metric: Metric, point: Point, velocity: Tensor, memory: dict[str, Tensor]
    ) -> tuple[Tensor | float, int]:
        """The h of this step, and the gradients spent on a first guess where it is the first of all."""
        if self.step_size is not None:
            return self._time_step(self.step_size), 0
        step, spent = memory[STEP], 0
        if not self._frozen(memory) and int(memory[STEPS]) == 0:
            step, spent = self._first_guess(posterior, metric, point, velocity, step)
            memory |= self._restarted(step)
        return step, spent

    def _frozen(self, memory: Memory) -> bool:
        return not self.adapts or bool(memory[FROZEN])

    def _point(self, state: State, metric: Metric) -> Point:
        """The chains as they stand, with P grad computed where the state does not hold it.

        Raises: ValueError for a state without U and its gradient, which ``init`` puts there.
        """
        if state.value is None or state.grad is None:
            raise ValueError(f"{self._where}: the state holds no U and no gradient, expected one made by init")
        drift = state.memory.get(DRIFT)
        return Point(state.x, state.value, state.grad, metric.solve(state.grad) if drift is None else drift)

    def _numbers(self, state: State, metric: Metric) -> tuple[Numbers, dict[str, Tensor]]:
        """Random numbers of this step, and what to keep for the steps that follow.

        Small images get those of several steps at once, in blocks whose length depends on the size of the image alone:
        the cost of one call a chain is spread, and a chain's numbers do not depend on the chains beside it.
        """
        x, generator = state.x, state.generator
        if metric.white is not None:
            white = metric.white(generator, tuple(x.shape), x.dtype)
            return Numbers(white, standard_normal((len(x), 2), generator, dtype=torch.float64, device=x.device)), {}
        numel = x[0].numel() * (2 if x.is_complex() else 1)
        length = max(1, min(_LONGEST_BLOCK, _BLOCK_NUMBERS // numel))
        place = state.step % length
        noise, extra = state.memory.get(NOISE), state.memory.get(EXTRA)
        if place == 0 or noise is None or extra is None:
            shape = (len(x), length, *x.shape[1:])
            noise = standard_normal(shape, generator, dtype=x.dtype, device=x.device)
            extra = standard_normal((len(x), length, 2), generator, dtype=torch.float64, device=x.device)
        kept = {NOISE: noise, EXTRA: extra} if length > 1 else {}
        return Numbers((noise[:, place],), extra[:, place]), kept

    def _first_guess(
        self, posterior: Potential, metric: Metric, point: Point, velocity: Tensor, step: Tensor
    ) -> tuple[Tensor, int]:
        """Double or halve the step until the acceptance of one leapfrog step crosses one half; gradients spent.

        Source: Hoffman and Gelman 2014, algorithm 4.
        """
        direction: Tensor | None = None
        active = torch.ones_like(step, dtype=torch.bool)
        for tries in range(1, _MOST_DOUBLINGS + 1):
            wide = step.expand(len(point.value))
            ratio = leapfrog(posterior, self.sigma, metric, point, velocity, wide, 1, self.temperature)[2]
            acceptance = decide(ratio, torch.zeros_like(ratio)).acceptance
            likely = (acceptance if self.per_chain else acceptance.mean()) > 0.5
            if direction is None:
                direction = torch.where(likely, 2.0, 0.5)
            active = active & (likely == (direction > 1))
            if not bool(active.any()):
                return torch.where(direction > 1, step / 2, step), tries
            step = torch.where(active, step * direction, step)
        return step, _MOST_DOUBLINGS

    def _restarted(self, step: Tensor) -> dict[str, Tensor]:
        """What the memory holds of an adaptation that begins at these steps."""
        return {STEP: step, RECORD: averaging.restart(step)}

    def _adapt(self, memory: dict[str, Tensor], point: Point, acceptance: Tensor) -> dict[str, Tensor]:
        """Learn from one step: what changes in the memory.

        The acceptance of all chains together is its arithmetic mean, of which the target is the known optimum.
        """
        steps = int(memory[STEPS]) + 1
        out: dict[str, Tensor] = {STEPS: torch.tensor(steps)}
        if self.step_size is None:
            seen = acceptance if self.per_chain else self._pooled(acceptance)
            out[RECORD] = averaging.update(memory[RECORD], self.target_acceptance - seen)
            out[STEP] = averaging.current(out[RECORD])
        learner = self._learner
        if learner is not None:
            out |= learner.observe(memory, point.x, point.grad)
            if ends_window(steps):
                out |= learner.learn({**memory, **out}, point.x)
                out[DRIFT] = learner.metric({**memory, **out}).solve(point.grad)
                if self.step_size is None:
                    out |= self._restarted(averaging.averaged(out[RECORD]))
        return out

    def _pooled(self, acceptance: Tensor) -> Tensor:
        return acceptance.mean()

    def _finish(self, state: State, point: Point, memory: dict[str, Tensor]) -> State:
        return State(point.x, None, state.step + 1, state.generator, point.value, point.grad, memory)

    def _info(self, step_size: float | Tensor, n_grad: int, decision: Decision) -> Info:
        return Info(
            self.sigma,
            step_size,
            n_grad,
            decision.acceptance,
            decision.accepted,
            decision.log_ratio,
            decision.diverging,
        )
