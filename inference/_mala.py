"""The Metropolis-adjusted Langevin algorithm."""

import math
from dataclasses import dataclass, field

from potentia._potential import Potential
from potentia.inference._metric import MetricCache
from potentia.inference._metropolis import DRIFT, Adjusted, decide, leapfrog, settle
from potentia.inference._precondition import Preconditioner
from potentia.inference._protocol import Info, State


@dataclass(frozen=True)
class MALA(Adjusted):
    """Preconditioned Langevin dynamics with a Metropolis test for every chain: exact at any step size.

    A step proposes ``x' = x - eps P grad U(x) + sqrt(2 eps T) P^(1/2) xi`` and accepts it with probability min(1, r),

        log r = [U - U' + 1/2 <x' - x, g + g'> - eps/4 (<g', P g'> - <g, P g>)] / T,

    the Metropolis-Hastings ratio of exp(-U / T), written without P^-1. It costs one gradient and two solves.

    ``preconditioner`` is P: None takes it from the posterior's own terms (``Preconditioner.of``: the quadratic forms of
    those that have one, ``curvature`` for the others); "diagonal", "low-rank" (``rank`` directions) and "dense" learn
    it in the warm-up from the draws and gradients of all chains, by the least Fisher divergence.

    ``step_size`` is eps; None adapts it in the warm-up to ``target_acceptance`` (0.574 is best in many dimensions) by
    dual averaging, from a first guess by doubling, and keeps it fixed from the first draw on. One step size serves all
    chains, and is led by their mean acceptance: during the warm-up chains then depend on one another.
    ``per_chain=True`` gives each its own, and makes it independent of the others from beginning to end.

    A proposal where U or its gradient is not finite is refused; it counts as diverging, as does one more than 1,000
    nats less likely. ``sigma`` is the noise scale at which multi-scale energies are taken (None: the finest);
    ``steps_per_draw`` thins; ``tolerance`` is the relative residual where P needs conjugate gradients.

    Raises: ValueError for numbers out of range, an unknown name of a preconditioner, or one to be learned together with
        ``per_chain``; TypeError for a preconditioner that is neither.
    Source: Roberts and Tweedie 1996; Roberts and Rosenthal 1998 (0.574); Hoffman and Gelman 2014, section 3.2.
    """

    step_size: float | None = None
    preconditioner: Preconditioner | str | None = None
    sigma: float | None = None
    target_acceptance: float = 0.574
    per_chain: bool = False
    steps_per_draw: int = 10
    default_warmup: int = 50
    temperature: float = 1.0
    curvature: float | None = None
    tolerance: float | None = 1e-5
    rank: int = 16
    _cache: MetricCache = field(default_factory=MetricCache, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._check()

    @staticmethod
    def _time_step(step_size: float) -> float:
        return math.sqrt(2 * step_size)

    def step(self, posterior: Potential, state: State) -> tuple[State, Info]:
        """One proposal and its test, for all chains."""
        metric, memory = self._metric(posterior, state), dict(state.memory)
        old = self._point(state, metric)
        numbers, kept = self._numbers(state, metric)
        velocity = math.sqrt(self.temperature) * metric.colour(numbers.white)
        h, spent = self._opening(posterior, metric, old, velocity, memory)
        new, _, ratio = leapfrog(posterior, self.sigma, metric, old, velocity, h, 1, self.temperature)
        decision = decide(ratio, numbers.extra[:, 0])
        point = settle(decision.accepted, new, old)
        memory |= {**kept, DRIFT: point.drift}
        if not self._frozen(memory):
            memory |= self._adapt(memory, point, decision.acceptance)
        return self._finish(state, point, memory), self._info(h**2 / 2, 1 + spent, decision)
