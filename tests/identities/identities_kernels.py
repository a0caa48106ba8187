"""Samplers: what a Markov kernel satisfies, the leapfrog integrator, and states that are left alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import test_kernel_checks_catch_faults as kernel_faults
import torch
from hypothesis import strategies as st
from identities_base import Check, Fault, Identity, from_table, planted
from torch import Tensor

from potentia import Energy, Potential, annealers, energies, inference, likelihoods, testing
from potentia._potential import Sigma
from potentia._random import chain_generators, standard_normal
from potentia._tensor import sum_event
from potentia.inference import Info, Sampler, State
from potentia.inference._metropolis import Point, leapfrog
from potentia.testing._report import require, require_close, subject

KERNELS = "Samplers"

# The exact kernels: with their statistics once, and without them wherever Hypothesis looks.

EXACT: dict[str, Callable[[float], Sampler]] = {
    "MALA": lambda h: inference.MALA(h**2 / 2),
    "HMC": lambda h: inference.HMC(h, num_leapfrog=2),
    "several steps a draw": lambda h: inference.MALA(h**2 / 2, steps_per_draw=2),
    "step sizes per chain": lambda h: inference.MALA(per_chain=True),
}


@st.composite
def kernels(draw: st.DrawFn) -> tuple[Sampler, dict[str, Any]]:
    sampler = EXACT[draw(st.sampled_from(sorted(EXACT)))](draw(st.floats(0.5, 0.9)))
    exact = {"num_chains": draw(st.sampled_from([0, 0, 0, 4000])), "num_steps": 10, "seed": draw(st.integers(0, 999))}
    return sampler, exact


KERNEL = Check("check_kernel", lambda case: testing.check_kernel(case[0], **case[1]), kernels(), 12)


def _row(kind: Any, says: str, how: dict[str, Any]) -> tuple[Any, ...]:
    suffix = ", by its report" if "log_proposal" in how else ", by its moves" if "convention" in how else ""
    return NAMES[kind.__name__] + suffix, lambda sampler: testing.check_kernel(sampler, **how), kind, None, says


# Rows of the table of planted faults, which names them by their classes.
NAMES = {
    "Unadjusted": "no Metropolis test",
    "NoProposalRatio": "a test without the proposals' ratio",
    "StaleGradient": "the gradient of a refused proposal kept",
    "HiddenStaleGradient": "the gradient of a refused proposal used, and not shown",
    "OneTestForAll": "one test for all chains",
    "NoiseFactorOne": "noise of half the variance in a step",
    "FirstGeneratorForAll": "all chains from the first generator",
    "OneNoiseForAll": "one noise for all chains",
    "OneUniformForAll": "one uniform number for all chains",
    "TakesNaN": "a proposal at NaN taken",
    "WritesIntoState": "the state written into",
    "GlobalNoise": "noise from the global generator",
    "LosesStep": "steps not counted",
}
TABLE = [_row(*row) for row in kernel_faults.FAULTS]


# The integrator of HMC.

Integrator = Callable[..., tuple[Point, Tensor, Tensor]]
SHAPE = (1, 1, 2)


class Quartic(Energy):
    """U(x) = sum of x^4 / 4 + x^2 / 2 and a coupling of neighbours."""

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return sum_event(x**4 / 4 + x**2 / 2 + 0.3 * x * x.roll(1, -1))


class _Euclid:
    """The metric that is the identity."""

    iterative = False

    def solve(self, x: Tensor) -> Tensor:
        return x


def _path(integrator: Integrator, x: Tensor, v: Tensor, h: float, num: int) -> tuple[Tensor, Tensor, Tensor]:
    u = Quartic()
    value, grad = u.value_and_grad(x)
    end, w, ratio = integrator(u, None, _Euclid(), Point(x, value, grad, grad), v, h, num)
    return end.x, w, ratio


def reversible(case: tuple[Integrator, Tensor, Tensor, float, int]) -> None:
    """The path from the end with its velocity turned round leads home; volumes are kept; the change of energy told."""
    integrator, x, v, h, num = case
    where, there = getattr(integrator, "__name__", "integrator"), _path(integrator, x, v, h, num)
    home = _path(integrator, there[0], -there[1], h, num)
    room = 1e-8 * (1 + float(there[0].abs().max()) + float(there[1].abs().max()))
    require_close(where, "the path can be gone back", home[0], x, room)
    require_close(where, "the velocity turns round", home[1], -v, room)
    u = Quartic()
    change = u(x) + 0.5 * sum_event(v**2) - u(there[0]) - 0.5 * sum_event(there[1] ** 2)
    require_close(where, "the log ratio is the change of U + v^2 / 2", there[2], change, 1e-8 * (1 + change.abs()))
    volume = _volume(integrator, x, v, h, num)
    require_close(where, "phase space keeps its volume", volume, torch.ones_like(volume), 1e-4)


def _volume(integrator: Integrator, x: Tensor, v: Tensor, h: float, num: int) -> Tensor:
    """The determinant of the map of (x, v), from differences."""
    columns, step = [], 1e-6
    for k in range(4):
        delta = torch.zeros(4, dtype=torch.float64)
        delta[k] = step
        dx, dv = delta[:2].reshape(SHAPE), delta[2:].reshape(SHAPE)
        ahead, behind = (_path(integrator, x + s * dx, v + s * dv, h, num) for s in (1, -1))
        parts = [(a - b).flatten(1) / (2 * step) for a, b in zip(ahead[:2], behind[:2], strict=True)]
        columns.append(torch.cat(parts, 1))
    return torch.linalg.det(torch.stack(columns, -1))


@st.composite
def paths(draw: st.DrawFn, integrator: Integrator = leapfrog) -> tuple[Integrator, Tensor, Tensor, float, int]:
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    x, v = (standard_normal((3, *SHAPE), g, dtype=torch.float64) for _ in range(2))
    return integrator, x, v, draw(st.floats(0.05, 0.3)), draw(st.integers(1, 4))


LEAPFROG = Check("reversible", reversible, paths(), 20)


def euler(u: Potential, sigma: Any, metric: Any, start: Point, v: Tensor, h: float, num: int) -> Any:
    """Velocities from the gradient at the beginning of each step alone."""
    x = start.x
    for _ in range(num):
        x, v = x + h * v, v - h * u.grad(x)
    return Point(x, u(x), u.grad(x), u.grad(x)), v, torch.zeros(len(x), dtype=torch.float64)


def other_ratio(*args: Any) -> Any:
    """A change of U alone."""
    end, v, _ = leapfrog(*args)
    return end, v, args[3].value - end.value


def squeezed(u: Potential, sigma: Any, metric: Any, start: Point, v: Tensor, h: float, num: int) -> Any:
    """Leapfrog in velocities stretched by a factor of x: it can be gone back, and volumes change."""

    def stretch(x: Tensor) -> Tensor:
        return torch.exp(0.1 * x.sum((-3, -2, -1), keepdim=True))

    end, w, _ = leapfrog(u, sigma, metric, start, v * stretch(start.x), h, num)
    out = w / stretch(end.x)
    return end, out, start.value + 0.5 * sum_event(v**2) - end.value - 0.5 * sum_event(out**2)


# States, for every sampler.

LEVELS = annealers.Geometric(2.0, 0.1, 3)
SAMPLERS: list[Sampler] = [
    inference.ALPS(LEVELS),
    inference.DAPS(LEVELS),
    inference.DPS(LEVELS),
    inference.DiffPIR(LEVELS),
    inference.HMC(0.3, num_leapfrog=2),
    inference.Langevin(0.1),
    inference.MALA(0.1),
    inference.MMPS(LEVELS),
    inference.SplitGibbs(LEVELS, num_denoise=2),
]


def apart(case: tuple[Sampler, int, int]) -> None:
    """Chain c of many is chain c alone, and the start and each state stay as they were handed out."""
    sampler, chain, seed = case
    posterior = _posterior()
    together, kept, held = _draws(sampler, posterior, range(6), seed)
    where = subject(sampler)
    changed = sum(not torch.equal(a, b) for a, b in zip(kept, held, strict=True))
    require(changed == 0, where, "states and starts are left alone", f"{changed} written into", "none")
    alone, _, _ = _draws(sampler, posterior, [chain], seed)
    identity = "a chain alone is what it is among others"
    require_close(where, identity, alone[0], together[chain], 1e-7 * (1 + float(together.abs().max())))


def _posterior() -> Potential:
    y = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(1, 3, 4)
    prior = energies.GaussianField.power_law((1, 3, 4), dtype=torch.float64)
    return prior + likelihoods.Gaussian(y, None, 0.3)


def _draws(sampler: Sampler, posterior: Potential, chains: Any, seed: int) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The last images, and the states on the way, as they are and as they were."""
    generators = chain_generators(seed, chains)
    x0 = sampler.start(posterior, (len(chains), 1, 3, 4), torch.float64, generators)
    state = sampler.init(posterior, x0, generators)
    kept, held = [x0, state.x], [x0.clone(), state.x.clone()]
    for _ in range(6):
        state, _ = sampler.step(posterior, state)
        kept.append(state.x)
        held.append(state.x.clone())
    return state.x, kept, held


def runs(make: Callable[[], Sampler] | None = None) -> st.SearchStrategy[tuple[Sampler, int, int]]:
    samplers = st.sampled_from(SAMPLERS) if make is None else st.builds(make)
    return st.tuples(samplers, st.integers(0, 5), st.integers(0, 999))


APART = Check("apart", apart, runs(), 30)


@dataclass(frozen=True)
class InPlace(inference.Langevin):
    """Saves memory where it should not."""

    def step(self, posterior: Potential, state: State) -> tuple[State, Info]:
        new, info = super().step(posterior, state)
        return new._replace(x=state.x.copy_(new.x)), info


@dataclass(frozen=True)
class Coupled(inference.Langevin):
    """Drawn to the mean of the chains."""

    def step(self, posterior: Potential, state: State) -> tuple[State, Info]:
        new, info = super().step(posterior, state)
        return new._replace(x=0.9 * new.x + 0.1 * new.x.mean(0)), info


def kernel(name: str, statement: str, *faults: str, more: tuple[Fault, ...] = ()) -> Identity:
    return Identity(KERNELS, name, statement, KERNEL, (*from_table(TABLE, *faults), *more))


TURNED = Fault(
    "drift that singles out a coordinate",
    lambda: testing.check_kernel(kernel_faults.NotTurned(0.3), num_chains=0),
    "rotating the target",
)
EULER = Fault(
    "unadjusted Langevin steps taken for exact",
    lambda: testing.check_kernel(inference.Langevin(0.5, rule="euler"), reversible=False),
    "exact draws stay exact",
)
IDENTITIES = [
    kernel(
        "invariance",
        "x ~ p gives z ~ p after a step from x to z: exact draws stay exact",
        NAMES["HiddenStaleGradient"],
        more=(EULER,),
    ),
    kernel(
        "detailed balance",
        "p(x) k(x → z) = p(z) k(z → x), of reversible kernels; k accepts by the ratio of densities that it reports",
        NAMES["Unadjusted"],
        NAMES["NoProposalRatio"],
        NAMES["NoProposalRatio"] + ", by its report",
        NAMES["NoiseFactorOne"],
    ),
    kernel(
        "step size",
        "from a flat U, E ‖z − x‖² = 2ε a dimension (Langevin) or (n h)² (leapfrog)",
        NAMES["NoiseFactorOne"] + ", by its moves",
    ),
    kernel("refusal of NaN", "a proposal where U is NaN is refused", NAMES["TakesNaN"]),
    kernel("rotation", "turning the target, the start and the noise turns the chain", more=(TURNED,)),
    kernel(
        "state",
        "a step leaves the state it is given alone, counts, and carries U and ∇U at its x",
        NAMES["StaleGradient"],
        NAMES["WritesIntoState"],
        NAMES["LosesStep"],
    ),
    kernel(
        "chains",
        "each chain draws from its own generator: its path does not depend on which others, or how many, run beside it",
        NAMES["OneTestForAll"],
        NAMES["FirstGeneratorForAll"],
        NAMES["OneNoiseForAll"],
        NAMES["OneUniformForAll"],
        NAMES["GlobalNoise"],
    ),
    Identity(
        KERNELS,
        "chains and states of every sampler",
        "chain c of n is chain c of 1, and starts and states stay as they were handed out, annealed samplers included",
        APART,
        (
            planted("a state written into", APART, runs(InPlace), "left alone"),
            planted("chains drawn to their mean", APART, runs(Coupled), "among others"),
        ),
    ),
    Identity(
        KERNELS,
        "leapfrog",
        "if (x, v) → (z, w), then (z, −w) → (x, −v); volumes are kept; the log ratio is the change of U + ½ ‖v‖²",
        LEAPFROG,
        (
            planted("Euler's steps", LEAPFROG, paths(euler), "gone back"),
            planted("a ratio without the kinetic energy", LEAPFROG, paths(other_ratio), "change of U"),
            planted("volumes that change", LEAPFROG, paths(squeezed), "keeps its volume"),
        ),
    ),
]
TABLES = [TABLE]
