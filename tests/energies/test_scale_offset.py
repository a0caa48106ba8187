"""The offset of each scale: a Chebyshev series in log sigma that starts at log sigma."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.polynomial import chebyshev
from torch import Tensor

from potentia.energies import ScaleOffset
from potentia.testing import strategies

LOW, HIGH = 0.02, 30.0
# A sum of a dozen terms of size one, rounded in double precision.
ROUNDING = 1e-12


def offset(degree: int = 8, *, seed: int | None = None) -> ScaleOffset:
    """As it starts, or with random coefficients, in double precision."""
    made = ScaleOffset(LOW, HIGH, degree).double()
    if seed is not None:
        g = torch.Generator().manual_seed(seed)
        made.coefficients.data = torch.randn(degree + 1, generator=g, dtype=torch.float64)
    return made


def series(coefficients: Tensor, sigma: Tensor) -> Tensor:
    """The same by NumPy."""
    t = (2 * np.log(sigma.numpy()) - math.log(LOW) - math.log(HIGH)) / (math.log(HIGH) - math.log(LOW))
    return torch.from_numpy(chebyshev.chebval(t, coefficients.detach().numpy()))


@given(st.integers(1, 12), strategies.sigmas((LOW, HIGH)))
def test_it_starts_at_log_sigma(degree: int, sigma: float) -> None:
    # Its coefficients are stored in single precision.
    got = offset(degree)(torch.tensor([sigma], dtype=torch.float64))
    assert got.item() == pytest.approx(math.log(sigma), abs=4 * torch.finfo(torch.float32).eps)


@given(st.integers(1, 12), st.integers(0, 1000), strategies.sigmas((LOW, HIGH)))
def test_it_is_the_chebyshev_series(degree: int, seed: int, sigma: float) -> None:
    made, s = offset(degree, seed=seed), torch.tensor([sigma, LOW, HIGH], dtype=torch.float64)
    torch.testing.assert_close(made(s), series(made.coefficients, s), rtol=ROUNDING, atol=ROUNDING)


def test_another_polynomial_is_no_chebyshev_series() -> None:
    """The planted fault: two coefficients exchanged, or plain powers."""
    made, s = offset(3, seed=1), torch.tensor([0.1, 0.5, 7.0], dtype=torch.float64)
    exchanged = made.coefficients.detach().flip(0)
    assert not torch.allclose(made(s), series(exchanged, s), rtol=1e-3, atol=1e-3)
    t = (2 * s.log() - math.log(LOW * HIGH)) / math.log(HIGH / LOW)
    powers = (t[:, None] ** torch.arange(4)) @ made.coefficients.detach()
    assert not torch.allclose(made(s), powers, rtol=1e-3, atol=1e-3)


def test_it_is_smooth_in_sigma_and_in_its_coefficients() -> None:
    made = offset(6, seed=2)
    s = torch.tensor([LOW, 0.3, 1.0, HIGH], dtype=torch.float64, requires_grad=True)

    def value(sigma: Tensor, coefficients: Tensor) -> Tensor:
        return torch.func.functional_call(made, {"coefficients": coefficients}, (sigma,))

    assert torch.autograd.gradcheck(value, (s, made.coefficients))
    assert torch.autograd.gradgradcheck(value, (s, made.coefficients))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_answers_in_the_precision_of_sigma(dtype: torch.dtype) -> None:
    for made in (ScaleOffset(LOW, HIGH), offset()):
        out = made(torch.tensor([0.1, 2.0, 3.0], dtype=dtype))
        assert out.shape == (3,)
        assert out.dtype == dtype


def test_its_settings_rebuild_it() -> None:
    made = ScaleOffset(LOW, HIGH, 5)
    assert made.settings == {"low": LOW, "high": HIGH, "degree": 5}
    assert torch.equal(ScaleOffset(**made.settings).coefficients, made.coefficients)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0.0, 1.0), ValueError, "low must be positive, got 0"),
        ((-1.0, 1.0), ValueError, "low must be positive, got -1"),
        ((math.nan, 1.0), ValueError, "low must be finite, got nan"),
        ((1.0, 1.0), ValueError, "high is 1, expected above low, 1"),
        ((1.0, 0.5), ValueError, r"high is 0\.5, expected above low, 1"),
        ((1.0, math.nan), ValueError, "high must be finite, got nan"),
        ((1.0, math.inf), ValueError, "high must be finite, got inf"),
        ((1.0, "2"), TypeError, "high must be a number, got str"),
        ((1.0, 2.0, 0), ValueError, "degree must be at least 1, got 0"),
        ((1.0, 2.0, 1.5), TypeError, r"degree must be an integer, got 1\.5"),
    ],
)
def test_bad_arguments_are_refused(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^ScaleOffset: {message}"):
        ScaleOffset(*arguments)
