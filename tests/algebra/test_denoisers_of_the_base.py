"""What every energy inherits: Tweedie's denoiser, its Jacobian, and the scales that it takes."""

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from potentia import Energy, Likelihood, Quadratic, ScoreOnly, Sum
from potentia._potential import Sigma, pulled_back
from potentia._quadratic import Diagonal
from potentia._random import standard_normal
from potentia._tensor import sum_event

SHAPE = (1, 3, 2)
LOW, HIGH = 0.1, 10.0


def image(*batch: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return standard_normal((*batch, *SHAPE), torch.Generator().manual_seed(seed), dtype=dtype)


class Ridge(Energy):
    """-log of N(0, v I) smoothed by N(0, s^2 I), with a quartic term so that the Jacobian varies over images."""

    default_name = "ridge"

    def __init__(self, variance: float = 2.0, quartic: float = 0.0) -> None:
        super().__init__()
        self.variance, self.quartic = variance, quartic

    @property
    def scales(self) -> tuple[float, float]:
        return LOW, HIGH

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        s = self.sigma_of(x, sigma)
        square = x.real.square() + x.imag.square() if x.is_complex() else x.square()
        return sum_event(square / (2 * (self.variance + s**2)) + self.quartic * square.square() / 4)

    def quadratic(self, sigma: Sigma = None) -> Quadratic:
        s = LOW if sigma is None else sigma
        precision = torch.as_tensor(1 / (self.variance + s**2), dtype=torch.float64).reshape(-1, 1, 1)
        return Quadratic(Diagonal(precision), torch.zeros(SHAPE, dtype=torch.float64))


class Tilt(Energy):
    """U = <a, x>: its gradient does not depend on x."""

    @property
    def scales(self) -> tuple[float, float]:
        return LOW, HIGH

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return sum_event(3 * x)


class Score(ScoreOnly):
    """The denoiser of Ridge, known without an energy."""

    def __init__(self, detaches: bool = False) -> None:
        super().__init__()
        self.detaches = detaches

    @property
    def scales(self) -> tuple[float, float]:
        return LOW, HIGH

    def denoise(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        z = x.detach() if self.detaches else x
        return z * 2 / (2 + self.sigma_of(x, sigma) ** 2)


class Unscaled(Energy):
    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return sum_event(x)


class Unnormalised(Likelihood):
    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return sum_event(x)

    def simulate(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return x

    def residual(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize("sigma", [None, 0.1, 1.3, 10.0])
@pytest.mark.parametrize("prior", [Ridge(), Score()])
def test_the_denoiser_is_the_posterior_mean(prior: Energy, sigma: float | None) -> None:
    x = image(3).requires_grad_(True)
    s = LOW if sigma is None else sigma
    clean = prior.denoise(x, sigma).detach()
    torch.testing.assert_close(clean, x.detach() * 2 / (2 + s**2))
    torch.testing.assert_close(prior.grad(x, sigma), x.detach() / (2 + s**2))


def test_each_entry_of_a_batch_has_its_own_scale() -> None:
    x, sigma = image(3), torch.tensor([0.1, 1.0, 5.0])
    for prior in (Ridge(quartic=0.1), Score()):
        together = prior.denoise(x, sigma)
        pulled = prior.denoise_with_vjp(x, sigma)[1](x)
        for i in range(3):
            s = float(sigma[i])
            torch.testing.assert_close(together[i], prior.denoise(x[i], s), rtol=1e-6, atol=1e-7)
            torch.testing.assert_close(pulled[i], prior.denoise_with_vjp(x[i], s)[1](x[i]), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("prior", [Ridge(), Ridge(quartic=0.2), Score(), Tilt()])
@pytest.mark.parametrize("sigma", [None, 1.3])
def test_the_pullback_is_the_transposed_jacobian(prior: Energy, sigma: float | None) -> None:
    x = image()
    clean, pull = prior.denoise_with_vjp(x.clone().requires_grad_(True), sigma)
    assert not clean.requires_grad
    torch.testing.assert_close(clean, prior.denoise(x, sigma).detach())
    jacobian = torch.empty(x.numel(), x.numel(), dtype=x.dtype)
    for j in range(x.numel()):  # central differences, one column at a time
        step = torch.zeros(x.numel(), dtype=x.dtype)
        step[j] = 1e-5
        up, down = (prior.denoise(x + sign * step.reshape(SHAPE), sigma).detach() for sign in (1, -1))
        jacobian[:, j] = ((up - down) / 2e-5).flatten()
    for seed in (1, 2):  # as often as one likes
        v = image(seed=seed)
        got = pull(v)
        torch.testing.assert_close(got.flatten(), jacobian.mT @ v.flatten(), rtol=1e-7, atol=1e-7)
        assert not got.requires_grad


def test_the_pullback_takes_vectors_of_another_precision_and_gives_the_images_gradient() -> None:
    x = image(dtype=torch.float32)
    v = image(seed=1)
    for prior in (Ridge(quartic=0.2), Score()):
        clean, pull = prior.denoise_with_vjp(x, 1.0)
        assert clean.dtype == torch.float32
        torch.testing.assert_close(pull(v).double(), pull(v.float()).double(), rtol=1e-5, atol=1e-6)
    assert Score().denoise_with_vjp(x, 1.0)[1](v).dtype == v.dtype
    field, w = image(dtype=torch.complex64), image(seed=1, dtype=torch.complex128)
    for prior in (Ridge(quartic=0.2), Score()):
        pull = prior.denoise_with_vjp(field, 1.0)[1]
        torch.testing.assert_close(pull(w).to(w.dtype), pull(w.to(field.dtype)).to(w.dtype), rtol=1e-5, atol=1e-6)


def test_complex_images_are_denoised_part_by_part() -> None:
    x = image(dtype=torch.complex128)
    clean, pull = Ridge().denoise_with_vjp(x, 1.0)
    torch.testing.assert_close(clean, x * 2 / 3)
    torch.testing.assert_close(pull(1j * x), 1j * x * 2 / 3)


def test_the_graph_is_made_where_gradients_are_switched_off() -> None:
    x = image()
    with torch.no_grad():
        for prior in (Ridge(), Score()):
            torch.testing.assert_close(prior.denoise_with_vjp(x, 1.0)[1](x), x * 2 / 3)


def test_a_denoiser_that_cuts_the_graph_is_refused() -> None:
    want = r"^score: denoise detaches its result from its input, expected a differentiable one$"
    with pytest.raises(TypeError, match=want):
        Score(detaches=True).denoise_with_vjp(image(), 1.0)


def test_a_result_that_another_tensor_makes_differentiable_pulls_back_to_nothing() -> None:
    z, other = image().requires_grad_(True), image(seed=1).requires_grad_(True)
    clean, pull = pulled_back("here", 2 * other, z)
    assert torch.equal(clean, 2 * other.detach())
    assert torch.equal(pull(image(seed=2)), torch.zeros(SHAPE, dtype=torch.float64))


def test_a_slope_that_is_learned_but_does_not_depend_on_the_image_pulls_back_the_identity() -> None:
    class Learned(Tilt):
        def __init__(self) -> None:
            super().__init__()
            self.slope = nn.Parameter(image(seed=3))

        def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
            return sum_event(self.slope * x)

    clean, pull = Learned().denoise_with_vjp(image(), 2.0)
    torch.testing.assert_close(clean, image() - 4 * image(seed=3))
    assert torch.equal(pull(image(seed=1)), image(seed=1))


def test_an_energy_without_scales_has_no_denoiser() -> None:
    want = r"^energy: has no noise scales, so that sigma and denoise have no meaning for it$"
    for call in (Unscaled().denoise, Unscaled().denoise_with_vjp, Unscaled().sigma_of):
        with pytest.raises(ValueError, match=want):
            call(image(), 1.0)
    assert Unscaled().multiscale_weight == 0.0
    assert Ridge().multiscale_weight == 1.0


@pytest.mark.parametrize(
    ("sigma", "got"),
    [
        (0.05, "0.05"),
        (11, "11"),
        (math.nan, "nan to nan"),
        (torch.tensor([0.05, 1.0]), "0.05 to 1"),
        (torch.tensor([1.0, 20.0]), "1 to 20"),
        (torch.tensor(20.0), "20"),
    ],
)
def test_scales_outside_of_the_energys_are_refused(sigma: Any, got: str) -> None:
    with pytest.raises(ValueError, match=f"^ridge: sigma is {re.escape(got)}, expected 0.1 to 10$"):
        Ridge()(image(2), sigma)


def test_a_rounding_error_beyond_the_ends_is_let_pass() -> None:
    x = image(2)
    for s in (LOW * (1 - 0.9e-6), HIGH * (1 + 0.9e-6), LOW * (1 - 1e-6), HIGH * (1 + 1e-6)):
        assert Ridge().sigma_of(x, s) == s
    for s in (LOW * (1 - 1.1e-6), HIGH * (1 + 1.1e-6)):
        with pytest.raises(ValueError, match=r"expected 0\.1 to 10"):
            Ridge().sigma_of(x, s)


def test_a_number_of_scales_that_is_not_the_batchs_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^ridge: sigma has shape \(3,\), expected a number or \(2,\), one per batch entry$"
    ):
        Ridge()(image(2), torch.ones(3))


def test_scales_take_the_precision_and_the_shape_of_the_images() -> None:
    for dtype in (torch.float32, torch.float64, torch.complex64, torch.complex128):
        got = Ridge().sigma_of(image(2, dtype=dtype), torch.tensor([1.0, 2.0], dtype=torch.float64))
        assert isinstance(got, Tensor)
        assert got.dtype == dtype.to_real()
        assert got.shape == (2, 1, 1, 1)
    single = Ridge().sigma_of(image(2), torch.tensor(1.0))
    assert isinstance(single, Tensor)
    assert single.shape == ()
    assert Ridge().sigma_of(image(2), 3) == 3.0
    assert type(Ridge().sigma_of(image(2), 3)) is float


@pytest.mark.parametrize("weight", [1.0, 0.5, 3.0])
def test_multiples_and_sums_hand_the_scale_on(weight: float) -> None:
    x, sigma = image(2), torch.tensor([0.5, 4.0], dtype=torch.float64)
    one = Ridge(quartic=0.1)
    scaled, total = weight * one, one + weight * Ridge(1.0)
    for p, want in ((scaled, weight * one(x, sigma)), (total, one(x, sigma) + weight * Ridge(1.0)(x, sigma))):
        torch.testing.assert_close(p(x, sigma), want)
        value, grad = p.value_and_grad(x, sigma)
        torch.testing.assert_close(value, want)
        torch.testing.assert_close(grad, p.grad(x, sigma))
        assert not torch.allclose(p(x, sigma), p(x))
        assert not torch.allclose(p.grad(x, sigma), p.grad(x))
    torch.testing.assert_close(scaled.grad(x, sigma), weight * one.grad(x, sigma))
    torch.testing.assert_close(total.grad(x, sigma), one.grad(x, sigma) + weight * Ridge(1.0).grad(x, sigma))


@pytest.mark.parametrize("weight", [0.0, 0.5, 3.0])
def test_the_form_of_a_multiple_is_the_multiple_of_the_form_at_the_scale(weight: float) -> None:
    x = image(2)
    for potential in (weight * Ridge(), Sum(Ridge(), weight * Ridge(1.0))):
        form = potential.quadratic(1.5)
        assert form is not None
        torch.testing.assert_close(form.value(x), potential(x, 1.5))
        torch.testing.assert_close(form.grad(x), potential.grad(x, 1.5))
    assert (-1 * Ridge()).quadratic(1.5) is None
    assert (weight * Ridge(quartic=0.1) + Unscaled()).quadratic(1.5) is None
    assert (weight * Unscaled()).quadratic() is None


def test_score_only_priors_refuse_a_value_but_have_a_gradient() -> None:
    want = r"^score: a score-only prior has no value; expected an energy where one is needed$"
    for call in (Score().forward, Score().value_and_grad):
        with pytest.raises(TypeError, match=want):
            call(image(), 1.0)
    assert not Score().has_value
    assert not (0.5 * Score()).has_value
    assert Ridge().has_value


def test_a_likelihood_that_does_not_say_its_normaliser_says_so() -> None:
    want = r"^likelihood: does not say its normaliser, expected a method log_normaliser$"
    with pytest.raises(TypeError, match=want):
        Unnormalised().log_normaliser()


class Foreign:
    """An operand that knows potentials, which do not know it."""

    def __radd__(self, other: object) -> str:
        return "added"

    def __rsub__(self, other: object) -> str:
        return "taken away"

    def __add__(self, other: object) -> str:
        return "added first"


def test_an_operand_that_potentials_do_not_know_is_asked() -> None:
    results: list[Any] = [Ridge() + Foreign(), Ridge() - Foreign(), Foreign() + Ridge()]  # type: ignore[operator]
    assert results == ["added", "taken away", "added first"]
    with pytest.raises(TypeError, match=r"unsupported operand.*'NoneType' and 'Ridge'"):
        None + Ridge()  # type: ignore[operator]
    with pytest.raises(TypeError, match="unsupported operand"):
        1 + Ridge()  # type: ignore[operator]
