"""Non-Cartesian operators against the non-uniform sum written out."""

import math
import sys

import pytest
import torch
from torch import Tensor

from potentia import likelihoods
from potentia._cg import conjugate_gradients
from potentia._quadratic import MatrixFree
from potentia._random import standard_normal
from potentia.likelihoods._near_inverse import differences, neighbourhood
from potentia.likelihoods._non_cartesian import toeplitz_entries
from potentia.likelihoods._nufft import nufft, nufft_adjoint
from potentia.testing import check_operator, check_quadratic

pytest.importorskip("finufft", reason="the non-uniform transforms are finufft's")
DOUBLE = torch.complex128


def normal(*shape: int, seed: int = 0) -> Tensor:
    return standard_normal(shape, torch.Generator().manual_seed(seed), dtype=DOUBLE)


def scattered(samples: int) -> Tensor:
    return torch.rand(samples, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5


def matrix(trajectory: Tensor, shape: tuple[int, int], maps: Tensor | None = None) -> Tensor:
    """exp(-2 pi i k . r) written out, (coils or 1, M, H W)."""
    h, w = shape
    y, x = torch.arange(h) - h // 2, torch.arange(w) - w // 2
    phase = trajectory[:, 0, None, None] * y[:, None] + trajectory[:, 1, None, None] * x
    f = torch.exp(-2j * math.pi * phase)[None]
    return (f if maps is None else f * maps[:, None]).flatten(-2)


@pytest.mark.parametrize("shape", [(6, 5), (7, 8)])
def test_the_transform_is_the_sum_written_out(shape: tuple[int, int]) -> None:
    k, x = scattered(23), normal(2, 3, *shape)
    f = matrix(k, shape)[0]
    assert torch.allclose(nufft(x, k), x.flatten(-2) @ f.T, atol=1e-11)
    y = normal(2, 3, 23, seed=1)
    assert torch.allclose(nufft_adjoint(y, k, shape).flatten(-2), y @ f.conj(), atol=1e-11)
    single = nufft(x.to(torch.complex64), k.float())
    assert single.dtype == torch.complex64
    assert torch.allclose(single.to(DOUBLE), x.flatten(-2) @ f.T, atol=1e-4)


def test_one_turned_axis_would_be_seen() -> None:
    """The planted fault: ky and kx swapped, and the sign of the exponent."""
    k, x = scattered(23), normal(6, 5)
    f = matrix(k, (6, 5))[0]
    for wrong in (k.flip(-1), -k):
        assert not torch.allclose(nufft(x, wrong), f @ x.flatten(), atol=1e-2)


@pytest.mark.parametrize("shape", [(6, 5), (8, 8)])
def test_on_the_cartesian_grid_it_is_sense(shape: tuple[int, int]) -> None:
    h, w = shape
    k = torch.cartesian_prod((torch.arange(h) - h // 2).double() / h, (torch.arange(w) - w // 2).double() / w)
    maps, x = normal(2, h, w), normal(3, 1, h, w, seed=1)
    y = likelihoods.NonCartesian(k, shape, maps)(x)
    assert torch.allclose(y.reshape(3, 2, h, w), likelihoods.Sense(maps)(x), atol=1e-11)


@pytest.mark.parametrize("coils", [False, True])
def test_contract_and_adjoint(coils: bool) -> None:
    maps = normal(2, 6, 5) if coils else None
    operator = likelihoods.NonCartesian(scattered(20), (6, 5), maps)
    check_operator(operator, (1 if coils else 3, 6, 5))
    x, y = normal(1, 6, 5, seed=1), normal(2 if coils else 1, 20, seed=2)
    left, right = (operator(x).conj() * y).sum(), (x.conj() * operator.adjoint(y)).sum()
    assert abs(complex(left - right)) < 1e-12 * abs(complex(left)) + 1e-12


@pytest.mark.parametrize("coils", [False, True])
def test_the_toeplitz_operator_is_the_normal_operator(coils: bool) -> None:
    maps = normal(2, 6, 5) if coils else None
    operator = likelihoods.NonCartesian(scattered(20), (6, 5), maps)
    f = matrix(scattered(20), (6, 5), maps) / math.sqrt(30)
    generator = torch.Generator().manual_seed(0)
    x = normal(1, 6, 5, seed=1)
    for size in ((1, 1), (1, 20), (2, 20)) if coils else ((1, 1), (1, 20)):
        w = torch.rand(size, generator=generator, dtype=torch.float64)
        want = sum(f[c].mH @ (w.expand(2, 20)[c] * (f[c] @ x.flatten())) for c in range(f.shape[0]))
        got = operator.gram(w, (1, 6, 5)).apply(x)
        assert torch.allclose(got.flatten(), torch.as_tensor(want), atol=1e-11)


def test_entries_are_those_of_the_matrix_in_kspace() -> None:
    maps, k = normal(2, 4, 5), scattered(9)
    operator = likelihoods.NonCartesian(k, (4, 5), maps)
    eye = torch.eye(20, dtype=DOUBLE).reshape(20, 1, 4, 5)
    fourier = torch.fft.fft2(eye[:, 0], norm="ortho").reshape(20, 20).T
    index = torch.arange(20).reshape(1, 4, 5)
    for w in (torch.ones(1, 1, dtype=torch.float64), 0.5 + torch.rand(2, 9, dtype=torch.float64)):
        inside = fourier @ operator.adjoint(w * operator(eye)).reshape(20, 20).T @ fourier.mH
        entries = toeplitz_entries(operator._kernel(w), maps, differences(neighbourhood((-2, -1), 2)), separate=False)
        for d, entry in entries.items():
            moved = index.roll(tuple(-n for n in d), (0, 1, 2))
            assert torch.allclose(entry.flatten(), inside[index.flatten(), moved.flatten()], atol=1e-12)


@pytest.mark.parametrize("coils", [False, True])
def test_draws_have_the_dense_covariance(coils: bool) -> None:
    operator = likelihoods.NonCartesian(scattered(20), (4, 3), normal(2, 4, 3) if coils else None)
    y = operator.measure(normal(1, 4, 3, seed=1), 0.5, torch.Generator().manual_seed(0))
    check_quadratic(likelihoods.Gaussian(y, operator, 0.5), (1, 4, 3), num_draws=1000)


def test_derivatives_are_the_adjoint() -> None:
    k, x, v = scattered(11), normal(2, 4, 3).requires_grad_(True), normal(2, 11, seed=1)
    (got,) = torch.autograd.grad(nufft(x, k), x, v)
    assert torch.allclose(got, nufft_adjoint(v, k, (4, 3)), atol=1e-12)
    assert torch.autograd.gradcheck(lambda z: nufft(z, k), (x,))
    y = normal(2, 11, seed=2).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda z: nufft_adjoint(z, k, (4, 3)), (y,))


@pytest.mark.parametrize("truncated", [False, True])
def test_radial_sampling_takes_a_third_of_the_iterations(truncated: bool) -> None:
    side = 40
    maps = likelihoods.birdcage_maps(4, (side, side))
    y = torch.linspace(-1, 1, side)
    maps = maps * ((y[:, None] / 0.9).square() + (y / 0.75).square() < 1) if truncated else maps
    operator = likelihoods.NonCartesian(likelihoods.radial_trajectory(16, 80).float(), (side, side), maps)
    structure = operator.gram(torch.full((1, 1), 2500.0), (1, side, side))
    assert isinstance(structure, MatrixFree)
    white = structure.white(torch.Generator().manual_seed(1), (1, 1, side, side), dtype=torch.complex64)
    rhs = structure.perturb(white, 1.0)
    plain, ours = (
        conjugate_gradients(lambda v: structure.action(v) + v, rhs, precondition=p, tolerance=1e-4).iterations
        for p in (None, structure._precondition(1.0))
    )
    assert 3 * ours <= plain


def test_density_compensation_evens_out_radial_sampling() -> None:
    """Of spokes, samples count in proportion to their distance from the centre; gridding gives the image back."""
    side = 24
    k = likelihoods.radial_trajectory(60, 2 * side)
    w = likelihoods.density_weights(k, (side, side), iterations=30)
    radius = k.norm(dim=-1)
    ring = (radius > 0.1) & (radius < 0.4)
    ratio = w[ring] / radius[ring]
    assert float(ratio.std() / ratio.mean()) < 0.05
    operator = likelihoods.NonCartesian(k, (side, side))
    y, x = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) - side // 2,) * 2, indexing="ij")
    image = torch.exp(-(y.square() + x.square()) / (2 * 3**2)).to(DOUBLE)[None]
    compensated = operator.adjoint(w * operator(image))
    plain = operator.adjoint(operator(image))
    assert float((compensated - image).norm() / image.norm()) < 2e-3
    assert float((plain * side**2 / 2880 - image).norm() / image.norm()) > 0.3


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda k: likelihoods.NonCartesian(2 * math.pi * k, (4, 3)), "expected cycles per pixel from -0.5 to 0.5"),
        (lambda k: likelihoods.NonCartesian(k[:, :1], (4, 3)), r"has shape \(9, 1\), expected real \(M, 2\)"),
        (lambda k: likelihoods.NonCartesian(k, (4, 3, 2)), r"shape is \(4, 3, 2\), expected \(H, W\)"),
        (lambda k: likelihoods.NonCartesian(k, (4, 3), torch.ones(4, 3)), r"coil_maps are \(4, 3\)"),
        (lambda k: likelihoods.NonCartesian(k, (4, 3), torch.zeros(2, 4, 3)), "coil_maps are zeros"),
        (lambda k: likelihoods.NonCartesian(k, (4, 3), torch.ones(2, 3, 4)), r"plane has shape \(3, 4\)"),
        (lambda k: likelihoods.NonCartesian(k, (4, 3), torch.ones(2, 4, 3)).output_shape((2, 4, 3)), "the image"),
        (lambda k: likelihoods.NonCartesian(k, (4, 3), torch.ones(2, 4, 3)).input_shape((3, 9)), "the k-space"),
        (lambda k: likelihoods.NonCartesian(k, (4, 3)).complex_input(False), "complex, got real ones"),
        (lambda k: likelihoods.density_weights(k, (4, 3), iterations=0), "iterations must be at least 1"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(call: object, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call(scattered(9))  # type: ignore[operator]


def test_without_finufft_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = likelihoods.NonCartesian(scattered(9), (4, 3))
    monkeypatch.setitem(sys.modules, "finufft", None)
    with pytest.raises(ImportError, match=r"finufft: pip install 'potentia\[mri\]'"):
        operator(normal(1, 4, 3))
