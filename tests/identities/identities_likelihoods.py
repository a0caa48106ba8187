"""Likelihoods: what the noise model, its simulator and the operator have to do with one another."""

import math
from typing import Any

import torch
from hypothesis import assume
from hypothesis import strategies as st
from identities_base import Check, Identity, planted
from torch import Tensor

from potentia import Quadratic, likelihoods
from potentia._potential import Sigma
from potentia._random import standard_normal
from potentia._tensor import inner, squared_norm
from potentia.likelihoods import NoiseModel, Operator
from potentia.testing import strategies
from potentia.testing._dense import dense, to_images
from potentia.testing._report import require, require_close, subject
from potentia.testing.examples import example_likelihoods

LIKELIHOODS = "Likelihoods"
SHAPE = (1, 3, 4)
NUM = 3000
ERRORS = 6.0  # standard errors
ADDITIVE = (likelihoods.Gaussian, likelihoods.Laplace, likelihoods.StudentT)

Case = tuple[Any, Tensor, int]  # a likelihood, an image, a seed


@st.composite
def models(draw: st.DrawFn, only: tuple[type, ...] = (NoiseModel,), *, linear: bool = False) -> Case:
    shape = draw(strategies.shapes(max_side=4, channels=(1, 2)))
    made = example_likelihoods(draw(st.integers(0, 2**16)), shape, torch.float64)
    fit = [e for e in made if isinstance(e.subject, only)]
    example = draw(st.sampled_from([e for e in fit if isinstance(e.subject.operator, Operator) or not linear]))
    return example.subject, example.images(draw(strategies.generators())), draw(st.integers(0, 2**16))


@st.composite
def toys(draw: st.DrawFn, kind: type[likelihoods.Gaussian], *, is_complex: bool = False) -> Case:
    """A Gaussian likelihood of inpainting, half of the pixels unseen."""
    g = draw(strategies.generators())
    y, x = (standard_normal(SHAPE, g, dtype=torch.complex128 if is_complex else torch.float64) for _ in range(2))
    mask = (torch.arange(12).reshape(3, 4) % 2).double()
    return kind(y, likelihoods.Mask(mask), 0.5), x, draw(st.integers(0, 2**16))


# What the operator does not see.


def unseen(case: Case) -> None:
    """L(x + n) = L(x), and its gradient has nothing along n, for every n with A n = 0."""
    likelihood, x, seed = case
    shape, where = tuple(x.shape), subject(likelihood)
    values, vectors = torch.linalg.eigh(dense(likelihood.operator.normal, shape, x.dtype))
    null = vectors[:, values < 1e-12 * values.max()]
    assume(null.shape[1] > 0)
    weights = standard_normal((null.shape[1],), torch.Generator().manual_seed(seed), dtype=torch.float64)
    n = to_images(null @ weights, shape, x.dtype)
    value, grad = likelihood.value_and_grad(x)
    identity = "an image that the operator does not see changes nothing"
    require_close(where, identity, likelihood(x + n), value, 1e-6 * (1 + value.abs()))
    room = 1e-6 * (1 + grad.abs().max() * n.abs().max())
    require_close(where, f"{identity} (gradient)", inner(grad, n), torch.zeros((), dtype=torch.float64), room)


UNSEEN = Check("unseen", unseen, models(linear=True) | toys(likelihoods.Gaussian), 30)


class Ridge(likelihoods.Gaussian):
    """A prior within the likelihood, gradient and all."""

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return super().forward(x) + 0.01 * squared_norm(x)

    def value_and_grad(self, x: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        value, grad = super().value_and_grad(x)
        return value + 0.01 * squared_norm(x), grad + 0.02 * x

    def grad(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return super().grad(x) + 0.02 * x


# Simulated measurements have the density that L states.


def simulation(case: Case) -> None:
    """E exp(L(x; y) - L(z; y)) = 1 for y simulated from x, whatever z, and the same generator gives the same y."""
    likelihood, x, seed = case
    where, batch = subject(likelihood), x.expand(NUM, *x.shape)
    state = torch.get_rng_state()
    y, again = (likelihood.simulate(batch, torch.Generator().manual_seed(seed)) for _ in range(2))
    require(torch.equal(y, again), where, "the same generator simulates the same", "other measurements", "the same")
    alone = torch.equal(state, torch.get_rng_state())
    require(alone, where, "simulates from its generator alone", "the global one used", "it left alone")
    with torch.no_grad():
        direction = standard_normal(x.shape, torch.Generator().manual_seed(seed + 1), dtype=x.dtype)
        here = likelihood.misfit(batch, y)
        slopes = (likelihood.misfit(batch + 1e-4 * direction, y) - here) / 1e-4
        # As far as the log ratio has a standard deviation of about a half.
        ratios = (here - likelihood.misfit(batch + 0.5 / float(slopes.std()) * direction, y)).exp()
    error = ERRORS * float(ratios.std()) / math.sqrt(NUM)
    identity = "the mean likelihood ratio of simulated measurements is 1"
    require(abs(float(ratios.mean()) - 1) <= error, where, identity, f"{float(ratios.mean()):.4f}", f"1 +- {error:.2g}")


SIMULATION = Check("simulation", simulation, models() | toys(likelihoods.Gaussian, is_complex=True), 40)


class Quiet(likelihoods.Gaussian):
    """Half the variance, as torch's complex normal has it a part."""

    def draw(self, z: Tensor, generator: torch.Generator) -> Tensor:
        return z + (super().draw(z, generator) - z) / 2**0.5


class Biased(likelihoods.Gaussian):
    def draw(self, z: Tensor, generator: torch.Generator) -> Tensor:
        return super().draw(z, generator) + 0.1


class GlobalNoise(likelihoods.Gaussian):
    def draw(self, z: Tensor, generator: torch.Generator) -> Tensor:
        return z + 0.5 * torch.randn(z.shape, dtype=z.dtype)


# Where the noise does not depend on the signal.


def translation(case: Case) -> None:
    """L(x + d; y + A d) = L(x; y)."""
    likelihood, x, seed = case
    g = torch.Generator().manual_seed(seed)
    d = standard_normal(x.shape, g, dtype=x.dtype)
    with torch.no_grad():
        y = likelihood.simulate(x, g)
        moved = likelihood.misfit(x + d, y + likelihood.operator(d))
        still = likelihood.misfit(x, y)
    identity = "moving the image and the measurements alike changes nothing"
    require_close(subject(likelihood), identity, moved, still, 1e-9 * (1 + still.abs() + squared_norm(d)))


TRANSLATION = Check("translation", translation, models(ADDITIVE, linear=True) | toys(likelihoods.Gaussian), 20)


class Relative(likelihoods.Gaussian):
    """Noise whose variance grows with the measurement."""

    def entries(self, z: Tensor, y: Tensor) -> Tensor:
        return super().entries(z, y) / (1 + 0.1 * y.abs().square())


# The residual, and the form about an image.


def residuals(case: Case) -> None:
    """A(x) - y where something is measured, zero elsewhere; of magnitudes, A(x) stands for its own."""
    likelihood, x, _ = case
    with torch.no_grad():
        got, sampled, predicted = likelihood.residual(x), likelihood.operator.sampled, likelihood.operator(x)
        want = (predicted.abs() if isinstance(likelihood, likelihoods.Rician) else predicted) - likelihood.y
    want = want if sampled is None else torch.where(sampled, want, torch.zeros_like(want))
    room = 1e-12 * (1 + float(want.abs().max()))
    require_close(subject(likelihood), "the residual is A(x) - y where y is measured", got, want, room)


RESIDUAL = Check("residuals", residuals, models() | toys(likelihoods.Gaussian), 20)


class Backwards(likelihoods.Gaussian):
    def residual(self, x: Tensor) -> Tensor:
        return -super().residual(x)


def gauss_newton(case: Case) -> None:
    """The form about x has L's value and gradient at x."""
    likelihood, x, _ = case
    form, (value, grad) = likelihood.gauss_newton(x), likelihood.value_and_grad(x)
    where, size = subject(likelihood), float(squared_norm(x)) * float(grad.abs().max() + 1)
    room = 1e-9 * (1 + value.abs() + size + abs(float(form.constant)))
    require_close(where, "the form about x has L's value there", form.value(x).double(), value.double(), room)
    require_close(where, "the form about x has L's gradient there", form.grad(x), grad, 1e-9 * (1 + size))


TANGENT = Check("gauss_newton", gauss_newton, models() | toys(likelihoods.Gaussian), 20)


class Elsewhere(likelihoods.Poisson):
    """A form about zero, wherever it is asked for."""

    def gauss_newton(self, x: Tensor) -> Quadratic:
        return super().gauss_newton(torch.zeros_like(x))


def counts() -> st.SearchStrategy[Case]:
    y = torch.full(SHAPE, 60.0, dtype=torch.float64)
    images = strategies.normal_images(SHAPE, torch.float64)
    return images.map(lambda x: (Elsewhere(y, None, 3.0, 60.0), x, 0))


IDENTITIES = [
    Identity(
        LIKELIHOODS,
        "data alone",
        "L(x + n) = L(x) and ⟨∇L(x), n⟩ = 0 wherever A n = 0: L knows x through A x alone",
        UNSEEN,
        (planted("a prior within the likelihood", UNSEEN, toys(Ridge), "does not see"),),
    ),
    Identity(
        LIKELIHOODS,
        "simulation",
        "E exp(L(x; y) − L(z; y)) = 1 for y = `simulate(x)` and every z: y has the density that L states",
        SIMULATION,
        (
            planted("simulated noise of half the variance", SIMULATION, toys(Quiet), "likelihood ratio"),
            planted("complex noise of half the variance", SIMULATION, toys(Quiet, is_complex=True), "likelihood ratio"),
            planted("simulated noise with a mean", SIMULATION, toys(Biased), "likelihood ratio"),
            planted("simulated from the global generator", SIMULATION, toys(GlobalNoise), "same generator"),
        ),
    ),
    Identity(
        LIKELIHOODS,
        "translation",
        "L(x + d; y + A d) = L(x; y), of noise that does not depend on the signal and a linear A",
        TRANSLATION,
        (planted("variance that follows the measurement", TRANSLATION, toys(Relative), "moving the image"),),
    ),
    Identity(
        LIKELIHOODS,
        "residual",
        "`residual(x)` = A(x) − y where y is measured, else 0; of Rician noise, with the magnitude of A(x)",
        RESIDUAL,
        (planted("y − A(x)", RESIDUAL, toys(Backwards), "residual is"),),
    ),
    Identity(
        LIKELIHOODS,
        "Gauss-Newton form",
        "`gauss_newton(x)` has the value L(x) and the gradient ∇L(x) at x",
        TANGENT,
        (planted("form about another image", TANGENT, counts(), "form about x has"),),
    ),
]
TABLES: list[Any] = []
