"""Annealed samplers whose steps explode say so, and others are left in peace."""

import pytest
import torch

import potentia as pt
from potentia import annealers, energies, inference, likelihoods
from potentia.inference._precondition import Preconditioner
from potentia.inference._rules import lost

SAMPLERS = (
    inference.ALPS.calibrated(50),
    inference.ALPS(annealers.Geometric(3.0, 0.02, 10)),
    inference.ALPS(annealers.Geometric(3.0, 0.02, 10), rule="published"),
)


def field_and_truth() -> tuple[energies.GaussianField, torch.Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(0)
    field = energies.GaussianField.power_law((1, 12, 12), 3.0, std=0.5, corner=0.1, dtype=torch.float64)
    return field, field.sample(generator, 1)[0], generator


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_steps_too_long_for_a_likelihood_without_a_form_are_told(sampler: inference.Sampler) -> None:
    field, truth, generator = field_and_truth()
    counts = torch.poisson(100 * (truth + 2.0), generator=generator)
    posterior = field + likelihoods.Poisson(counts, gain=100.0, background=200.0)
    with pytest.warns(pt.DiagnosticWarning, match=r"16 of 16 draws \(100.00%\) diverged.*gauss_newton"):
        pt.sample(posterior, sampler, num_chains=16, progress=False)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_what_anneals_well_is_not(sampler: inference.Sampler, scale: float) -> None:
    field, truth, generator = field_and_truth()
    y = likelihoods.Identity().measure(truth, 0.1, generator)
    data = likelihoods.StudentT(y, scale=0.1) if scale == 1 else likelihoods.Gaussian(y, noise_std=0.1 * scale)
    ensemble = pt.sample(field + data, sampler, num_chains=16, progress=False)
    assert not ensemble.tree["sample_stats/diverging"].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_a_stationary_drift_is_a_hundred_times_below_the_mark(dtype: torch.dtype) -> None:
    # U = |x|^2 / 2 and P = I: the gradient of a draw is the draw, of one unit an entry or part.
    grad = torch.randn(5, 2, 8, 8, dtype=dtype, generator=torch.Generator().manual_seed(0))
    grad = grad * 2**0.5 if dtype.is_complex else grad
    identity = Preconditioner.identity()
    assert not lost(identity, 90 * grad).any()
    assert lost(identity, 110 * grad).all()
    grad[1, 0, 0, 0] = torch.nan
    grad[3, 0, 0, 0] = torch.inf
    assert lost(identity, grad).tolist() == [False, True, False, True, False]
