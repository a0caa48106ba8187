"""Operators of PyLops and SciPy as operators of ours."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import linalg

from potentia import likelihoods
from potentia.testing import check_operator

pylops = pytest.importorskip("pylops", reason="PyLops is not installed: its operators cannot be adapted")

PLANE = (6, 8)
IMAGE = (1, *PLANE)


def rand(*shape: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).standard_normal(shape)


def tensor(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(rand(*shape, seed=seed))


# Name, operator, the shape of our images, that of the measurement.
OPERATORS = [
    ("MatrixMult", pylops.MatrixMult(rand(5, 48)), IMAGE, (5,)),
    ("MatrixMult, complex", pylops.MatrixMult(rand(5, 48) + 1j * rand(5, 48, seed=1), dtype=complex), IMAGE, (5,)),
    ("Identity", pylops.Identity(48), IMAGE, (48,)),
    ("Diagonal", pylops.Diagonal(rand(48)), IMAGE, (48,)),
    ("FirstDerivative", pylops.FirstDerivative(PLANE, axis=1, edge=True), IMAGE, PLANE),
    ("Laplacian", pylops.Laplacian(PLANE), IMAGE, PLANE),
    ("Gradient", pylops.Gradient(PLANE), IMAGE, (2, *PLANE)),
    ("Restriction", pylops.Restriction((3, *PLANE), [0, 2, 5], axis=-1), (3, *PLANE), (3, 6, 3)),
    ("Convolve2D", pylops.signalprocessing.Convolve2D(PLANE, rand(3, 3), offset=(1, 1)), IMAGE, PLANE),
    ("FFT2D", pylops.signalprocessing.FFT2D(PLANE, dtype=complex), IMAGE, PLANE),
    ("FFT2D, real", pylops.signalprocessing.FFT2D(PLANE, real=True), IMAGE, (6, 5)),
    ("Bilinear", pylops.signalprocessing.Bilinear(np.array([[1.2, 3.4], [0.3, 6.1]]), PLANE), IMAGE, (2,)),
    ("DCT", pylops.signalprocessing.DCT(PLANE), IMAGE, PLANE),
    ("Sum", pylops.Sum(PLANE, axis=0), IMAGE, (8,)),
    ("Roll after Flip", pylops.Roll(PLANE, axis=0, shift=2) @ pylops.Flip(PLANE), IMAGE, PLANE),
    ("VStack", pylops.VStack([pylops.Identity(48), pylops.MatrixMult(rand(3, 48))]), IMAGE, (51,)),
    ("a multiple", 2.5 * pylops.Gradient(PLANE), IMAGE, (2, *PLANE)),
    ("SciPy", linalg.aslinearoperator(rand(5, 48)), IMAGE, (5,)),
    ("SciPy, sparse", linalg.aslinearoperator(sparse.random_array((9, 96), density=0.3, rng=0)), (2, *PLANE), (9,)),
    ("SciPy, complex", linalg.aslinearoperator(rand(5, 48) + 1j * rand(5, 48, seed=1)), IMAGE, (5,)),
]


@pytest.mark.parametrize(("op", "shape", "measured"), [e[1:] for e in OPERATORS], ids=[e[0] for e in OPERATORS])
def test_operators_keep_the_contract(op: object, shape: tuple[int, ...], measured: tuple[int, ...]) -> None:
    adapted = likelihoods.from_pylops(op, shape)
    assert adapted.output_shape(shape) == measured
    check_operator(adapted, shape)


def test_images_lie_in_the_order_of_the_operators_dims() -> None:
    op = pylops.FirstDerivative((2, *PLANE), axis=1, kind="forward")
    x = tensor(3, 2, *PLANE)
    got = likelihoods.from_pylops(op, (2, *PLANE))(x)
    for one, image in zip(got, x, strict=True):
        assert np.allclose(one.numpy(), op @ image.numpy())


def test_transforms_of_real_images_are_marked_by_pylops() -> None:
    op = pylops.signalprocessing.FFT2D(PLANE, real=True)
    x = tensor(2, *IMAGE)
    adapted = likelihoods.from_pylops(op, IMAGE)
    assert adapted.real
    assert np.allclose(adapted(x)[0].numpy(), op @ x[0, 0].numpy())
    assert not adapted.adjoint(adapted(x)).is_complex()
    # Of any other complex operator, the caller says it.
    full = pylops.signalprocessing.FFT2D(PLANE, dtype=complex)
    assert likelihoods.from_pylops(full, IMAGE).complex_input(True)
    real = likelihoods.from_pylops(full, IMAGE, real=True)
    assert not real.complex_input(True)
    check_operator(real, IMAGE)


def test_precision_and_place_are_the_tensors() -> None:
    adapted = likelihoods.from_pylops(pylops.Laplacian(PLANE), IMAGE)
    x = tensor(*IMAGE)
    assert adapted(x.float()).dtype == torch.float32
    assert torch.allclose(adapted(x.float()).double(), adapted(x), atol=1e-5)
    both = adapted(torch.complex(x, 2 * x))
    assert both.dtype == torch.complex128
    assert torch.allclose(both.imag, 2 * adapted(x))


def test_autograd_sees_through_it() -> None:
    adapted = likelihoods.from_pylops(pylops.Gradient(PLANE), IMAGE)
    assert torch.autograd.gradcheck(adapted, (tensor(2, *IMAGE).requires_grad_(),))
    assert torch.autograd.gradgradcheck(lambda x: adapted(x) ** 2, (tensor(1, *IMAGE).requires_grad_(),))
    z = torch.complex(tensor(*IMAGE), tensor(*IMAGE, seed=1)).requires_grad_()
    phase = likelihoods.from_pylops(pylops.signalprocessing.FFT2D(PLANE, dtype=complex), IMAGE)
    assert torch.autograd.gradcheck(lambda x: phase(x).abs().square(), (z,))


def test_a_likelihood_on_an_operator_of_pylops() -> None:
    adapted = likelihoods.from_pylops(pylops.Laplacian(PLANE), IMAGE)
    energy = likelihoods.Gaussian(adapted(tensor(*IMAGE)), adapted, 0.5)
    assert torch.allclose(energy(tensor(*IMAGE)), torch.zeros(()).double())
    chain = likelihoods.ToneCurve() @ adapted
    x, t = tensor(2, *IMAGE, seed=1), tensor(2, *IMAGE, seed=2)
    step = 1e-6
    expected = (chain(x + step * t) - chain(x - step * t)) / (2 * step)
    assert torch.allclose(chain.jvp(x, t), expected, atol=1e-6)


class Wrong(linalg.LinearOperator):
    """Twice the image, whose adjoint is said to be 2.01 times it."""

    def __init__(self) -> None:
        super().__init__(np.float64, (48, 48))

    def _matmat(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        return 2 * x

    def _rmatmat(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        return 2.01 * y


def test_what_cannot_be_adapted_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Wrong: its adjoint is none: .* differ by .* expected at most 0\.001"):
        likelihoods.from_pylops(Wrong(), IMAGE)
    with pytest.raises(TypeError, match="from_pylops: expected an operator with matmat and rmatmat, got ndarray"):
        likelihoods.from_pylops(rand(3, 48), IMAGE)
    with pytest.raises(
        ValueError, match=r"the operator has shape \(48, 48\), expected as many columns as .* \(3, 6, 8\)"
    ):
        likelihoods.from_pylops(pylops.Identity(48), (3, *PLANE))
    with pytest.raises(ValueError, match=r"from_pylops: shape is \(6, 8\), expected \(C, H, W\)"):
        likelihoods.from_pylops(pylops.Identity(48), PLANE)
    adapted = likelihoods.from_pylops(pylops.Identity(48), IMAGE)
    with pytest.raises(ValueError, match=r"the image has shape \(1, 8, 6\), expected \(1, 6, 8\)"):
        adapted.output_shape((1, 8, 6))
    complex_one = likelihoods.from_pylops(pylops.signalprocessing.FFT2D(PLANE, dtype=complex), IMAGE)
    with pytest.raises(ValueError, match="measurements are complex, got real ones"):
        complex_one.complex_input(False)
