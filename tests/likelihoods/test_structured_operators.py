"""Super-resolution, blur beyond circular convolution, colour, structured random measurements and stacks."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import fft as scipy_fft
from scipy import ndimage, signal

from potentia import likelihoods
from potentia._cg import conjugate_gradients
from potentia._quadratic import Diagonal, Fourier, MatrixFree, Structure
from potentia.likelihoods._woodbury import Woodbury


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def dense(operator: likelihoods.Operator, shape: tuple[int, ...]) -> torch.Tensor:
    """A as a matrix, a column a pixel."""
    d = math.prod(shape)
    return operator(torch.eye(d, dtype=torch.float64).reshape(d, *shape)).flatten(1).T


def nearest_circulant(matrix: torch.Tensor, plane: tuple[int, int]) -> torch.Tensor:
    """In the Frobenius norm: its spectrum holds the Rayleigh quotients of Fourier modes, (H, W)."""
    d = math.prod(plane)
    eye = torch.eye(d, dtype=torch.complex128).reshape(d, *plane)
    modes = torch.fft.ifft2(eye, norm="ortho").reshape(d, d)
    return torch.einsum("ki,ij,kj->k", modes.conj(), matrix.to(modes.dtype), modes).real.reshape(plane)


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_super_resolution_of_a_box_is_the_mean_of_blocks(factor: int) -> None:
    x = rand(2, 3, 12, 24)
    got = likelihoods.SuperResolution(factor, "box", (12, 24)).double()(x)
    assert torch.allclose(got, likelihoods.Downsample(factor)(x), atol=1e-6)


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
def test_named_kernels_are_those_of_resizing_without_aliasing(name: str, factor: int) -> None:
    x = rand(1, 1, 20 * factor, 24 * factor)
    got = likelihoods.SuperResolution(factor, name, tuple(x.shape[-2:])).double()(x)
    expected = torch.nn.functional.interpolate(x, size=(20, 24), mode=name, antialias=True, align_corners=False)
    # Away from the edges: torch ends there, a circular convolution goes on at the other side.
    assert torch.allclose(got[..., 3:-3, 3:-3], expected[..., 3:-3, 3:-3], atol=2e-6)
    assert not torch.allclose(got[..., 3:-3, 3:-3], expected[..., 2:-4, 3:-3], atol=1e-1)


@pytest.mark.parametrize("factor", [2, 3])
def test_the_gaussian_kernel_has_half_a_coarse_pixel_as_its_standard_deviation(factor: int) -> None:
    operator = likelihoods.SuperResolution(factor, "gaussian", (12 * factor, 12 * factor)).double()
    y = torch.zeros(1, 12, 12, dtype=torch.float64)
    y[0, 6, 6] = 1
    spread = operator.adjoint(y)[0]
    position = torch.arange(12 * factor, dtype=torch.float64)
    mean, total = (spread.sum(0) * position).sum(), spread.sum()
    assert float(total) == pytest.approx(1, abs=1e-6)
    # The middle of the coarse pixel's block.
    assert float(mean) == pytest.approx(6 * factor + (factor - 1) / 2, abs=1e-5)
    variance = (spread.sum(0) * (position - mean) ** 2).sum()
    # Cutting off at four standard deviations takes 0.1 % of the variance away.
    assert math.sqrt(float(variance)) == pytest.approx(factor / 2, rel=2e-3)


def test_super_resolution_with_a_kernel_is_scipys_convolution() -> None:
    kernel, x = rand(3, 5), rand(1, 12, 20)
    got = likelihoods.SuperResolution(2, kernel, (12, 20)).double()(x)[0].numpy()
    full = ndimage.convolve(x[0].numpy(), kernel.numpy(), mode="wrap")
    assert np.allclose(got, full[0::2, 0::2])
    # For a factor of three the middle of the block is its second pixel.
    got = likelihoods.SuperResolution(3, rand(3, 3), (12, 21)).double()(rand(1, 12, 21))[0].numpy()
    full = ndimage.convolve(rand(1, 12, 21)[0].numpy(), rand(3, 3).numpy(), mode="wrap")
    assert np.allclose(got, full[1::3, 1::3])


def closed_forms() -> list[tuple[likelihoods.Operator, tuple[int, ...], torch.Tensor]]:
    """Operators that are inverted in closed form, images, and weights for which they are."""
    one = torch.full((1, 1, 1), 0.7, dtype=torch.float64)
    channels = 0.5 + torch.rand(2, 1, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    each = 0.1 + torch.rand(50, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return [
        (likelihoods.SuperResolution(2, rand(4, 3), (8, 6)), (1, 8, 6), one),
        (likelihoods.SuperResolution(3, rand(2, 5, 5), (9, 6)), (2, 9, 6), channels),
        (likelihoods.StructuredRandom(50, (2, 6, 5)), (2, 6, 5), each),
        (likelihoods.StructuredRandom(50, (2, 6, 5)), (2, 6, 5), each[:1]),
    ]


@pytest.mark.parametrize("case", range(4))
@pytest.mark.parametrize("shift", [1e-3, 0.3, "an image", "a pixel"])
def test_closed_forms_solve_what_dense_matrices_solve(case: int, shift: float | str) -> None:
    operator, shape, weight = closed_forms()[case]
    operator = operator.double()
    gram = operator.gram(weight, shape)
    assert isinstance(gram, Woodbury)
    matrix, d = dense(operator, shape), math.prod(shape)
    w = weight.expand(operator.output_shape(shape)).flatten()
    precision = matrix.T @ (w[:, None] * matrix)
    rhs = rand(3, *shape, seed=5)
    kinds = {"an image": torch.tensor([0.1, 1.0, 3.0]).double().reshape(3, 1, 1, 1), "a pixel": 0.1 + rand(*shape) ** 2}
    shifts = kinds.get(shift, shift)
    got = gram.solve(rhs, shifts)
    full = torch.as_tensor(shifts, dtype=torch.float64).expand(3, *shape).flatten(1)
    expected = torch.linalg.solve(precision + torch.diag_embed(full), rhs.reshape(3, d, 1)).reshape(3, *shape)
    assert torch.allclose(got, expected, rtol=1e-7, atol=1e-7 * float(expected.abs().max()))


def test_closed_forms_scale_and_change_precision() -> None:
    operator, shape, weight = closed_forms()[0]
    gram = operator.double().gram(weight, shape)
    rhs = rand(1, *shape)
    assert torch.allclose((gram * 2.5).solve(rhs, 0.3), 0.4 * gram.solve(rhs, 0.12))
    single = gram.to(torch.float32)
    assert single.weight.dtype == torch.float32
    assert single.outer.dtype == torch.float32
    assert torch.allclose((gram + Diagonal(torch.full((1, 1, 1), 0.3).double())).solve(rhs), gram.solve(rhs, 0.3))
    with pytest.raises(ValueError, match="not positive definite"):
        operator.gram(weight, shape).solve(rhs, 0.0)


def test_valid_convolution_is_scipys() -> None:
    kernel, x = rand(3, 4), rand(2, 9, 11)
    got = likelihoods.ValidConvolution(kernel, (9, 11)).double()(x)
    for channel, image in zip(got, x, strict=True):
        expected = signal.convolve2d(image.numpy(), kernel.numpy(), mode="valid")
        assert np.allclose(channel.numpy(), expected)


def test_product_convolution_is_the_sum_written_out() -> None:
    kernels, weights, x = rand(3, 3, 5), rand(3, 8, 9, seed=1), rand(2, 8, 9, seed=2)
    got = likelihoods.ProductConvolution(kernels, weights).double()(x)
    for channel, image in zip(got, x, strict=True):
        parts = [
            ndimage.convolve((w * image).numpy(), k.numpy(), mode="wrap") for k, w in zip(kernels, weights, strict=True)
        ]
        assert np.allclose(channel.numpy(), sum(parts))


def test_one_kernel_everywhere_is_a_convolution() -> None:
    kernel, x = rand(3, 3), rand(1, 8, 9)
    share = torch.linspace(0, 1, 9).double().expand(8, 9)
    operator = likelihoods.ProductConvolution(torch.stack([kernel, kernel]), torch.stack([share, 1 - share]))
    assert torch.allclose(operator(x), likelihoods.Convolution(kernel, (8, 9))(x))


@pytest.mark.parametrize(
    ("operator", "shape"),
    [
        (likelihoods.SuperResolution(2, rand(3, 4), (6, 4)), (1, 6, 4)),
        (likelihoods.ValidConvolution(rand(3, 2), (6, 5)), (1, 6, 5)),
        (likelihoods.ProductConvolution(rand(2, 3, 3), rand(2, 6, 5)), (1, 6, 5)),
        (likelihoods.PaddedFourier(2, real=True), (1, 4, 3)),
        (likelihoods.PaddedFourier(3, real=True), (1, 4, 3)),
    ],
    ids=lambda v: v.describe() if isinstance(v, likelihoods.Operator) else "",
)
@pytest.mark.parametrize("varying", [False, True])
def test_approximations_are_the_nearest_circulant_matrices(
    operator: likelihoods.Operator, shape: tuple[int, ...], varying: bool
) -> None:
    measured = operator.output_shape(shape)
    weight = torch.full((1, 1, 1), 0.7, dtype=torch.float64)
    if varying:
        weight = 0.5 + torch.rand(measured, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gram = operator.double().gram(weight, shape)
    d = math.prod(shape)
    matrix = gram.apply(torch.eye(d, dtype=torch.float64).reshape(d, *shape)).reshape(d, d)
    near = gram.circulant()
    assert near is not None
    expected = nearest_circulant(matrix, shape[-2:])
    if isinstance(operator, likelihoods.ProductConvolution) and varying:
        # There, the weights count by their mean alone.
        assert float((near.spectrum[0] - expected).abs().max()) < 0.3 * float(expected.max())
    else:
        assert torch.allclose(near.spectrum.expand(1, *shape[-2:])[0], expected, atol=1e-6)


def test_blur_that_varies_is_preconditioned() -> None:
    std = torch.tensor([1.0, 2.5])
    t = torch.arange(-6.0, 7)
    line = torch.exp(-(t[None] ** 2) / (2 * std[:, None] ** 2))
    kernels = line[:, :, None] * line[:, None, :]
    share = torch.linspace(0, 1, 48).expand(48, 48)
    operator = likelihoods.ProductConvolution(
        kernels / kernels.sum((1, 2), keepdim=True), torch.stack([share, 1 - share])
    ).double()
    gram = operator.gram(torch.ones(1, 1, 1).double(), (1, 48, 48))
    assert iterations(gram, 1e-3, preconditioned=True) < 0.7 * iterations(gram, 1e-3, preconditioned=False)


def iterations(gram: Structure, shift: float, *, preconditioned: bool) -> int:
    near = gram.circulant()
    assert near is not None
    return conjugate_gradients(
        lambda v: gram.apply(v) + shift * v,
        rand(1, 48, 48),
        precondition=(lambda v: near.solve(v, shift)) if preconditioned else None,
        tolerance=1e-6,
    ).iterations


@pytest.mark.parametrize("pattern", ["RGGB", "BGGR", "GRBG", "GBRG"])
def test_bayer_reads_the_colour_of_each_filter(pattern: str) -> None:
    x = rand(3, 5, 4)
    y = likelihoods.Bayer(pattern, (5, 4)).double()(x)
    for i in range(5):
        for j in range(4):
            colour = "RGB".index(pattern[2 * (i % 2) + j % 2])
            assert y[0, i, j] == x[colour, i, j]


def test_channels_mix_by_a_matrix() -> None:
    matrix, x = rand(2, 3), rand(4, 3, 5, 6)
    got = likelihoods.ChannelMix(matrix)(x)
    assert torch.allclose(got, (matrix @ x.flatten(-2)).reshape(4, 2, 5, 6))
    # A camera whose filters are no primaries of the image's colour space.
    camera = likelihoods.Bayer("RGGB", (6, 6)).double() @ likelihoods.ChannelMix(rand(3, 3))
    colours = likelihoods.ChannelMix(rand(3, 3))(x[:, :, :5])
    assert camera.output_shape((3, 6, 6)) == (1, 6, 6)
    assert colours.shape == (4, 3, 5, 6)


def test_structured_random_measurements_are_signs_cosines_and_a_subset() -> None:
    shape = (2, 6, 5)
    operator = likelihoods.StructuredRandom(40, shape, seed=3).double()
    x = rand(*shape)
    full = scipy_fft.dctn((operator.signs * x).numpy(), type=2, norm="ortho", axes=(-2, -1)).ravel()
    assert np.allclose(operator(x).numpy(), full[operator.subset.numpy()])
    matrix = dense(operator, shape)
    assert torch.allclose(matrix @ matrix.T, torch.eye(40, dtype=torch.float64), atol=1e-12)
    again = likelihoods.StructuredRandom(40, shape, seed=3).double()
    assert torch.equal(operator(x), again(x))
    assert not torch.equal(operator(x), likelihoods.StructuredRandom(40, shape, seed=4).double()(x))


@settings(max_examples=15)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.data())
def test_structured_random_rows_are_orthonormal_in_any_shape(c: int, h: int, w: int, data: st.DataObject) -> None:
    m = data.draw(st.integers(1, c * h * w))
    operator = likelihoods.StructuredRandom(m, (c, h, w)).double()
    y = rand(m)
    assert torch.allclose(operator(operator.adjoint(y)), y, atol=1e-12)


def test_a_stack_holds_every_measurement() -> None:
    first, second = likelihoods.GaussianBlur(1.0, (6, 5)).double(), likelihoods.Mask(torch.eye(6, 5).double())
    stack = likelihoods.Stack([first, second])
    x = rand(3, 1, 6, 5)
    assert stack.output_shape((1, 6, 5)) == (2, 1, 6, 5)
    assert torch.equal(stack(x), torch.stack([first(x), second(x)], 1))
    assert torch.equal(stack.sampled, torch.stack([torch.ones(1, 6, 5).bool(), torch.eye(6, 5)[None] > 0]))


def test_a_stack_is_the_sum_of_likelihoods() -> None:
    operators = [likelihoods.GaussianBlur(s, (6, 5)).double() for s in (0.5, 1.5)]
    y, std, x = rand(2, 1, 6, 5), torch.tensor([0.3, 0.7]).double().reshape(2, 1, 1, 1), rand(3, 1, 6, 5, seed=2)
    together = likelihoods.Gaussian(y, likelihoods.Stack(operators), std)
    apart = likelihoods.Gaussian(y[0], operators[0], 0.3) + likelihoods.Gaussian(y[1], operators[1], 0.7)
    assert torch.allclose(together(x), apart(x))
    assert torch.allclose(together.grad(x), apart.grad(x))
    assert isinstance(together.quadratic().structure, Fourier)


@pytest.mark.parametrize(
    ("operator", "shape", "kind", "varying"),
    [
        (likelihoods.SuperResolution(2, "box", (6, 6)), (1, 6, 6), Woodbury, MatrixFree),
        (likelihoods.SuperResolution(1, "box", (6, 6)), (1, 6, 6), Fourier, MatrixFree),
        (likelihoods.Bayer("RGGB", (6, 6)), (3, 6, 6), Diagonal, Diagonal),
        (likelihoods.StructuredRandom(30, (1, 6, 6)), (1, 6, 6), Woodbury, Woodbury),
        (likelihoods.PaddedFourier(2), (1, 6, 6), Diagonal, MatrixFree),
        (likelihoods.PaddedFourier(1), (1, 6, 6), Diagonal, Fourier),
        (likelihoods.Stack([likelihoods.Identity(), likelihoods.Mask(torch.eye(6))]), (1, 6, 6), Diagonal, Diagonal),
        (likelihoods.ValidConvolution(torch.ones(3, 3), (6, 6)), (1, 6, 6), MatrixFree, MatrixFree),
    ],
    ids=lambda v: v.describe() if isinstance(v, likelihoods.Operator) else getattr(v, "__name__", ""),
)
def test_structure_is_kept(operator: likelihoods.Operator, shape: tuple[int, ...], kind: type, varying: type) -> None:
    weight = 0.5 + torch.rand(operator.output_shape(shape), generator=torch.Generator().manual_seed(0))
    assert type(operator.gram(1.0, shape)) is kind
    assert type(operator.gram(weight, shape)) is varying


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (
            lambda: likelihoods.SuperResolution(2, "cubic", (8, 8)),
            ValueError,
            "kernel is 'cubic', expected a tensor or",
        ),
        (
            lambda: likelihoods.SuperResolution(2, "box", (8, 7)),
            ValueError,
            r"shape is \(8, 7\), expected sides divisible by 2",
        ),
        (lambda: likelihoods.SuperResolution(0, "box", (8, 8)), ValueError, "factor must be at least 1"),
        (lambda: likelihoods.SuperResolution(4, "bicubic", (8, 8)), ValueError, r"kernel has shape \(16, 16\)"),
        (
            lambda: likelihoods.SuperResolution(2, "box", (8, 8)).input_shape((1, 3, 4)),
            ValueError,
            r"coarse image's plane has shape \(3, 4\), expected \(4, 4\)",
        ),
        (lambda: likelihoods.ValidConvolution(torch.ones(9, 3), (8, 8)), ValueError, "expected at most the image's"),
        (
            lambda: likelihoods.ValidConvolution(torch.ones(3, 3), (8, 8)).input_shape((1, 8, 8)),
            ValueError,
            r"expected \(6, 6\)",
        ),
        (
            lambda: likelihoods.ProductConvolution(torch.ones(2, 3, 3), torch.ones(3, 8, 8)),
            ValueError,
            r"expected real \(K, h, w\) and \(K, H, W\)",
        ),
        (
            lambda: likelihoods.ProductConvolution(torch.ones(2, 3, 3), torch.zeros(2, 8, 8)),
            ValueError,
            "weights are zero everywhere",
        ),
        (lambda: likelihoods.Bayer("RGB", (8, 8)), ValueError, "pattern is 'RGB', expected four of R, G and B"),
        (lambda: likelihoods.Bayer("RGGR", (8, 8)), ValueError, "pattern is 'RGGR'"),
        (lambda: likelihoods.Bayer("RGGB", (8,)), ValueError, r"shape is \(8,\), expected \(H, W\) or \(3, H, W\)"),
        (lambda: likelihoods.ChannelMix(torch.zeros(2, 2)), ValueError, "matrix is zero"),
        (lambda: likelihoods.ChannelMix(torch.ones(2)), ValueError, r"expected real \(M, C\)"),
        (
            lambda: likelihoods.ChannelMix(torch.ones(2, 3)).output_shape((2, 4, 4)),
            ValueError,
            r"the image has shape \(2, 4, 4\), expected \(3, H, W\)",
        ),
        (
            lambda: likelihoods.StructuredRandom(17, (1, 4, 4)),
            ValueError,
            "num_measurements is 17, expected at most the 16",
        ),
        (lambda: likelihoods.StructuredRandom(7, (4, 4)), ValueError, r"shape is \(4, 4\), expected \(C, H, W\)"),
        (lambda: likelihoods.Stack([]), ValueError, "operators is empty"),
        (
            lambda: likelihoods.Stack([likelihoods.Identity(), likelihoods.Matrix(torch.ones(2, 16), (1, 4, 4))]),
            ValueError,
            r"measurements have \[1, 3\] dimensions",
        ),
        (
            lambda: likelihoods.Stack([likelihoods.Identity(), likelihoods.Downsample(2)]).output_shape((1, 4, 4)),
            ValueError,
            r"measurements of shape \(1, 4, 4\), \(1, 2, 2\), expected the same of all",
        ),
        (
            lambda: likelihoods.Stack([likelihoods.Identity()]).input_shape((2, 1, 4, 4)),
            ValueError,
            r"\(2, 1, 4, 4\), expected 1 measurements of 3 dimensions",
        ),
    ],
)
def test_refusals(make: object, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make()


@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize("varies", [False, True])
def test_block_averages_are_solved_in_closed_form(factor: int, varies: bool) -> None:
    """With weights that vary over the detector, some of them zero, as with one: by the matrix written out."""
    operator, shape = likelihoods.Downsample(factor), (2, 6, 12)
    coarse = (1, 6 // factor, 12 // factor)
    weight = torch.full((1, 1, 1), 3.0, dtype=torch.float64)
    if varies:
        weight = torch.rand(coarse, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        weight[..., :1] = 0
    structure = operator.gram(weight, shape)
    assert isinstance(structure, Woodbury)
    n = 2 * 6 * 12
    eye = torch.eye(n, dtype=torch.float64).reshape(n, *shape)
    matrix = operator.adjoint(weight * operator(eye)).reshape(n, n)
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    want = torch.linalg.solve(matrix + 0.2 * torch.eye(n, dtype=torch.float64), x.flatten(1).mT).mT.reshape(x.shape)
    torch.testing.assert_close(structure.solve(x, 0.2), want, rtol=0, atol=1e-10)
    torch.testing.assert_close(structure.apply(x).flatten(1), x.flatten(1) @ matrix, rtol=0, atol=1e-10)
    # The circulant approximation has the mean of the diagonals of the matrix: T. Chan's.
    near = structure.circulant()
    assert near is not None
    every = near.apply(eye).reshape(n, n)
    f = torch.fft.fft2(eye, norm="ortho").reshape(n, n)
    torch.testing.assert_close((f.conj() @ every.to(f) @ f.T).diagonal(), (f.conj() @ matrix.to(f) @ f.T).diagonal())
