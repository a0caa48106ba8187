"""Phase retrieval, tone curves and chains of forward models, against the same thing done another way."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import PchipInterpolator

from potentia import likelihoods
from potentia.likelihoods._chain import Chain
from potentia.testing import check_forward_model, examples
from potentia.testing.examples import Example

MODELS = [
    example
    for seed, shape in ((1, (1, 6, 5)), (2, (2, 4, 3)))
    for example in examples.example_forward_models(seed, shape)
]


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("example", MODELS, ids=lambda e: f"{e}, {e.shape[0]} channels")
def test_forward_models_keep_the_contract(example: Example[likelihoods.ForwardModel]) -> None:
    check_forward_model(example.subject, example.shape)
    check_forward_model(example.subject, example.shape, example.dtype, seed=1)


@pytest.mark.parametrize("example", examples.example_operators(seed=3, shape=(1, 6, 5)), ids=str)
def test_operators_keep_it_too(example: Example[likelihoods.Operator]) -> None:
    check_forward_model(example.subject, example.shape)


def test_fourier_phase_retrieval_sees_the_autocorrelation() -> None:
    x = rand(1, 4, 3, dtype=torch.complex128)
    y = likelihoods.FourierPhaseRetrieval(2, intensity=True)(x)
    assert y.shape == (1, 8, 6)
    # Intensities are the Fourier transform of the autocorrelation, which twice as many samples a side hold in full.
    got = torch.fft.ifft2(torch.fft.ifftshift(y[0], dim=(-2, -1)), norm="ortho") * math.sqrt(48)
    z = x[0]
    for a in range(-3, 4):
        for b in range(-2, 3):
            rows, columns = slice(max(a, 0), 4 + min(a, 0)), slice(max(b, 0), 3 + min(b, 0))
            back_rows, back_columns = slice(max(-a, 0), 4 + min(-a, 0)), slice(max(-b, 0), 3 + min(-b, 0))
            expected = (z[rows, columns] * z[back_rows, back_columns].conj()).sum()
            assert torch.allclose(got[a % 8, b % 6], expected)


@pytest.mark.parametrize("intensity", [False, True])
def test_what_fourier_magnitudes_cannot_tell_apart(intensity: bool) -> None:
    model = likelihoods.FourierPhaseRetrieval(2, intensity=intensity)
    x = torch.zeros(1, 6, 6, dtype=torch.complex128)
    x[0, 1:4, 1:5] = rand(3, 4, dtype=torch.complex128)
    y = model(x)
    phase = torch.polar(torch.tensor(1.0).double(), torch.tensor(0.7).double())
    for twin in (phase * x, x.roll((2, 1), (-2, -1)), x.flip((-2, -1)).conj()):
        assert torch.allclose(model(twin), y)
    assert not torch.allclose(model(x.flip(-1)), y)


def test_magnitudes_are_the_roots_of_intensities() -> None:
    x = rand(2, 1, 5, 4, dtype=torch.complex128)
    masks = rand(3, 5, 4, dtype=torch.complex128)
    magnitudes = likelihoods.CodedDiffraction(masks)(x)
    assert torch.allclose(magnitudes.square(), likelihoods.CodedDiffraction(masks, intensity=True)(x))
    for k in range(3):
        wave = torch.fft.fft2(torch.fft.ifftshift(masks[k] * x[:, 0], dim=(-2, -1)), norm="ortho")
        assert torch.allclose(magnitudes[:, k], torch.fft.fftshift(wave, dim=(-2, -1)).abs())


def test_where_nothing_arrives_magnitudes_have_no_slope() -> None:
    model = likelihoods.FourierPhaseRetrieval(2)
    x = torch.zeros(1, 3, 3, dtype=torch.complex128)
    v, t = rand(1, 6, 6), rand(1, 3, 3, dtype=torch.complex128)
    assert not bool(model.vjp(x, v).any())
    assert not bool(model.jvp(x, t).any())


def test_coded_diffraction_tells_images_apart_up_to_a_phase() -> None:
    g = torch.Generator().manual_seed(1)
    masks = torch.polar(torch.ones(6, 8, 8).double(), 2 * math.pi * torch.rand(6, 8, 8, generator=g).double())
    model = likelihoods.CodedDiffraction(masks, intensity=True)
    truth = rand(1, 8, 8, dtype=torch.complex128)
    y = model(truth)
    x = truth + 0.3 * rand(1, 8, 8, seed=4, dtype=torch.complex128)
    # Gauss-Newton on the linearised model finds the truth from nearby.
    for _ in range(12):
        operator = model.linearise(x)
        eye = torch.view_as_complex(torch.eye(128).double().reshape(128, 1, 8, 8, 2))
        jacobian = operator(eye).flatten(1).T
        step = torch.linalg.lstsq(jacobian, (y - model(x)).flatten(), driver="gelsd").solution
        x = x + torch.view_as_complex(step.reshape(1, 8, 8, 2))
    phase = torch.sgn((x.conj() * truth).sum())
    assert float((phase * x - truth).norm() / truth.norm()) < 1e-8


def test_the_clip_is_the_identity_within_and_flat_beyond() -> None:
    model = likelihoods.ToneCurve(1.0, exposure=2.0, smoothness=0.01)
    x = torch.tensor([0.1, 0.25, 0.4, -0.5, 0.9], dtype=torch.float64).reshape(1, 1, 5)
    assert torch.allclose(model(x).flatten(), torch.tensor([0.2, 0.5, 0.8, 0.0, 1.0]).double(), atol=1e-8)
    slopes = model.jvp(x, torch.ones_like(x)).flatten()
    assert torch.allclose(slopes[:3], torch.full((3,), 2.0).double(), atol=1e-6)
    assert bool((slopes[3:] > 0).all())
    assert float(slopes[3:].max()) < 1e-30


def test_gamma_is_a_power() -> None:
    model = likelihoods.ToneCurve(2.2, smoothness=1e-3)
    x = torch.linspace(0.05, 0.95, 10).double().reshape(1, 2, 5)
    assert torch.allclose(model(x), x ** (1 / 2.2), atol=1e-9)


@settings(max_examples=20)
@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=8), st.sampled_from([1e-3, 0.05, 0.3]))
def test_a_curve_is_met_at_its_points_and_stays_monotone(steps: list[float], smoothness: float) -> None:
    values = torch.tensor([0.0, *steps], dtype=torch.float64).cumsum(0)
    model = likelihoods.ToneCurve(values, smoothness=smoothness)
    x = torch.linspace(-0.5, 1.5, 400).double().reshape(1, 1, 400)
    assert bool((model(x).flatten().diff() >= 0).all())
    assert bool((model.jvp(x, torch.ones_like(x)) >= 0).all())
    knots = torch.linspace(0, 1, len(values)).double()[1:-1].reshape(1, 1, -1)
    if smoothness == 1e-3 and knots.numel():
        assert torch.allclose(model(knots).flatten(), values[1:-1], atol=1e-9)


def test_the_cubic_is_scipys_within() -> None:
    values = torch.tensor([0.0, 0.1, 0.5, 0.55, 0.9, 1.2], dtype=torch.float64)
    model = likelihoods.ToneCurve(values, smoothness=1e-3)
    x = torch.linspace(0.22, 0.78, 50).double()
    # Slopes at the two ends are chosen otherwise.
    expected = PchipInterpolator(np.linspace(0, 1, 6), values.numpy())(x.numpy())
    assert np.allclose(model(x.reshape(1, 1, 50)).flatten().numpy(), expected, atol=1e-12)


def test_exposures_add_up_to_one_posterior() -> None:
    truth = torch.linspace(0.02, 3.0, 12).double().reshape(1, 3, 4)
    short, long = likelihoods.ToneCurve(exposure=0.3), likelihoods.ToneCurve(exposure=3.0)
    slope = short.jvp(truth, torch.ones_like(truth)) ** 2 + long.jvp(truth, torch.ones_like(truth)) ** 2
    alone = long.jvp(truth, torch.ones_like(truth)) ** 2
    # Saturated in one, well exposed in the other.
    assert float(alone.min()) < 1e-10
    assert float(slope.min()) > 1e-3


def test_chains_and_compositions() -> None:
    blur, mask = likelihoods.GaussianBlur(1.0, (6, 5)).double(), likelihoods.Mask(torch.eye(6, 5).double())
    curve = likelihoods.ToneCurve()
    assert isinstance(mask @ blur, likelihoods.Operator)
    for chain in (curve @ blur, blur @ curve, curve @ curve, (mask @ curve) @ blur):
        assert isinstance(chain, Chain)
        assert not isinstance(chain, likelihoods.Operator)
    chain = mask @ curve @ blur
    x = rand(2, 1, 6, 5)
    assert torch.equal(chain(x), mask(curve(blur(x))))
    assert repr(chain) == f"{mask} @ {curve} @ {blur}"
    assert torch.equal(chain.sampled, mask.sampled)
    z = x.clone().requires_grad_()
    v = rand(2, 1, 6, 5, seed=1)
    (expected,) = torch.autograd.grad(chain(z), z, v)
    assert torch.allclose(chain.vjp(x, v), expected)
    for wrong in (curve, blur):
        with pytest.raises(TypeError, match="unsupported operand"):
            wrong @ 3


def test_phase_retrieval_of_measurements_in_another_space() -> None:
    coils = likelihoods.Sense(rand(2, 6, 5, dtype=torch.complex128), torch.eye(6, 5).double())
    model = likelihoods.PhaseRetrieval(coils)
    assert model.sampled is coils.sampled or torch.equal(model.sampled, coils.sampled)
    assert model.input_shape((2, 6, 5)) == (1, 6, 5)
    check_forward_model(model, (1, 6, 5))


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (
            lambda: likelihoods.PhaseRetrieval(likelihoods.ToneCurve()),
            TypeError,
            "PhaseRetrieval: expected a linear operator, got ToneCurve",
        ),
        (lambda: likelihoods.FourierPhaseRetrieval(0), ValueError, "oversampling must be at least 1"),
        (
            lambda: likelihoods.FourierPhaseRetrieval().complex_input(True),
            ValueError,
            "measurements are real, got complex ones",
        ),
        (lambda: likelihoods.FourierPhaseRetrieval().input_shape((1, 5, 6)), ValueError, "sides divisible by 2"),
        (lambda: likelihoods.CodedDiffraction(torch.zeros(2, 4, 4)), ValueError, "zero everywhere"),
        (
            lambda: likelihoods.PaddedFourier().output_shape((4, 4)),
            ValueError,
            r"got an image of shape \(4, 4\), expected \(C, H, W\)",
        ),
        (
            lambda: likelihoods.PaddedFourier().complex_input(False),
            ValueError,
            "measurements are complex, got real ones",
        ),
        (lambda: likelihoods.ToneCurve(0.0), ValueError, "gamma must be positive"),
        (
            lambda: likelihoods.ToneCurve([0.0, 1.0, 0.9]),
            ValueError,
            r"curve has shape \(3,\) .* real numbers that increase",
        ),
        (lambda: likelihoods.ToneCurve([1.0]), ValueError, "at least two real numbers"),
        (lambda: likelihoods.ToneCurve(exposure=-1.0), ValueError, "exposure must be positive"),
        (lambda: likelihoods.ToneCurve(smoothness=0.0), ValueError, "smoothness must be positive"),
        (lambda: likelihoods.ToneCurve().output_shape((4, 4)), ValueError, r"expected \(C, H, W\)"),
        (lambda: likelihoods.ToneCurve().complex_input(True), ValueError, "measurements are real, got complex ones"),
    ],
)
def test_refusals(make: object, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make()
