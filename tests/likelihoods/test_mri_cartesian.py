"""Cartesian operators of planes, slices, frames, volumes and simultaneous slices, against the same done another way."""

import pytest
import torch
from torch import Tensor

from potentia import Quadratic, likelihoods
from potentia._quadratic import Diagonal, MatrixFree
from potentia._random import standard_normal
from potentia.testing import check_operator, check_quadratic

DOUBLE = torch.complex128


def normal(*shape: int, seed: int = 0) -> Tensor:
    return standard_normal(shape, torch.Generator().manual_seed(seed), dtype=DOUBLE)


def some_mask(*shape: int, seed: int = 0) -> Tensor:
    m = (torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) < 0.6).double()
    m.view(-1)[0] = 1
    return m


def test_slices_are_planes_side_by_side() -> None:
    maps, mask, x = normal(2, 3, 6, 5), some_mask(3, 6, 5), normal(4, 3, 6, 5, seed=1)
    y = likelihoods.Sense(maps, mask)(x)
    assert y.shape == (4, 2, 3, 6, 5)
    for z in range(3):
        alone = likelihoods.Sense(maps[:, z], mask[z])
        assert torch.allclose(y[:, :, z], alone(x[:, z : z + 1]), atol=1e-12)
        back = likelihoods.Sense(maps, mask).adjoint(y)[:, z : z + 1]
        assert torch.allclose(back, alone.adjoint(y[:, :, z]), atol=1e-12)


def test_frames_share_maps_and_have_masks_of_their_own() -> None:
    maps, mask, x = normal(2, 1, 6, 5), some_mask(4, 6, 5), normal(4, 6, 5, seed=1)
    frames = likelihoods.Sense(maps, mask)
    assert frames.output_shape((4, 6, 5)) == (2, 4, 6, 5)
    for t in range(4):
        assert torch.allclose(frames(x)[:, t], likelihoods.Sense(maps[:, 0], mask[t])(x[t : t + 1]), atol=1e-12)
    with pytest.raises(ValueError, match=r"the image has shape \(3, 6, 5\), expected \(4, 6, 5\)"):
        frames.output_shape((3, 6, 5))


def test_without_a_mask_a_frame_the_number_of_frames_is_free() -> None:
    shared = likelihoods.Sense(normal(2, 1, 6, 5), some_mask(6, 5))
    for frames in (1, 4):
        assert shared.output_shape((frames, 6, 5)) == (2, frames, 6, 5)
        assert shared.input_shape((2, frames, 6, 5)) == (frames, 6, 5)
        check_operator(shared, (frames, 6, 5))


@pytest.mark.parametrize("real", [False, True])
def test_a_volume_is_transformed_along_depth_as_well(real: bool) -> None:
    mask, x = some_mask(4, 3, 5), normal(4, 3, 5, seed=1)
    y = likelihoods.Fourier(mask, axes=3)(x)
    axes = (-3, -2, -1)
    shifted = torch.fft.fftn(torch.fft.ifftshift(x, dim=axes), norm="ortho")
    assert torch.allclose(y, mask * torch.fft.fftshift(shifted, dim=axes), atol=1e-12)
    maps = normal(2, 4, 3, 5)
    several = likelihoods.Sense(maps, mask, axes=3)(x)
    for c in range(2):
        assert torch.allclose(several[c], likelihoods.Fourier(mask, axes=3)(maps[c] * x), atol=1e-12)
    single = likelihoods.Fourier(mask, axes=3, real=real)
    structure = single.gram(2.0, (4, 3, 5))
    rhs = x.real if real else x
    assert isinstance(structure, MatrixFree)
    assert structure.near_inverse is not None
    inverse = structure.near_inverse(0.5)
    assert inverse is not None
    if not real:  # what preconditions it is the inverse itself
        assert torch.allclose(structure.apply(inverse(rhs)) + 0.5 * inverse(rhs), rhs, atol=1e-11)
    solution = structure.solve(rhs, 0.5)
    assert torch.allclose(structure.apply(solution) + 0.5 * solution, rhs, atol=1e-9)


@pytest.mark.parametrize("axis", [-1, -2, -3])
def test_lines_sampled_from_end_to_end_cost_no_transform(axis: int) -> None:
    """The planted fault: a mask with one more point in one line varies along both of its axes."""
    line = torch.zeros(6, 6, 6)
    line.movedim(axis, 0)[2] = 1
    maps = normal(2, 6, 6, 6)
    volume = likelihoods.Sense(maps, line, axes=3)
    assert volume._normal(1.0).axes == (axis,)
    spoilt = line.clone()
    spoilt.movedim(axis, 0)[3, 0, 0] = 1
    more = likelihoods.Sense(maps, spoilt, axes=3)
    assert more._normal(1.0).axes == (-3, -2, -1)
    x = normal(6, 6, 6, seed=1)
    for operator in (volume, more):
        assert torch.allclose(operator.normal(x), operator.adjoint(operator(x)), atol=1e-12)


def test_weights_that_vary_along_lines_are_noticed() -> None:
    mask = torch.zeros(6, 5, dtype=torch.float64)
    mask[:, [0, 2, 3]] = 1
    operator = likelihoods.Sense(normal(2, 6, 5), mask)
    weight = 0.5 + torch.rand(2, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = normal(3, 1, 6, 5, seed=1)
    for w in (weight, weight[:, :1], weight[:, :, :1]):
        structure = operator.gram(w, (1, 6, 5))
        assert torch.allclose(structure.apply(x), operator.adjoint(w * operator(x)), atol=1e-12)


def test_full_sampling_is_diagonal() -> None:
    maps = normal(3, 6, 5)
    structure = likelihoods.Sense(maps, torch.ones(6, 5)).gram(torch.full((1, 1, 1), 4.0), (1, 6, 5))
    assert isinstance(structure, Diagonal)
    assert torch.allclose(structure.precision[0], 4 * maps.abs().square().sum(0))


def test_the_normal_operator_follows_a_change_of_precision() -> None:
    operator = likelihoods.Sense(normal(2, 6, 5).to(torch.complex64), some_mask(6, 5).float())
    x = normal(1, 6, 5)
    assert operator.normal(x.to(torch.complex64)).dtype == torch.complex64
    double = operator.double()
    assert torch.allclose(double.normal(x), double.adjoint(double(x)), atol=1e-12)


def test_a_known_phase_makes_up_for_half_of_k_space() -> None:
    """Partial Fourier: with the phase in the maps, five eighths of k-space determine a real image."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 16, 16, generator=g, dtype=torch.float64)
    phase = torch.polar(torch.ones(16, 16), torch.linspace(-1, 1, 16)[:, None].expand(16, 16)).to(DOUBLE)
    mask = likelihoods.partial_fourier_mask((16, 16), 5 / 8)
    constrained = likelihoods.Sense(phase[None], mask, real=True)
    assert float(torch.linalg.eigvalsh(dense_of(constrained, torch.float64)).min()) > 0.4
    free = likelihoods.Sense(phase[None], mask)
    assert float(torch.linalg.eigvalsh(dense_of(free, DOUBLE)).min()) < 1e-12
    solution = constrained.gram(1.0, (1, 16, 16)).solve(constrained.adjoint(constrained(x)), 0.0)
    assert torch.allclose(solution, x, atol=1e-8)


def dense_of(operator: likelihoods.Operator, dtype: torch.dtype) -> Tensor:
    eye = torch.eye(256, dtype=dtype).reshape(256, 1, 16, 16)
    return operator.normal(eye).reshape(256, 256).T


def test_blips_move_slices_by_a_share_of_the_field_of_view() -> None:
    x = normal(2, 6, 8)
    maps = torch.ones(1, 2, 6, 8, dtype=DOUBLE)
    for axis, n in ((-1, 8), (-2, 6)):
        phases = likelihoods.caipi_phases(2, (6, 8), axis=axis).to(DOUBLE)
        y = likelihoods.SimultaneousSlices(maps, phases)(x)
        seen = likelihoods.Fourier().adjoint(y)[0]
        assert torch.allclose(seen, x[0] + x[1].roll(n // 2, axis), atol=1e-6)  # phases are of single precision


def test_simultaneous_slices_are_a_sum_of_planes() -> None:
    maps, mask, x = normal(3, 2, 6, 5), some_mask(6, 5), normal(2, 6, 5, seed=1)
    phases = torch.polar(torch.ones(2, 6, 5, dtype=torch.float64), torch.linspace(0, 5, 60).double().reshape(2, 6, 5))
    y = likelihoods.SimultaneousSlices(maps, phases, mask)(x)
    want = sum(phases[z] * likelihoods.Sense(maps[:, z], mask)(x[z : z + 1]) for z in range(2))
    assert torch.allclose(y, torch.as_tensor(want), atol=1e-12)


VARIANTS = {
    "columns": lambda: likelihoods.Sense(normal(2, 4, 3), some_mask(3).expand(4, 3)),
    "rows": lambda: likelihoods.Sense(normal(2, 4, 3), some_mask(4, 1).expand(4, 3)),
    "points": lambda: likelihoods.Sense(normal(2, 4, 3), some_mask(4, 3)),
    "frames": lambda: likelihoods.Sense(normal(2, 1, 4, 3), some_mask(2, 4, 3)),
    "volume": lambda: likelihoods.Sense(normal(2, 2, 4, 3), some_mask(2, 4, 3), axes=3),
    "columns, real": lambda: likelihoods.Sense(normal(2, 4, 3), some_mask(3).expand(4, 3), real=True),
    "points, real": lambda: likelihoods.Sense(normal(2, 4, 3), some_mask(4, 3), real=True),
    "at once": lambda: likelihoods.SimultaneousSlices(normal(2, 2, 4, 3), None, some_mask(4, 3)),
    "off resonance": lambda: likelihoods.OffResonance(
        likelihoods.Sense(normal(2, 4, 3), some_mask(4, 3)),
        50 * normal(4, 3).real,
        torch.linspace(0, 5e-3, 4)[:, None],
        2,
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_draws_have_the_dense_covariance(name: str) -> None:
    """Perturb and solve, within six standard errors of every number, against the inverse of the dense matrix."""
    operator = VARIANTS[name]()
    coils = (2, 4, 3)
    shape = operator.input_shape((2, 2, 4, 3) if name in ("frames", "volume") else coils)
    generator = torch.Generator().manual_seed(3)
    dtype = torch.float64 if not operator.complex_input(True) else DOUBLE
    x = standard_normal(shape, generator, dtype=dtype)
    term = likelihoods.Gaussian(operator.measure(x, 0.5, generator), operator, 0.5)
    check_quadratic(term, shape, num_draws=1000)


def test_draws_that_leave_the_coils_out_are_caught() -> None:
    """The planted fault of published code: noise drawn as if one coil measured the image directly."""
    operator = VARIANTS["points"]()
    structure = operator.gram(1.0, (1, 4, 3))
    assert isinstance(structure, MatrixFree)
    single = likelihoods.Fourier(operator.sampled).gram(1.0, (1, 4, 3))
    wrong = MatrixFree(structure.action, lambda g, s, d: single.noise(g, s, dtype=d))
    with pytest.raises(AssertionError, match="draws have covariance"):
        check_quadratic(Quadratic(wrong, torch.zeros(1, 4, 3, dtype=DOUBLE)), (1, 4, 3), num_draws=1500)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: likelihoods.Sense(torch.ones(2, 3, 4, 4), axes=4), "axes is 4, expected 2"),
        (lambda: likelihoods.Fourier(axes=1), "axes is 1, expected 2"),
        (lambda: likelihoods.Sense(torch.ones(2, 4, 4), axes=3), r"needs coil_maps \(coils, D, H, W\)"),
        (lambda: likelihoods.Sense(torch.ones(2, 3, 4, 4), torch.ones(2, 4, 4)), "does not broadcast"),
        (lambda: likelihoods.Sense(torch.ones(2, 4, 4), torch.ones(3, 4, 4)), "does not broadcast"),
        (lambda: likelihoods.Sense(torch.ones(4, 4)), r"expected \(coils, H, W\) or \(coils, D, H, W\)"),
        (lambda: likelihoods.SimultaneousSlices(torch.ones(2, 4, 4)), r"coil_maps are \(2, 4, 4\)"),
        (lambda: likelihoods.SimultaneousSlices(torch.zeros(2, 2, 4, 4)), "coil_maps are zeros"),
        (lambda: likelihoods.SimultaneousSlices(torch.ones(2, 2, 4, 4), 2 * torch.ones(2, 1, 4)), "got up to 2"),
        (lambda: likelihoods.SimultaneousSlices(torch.ones(2, 2, 4, 4), torch.ones(1, 1, 4)), "broadcast to"),
        (lambda: likelihoods.SimultaneousSlices(torch.ones(2, 2, 4, 4), None, torch.ones(3, 4, 4)), "expected"),
        (lambda: likelihoods.SimultaneousSlices(torch.ones(2, 2, 4, 4), None, torch.ones(1, 1, 4, 4)), "expected"),
        (lambda: likelihoods.caipi_phases(2, (4, 4), axis=0), "axis is 0, expected -1 or -2"),
        (lambda: likelihoods.caipi_phases(0, (4, 4)), "slices must be at least 1"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(call: object, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()  # type: ignore[operator]
