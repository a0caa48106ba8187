"""The prior and the operator keep potentia's promises, whatever the image, and make a posterior together."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from potentia_curvature import Curvature, Margins

import potentia as pt
from potentia import energies, inference, likelihoods, testing
from potentia.testing import strategies

settings.register_profile("suite", deadline=None, derandomize=True, database=None, max_examples=10)
settings.load_profile("suite")
SHAPE = (1, 5, 6)


@given(st.floats(0.1, 10), st.floats(0.1, 2), strategies.shapes(), strategies.generators())
def test_the_prior_keeps_the_contract(weight, scale, shape, generator):
    """The gradient against differences, the batch, purity, both precisions, refusals."""
    images = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    testing.check_energy(Curvature(weight, scale), images)


@given(strategies.shapes(), strategies.generators())
def test_the_operator_keeps_the_contract(shape, generator):
    """The adjoint, linearity, the normal operator, shapes and fields, for real and complex images."""
    testing.check_operator(Margins(shape[-2:]), shape, seed=generator)


def test_they_add_up_with_the_terms_of_potentia():
    """Sums and multiples, by value, gradient and name."""
    operator = Margins(SHAPE[-2:])
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    data = likelihoods.Gaussian(operator(x[0]), operator, 0.5)
    testing.check_sum(Curvature(), 0.5 * Curvature(2.0, 0.3), data, x)


def test_the_data_term_is_a_quadratic_form():
    """Its draws and solves come from the operator's normal form."""
    operator = Margins((3, 4))
    y = torch.ones(operator.output_shape((1, 3, 4)), dtype=torch.float64)
    testing.check_quadratic(likelihoods.Gaussian(y, operator, 0.5), (1, 3, 4), num_draws=500)


def test_a_ramp_costs_nothing():
    """What the formula says: no curvature, no cost; and a bend costs as far as it is bent."""
    ramp = torch.linspace(0, 3, 4, dtype=torch.float64).expand(1, 4, 4).contiguous()
    assert float(Curvature()(ramp)) == pytest.approx(0.0, abs=1e-12)
    bent = ramp.clone()
    bent[0, 0, 0] = 1.0  # second differences of 1, along the row and along the column
    assert float(Curvature(2.0, 0.5)(bent)) == pytest.approx(2 * 2 * (5**0.5 - 1))


def test_a_posterior_is_sampled():
    """Two of the truth's margins are measured, and the ensemble agrees with them."""
    truth = torch.linspace(0, 1, 6, dtype=torch.float64).expand(*SHAPE).contiguous()
    operator = Margins(SHAPE[-2:])
    y = operator.measure(truth, 0.05, torch.Generator().manual_seed(0))
    posterior = energies.Gaussian(0.5, 0.3) + Curvature(scale=0.5) + likelihoods.Gaussian(y, operator, 0.05)
    with inference.without_diagnostics():
        ensemble = pt.sample(posterior, inference.HMC(), num_chains=4, num_draws=25, seed=0, progress=False)
    mean = torch.from_numpy(ensemble.mean().values)
    # The noise of the data, and the Monte-Carlo error of a hundred correlated draws.
    assert float((operator(mean) - y).square().mean().sqrt()) < 2 * 0.05


@pytest.mark.parametrize("arguments", [{"weight": 0.0}, {"scale": -1.0}])
def test_parameters_are_checked(arguments):
    """A prior that is none is refused."""
    with pytest.raises(ValueError, match="expected both above 0"):
        Curvature(**arguments)


def test_another_plane_is_refused():
    """An operator of one plane takes no other."""
    with pytest.raises(ValueError, match=r"images are \(4, 4\), expected \(5, 6\)"):
        Margins((5, 6))(torch.zeros(1, 4, 4))
