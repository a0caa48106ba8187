"""Energies, likelihoods, sums and quadratic forms: what every potential satisfies."""

from typing import Any

import test_checks_catch_faults as potential_faults
import test_multiscale_checks_catch_faults as scale_faults
import test_quadratic_checks_catch_faults as form_faults
import test_sum_checks_catch_faults as sum_faults
import torch
from fault_toys import SHAPE, Smooth
from hypothesis import strategies as st
from identities_base import Check, Identity, from_table, planted
from torch import Tensor

from potentia import Potential, energies, likelihoods, testing
from potentia._potential import Pullback, Sigma
from potentia._random import standard_normal
from potentia._tensor import inner
from potentia.testing import strategies
from potentia.testing._differences import derivative
from potentia.testing._report import require_close, subject
from potentia.testing.examples import Example, example_energies

ENERGIES = "Energies"
POTENTIALS = "Energies and likelihoods"
SUMS = "Sums and multiples"
FORMS = "Quadratic forms"
SMALL = strategies.shapes(max_side=4, channels=(1, 2))
SIGMA = 0.3

# Cases: an instance, images, a scale.

Case = tuple[Any, Tensor, Sigma]


@st.composite
def potentials(draw: st.DrawFn) -> Case:
    example: Example[Any] = draw(strategies.energies(SMALL) | strategies.likelihoods(SMALL))
    scales = example.subject.scales
    sigma = None if scales is None else draw(st.none() | strategies.sigmas((max(scales[0], 0.05), min(scales[1], 5.0))))
    return example.subject, example.images(draw(strategies.generators()), 2), sigma


@st.composite
def multiscale(draw: st.DrawFn) -> Case:
    made = example_energies(draw(st.integers(0, 2**16)), draw(SMALL), torch.float64)
    example = draw(st.sampled_from([e for e in made if e.subject.scales is not None]))
    return example.subject, example.images(draw(strategies.generators()), 2), draw(st.floats(0.1, 2.0))


def toys(make: Any) -> st.SearchStrategy[Case]:
    return st.builds(
        lambda x, s: (make(), x, s), strategies.normal_images(SHAPE, torch.float64, (3,)), st.floats(0.2, 2.0)
    )


CONTRACT = Check("check_energy", lambda case: testing.check_energy(*case), potentials(), 25)
SCALES = Check("check_multiscale", lambda case: testing.check_multiscale(*case), multiscale(), 12)


# The smoothed Gaussian, known in closed form.


@st.composite
def gaussians(draw: st.DrawFn) -> Any:
    shape, g = draw(SMALL), draw(strategies.generators())
    dtype = draw(st.sampled_from([torch.float64, torch.complex128]))
    mean = standard_normal(shape, g, dtype=dtype)
    std = 0.5 + torch.rand(shape, generator=g, dtype=torch.float64)
    x = standard_normal((3, *shape), g, dtype=dtype)
    return energies.Gaussian(mean, std), mean, std.square(), x, draw(st.none() | st.floats(0.05, 5.0))


def gaussian_oracle(case: Any) -> None:
    energy, mean, covariance, x, sigma = case
    testing.check_gaussian_oracle(energy, mean, covariance, x, sigma, normalised=True)


ORACLE = Check("check_gaussian_oracle", gaussian_oracle, gaussians(), 15)


# The heat equation: what "smoothed by N(0, sigma^2 I)" says of U, without any closed form.


def heat_equation(case: Case) -> None:
    """dU/d(s^2) = (lap U - |grad U|^2) / 2 + c(s): p_s = exp(-U_s) spreads as heat does, c the change of a constant."""
    energy, x, s = case
    assert isinstance(s, float)

    def along(t: float) -> Tensor:
        value: Tensor = energy(x, (s**2 + t) ** 0.5)
        return value.detach().double()

    z = x.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(energy(z, s).sum(), z, create_graph=True)
    flat = grad.flatten(1)
    rows = [torch.autograd.grad(g.sum(), z, retain_graph=True)[0].flatten(1)[:, k] for k, g in enumerate(flat.T)]
    laplacian, slope = torch.stack(rows).sum(0), flat.detach().square().sum(1)
    change, error = derivative(along, 0.2 * s**2)
    rest = change - 0.5 * (laplacian - slope)
    bound = 1e-7 * (change.abs() + laplacian.abs() + slope).sum() + 10 * error.sum()
    identity = "dU/d(s^2) is half of (lap U - |grad U|^2), up to a constant per scale"
    require_close(subject(energy), identity, rest[1:], rest[:1].expand(len(rest) - 1), bound)


@st.composite
def exact(draw: st.DrawFn) -> Case:
    """Energies that are the smoothed prior exactly: real images, three scales and more."""
    shape = draw(strategies.shapes(max_side=3, channels=(1, 1)))
    made = example_energies(draw(st.integers(0, 2**16)), shape, torch.float64)
    kinds = (energies.Gaussian, energies.GaussianField, energies.GaussianMixture)
    example = draw(st.sampled_from([e for e in made if isinstance(e.subject, kinds) and not e.dtype.is_complex]))
    return example.subject, example.images(draw(strategies.generators()), 3), draw(st.floats(0.1, 3.0))


HEAT = Check("heat_equation", heat_equation, exact() | toys(Smooth), 20)


class HalfTheScale(Smooth):
    """Smoothed by N(0, sigma^2 / 2): a denoiser and an energy that agree with each other, at the wrong scale."""

    def spread(self, x: Tensor, sigma: Sigma) -> float | Tensor:
        return self.variance + self.sigma_of(x, sigma) ** 2 / 2


# The denoiser's Jacobian.


def denoiser_jacobian(case: Case) -> None:
    """``denoise_with_vjp`` gives D and J^T v: <J^T v, u> is the derivative of <v, D> along u."""
    energy, x, sigma = case
    g = torch.Generator().manual_seed(0)
    u, v = (standard_normal(x.shape, g, dtype=x.dtype) for _ in range(2))
    clean, pull = energy.denoise_with_vjp(x, sigma)
    size = x.abs().max() + clean.abs().max()
    require_close(subject(energy), "denoise_with_vjp gives D", clean, energy.denoise(x, sigma), 1e-9 * size)
    want, error = derivative(lambda t: inner(v, energy.denoise(x + t * u, sigma)).double(), 0.05)
    got = inner(pull(v), u).double()
    bound = 1e-6 * inner(pull(v), pull(v)).sqrt() * inner(u, u).sqrt() + 10 * error
    require_close(subject(energy), "<J^T v, u> is the derivative of <v, D> along u", got, want, bound)


JACOBIAN = Check("denoiser_jacobian", denoiser_jacobian, multiscale() | toys(Smooth), 15)


class ForgetsScale(Smooth):
    """The pullback of I - H in place of I - sigma^2 H."""

    def denoise_with_vjp(self, x: Tensor, sigma: Sigma = None) -> tuple[Tensor, Pullback]:
        return self.denoise(x, sigma), lambda v: v - v / self.spread(x, sigma)


# Sums.


@st.composite
def terms(draw: st.DrawFn) -> Any:
    """Three potentials of one shape, likelihoods and multiples among them, and images."""
    g = draw(strategies.generators())
    y, x = (standard_normal(s, g, dtype=torch.float64) for s in (SHAPE, (2, *SHAPE)))
    weight = draw(st.floats(0.1, 10.0))
    field = energies.GaussianField.power_law(SHAPE)
    pool: list[Potential] = [
        energies.Gaussian(y, 0.7),
        field,
        weight * energies.TotalVariation(0.3),
        energies.StudentT(0.5),
        likelihoods.Gaussian(y, None, 0.4),
        field + likelihoods.Gaussian(y, likelihoods.GaussianBlur(0.8, SHAPE), weight),
    ]
    chosen = draw(st.lists(st.sampled_from(pool), min_size=3, max_size=3))
    return *chosen, x, draw(st.floats(0.1, 5.0))


ALGEBRA = Check("check_sum", lambda case: testing.check_sum(*case), terms(), 15)


# Quadratic forms.


@st.composite
def forms(draw: st.DrawFn) -> Any:
    example: Example[Any] = draw(strategies.likelihoods(SMALL) | strategies.energies(SMALL))
    return example.subject, example.shape


def quadratic_form(case: Any) -> None:
    potential, shape = case
    if potential.has_value and potential.quadratic(SIGMA) is not None:
        testing.check_quadratic(potential, shape, SIGMA, num_draws=500)


FORM = Check("check_quadratic", quadratic_form, forms(), 25)


def pot(of: str, name: str, statement: str, *faults: str) -> Identity:
    return Identity(of, name, statement, CONTRACT, from_table(potential_faults.FAULTS, *faults))


def add(name: str, statement: str, *faults: str) -> Identity:
    return Identity(SUMS, name, statement, ALGEBRA, from_table(sum_faults.FAULTS, *faults))


def form(name: str, statement: str, *faults: str) -> Identity:
    return Identity(FORMS, name, statement, FORM, from_table(form_faults.FAULTS, *faults))


def scale(name: str, statement: str, *faults: str) -> Identity:
    return Identity(ENERGIES, name, statement, SCALES, from_table(scale_faults.FAULTS, *faults))


IDENTITIES = [
    pot(
        POTENTIALS,
        "gradient",
        "Re ⟨∇U(x), v⟩ = d/dt U(x + t v) at t = 0, for every v; for complex x, ∇U = ∂U/∂Re x + i ∂U/∂Im x",
        "gradient off by a factor",
        "gradient conjugated",
        "gradient not autograd's",
        "gradient not finite",
    ),
    pot(
        POTENTIALS,
        "value with gradient",
        "`value_and_grad(x)` = (U(x), ∇U(x))",
        "value_and_grad, value",
        "value_and_grad, gradient",
    ),
    pot(
        POTENTIALS,
        "batch",
        "U(x₁, …, xₙ) = (U(x₁), …, U(xₙ)), likewise ∇U, for a batch of any shape: entries do not influence one another",
        "batch counted in values",
        "batch normalised",
        "batch centred",
        "two batch dimensions",
    ),
    pot(
        POTENTIALS,
        "purity",
        "a call leaves x, its graph, the buffers, the mode and the global generators as they were, and repeats itself",
        "x mutated by grad",
        "x mutated by forward",
        "x made to require gradients",
        "x given a gradient",
        "buffer written",
        "hidden state",
        "training mode switched",
        "torch's global generator",
        "NumPy's global generator",
        "Python's global generator",
        "graph left on grad",
        "graph left on value",
    ),
    pot(
        POTENTIALS,
        "shapes and fields",
        "U(x) is real, one number a batch entry; ∇U(x) has the shape, dtype and device of x",
        "gradient always double",
        "complex value",
        "value of another shape",
    ),
    pot(
        POTENTIALS,
        "single precision",
        "U and ∇U in single precision are those in double precision up to its rounding",
        "gradient rounded to 1/64 in single",
    ),
    pot(
        POTENTIALS,
        "scale argument",
        "one σ per entry is that σ for each entry; none is the finest scale; terms without scales ignore it",
        "sigma used without scales",
        "sigma outside taken",
        "one sigma for all entries",
        "None not the finest scale",
    ),
    pot(
        POTENTIALS,
        "refusals",
        "images of another shape or field raise ValueError; values that there are none of raise TypeError",
        "another shape taken",
        "another field taken",
        "score-only with a value",
    ),
    scale(
        "Tweedie",
        "D(x, σ) = x − σ² ∇U_σ(x)",
        "denoiser with sigma for sigma^2",
        "denoiser with one sigma for all",
    ),
    scale(
        "conservative field",
        "⟨u, ∇²U_σ(x) v⟩ = ⟨v, ∇²U_σ(x) u⟩",
        "not conservative",
        "score not conservative",
    ),
    scale(
        "continuity over scales",
        "∇U_σ is continuous in σ, and tends to that at the finest scale",
        "jump between scales",
        "jump at the finest scale",
    ),
    Identity(
        ENERGIES,
        "smoothing, in closed form",
        "of N(m, C): U_σ(x) = ½ ⟨x − m, (C + σ² I)⁻¹ (x − m)⟩ + ½ log det 2π(C + σ² I)",
        ORACLE,
        from_table(scale_faults.FAULTS, "stds add up", "oracle, mean", "oracle, denoiser", "oracle, value"),
    ),
    Identity(
        ENERGIES,
        "smoothing, as heat",
        "∂U_σ/∂σ² = ½ (ΔU_σ − ‖∇U_σ‖²) + c(σ), of priors that are smoothed exactly",
        HEAT,
        (
            planted("stds add up in place of variances", HEAT, toys(scale_faults.AddsStds), "half of"),
            planted("smoothed by half of the variance", HEAT, toys(HalfTheScale), "half of"),
        ),
    ),
    Identity(
        ENERGIES,
        "denoiser's Jacobian",
        "`denoise_with_vjp(x, σ)` = (D, v ↦ Jᵀv): ⟨Jᵀv, u⟩ = d/dt ⟨v, D(x + t u, σ)⟩ at t = 0",
        JACOBIAN,
        (planted("Jacobian without the scale", JACOBIAN, toys(ForgetsScale), "derivative of <v, D>"),),
    ),
    add(
        "addition",
        "U + V = V + U, (U + V) + W = U + (V + W) = `sum([U, V, W])`, U − U = 0, in values and gradients",
        "sum off by a factor",
        "difference is a sum",
        "no right addition",
    ),
    add("scaling", "a (U + V) = a U + a V, a (b U) = (a b) U, U / a = (1 / a) U", "weight squared"),
    add(
        "names",
        "names within a sum are unique, and do not depend on brackets, on `sum()` or on a factor",
        "names depend on brackets",
    ),
    add("parts", "U = `U.prior` + `U.likelihood`, each with its own terms", "prior takes all"),
    add("sum of forms", "the quadratic form of a sum is the sum of the forms", "quadratic of a sum"),
    form(
        "value and gradient",
        "U(x) = ½ ⟨x, Λx⟩ − ⟨b, x⟩ + c and ∇U(x) = Λx − b",
        "value without the half",
        "gradient without b",
        "form of another value",
        "form of another gradient",
        "no form",
    ),
    form("precision", "Λ is linear, Λ = Λᴴ, ⟨x, Λx⟩ ≥ 0", "not self-adjoint", "not linear", "not positive"),
    form(
        "solve",
        "(Λ + s I) `solve(r, s)` = r, with one s for all or one an image; (Λ + s I) `mode(s)` = b",
        "solve ignores the shift",
        "solve takes one shift for all",
        "mode",
    ),
    form(
        "draws",
        "`draw` has mean 0 and covariance (Λ + s I)⁻¹, in the real and in the imaginary part alike; noise has Λ",
        "draws of half the variance",
        "torch's complex normal",
        "parts correlated",
        "draws without the shift",
        "noise of another covariance",
        "noise of half the variance",
    ),
    form(
        "draws, chain by chain",
        "a chain's draw comes from its own generator, whatever stands beside it",
        "draws from the global generator",
        "all chains from one generator",
    ),
    form("algebra of forms", "forms add and scale as their values do", "multiple of a form"),
]
TABLES = [potential_faults.FAULTS, scale_faults.FAULTS, sum_faults.FAULTS, form_faults.FAULTS]
