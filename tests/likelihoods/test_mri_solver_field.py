"""Undersampled scans beside a Gaussian field: what preconditions their sum, what it saves, and that draws are exact."""

import pytest
import torch
from torch import Tensor

from potentia import energies, likelihoods
from potentia._cg import conjugate_gradients
from potentia._quadratic import Diagonal, Fourier, MatrixFree
from potentia._random import standard_normal
from potentia.likelihoods._near_inverse import FieldInverse

DOUBLE = torch.complex128
SIDE = 48


def normal(*shape: int, seed: int = 0) -> Tensor:
    return standard_normal(shape, torch.Generator().manual_seed(seed), dtype=DOUBLE)


def weights(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def field(*shape: int, complex_images: bool = True, std: float = 0.3) -> energies.GaussianField:
    mean = torch.zeros(1, 1, 1, dtype=DOUBLE if complex_images else torch.float64)
    return energies.GaussianField.power_law(shape, 2.0, std=std, mean=mean, dtype=torch.float64)


def dense(structure: MatrixFree, *shape: int, real: bool = False) -> Tensor:
    n = torch.Size(shape).numel()
    eye = torch.eye(n, dtype=torch.float64 if real else DOUBLE).reshape(n, *shape)
    return structure.apply(eye).reshape(n, n).T


def posterior(mask: Tensor, *, real: bool = False, cut: bool = True, channels: int = 1) -> MatrixFree:
    """The precision of a small scan and a field, on images (channels, 6, 5)."""
    maps = normal(2, 6, 5) if channels == 1 else normal(2, channels, 6, 5)
    if cut:
        maps[..., :2] = 0
    term = likelihoods.Gaussian(torch.zeros_like(maps), likelihoods.Sense(maps, mask, real=real), 0.1)
    form = term.quadratic()
    prior = field(channels, 6, 5, complex_images=not real).quadratic()
    assert form is not None
    assert prior is not None
    structure = (form + prior).structure
    assert isinstance(structure, MatrixFree)
    return structure


POINTS = (weights(6, 5) < 0.5).double()
COLUMNS = (weights(1, 5) < 0.6).double().expand(6, 5)


@pytest.mark.parametrize(
    "mask", [POINTS, COLUMNS, COLUMNS[:5, :5].T[[0, 1, 2, 3, 4, 0]]], ids=["points", "columns", "rows"]
)
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("real", [False, True])
def test_solutions_are_those_of_the_matrix(mask: Tensor, cut: bool, real: bool) -> None:
    structure = posterior(mask, cut=cut, real=real)
    x = normal(3, 1, 6, 5, seed=2)
    x = x.real.clone() if real else x
    matrix = dense(structure, 1, 6, 5, real=real)
    for shift in (0.0, 4.0):
        want = torch.linalg.solve(matrix + shift * torch.eye(30), x.flatten(1).mT).mT.reshape(x.shape)
        torch.testing.assert_close(structure.solve(x, shift), want, rtol=0, atol=1e-8)
    each = torch.tensor([0.5, 2.0, 30.0], dtype=torch.float64).reshape(3, 1, 1, 1)
    together = structure.solve(x, each)
    for k in range(3):
        torch.testing.assert_close(together[k], structure.solve(x[k], float(each[k])), rtol=0, atol=1e-8)


def test_draws_have_the_covariance_of_the_matrix() -> None:
    structure = posterior(POINTS)
    covariance = torch.linalg.inv(dense(structure, 1, 6, 5))
    number = 20_000
    z = structure.draw(torch.Generator().manual_seed(3), (number, 1, 6, 5), dtype=DOUBLE).flatten(1)
    scale = covariance.diagonal().real.sqrt()
    found = z.T @ z.conj() / (2 * number)  # each part has the covariance
    off = ((found - covariance) / torch.outer(scale, scale)).abs()
    # An entry of n averaged complex products of unit variance errs by 1 / sqrt(n) at most; the largest of 900 by 5.
    assert float(off.max()) < 5 / number**0.5
    # The planted fault: the prior's covariance alone.
    assert float(((found - covariance.diagonal().diag()) / torch.outer(scale, scale)).abs().max()) > 20 / number**0.5


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("cut", [False, True])
def test_the_preconditioner_is_hermitian_and_positive(real: bool, cut: bool) -> None:
    structure = posterior(POINTS, real=real, cut=cut)
    for shift in (0.0, 2.0):
        inverse = structure._precondition(shift)
        assert inverse is not None
        eye = torch.eye(30, dtype=torch.float64 if real else DOUBLE).reshape(30, 1, 6, 5)
        matrix = inverse(eye).reshape(30, 30).T
        assert torch.allclose(matrix, matrix.mH, atol=1e-10 * float(matrix.abs().max()))
        assert float(torch.linalg.eigvalsh(matrix).min()) > 0


def test_slices_have_neighbourhoods_of_their_own() -> None:
    structure = posterior(POINTS, channels=2)
    x = normal(2, 6, 5, seed=2)
    matrix = dense(structure, 2, 6, 5)
    want = torch.linalg.solve(matrix, x.flatten()).reshape(x.shape)
    torch.testing.assert_close(structure.solve(x), want, rtol=0, atol=1e-8)


def test_multiples_and_sums_of_several_fields_keep_it() -> None:
    maps = normal(2, 6, 5)
    form = likelihoods.Sense(maps, POINTS).gram(torch.full((1, 1, 1), 100.0, dtype=torch.float64), (1, 6, 5))
    one, two = Fourier(1 + weights(1, 6, 5)), Fourier(2 + weights(1, 6, 5))
    identity = Diagonal(torch.full((1, 1, 1), 0.7, dtype=torch.float64))
    v = normal(1, 6, 5, seed=1)
    direct = (form + Fourier(one.spectrum + two.spectrum))._precondition(0.7)  # type: ignore[attr-defined]
    for total in (
        form + one + two + identity,
        one + (form + two) + identity,
        (form * 2 + one * 2 + two * 2) * 0.5 + identity,
    ):
        assert isinstance(total, MatrixFree)
        inverse = total._precondition(0.0)
        assert inverse is not None
        torch.testing.assert_close(inverse(v), direct(v), rtol=1e-10, atol=1e-12)


def test_what_is_not_known_is_left_to_the_circulant() -> None:
    structure = posterior(POINTS)
    near = structure.near_inverse
    assert near is not None
    assert near(weights(1, 6, 5)) is None  # a shift that varies over the image
    deep = likelihoods.Sense(normal(2, 2, 6, 5), (weights(2, 6, 5) < 0.5).double(), axes=3)
    volume = deep.gram(1.0, (2, 6, 5)) + Fourier(1 + weights(1, 6, 5))
    assert isinstance(volume, MatrixFree)
    assert volume.near_inverse is not None
    assert volume.near_inverse(0.5) is None
    flat = likelihoods.Sense(normal(2, 6, 5), POINTS).gram(1.0, (1, 6, 5)) + Fourier(torch.zeros(1, 6, 5))
    assert isinstance(flat, MatrixFree)
    assert flat.near_inverse is not None
    assert flat.near_inverse(0.0) is None  # which has no inverse where nothing is seen


def test_factors_are_kept_by_spectrum_and_let_go() -> None:
    everywhere = torch.ones(1, 4, 4, dtype=torch.bool)
    inverse = FieldInverse([(0, 0, 0)], {(0, 0, 0): weights(1, 4, 4)}, everywhere, real=False)
    spectra = [torch.full((1, 4, 4), 1.0 + k) for k in range(6)]
    first = inverse._local(spectra[0])
    assert inverse._local(spectra[0].clone()) is first
    for spectrum in spectra[1:]:
        inverse(0.0, spectrum)
    assert [float(held[0, 0, 0]) for held, _ in inverse._made] == [3.0, 4.0, 5.0, 6.0]
    assert inverse._local(spectra[0]) is not first


def masks() -> dict[str, Tensor]:
    equispaced = torch.zeros(SIDE, SIDE)
    equispaced[:, ::4] = equispaced[:, SIDE // 2 - 3 : SIDE // 2 + 3] = 1
    return {
        "lines": likelihoods.cartesian_mask((SIDE, SIDE), 4, centre_fraction=0.08),
        "equispaced": equispaced,
        "points": likelihoods.poisson_disk_mask((SIDE, SIDE), 6),
    }


def scan_and_field(mask: Tensor, noise: float, cut: bool) -> MatrixFree:
    maps = likelihoods.birdcage_maps(8, (SIDE, SIDE))
    if cut:
        y = torch.linspace(-1, 1, SIDE)
        maps = maps * ((y[:, None] / 0.9).square() + (y / 0.75).square() < 1)
    form = likelihoods.Sense(maps, mask).gram(torch.full((1, 1, 1), noise**-2), (1, SIDE, SIDE))
    prior = field(1, SIDE, SIDE).float().quadratic()
    assert prior is not None
    total = form + prior.structure
    assert isinstance(total, MatrixFree)
    return total


def iterations(total: MatrixFree, precondition: object) -> int:
    white = total.white(torch.Generator().manual_seed(1), (1, 1, SIDE, SIDE), dtype=torch.complex64)
    return conjugate_gradients(
        total.apply,
        total.perturb(white),
        precondition=precondition,
        tolerance=1e-4,
        max_iterations=3000,  # type: ignore[arg-type]
    ).iterations


@pytest.mark.parametrize("name", ["lines", "equispaced", "points"])
@pytest.mark.parametrize("noise", [0.01, 0.05])
@pytest.mark.parametrize("cut", [False, True])
def test_fewer_iterations(name: str, noise: float, cut: bool) -> None:
    """A sixth and less where maps end within the image, else never more than the circulant, and half for most masks."""
    total = scan_and_field(masks()[name], noise, cut)
    near = total.approximation
    assert near is not None
    ours = iterations(total, total._precondition(0.0))
    circulant = iterations(total, lambda v: near.solve(v))
    assert ours <= (circulant / 5 if cut else circulant / (1.1 if name == "equispaced" else 1.7))


def test_the_covariance_outside_is_what_helps_where_maps_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: the local inverse alone."""
    total = scan_and_field(masks()["points"], 0.01, cut=True)
    ours = iterations(total, total._precondition(0.0))
    made = FieldInverse.__init__

    def without(self: FieldInverse, *args: object, **options: object) -> None:
        made(self, *args, **options)  # type: ignore[arg-type]
        self.outside = None

    monkeypatch.setattr(FieldInverse, "__init__", without)
    total = scan_and_field(masks()["points"], 0.01, cut=True)
    assert iterations(total, total._precondition(0.0)) > 5 * ours


def test_non_cartesian_scans_too() -> None:
    pytest.importorskip("finufft")
    maps = likelihoods.birdcage_maps(4, (SIDE, SIDE))
    y = torch.linspace(-1, 1, SIDE)
    maps = maps * ((y[:, None] / 0.9).square() + (y / 0.75).square() < 1)
    trajectory = likelihoods.radial_trajectory(SIDE // 3, 2 * SIDE, golden=True).float()
    form = likelihoods.NonCartesian(trajectory, (SIDE, SIDE), maps).gram(torch.full((1, 1), 2500.0), (1, SIDE, SIDE))
    prior = field(1, SIDE, SIDE).float().quadratic()
    assert prior is not None
    total = form + prior.structure
    assert isinstance(total, MatrixFree)
    near = total.approximation
    assert near is not None
    assert 4 * iterations(total, total._precondition(0.0)) < iterations(total, lambda v: near.solve(v))
