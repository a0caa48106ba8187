"""What each operator does, against the same thing done another way; the shared identities are in the contract."""

import math

import pytest
import torch

from potentia import likelihoods
from potentia._quadratic import Diagonal, Fourier, MatrixFree


def test_convolution_is_the_sum_written_out() -> None:
    g = torch.Generator().manual_seed(0)
    kernel = torch.randn(3, 2, generator=g, dtype=torch.float64)
    x = torch.randn(5, 4, generator=g, dtype=torch.float64)
    expected = torch.zeros(5, 4, dtype=torch.float64)
    for i in range(5):
        for j in range(4):
            for a in range(3):
                for b in range(2):
                    expected[i, j] += kernel[a, b] * x[(i - (a - 1)) % 5, (j - (b - 1)) % 4]
    y = likelihoods.Convolution(kernel, (5, 4)).double()(x[None])
    assert torch.allclose(y[0], expected, atol=1e-12)


def test_convolution_of_channels_with_kernels_of_their_own() -> None:
    g = torch.Generator().manual_seed(0)
    kernels, x = torch.randn(2, 3, 3, generator=g), torch.randn(2, 6, 6, generator=g)
    both = likelihoods.Convolution(kernels, (2, 6, 6))(x)
    for c in range(2):
        assert torch.allclose(both[c], likelihoods.Convolution(kernels[c], (6, 6))(x[c : c + 1])[0], atol=1e-6)


def test_gaussian_blur_of_a_point_has_that_std() -> None:
    x = torch.zeros(1, 64, 64, dtype=torch.float64)
    x[0, 32, 32] = 1
    y = likelihoods.GaussianBlur(2.5, (64, 64)).double()(x)[0]
    position = torch.arange(64, dtype=torch.float64) - 32
    assert abs(float(y.sum()) - 1) < 1e-6
    for spread in ((y.sum(1) * position**2).sum(), (y.sum(0) * position**2).sum()):
        assert abs(math.sqrt(float(spread)) - 2.5) < 1e-3


@pytest.mark.parametrize(("angle", "slope"), [(0.0, 0.0), (30.0, math.tan(math.radians(30))), (-45.0, -1.0)])
def test_motion_blur_runs_counter_clockwise_from_the_x_axis(angle: float, slope: float) -> None:
    x = torch.zeros(1, 33, 33)
    x[0, 16, 16] = 1
    y = likelihoods.MotionBlur(11.0, angle, (33, 33))(x)[0].double()
    position = torch.arange(33, dtype=torch.float64) - 16
    covariance = (y * position[:, None] * position[None, :]).sum()
    along_x = (y * position[None, :] ** 2).sum()
    assert abs(float(y.sum()) - 1) < 1e-5
    # y points down, so that a rising line has a negative covariance; bilinear splatting widens along_x by under 0.25.
    assert abs(float(-covariance / along_x) - slope) < 0.05
    extent = float(along_x + (y * position[:, None] ** 2).sum())
    assert abs(extent - 11.0**2 / 12) < 0.5


def test_downsample_is_the_mean_of_blocks() -> None:
    x = torch.arange(16.0).reshape(1, 4, 4)
    assert torch.equal(likelihoods.Downsample(2)(x), torch.tensor([[[2.5, 4.5], [10.5, 12.5]]]))


def test_fourier_is_centred_and_unitary() -> None:
    x = torch.zeros(1, 5, 6, dtype=torch.complex64)
    x[0, 2, 3] = 1
    k = likelihoods.Fourier()(x)
    assert torch.allclose(k, torch.full_like(k, 1 / math.sqrt(30)), atol=1e-6)


def test_sense_is_a_masked_transform_of_every_coil() -> None:
    g = torch.Generator().manual_seed(0)
    maps = torch.randn(3, 6, 5, dtype=torch.complex64, generator=g)
    mask = (torch.rand(6, 5, generator=g) < 0.5).float()
    x = torch.randn(2, 1, 6, 5, dtype=torch.complex64, generator=g)
    y = likelihoods.Sense(maps, mask)(x)
    for c in range(3):
        assert torch.allclose(y[:, c], likelihoods.Fourier(mask)(maps[c] * x)[:, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("operator", "kind", "varying"),
    [
        (likelihoods.Identity(), Diagonal, Diagonal),
        (likelihoods.Mask(torch.eye(6)), Diagonal, Diagonal),
        (2.0 * likelihoods.Mask(torch.eye(6)), Diagonal, Diagonal),
        (likelihoods.GaussianBlur(1.0, (6, 6)), Fourier, MatrixFree),
        (likelihoods.GaussianBlur(1.0, (6, 6)) @ likelihoods.GaussianBlur(1.0, (6, 6)), Fourier, MatrixFree),
        (likelihoods.Fourier(torch.eye(6)), Fourier, Fourier),
        (likelihoods.Mask(torch.eye(6)) @ likelihoods.Fourier(), Fourier, Fourier),
        (likelihoods.Fourier(torch.eye(6)) @ likelihoods.GaussianBlur(1.0, (6, 6)), Fourier, Fourier),
        (likelihoods.Sense(torch.ones(2, 6, 6)), Diagonal, MatrixFree),
        (likelihoods.GaussianBlur(1.0, (6, 6)) @ likelihoods.Fourier(), MatrixFree, MatrixFree),
    ],
    ids=lambda v: v.describe() if isinstance(v, likelihoods.Operator) else v.__name__,
)
def test_structure_is_kept(operator: likelihoods.Operator, kind: type, varying: type) -> None:
    weight = 0.5 + torch.rand(operator.output_shape((1, 6, 6)), generator=torch.Generator().manual_seed(0))
    assert type(operator.gram(1.0, (1, 6, 6))) is kind
    assert type(operator.gram(weight, (1, 6, 6))) is varying


def test_the_approximation_of_sense_is_the_nearest_circulant_matrix() -> None:
    g = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 4, 3, dtype=torch.complex128, generator=g)
    mask = (torch.rand(4, 3, generator=g, dtype=torch.float64) < 0.6).double()
    operator = likelihoods.Sense(maps, mask)
    gram = operator.gram(1.0, (1, 4, 3))
    eye = torch.eye(12, dtype=torch.complex128).reshape(12, 1, 4, 3)
    dense = gram.apply(eye).reshape(12, 12).T
    # In the Frobenius norm the nearest circulant matrix has the Rayleigh quotients of Fourier modes as spectrum.
    modes = torch.fft.ifft2(eye[:, 0], norm="ortho").reshape(12, 12)
    quotients = torch.einsum("ki,ij,kj->k", modes.conj(), dense, modes).real
    near = gram.circulant()
    assert near is not None
    assert torch.allclose(near.spectrum.flatten(), quotients, atol=1e-12)


def test_simulated_coils_and_masks() -> None:
    maps = likelihoods.birdcage_maps(6, (12, 10))
    assert torch.allclose(maps.abs().square().sum(0), torch.ones(12, 10), atol=1e-5)
    mask = likelihoods.cartesian_mask((12, 40), 4.0, centre_fraction=0.1, seed=1)
    assert float(mask.mean()) == pytest.approx(0.25)
    assert bool((mask[:, 18:22] == 1).all())
    assert torch.equal(mask, likelihoods.cartesian_mask((12, 40), 4.0, centre_fraction=0.1, seed=1))
    assert not torch.equal(mask, likelihoods.cartesian_mask((12, 40), 4.0, centre_fraction=0.1, seed=2))
    with pytest.raises(ValueError, match="at least 1"):
        likelihoods.cartesian_mask((8, 8), 0.5)
    with pytest.raises(ValueError, match="radius must exceed 1"):
        likelihoods.birdcage_maps(4, (8, 8), radius=0.5)
