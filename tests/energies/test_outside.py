"""Denoisers from elsewhere: each is held against the formulas of the library that it comes from."""

import copy
import math
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import potentia as pt
from potentia import annealers, inference, likelihoods
from potentia import testing as checks
from potentia.energies._outside import VariancePreserving, from_deepinv, from_diffusers, from_function

SCALES = (0.01, 10.0)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Net(nn.Module):
    """A denoiser with a parameter, which notes what sigmas it gets."""

    def __init__(self, channels: int = 2) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.seen: list[object] = []

    def forward(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        self.seen.append(sigma)
        s = sigma.reshape(-1, 1, 1, 1) if isinstance(sigma, Tensor) else sigma
        return torch.tanh(self.conv(x)) / (1 + s)

    def other(self, x: Tensor, sigma: Tensor) -> Tensor:
        return 0.5 * self(x, sigma)


# Functions.


def test_a_function_is_its_denoiser() -> None:
    x, s = randn(3, 2, 5, 4), torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64)
    u = from_function(lambda x, s: x / (1 + s.reshape(-1, 1, 1, 1) ** 2), SCALES)
    torch.testing.assert_close(u.denoise(x, s), x / (1 + s.reshape(-1, 1, 1, 1) ** 2))
    checks.check_energy(u, x)
    checks.check_multiscale(u, x)


@pytest.mark.parametrize("name", ["forward", "other"])
def test_modules_and_their_methods_are_registered(name: str) -> None:
    net = Net()
    u = from_function(net if name == "forward" else net.other, SCALES)
    assert {p.data_ptr() for p in u.parameters()} == {p.data_ptr() for p in net.parameters()}
    x = randn(3, 2, 5, 4)
    want = (net if name == "forward" else net.other)(x.float(), torch.full((3,), 0.3)).detach()
    torch.testing.assert_close(u.denoise(x, 0.3), want.double())
    copied = copy.deepcopy(u).double()
    assert copied.denoise(x, 0.3).dtype == torch.float64
    torch.testing.assert_close(copied.denoise(x, 0.3), want.double(), rtol=1e-6, atol=1e-6)
    assert net.conv.weight.dtype == torch.float32


def test_a_teacher_is_differentiable_in_its_input() -> None:
    teacher = from_function(Net(), SCALES).denoiser
    x = randn(2, 2, 5, 4, dtype=torch.float32).requires_grad_(True)
    (g,) = torch.autograd.grad(teacher(x, torch.full((2,), 0.3)).sum(), x)
    assert float(g.abs().max()) > 0


def test_what_is_no_denoiser_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^from_function: expected a callable, got int"):
        from_function(3, SCALES)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scales"):
        from_function(Net(), (2.0, 1.0))
    x = randn(2, 2, 5, 4)
    with pytest.raises(ValueError, match=r"^from_function: .*lambda.* returned shape \(2, 1, 5, 4\), expected \(2, 2"):
        from_function(lambda x, s: x[:, :1], SCALES).denoise(x, 0.3)
    with pytest.raises(TypeError, match="returned str, expected a tensor"):
        from_function(lambda x, s: "x", SCALES).denoise(x, 0.3)  # type: ignore[arg-type,return-value]


# deepinv.


class Shrinkage(nn.Module):
    """The denoiser of N(1/2, 1/16) in [0, 1], with deepinv's protocol: sigma is a number or (N,)."""

    def forward(self, x: Tensor, sigma: float | Tensor, **kwargs: Any) -> Tensor:
        v = sigma.reshape(-1, 1, 1, 1) ** 2 if isinstance(sigma, Tensor) else sigma**2
        return (x + 0.5 * 16 * v) / (1 + 16 * v)


@pytest.mark.parametrize("sigma", [0.3, torch.tensor([0.1, 0.4, 1.5], dtype=torch.float64)])
def test_deepinv_ranges_are_converted(sigma: float | Tensor) -> None:
    """N(1/2, 1/4^2) in [0, 1] is N(0, 1/2^2) in [-1, 1], whose denoiser is known."""
    u = from_deepinv(Shrinkage(), SCALES)
    x = randn(3, 2, 5, 4)
    s = torch.as_tensor(sigma, dtype=torch.float64).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(u.denoise(x, sigma), x * 0.25 / (0.25 + s**2), rtol=1e-12, atol=1e-12)
    checks.check_energy(u, x)
    checks.check_gaussian_oracle(u, 0.0, torch.full((2, 5, 4), 0.25, dtype=torch.float64), x, 0.4)


def test_deepinv_without_conversion_is_another_denoiser() -> None:
    """The planted fault: our range taken as deepinv's."""
    u = from_deepinv(Shrinkage(), SCALES, data_range=(-1.0, 1.0))
    with pytest.raises(AssertionError, match="smoothed Gaussian"):
        checks.check_gaussian_oracle(u, 0.0, torch.full((2, 5, 4), 0.25, dtype=torch.float64), randn(3, 2, 5, 4), 0.4)


def test_deepinv_gets_a_number_where_images_share_it() -> None:
    net = Net()
    u = from_deepinv(net, SCALES)
    x = randn(3, 2, 5, 4)
    u.denoise(x, 0.3)
    u.denoise(x, torch.tensor([0.1, 0.2, 0.3]))
    assert net.seen[0] == pytest.approx(0.15)
    torch.testing.assert_close(net.seen[1], torch.tensor([0.05, 0.1, 0.15]))


def test_deepinv_refusals() -> None:
    u = from_deepinv(Net(), SCALES)
    with pytest.raises(ValueError, match=r"^from_deepinv: x has dtype torch.complex64, but Net takes real images"):
        u.denoise(randn(3, 2, 5, 4) + 0j, 0.3)
    with pytest.raises(ValueError, match=r"^from_deepinv: x has shape \(3, 1, 5, 4\), Net takes other channels"):
        u.denoise(randn(3, 1, 5, 4), 0.3)
    with pytest.raises(ValueError, match=r"data_range is \(1, 0\), expected low < high"):
        from_deepinv(Net(), SCALES, data_range=(1.0, 0.0))
    with pytest.raises(TypeError, match="expected a callable"):
        from_deepinv("drunet", SCALES)  # type: ignore[arg-type]

    def broken(x: Tensor, sigma: float) -> Tensor:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match=r"^out of memory"):
        from_deepinv(broken, SCALES).denoise(randn(3, 2, 5, 4), 0.3)


def test_the_real_deepinv() -> None:
    reason = "deepinv, or the torchvision that it needs, does not import here"
    models = pytest.importorskip("deepinv.models", reason=reason, exc_type=ImportError)
    net = models.DRUNet(in_channels=1, out_channels=1, nc=[8, 8, 8, 8], nb=1, pretrained=None)
    x = randn(2, 1, 32, 32, dtype=torch.float32)
    for sigma in (0.3, torch.tensor([0.2, 0.4])):
        want = 2 * net((x + 1) / 2, sigma / 2).detach() - 1
        torch.testing.assert_close(from_deepinv(net, SCALES).denoise(x, sigma), want)


# diffusers.


def build(prediction: str = "epsilon", **kwargs: Any) -> tuple[Any, Any]:
    """A small random network of diffusers, in double precision, and a scheduler."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        in_channels=1, out_channels=1, sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    torch.random.set_rng_state(state)
    kind = kwargs.pop("kind", "DDIMScheduler")
    scheduler = getattr(diffusers, kind)(prediction_type=prediction, clip_sample=False, **kwargs)
    return unet.double().eval().requires_grad_(False), scheduler


def of_scheduler(unet: Any, scheduler: Any, x: Tensor, t: int) -> Tensor:
    """The clean image that the scheduler itself makes of the network's output, for x with variance s^2."""
    scheduler.set_timesteps(len(scheduler.alphas_cumprod))
    z = x * scheduler.alphas_cumprod[t].double().sqrt()
    clean: Tensor = scheduler.step(unet(z, t).sample, t, z).pred_original_sample
    return clean


def level(scheduler: Any, t: int) -> float:
    a = float(scheduler.alphas_cumprod[t].double())
    return math.sqrt((1 - a) / a)


def difference(u: pt.Energy, unet: Any, scheduler: Any, t: int) -> float:
    """The largest difference between our denoiser and the scheduler's, relative to the latter's size."""
    s = level(scheduler, t)
    x = 0.5 * randn(2, 1, 8, 8) + s * randn(2, 1, 8, 8, seed=1)
    want = of_scheduler(unet, scheduler, x, t)
    return float((u.denoise(x, s) - want).abs().max() / want.abs().max())


@pytest.mark.parametrize("kind", ["DDIMScheduler", "DDPMScheduler"])
@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_our_denoiser_is_the_schedulers(kind: str, schedule: str, prediction: str) -> None:
    unet, scheduler = build(prediction, kind=kind, beta_schedule=schedule)
    for timesteps in ("continuous", "nearest"):
        u = from_diffusers(unet, scheduler, timesteps=timesteps)  # type: ignore[arg-type]
        for t in (0, 1, 500, 998, 999):
            assert difference(u, unet, scheduler, t) < 1e-5, (timesteps, t)


@pytest.mark.parametrize(
    ("true", "taken"), [("v_prediction", "epsilon"), ("epsilon", "v_prediction"), ("sample", "epsilon")]
)
def test_a_wrong_prediction_is_caught(true: str, taken: str) -> None:
    """The planted fault: the comparison above fails where the prediction is taken for another."""
    unet, scheduler = build(true)
    u = from_diffusers(unet, build(taken)[1])
    assert difference(u, unet, scheduler, 500) > 0.1


def test_a_wrong_timestep_is_caught() -> None:
    """The planted fault: one timestep off is seen by the comparison above."""
    unet, scheduler = build()
    u = from_diffusers(lambda z, t: unet(z, t + 1), scheduler)
    assert difference(u, unet, scheduler, 500) > 1e-4


def test_noise_levels_are_those_of_add_noise() -> None:
    """Images noised by the scheduler, in our variables, are clean + sigma n: to single precision, as its table is."""
    _, scheduler = build()
    clean, n = randn(2, 1, 8, 8), randn(2, 1, 8, 8, seed=1)
    for t in (0, 300, 999):
        s = level(scheduler, t)
        z = scheduler.add_noise(clean, n, torch.tensor([t, t]))
        torch.testing.assert_close(z * math.sqrt(1 + s**2), clean + s * n, rtol=1e-6, atol=1e-6 * s)
    u = from_diffusers(build()[0], scheduler)
    assert u.scales == pytest.approx((level(scheduler, 0), level(scheduler, 999)), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_timesteps_are_whole_at_the_table_and_in_between_elsewhere(dtype: torch.dtype) -> None:
    unet, scheduler = build()
    net = VariancePreserving(unet, scheduler, "continuous")
    sigmas = torch.tensor([level(scheduler, t) for t in range(1000)], dtype=dtype)
    assert torch.equal(net.timestep(sigmas), torch.arange(1000.0))
    halves = (sigmas[:-1] * sigmas[1:]).sqrt()
    torch.testing.assert_close(net.timestep(halves), torch.arange(999) + 0.5, rtol=0, atol=1e-3)
    nearest = VariancePreserving(unet, scheduler, "nearest").timestep(sigmas)
    assert torch.equal(nearest, torch.arange(1000))
    assert not nearest.is_floating_point()


def test_a_last_step_without_signal_is_left_out() -> None:
    unet, scheduler = build("v_prediction", rescale_betas_zero_snr=True)
    scheduler.alphas_cumprod[-1] = 0.0
    u = from_diffusers(unet, scheduler)
    assert u.scales[1] == pytest.approx(level(scheduler, 998))
    assert difference(u, unet, scheduler, 998) < 1e-5


def test_a_predicted_variance_is_dropped() -> None:
    unet, scheduler = build()
    both = from_diffusers(lambda z, t: torch.cat([unet(z, t).sample, z + 7], 1), scheduler)
    assert difference(both, unet, scheduler, 500) < 1e-5


def test_it_passes_the_checks_of_score_only_priors() -> None:
    unet, scheduler = build()
    u = from_diffusers(unet, scheduler, shape=(1, 8, 8))
    assert not u.has_value
    x = randn(3, 1, 8, 8)
    checks.check_energy(u, x, 0.5)
    checks.check_multiscale(u, x, 0.5)
    s = torch.tensor([0.05, 0.5, 5.0], dtype=torch.float64)
    again = pickle.loads(pickle.dumps(u))
    torch.testing.assert_close(again.denoise(x, s), u.denoise(x, s))


def test_single_precision_and_half() -> None:
    unet, scheduler = build()
    x, s = randn(2, 1, 8, 8, dtype=torch.float32), 0.5
    want = from_diffusers(unet, scheduler).denoise(x.double(), s)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.05)):
        got = from_diffusers(copy.deepcopy(unet).to(dtype), scheduler).denoise(x, s)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), want, rtol=0, atol=tolerance)


def test_a_posterior_is_sampled() -> None:
    unet, scheduler = build()
    prior = from_diffusers(unet, scheduler)
    gen = torch.Generator().manual_seed(0)
    y = likelihoods.Identity().measure(0.5 * randn(1, 8, 8), 0.1, gen)
    posterior = prior + likelihoods.Gaussian(y, likelihoods.Identity(), 0.1)
    sampler = inference.ALPS(annealers.Geometric(1.0, 0.05, 3), steps_per_level=2)
    state = sampler.init(posterior, sampler.start(posterior, (2, 1, 8, 8), torch.float64, gen), gen)
    for _ in range(sampler.steps_per_draw):
        state, _ = sampler.step(posterior, state)
    assert bool(torch.isfinite(state.x).all())
    # The data are denoised at 0.05 beside noise of 0.1: samples stay within a few deviations of them.
    assert float((state.x - y).square().mean().sqrt()) < 0.5


def fake(**config: Any) -> Any:
    """What the constructor reads of a network: its config."""

    def unet(z: Tensor, t: Tensor) -> Any:
        return SimpleNamespace(sample=z)

    unet.config = SimpleNamespace(**config)  # type: ignore[attr-defined]
    return unet


def schedule(alphas: Any = None, prediction: str = "epsilon") -> Any:
    alphas = torch.linspace(0.99, 0.01, 20) if alphas is None else alphas
    return SimpleNamespace(alphas_cumprod=alphas, config={"prediction_type": prediction})


@pytest.mark.parametrize(
    ("unet", "scheduler", "error", "match"),
    [
        (fake(), SimpleNamespace(config={"prediction_type": "epsilon"}), TypeError, "has no alphas_cumprod"),
        (3, schedule(), TypeError, "expected a callable, got int"),
        (
            fake(),
            schedule(prediction="flow_prediction"),
            ValueError,
            "prediction_type flow_prediction, expected one of",
        ),
        (fake(), SimpleNamespace(alphas_cumprod=torch.ones(3)), ValueError, "prediction_type None, expected"),
        (fake(), schedule(torch.linspace(0.1, 0.9, 5)), ValueError, "must decrease strictly within 0 and 1"),
        (fake(), schedule(torch.ones(5)), ValueError, "must decrease strictly within 0 and 1"),
        (fake(), schedule(torch.rand(2, 2)), ValueError, r"shape \(2, 2\), must decrease"),
        (fake(num_class_embeds=10), schedule(), ValueError, r"conditional \(num_class_embeds\)"),
        (fake(cross_attention_dim=8), schedule(), ValueError, r"conditional \(cross_attention_dim\)"),
        (
            fake(time_embedding_type="fourier"),
            schedule(),
            ValueError,
            "time_embedding_type fourier, expected positional",
        ),
        (fake(time_embedding_type="learned"), schedule(), ValueError, "time_embedding_type learned"),
    ],
)
def test_other_networks_and_schedulers_are_refused(unet: Any, scheduler: Any, error: type, match: str) -> None:
    with pytest.raises(error, match=f"^from_diffusers: .*{match}"):
        from_diffusers(unet, scheduler)


def test_calls_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="timesteps is 'floor', expected 'continuous' or 'nearest'"):
        from_diffusers(fake(), schedule(), timesteps="floor")  # type: ignore[arg-type]
    from_diffusers(fake(time_embedding_type="learned"), schedule(), timesteps="nearest")
    u = from_diffusers(fake(in_channels=3), schedule())
    with pytest.raises(ValueError, match=r"^from_diffusers: x has shape \(2, 1, 8, 8\), the network takes 3 channels"):
        u.denoise(randn(2, 1, 8, 8), 1.0)
    with pytest.raises(ValueError, match=r"x has dtype torch.complex128, but .*unet takes real images"):
        u.denoise(randn(2, 3, 8, 8) + 0j, 1.0)
    with pytest.raises(ValueError, match=r"sigma is 50, expected 0\.1005.* to 9\.9498.*, as in training"):
        u.denoiser(randn(2, 3, 8, 8), torch.full((2,), 50.0))
    with pytest.raises(ValueError, match="sigma is 50, expected"):
        u.denoise(randn(2, 3, 8, 8), 50.0)
