"""Whatever ``check_energy`` checks is broken on purpose once, and caught by its name; sound twins pass."""

import random
from typing import ClassVar

import numpy as np
import pytest
import torch
from fault_toys import SHAPE, Bowl, Check, Make, Score, Smooth, caught, rand
from torch import Tensor

from potentia import Potential, testing
from potentia._potential import Sigma
from potentia._tensor import squared_norm, sum_event

SIZE = 12


class ComplexBowl(Bowl):
    field = True


class GradientFactor(Bowl):
    def grad(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return 1.001 * super().grad(x, sigma)


class GradientConjugate(ComplexBowl):
    def grad(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return super().grad(x, sigma).conj().resolve_conj()


class OtherValue(Bowl):
    def value_and_grad(self, x: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        value, grad = super().value_and_grad(x, sigma)
        return value + 1e-3, grad


class OtherGradient(Bowl):
    def value_and_grad(self, x: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        value, grad = super().value_and_grad(x, sigma)
        return value, 1.001 * grad


class HiddenFromAutograd(Bowl):
    """Right in value, but a part of the graph is cut, so that whoever differentiates it goes wrong."""

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return super().forward(x) + sum_event(x.abs().square().detach())

    def grad(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return super().grad(x) + 2 * x.detach()

    def value_and_grad(self, x: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        return self.forward(x).detach(), self.grad(x)


class BatchValue(Bowl):
    """A constant that depends on who else is in the batch, as statistics of the batch would."""

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return super().forward(x) + x.numel() / SIZE


class BatchNorm(Score):
    def denoise(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return super().denoise(x, sigma) / (1 + x.detach().square().mean()).sqrt()


class BatchCentre(Bowl):
    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        centred = x - 0.1 * x.reshape(-1, *SHAPE).mean(0)
        return super().forward(centred)

    def grad(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return self.value_and_grad(x)[1]


class TwoBatchDimensions(Bowl):
    """Takes the second batch dimension for one to average over."""

    def grad(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        grad = super().grad(x)
        return grad.mean(1, keepdim=True).expand_as(grad).clone() if x.dim() == 5 else 1.5 * grad

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return 1.5 * super().forward(x)


class NaNGradient(Bowl):
    def grad(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return super().grad(x) / 0.0 * 0.0


class Mutating(Bowl):
    def grad(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        grad = super().grad(x)
        x.data.mul_(0.5)
        return grad


class MutatingForward(Bowl):
    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        value = super().forward(x)
        x.data.add_(1.0)
        return value


class Attaching(Bowl):
    def grad(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        if x.is_leaf:
            x.requires_grad_(True)
        return super().grad(x)


class Accumulating(Bowl):
    """Differentiates by backward(), which leaves gradients behind."""

    def grad(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        grad = super().grad(x)
        if x.requires_grad and x.is_leaf:
            self.forward(x).sum().backward()
        return grad


class Counting(Bowl):
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def grad(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        self.calls += 1
        return super().grad(x)


class Forgetting(Bowl):
    """Another answer every time, from a state that is no buffer."""

    turns: ClassVar[list[int]] = [0]

    def grad(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        self.turns[0] += 1
        return super().grad(x) * (1 + 1e-13 * self.turns[0])


class Switching(Bowl):
    def grad(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        self.eval()
        return super().grad(x)


class TorchRandom(Bowl):
    def grad(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        torch.rand(())
        return super().grad(x)


class NumpyRandom(Bowl):
    def grad(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        np.random.rand()
        return super().grad(x)


class PythonRandom(Bowl):
    def grad(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        random.random()
        return super().grad(x)


class GraphOnGradient(Bowl):
    def grad(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        self.check(x)
        return (self.weight * x / (1 + x.abs().square()).sqrt()).to(x.dtype)


class GraphOnValue(Bowl):
    def value_and_grad(self, x: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        return self.forward(x), self.grad(x)


class WideGradient(Bowl):
    def grad(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return super().grad(x).double()


class HalfGradient(Bowl):
    """Right in double, but of half precision and less in single."""

    def grad(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        grad = super().grad(x)
        return (64 * grad).round() / 64 if x.dtype == torch.float32 else grad


class ComplexValue(ComplexBowl):
    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return super().forward(x) + 0j

    def value_and_grad(self, x: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        return self.forward(x).detach(), self.grad(x)


class ColumnOfValues(Bowl):
    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return super().forward(x)[..., None]


class UsesSigma(Bowl):
    def grad(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return super().grad(x) * (1.0 if sigma is None else 2.0)

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return super().forward(x) * (1.0 if sigma is None else 2.0)


class TakesAnySigma(Smooth):
    def sigma_of(self, x: Tensor, sigma: Sigma) -> float | Tensor:
        if isinstance(sigma, Tensor) and sigma.dim() > 0:
            return super().sigma_of(x, sigma.clamp(*self.scales))
        return super().sigma_of(x, None if sigma is None else min(max(float(sigma), 0.1), 5.0))


class OneSigmaForAll(Smooth):
    def sigma_of(self, x: Tensor, sigma: Sigma) -> float | Tensor:
        super().sigma_of(x, sigma)
        return super().sigma_of(x, float(sigma.max()) if isinstance(sigma, Tensor) else sigma)


class OtherFinest(Smooth):
    def sigma_of(self, x: Tensor, sigma: Sigma) -> float | Tensor:
        return 0.2 if sigma is None else super().sigma_of(x, sigma)


class TakesAnyShape(Bowl):
    def check(self, x: Tensor) -> None:
        pass

    def _crop(self, x: Tensor) -> Tensor:
        return x[..., :4] if x.dim() > 2 else x.expand(1, *x.shape)[..., :4]

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return super().forward(self._crop(x))

    def grad(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return super().grad(self._crop(x))


class TakesAnyField(Bowl):
    def check(self, x: Tensor) -> None:
        if x.dim() < 3 or tuple(x.shape[-3:]) != SHAPE:
            super().check(x)


class ScoreWithValue(Score):
    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        self.check(x)
        return squared_norm(x)


def energy(thing: Potential) -> None:
    x = rand(2, *SHAPE, seed=5, dtype=torch.complex128 if thing.is_complex else torch.float64)
    testing.check_energy(thing, x)


def scaled_energy(thing: Potential) -> None:
    testing.check_energy(thing, rand(2, *SHAPE, seed=5), 0.4)


FAULTS = [
    ("gradient off by a factor", energy, GradientFactor, Bowl, "grad is the derivative of forward"),
    ("gradient conjugated", energy, GradientConjugate, ComplexBowl, "grad is the derivative of forward"),
    ("gradient not autograd's", energy, HiddenFromAutograd, Bowl, "autograd"),
    ("value_and_grad, value", energy, OtherValue, Bowl, "value_and_grad"),
    ("value_and_grad, gradient", energy, OtherGradient, Bowl, "value_and_grad"),
    ("batch counted in values", energy, BatchValue, Bowl, "batch"),
    ("batch normalised", scaled_energy, BatchNorm, Score, "batch"),
    ("batch centred", energy, BatchCentre, Bowl, "batch|derivative"),
    ("two batch dimensions", energy, TwoBatchDimensions, Bowl, "batch of two dimensions"),
    ("gradient not finite", energy, NaNGradient, Bowl, "finite"),
    ("x mutated by grad", energy, Mutating, Bowl, "input"),
    ("x mutated by forward", energy, MutatingForward, Bowl, "input"),
    ("x made to require gradients", energy, Attaching, Bowl, "requires_grad"),
    ("x given a gradient", energy, Accumulating, Bowl, r"\.grad"),
    ("buffer written", energy, Counting, Bowl, "buffers"),
    ("hidden state", energy, Forgetting, Bowl, "same"),
    ("training mode switched", energy, Switching, Bowl, "training"),
    ("torch's global generator", energy, TorchRandom, Bowl, "global generator of torch"),
    ("NumPy's global generator", energy, NumpyRandom, Bowl, "global generator of numpy"),
    ("Python's global generator", energy, PythonRandom, Bowl, "global generator of random"),
    ("graph left on grad", energy, GraphOnGradient, Bowl, "detached|graph"),
    ("graph left on value", energy, GraphOnValue, Bowl, "detached|graph"),
    ("gradient always double", energy, WideGradient, Bowl, "dtype"),
    ("gradient rounded to 1/64 in single", energy, HalfGradient, Bowl, "single"),
    ("complex value", energy, ComplexValue, ComplexBowl, "real"),
    ("value of another shape", energy, ColumnOfValues, Bowl, "one value per batch entry"),
    ("sigma used without scales", energy, UsesSigma, Bowl, "sigma"),
    ("sigma outside taken", scaled_energy, TakesAnySigma, Smooth, "refuses sigma"),
    ("one sigma for all entries", scaled_energy, OneSigmaForAll, Smooth, "one scale per image"),
    ("None not the finest scale", scaled_energy, OtherFinest, Smooth, "finest scale"),
    ("another shape taken", energy, TakesAnyShape, Bowl, "refuses images"),
    ("another field taken", energy, TakesAnyField, Bowl, "other field"),
    ("score-only with a value", scaled_energy, ScoreWithValue, Score, "score-only"),
]


@pytest.mark.parametrize(("check", "faulty", "says"), [f[1:3] + f[4:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_fault_in_potentials_is_caught_by_its_name(check: Check, faulty: Make, says: str) -> None:
    caught(check, faulty(), says)


@pytest.mark.parametrize(("check", "sound"), list(dict.fromkeys((f[1], f[3]) for f in FAULTS)))
def test_sound_potentials_pass(check: Check, sound: Make) -> None:
    check(sound())
