"""What every energy promises, whichever it is: its gradient, its batches, its dtypes, its manners."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from potentia import Energy
from potentia import energies as en
from potentia._random import standard_normal

SHAPE = (2, 8, 6)
D = math.prod(SHAPE)


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return standard_normal(shape, torch.Generator().manual_seed(seed), dtype=dtype)


def spectrum(*, even: bool) -> Tensor:
    s = rand(*SHAPE, seed=3).square() + 0.1
    return 0.5 * (s + s.flip((-2, -1)).roll((1, 1), (-2, -1))) if even else s


class SmallNet(nn.Module):
    """A residual network that depends on the scale and mixes pixels and channels."""

    def __init__(self, channels: int = SHAPE[0]) -> None:
        super().__init__()
        gen = torch.Generator().manual_seed(5)
        self.first = nn.Conv2d(channels, 5, 3, padding=1, dtype=torch.float64)
        self.last = nn.Conv2d(5, channels, 3, padding=1, dtype=torch.float64)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(0.3 * torch.randn(p.shape, generator=gen, dtype=p.dtype))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x + self.last(torch.tanh(self.first(x) * (1 + sigma.reshape(-1, 1, 1, 1))))


def mixture(kind: str) -> en.GaussianMixture:
    means, f, v = 0.3 * rand(3, *SHAPE), rand(3, D, 2, seed=1), 0.3 + rand(3, *SHAPE, seed=2).square()
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    spread = {
        "isotropic": {"variances": v[:, 0, 0, 0]},
        "diagonal": {"variances": v},
        "full": {"covariances": f @ f.mT + torch.diag_embed(v.flatten(1))},
        "low-rank": {"factors": f, "variances": v[:, 0, 0, 0]},
        "factor": {"factors": f, "variances": v},
    }[kind]
    return en.GaussianMixture(weights, means, **spread)


def softened(x: Tensor, sigma: float | Tensor) -> Tensor:
    s = torch.as_tensor(sigma, dtype=torch.float64)
    return x.cosh().log().sum((-3, -2, -1)) / (1 + s.square())


@dataclass(frozen=True)
class Case:
    make: Callable[[], Energy]
    is_complex: bool = False


CASES: dict[str, Case] = {
    "gaussian": Case(lambda: en.Gaussian(rand(*SHAPE), 0.1 + rand(*SHAPE, seed=1).abs())),
    "gaussian-number": Case(lambda: en.Gaussian(0.2, 0.7)),
    "gaussian-complex": Case(lambda: en.Gaussian(rand(*SHAPE, dtype=torch.complex128), 0.7), is_complex=True),
    "field": Case(lambda: en.GaussianField(spectrum(even=True), 0.3)),
    "field-complex": Case(lambda: en.GaussianField(spectrum(even=False), 0.3 + 0.1j), is_complex=True),
    "mixture-isotropic": Case(lambda: mixture("isotropic")),
    "mixture-diagonal": Case(lambda: mixture("diagonal")),
    "mixture-full": Case(lambda: mixture("full")),
    "mixture-low-rank": Case(lambda: mixture("low-rank")),
    "mixture-factor": Case(lambda: mixture("factor")),
    "tv": Case(lambda: en.TotalVariation(0.1)),
    "tv-periodic": Case(lambda: en.TotalVariation(0.1, periodic=True)),
    "tv-complex": Case(lambda: en.TotalVariation(0.1), is_complex=True),
    "wavelet": Case(lambda: en.Sparsity(en.Wavelet("db2", 1), 0.1)),
    "wavelet-complex": Case(lambda: en.Sparsity(en.Wavelet("haar", 1), 0.1, penalise_coarse=True), is_complex=True),
    "dct": Case(lambda: en.Sparsity(en.DCT(), 0.1)),
    "experts": Case(lambda: en.FieldsOfExperts(rand(4, 3, 2), torch.arange(4.0), scale=torch.arange(1.0, 5.0))),
    "experts-complex": Case(lambda: en.FieldsOfExperts(rand(4, 3, 2), 0.8), is_complex=True),
    "deep-variation": Case(
        lambda: en.TotalDeepVariation.random(
            torch.Generator().manual_seed(0), SHAPE[0], 4, levels=2, blocks=1, dtype=torch.float64
        )
    ),
    "student-t": Case(lambda: en.StudentT(0.3, dof=3.0)),
    "denoiser": Case(lambda: en.Denoiser(SmallNet(), (0.01, 10.0), shape=SHAPE)),
    "denoiser-complex": Case(
        lambda: en.Denoiser(lambda x, s: x * x.abs() / (1 + s.reshape(-1, 1, 1, 1)) + 0.2j * x.conj(), (0.01, 10.0)),
        is_complex=True,
    ),
    "function-scales": Case(lambda: en.Function(softened, (0.01, 10.0))),
    "function": Case(lambda: en.Function(lambda x: x.abs().pow(3).sum((-3, -2, -1)))),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def image(case: Case, *batch: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return rand(*batch, *SHAPE, seed=11, dtype=dtype.to_complex() if case.is_complex else dtype)


SIGMAS = [None, 0.3, torch.tensor([0.2, 1.5, 0.7], dtype=torch.float64)]


def test_every_exported_energy_is_in_the_cases() -> None:
    made = {type(c.make()) for c in CASES.values()}
    public = {c for c in map(en.__dict__.get, en.__all__) if isinstance(c, type) and issubclass(c, Energy)}
    # ScoreModel has no value, and tests of its own.
    assert made | {en.ScoreModel} == public


@pytest.mark.parametrize("sigma", SIGMAS, ids=["finest", "number", "batch"])
def test_gradient_is_that_of_autograd(case: Case, sigma: float | Tensor | None) -> None:
    u, x = case.make(), image(case, 3)
    z = x.clone().requires_grad_(True)
    value = u(z, sigma)
    (want,) = torch.autograd.grad(value.sum(), z)
    got_value, got = u.value_and_grad(x, sigma)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10 * float(want.abs().max()))
    torch.testing.assert_close(u.grad(x, sigma), got, rtol=0, atol=0)
    torch.testing.assert_close(got_value, value.detach(), rtol=1e-12, atol=0)
    assert value.shape == (3,)
    assert value.dtype == torch.float64


def central_difference(u: Energy, x: Tensor, direction: Tensor, sigma: float | None) -> Tensor:
    """Directional derivative by a five-point rule, whose error is of fourth order in the step."""
    h = 1e-3
    a, b, c, d = (u(x + k * h * direction, sigma) for k in (-2, -1, 1, 2))
    return (a - 8 * b + 8 * c - d) / (12 * h)


def directional(grad: Tensor, direction: Tensor) -> Tensor:
    return (grad.conj() * direction).real.sum((-3, -2, -1))


def test_gradient_is_that_of_finite_differences(case: Case) -> None:
    u, x = case.make(), image(case, 3)
    for seed in (20, 21):
        v = rand(3, *SHAPE, seed=seed, dtype=x.dtype)
        v = v / v.abs().square().sum((-3, -2, -1), keepdim=True).sqrt()
        want = central_difference(u, x, v, 0.4)
        torch.testing.assert_close(directional(u.grad(x, 0.4), v), want, rtol=2e-6, atol=1e-6)


def test_finite_differences_see_a_wrong_gradient() -> None:
    """The check above is worth something: a gradient off by a conjugate, or by a thousandth, fails it."""
    for name in ("tv-complex", "field-complex", "experts"):
        case = CASES[name]
        u, x = case.make(), image(case, 3)
        v = rand(3, *SHAPE, seed=20, dtype=x.dtype)
        v = v / v.abs().square().sum((-3, -2, -1), keepdim=True).sqrt()
        want, grad = central_difference(u, x, v, 0.4), u.grad(x, 0.4)
        for wrong in (1.001 * grad, *([grad.conj()] if case.is_complex else [])):
            assert not torch.allclose(directional(wrong, v), want, rtol=2e-6, atol=1e-6), name


@pytest.mark.parametrize("sigma", [None, 0.3])
def test_batch_entries_do_not_influence_one_another(case: Case, sigma: float | None) -> None:
    u, x = case.make(), image(case, 2, 3)
    value, grad = u.value_and_grad(x, sigma)
    assert value.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            one_value, one_grad = u.value_and_grad(x[i, j], sigma)
            assert one_value.shape == ()
            torch.testing.assert_close(value[i, j], one_value, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(grad[i, j], one_grad, rtol=1e-10, atol=1e-12)


def test_a_scale_per_entry_is_the_same_as_separate_calls(case: Case) -> None:
    u, x = case.make(), image(case, 3)
    sigma = torch.tensor([0.2, 1.5, 0.2], dtype=torch.float64)
    value, grad = u.value_and_grad(x, sigma)
    for i, s in enumerate(sigma):
        one_value, one_grad = u.value_and_grad(x[i], float(s))
        torch.testing.assert_close(value[i], one_value, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(grad[i], one_grad, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(u(x, sigma)[i], one_value, rtol=1e-12, atol=1e-12)
        if u.scales is not None:
            torch.testing.assert_close(u.denoise(x, sigma)[i], u.denoise(x[i], s), rtol=1e-10, atol=1e-12)


def test_either_precision_of_images_and_of_buffers(case: Case) -> None:
    x = image(case, 3)
    want_value, want = case.make().value_and_grad(x, 0.3)
    size = float(want.abs().max())
    for images, buffers in (
        (torch.float32, torch.float64),
        (torch.float32, torch.float32),
        (torch.float64, torch.float32),
    ):
        u = case.make().to(buffers)
        z = x.to(images.to_complex() if case.is_complex else images)
        value, grad = u.value_and_grad(z, 0.3)
        assert value.dtype == torch.float64
        assert grad.dtype == z.dtype
        assert u.grad(z, 0.3).dtype == z.dtype
        assert u(z, 0.3).dtype == torch.float64
        # Rounding of single precision through sums of some hundred terms and condition numbers of some hundred.
        torch.testing.assert_close(value, want_value, rtol=2e-5, atol=2e-4)
        torch.testing.assert_close(grad.to(want.dtype), want, rtol=0, atol=1e-4 * size)
        if u.scales is not None:
            assert u.denoise(z, 0.3).dtype == z.dtype


def test_the_callers_tensors_are_left_alone(case: Case) -> None:
    u, x = case.make(), image(case, 3)
    before = x.clone()
    value, grad = u.value_and_grad(x)
    assert not x.requires_grad
    assert x.grad is None
    z = x.clone().requires_grad_(True)
    outputs = [*u.value_and_grad(z), u.grad(z)]
    for t in (value, grad, *outputs):
        assert t.grad_fn is None
        assert not t.requires_grad
    assert z.requires_grad
    assert z.grad is None
    assert torch.equal(x, before)
    if u.scales is not None:
        # Attached by the x in "x - s^2 grad" alone, it would have the identity for a derivative.
        assert not u.denoise(z, 0.3).requires_grad
    with torch.no_grad():
        assert torch.equal(u.grad(x), grad)


def test_denoising_is_tweedies_formula(case: Case) -> None:
    u, x = case.make(), image(case, 3)
    if u.scales is None:
        with pytest.raises(ValueError, match="no noise scales"):
            u.denoise(x, 0.3)
        return
    for s in (0.05, 0.3, 2.0):
        torch.testing.assert_close(u.denoise(x, s), x - s**2 * u.grad(x, s), rtol=1e-8, atol=1e-10)


def test_the_quadratic_form_is_the_potential(case: Case) -> None:
    u, x = case.make(), image(case, 3)
    for s in (None, 0.3):
        form = u.quadratic(s)
        if form is None:
            assert not isinstance(u, en.Gaussian | en.GaussianField)
            continue
        constant = u(x, s) - form.value(x)
        torch.testing.assert_close(constant, constant[:1].expand(3), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(form.grad(x), u.grad(x, s), rtol=1e-9, atol=1e-10)
        if u.event_shape is not None:
            torch.testing.assert_close(form.value(x), u(x, s), rtol=1e-10, atol=1e-9)
            torch.testing.assert_close(
                u.grad(form.mode().expand(3, *SHAPE), s).abs().max(), torch.zeros(()).double(), rtol=0, atol=1e-9
            )
    assert u.quadratic(torch.tensor([0.2, 0.3])) is None


def test_wrong_images_and_scales_are_refused(case: Case) -> None:
    u, x = case.make(), image(case, 3)
    for call in (u.forward, u.grad, u.value_and_grad):
        with pytest.raises(ValueError, match=rf"^{u.name}: x has shape \(8, 6\), expected \(\*batch, "):
            call(x[0, 0])
        if u.event_shape is not None:
            with pytest.raises(ValueError, match=r"x has shape \(3, 2, 7, 6\), expected \(\*batch, 2, 8, 6\)"):
                call(x[:, :, 1:])
        if u.is_complex is not None:
            with pytest.raises(ValueError, match=r"expected a (real|complex) one"):
                call(x.real if case.is_complex else x + 0j)
        if u.scales is not None:
            for bad in (-0.1, math.nan, torch.tensor([0.1, 0.2, -1.0])):
                with pytest.raises(ValueError, match=rf"^{u.name}: sigma is .*expected"):
                    call(x, bad)
            with pytest.raises(ValueError, match=r"sigma has shape \(2,\), expected a number or \(3,\)"):
                call(x, torch.tensor([0.1, 0.2]))


def test_it_prints_its_name_and_joins_sums(case: Case) -> None:
    u = case.make()
    assert repr(u).startswith(type(u).__name__ + "(")
    total = u + 2.0 * u.named("other")
    x = image(case, 3)
    torch.testing.assert_close(total(x, 0.3), 3 * u(x, 0.3), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(total.grad(x, 0.3), 3 * u.grad(x, 0.3), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["gaussian", "gaussian-complex", "field", "mixture-full", "mixture-factor", "experts"])
def test_forward_is_differentiable_in_the_buffers(name: str) -> None:
    case = CASES[name]
    u, x = case.make(), image(case, 3)
    for key, buffer in u.named_buffers():
        buffer.requires_grad_(True)
        (got,) = torch.autograd.grad(u(x, 0.3).sum(), buffer)
        buffer.requires_grad_(False)
        assert bool(torch.isfinite(got.abs()).all()), key
        assert float(got.abs().max()) > 0, key
