"""Radon and fan-beam projections against line integrals known in closed form, and against scikit-image."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from potentia import likelihoods
from potentia._cg import conjugate_gradients
from potentia.likelihoods._tomography import _Rays
from potentia.testing import check_operator

# Centre (x to the right, y up), half axes, tilt in degrees, value.
ELLIPSES = [
    (0.0, 0.0, 45.0, 30.0, 20.0, 1.0),
    (12.0, -9.0, 8.0, 8.0, 0.0, 0.7),
    (-15.0, 6.0, 6.0, 14.0, -30.0, -0.4),
]


def phantom(n: int, scale: float = 1.0) -> torch.Tensor:
    """The ellipses, ``scale`` times as large, each pixel its mean over 8 by 8 points: (1, n, n)."""
    t = (torch.arange(8 * n, dtype=torch.float64) + 0.5) / 8 - n / 2
    x, y = t[None, :] / scale, -t[:, None] / scale
    image = torch.zeros(8 * n, 8 * n, dtype=torch.float64)
    for cx, cy, a, b, tilt, value in ELLIPSES:
        c, s = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
        u, v = (x - cx) * c + (y - cy) * s, -(x - cx) * s + (y - cy) * c
        image += value * ((u / a) ** 2 + (v / b) ** 2 <= 1)
    return image.reshape(n, 8, n, 8).mean((1, 3))[None]


def line_integrals(px: torch.Tensor, py: torch.Tensor, dx: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
    """Of the ellipses, along lines through (px, py) in direction (dx, dy), in closed form.

    In the frame where an ellipse is the unit disc, a line of direction d passes the centre at a distance r, and leaves
    a chord of 2 sqrt(1 - r^2) / |d|.
    """
    total = torch.zeros_like(px)
    for cx, cy, a, b, tilt, value in ELLIPSES:
        c, s = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
        pu, pv = ((px - cx) * c + (py - cy) * s) / a, (-(px - cx) * s + (py - cy) * c) / b
        du, dv = (dx * c + dy * s) / a, (-dx * s + dy * c) / b
        size = torch.sqrt(du**2 + dv**2)
        r = (pu * dv - pv * du) / size
        total += value * 2 * (1 - r**2).clamp_min(0).sqrt() / size
    return total


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


DEGREES = torch.arange(0, 180, 4, dtype=torch.float64)


def detector(operator: _Rays, spacing: float) -> torch.Tensor:
    return (torch.arange(operator.num_detectors, dtype=torch.float64) - (operator.num_detectors - 1) / 2) * spacing


@pytest.mark.parametrize("spacing", [1.0, 0.7])
def test_parallel_rays_see_the_radon_transform_of_ellipses(spacing: float) -> None:
    operator = likelihoods.Radon(DEGREES, (101, 101), spacing=spacing)
    theta, s = torch.deg2rad(DEGREES)[:, None], detector(operator, spacing)[None]
    expected = line_integrals(s * theta.cos(), s * theta.sin(), -theta.sin() + 0 * s, theta.cos() + 0 * s)
    # What the pixels leave, mostly at the edges: halved with the size of the pixels, see below.
    assert relative(operator(phantom(101))[0], expected) < 0.01


def test_the_error_vanishes_with_the_size_of_the_pixels() -> None:
    def error(n: int) -> float:
        scale = n / 101
        operator = likelihoods.Radon(DEGREES, (n, n))
        theta, s = torch.deg2rad(DEGREES)[:, None], detector(operator, 1.0)[None] / scale
        expected = line_integrals(s * theta.cos(), s * theta.sin(), -theta.sin() + 0 * s, theta.cos() + 0 * s)
        return relative(operator(phantom(n, scale))[0] / scale, expected)

    assert error(202) < 0.6 * error(101)


@pytest.mark.parametrize("kind", ["flat", "arc"])
def test_fans_see_the_same_ellipses_from_a_source(kind: str) -> None:
    degrees = torch.arange(0, 360, 8, dtype=torch.float64)
    source, behind, spacing = 150.0, 60.0, 1.3
    operator = likelihoods.FanBeam(degrees, (101, 101), source, behind, spacing=spacing, detector=kind)
    theta, s = torch.deg2rad(degrees)[:, None], detector(operator, spacing)[None]
    # The source and the detector's pixels, written out.
    sx, sy = source * theta.sin(), -source * theta.cos()
    if kind == "flat":
        ex, ey = -behind * theta.sin() + s * theta.cos(), behind * theta.cos() + s * theta.sin()
    else:
        gamma = s / (source + behind)
        ex = sx + (source + behind) * (-theta.sin() * gamma.cos() + theta.cos() * gamma.sin())
        ey = sy + (source + behind) * (theta.cos() * gamma.cos() + theta.sin() * gamma.sin())
    expected = line_integrals(sx + 0 * s, sy + 0 * s, ex - sx, ey - sy)
    # ``line_integrals`` counts in lengths of the direction given.
    expected = expected * torch.hypot(ex - sx, ey - sy)
    assert relative(operator(phantom(101))[0], expected) < 0.01


def test_scikit_image_agrees() -> None:
    transform = pytest.importorskip("skimage.transform", reason="scikit-image is not installed")
    image = phantom(101)
    expected = transform.radon(image[0].numpy(), theta=DEGREES.numpy(), circle=True)
    got = likelihoods.Radon(DEGREES, (101, 101), num_detectors=101)(image)[0]
    # It turns the image, by bilinear interpolation, which smooths a little more than Joseph's method.
    assert relative(got, torch.from_numpy(np.ascontiguousarray(expected.T))) < 0.003
    flipped = likelihoods.Radon(-DEGREES, (101, 101), num_detectors=101)(image)[0]
    assert relative(flipped, torch.from_numpy(np.ascontiguousarray(expected.T))) > 0.1


def test_a_source_far_away_gives_parallel_rays() -> None:
    image = phantom(41)
    far = likelihoods.FanBeam(DEGREES, (41, 41), 1e7, 0.0, num_detectors=41)(image)
    assert relative(far, likelihoods.Radon(DEGREES, (41, 41), num_detectors=41)(image)) < 1e-5


def test_by_default_every_ray_through_the_image_is_measured() -> None:
    image = torch.ones(1, 9, 14, dtype=torch.float64)
    for operator in (
        likelihoods.Radon(DEGREES, (9, 14), spacing=0.5),
        likelihoods.FanBeam(DEGREES, (9, 14), 20.0, 10.0, spacing=0.5),
        likelihoods.FanBeam(DEGREES, (9, 14), 20.0, 10.0, spacing=0.5, detector="arc"),
    ):
        # The sum along each parallel projection is the sum of the image, over the spacing.
        if isinstance(operator, likelihoods.Radon):
            assert torch.allclose(operator(image).sum(-1) * 0.5, image.sum().expand(1, 45), rtol=0.02)
        y = operator(image)
        # The outermost rays graze a corner at most.
        assert float(y[..., [0, -1]].max()) < 0.2 * float(y.max())
        assert bool((operator.adjoint(torch.ones_like(y)) > 0).all())


def test_axis_aligned_rays_are_sums_of_rows_and_columns() -> None:
    x = rand(2, 5, 7)
    operator = likelihoods.Radon(torch.tensor([0.0, 90.0]).double(), (5, 7), num_detectors=7)
    y = operator(x)
    assert torch.allclose(y[:, 0], x.sum(-2), atol=1e-9)
    # At 90 degrees the detector looks up, so that the rows come from the bottom, in the middle of seven.
    assert torch.allclose(y[:, 1, 1:6], x.sum(-1).flip(-1), atol=1e-9)
    assert float(y[:, 1, [0, 6]].abs().max()) < 1e-9


@settings(max_examples=15)
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 7), st.integers(1, 7)),
    st.lists(st.floats(-720, 720), min_size=1, max_size=4),
    st.floats(0.3, 2.0),
    st.booleans(),
)
def test_any_geometry_has_an_exact_adjoint(
    shape: tuple[int, ...], degrees: list[float], spacing: float, fan: bool
) -> None:
    angles = torch.tensor(degrees, dtype=torch.float64)
    options = {"num_detectors": 6, "spacing": spacing}
    operator = (
        likelihoods.FanBeam(angles, shape, 9.0, 2.0, **options) if fan else likelihoods.Radon(angles, shape, **options)
    )
    check_operator(operator, shape, torch.float64)


def test_many_images_at_once_are_worked_on_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    operator, x = likelihoods.Radon(DEGREES, (9, 8)), rand(3, 2, 9, 8)
    y = operator(x)
    back = operator.adjoint(y)
    monkeypatch.setattr("potentia.likelihoods._tomography._POINTS_AT_ONCE", 500)
    assert torch.allclose(operator(x), y)
    assert torch.allclose(operator.adjoint(y), back)


def test_autograd_sees_through_both_ways() -> None:
    operator = likelihoods.Radon(DEGREES[:5], (6, 5), num_detectors=6).double()
    x, y = rand(1, 6, 5).requires_grad_(), rand(1, 5, 6).requires_grad_()
    assert torch.autograd.gradcheck(operator, (x,))
    assert torch.autograd.gradcheck(operator.adjoint, (y,))


@pytest.mark.parametrize(
    ("operator", "saved"),
    [
        (likelihoods.Radon(torch.arange(0, 180, 3).double(), (40, 40)), 0.6),
        (likelihoods.FanBeam(torch.arange(0, 360, 6).double(), (40, 40), 80.0, 30.0), 0.6),
        (likelihoods.Radon(torch.arange(0, 90, 3).double(), (40, 40)), 0.75),
    ],
    ids=["parallel", "fan", "limited"],
)
def test_the_ramp_preconditions_conjugate_gradients(operator: likelihoods.Operator, saved: float) -> None:
    gram = operator.double().gram(torch.ones(1, 1, 1).double(), (1, 40, 40))
    near = gram.circulant()
    assert near is not None
    rhs = operator.adjoint(operator(rand(1, 40, 40)))
    for shift in (1.0, 10.0):
        counts = [
            conjugate_gradients(
                lambda v, shift=shift: gram.apply(v) + shift * v, rhs, precondition=precondition, tolerance=1e-5
            ).iterations
            for precondition in (None, lambda v, shift=shift: near.solve(v, shift))
        ]
        assert counts[1] < saved * counts[0]


def test_the_approximation_is_close_to_the_nearest_circulant_matrix() -> None:
    n = 24
    operator = likelihoods.Radon(torch.arange(0, 180, 3).double(), (n, n)).double()
    weight = 0.5 + torch.rand(60, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    eye = torch.eye(n * n, dtype=torch.float64).reshape(n * n, 1, n, n)
    matrix = (operator(eye) * weight.sqrt()).flatten(1)
    modes = torch.fft.ifft2(eye[:, 0].to(torch.complex128), norm="ortho").reshape(n * n, n * n)
    quotients = (modes @ matrix.to(modes.dtype)).abs().square().sum(1).reshape(n, n)
    near = operator.gram(weight[None], (1, n, n)).circulant()
    assert near is not None
    ratio = near.spectrum[0] / quotients
    # It leaves out where rays fall between pixels and detectors, which shows at the highest frequencies of an axis.
    assert 0.9 < float(ratio.median()) < 1.1
    assert float(ratio.min()) > 0.4
    assert float(ratio.max()) < 1.25


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: likelihoods.Radon(torch.ones(2, 2), (8, 8)), r"Radon: angles have shape \(2, 2\)"),
        (lambda: likelihoods.Radon([math.nan], (8, 8)), "angles has 1 NaN or infinite"),
        (lambda: likelihoods.Radon([0.0], (8,)), r"Radon: shape is \(8,\), expected \(H, W\) or \(C, H, W\)"),
        (lambda: likelihoods.Radon([0.0], (8, 8), spacing=0.0), "spacing must be positive"),
        (lambda: likelihoods.Radon([0.0], (8, 8), num_detectors=0), "num_detectors must be at least 1"),
        (
            lambda: likelihoods.Radon([0.0], (8, 8)).output_shape((1, 8, 9)),
            r"the image has shape \(1, 8, 9\), expected \(1, 8, 8\)",
        ),
        (
            lambda: likelihoods.Radon([0.0], (8, 8), num_detectors=3).input_shape((1, 2, 3)),
            r"the sinogram has shape \(1, 2, 3\), expected \(1, 1, 3\)",
        ),
        (
            lambda: likelihoods.FanBeam([0.0], (8, 8), 5.0, 1.0),
            "source_distance is 5 and detector_distance 1, expected more than half the image's diagonal, 5.65685",
        ),
        (lambda: likelihoods.FanBeam([0.0], (8, 8), 9.0, -1.0), "detector_distance -1, expected .* at least 0"),
        (
            lambda: likelihoods.FanBeam([0.0], (8, 8), 9.0, 1.0, detector="curved"),
            "detector is 'curved', expected 'flat' or 'arc'",
        ),
    ],
)
def test_refusals(make: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()
