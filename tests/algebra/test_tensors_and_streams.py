"""Helpers below the algebra: sums, broadcasting, filters, memory layouts, and the streams of the chains."""

import pytest
import torch
from torch import Tensor

from potentia import ConvergenceWarning
from potentia._cg import conjugate_gradients, default_tolerance
from potentia._module import Module
from potentia._random import chain_generators, generator_device, standard_gamma, standard_normal
from potentia._tensor import filter_plane, inner, mirrored, squared_norm, sum_event, to_event


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return standard_normal(shape, torch.Generator().manual_seed(seed), dtype=dtype)


def test_sums_over_images_are_taken_in_double_precision() -> None:
    t = torch.full((2, 1, 1000, 1000), 0.1)
    assert sum_event(t).dtype == torch.float64
    assert sum_event(t).tolist() == pytest.approx([float(torch.tensor(0.1).double()) * 1e6] * 2, rel=1e-12)
    assert sum_event(torch.ones(2, 3, 4), event_dims=2).tolist() == [12.0, 12.0]


def test_norms_and_inner_products_of_complex_images() -> None:
    a, b = rand(2, 1, 3, 2, dtype=torch.complex128), rand(2, 1, 3, 2, seed=1, dtype=torch.complex128)
    want = [torch.vdot(u.flatten(), v.flatten()).real for u, v in zip(a, b, strict=True)]
    torch.testing.assert_close(inner(a, b), torch.stack(want))
    torch.testing.assert_close(inner(a.real, b), (a.real * b.real).flatten(1).sum(1))
    torch.testing.assert_close(inner(a, b.real), (a.real * b.real).flatten(1).sum(1))
    torch.testing.assert_close(squared_norm(a), inner(a, a))


def test_a_number_per_entry_gains_event_dimensions_and_scalars_pass() -> None:
    two = torch.ones(2, 3)
    broadcast, plane = to_event(two), to_event(two, 2)
    assert isinstance(broadcast, Tensor)
    assert isinstance(plane, Tensor)
    assert broadcast.shape == (2, 3, 1, 1, 1)
    assert plane.shape == (2, 3, 1, 1)
    scalar = torch.tensor(2.0)
    assert to_event(scalar) is scalar
    assert to_event(2.0) == 2.0


@pytest.mark.parametrize("size", [(1, 1), (4, 5), (5, 4), (1, 6), (3, 1)])
def test_a_mirrored_spectrum_is_the_one_at_minus_k(size: tuple[int, int]) -> None:
    s = rand(2, *size)
    got = mirrored(s)
    for i in range(size[0]):
        for j in range(size[1]):
            assert torch.equal(got[:, i, j], s[:, -i % size[0], -j % size[1]])
    # The transform of a real image, conjugated, is the one mirrored.
    k = torch.fft.fft2(s)
    torch.testing.assert_close(mirrored(k), k.conj())


@pytest.mark.parametrize("size", [(4, 5), (5, 4), (6, 1), (1, 7)])
def test_a_filter_of_real_images_is_that_of_complex_ones(size: tuple[int, int]) -> None:
    x, response = rand(2, 1, *size), torch.fft.fft2(rand(1, *size, seed=1))
    got = filter_plane(x, response)
    assert got.shape == x.shape
    assert not got.is_complex()
    torch.testing.assert_close(got.to(torch.complex128), filter_plane(x.to(torch.complex128), response))


class Layers(Module):
    """Buffers of two and three dimensions and of one more number of them."""

    def __init__(self, more: int = 4) -> None:
        super().__init__()
        for n in (2, 3, more):
            self.register_buffer(f"d{n}", torch.ones(*range(2, 2 + n)))


def test_a_memory_format_is_for_four_and_five_dimensions_alone() -> None:
    moved = Layers().to(memory_format=torch.channels_last)
    assert moved.d4.is_contiguous(memory_format=torch.channels_last)
    assert moved.d2.is_contiguous()
    assert moved.d3.is_contiguous()
    volume = Layers(5).to(memory_format=torch.channels_last_3d)
    assert volume.d5.is_contiguous(memory_format=torch.channels_last_3d)


def test_without_a_memory_format_the_layout_is_kept() -> None:
    moved = Layers().to(memory_format=torch.channels_last).to(torch.float64)
    assert moved.d4.dtype == torch.float64
    assert moved.d4.is_contiguous(memory_format=torch.channels_last)


def test_a_module_moves_to_another_device() -> None:
    moved = Layers().to("meta", torch.complex128)
    assert {t.device.type for t in moved.buffers()} == {"meta"}
    assert {t.dtype for t in moved.buffers()} == {torch.float64}


SEEDS = {
    (0, 0): 6569863346532939966,
    (0, 1): 5836529245451711556,
    (7, 3): 5061563556724077661,
    (2**40, 2): 2990587041847822783,
}


def test_the_streams_of_the_chains_stay_what_they_are() -> None:
    """A run is resumed, and reported, by its seed: these numbers may never change."""
    seeds = {
        (seed, chain): chain_generators(seed, [chain])[0].initial_seed()
        for seed, chain in ((0, 0), (0, 1), (7, 3), (2**40, 2))
    }
    assert seeds == SEEDS


def test_the_first_of_several_generators_says_where() -> None:
    assert generator_device(torch.Generator()) == torch.device("cpu")
    assert generator_device(chain_generators(0, range(2))) == torch.device("cpu")


def test_a_seed_and_a_chain_of_zero_are_allowed_and_refusals_name_the_seed() -> None:
    assert len(chain_generators(0, [0])) == 1
    with pytest.raises(ValueError, match=r"^chain_generators: seed and chains must not be negative, got seed -1$"):
        chain_generators(-1, [0])


def test_gamma_numbers_have_the_mean_and_variance_of_their_shape() -> None:
    n, shapes = 100_000, torch.tensor([0.3, 4.0], dtype=torch.float64)
    state = torch.get_rng_state()
    z = standard_gamma(shapes[:, None].expand(2, n), torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)
    for shape, row in zip(shapes.tolist(), z, strict=True):
        # Mean k and variance k; the fourth central moment 3 k^2 + 6 k bounds the error of the variance.
        assert abs(float(row.mean()) - shape) < 5 * (shape / n) ** 0.5
        assert abs(float(row.var()) - shape) < 5 * ((2 * shape**2 + 6 * shape) / n) ** 0.5
    again = standard_gamma(shapes, torch.Generator().manual_seed(3))
    assert torch.equal(again, standard_gamma(shapes, torch.Generator().manual_seed(3)))


def test_the_tolerance_follows_the_precision_of_real_and_complex_numbers_alike() -> None:
    got = [default_tolerance(d) for d in (torch.float32, torch.complex64, torch.float64, torch.complex128)]
    assert got == [1e-5, 1e-5, 1e-10, 1e-10]


def test_conjugate_gradients_stop_at_the_first_residual_that_will_do() -> None:
    eigenvalues, rhs = torch.linspace(0.1, 20, 30, dtype=torch.float64).reshape(1, 5, 6), rand(3, 1, 5, 6)
    for tolerance in (1e-1, 1e-3):
        enough = conjugate_gradients(lambda v: eigenvalues * v, rhs, tolerance=tolerance)
        assert bool((enough.residual <= tolerance).all())
        with pytest.warns(ConvergenceWarning):
            short = conjugate_gradients(
                lambda v: eigenvalues * v, rhs, tolerance=tolerance, max_iterations=enough.iterations - 1
            )
        assert float(short.residual.max()) > tolerance


def test_the_warning_of_a_solve_points_at_the_caller() -> None:
    with pytest.warns(ConvergenceWarning) as caught:
        conjugate_gradients(lambda v: v * torch.arange(1.0, 5.0), torch.ones(1, 1, 4), max_iterations=1)
    assert caught[0].filename == __file__


def test_the_residual_of_a_single_pixel_is_reported() -> None:
    rhs = torch.zeros(1, 1, 1, 4, dtype=torch.float64)
    rhs[..., 1] = 7.0
    matrix = torch.tensor([[2.0, 1, 0, 0], [1, 2, 1, 0], [0, 1, 2, 1], [0, 0, 1, 2]], dtype=torch.float64)
    with pytest.warns(ConvergenceWarning, match="1 of 1 systems not solved after 1 iterations"):
        got = conjugate_gradients(lambda v: v @ matrix, rhs, max_iterations=1)
    r = got.solution @ matrix - rhs
    torch.testing.assert_close(got.residual, r.flatten(1).norm(dim=1) / 7.0)
    assert float(got.residual) > 0.1


def test_the_refusal_of_an_indefinite_operator_says_what_would_help() -> None:
    want = (
        r"^here: the operator is not positive definite \(curvature -1\); what no measurement sees needs a prior with "
        r"a quadratic form, or another preconditioner$"
    )
    with pytest.raises(ValueError, match=want):
        conjugate_gradients(lambda v: -v, torch.ones(1, 1, 1), where="here")


def test_conjugate_gradients_are_named_in_what_they_refuse() -> None:
    with pytest.raises(ValueError, match=r"^conjugate gradients: the right-hand side of shape \(1, 1, 1\) is not fin"):
        conjugate_gradients(lambda v: v, torch.full((1, 1, 1), float("nan")))
