"""Masks and trajectories: how much they take, where, and how far apart."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from potentia import likelihoods
from potentia.likelihoods._sampling import throw_darts

MASKS = {
    "2x1D": lambda: likelihoods.cartesian_mask((96, 96), 2),
    "8x1D": lambda: likelihoods.cartesian_mask((96, 96), 8, centre_fraction=0.04),
    "6x2D": lambda: likelihoods.poisson_disk_mask((96, 96), 6),
    "6x2D, random": lambda: likelihoods.random_mask((96, 96), 6),
}


@pytest.mark.parametrize(("name", "acceleration"), [("2x1D", 2), ("8x1D", 8), ("6x2D", 6), ("6x2D, random", 6)])
def test_the_usual_masks(name: str, acceleration: int) -> None:
    mask = MASKS[name]()
    assert mask.shape == (96, 96)
    assert mask.dtype == torch.float32
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert float(mask.sum()) == 96 * 96 / acceleration
    assert bool((mask[48, 47:50] == 1).all())
    if "1D" in name:
        assert torch.equal(mask, mask[:1].expand(96, 96))
    else:
        assert bool((mask[44:52, 44:52] == 1).all())


@settings(max_examples=20)
@given(st.integers(8, 40), st.integers(8, 40), st.floats(1.0, 6.0), st.floats(0.0, 4.0), st.integers(0, 3))
def test_masks_of_points_take_exactly_what_is_asked(h: int, w: int, rate: float, decay: float, seed: int) -> None:
    for make in (likelihoods.random_mask, likelihoods.poisson_disk_mask):
        mask = make((h, w), rate, centre=3, decay=decay, seed=seed)
        assert int(mask.sum()) == max(round(h * w / rate), 9)
        assert bool((mask[h // 2 - 1 : h // 2 + 2, w // 2 - 1 : w // 2 + 2] == 1).all())
        assert torch.equal(mask, make((h, w), rate, centre=3, decay=decay, seed=seed))


@pytest.mark.parametrize("make", [likelihoods.random_mask, likelihoods.poisson_disk_mask])
def test_seeds_differ(make: object) -> None:
    one, two = (make((32, 32), 4, seed=s) for s in (0, 1))  # type: ignore[operator]
    assert not torch.equal(one, two)


def nearest(points: Tensor) -> Tensor:
    """Distance of every point from its nearest neighbour."""
    at = points.nonzero().double()
    apart = torch.cdist(at, at)
    return apart.fill_diagonal_(math.inf).min(dim=1).values


@settings(max_examples=15)
@given(st.floats(1.0, 6.0), st.integers(0, 100))
def test_darts_keep_their_distance_and_leave_no_gap(distance: float, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(20 * 24)
    taken = torch.from_numpy(throw_darts(np.full((20, 24), distance), order, np.zeros((20, 24), dtype=bool)))
    if int(taken.sum()) > 1:
        assert float(nearest(taken).min()) >= distance
    # Every point is itself taken, or too near to one that is.
    grid = torch.cartesian_prod(torch.arange(20), torch.arange(24)).double()
    assert float(torch.cdist(grid, taken.nonzero().double()).min(dim=1).values.max()) < distance


def test_poisson_disks_spread_further_than_chance() -> None:
    """Without a centre and of uniform density: the distance kept, against that of points drawn at random."""
    disks = likelihoods.poisson_disk_mask((64, 64), 8, centre=0, decay=0.0)
    chance = likelihoods.random_mask((64, 64), 8, centre=0, decay=0.0)
    # Dense packings of one point in 8 lie 3.04 apart; darts thrown at random reach about three quarters of that.
    assert float(nearest(disks).min()) >= 2
    assert float(nearest(chance).min()) == 1
    assert float(nearest(disks).mean()) > 1.3 * float(nearest(chance).mean())


@pytest.mark.parametrize("make", [likelihoods.random_mask, likelihoods.poisson_disk_mask])
def test_density_falls_from_the_centre_and_is_the_same_on_all_sides(make: object) -> None:
    total = torch.stack([make((48, 48), 6, centre=0, decay=2.0, seed=s) for s in range(40)]).mean(0)  # type: ignore[operator]
    y = torch.arange(48) - 24
    r = (y[:, None].square() + y.square()).double().sqrt() / 48
    rings = [float(total[(r >= a) & (r < a + 0.1)].mean()) for a in (0.0, 0.15, 0.3, 0.45)]
    assert rings == sorted(rings, reverse=True)
    assert rings[0] > 1.5 * rings[-1]
    quarters = torch.stack([total[1:24, 1:24], total[1:24, 25:], total[25:, 1:24], total[25:, 25:]]).mean((1, 2))
    # Each is a mean of 40 * 23^2 numbers of variance below 1/4; four standard errors of their differences.
    assert float(quarters.max() - quarters.min()) < 4 * math.sqrt(2 * 0.25 / (40 * 23**2))


def test_lines_of_variable_density() -> None:
    dense = torch.stack([likelihoods.cartesian_mask((1, 64), 4, decay=3.0, seed=s)[0] for s in range(200)]).mean(0)
    assert float(dense.sum()) == pytest.approx(16)
    assert float(dense[20:28].mean()) > 3 * float(dense[:8].mean())
    # Symmetric about the centre: means of 8 lines over 200 masks, within four standard errors.
    assert abs(float(dense[20:28].mean() - dense[37:45].mean())) < 4 * math.sqrt(2 * 0.25 / (8 * 200))


def test_equispaced_lines_with_a_centre() -> None:
    mask = likelihoods.equispaced_mask((4, 40), 4, centre_fraction=0.1, offset=1)
    taken = mask[0].nonzero().flatten().tolist()
    assert taken == sorted({*range(1, 40, 4), 18, 19, 20, 21})


@pytest.mark.parametrize("axis", [-1, -2])
def test_partial_fourier_and_its_mirror_image_cover_everything(axis: int) -> None:
    mask = likelihoods.partial_fourier_mask((16, 16), 5 / 8, axis=axis)
    assert float(mask.mean()) == 5 / 8
    mirrored = mask.flip((-2, -1)).roll((1, 1), (-2, -1))  # k -> -k of a centred, even grid
    assert bool((mask + mirrored > 0).all()), "of real images, what is left out is the conjugate of what is taken"
    assert float((mask * mirrored).mean()) == 1 / 4


@pytest.mark.parametrize("samples", [16, 17])
def test_spokes_pass_through_the_centre(samples: int) -> None:
    k = likelihoods.radial_trajectory(5, samples).reshape(5, samples, 2)
    assert torch.equal(k[:, samples // 2], torch.zeros(5, 2, dtype=torch.float64))
    assert float(k.abs().max()) <= 0.5
    angle = torch.atan2(k[:, -1, 0], k[:, -1, 1])
    assert torch.allclose(angle.diff(), torch.full((4,), math.pi / 5, dtype=torch.float64))
    step = k[:, 1:] - k[:, :-1]
    assert torch.allclose(step.norm(dim=-1), torch.full((5, samples - 1), 1 / samples, dtype=torch.float64))


def test_golden_spokes_cover_all_directions_at_any_number() -> None:
    """Gaps between directions take at most three sizes, the largest at most golden ratio squared of the smallest."""
    for spokes in (5, 8, 13, 21, 30):
        end = likelihoods.radial_trajectory(spokes, 4, golden=True, seed=3).reshape(spokes, 4, 2)[:, 0]
        angle = (torch.atan2(end[:, 0], end[:, 1]) % math.pi).sort().values
        gaps = torch.cat([angle.diff(), angle[:1] + math.pi - angle[-1:]])
        assert float(gaps.max() / gaps.min()) < ((1 + math.sqrt(5)) / 2) ** 2 + 1e-9


def test_spirals_share_out_the_circle() -> None:
    k = likelihoods.spiral_trajectory(4, 200, turns=3.0).reshape(4, 200, 2)
    radius = k.norm(dim=-1)
    assert torch.allclose(radius, 0.5 * (torch.arange(200, dtype=torch.float64) / 200).expand(4, 200), atol=1e-12)
    turned = torch.stack([k[0, :, 1], -k[0, :, 0]], dim=-1)  # by a quarter: (ky, kx) -> (kx, -ky)
    assert torch.allclose(k[1], turned, atol=1e-12)
    inner = likelihoods.spiral_trajectory(1, 200, turns=3.0, density=2.0).norm(dim=-1)
    assert float((inner < 0.125).double().mean()) == 0.5
    assert not torch.equal(*(likelihoods.spiral_trajectory(1, 9, turns=1.0, seed=s) for s in (0, 1)))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: likelihoods.equispaced_mask((8, 8), 2, offset=2), "offset must be below acceleration 2, got 2"),
        (lambda: likelihoods.equispaced_mask((8, 8), 2, centre_fraction=1.5), "between 0 and 1, got 1.5"),
        (lambda: likelihoods.partial_fourier_mask((8, 8), 0.4), "leaves out the centre"),
        (lambda: likelihoods.partial_fourier_mask((8, 8), 0.6, axis=0), "axis is 0, expected -1 or -2"),
        (lambda: likelihoods.random_mask((8, 8), 0.5), "acceleration must be at least 1, got 0.5"),
        (lambda: likelihoods.random_mask((8, 8), 8, centre=4), "takes 16 points, but acceleration 8 leaves 8"),
        (lambda: likelihoods.random_mask((8, 8), 2, decay=-1), "decay must not be negative"),
        (lambda: likelihoods.poisson_disk_mask((8, 8, 8), 2), r"shape is \(8, 8, 8\), expected \(H, W\)"),
        (lambda: likelihoods.poisson_disk_mask((8, 8), 2, decay=-1), "decay must not be negative"),
        (lambda: likelihoods.cartesian_mask((8, 8), 2, decay=-1), "decay must not be negative"),
        (lambda: likelihoods.radial_trajectory(0, 4), "spokes must be at least 1"),
        (lambda: likelihoods.spiral_trajectory(1, 4, turns=0), "turns must be positive"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(call: object, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()  # type: ignore[operator]
