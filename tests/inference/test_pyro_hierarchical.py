"""Posteriors within Pyro models: factors, normalisers, and the worked case against the integral over the image."""

# ruff: noqa: TID253 - the models are Pyro's
import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide.initialization import init_to_sample
from torch import Tensor

from potentia import energies, likelihoods
from potentia._potential import Potential
from potentia.inference._pyro import Homogeneous, PyroModel, pyro_model

MOST_SE = 4.5
SIDE = 6
PLANE = (SIDE, SIDE)


def load_example() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "examples" / "hierarchical.py"
    spec = importlib.util.spec_from_file_location("hierarchical", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


example = load_example()
problem = example.simulate(SIDE, 0.3, 1.5, 0)


def log_joint(model: Callable[[], Any], values: dict[str, Tensor]) -> Tensor:
    """Log density of a model at these values."""
    total: Tensor = poutine.trace(poutine.condition(model, values)).get_trace().log_prob_sum()
    return total


def total_variation_model(**kwargs: Any) -> PyroModel:
    data = likelihoods.Gaussian(torch.zeros(1, *PLANE, dtype=torch.float64), None, 1.0)
    return pyro_model(energies.TotalVariation() + data, **kwargs)


# --- the factors


def test_without_weights_the_density_is_the_posteriors() -> None:
    g = torch.Generator().manual_seed(0)
    post = problem.field + likelihoods.Gaussian(problem.y, problem.blur, 0.3)
    model = pyro_model(post)
    for _ in range(3):
        x = torch.randn(1, *PLANE, generator=g, dtype=torch.float64)
        trace = poutine.trace(poutine.condition(model, {"x": x})).get_trace()
        assert torch.allclose(trace.log_prob_sum(), -post(x))
        assert {"x", "x_field", "x_gaussian"} <= set(trace.nodes)
        assert float(trace.nodes["x"]["log_prob_sum"]) == 0.0
        assert torch.equal(trace.nodes["_RETURN"]["value"], x)


@given(st.floats(0.05, 5.0), st.floats(0.05, 5.0), st.integers(0, 1000))
def test_gradients_reach_noise_level_weight_and_image(noise: float, weight: float, seed: int) -> None:
    scene = example.scene(problem)
    g = torch.Generator().manual_seed(seed)

    def density(noise_std: Tensor, w: Tensor, x: Tensor) -> Tensor:
        return log_joint(lambda: scene(field=w, gaussian=noise_std**-2), {"x": x})

    at = [torch.tensor(v, dtype=torch.float64) for v in (noise, weight)]
    at.append(torch.randn(1, *PLANE, generator=g, dtype=torch.float64))
    leaves = [t.clone().requires_grad_() for t in at]
    grads = torch.autograd.grad(density(*leaves), leaves)
    for k, (value, grad) in enumerate(zip(at, grads, strict=True)):
        direction = torch.randn(value.shape, generator=g, dtype=torch.float64)
        h = 1e-5 * (float(value) if k < 2 else 1.0)
        ahead, behind = ([t + s * h * direction if i == k else t for i, t in enumerate(at)] for s in (1, -1))
        difference = (density(*ahead) - density(*behind)) / (2 * h)
        slope = (grad * direction).sum()
        assert float((difference - slope).abs()) < 1e-5 * (1 + float(grad.norm() * direction.norm()))


def test_float32_images_keep_their_dtype() -> None:
    post = energies.Gaussian(0.0, 1.0, shape=(1, 2, 2)) + likelihoods.Gaussian(torch.zeros(1, 2, 2), None, 1.0)
    trace = poutine.trace(pyro_model(post)).get_trace(gaussian=2.0)
    assert trace.log_prob_sum().dtype == trace.nodes["x"]["value"].dtype == torch.float32


def test_images_in_a_plate_have_a_factor_each() -> None:
    scene = example.scene(problem)
    weights = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)

    def model() -> None:
        with pyro.plate("images", 3):
            assert scene(field=weights).shape == (3, 1, *PLANE)

    x = torch.randn(3, 1, *PLANE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one_by_one = sum(log_joint(lambda w=w: scene(field=w), {"x": x[i]}) for i, w in enumerate(weights))
    assert torch.allclose(log_joint(model, {"x": x}), torch.as_tensor(one_by_one))


def test_complex_images_and_starts() -> None:
    y = torch.tensor([[[1 + 2j, 3 - 1j]]], dtype=torch.complex128)
    post = energies.Gaussian(torch.zeros(1, 1, 2, dtype=torch.complex128), 1.0) + likelihoods.Gaussian(y, None, 0.5)
    model = pyro_model(post, site="image", init=y, init_std=1e-6)
    trace = poutine.trace(model).get_trace()
    assert trace.nodes["image"]["value"].shape == (1, 1, 2, 2)
    x = trace.nodes["_RETURN"]["value"]
    assert torch.equal(x, model.images({"image": trace.nodes["image"]["value"]}))
    assert float((x - y).abs().max()) < 1e-4
    assert torch.allclose(trace.log_prob_sum(), -post(x))


# --- the normalisers


def dense_log_normaliser(potential: Potential, shape: tuple[int, ...], weight: float) -> float:
    """Log of the integral of exp(-w U) over real images, for a Gaussian U, from its Hessian and its minimum."""
    d = math.prod(shape)
    x = torch.zeros(d, dtype=torch.float64)

    def u(v: Tensor) -> Tensor:
        return potential(v.reshape(shape))

    hessian = torch.autograd.functional.hessian(u, x)
    grad = torch.autograd.functional.jacobian(u, x)
    minimum = float(u(x) - 0.5 * grad @ torch.linalg.solve(hessian, grad))
    return 0.5 * d * math.log(2 * math.pi / weight) - 0.5 * float(torch.logdet(hessian)) - weight * minimum


def test_gaussian_priors_have_the_normaliser_of_the_integral() -> None:
    shape = (1, 2, 3)
    mean = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    std = torch.full(shape, 0.4, dtype=torch.float64)
    field = energies.GaussianField.power_law(shape, mean=0.3, dtype=torch.float64)
    for prior in (energies.Gaussian(mean, std), field, 3.0 * field):
        z = Homogeneous.of(prior)
        assert (z.dims, z.degree) == (6, 2.0)
        steps = [
            float(z(torch.tensor(w, dtype=torch.float64))) - dense_log_normaliser(prior, shape, w)
            for w in (0.1, 1.0, 7.0)
        ]
        assert max(steps) - min(steps) < 1e-9
        # The value at the mean is no constant: a weight multiplies it.
        bare = Homogeneous(z.dims)
        wrong = [
            float(bare(torch.tensor(w, dtype=torch.float64))) - dense_log_normaliser(prior, shape, w)
            for w in (0.1, 1.0, 7.0)
        ]
        assert max(wrong) - min(wrong) > 1e-3


def test_a_norm_has_the_normaliser_of_its_degree() -> None:
    """exp(-w |x|) over two numbers: the integral is (2 / w)^2; by quadrature for the degree 4."""
    w = torch.tensor([0.5, 2.0], dtype=torch.float64)
    z = Homogeneous(2, degree=1.0)(w)
    assert torch.allclose(z[0] - z[1], 2 * ((2 / w[0]).log() - (2 / w[1]).log()))
    t = torch.linspace(-12, 12, 100_001, dtype=torch.float64)
    integral = torch.stack([torch.trapezoid((-v * t**4).exp(), t) for v in w]).log()
    z = Homogeneous(1, degree=4.0)(w)
    assert torch.allclose(z[0] - z[1], integral[0] - integral[1], atol=1e-9)
    for bad in ({"dims": 0}, {"dims": 3, "degree": 0.0}):
        with pytest.raises(ValueError, match=r"at least|positive"):
            Homogeneous(**bad)  # type: ignore[arg-type]


def test_likelihoods_count_the_real_numbers_measured() -> None:
    mask = torch.zeros(4, 4)
    mask[::2] = 1
    masked = likelihoods.Gaussian(torch.ones(1, 4, 4), likelihoods.Mask(mask), 1.0)
    assert Homogeneous.of(masked) == Homogeneous(8)
    assert Homogeneous.of(4.0 * masked) == Homogeneous(8)
    sense = likelihoods.Sense(likelihoods.birdcage_maps(3, (4, 4)), mask)
    y = torch.zeros(3, 4, 4, dtype=torch.complex64)
    assert Homogeneous.of(likelihoods.Gaussian(y, sense, 1.0)).dims == 2 * 3 * 8


def test_a_weight_without_a_known_normaliser_is_refused() -> None:
    model = total_variation_model()
    with pytest.raises(ValueError, match="a weight of tv needs normalisers"):
        model(tv=2.0)
    x = torch.randn(1, *PLANE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    densities = {}
    for label, z in (("none", None), ("given", Homogeneous(SIDE**2 - 1, degree=1.0))):
        scene = total_variation_model(normalisers={"tv": z})
        densities[label] = log_joint(lambda s=scene: s(tv=2.0), {"x": x})
    assert torch.allclose(densities["given"] - densities["none"], torch.tensor((SIDE**2 - 1) * math.log(2.0)).double())
    with pytest.raises(ValueError, match="no term 'field'"):
        model(field=2.0)
    with pytest.raises(ValueError, match="no term 'field'"):
        total_variation_model(normalisers={"field": None})
    # Two priors have a normaliser together, which is not the product of theirs.
    both = pyro_model(problem.field + energies.Gaussian(0.0, 1.0))
    with pytest.raises(ValueError, match="one normaliser together"):
        both(field=2.0)
    with pytest.raises(ValueError, match="shape"):
        pyro_model(energies.TotalVariation())


# --- the worked case


def marginal(scene: PyroModel, noise_std: float, weight: float) -> float:
    """Log of the model's density with the image integrated out: at the conditional mode, by the Gaussian integral."""
    at = problem.field * weight + likelihoods.Gaussian(problem.y, problem.blur, noise_std)
    forms = [f for t in at.terms.values() if (f := t.quadratic()) is not None]
    form = forms[0] + forms[1]
    spectrum = form.structure.spectrum.expand(1, *PLANE)  # type: ignore[attr-defined]
    joint = log_joint(lambda: scene(field=weight, gaussian=noise_std**-2), {"x": form.mode()})
    return float(joint - 0.5 * spectrum.log().sum())


def grid_log_density(noise_std: float, weight: float) -> float:
    """What the example integrates: the density of the measurements given the two unknowns."""
    delta = torch.zeros_like(problem.y)
    delta[..., 0, 0] = 1
    transfer = torch.fft.fft2(problem.blur(delta)).abs().square()
    variance = transfer * problem.field.spectrum / weight + noise_std**2
    power = torch.fft.fft2(problem.y, norm="ortho").abs().square()
    return float(-0.5 * (power / variance + variance.log()).sum())


@pytest.mark.parametrize("left_out", [None, "field", "gaussian"])
def test_the_model_is_the_measurements_density_with_the_image_integrated_out(left_out: str | None) -> None:
    """Without sampling, to rounding: what the marginal posterior of the unknowns must be."""
    normalisers = None if left_out is None else {left_out: None}
    scene = example.scene(problem, normalisers)
    points = [(0.1, 1.0), (0.3, 1.5), (0.9, 0.2), (2.0, 6.0)]
    off = torch.tensor([marginal(scene, *p) - grid_log_density(*p) for p in points], dtype=torch.float64)
    spread = float(off.max() - off.min())
    if left_out is None:
        assert spread < 1e-9
    else:
        # A normaliser left out: 18 nats for a factor e in the weight, 36 in the noise level.
        assert spread > 18


def test_the_grid_is_the_closed_form() -> None:
    """The example's own integral, at three of its points, against the density written out above."""
    exact = example.integrate(problem, points=50)
    logs = []
    for i, j in ((20, 20), (25, 27), (28, 22)):
        s, w = exact.log_noise[i], exact.log_weight[j]
        priors = example.NOISE_PRIOR.log_prob(s.exp()) + s + example.WEIGHT_PRIOR.log_prob(w.exp()) + w
        want = grid_log_density(float(s.exp()), float(w.exp())) + float(priors)
        logs.append(float(exact.mass[i, j].log()) - want)
    assert max(logs) - min(logs) < 1e-9
    edges = torch.cat([exact.mass[0], exact.mass[-1], exact.mass[:, 0], exact.mass[:, -1]])
    assert float(edges.sum()) < 1e-6


def errors(samples: dict[str, Tensor], exact: Any) -> dict[str, tuple[float, float]]:
    """Errors of mean and variance of the logarithms, in standard errors."""
    found = {}
    for r in example.compare(problem, samples, exact):
        off = (samples[r.unknown].log() - r.exact_mean) / r.exact_std
        square = off.square() - 1
        ess = float(example.effective_sample_size(square[None]))
        found[r.unknown] = (
            (r.mean - r.exact_mean) / (r.exact_std / math.sqrt(r.ess)),
            float(square.mean()) / (float(square.std()) / math.sqrt(ess)),
        )
    return found


@pytest.fixture(scope="module")
def exact() -> Any:
    return example.integrate(problem)


def test_nuts_finds_the_marginal_posterior_of_noise_level_and_weight(exact: Any) -> None:
    samples = example.sample(problem, draws=250, warmup=120, seed=0)
    for mean_error, variance_error in errors(samples, exact).values():
        assert abs(mean_error) < MOST_SE
        assert abs(variance_error) < MOST_SE
    rows = example.compare(problem, samples, exact)
    for r in rows:
        assert r.ess > 50
        assert r.low < r.truth < r.high
    text = example.table(rows)
    assert "noise_std" in text
    assert "weight" in text


def test_a_normaliser_left_out_is_seen(exact: Any) -> None:
    samples = example.sample(problem, draws=50, warmup=50, seed=1, normalisers={"gaussian": None})
    assert errors(samples, exact)["noise_std"][0] > 3 * MOST_SE


def test_the_example_runs_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figure = tmp_path / "figure.png"
    rows = example.main(["--side", "4", "--draws", "20", "--warmup", "30", "--figure", str(figure)])
    assert [r.unknown for r in rows] == ["noise_std", "weight"]
    assert figure.stat().st_size > 1000
    printed = capsys.readouterr().out
    assert "4 x 4 pixels, 20 draws" in printed
    with pytest.raises(SystemExit) as stop:
        example.main(["--help"])
    assert stop.value.code == 0


def test_a_posterior_is_a_model_by_itself() -> None:
    """NUTS on pyro_model(posterior), without unknowns, has the posterior's mean and variance."""
    post = energies.Gaussian(0.5, 2.0, shape=(1, 1, 2)) + likelihoods.Gaussian(torch.ones(1, 1, 2), None, 1.0)
    pyro.set_rng_seed(0)
    mcmc = MCMC(NUTS(pyro_model(post), init_strategy=init_to_sample), 250, 100, disable_progbar=True)
    mcmc.run()
    x = mcmc.get_samples()["x"].flatten(1)
    variance = 1 / (1 / 4 + 1)
    off = (x - (0.5 / 4 + 1) * variance) / math.sqrt(variance)
    for s in (off, off.square() - 1):
        se = s.std(0) / example.effective_sample_size(s[None]).sqrt()
        assert float((s.mean(0) / se).abs().max()) < MOST_SE


def test_an_unknown_that_is_no_weight_gets_a_factor_of_its_own() -> None:
    """The way out that the docstring names: the density written in torch beside the posterior's."""
    scene = pyro_model(problem.field)

    def model() -> None:
        std = pyro.sample("std", dist.LogNormal(torch.zeros(()).double(), 1.0))
        x = scene()
        pyro.factor("data", -0.5 * (x - problem.y).square().sum() / std**2 - SIDE**2 * std.log())

    x = torch.zeros(1, *PLANE, dtype=torch.float64)
    std = torch.tensor(0.7, dtype=torch.float64)
    data = dist.Normal(x, std).log_prob(problem.y).sum() + 0.5 * SIDE**2 * math.log(2 * math.pi)
    want = dist.LogNormal(torch.zeros(()).double(), 1.0).log_prob(std) - problem.field(x) + data
    assert torch.allclose(log_joint(model, {"x": x, "std": std}), want)
