"""The strategies draw what they say."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from potentia.testing import examples
from potentia.testing.strategies import dtypes, energies, generators, images, operators, real_dtypes, shapes, sigmas


@given(st.data(), shapes(1, 5, (1, 2)), dtypes())
def test_images_are_finite_and_in_range(data: st.DataObject, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = data.draw(images(shape, dtype, batch=(2,), min_value=-0.5, max_value=2.0))
    assert x.shape == (2, *shape)
    assert x.dtype == dtype
    parts = torch.view_as_real(x) if x.is_complex() else x
    assert float(parts.min()) >= -0.5
    assert float(parts.max()) <= 2.0


@given(st.data(), shapes(3, 6, (2, 4)))
def test_shapes_stay_within_their_ranges(data: st.DataObject, shape: tuple[int, ...]) -> None:
    assert 2 <= shape[0] <= 4
    assert all(3 <= n <= 6 for n in shape[1:])


@pytest.mark.parametrize("scales", [(0.0, math.inf), (0.1, 0.1), (0.02, 10.0), (0.0, 3.0), (500.0, math.inf)])
def test_sigmas_stay_within_the_scales(scales: tuple[float, float]) -> None:
    @given(sigmas(scales))
    def inside(sigma: float) -> None:
        assert math.isfinite(sigma)
        assert sigma > 0
        assert scales[0] <= sigma <= scales[1]

    inside()


@given(real_dtypes(), generators(), generators())
def test_generators_are_seeded(dtype: torch.dtype, a: torch.Generator, b: torch.Generator) -> None:
    assert not dtype.is_complex
    same = a.initial_seed() == b.initial_seed()
    assert torch.equal(torch.rand(3, generator=a), torch.rand(3, generator=b)) == same


@given(energies(shapes(max_side=4)), operators(shapes(max_side=4)))
def test_instances_come_with_the_images_that_they_take(energy: examples.Example, operator: examples.Example) -> None:
    g = torch.Generator().manual_seed(0)
    energy.subject.check(energy.images(g, 2))
    x = operator.images(g, 2)
    assert operator.subject(x).shape == (2, *operator.subject.output_shape(operator.shape))


def test_examples_of_one_seed_are_the_same_and_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    one, two, other = (examples.example_energies(seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert [str(e) for e in one] == [str(e) for e in two] == [str(e) for e in other]
    assert torch.equal(one[0].subject.mean, two[0].subject.mean)
    assert not torch.equal(one[0].subject.mean, other[0].subject.mean)


def test_wrong_ranges_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 1 <= least <= most"):
        shapes(3, 2)
    with pytest.raises(ValueError, match="expected 0 <= low <= high"):
        sigmas((2.0, 1.0))
    with pytest.raises(ValueError, match="expected a finite range"):
        images((1, 2, 2), min_value=1.0, max_value=0.0)
