"""Noise models: what they refuse, masks, unknown scales, and noise that channels share."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from potentia import likelihoods
from potentia._quadratic import Diagonal
from potentia._random import standard_normal
from potentia.likelihoods import Gamma, Gaussian, Laplace, Poisson, PoissonGaussian, Quantised, Rician, StudentT
from potentia.testing._examples_noise import ToneCurve

MOST_SE = 5.0
ONES = torch.ones(1, 2, 2)
COMPLEX = ONES + 0j


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Poisson(-ONES), "poisson: y has 4 entries that are no counts, such as -1"),
        (lambda: Poisson(0.5 * ONES), "such as 0.5; expected whole numbers"),
        (lambda: Poisson(math.nan * ONES), "y has 4 NaN"),
        (lambda: Poisson(ONES, None, 0.0), "gain must be positive, got a least value of 0"),
        (lambda: Poisson(ONES, None, 1.0, -1.0), "background must be not negative, got a least value of -1"),
        (lambda: Poisson(COMPLEX), "poisson: y has dtype torch.complex64, expected real measurements"),
        (lambda: Poisson(ONES, likelihoods.Fourier()), "poisson: y of shape .* does not fit"),
        (lambda: PoissonGaussian(ONES), "noise_std is missing, expected a positive number"),
        (lambda: PoissonGaussian(ONES, None, 1.0, torch.ones(5)), r"gain has shape \(5,\), expected a number or"),
        (lambda: Rician(-ONES, None, 1.0), "y has a least value of -1, expected magnitudes"),
        (lambda: Rician(ONES, None, -1.0), "noise_std must be positive"),
        (lambda: Rician(COMPLEX, None, 1.0), "expected real measurements"),
        (lambda: StudentT(ONES), "student_t: scale is missing"),
        (lambda: StudentT(ONES, None, 1.0, 0.0), "dof must be positive"),
        (lambda: StudentT(ONES, None, 1.0).with_scale(torch.ones(3)), r"scale has shape \(3,\)"),
        (lambda: Laplace(ONES, None, -2.0), "laplace: scale must be positive, got a least value of -2"),
        (lambda: Gamma(0 * ONES), "gamma: y has 4 entries that are not positive, least 0"),
        (lambda: Gamma(ONES, None, 1j * ONES), "looks must be positive"),
        (lambda: Quantised(ONES, None, 1.0), "step is missing"),
        (lambda: Quantised(0.3 * ONES, None, 1.0, 0.5), r"such as 0.3 that are not on the lattice 0 \+ k \* 0.5"),
        (lambda: Quantised(2 * ONES, None, 1.0, 0.5, high=1.0), "not on the lattice 1 .* from -inf to 1"),
        (lambda: Quantised(ONES, None, 1.0, 1.0, low=1.0, high=1.0), "low is 1 and high 1, expected a step between"),
        (lambda: Gaussian(ONES, None, 1.0, covariance=torch.eye(1)), "got noise_std and covariance"),
        (lambda: Gaussian(ONES, None, covariance=torch.eye(2)), r"covariance has shape \(2, 2\), expected \(1, 1\)"),
        (lambda: Gaussian(ONES, None, covariance=-torch.eye(1)), "not positive definite"),
        (lambda: Gaussian(ONES, None, covariance=torch.eye(1) + 0j), "expected a real one for real measurements"),
        (lambda: Gaussian(torch.ones(2, 2, 2), None, covariance=torch.tensor([[1.0, 0.5], [0.1, 1.0]])), "Hermitian"),
        (lambda: Gaussian(ONES, ToneCurve(), 1.0).structure, "is not linear; expected gauss_newton"),
        (lambda: Poisson(ONES).gauss_newton(ONES[None]), r"x has shape \(1, 1, 2, 2\), expected one image"),
        (lambda: Poisson(ONES).gauss_newton(COMPLEX), "expected a real one"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_one_sentence(build: Any, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words) as caught:
        build()
    assert "\n" not in str(caught.value)


MASK = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
MASKED = {
    "poisson": lambda y, a: Poisson(y.round(), a, 2.0, 0.5),
    "poisson_gaussian": lambda y, a: PoissonGaussian(y, a, 1.5),
    "rician": lambda y, a: Rician(y, a, 0.5),
    "student_t": lambda y, a: StudentT(y, a, 0.5),
    "laplace": lambda y, a: Laplace(y, a, 0.5),
    "gamma": lambda y, a: Gamma(y, a, 2.0),
    "quantised": lambda y, a: Quantised(y.round(), a, 0.5, 1.0, low=1.0),
}


@pytest.mark.parametrize("name", MASKED)
def test_what_was_not_measured_does_not_count(name: str) -> None:
    make, operator = MASKED[name], likelihoods.Mask(MASK)
    y = torch.arange(1.0, 5.0).reshape(1, 2, 2)
    odd = y.clone()
    odd[0, 0, 1] = -0.37  # where a count, a magnitude, a value on the lattice would be refused
    likelihood = make(odd, operator)
    x = torch.rand(3, 1, 2, 2, generator=torch.Generator().manual_seed(0)) + 1
    kept = [make(y[..., i : i + 1, j : j + 1], None) for i, j in ((0, 0), (1, 0), (1, 1))]
    pixels = [x[..., i : i + 1, j : j + 1] for i, j in ((0, 0), (1, 0), (1, 1))]
    total = sum(one(pixel) for one, pixel in zip(kept, pixels, strict=True))
    assert torch.allclose(likelihood(x), torch.as_tensor(total), rtol=1e-6)
    assert torch.allclose(likelihood.log_normaliser(), sum(one.log_normaliser() for one in kept), rtol=1e-6)
    assert torch.equal(likelihood.grad(x)[..., 0, 1], torch.zeros(3, 1))
    assert torch.equal(likelihood.residual(x)[..., 0, 1], torch.zeros(3, 1))
    drawn = likelihood.simulate(x, torch.Generator().manual_seed(0))
    assert torch.equal(drawn[..., 0, 1], torch.full((3, 1), likelihood.blank))
    at = x.clone().requires_grad_(True)
    (through,) = torch.autograd.grad(likelihood(at).sum(), at)
    assert torch.allclose(through, likelihood.grad(x))


def test_misfit_is_that_of_other_data() -> None:
    x = torch.rand(3, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    likelihood = Poisson(2 * ONES.double(), None, 3.0, 1.0)
    other = likelihood.simulate(x, torch.Generator().manual_seed(1))
    each = torch.stack([Poisson(y, None, 3.0, 1.0)(image) for y, image in zip(other, x, strict=True)])
    assert torch.allclose(likelihood.misfit(x, other), each)
    assert torch.equal(likelihood.misfit(x, likelihood.y), likelihood(x))


def test_rician_takes_the_field_that_its_operator_has() -> None:
    maps = torch.ones(2, 2, 2, dtype=torch.complex64)
    y = torch.ones(2, 2, 2)
    assert Rician(y, likelihoods.Sense(maps), 1.0).is_complex
    assert not Rician(y, likelihoods.Sense(maps, real=True), 1.0).is_complex
    assert not Rician(y, None, 1.0).is_complex
    assert Rician(y, None, 1.0, complex_images=True).is_complex
    assert not Rician(y, likelihoods.Sense(maps, real=True), 1.0, complex_images=True).is_complex


def test_rician_does_not_see_phase_or_sign() -> None:
    x = standard_normal((2, 1, 3, 3), torch.Generator().manual_seed(0), dtype=torch.complex128)
    turned = Rician(ONES.new_ones(1, 3, 3).double(), None, 0.5, complex_images=True)
    assert torch.allclose(turned(x), turned(x * torch.exp(torch.tensor(0.7j))))
    real = Rician(ONES.new_ones(1, 3, 3).double(), None, 0.5)
    assert torch.allclose(real(x.abs()), turned(x))
    assert torch.equal(real(x.real), real(-x.real))


# --- scales that are unknown


@pytest.mark.parametrize("kind", [Laplace, StudentT])
@pytest.mark.parametrize("field", [torch.float64, torch.complex128])
def test_gradients_reach_the_scale(kind: Any, field: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    y, x = (standard_normal((1, 3, 2), g, dtype=field) for _ in range(2))
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    base = kind(y, None, 1.0)

    def negative_log_density(value: Tensor) -> Tensor:
        data = base.with_scale(value)
        return data(x) + data.log_normaliser()

    (slope,) = torch.autograd.grad(negative_log_density(scale), scale)
    h = 1e-6
    ahead, behind = (negative_log_density(torch.tensor(0.7 + s * h, dtype=torch.float64)) for s in (1, -1))
    assert float(slope) == pytest.approx(float(ahead - behind) / (2 * h), rel=1e-7)
    assert torch.equal(base.scale, torch.ones((), dtype=torch.float64))
    fixed = kind(y, None, 0.7)
    assert torch.allclose(negative_log_density(scale), fixed(x) + fixed.log_normaliser())


# --- noise that channels share


def hermitian(size: int, *, is_complex: bool) -> Tensor:
    dtype = torch.complex128 if is_complex else torch.float64
    a = standard_normal((size, size), torch.Generator().manual_seed(8), dtype=dtype)
    return a @ a.mH / size + 0.3 * torch.eye(size, dtype=dtype)


@pytest.mark.parametrize("is_complex", [False, True])
def test_correlated_noise_is_the_dense_density(is_complex: bool) -> None:
    """Against torch's multivariate normal of the real numbers, channel by channel and part by part."""
    g = torch.Generator().manual_seed(1)
    dtype = torch.complex128 if is_complex else torch.float64
    psi = hermitian(3, is_complex=is_complex)
    y, x = (standard_normal((3, 2, 2), g, dtype=dtype) for _ in range(2))
    likelihood = Gaussian(y, None, covariance=psi)
    got = likelihood(x) + likelihood.log_normaliser()
    r = (y - x).reshape(3, -1).mT
    if is_complex:
        # A circular complex normal n with E[n n^H] = 2 psi.
        whole = torch.cat([torch.cat([psi.real, -psi.imag], 1), torch.cat([psi.imag, psi.real], 1)])
        r = torch.cat([r.real, r.imag], 1)
    else:
        whole = psi
    normal = torch.distributions.MultivariateNormal(torch.zeros(len(whole), dtype=torch.float64), whole)
    assert float(got) == pytest.approx(-float(normal.log_prob(r).sum()), rel=1e-12)


@pytest.mark.parametrize("is_complex", [False, True])
def test_correlated_noise_is_drawn_with_its_covariance(is_complex: bool) -> None:
    n = 40_000
    psi = hermitian(3, is_complex=is_complex)
    x = torch.zeros(3, 1, n, dtype=psi.dtype)
    y = Gaussian(x, None, covariance=psi).simulate(x, torch.Generator().manual_seed(2)).reshape(3, n)
    got = y @ y.mH / (n * (2 if is_complex else 1))
    # var of each product is at most 2 psi_ii psi_jj.
    size = psi.diagonal().real
    error = MOST_SE * (2 * torch.outer(size, size) / n).sqrt()
    assert bool(((got - psi).abs() < error).all())


def test_a_diagonal_covariance_keeps_the_structure() -> None:
    g = torch.Generator().manual_seed(1)
    y, x = (standard_normal((2, 4, 4), g, dtype=torch.float64) for _ in range(2))
    std = torch.tensor([0.5, 2.0], dtype=torch.float64)
    blur = likelihoods.GaussianBlur(0.8, (4, 4)).double()
    shared = Gaussian(y, blur, covariance=torch.diag(std.square()))
    each = Gaussian(y, blur, std[:, None, None])
    assert torch.allclose(shared(x), each(x))
    assert torch.allclose(shared.log_normaliser(), each.log_normaliser())
    assert torch.allclose(shared.grad(x), each.grad(x))
    assert isinstance(Gaussian(y, None, covariance=torch.diag(std.square())).structure, Diagonal)


def test_whitened_data_are_the_same_likelihood() -> None:
    """Mixing coils and data by the inverse of the Cholesky factor, as done before a reconstruction."""
    g = torch.Generator().manual_seed(3)
    psi = hermitian(3, is_complex=True)
    maps, y = (standard_normal((3, 4, 4), g, dtype=torch.complex128) for _ in range(2))
    mask = (torch.rand(4, 4, generator=g) < 0.6).double()
    white = torch.linalg.inv(torch.linalg.cholesky(psi))
    mixed = [torch.einsum("kl,lhw->khw", white, t) for t in (maps, y)]
    direct = Gaussian(y, likelihoods.Sense(maps, mask), covariance=psi)
    whitened = Gaussian(mixed[1], likelihoods.Sense(mixed[0], mask), 1.0)
    x = standard_normal((2, 1, 4, 4), g, dtype=torch.complex128)
    assert torch.allclose(direct(x), whitened(x))
    assert torch.allclose(direct.grad(x), whitened.grad(x))
    forms = [t.quadratic() for t in (direct, whitened)]
    solved = [form.solve(x, 0.1) for form in forms if form is not None]
    assert torch.allclose(*solved, rtol=1e-7, atol=1e-8)


def test_channels_sampled_at_different_places_are_refused() -> None:
    mask = torch.ones(2, 2, 2)
    mask[1, 0, 0] = 0
    covariance = torch.tensor([[1.0, 0.3], [0.3, 1.0]])
    with pytest.raises(ValueError, match="channels are sampled at different places"):
        Gaussian(torch.ones(2, 2, 2), likelihoods.Mask(mask), covariance=covariance)
    Gaussian(torch.ones(2, 2, 2), likelihoods.Mask(mask), covariance=torch.diag(covariance.diagonal()))


def test_single_precision_keeps_an_ill_conditioned_covariance() -> None:
    g = torch.Generator().manual_seed(3)
    a = standard_normal((4, 4), g, dtype=torch.float64)
    q, _ = torch.linalg.qr(a)
    psi = q @ torch.diag(torch.tensor([1.0, 1e-2, 1e-4, 1e-5], dtype=torch.float64)) @ q.T
    y = standard_normal((4, 3, 3), g, dtype=torch.float64)
    double = Gaussian(y, None, covariance=psi)
    single = Gaussian(y.float(), None, covariance=psi)
    x = torch.zeros(1, 4, 3, 3)
    assert float(single(x)) == pytest.approx(float(double(x.double())), rel=1e-3)
    assert float(single.log_normaliser()) == pytest.approx(float(double.log_normaliser()), rel=1e-3)
