"""Sums of potentials: flat, ordered, named, parted into prior and likelihood; refusals of what does not go together."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from potentia import Potential, Sum, energies, likelihoods
from potentia._algebra import Scaled

SHAPE = (1, 4, 3)


def image(*batch: int, seed: int = 0) -> Tensor:
    return torch.randn(*batch, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tv() -> Potential:
    return energies.TotalVariation(0.1)


def prior(std: float = 1.0) -> Potential:
    return energies.Gaussian(torch.zeros(SHAPE, dtype=torch.float64), std)


def data() -> likelihoods.Gaussian:
    return likelihoods.Gaussian(image(seed=5), noise_std=0.5)


def brackets(terms: list[Potential], draw: st.DataObject) -> Potential:
    """Add terms up, in order, in brackets that are drawn."""
    if len(terms) == 1:
        return terms[0]
    cut = draw.draw(st.integers(1, len(terms) - 1))
    return brackets(terms[:cut], draw) + brackets(terms[cut:], draw)


@given(st.lists(st.sampled_from(["tv", "gaussian", "data"]), min_size=2, max_size=7), st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_names_values_and_gradients_do_not_depend_on_brackets(kinds: list[str], draw: st.DataObject) -> None:
    make = {"tv": tv, "gaussian": prior, "data": data}
    terms = [make[k]() for k in kinds]
    flat = Sum(*terms)
    bracketed = brackets(terms, draw)
    assert isinstance(bracketed, Sum)
    assert list(bracketed.terms) == list(flat.terms)
    assert len(set(flat.terms)) == len(kinds)
    for got, term in zip(bracketed.terms.values(), terms, strict=True):
        assert got is term
    x = image(2)
    torch.testing.assert_close(bracketed(x), sum(t(x) for t in terms), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(bracketed.grad(x), sum(t.grad(x) for t in terms), rtol=1e-13, atol=1e-13)
    assert isinstance(sum(terms), Sum)
    assert list(sum(terms).terms) == list(flat.terms)  # type: ignore[union-attr]


def test_equal_names_are_numbered() -> None:
    assert list((tv() + tv() + tv()).terms) == ["tv", "tv_2", "tv_3"]
    assert list((tv().named("a") + tv() + tv().named("a")).terms) == ["a", "tv", "a_2"]


def test_a_number_that_is_taken_is_skipped() -> None:
    assert list((tv() + tv().named("tv_2") + tv()).terms) == ["tv", "tv_2", "tv_3"]


def test_every_order_of_terms_gives_the_same_values() -> None:
    x, terms = image(3), [tv(), prior(), data()]
    want = Sum(*terms).value_and_grad(x)
    for order in itertools.permutations(terms):
        got = Sum(*order).value_and_grad(x)
        torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13)


def test_terms_are_read_only_and_in_order() -> None:
    total = tv() + prior()
    assert list(total.terms) == ["tv", "gaussian"]
    with pytest.raises(TypeError):
        total.terms["tv"] = tv()  # type: ignore[index]


def test_prior_and_likelihood_part_the_terms_and_keep_their_names() -> None:
    total = tv() + data() + tv() + 0.5 * data() + prior()
    assert list(total.terms) == ["tv", "gaussian", "tv_2", "gaussian_2", "gaussian_3"]
    assert isinstance(total.prior, Sum)
    assert isinstance(total.likelihood, Sum)
    assert list(total.prior.terms) == ["tv", "tv_2", "gaussian_3"]
    assert list(total.likelihood.terms) == ["gaussian", "gaussian_2"]
    x = image(2)
    torch.testing.assert_close(total.prior(x) + total.likelihood(x), total(x), rtol=1e-13, atol=0)


def test_a_multiple_of_a_part_keeps_the_names_of_the_whole() -> None:
    total = prior() + data() + tv() + data()
    assert isinstance(total.likelihood, Sum)
    halved = 0.5 * total.likelihood
    assert isinstance(halved, Sum)
    assert list(halved.terms) == list(total.likelihood.terms) == ["gaussian_2", "gaussian_3"]


def test_a_part_of_one_term_is_that_term_and_a_missing_part_is_none() -> None:
    p, d = prior(), data()
    assert (p + d).prior is p
    assert (p + d).likelihood is d
    assert (p + tv()).likelihood is None
    assert (d + d).prior is None


def test_scaling_a_sum_scales_its_terms() -> None:
    scaled = 0.5 * (tv() + 4.0 * prior())
    assert isinstance(scaled, Sum)
    weights = [t.weight for t in scaled.terms.values() if isinstance(t, Scaled)]
    assert weights == [0.5, 2.0]
    assert list(scaled.terms) == ["tv", "gaussian"]


def test_a_difference_is_a_sum_with_a_minus() -> None:
    x, p = image(2), prior()
    nothing = p - p
    assert torch.equal(nothing(x), torch.zeros(2, dtype=torch.float64))
    assert torch.equal(nothing.grad(x), torch.zeros_like(x))
    torch.testing.assert_close((p - tv())(x), p(x) - tv()(x))
    torch.testing.assert_close((-(p + tv()))(x), -(p(x) + tv()(x)))


def test_sums_of_clashing_shapes_fields_and_scales_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"gaussian takes .* \(1, 4, 3\) and gaussian_2 .* \(1, 4, 4\); the terms of a sum"
    ):
        prior() + energies.Gaussian(torch.zeros(1, 4, 4), 1.0)
    with pytest.raises(ValueError, match="gaussian takes real images and gaussian_2 complex"):
        prior() + energies.Gaussian(torch.zeros(SHAPE, dtype=torch.complex64), 1.0)
    fine = energies.Function(lambda x, s: x.sum((-3, -2, -1)), (0.1, 0.5)).named("fine")
    coarse = energies.Function(lambda x, s: x.sum((-3, -2, -1)), (1.0, 5.0)).named("coarse")
    with pytest.raises(ValueError, match=r"do not overlap: fine 0.1 to 0.5, coarse 1 to 5"):
        fine + coarse


def test_a_sum_takes_what_its_terms_take() -> None:
    assert (tv() + prior()).event_shape == SHAPE
    assert (tv() + prior()).is_complex is False
    assert (tv() + tv()).event_shape is None
    assert (tv() + tv()).is_complex is None
    low = energies.Function(lambda x, s: x.sum((-3, -2, -1)), (0.1, 2.0))
    high = energies.Function(lambda x, s: x.sum((-3, -2, -1)), (0.5, 5.0))
    assert (low + tv() + high).scales == (0.5, 2.0)
    assert (tv() + data()).scales is None


def test_the_multiscale_weight_adds_up_and_scales() -> None:
    assert (prior() + tv()).multiscale_weight == 1.0
    assert (0.5 * prior() + 2.0 * prior() + data()).multiscale_weight == 2.5
    assert (tv() + data()).multiscale_weight == 0.0


def test_sigma_reaches_the_terms_that_have_scales() -> None:
    x, p, d = image(3), prior(), data()
    s = torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close((p + d)(x, s), p(x, s) + d(x), rtol=1e-13, atol=0)
    torch.testing.assert_close((2.0 * p + d).grad(x, s), 2 * p.grad(x, s) + d.grad(x), rtol=1e-13, atol=1e-13)


def test_the_quadratic_form_exists_if_all_terms_have_one() -> None:
    x = image(2)
    form = (prior(2.0) + data()).quadratic(0.5)
    assert form is not None
    torch.testing.assert_close(form.value(x), (prior(2.0) + data())(x, 0.5), rtol=1e-7, atol=0)
    assert (prior() + tv() + data()).quadratic() is None
    assert (prior() - data()).quadratic() is None


def test_empty_sums_and_other_things_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one term"):
        Sum()
    with pytest.raises(TypeError, match="made of potentials, got float"):
        Sum(tv(), 1.0)  # type: ignore[arg-type]


def test_a_sum_moves_as_one() -> None:
    total = (prior() + data()).to(torch.float32)
    assert {b.dtype for b in total.buffers()} <= {torch.float32}
    assert total.grad(image(2).float()).dtype == torch.float32
