"""The scale of coil maps, unknown, sampled beside the image: against its posterior in closed form."""

import math

import torch
from torch import Tensor

import potentia as pt
from potentia import energies, inference, likelihoods
from potentia._random import standard_normal

SHAPE = (1, 3, 3)
COILS = 2
NOISE = 1.5
DOUBLE = torch.complex128
PRIOR = torch.distributions.LogNormal(torch.tensor(0.0, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64))


def normal(*shape: int, seed: int) -> Tensor:
    return standard_normal(shape, torch.Generator().manual_seed(seed), dtype=DOUBLE)


def field() -> energies.GaussianField:
    return energies.GaussianField.power_law(
        SHAPE, 1.0, std=1.0, mean=torch.zeros(1, 1, 1, dtype=DOUBLE), dtype=torch.float64
    )


MAPS = normal(COILS, *SHAPE[1:], seed=1)
MASK = (torch.rand(SHAPE[1:], generator=torch.Generator().manual_seed(2)) < 0.7).double()


def operator(scale: float = 1.0) -> likelihoods.Sense:
    return likelihoods.Sense(scale * MAPS, MASK)


def measured(scale: float) -> Tensor:
    image = field().sample(torch.Generator().manual_seed(3), 1)[0]
    return operator(scale).measure(image, NOISE, torch.Generator().manual_seed(4))


def closed_form(y: Tensor, unit: float = 1.0) -> tuple[float, float]:
    """Mean and std of the scale: y is normal given it, with covariance scale^2 A C A^H + noise^2 I a part.

    ``unit`` plants a fault: the noise's variance times this.
    """
    n = math.prod(SHAPE)
    a = operator()(torch.eye(n, dtype=DOUBLE).reshape(n, *SHAPE)).reshape(n, -1).T
    seen = MASK.expand(COILS, -1, -1).flatten() > 0
    quadratic = field().quadratic()
    assert quadratic is not None
    precision = quadratic.structure.apply(torch.eye(n, dtype=DOUBLE).reshape(n, *SHAPE)).reshape(n, n).T
    values, vectors = torch.linalg.eigh((a @ torch.linalg.inv(precision) @ a.mH)[seen][:, seen])
    power = (vectors.mH @ y.flatten()[seen]).abs().square()
    grid = torch.linspace(0.02, 8, 4000, dtype=torch.float64)
    variance = grid[:, None].square() * values.clamp_min(0) + unit * NOISE**2
    log_density = PRIOR.log_prob(grid) - (power / (2 * variance) + variance.log()).sum(1)
    p = torch.softmax(log_density, 0)
    mean = float((p * grid).sum())
    return mean, float((p * (grid - mean).square()).sum().sqrt())


def test_the_scale_of_coil_maps_has_its_posterior() -> None:
    y = measured(1.6)
    sampler = inference.Gibbs({
        "image": inference.Langevin(steps_per_draw=2),
        "coil_scale": inference.Unknown("gaussian", lambda g: likelihoods.Gaussian(y, operator(g), NOISE), PRIOR),
    })  # fmt: skip
    posterior = field() + likelihoods.Gaussian(y, operator(), NOISE)
    with inference.without_diagnostics():
        ensemble = pt.sample(posterior, sampler, num_chains=4, num_draws=200, num_warmup=20, seed=0, progress=False)
    told = torch.from_numpy(ensemble.parameter("coil_scale").values)
    mean, std = closed_form(y)
    count = float(inference.ess(told))
    assert count > 50
    assert abs(float(told.mean()) - mean) < 4 * std / math.sqrt(count)
    # A std errs by std / sqrt(2 n) for a normal law, by somewhat more for this skew one.
    assert abs(float(told.std()) / std - 1) < 4 / math.sqrt(count)
    # The planted fault: twice the noise's variance moves the closed form further than that.
    assert abs(closed_form(y, unit=4.0)[0] - float(told.mean())) > 4 * std / math.sqrt(count)
