"""Total variation, sparsity and heavy-tailed filters, against loops over pixels."""

import itertools
import math
import sys

import pytest
import torch
from torch import Tensor

from potentia import energies as en


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("shape", [(2, 4, 5), (1, 1, 3), (1, 3, 1), (1, 1, 1)])
def test_total_variation_by_a_loop(dtype: torch.dtype, periodic: bool, shape: tuple[int, ...]) -> None:
    x, eps = randn(*shape, dtype=dtype), 0.05
    channels, height, width = shape
    want = 0.0
    for c, i, j in itertools.product(range(channels), range(height), range(width)):
        dx = x[c, i, (j + 1) % width] - x[c, i, j] if periodic or j + 1 < width else torch.zeros((), dtype=dtype)
        dy = x[c, (i + 1) % height, j] - x[c, i, j] if periodic or i + 1 < height else torch.zeros((), dtype=dtype)
        want += math.sqrt(abs(dx) ** 2 + abs(dy) ** 2 + eps**2) - eps
    assert math.isclose(float(en.TotalVariation(eps, periodic=periodic)(x)), want, rel_tol=1e-12, abs_tol=1e-14)


def test_total_variation_of_nearly_flat_images_does_not_cancel() -> None:
    x = 1e-9 * randn(1, 8, 8, dtype=torch.float32)
    d = torch.diff(x.double(), dim=-1).square().sum() + torch.diff(x.double(), dim=-2).square().sum()
    got = en.TotalVariation(1.0)(x)
    assert math.isclose(float(got), 0.5 * float(d), rel_tol=1e-5)
    assert float(got) > 0


def test_total_variation_does_not_see_phase_or_offset() -> None:
    u, x = en.TotalVariation(0.1), randn(1, 6, 6, dtype=torch.complex128)
    torch.testing.assert_close(u(x * complex(math.cos(1), math.sin(1)) + 3.0), u(x), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["haar", "db2", "db4", "db8", "sym8", "coif5"])
@pytest.mark.parametrize("size", [(8, 16), (16, 8), (24, 40)])
def test_wavelets_are_orthonormal(name: str, size: tuple[int, int]) -> None:
    w, n = en.Wavelet(name, 3), size[0] * size[1]
    eye = torch.eye(n, dtype=torch.float64).reshape(n, 1, *size)
    matrix = w.analyse(eye).reshape(n, n)
    # The filter of sym8 as tabulated is off by 3e-13.
    assert float((matrix @ matrix.T - torch.eye(n)).abs().max()) < 1e-14
    assert float((w.synthesise(w.analyse(eye)) - eye).abs().max()) < 1e-14


def test_wavelets_are_those_of_pywavelets() -> None:
    pywt = pytest.importorskip("pywt")
    x = randn(1, 64, 128)
    packed, _ = pywt.coeffs_to_array(pywt.wavedec2(x[0].numpy(), "db4", mode="periodization", level=3))
    got = en.Wavelet("db4", 3).analyse(x)[0]
    torch.testing.assert_close(got, torch.as_tensor(packed), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 9)])
def test_cosines_are_orthonormal_and_scipys(size: tuple[int, int]) -> None:
    fft = pytest.importorskip("scipy.fft")
    n, t = size[0] * size[1], en.DCT()
    matrix = t.analyse(torch.eye(n, dtype=torch.float64).reshape(n, 1, *size)).reshape(n, n)
    assert float((matrix @ matrix.T - torch.eye(n)).abs().max()) < 1e-12
    x = randn(2, *size)
    torch.testing.assert_close(t.analyse(x), torch.as_tensor(fft.dctn(x.numpy(), axes=(-2, -1), norm="ortho")))
    torch.testing.assert_close(t.synthesise(t.analyse(x)), x)


@pytest.mark.parametrize("transform", [en.Wavelet("db2", 2), en.DCT()])
@pytest.mark.parametrize("penalise_coarse", [False, True])
def test_sparsity_is_the_smoothed_norm_of_what_it_counts(transform: object, penalise_coarse: bool) -> None:
    x, eps = randn(3, 2, 8, 12, dtype=torch.complex128), 0.05
    c = transform.analyse(x).abs()
    h, w = transform.coarse(8, 12)
    assert (h, w) == ((2, 3) if isinstance(transform, en.Wavelet) else (1, 1))
    each = (c.square() + eps**2).sqrt() - eps
    want = each.sum((-3, -2, -1)) - (0 if penalise_coarse else each[..., :h, :w].sum((-3, -2, -1)))
    u = en.Sparsity(transform, eps, penalise_coarse=penalise_coarse)
    torch.testing.assert_close(u(x), want, rtol=1e-10, atol=0)


def test_what_goes_free_costs_nothing() -> None:
    x = torch.full((1, 16, 16), 7.0)
    for transform in (en.Wavelet("db4", 3), en.DCT()):
        assert float(en.Sparsity(transform)(x)) < 1e-6
        assert float(en.Sparsity(transform).grad(x).abs().max()) < 1e-3
        assert float(en.Sparsity(transform, penalise_coarse=True)(x)) > 10


def test_transforms_are_values() -> None:
    assert en.Wavelet("db4", 3) == en.Wavelet()
    assert en.DCT() == en.DCT()
    assert en.Sparsity().transform == en.Wavelet("db4", 3)
    assert "Wavelet(name='db4', levels=3)" in repr(en.Sparsity())


def test_sizes_and_wavelets_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="3 levels need sides divisible by 8, got 16 by 12"):
        en.Sparsity()(torch.zeros(1, 16, 12))
    with pytest.raises(ValueError, match=r"bior4\.4: is not orthogonal"):
        en.Sparsity(en.Wavelet("bior4.4", 1))(torch.zeros(1, 8, 8))
    with pytest.raises(ValueError, match="levels must be at least 1"):
        en.Wavelet("db4", 0)


@pytest.mark.parametrize(("transform", "module"), [(en.Wavelet("db3", 1), "pywt"), (en.DCT(), "scipy.fft")])
def test_a_missing_library_says_what_to_install(
    transform: object, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'potentia\[sparsity\]'"):
        en.Sparsity(transform)(torch.zeros(1, 46, 46))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_experts_by_a_loop(dtype: torch.dtype) -> None:
    x, filters = randn(2, 5, 4, dtype=dtype), randn(3, 3, 2, seed=1)
    weights, scale = torch.tensor([0.5, 1.0, 2.0]).double(), torch.tensor([0.7, 1.0, 1.5]).double()
    want = 0.0
    for c, f, i, j in itertools.product(range(2), range(3), range(5), range(4)):
        y = sum(filters[f, a, b] * x[c, (i + a) % 5, (j + b) % 4] for a in range(3) for b in range(2))
        want += float(weights[f]) * math.log(1 + float(abs(y)) ** 2 / (2 * float(scale[f]) ** 2))
    got = en.FieldsOfExperts(filters, weights, scale=scale)(x)
    assert math.isclose(float(got), want, rel_tol=1e-12)


def test_student_t_is_the_density_of_differences() -> None:
    """Up to its normaliser, the sum of torch's Student t log densities of the wrapped differences."""
    scale, dof = 0.3, 3.0
    x = randn(4, 2, 5, 6)
    t = torch.distributions.StudentT(dof, scale=torch.tensor(scale).double())
    logs = [t.log_prob(x.roll(-1, d) - x).sum((-3, -2, -1)) for d in (-1, -2)]
    want = -(logs[0] + logs[1]) + 2 * 2 * 5 * 6 * t.log_prob(torch.zeros(()).double())
    torch.testing.assert_close(en.StudentT(scale, dof)(x), want, rtol=1e-6, atol=0)
    assert "scale=0.3, dof=3" in repr(en.StudentT(scale, dof))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: en.TotalVariation(0.0), "tv: epsilon must be positive"),
        (lambda: en.TotalVariation(math.nan), "tv: epsilon must be finite"),
        (lambda: en.Sparsity(epsilon=-1.0), "sparsity: epsilon must be positive"),
        (lambda: en.FieldsOfExperts(torch.ones(3, 3), 1.0), r"filters have shape \(3, 3\)"),
        (lambda: en.FieldsOfExperts(torch.ones(1, 3, 3) * math.nan, 1.0), "filters has 9 NaN"),
        (
            lambda: en.FieldsOfExperts(torch.ones(2, 3, 3), torch.ones(3)),
            r"weights has shape \(3,\), expected a number or \(2,",
        ),
        (lambda: en.FieldsOfExperts(torch.ones(2, 3, 3), -1.0), "weights must be zero or more"),
        (lambda: en.FieldsOfExperts(torch.ones(2, 3, 3), 1.0, scale=0.0), "scale must be positive"),
        (
            lambda: en.FieldsOfExperts(torch.ones(2, 3, 3), 1.0)(torch.ones(1, 2, 8)),
            r"x has shape \(1, 2, 8\), smaller",
        ),
        (lambda: en.StudentT(0.0), "student_t: scale must be positive"),
        (lambda: en.StudentT(1.0, dof=-1.0), "student_t: dof must be positive"),
    ],
)
def test_bad_parameters_are_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
