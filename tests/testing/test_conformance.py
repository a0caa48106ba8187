"""Every public energy, likelihood and operator keeps the contract."""

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from potentia import Energy, Likelihood, Potential, Quadratic, energies, likelihoods
from potentia._random import standard_normal
from potentia.likelihoods import Operator
from potentia.testing import (
    check_energy,
    check_gaussian_oracle,
    check_multiscale,
    check_operator,
    check_quadratic,
    check_sum,
    examples,
    strategies,
)
from potentia.testing.examples import Example

SHAPE = (2, 4, 6)
ENERGIES = examples.example_energies(seed=1, shape=SHAPE)
LIKELIHOODS = examples.example_likelihoods(seed=2, shape=(1, 4, 5))
OPERATORS = examples.example_operators(seed=3, shape=(1, 6, 5)) + examples.example_operators(seed=4, shape=SHAPE)
SIGMA = 0.3


def images(example: Example, *batch: int) -> Tensor:
    return example.images(torch.Generator().manual_seed(11), *batch)


def has_form(example: Example[Energy] | Example[Likelihood]) -> bool:
    return example.subject.has_value and example.subject.quadratic(SIGMA) is not None


def test_every_public_class_has_an_example() -> None:
    assert examples.missing_examples() == []


@pytest.mark.parametrize("example", ENERGIES, ids=str)
def test_energies_keep_the_contract_of_potentials(example: Example[Energy]) -> None:
    x = images(example, 3)
    check_energy(example.subject, x)
    check_energy(example.subject, x, torch.tensor([0.2, 1.5, 0.7]))


@pytest.mark.parametrize("example", LIKELIHOODS, ids=str)
def test_likelihoods_keep_the_contract_of_potentials(example: Example[Likelihood]) -> None:
    check_energy(example.subject, images(example, 3), SIGMA)


@pytest.mark.parametrize("example", [e for e in ENERGIES if e.subject.scales is not None], ids=str)
def test_multi_scale_energies_keep_theirs(example: Example[Energy]) -> None:
    check_multiscale(example.subject, images(example, 3), SIGMA)


@pytest.mark.parametrize("example", [e for e in [*ENERGIES, *LIKELIHOODS] if has_form(e)], ids=str)
def test_quadratic_forms_of_potentials(example: Example) -> None:
    check_quadratic(example.subject, example.shape, SIGMA, num_draws=1000)


@pytest.mark.parametrize("example", OPERATORS, ids=lambda e: f"{e}, {len(e.shape)}D")
def test_operators_keep_the_contract_of_operators(example: Example[Operator]) -> None:
    check_operator(example.subject, example.shape)
    check_operator(example.subject, example.shape, example.dtype, seed=1)


@pytest.mark.parametrize("example", examples.example_operators(seed=5, shape=(1, 4, 3)), ids=str)
def test_gram_structures_are_quadratic_forms(example: Example[Operator]) -> None:
    # A tensor, since a number alone would not say in which precision to keep it.
    weight = torch.full((1,) * example.subject.output_dims, 0.75, dtype=example.dtype.to_real())
    structure = example.subject.gram(weight, example.shape)
    form = Quadratic(structure, torch.zeros(example.shape, dtype=example.dtype))
    check_quadratic(form, example.shape, num_draws=1000)


def with_data() -> list[Potential]:
    g = torch.Generator().manual_seed(0)
    y = standard_normal(SHAPE, g, dtype=torch.float64)
    field = energies.GaussianField.power_law(SHAPE)
    blurred = likelihoods.Gaussian(y, likelihoods.GaussianBlur(0.8, SHAPE), 0.5)
    return [
        energies.Gaussian(y, 0.7),
        field,
        energies.TotalVariation(0.5),
        2.0 * energies.TotalVariation(0.3),
        likelihoods.Gaussian(y, None, 0.4),
        blurred,
        field + blurred,
        0.5 * blurred + energies.StudentT(0.5),
    ]


@pytest.mark.parametrize("first", range(8))
@pytest.mark.parametrize("step", [1, 3])
def test_potentials_add_up(first: int, step: int) -> None:
    pool = with_data()
    a, b, c = (pool[(first + k * step) % len(pool)] for k in range(3))
    x = standard_normal((2, *SHAPE), torch.Generator().manual_seed(1), dtype=torch.float64)
    check_sum(a, b, c, x, SIGMA)


def test_score_only_priors_add_up_by_their_gradients() -> None:
    score = energies.ScoreModel(lambda x, s: x / (1 + s.reshape(-1, 1, 1, 1) ** 2), (0.1, 2.0))
    x = standard_normal((2, *SHAPE), torch.Generator().manual_seed(1), dtype=torch.float64)
    check_sum(score, energies.TotalVariation(0.5), likelihoods.Gaussian(x[0], None, 0.4), x, SIGMA)
    check_energy(score + energies.TotalVariation(0.5), x, SIGMA)


@pytest.mark.parametrize("sigma", [None, 0.3, 5.0])
@pytest.mark.parametrize("kind", ["gaussian", "complex", "field", "mixture", "mean"])
def test_gaussian_priors_are_the_smoothed_gaussian(kind: str, sigma: float | None) -> None:
    g = torch.Generator().manual_seed(2)
    shape, d = (1, 3, 4), 12
    mean, std = (
        standard_normal(shape, g, dtype=torch.float64),
        0.5 + torch.rand(shape, generator=g, dtype=torch.float64),
    )
    x = standard_normal((4, *shape), g, dtype=torch.complex128 if kind == "complex" else torch.float64)
    normalised = True
    if kind == "gaussian":
        energy, covariance = energies.Gaussian(mean, std), std.square()
    elif kind == "complex":
        mean = standard_normal(shape, g, dtype=torch.complex128)
        energy, covariance = energies.Gaussian(mean, std), std.square()
    elif kind == "field":
        energy = energies.GaussianField.power_law(shape, dtype=torch.float64)
        impulses = torch.eye(d, dtype=torch.float64).reshape(d, *shape)
        covariance = torch.fft.ifft2(energy.spectrum * torch.fft.fft2(impulses)).real.reshape(d, d)
        mean = torch.zeros(shape, dtype=torch.float64)
    elif kind == "mixture":
        factor = standard_normal((d, d), g, dtype=torch.float64)
        covariance = factor @ factor.T + torch.eye(d, dtype=torch.float64)
        energy = energies.GaussianMixture(torch.ones(1), mean[None], covariances=covariance[None])
    else:
        mean = torch.full(shape, 0.2, dtype=torch.float64)
        energy, covariance = energies.Gaussian(0.2, 0.7), torch.full(shape, 0.49, dtype=torch.float64)
    check_gaussian_oracle(energy, mean, covariance, x, sigma, normalised=normalised)


@settings(max_examples=15)
@given(strategies.energies(), strategies.generators())
def test_any_energy_of_any_shape(example: Example[Energy], generator: torch.Generator) -> None:
    check_energy(example.subject, example.images(generator, 2), SIGMA)


@settings(max_examples=40)
@given(strategies.operators(), strategies.generators())
def test_any_operator_of_any_shape(example: Example[Operator], generator: torch.Generator) -> None:
    check_operator(example.subject, example.shape, example.dtype, seed=generator)


@settings(max_examples=10)
@given(strategies.likelihoods(strategies.shapes(max_side=5, channels=(1, 2))), strategies.generators())
def test_any_likelihood_of_any_shape(example: Example[Likelihood], generator: torch.Generator) -> None:
    if has_form(example):
        check_quadratic(example.subject, example.shape, num_draws=500)
    else:
        check_energy(example.subject, example.images(generator, 3))
