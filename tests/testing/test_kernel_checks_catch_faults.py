"""``check_kernel`` passes sound kernels and says what is wrong with broken ones."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from potentia._potential import Potential
from potentia._random import Generators, standard_normal
from potentia._tensor import inner, squared_norm, to_event
from potentia.inference import Info, Langevin, Sampler, State
from potentia.inference._chees import ChEES
from potentia.inference._hmc import HMC
from potentia.inference._mala import MALA
from potentia.testing._kernel import check_kernel


@dataclass(frozen=True)
class Toy(Sampler):
    """Langevin proposals and a Metropolis test as a user might write them; its methods are what the faults replace."""

    eps: float = 0.5

    def start(self, posterior, shape, dtype, generator):  # type: ignore[no-untyped-def]
        return torch.zeros(shape, dtype=dtype)

    def init(self, posterior: Potential, x0: Tensor, generator: Generators) -> State:
        value, grad = posterior.value_and_grad(x0)
        return State(x0.detach(), None, 0, generator, value, grad)

    def noise(self, x: Tensor, generator: Generators) -> Tensor:
        return math.sqrt(2 * self.eps) * standard_normal(x.shape, generator, dtype=x.dtype)

    def normal(self, num: int, generator: Generators) -> Tensor:
        return standard_normal((num, 1), generator, dtype=torch.float64)[:, 0]

    def ratio(self, u: Tensor, v: Tensor, d: Tensor, g: Tensor, h: Tensor) -> Tensor:
        return u - v + inner(d, g + h) / 2 - self.eps / 4 * (squared_norm(h) - squared_norm(g))

    def accept(self, ratio: Tensor, normal: Tensor) -> Tensor:
        return torch.special.log_ndtr(normal) < ratio

    def keep(self, accepted: Tensor, new: Tensor, old: Tensor) -> Tensor:
        """The gradient to keep."""
        return torch.where(to_event(accepted), new, old)  # type: ignore[arg-type]

    def step(self, posterior: Potential, state: State) -> tuple[State, Info]:
        x, u, g = state.x, state.value, state.grad
        assert u is not None
        assert g is not None
        y = x - self.eps * g + self.noise(x, state.generator)
        v, h = posterior.value_and_grad(y)
        ratio = self.ratio(u, v, y - x, g, h)
        accepted = self.accept(ratio, self.normal(len(x), state.generator))
        z = torch.where(to_event(accepted), y, x)  # type: ignore[arg-type]
        info = Info(None, self.eps, 1, ratio.clamp(max=0).exp(), accepted, ratio, ~torch.isfinite(ratio))
        return self.made(z, torch.where(accepted, v, u), self.keep(accepted, h, g), state), info

    def made(self, x: Tensor, value: Tensor, grad: Tensor, state: State) -> State:
        return State(x, None, state.step + 1, state.generator, value, grad)


def density(posterior: Potential, info: Info, x: Tensor, y: Tensor) -> Tensor:
    eps = float(info.step_size)
    return -squared_norm(y - x + eps * posterior.grad(x)) / (4 * eps)


class Unadjusted(Toy):
    def accept(self, ratio: Tensor, normal: Tensor) -> Tensor:
        return torch.isfinite(ratio)


class NoProposalRatio(Toy):
    def ratio(self, u: Tensor, v: Tensor, d: Tensor, g: Tensor, h: Tensor) -> Tensor:
        return u - v


class StaleGradient(Toy):
    def keep(self, accepted: Tensor, new: Tensor, old: Tensor) -> Tensor:
        return new


class HiddenStaleGradient(Toy):
    """The gradient of a refused proposal is used for the next one, and not shown."""

    def made(self, x: Tensor, value: Tensor, grad: Tensor, state: State) -> State:
        return State(x, None, state.step + 1, state.generator, memory={"value": value, "grad": grad})

    def keep(self, accepted: Tensor, new: Tensor, old: Tensor) -> Tensor:
        return new

    def step(self, posterior: Potential, state: State) -> tuple[State, Info]:
        memory = state.memory
        shown = state._replace(value=memory["value"], grad=memory["grad"]) if memory else state
        return super().step(posterior, shown)


class OneTestForAll(Toy):
    def accept(self, ratio: Tensor, normal: Tensor) -> Tensor:
        return (torch.special.log_ndtr(normal[:1]) < ratio.mean()).expand_as(ratio)


class NoiseFactorOne(Toy):
    def noise(self, x: Tensor, generator: Generators) -> Tensor:
        return super().noise(x, generator) / math.sqrt(2)


class FirstGeneratorForAll(Toy):
    def noise(self, x: Tensor, generator: Generators) -> Tensor:
        return super().noise(x, generator if isinstance(generator, torch.Generator) else generator[0])


class OneNoiseForAll(Toy):
    def noise(self, x: Tensor, generator: Generators) -> Tensor:
        first = generator if isinstance(generator, torch.Generator) else generator[:1]
        return super().noise(x[:1], first).expand_as(x)


class OneUniformForAll(Toy):
    def normal(self, num: int, generator: Generators) -> Tensor:
        first = generator if isinstance(generator, torch.Generator) else generator[:1]
        return super().normal(1, first).expand(num)


class TakesNaN(Toy):
    def accept(self, ratio: Tensor, normal: Tensor) -> Tensor:
        return ~(torch.special.log_ndtr(normal) >= ratio)


class WritesIntoState(Toy):
    def made(self, x: Tensor, value: Tensor, grad: Tensor, state: State) -> State:
        state.x.copy_(x)
        return super().made(state.x, value, grad, state)


class GlobalNoise(Toy):
    def noise(self, x: Tensor, generator: Generators) -> Tensor:
        return math.sqrt(2 * self.eps) * torch.randn(x.shape, dtype=x.dtype)


class LosesStep(Toy):
    def made(self, x: Tensor, value: Tensor, grad: Tensor, state: State) -> State:
        return super().made(x, value, grad, state)._replace(step=0)


class NotTurned(MALA):
    """Ignores the first coordinate's gradient in its drift: exact, as any drift is, but not equivariant."""

    def step(self, posterior: Potential, state: State) -> tuple[State, Info]:
        new, info = super().step(posterior, state)
        x = new.x.clone()
        x[:, 0, 0, 0] += 1e-6
        value, grad = posterior.value_and_grad(x)
        return new._replace(x=x, value=value, grad=grad, memory={}), info._replace(accepted=None)


FAULTS: list[tuple[type[Toy], str, dict[str, object]]] = [
    (Unadjusted, "exact draws stay exact|detailed balance", {}),
    (NoProposalRatio, "exact draws stay exact|detailed balance", {}),
    (NoProposalRatio, "log ratio is that of the densities", {"log_proposal": density, "num_chains": 0}),
    (StaleGradient, "grad is that at its x", {"num_chains": 0}),
    (HiddenStaleGradient, "exact draws stay exact", {}),
    (OneTestForAll, "by themselves|leaves the other chains alone", {"num_chains": 0}),
    (NoiseFactorOne, "mean squared move", {"num_chains": 0, "convention": "langevin"}),
    (NoiseFactorOne, "exact draws stay exact|detailed balance", {}),
    (FirstGeneratorForAll, "by themselves", {"num_chains": 0}),
    (OneNoiseForAll, "by themselves", {"num_chains": 0}),
    (OneUniformForAll, "by themselves", {"num_chains": 0}),
    (TakesNaN, "U is NaN is refused", {"num_chains": 0}),
    (WritesIntoState, "leaves the state it is given alone", {"num_chains": 0}),
    (GlobalNoise, "same generators give the same chains", {"num_chains": 0}),
    (LosesStep, "counts steps", {"num_chains": 0}),
]


@pytest.mark.parametrize(
    ("faulty", "says", "how"), FAULTS, ids=[f"{f.__name__}-{i}" for i, (f, _, _) in enumerate(FAULTS)]
)
def test_a_fault_is_caught(faulty: type[Toy], says: str, how: dict[str, object]) -> None:
    with pytest.raises(AssertionError, match=says) as error:
        check_kernel(faulty(), **how)  # type: ignore[arg-type]
    assert faulty.__name__ in str(error.value)
    assert " got " in str(error.value)
    assert ", expected " in str(error.value)


def test_a_chain_that_is_not_equivariant_is_caught() -> None:
    with pytest.raises(AssertionError, match="rotating the target"):
        check_kernel(NotTurned(0.3), num_chains=0)


def test_unadjusted_langevin_is_caught() -> None:
    with pytest.raises(AssertionError, match="exact draws stay exact"):
        check_kernel(Langevin(0.5, rule="euler"), reversible=False)


def test_a_sound_kernel_passes_with_every_check() -> None:
    check_kernel(Toy(), log_proposal=density, convention="langevin")


SOUND: dict[str, tuple[Callable[[], Sampler], str]] = {
    "MALA": (lambda: MALA(0.4), "langevin"),
    "MALA, adapted": (lambda: MALA(), "langevin"),
    "MALA, step sizes per chain": (lambda: MALA(per_chain=True), "langevin"),
    "MALA, diagonal": (lambda: MALA(preconditioner="diagonal"), "langevin"),
    "MALA, low rank": (lambda: MALA(preconditioner="low-rank", rank=2), "langevin"),
    "MALA, dense": (lambda: MALA(preconditioner="dense"), "langevin"),
    "HMC": (lambda: HMC(0.5, num_leapfrog=3), "leapfrog"),
    "HMC, adapted": (lambda: HMC(), "leapfrog"),
    "ChEES": (lambda: ChEES(), "leapfrog"),
}


@pytest.mark.parametrize("name", SOUND)
def test_the_samplers_pass(name: str) -> None:
    make, convention = SOUND[name]
    sampler = make()
    plain = isinstance(sampler, MALA) and not isinstance(sampler.preconditioner, str) and not sampler.per_chain
    check_kernel(
        sampler, log_proposal=density if plain else None, convention=convention, num_chains=10_000, num_warmup=100
    )


def test_an_unknown_convention_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 'langevin' or 'leapfrog'"):
        check_kernel(MALA(0.4), convention="euler", num_chains=0)


def test_samplers_of_the_check_are_frozen_dataclasses() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        MALA(0.4).step_size = 1.0  # type: ignore[misc]
