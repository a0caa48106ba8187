"""The three forms of the energy of a network: each has the gradient of its own values."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from potentia import energies as en
from potentia._potential import Sigma
from potentia._random import standard_normal
from potentia._tensor import sum_event
from potentia.testing import check_energy, check_gaussian_oracle, check_multiscale, strategies

FORMS = ("residual", "inner-product", "scalar")
SCALES = (0.05, 5.0)
IMAGE_FORMS = FORMS[:2]


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return standard_normal(shape, torch.Generator().manual_seed(seed), dtype=dtype)


def per_image(sigma: Tensor) -> Tensor:
    return sigma.reshape(-1, 1, 1, 1)


def image_psi(x: Tensor, sigma: Tensor) -> Tensor:
    """Smooth, mixing pixels, told the scale; of complex images not holomorphic."""
    y = (x + 0.4 * x.roll(1, -1)) / (1 + per_image(sigma) ** 2)
    return y + 0.3 * x.roll(1, -2) / (1 + x.real.square()) + 0.1 * x.conj()


def scalar_psi(x: Tensor, sigma: Tensor) -> Tensor:
    return sum_event((1 + x.real.square() + 0.5 * (x - x.roll(1, -1)).abs().square()).sqrt()) / (1 + sigma.square())


def denoiser(form: Any, **options: Any) -> en.Denoiser:
    return en.Denoiser(scalar_psi if form == "scalar" else image_psi, SCALES, form=form, **options)


def unet_denoiser(form: Any, channels: int = 1, *, kind: type[en.Denoiser] = en.Denoiser) -> en.Denoiser:
    """A small U-Net in double precision with random parameters, in either preconditioning."""
    net = en.UNet(channels, widths=(8, 8), embedding=8).double()
    for k, p in enumerate(net.parameters()):
        p.data = rand(*p.shape, seed=k) * (0.5 if p.dim() == 1 else p[0].numel() ** -0.5)
    return kind((en.EDMPotential if form == "scalar" else en.EDM)(net, 0.5), SCALES, form=form)


def of_autograd(u: en.Denoiser, x: Tensor, sigma: Sigma) -> Tensor:
    z = x.detach().clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(u(z, sigma).sum(), z)
    return grad


def close(got: Tensor, want: Tensor) -> None:
    """Equal but for rounding in double precision, where terms of the size of the largest entry cancel."""
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11 * (1 + float(want.abs().max())))


@st.composite
def settings_of_a_call(draw: st.DrawFn) -> tuple[Tensor, Sigma]:
    """Images of any shape, batch and field, with no scale, one, or one an image."""
    dtype = draw(st.sampled_from([torch.float64, torch.complex128]))
    batch = draw(st.sampled_from([(), (1,), (3,), (2, 2)]))
    x = draw(strategies.normal_images(draw(strategies.shapes(min_side=1, max_side=5)), dtype, batch))
    each = [draw(strategies.sigmas(SCALES)) for _ in range(math.prod(batch))]
    return x, draw(st.sampled_from([None, each[0], torch.tensor(each, dtype=torch.float64).reshape(batch)]))


@pytest.mark.parametrize("form", FORMS)
@given(call=settings_of_a_call())
def test_every_call_agrees_with_the_value(form: str, call: tuple[Tensor, Sigma]) -> None:
    x, sigma = call
    u = denoiser(form)
    value, grad = u.value_and_grad(x, sigma)
    want = of_autograd(u, x, sigma)
    close(grad, want)
    close(value, u(x, sigma))
    assert torch.equal(u.grad(x, sigma), grad)
    assert value.shape == x.shape[:-3]
    assert value.dtype == torch.float64
    s = u.sigma_of(x, sigma)
    close(u.denoise(x, sigma), x - s**2 * want)


def slope(u: en.Denoiser, x: Tensor, direction: Tensor, sigma: float) -> Tensor:
    """Directional derivative by a five-point rule, whose error is of fourth order in the step."""
    h = 1e-3
    a, b, c, d = (u(x + k * h * direction, sigma).detach() for k in (-2, -1, 1, 2))
    return (a - 8 * b + 8 * c - d) / (12 * h)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_those_of_finite_differences(form: str, dtype: torch.dtype) -> None:
    u, x = denoiser(form), rand(3, 2, 4, 5, dtype=dtype)
    for seed, sigma in ((1, 0.1), (2, 0.5), (3, 4.0)):
        v = rand(*x.shape, seed=seed, dtype=dtype)
        v = v / v.abs().square().sum((-3, -2, -1), keepdim=True).sqrt()
        want, grad = slope(u, x, v, sigma), u.grad(x, sigma)
        size = float(grad.abs().max())

        def along(g: Tensor, v: Tensor = v) -> Tensor:
            return (g.conj() * v).real.sum((-3, -2, -1))

        torch.testing.assert_close(along(grad), want, rtol=1e-7, atol=1e-7 * size)
        assert not torch.allclose(along(1.0001 * grad), want, rtol=1e-7, atol=1e-7 * size)


@pytest.mark.parametrize("form", FORMS)
def test_values_differentiate_in_sigma(form: str) -> None:
    u, x = denoiser(form, offset=lambda s: s.log()), rand(3, 1, 4, 4)
    s = torch.tensor([0.2, 0.7, 3.0], dtype=torch.float64, requires_grad=True)
    (got,) = torch.autograd.grad(u(x, s).sum(), s)
    h = 1e-5 * s.detach()
    want = (u(x, s.detach() + h) - u(x, s.detach() - h)) / (2 * h)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    for result in (u.grad(x, s), u.denoise(x, s), *u.value_and_grad(x, s)):
        assert not result.requires_grad


@pytest.mark.parametrize("form", FORMS)
def test_a_linear_network(form: str) -> None:
    """psi = W x with W symmetric, or psi = <x, W x> / 2: all gradients are known."""
    shape, d = (2, 2, 3), 12
    factor = 0.3 * rand(d, d)
    w = (factor + factor.mT) / 2
    off = torch.eye(d, dtype=torch.float64) - w

    def apply(m: Tensor, x: Tensor) -> Tensor:
        return (x.flatten(-3) @ m).reshape(x.shape)

    def psi(x: Tensor, sigma: Tensor) -> Tensor:
        return 0.5 * sum_event(x * apply(w, x)) if form == "scalar" else apply(w, x)

    s, x = 0.3, rand(4, *shape, seed=1)
    matrix = {"residual": off @ off / s**2, "inner-product": off / s**2, "scalar": w}[form]
    u = en.Denoiser(psi, SCALES, form=form)
    close(u.grad(x, s), apply(matrix, x))
    close(u(x, s), 0.5 * sum_event(x * apply(matrix, x)))


@pytest.mark.parametrize("form", IMAGE_FORMS)
def test_a_linear_network_that_is_not_symmetric(form: str) -> None:
    d, s, x = 12, 0.3, rand(4, 1, 3, 4, seed=1)
    w = 0.3 * rand(d, d)
    off = torch.eye(d, dtype=torch.float64) - w
    u = en.Denoiser(lambda z, sigma: (z.flatten(1) @ w.mT).reshape(z.shape), SCALES, form=form)
    matrix = off.mT @ off if form == "residual" else (off + off.mT) / 2
    close(u.grad(x, s), (x.flatten(1) @ matrix.mT).reshape(x.shape) / s**2)
    # What it is not: x - psi over s^2, the field of a denoiser that is taken for a gradient.
    assert not torch.allclose(u.grad(x, s), (x.flatten(1) @ off.mT).reshape(x.shape) / s**2, rtol=1e-2, atol=1e-2)


STD = 0.7


def gaussian_psi(form: str, std: float = STD) -> Callable[[Tensor, Tensor], Tensor]:
    """The network that makes a form the energy of N(0, std^2), exactly, at every scale."""

    def psi(x: Tensor, sigma: Tensor) -> Tensor:
        if form == "scalar":
            return sum_event(x.abs().square()) / (2 * (sigma**2 + std**2))
        s2 = per_image(sigma) ** 2
        shrunk = s2 / (s2 + std**2)
        return x * (1 - (shrunk.sqrt() if form == "residual" else shrunk))

    return psi


def gaussian(dtype: torch.dtype) -> en.Gaussian:
    """The truth; of complex images, both parts have that standard deviation."""
    return en.Gaussian(0j if dtype.is_complex else 0.0, STD)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("sigma", [None, 0.05, 0.4, 5.0])
@pytest.mark.parametrize("form", FORMS)
def test_a_gaussian_prior(form: str, sigma: float | None, dtype: torch.dtype) -> None:
    u, truth = en.Denoiser(gaussian_psi(form), SCALES, form=form), gaussian(dtype)
    x = rand(4, 1, 3, 4, dtype=dtype)
    s = SCALES[0] if sigma is None else sigma
    close(u.grad(x, sigma), truth.grad(x, s))
    close(u.denoise(x, sigma), truth.denoise(x, s))
    constant = u(x, sigma) - truth(x, s)
    close(constant, constant[:1].expand(4))
    covariance = torch.full((1, 3, 4), STD**2, dtype=torch.float64)
    check_gaussian_oracle(u, 0.0, covariance, x, sigma)
    with pytest.raises(AssertionError, match="gradient"):
        check_gaussian_oracle(en.Denoiser(gaussian_psi(form, 0.701), SCALES, form=form), 0.0, covariance, x, sigma)


def test_the_inner_products_network_is_the_denoiser() -> None:
    """Of a Gaussian, <x, D> is homogeneous of degree two, so that psi = D is where training ends."""
    u, x = en.Denoiser(gaussian_psi("inner-product"), SCALES, form="inner-product"), rand(4, 1, 3, 4)
    close(u.denoise(x, 0.4), u.psi(x, torch.full((4,), 0.4, dtype=torch.float64)))
    u = en.Denoiser(gaussian_psi("inner-product"), SCALES)
    assert not torch.allclose(u.denoise(x, 0.4), gaussian(x.dtype).denoise(x, 0.4), rtol=1e-2)


@pytest.mark.parametrize("form", FORMS)
def test_the_offset_of_a_gaussian_is_its_normalisation(form: str) -> None:
    """With the offset log sqrt(s^2 + d^2) an entry, values are those of ``Gaussian`` at all scales at once."""
    u = en.Denoiser(gaussian_psi(form), SCALES, form=form, offset=lambda s: (s**2 + STD**2).log() / 2)
    for dtype in (torch.float64, torch.complex128):
        x, truth = rand(3, 1, 3, 4, dtype=dtype), gaussian(dtype)
        s = torch.tensor([0.05, 0.4, 5.0], dtype=torch.float64)
        constant = u(x, s) - truth(x, s)
        close(constant, constant[:1].expand(3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128, torch.float32])
@pytest.mark.parametrize("form", FORMS)
def test_an_offset_shifts_values_alone(form: str, dtype: torch.dtype) -> None:
    offset = en.ScaleOffset(*SCALES, 4).double()
    offset.coefficients.data = rand(5)
    plain, shifted = denoiser(form), denoiser(form, offset=offset)
    entries = 2 * 3 * 4 * (2 if dtype.is_complex else 1)
    rounding = 1e-12 if dtype.to_real() == torch.float64 else 1e-5
    for batch in ((), (3,), (2, 2)):
        x, each = rand(*batch, 2, 3, 4, dtype=dtype), 0.1 + rand(*batch, 1).abs()[..., 0]
        for sigma in (None, 0.4, each):
            s = torch.as_tensor(SCALES[0] if sigma is None else sigma, dtype=torch.float64).expand(batch)
            want = plain(x, sigma) + entries * offset(s.reshape(-1)).reshape(batch)
            value, grad = shifted.value_and_grad(x, sigma)
            assert value.dtype == torch.float64
            for got in (value, shifted(x, sigma)):
                torch.testing.assert_close(got, want, rtol=rounding, atol=entries * rounding)
            assert torch.equal(grad, plain.grad(x, sigma))
            assert torch.equal(shifted.grad(x, sigma), grad)
            assert torch.equal(shifted.denoise(x, sigma), plain.denoise(x, sigma))
            assert not value.requires_grad


def test_an_offset_is_part_of_the_energy() -> None:
    u = denoiser("residual", offset=en.ScaleOffset(*SCALES))
    assert [name for name, _ in u.named_parameters()] == ["offset.coefficients"]
    u(rand(3, 1, 4, 4), 0.4).sum().backward()
    assert float(u.offset.coefficients.grad.abs().max()) > 0


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("form", FORMS)
def test_unets_keep_the_contracts(form: str, channels: int) -> None:
    """Real images, and complex ones of half the channels."""
    u = unet_denoiser(form, channels)
    x = rand(2, 1, 5, 4, dtype=torch.float64 if channels == 1 else torch.complex128)
    check_energy(u, x, 0.3)
    check_multiscale(u, x, 0.3)


class WithoutJacobian(en.Denoiser):
    """The gradient is taken for (x - psi) / s^2, as if psi were the denoiser of this energy."""

    def _step(self, x: Tensor, sigma: Sigma) -> tuple[float | Tensor, Tensor, Tensor]:
        s, _, p = super()._step(x, sigma)
        return s, x.detach() - p, p


class OtherFactor(en.Denoiser):
    """The gradient of "scalar" with a factor that depends on the scale, which its Jacobian does not show."""

    def _step(self, x: Tensor, sigma: Sigma) -> tuple[float | Tensor, Tensor, Tensor]:
        s, step, p = super()._step(x, sigma)
        return s, step * (1 + s / 100), p


@pytest.mark.parametrize("form", IMAGE_FORMS)
def test_a_gradient_without_its_jacobian_is_caught(form: str) -> None:
    u, x = unet_denoiser(form, kind=WithoutJacobian), rand(2, 1, 5, 4)
    with pytest.raises(AssertionError, match="grad is the derivative of forward"):
        check_energy(u, x, 0.3)
    with pytest.raises(AssertionError, match="symmetric Jacobian"):
        check_multiscale(u, x, 0.3)


@pytest.mark.parametrize("form", FORMS)
def test_a_gradient_of_another_size_is_caught(form: str) -> None:
    with pytest.raises(AssertionError, match="grad is the derivative of forward"):
        check_energy(unet_denoiser(form, kind=OtherFactor), rand(2, 1, 5, 4), 0.3)


def test_bad_forms_and_offsets_are_refused() -> None:
    for bad in ("Residual", "", "edm", None, 1):
        with pytest.raises(
            ValueError, match=f"^denoiser: form is {bad!r}, expected one of residual, inner-product, scalar$"
        ):
            en.Denoiser(image_psi, SCALES, form=bad)
    with pytest.raises(TypeError, match=r"^denoiser: offset must be callable, got float$"):
        en.Denoiser(image_psi, SCALES, offset=0.5)


def test_a_form_with_the_other_kind_of_network_is_refused() -> None:
    x = rand(3, 2, 4, 5)
    for psi in (image_psi, lambda z, s: scalar_psi(z, s).sum(), lambda z, s: scalar_psi(z, s) + 0j):
        u = en.Denoiser(psi, SCALES, form="scalar")
        for call in (u.forward, u.grad, u.value_and_grad, u.denoise):
            with pytest.raises(ValueError, match=r"^denoiser: .* returned .*, expected one real number an image, \(3,"):
                call(x, 0.3)
    for form in IMAGE_FORMS:
        with pytest.raises(ValueError, match=r"returned torch.float64 of shape \(3,\), expected torch.float64 of sh"):
            en.Denoiser(scalar_psi, SCALES, form=form).grad(x, 0.3)


@pytest.mark.parametrize("form", FORMS)
def test_networks_that_hide_their_jacobian_are_refused(form: str) -> None:
    weight = nn.Parameter(torch.ones((), dtype=torch.float64))
    psi = denoiser(form).psi
    for hides in (lambda x, s: psi(x.detach(), s), lambda x, s: psi(x.detach(), s) * weight):
        u = en.Denoiser(hides, SCALES, form=form)
        for call in (u.grad, u.value_and_grad, u.denoise):
            with pytest.raises(ValueError, match=r"^denoiser: .*, expected "):
                call(rand(3, 1, 4, 5), 0.3)


@pytest.mark.parametrize("form", FORMS)
def test_the_form_is_printed(form: str) -> None:
    text = repr(denoiser(form))
    assert (f"form={form}" in text) == (form != "residual")
