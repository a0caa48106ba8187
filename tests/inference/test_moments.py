"""Moments of clean images given noisy ones, against dense linear algebra."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from potentia import energies, likelihoods
from potentia._potential import Potential, Pullback
from potentia._quadratic import Diagonal, Fourier, MatrixFree, Quadratic
from potentia._random import chain_generators
from potentia.inference._logdet import LogDet
from potentia.inference._moments import (
    Conditioned,
    DenoiserCovariance,
    Gauss,
    first_basis,
    fixed_probe,
    low_rank,
    orthonormal,
    split,
)

DOUBLE = torch.float64
SHAPE = (1, 4, 5)
PIXELS = math.prod(SHAPE)


def matrix(action: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Tensor:
    """The matrix of a linear map of images, (d, d), in double precision."""
    d = math.prod(shape)
    return torch.stack([action(v.reshape(1, *shape))[0].flatten() for v in torch.eye(d, dtype=DOUBLE)], -1)


def jacobians(prior: Potential, x: Tensor, sigma: float) -> Tensor:
    """J^T of each image by vector-Jacobian products on unit vectors: (N, d, d)."""
    _, pull = prior.denoise_with_vjp(x, sigma)
    d = x[0].numel()
    unit = torch.eye(d, dtype=x.dtype).reshape(d, 1, *x.shape[1:])
    return torch.stack([pull(v.expand(x.shape)).flatten(1) for v in unit], -1)


def dense(covariance: DenoiserCovariance) -> Tensor:
    """The covariances as matrices, (N, d, d)."""
    n, k = covariance.basis.shape[:2]
    v = covariance.basis.reshape(n, k, -1).double()
    c = covariance.rest[:, None, None]
    eye = torch.eye(v.shape[-1], dtype=DOUBLE)
    return c * eye + torch.einsum("nkd,nk,nke->nde", v, covariance.variances - covariance.rest[:, None], v)


def some_covariance(num: int, rank: int, shape: tuple[int, ...], seed: int = 0) -> DenoiserCovariance:
    g = torch.Generator().manual_seed(seed)
    basis = orthonormal(torch.randn(num, rank, *shape, generator=g, dtype=DOUBLE))
    rest = 0.05 + 0.1 * torch.rand(num, generator=g, dtype=DOUBLE)
    return DenoiserCovariance(basis, rest[:, None] * (1 + 20 * torch.rand(num, rank, generator=g, dtype=DOUBLE)), rest)


def sense(shape: tuple[int, ...]) -> likelihoods.Operator:
    return likelihoods.Sense(
        likelihoods.birdcage_maps(3, shape[1:]), likelihoods.cartesian_mask(shape[1:], 2.0), real=True
    ).double()


def operator_of(kind: str, shape: tuple[int, ...]) -> likelihoods.Operator:
    g = torch.Generator().manual_seed(3)
    if kind == "mask":
        return likelihoods.Mask((torch.rand(shape[1:], generator=g) < 0.6).double())
    if kind == "blur":
        return likelihoods.GaussianBlur(0.8, shape[1:]).double()
    if kind == "matrix":
        return likelihoods.Matrix(torch.randn(7, math.prod(shape), generator=g, dtype=DOUBLE), shape)
    return sense(shape)


KINDS = {"mask": Diagonal, "blur": Fourier, "matrix": MatrixFree, "sense": MatrixFree}


def form_of(kind: str, eta: float = 0.3, dtype: torch.dtype = DOUBLE) -> Quadratic:
    operator = operator_of(kind, SHAPE)
    g = torch.Generator().manual_seed(4)
    y = operator.measure(torch.randn(SHAPE, generator=g, dtype=DOUBLE), eta, g)
    form = likelihoods.Gaussian(y, operator, eta).to(dtype=dtype).quadratic()
    assert form is not None
    assert isinstance(form.structure, KINDS[kind])
    return form


def conditioned(guess: Gauss, form: Quadratic, tolerance: float | None = 1e-13) -> Conditioned:
    """As the samplers make it, in the form's precision; matrix-free solves are as exact as that allows."""
    dtype = form.linear.dtype
    form = Quadratic(form.structure.with_tolerance(tolerance), form.linear, form.constant)
    c = guess.covariance
    cast = Gauss(guess.mean.to(dtype), DenoiserCovariance(c.basis.to(dtype), c.variances, c.rest))
    return Conditioned(cast, form, LogDet.of(form.structure, guess.mean.shape[1:], dtype))


class Truth:
    """What ``Conditioned`` is to give, by dense matrices, for each image."""

    def __init__(self, guess: Gauss, form: Quadratic) -> None:
        shape = guess.mean.shape[1:]
        precision = matrix(form.structure.apply, shape)
        b = form.linear.expand(shape).flatten()
        prior = dense(guess.covariance)
        self.covariance = torch.linalg.inv(torch.linalg.inv(prior) + precision)
        means, logs = [], []
        for m, c, joint in zip(guess.mean.flatten(1), prior, self.covariance, strict=True):
            move = joint @ (b - precision @ m)
            means.append(m + move)
            value = 0.5 * m @ precision @ m - b @ m + form.constant
            determinant = torch.linalg.slogdet(torch.eye(len(m), dtype=DOUBLE) + c @ precision)[1]
            logs.append(-value + 0.5 * (b - precision @ m) @ move - 0.5 * determinant)
        self.mean, self.log_evidence = torch.stack(means), torch.stack(logs)


def a_guess(num: int = 3, rank: int = 4, shape: tuple[int, ...] = SHAPE) -> Gauss:
    g = torch.Generator().manual_seed(9)
    return Gauss(torch.randn(num, *shape, generator=g, dtype=DOUBLE), some_covariance(num, rank, shape))


# The covariance


@settings(max_examples=10)
@given(st.integers(1, 6), st.integers(0, 1000), st.floats(0.0, 50.0))
def test_products_with_the_covariance_are_those_of_its_matrix(rank: int, seed: int, precision: float) -> None:
    covariance = some_covariance(2, rank, SHAPE, seed)
    full = dense(covariance)
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)
    flat = x.flatten(1)

    def by(a: Tensor) -> Tensor:
        return torch.einsum("nde,ne->nd", a, flat).reshape(x.shape)

    inverse = torch.linalg.inv(full)
    torch.testing.assert_close(covariance.apply(x), by(full), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(covariance.solve(x), by(inverse), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(covariance.root(covariance.root(x)), by(inverse), rtol=1e-8, atol=1e-8)
    sharper = covariance.sharpened(precision)
    expected = torch.linalg.inv(inverse + precision * torch.eye(PIXELS, dtype=DOUBLE))
    torch.testing.assert_close(dense(sharper), expected, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(dense(sharper.sharpened(-precision)), full, rtol=1e-7, atol=1e-8)
    index = torch.tensor([1, 1, 0])
    torch.testing.assert_close(dense(covariance[index]), full[index])
    cut = float(covariance.variances.median())
    values = torch.linalg.eigvalsh(dense(covariance.at_most(cut)))
    torch.testing.assert_close(values, torch.linalg.eigvalsh(full).clamp_max(cut), rtol=1e-9, atol=1e-9)


def low_rank_gaussian(rank: int = 3, iso: float = 0.05, shape: tuple[int, ...] = SHAPE) -> energies.GaussianMixture:
    g = torch.Generator().manual_seed(2)
    d = math.prod(shape)
    factors = torch.randn(1, d, rank, generator=g, dtype=DOUBLE) * torch.linspace(0.5, 0.2, rank, dtype=DOUBLE)
    mean = torch.randn(1, *shape, generator=g, dtype=DOUBLE)
    return energies.GaussianMixture(
        torch.ones(1), mean, factors=factors, variances=torch.full((1,), iso**2, dtype=DOUBLE)
    )


def by_low_rank(prior: energies.GaussianMixture, x: Tensor, sigma: float, rank: int, rounds: int) -> DenoiserCovariance:
    _, pull = prior.denoise_with_vjp(x, sigma)
    basis = first_basis(pull, x.shape, rank, rounds, x)
    return low_rank(pull, sigma, basis, fixed_probe(x.shape[1:], x))[0]


@pytest.mark.parametrize("rank", [3, 5, PIXELS - 1])
@pytest.mark.parametrize("sigma", [10.0, 0.5, 0.05])
def test_of_a_gaussian_of_no_higher_rank_the_covariance_is_exact(rank: int, sigma: float) -> None:
    prior = low_rank_gaussian(3)
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=DOUBLE) * sigma
    full = sigma**2 * jacobians(prior, x, sigma)
    # Each round brings the factors forward by the ratio of variances, which is 0.5 at the finest scale.
    found = dense(by_low_rank(prior, x, sigma, rank, 40))
    assert float((found - full).abs().max()) < 1e-9 * float(full.abs().max())


def test_one_direction_too_few_is_seen() -> None:
    prior = low_rank_gaussian(3)
    x = torch.zeros(1, *SHAPE, dtype=DOUBLE)
    full = 0.25 * jacobians(prior, x, 0.5)
    found = dense(by_low_rank(prior, x, 0.5, 2, 25))
    assert float((found - full).abs().max()) > 1e-2 * float(full.abs().max())


def a_mixture() -> energies.GaussianMixture:
    g = torch.Generator().manual_seed(5)
    factors = 0.3 * torch.randn(3, PIXELS, 2, generator=g, dtype=DOUBLE)
    means = 0.6 * torch.randn(3, *SHAPE, generator=g, dtype=DOUBLE)
    return energies.GaussianMixture(
        torch.tensor([0.5, 0.3, 0.2]), means, factors=factors, variances=torch.full((3,), 0.05**2, dtype=DOUBLE)
    )


@pytest.mark.parametrize("sigma", [3.0, 0.6, 0.2])
def test_between_modes_the_covariance_is_close(sigma: float) -> None:
    """Three components of two factors each and the two directions between them: rank 8 at the most."""
    prior = a_mixture()
    g = torch.Generator().manual_seed(1)
    x = prior.sample(g, 20, sigma)
    full = sigma**2 * jacobians(prior, x, sigma)
    torch.testing.assert_close(full, full.mT, rtol=1e-9, atol=1e-12)
    found = dense(by_low_rank(prior, x, sigma, 8, 2))
    size = torch.linalg.matrix_norm(full)
    off = torch.linalg.matrix_norm(found - full) / size
    assert float(off.max()) < 0.02
    # The trace is kept to the probe's error even where directions are missing.
    few = dense(by_low_rank(prior, x, sigma, 2, 2))
    trace = torch.diagonal(few - full, dim1=-2, dim2=-1).sum(-1) / torch.diagonal(full, dim1=-2, dim2=-1).sum(-1)
    assert float(trace.abs().max()) < 0.5
    assert float((torch.linalg.matrix_norm(few - full) / size).max()) > 0.03


def test_the_basis_follows_from_scale_to_scale() -> None:
    """One round a scale from a random start ends where many rounds at the last scale do."""
    prior = a_mixture()
    x = prior.sample(torch.Generator().manual_seed(1), 5, 0.1)
    probe = fixed_probe(SHAPE, x)
    basis = orthonormal(torch.randn(5, 8, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=DOUBLE))
    for sigma in (1.0, 0.8, 0.6, 0.5, 0.4, 0.3):
        covariance, basis = low_rank(prior.denoise_with_vjp(x, sigma)[1], sigma, basis, probe)
    full = 0.09 * jacobians(prior, x, 0.3)
    off = torch.linalg.matrix_norm(dense(covariance) - full) / torch.linalg.matrix_norm(full)
    assert float(off.max()) < 0.02


def by_matrix(a: Tensor) -> Pullback:
    """v -> A^T v for one matrix, whatever the batch."""
    return lambda v: (v.flatten(1) @ a).reshape(v.shape)


def test_a_jacobian_of_a_network_is_made_symmetric_and_its_negative_part_is_cut() -> None:
    g = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(PIXELS, PIXELS, generator=g, dtype=DOUBLE))[0]
    values = torch.tensor([0.9, 0.5, -0.7, -0.3] + [0.01] * (PIXELS - 4), dtype=DOUBLE)
    skew = torch.randn(PIXELS, PIXELS, generator=g, dtype=DOUBLE)
    a = (q * values) @ q.T + 1e-3 * (skew - skew.T)
    like = torch.zeros(1, *SHAPE, dtype=DOUBLE)
    basis = q[:, :4].T.reshape(1, 4, *SHAPE)
    covariance, _ = low_rank(by_matrix(a), 2.0, basis, fixed_probe(SHAPE, like))
    found = torch.linalg.eigvalsh(dense(covariance))[0]
    assert found[0] > 0
    torch.testing.assert_close(found[-2:] / 4, torch.tensor([0.5, 0.9], dtype=DOUBLE), rtol=0.02, atol=0.0)
    assert bool((found[:-2] < 4 * 0.02).all())
    # The floor, where the rest is negative too.
    negative, _ = low_rank(by_matrix(-a), 2.0, basis, fixed_probe(SHAPE, like))
    assert float(negative.rest) == pytest.approx(4e-5, rel=1e-6)


def test_a_probe_within_the_basis_is_no_probe() -> None:
    """Of two pixels with equal means the leading direction is (1, 1) or (1, -1): a probe of signs is one of them."""
    values = torch.tensor([0.8, 0.3], dtype=DOUBLE)
    for sign in (1.0, -1.0):
        q = torch.tensor([[1.0, 1.0], [sign, -sign]], dtype=DOUBLE) / math.sqrt(2)
        basis = q[:, 0].reshape(1, 1, 1, 1, 2)
        probe = math.sqrt(2) * q[:, 0].reshape(1, 1, 2)
        covariance, _ = low_rank(by_matrix((q * values) @ q.T), 1.0, basis, probe)
        assert bool(torch.isfinite(dense(covariance)).all())
        assert bool((covariance.variances >= covariance.rest[:, None]).all())


@given(st.integers(0, 100), st.integers(1, 6))
def test_bases_are_orthonormal(seed: int, rank: int) -> None:
    v = torch.randn(2, rank, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)
    q = orthonormal(v).flatten(2)
    eye = torch.eye(rank, dtype=DOUBLE).expand(2, -1, -1)
    torch.testing.assert_close(q @ q.mT, eye, rtol=0.0, atol=1e-12)
    torch.testing.assert_close(v.flatten(2), v.flatten(2) @ q.mT @ q, rtol=1e-9, atol=1e-9)


def test_probes_and_first_directions_are_the_same_at_every_call() -> None:
    like = torch.zeros(1, *SHAPE, dtype=DOUBLE)
    assert torch.equal(fixed_probe(SHAPE, like), fixed_probe(SHAPE, like))
    assert set(fixed_probe(SHAPE, like).flatten().tolist()) == {-1.0, 1.0}
    _, pull = a_mixture().denoise_with_vjp(like, 1.0)
    torch.manual_seed(123)
    assert torch.equal(first_basis(pull, like.shape, 3, 2, like), first_basis(pull, like.shape, 3, 2, like))


# The likelihood


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("eta", [0.02, 0.3, 100.0])
def test_conditioning_is_dense_linear_algebra(kind: str, eta: float) -> None:
    guess, form = a_guess(), form_of(kind, eta)
    got, truth = conditioned(guess, form), Truth(guess, form)
    scale = float(truth.mean.abs().max())
    assert float((got.mean.flatten(1) - truth.mean).abs().max()) < 1e-9 * scale
    # A sum of terms as large as the misfit of the mean.
    misfit = form.value(guess.mean).abs().clamp_min(1.0)
    assert float(((got.log_evidence - truth.log_evidence) / misfit).abs().max()) < 1e-9
    rhs = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    expected = torch.einsum("nde,ne->nd", truth.covariance, rhs.flatten(1))
    assert float((got.solve(rhs).flatten(1) - expected).abs().max()) < 1e-9 * float(expected.abs().max())


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("eta", [0.02, 0.3])
def test_conditioning_in_single_precision(kind: str, eta: float) -> None:
    guess = a_guess()
    got, truth = conditioned(guess, form_of(kind, eta, torch.float32), 1e-6), Truth(guess, form_of(kind, eta))
    assert got.mean.dtype == torch.float32
    assert got.log_evidence.dtype == DOUBLE
    std = torch.diagonal(truth.covariance, dim1=-2, dim2=-1).sqrt()
    assert float(((got.mean.flatten(1) - truth.mean) / std).abs().max()) < 1e-2
    # The misfit is a sum of terms of 1 / eta^2, each known to 1e-7 of itself, a dense matrix's products to a few.
    assert float((got.log_evidence - truth.log_evidence).abs().max()) < 4e-6 * PIXELS / eta**2 + 1e-3


def test_one_covariance_serves_many_means() -> None:
    form = form_of("blur")
    one = some_covariance(1, 3, SHAPE)
    guess = Gauss(a_guess(4).mean, one)
    each = Gauss(guess.mean, one[torch.zeros(4, dtype=torch.long)])
    a, b = conditioned(guess, form), conditioned(each, form)
    torch.testing.assert_close(a.mean, b.mean)
    torch.testing.assert_close(a.log_evidence, b.log_evidence)
    first, second = (c.draw(torch.Generator().manual_seed(0)) for c in (a, b))
    torch.testing.assert_close(first, second)


@settings(max_examples=15)
@given(st.floats(0.05, 20.0), st.integers(0, 50))
def test_seeing_an_image_with_white_noise_is_sharpening(precision: float, seed: int) -> None:
    """What a sharpened covariance says of new data is what a likelihood with one more, white, measurement says."""
    g = torch.Generator().manual_seed(seed)
    guess, form = a_guess(), form_of("mask")
    seen = torch.randn(SHAPE, generator=g, dtype=DOUBLE)
    white = likelihoods.Gaussian(seen, None, precision**-0.5).quadratic()
    assert white is not None
    both = conditioned(guess, form + white)
    sharper = guess.covariance.sharpened(precision)
    centre = guess.mean + sharper.apply(seen - guess.mean) * precision
    one_by_one = conditioned(Gauss(centre, sharper), form)
    torch.testing.assert_close(both.mean, one_by_one.mean, rtol=1e-9, atol=1e-9)
    alone = conditioned(guess, white)
    torch.testing.assert_close(alone.mean, centre, rtol=1e-9, atol=1e-9)
    total = alone.log_evidence + one_by_one.log_evidence
    torch.testing.assert_close(both.log_evidence, total, rtol=1e-9, atol=1e-8)


DRAWS = 20_000


def whitened(x: Tensor, truth: Truth) -> tuple[float, float]:
    """Largest deviation of mean and covariance of whitened draws, in units of their Monte-Carlo errors."""
    root = torch.linalg.cholesky(truth.covariance[0])
    z = torch.linalg.solve_triangular(root, (x.flatten(1) - truth.mean[0]).T, upper=False).T
    n = len(z)
    mean = float(z.mean(0).abs().max()) * math.sqrt(n)
    second = z.T @ z / n
    eye = torch.eye(len(second), dtype=DOUBLE)
    error = (1 + eye).sqrt() / math.sqrt(n)  # variances err by sqrt(2 / n), covariances by sqrt(1 / n)
    return mean, float(((second - eye) / error).abs().max())


@pytest.mark.parametrize("kind", list(KINDS))
def test_draws_have_the_mean_and_the_covariance(kind: str) -> None:
    guess, form = a_guess(1), form_of(kind)
    truth = Truth(guess, form)
    many = Gauss(guess.mean.expand(DRAWS, -1, -1, -1), guess.covariance)
    x = conditioned(many, form, tolerance=1e-8).draw(torch.Generator().manual_seed(0))
    mean, second = whitened(x, truth)
    # The largest of 210 normal deviates is beyond 4.6 once in a thousand.
    assert mean < 4.2
    assert second < 4.6
    assert whitened(truth.mean[0].reshape(1, *SHAPE) + 0.95 * (x - truth.mean[0].reshape(1, *SHAPE)), truth)[1] > 8


def test_draws_of_a_chain_are_its_own() -> None:
    guess, form = a_guess(3), form_of("mask")
    x = conditioned(guess, form).draw(chain_generators(0, range(3)))
    index = torch.tensor([0, 1])
    two = Gauss(guess.mean[index], guess.covariance[index])
    assert torch.equal(x[:2], conditioned(two, form).draw(chain_generators(0, range(2))))


# Planted faults: the comparisons above see them.


def test_a_wrong_shift_is_seen() -> None:
    guess, form = a_guess(), form_of("blur")
    got, truth = conditioned(guess, form), Truth(guess, form)
    got._shift = 1.001 * got._shift
    rhs = torch.ones(3, *SHAPE, dtype=DOUBLE)
    expected = torch.einsum("nde,ne->nd", truth.covariance, rhs.flatten(1))
    assert float((got.solve(rhs).flatten(1) - expected).abs().max()) > 1e-6 * float(expected.abs().max())


@pytest.mark.parametrize("fault", ["likelihood", "low rank", "rest"])
def test_a_missing_determinant_is_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    guess, form = a_guess(), form_of("mask")
    right = conditioned(guess, form).log_evidence
    if fault == "likelihood":
        monkeypatch.setattr(LogDet, "__call__", lambda self, shift: PIXELS * shift.log())
        wrong = conditioned(guess, form).log_evidence
    elif fault == "low rank":
        wrong = right + 0.5 * (guess.covariance.variances / guess.covariance.rest[:, None]).log().sum(1)
    else:
        wrong = right + 0.5 * PIXELS * guess.covariance.rest.log()
    assert float((wrong - Truth(guess, form).log_evidence).abs().min()) > 0.1


def test_the_root_of_the_covariance_in_place_of_that_of_the_precision_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guess, form = a_guess(1), form_of("mask")
    wrong = lambda self, x: self._scaled(x, self.rest.sqrt(), self.variances.sqrt())  # noqa: E731
    monkeypatch.setattr(DenoiserCovariance, "root", wrong)
    many = Gauss(guess.mean.expand(DRAWS, -1, -1, -1), guess.covariance)
    x = conditioned(many, form).draw(torch.Generator().manual_seed(0))
    assert whitened(x, Truth(guess, form))[1] > 8


# Refusals


def test_posteriors_that_fit_are_taken_apart() -> None:
    prior = a_mixture()
    data = likelihoods.Gaussian(torch.ones(SHAPE, dtype=DOUBLE), None, 0.5)
    more = likelihoods.Gaussian(torch.zeros(SHAPE, dtype=DOUBLE), operator_of("blur", SHAPE), 0.2)
    found, form = split("here", prior + data + 2.0 * more, torch.zeros(1, *SHAPE))
    assert found is prior
    assert form.linear.dtype == torch.float32
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(form.value(x), data(x) + 2.0 * more(x), rtol=1e-4, atol=1e-4)


def test_other_posteriors_are_refused() -> None:
    prior = a_mixture()
    like = torch.zeros(1, *SHAPE, dtype=DOUBLE)
    data = likelihoods.Gaussian(torch.ones(SHAPE, dtype=DOUBLE), None, 0.5)
    complex_prior = energies.Gaussian(torch.zeros(SHAPE, dtype=torch.complex128), 1.0)
    complex_data = likelihoods.Gaussian(torch.ones(SHAPE, dtype=torch.complex128), None, 0.5)
    for posterior, message in [
        (prior + energies.TotalVariation() + data, "has no quadratic form"),
        (prior + energies.Gaussian(torch.zeros(SHAPE, dtype=DOUBLE), 1.0) + data, "exactly one multi-scale prior"),
        (0.5 * prior + data, "of weight one, got 0.5 . GaussianMixture"),
        (data + data, "of weight one, got none"),
        (complex_prior + complex_data, "expected real images, got complex"),
    ]:
        with pytest.raises(TypeError, match=f"here: .*{message}"):
            split("here", posterior, like)
    with pytest.raises(TypeError, match="here: the posterior has no likelihood"):
        split("here", prior, like)
