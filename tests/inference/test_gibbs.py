"""Gibbs sampling of an image with unknown parameters, against laws written out and simulation-based calibration."""

import math
import pickle

import pytest
import torch
from scipy import integrate, stats
from torch import Tensor
from torch.distributions import Gamma, LogNormal, Uniform

import potentia as pt
from potentia import energies, inference, likelihoods
from potentia._potential import Potential
from potentia._quadratic import Diagonal, Fourier, MatrixFree
from potentia._random import chain_generators
from potentia.inference._gibbs import PREFIX
from potentia.inference._parameters import slice_sample
from potentia.inference._per_chain import PerChain
from potentia.inference._uniformity import chi_square_p, num_bins

SHAPE = (1, 6, 6)
WARMUP = 10


def field() -> energies.GaussianField:
    return energies.GaussianField.power_law(SHAPE, 1.0, dtype=torch.float64)


def draws(
    posterior: Potential, sampler: inference.Gibbs, names: tuple[str, ...], num: int, chains: int, seed: int = 0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Images (num, chains, C, H, W) and parameters (num, chains), those of the warm-up thrown away."""
    generators = chain_generators(seed, range(chains))
    state = sampler.init(posterior, sampler.start(posterior, (chains, *SHAPE), torch.float64, generators), generators)
    images: list[Tensor] = []
    told: dict[str, list[Tensor]] = {name: [] for name in names}
    for n in range(num + WARMUP):
        for _ in range(sampler.steps_per_draw):
            state, info = sampler.step(posterior, state)
        if n >= WARMUP:
            images.append(state.x)
            for name in names:
                told[name].append(info.parameters[name])
    return torch.stack(images), {name: torch.stack(t) for name, t in told.items()}


# Terms of their own for every chain.


@pytest.mark.parametrize("kind", ["diagonal", "fourier", "sense", "complex fourier"])
def test_chains_meet_their_own_potentials(kind: str) -> None:
    g = torch.Generator().manual_seed(0)
    complex_ = kind in ("sense", "complex fourier")
    dtype = torch.complex128 if complex_ else torch.float64
    operators = {
        "diagonal": likelihoods.Identity(),
        "fourier": likelihoods.GaussianBlur(0.8, (6, 6)),
        "sense": likelihoods.Sense(likelihoods.birdcage_maps(2, (6, 6)), torch.eye(6) + 0.5),
        "complex fourier": likelihoods.Fourier(),
    }
    operator = operators[kind].double()
    y = torch.randn(operator.output_shape(SHAPE), generator=g, dtype=dtype)
    each = [likelihoods.Gaussian(y, operator, std) for std in (0.2, 0.5, 1.0)]
    together = PerChain(each)
    x = torch.randn(3, *SHAPE, generator=g, dtype=dtype)
    values = torch.cat([u(one[None]) for u, one in zip(each, x, strict=True)])
    grads = torch.cat([u.grad(one[None]) for u, one in zip(each, x, strict=True)])
    assert torch.equal(together(x), values)
    assert torch.equal(together.grad(x), grads)
    assert all(torch.allclose(a, b) for a, b in zip(together.value_and_grad(x), (values, grads), strict=True))
    form = together.quadratic()
    assert form is not None
    wanted = {"diagonal": Diagonal, "fourier": Fourier, "sense": MatrixFree, "complex fourier": Fourier}
    assert isinstance(form.structure, wanted[kind])
    assert torch.allclose(form.value(x), values)
    assert torch.allclose(form.grad(x), grads)
    solved = torch.cat([u.quadratic().solve(one[None], 0.3) for u, one in zip(each, x, strict=True)])
    assert torch.allclose(form.solve(x, 0.3), solved, rtol=1e-6)
    # A draw of the whole is that of each chain from its own generator.
    generators = chain_generators(1, range(3))
    whole = form.draw(generators, x.shape, 0.3)
    for c, u in enumerate(each):
        alone = u.quadratic().draw(chain_generators(1, [c]), (1, *SHAPE), 0.3)
        assert torch.allclose(whole[c], alone[0], rtol=1e-6, atol=1e-9)


def test_what_chains_cannot_have_of_their_own() -> None:
    with pytest.raises(ValueError, match="got no potentials"):
        PerChain([])
    one = PerChain([likelihoods.Gaussian(torch.zeros(SHAPE), noise_std=1.0)] * 2)
    with pytest.raises(ValueError, match=r"gaussian: x has shape \(3, 1, 6, 6\), expected \(2, C, H, W\)"):
        one(torch.zeros(3, *SHAPE))


# Full conditionals.


def test_the_noise_level_given_the_image_is_inverse_gamma() -> None:
    """2,000 chains with one image: the quantiles of a Gamma distribution, by Kolmogorov and Smirnov."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(SHAPE, generator=g, dtype=torch.float64)
    y = x + 0.3 * torch.randn(SHAPE, generator=g, dtype=torch.float64)
    term = likelihoods.Gaussian(y, noise_std=1.0)
    parameter = inference.NoiseStd("gaussian", shape=2.0, rate=0.5)
    generators = chain_generators(0, range(2000))
    start = torch.ones(2000, dtype=torch.float64)
    new = parameter.update(lambda c, v: parameter.given(term, v), x.expand(2000, *SHAPE), start, generators)
    law = stats.gamma(2 + 36 / 2, scale=1 / (0.5 + float((y - x).square().sum()) / 2))
    assert stats.kstest(new.numpy() ** -2, law.cdf).pvalue > 0.01
    # The planted fault: a degree of freedom too few for every other pixel.
    assert stats.kstest(new.numpy() ** -2, stats.gamma(2 + 18 / 2, scale=law.kwds["scale"]).cdf).pvalue < 1e-6


def test_complex_and_masked_measurements_are_counted_right() -> None:
    mask = torch.zeros(6, 6)
    mask[:, ::2] = 1
    term = likelihoods.Gaussian(torch.zeros(SHAPE, dtype=torch.complex128), likelihoods.Fourier(mask).double(), 1.0)
    x = torch.ones(1, *SHAPE, dtype=torch.complex128)
    parameter = inference.NoiseStd("gaussian", shape=1.0, rate=1.0)
    new = parameter.update(
        lambda c, v: parameter.given(term, v), x.expand(4000, *SHAPE), torch.ones(4000),
        chain_generators(0, range(4000)),
    )  # fmt: skip
    shape, rate = 1 + 18, 1 + float(term(x))  # 18 complex numbers measured: 36 real ones
    assert abs(float(new.pow(-2).mean()) * rate / shape - 1) < 4 / math.sqrt(4000 * shape)


def test_slice_sampling_draws_from_the_density() -> None:
    """Two modes of unequal weight; the chain is thinned, its mean and its share in a mode have known errors."""

    def log_density(u: Tensor) -> Tensor:
        return torch.logaddexp(-0.5 * (u / 0.5) ** 2, math.log(0.5) - 0.5 * ((u - 2.0) / 0.5) ** 2)

    g = torch.Generator().manual_seed(0)
    u, kept = torch.tensor(0.0, dtype=torch.float64), []
    for n in range(6000):
        u = slice_sample(log_density, u, 1.0, g)
        if n % 3 == 0:
            kept.append(float(u))
    x = torch.tensor(kept)
    share, std = float((x > 1).double().mean()), math.sqrt(2 / 9 / len(x))
    truth = stats.norm.sf(2.0) * 2 / 3 + stats.norm.cdf(2.0) / 3
    assert abs(share - truth) < 4 * 1.6 * std  # 1.6: autocorrelation left after thinning
    low = x[x < 0.0]
    assert stats.kstest(-low.numpy() / 0.5, stats.halfnorm.cdf).pvalue > 0.001


@pytest.mark.parametrize("kernel", [None, inference.MALA(step_size=0.05, steps_per_draw=6)])
def test_an_unknown_given_the_image_has_the_density_it_should(kernel: inference.Sampler | None) -> None:
    """The noise level under a log-normal prior, against numerical integration."""
    g = torch.Generator().manual_seed(0)
    y = 0.4 * torch.randn(1, 2, 2, generator=g, dtype=torch.float64)
    x = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    prior = LogNormal(torch.tensor(-0.5, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64))
    parameter = inference.Unknown("gaussian", lambda v: likelihoods.Gaussian(y, noise_std=v), prior, kernel=kernel)
    chains, rounds = 60, 10
    generators = chain_generators(0, range(chains))
    values, kept = parameter.start(generators), []
    images = x.expand(chains, 1, 2, 2)
    for n in range(rounds + 4):
        values = parameter.update(lambda c, v: parameter.build(v), images, values, generators)
        if n >= 4:
            kept.append(values)
    got = torch.cat(kept).log()

    def density(u: float) -> float:
        v = math.exp(u)
        return math.exp(
            float(prior.log_prob(torch.tensor(v, dtype=torch.float64))) + u - 4 * u - float(y.square().sum()) / 2 / v**2
        )

    total, mean, square = (integrate.quad(lambda u, p=p: u**p * density(u), -6, 6)[0] for p in range(3))
    mean, square = mean / total, square / total
    spread = math.sqrt(square - mean**2)
    error = spread / math.sqrt(chains * rounds / 3)  # at most 3 rounds of correlation
    assert abs(float(got.mean()) - mean) < 4 * error
    assert abs(float(got.std()) / spread - 1) < 4 / math.sqrt(2 * chains * rounds / 3)


# Joint posteriors.


def test_noise_level_and_prior_weight_together_have_the_law_that_is_written_out() -> None:
    """White x of variance 1/w under white noise of std tau: y alone is N(0, 1/w + tau^2), so their law is a grid's."""
    g = torch.Generator().manual_seed(3)
    y = 1.1 * torch.randn(SHAPE, generator=g, dtype=torch.float64)
    ridge = energies.Gaussian(torch.zeros(SHAPE, dtype=torch.float64), 1.0).named("ridge")
    posterior = ridge + likelihoods.Gaussian(y, noise_std=1.0)
    sampler = inference.Gibbs({
        "image": inference.Langevin(steps_per_draw=1),
        "weight": inference.Weight("ridge", shape=6.0, rate=5.0),
        "noise_std": inference.NoiseStd("gaussian", shape=6.0, rate=1.5),
    })  # fmt: skip
    chains, num = 40, 150
    _, told = draws(posterior, sampler, ("weight", "noise_std"), num, chains)
    u = torch.linspace(-3, 3, 301, dtype=torch.float64)
    w, v = u.exp()[:, None], u.exp()[None, :]  # weight, and 1 / tau^2, on a logarithmic grid
    spread = 1 / w + 1 / v
    log = 6 * w.log() - 5 * w + 6 * v.log() - 1.5 * v - 18 * spread.log() - y.square().sum() / 2 / spread
    mass = (log - log.max()).exp()
    mass = mass / mass.sum()
    for got, want in ((told["weight"].log(), mass.sum(1)), (-2 * told["noise_std"].log(), mass.sum(0))):
        mean = float((u * want).sum())
        std = float((u.square() * want).sum() - mean**2) ** 0.5
        error = float(got.mean(0).std()) / chains**0.5  # of chains that do not know of one another
        assert abs(float(got.mean()) - mean) < 4 * error
        assert abs(float(got.std()) / std - 1) < 0.1


def replication(seed: int, rate: float = 1.0) -> dict[str, int]:
    """Ranks of truths among the draws of one run: a pixel, the noise level, the blur; 19 draws, nearly independent."""
    g = torch.Generator().manual_seed(seed)
    prior = field()
    image = prior.sample(g, 1)[0]
    noise_std = float(torch._standard_gamma(torch.tensor(4.0, dtype=torch.float64), generator=g)) ** -0.5
    width = 0.5 + float(torch.rand((), generator=g))

    def blurred(std: float) -> likelihoods.Operator:
        return likelihoods.GaussianBlur(std, SHAPE).double()

    y = blurred(width).measure(image, noise_std, g)
    between = Uniform(torch.tensor(0.5, dtype=torch.float64), torch.tensor(1.5, dtype=torch.float64))
    sampler = inference.Gibbs({
        "image": inference.Langevin(steps_per_draw=1),
        "blur": inference.Unknown("gaussian", lambda s: likelihoods.Gaussian(y, blurred(s), 1.0), between, width=2.0),
        "noise_std": inference.NoiseStd("gaussian", shape=4.0, rate=rate),
    })  # fmt: skip
    posterior = prior + likelihoods.Gaussian(y, blurred(1.0), 1.0)
    images, told = draws(posterior, sampler, ("blur", "noise_std"), 38, 1, seed)
    truths = {"pixel": (images[::2, 0, 0, 2, 3], float(image[0, 2, 3])), "blur": (told["blur"][::2, 0], width),
              "noise_std": (told["noise_std"][::2, 0], noise_std)}  # fmt: skip
    return {name: int((drawn < truth).sum()) for name, (drawn, truth) in truths.items()}


def test_blind_deblurring_of_a_gaussian_field_is_calibrated() -> None:
    """Simulation-based calibration of image, blur width and noise level, all unknown."""
    ranks = [replication(seed) for seed in range(60)]
    for name in ("pixel", "blur", "noise_std"):
        these = torch.tensor([r[name] for r in ranks])
        assert chi_square_p(these, num_bins(len(these), 19), 19) > 0.003, name
    # The planted fault: a prior of the noise level whose std is 1.7 times that of the truths.
    wrong = torch.tensor([replication(seed, rate=3.0)["noise_std"] for seed in range(30)])
    assert chi_square_p(wrong, num_bins(30, 19), 19) < 1e-3


# As a sampler among samplers.


def problem() -> tuple[Potential, Tensor]:
    g = torch.Generator().manual_seed(0)
    image = field().sample(g, 1)[0]
    y = image + 0.3 * torch.randn(SHAPE, generator=g, dtype=torch.float64)
    return field() + likelihoods.Gaussian(y, noise_std=1.0), image


@pytest.mark.parametrize(
    "image",
    [
        inference.Langevin(steps_per_draw=2),
        inference.MALA(step_size=0.5, steps_per_draw=3),
        inference.MALA(steps_per_draw=3),
        inference.ALPS(pt.annealers.Geometric(2.0, 0.05, 4), steps_per_level=2),
    ],
    ids=["langevin", "mala", "adapted mala", "alps"],
)
def test_any_sampler_of_images_will_do(image: inference.Sampler) -> None:
    posterior, _ = problem()
    sampler = inference.Gibbs({"image": image, "noise_std": inference.NoiseStd("gaussian", 10.0, 0.9)})
    with inference.without_diagnostics():
        ensemble = pt.sample(posterior, sampler, num_chains=4, num_draws=150, num_warmup=40, progress=False)
    told = ensemble.parameter("noise_std")
    assert told.dims == ("chain", "draw")
    assert told.shape == (4, 150)
    assert 0.2 < float(told.mean()) < 0.45  # by the prior 0.3, and 36 pixels that the field explains in part
    assert 0.02 < float(told.std()) < 0.2


def test_chains_do_not_depend_on_how_many_there_are() -> None:
    posterior, _ = problem()
    sampler = inference.Gibbs({"image": inference.Langevin(), "noise_std": inference.NoiseStd(rate=0.1)})
    two, three = (
        pt.sample(posterior, sampler, num_chains=n, num_draws=3, num_warmup=0, progress=False) for n in (2, 3)
    )
    assert (two.image.values == three.image.values[:2]).all()
    assert (two.parameter("noise_std").values == three.parameter("noise_std").values[:2]).all()


def test_lp_is_the_density_of_image_and_parameters() -> None:
    posterior, _ = problem()
    sampler = inference.Gibbs({"image": inference.Langevin(), "noise_std": inference.NoiseStd(shape=2.0, rate=0.1)})
    ensemble = pt.sample(posterior, sampler, num_chains=2, num_draws=3, num_warmup=0, progress=False)
    lp = ensemble.tree["sample_stats/lp"].values
    for c in range(2):
        for d in range(3):
            x = torch.from_numpy(ensemble.image.values[c, d])
            tau = float(ensemble.parameter("noise_std")[c, d])
            prior, data = posterior.terms.values()
            want = -float(prior(x)) - float(data(x)) / tau**2 - 36 * math.log(tau)
            want += stats.gamma(2.0, scale=10.0).logpdf(tau**-2)
            assert abs(lp[c, d] - want) < 1e-6 * abs(want)


def test_blocks_that_are_refused() -> None:
    noise = inference.NoiseStd()

    def build(value: float) -> Potential:
        return likelihoods.Gaussian(torch.zeros(SHAPE), noise_std=value)

    blur = inference.Unknown("gaussian", build, Gamma(2.0, 1.0))
    with pytest.raises(TypeError, match="the block 'image' is a NoneType"):
        inference.Gibbs({"noise_std": noise})
    with pytest.raises(ValueError, match="no parameter beside the image"):
        inference.Gibbs({"image": inference.Langevin()})
    with pytest.raises(TypeError, match="block 'noise_std' is a float"):
        inference.Gibbs({"image": inference.Langevin(), "noise_std": 0.1})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="'blur' builds 'gaussian' anew, which an earlier block changes"):
        inference.Gibbs({"image": inference.Langevin(), "noise_std": noise, "blur": blur})
    with pytest.raises(ValueError, match="does not move each chain by itself"):
        inference.Gibbs({"image": inference.SMC(pt.annealers.Geometric(1.0, 0.1, 2)), "noise_std": noise})
    with pytest.raises(ValueError, match="must be an identifier"):
        inference.Gibbs({"image": inference.Langevin(), "noise std": noise})
    sampler = inference.Gibbs({"image": inference.Langevin(), "a": inference.NoiseStd("poisson")})
    with pytest.raises(ValueError, match="'a' belongs to the term 'poisson', expected one of field, gaussian"):
        pt.sample(problem()[0], sampler, num_chains=1, progress=False)
    with pytest.raises(ValueError, match="NoiseStd: rate must be positive"):
        inference.NoiseStd(rate=0.0)
    with pytest.raises(TypeError, match="prior is a float"):
        inference.Unknown("gaussian", build, 1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the kernel adapts"):
        inference.Unknown("gaussian", build, Gamma(1.0, 1.0), kernel=inference.MALA())
    with pytest.raises(TypeError, match="kernel is a Langevin"):
        inference.Unknown("gaussian", build, Gamma(1.0, 1.0), kernel=inference.Langevin())


def test_it_is_printed_and_pickled() -> None:
    sampler = inference.Gibbs({"image": inference.Langevin(), "noise_std": inference.NoiseStd(rate=0.1)})
    assert "'noise_std': NoiseStd(term='gaussian', shape=1.0, rate=0.1" in repr(sampler)
    assert repr(pickle.loads(pickle.dumps(sampler))) == repr(sampler)
    assert (
        PREFIX + "noise_std"
        in sampler.init(problem()[0], torch.zeros(1, *SHAPE, dtype=torch.float64), chain_generators(0, [0])).memory
    )
