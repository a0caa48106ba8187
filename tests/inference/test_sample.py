"""``sample``: what it promises about chains, seeds, stores, precision and bad input."""

from pathlib import Path
from typing import Any

import pytest
import torch
from ensembles import stops_after
from torch import Tensor, nn

import potentia as pt
from potentia import annealers, energies, inference, likelihoods

SHAPE = (1, 8, 6)


def posterior(dtype: torch.dtype = torch.float32) -> pt.Sum:
    g = torch.Generator().manual_seed(0)
    operator = likelihoods.Mask((torch.rand(8, 6, generator=g) < 0.5).to(dtype))
    truth = torch.randn(SHAPE, generator=g, dtype=dtype)
    prior = energies.Gaussian(torch.zeros(SHAPE, dtype=dtype), 1.0)
    return prior + likelihoods.Gaussian(operator.measure(truth, 0.2, g), operator, 0.2)


SAMPLER = inference.ALPS(annealers.Geometric(3.0, 0.05, 4), steps_per_level=2)


def draw(post: pt.Potential | None = None, **options: Any) -> pt.Ensemble:
    defaults: dict[str, Any] = {"num_chains": 3, "num_draws": 2, "progress": False}
    return pt.sample(posterior() if post is None else post, options.pop("sampler", SAMPLER), **(defaults | options))


def test_shapes_and_what_is_stored() -> None:
    ensemble = draw(constant_data={"truth": torch.zeros(SHAPE)})
    assert ensemble.image.dims == ("chain", "draw", "channel", "y", "x")
    assert tuple(ensemble.samples().shape) == (3, 2, *SHAPE)
    stats = ensemble.tree["sample_stats"]
    assert stats["n_grad"].values.tolist() == [[8, 16]] * 3
    post = posterior()
    lp = -post(ensemble.samples().flatten(0, 1), 0.05).reshape(3, 2)
    assert torch.allclose(torch.from_numpy(stats["lp"].values), lp)
    assert set(ensemble.tree["constant_data"].data_vars) == {"mask", "truth"}
    assert torch.equal(torch.from_numpy(ensemble.tree["observed_data"]["y"].values), post.likelihood.y)  # type: ignore[union-attr]
    assert "gaussian" in ensemble.attrs["posterior"]


def test_a_seed_fixes_everything_and_another_changes_it() -> None:
    first, again, other = draw(seed=5), draw(seed=5), draw(seed=6)
    assert torch.equal(first.samples(), again.samples())
    assert not torch.equal(first.samples(), other.samples())


def test_a_chain_does_not_depend_on_how_many_run_beside_it() -> None:
    few, many = draw(num_chains=2).samples(), draw(num_chains=5).samples()
    assert torch.equal(few, many[:2])
    assert not torch.equal(many[0], many[1])


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    draw()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("sampler", [SAMPLER, inference.Langevin(0.8, steps_per_draw=3)], ids=["alps", "langevin"])
def test_resumed_is_uninterrupted_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: Any) -> None:
    from potentia.io import _schema

    monkeypatch.setattr(_schema, "_CHUNK_BYTES", 1)  # one draw a block, so that there is something to interrupt
    options: dict[str, Any] = {"sampler": sampler, "num_draws": 5}
    whole = draw(**options, store=tmp_path / "whole.zarr")
    steps = 3 * sampler.steps_per_draw + sampler.steps_per_draw * sampler.default_warmup + 1
    with stops_after(sampler, steps), pytest.raises(KeyboardInterrupt):
        draw(**options, store=tmp_path / "broken.zarr")
    assert pt.open_ensemble(tmp_path / "broken.zarr").num_draws == 3
    resumed = draw(**options, store=tmp_path / "broken.zarr", resume=True)
    assert torch.equal(resumed.samples(), whole.samples())
    assert torch.equal(pt.open_ensemble(tmp_path / "broken.zarr").samples(), whole.samples())
    stats = [e.tree["sample_stats"].to_dataset() for e in (resumed, whole)]
    assert stats[0].equals(stats[1])


def test_resume_refuses_another_run(tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    kept = draw(store=store).samples()
    changed = posterior() + energies.TotalVariation()
    for options in ({"seed": 9}, {"num_chains": 4}, {"post": changed}, {"post": 1.5 * posterior()}):
        with pytest.raises(pt.io.StoreError):
            draw(**options, store=store, resume=True)
    with pytest.raises(ValueError, match="resume needs a store"):
        draw(resume=True)
    assert torch.equal(pt.open_ensemble(store).samples(), kept)


def test_an_existing_store_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    kept = draw(store=store).samples()
    with pytest.raises(FileExistsError):
        draw(store=store, seed=1)
    assert torch.equal(pt.open_ensemble(store).samples(), kept)
    draw(store=store, seed=1, overwrite=True)
    assert not torch.equal(pt.open_ensemble(store).samples(), kept)


def test_a_run_that_fails_at_once_leaves_no_store(tmp_path: Path) -> None:
    prior = energies.Denoiser(lambda x, s: 0.5 * x, scales=(0.5, 2.0))
    post = prior + likelihoods.Gaussian(torch.zeros(SHAPE), None, 0.1)
    with pytest.raises(ValueError, match=r"sigma is 3, expected 0.5 to 2"):
        draw(post, store=tmp_path / "a.zarr")
    assert list(tmp_path.iterdir()) == []


def test_a_chain_that_is_no_longer_finite_is_named() -> None:
    def explode(x: Tensor) -> Tensor:
        return x.square().sum(dim=(-3, -2, -1)) * torch.where(x[..., 0, 0, 0] > -1e9, torch.nan, 1.0)

    post = energies.Function(explode) + likelihoods.Gaussian(torch.zeros(SHAPE), None, 0.1)
    with pytest.raises(FloatingPointError, match="chain 0 is no longer finite at draw 0"):
        draw(post)


def test_precision_follows_the_data_or_the_caller() -> None:
    assert draw().samples().dtype == torch.float32
    assert draw(posterior(torch.float64)).samples().dtype == torch.float64
    post = posterior()
    moved = draw(post, dtype="float64").samples()
    assert moved.dtype == torch.float64
    assert post.likelihood.y.dtype == torch.float32  # type: ignore[union-attr]
    assert not torch.equal(moved.float(), torch.zeros_like(moved.float()))


def test_complex_posteriors_stay_complex() -> None:
    g = torch.Generator().manual_seed(0)
    operator = likelihoods.Fourier((torch.rand(8, 6, generator=g) < 0.6).float())
    y = operator.measure(torch.randn(1, 8, 6, dtype=torch.complex64, generator=g), 0.1, g)
    prior = energies.Gaussian(torch.zeros(SHAPE, dtype=torch.complex64), 1.0)
    ensemble = draw(prior + likelihoods.Gaussian(y, operator, 0.1))
    assert ensemble.samples().dtype == torch.complex64
    assert ensemble.mean()["channel"].values.tolist() == ["re", "im"]


def test_compiled_networks_draw_the_same() -> None:
    class Psi(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(1, 1, 3, padding=1)
            self.compiled = 0

        def compile(self, *args: Any, **kwargs: Any) -> None:  # what torch would do needs a C++ compiler
            self.compiled += 1

        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            return self.layer(x)

    torch.manual_seed(0)
    psi = Psi()
    post = energies.Denoiser(psi, scales=(0.01, 10.0)) + likelihoods.Gaussian(torch.zeros(SHAPE), None, 0.3)
    assert torch.equal(draw(post).samples(), draw(post, compile=True).samples())
    assert psi.compiled == 0
    copied = inference._prepare.compile_networks(post)  # type: ignore[attr-defined]
    assert [m.compiled for m in copied.modules() if isinstance(m, Psi)] == [1]


def test_where_chains_start() -> None:
    frozen = inference.ALPS(annealers.Constant(1.0).with_step_size(1e-12), steps_per_level=1)
    each = torch.arange(3.0).reshape(3, 1, 1, 1).expand(3, *SHAPE)
    assert torch.allclose(draw(sampler=frozen, init=each, num_draws=1).samples()[:, 0], each, atol=1e-4)
    one = torch.full(SHAPE, 2.0)
    assert torch.allclose(draw(sampler=frozen, init=one, num_draws=1).samples()[:, 0], one.expand_as(each), atol=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_chains": 0}, "num_chains must be at least 1"),
        ({"num_draws": 0}, "num_draws must be at least 1"),
        ({"num_warmup": -1}, "num_warmup must be at least 0"),
        ({"num_chains": 2.5}, "num_chains must be an integer"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"dtype": "float16"}, "dtype is float16, expected one of float32"),
        ({"dtype": "int"}, "dtype is int"),
        ({"dtype": "complex64"}, "the posterior is of real images"),
        ({"device": "nowhere"}, "device 'nowhere' is not to be had"),
        ({"init": torch.zeros(1, 8, 7)}, r"init has shape \(1, 8, 7\), expected \(1, 8, 6\)"),
        ({"init": torch.zeros(2, 1, 8, 6)}, r"expected \(3, 1, 8, 6\)"),
        ({"init": torch.zeros(SHAPE, dtype=torch.complex64)}, "expected a real one"),
        ({"init": torch.full(SHAPE, torch.nan)}, "NaN or infinite"),
        ({"sampler": "alps"}, "sampler is a str"),
        ({"post": "posterior"}, "posterior is a str"),
        ({"post": energies.TotalVariation()}, "give init"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(options: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words) as caught:
        draw(**options)
    assert "\n" not in str(caught.value)


def test_score_only_priors_sample_without_a_value() -> None:
    prior = energies.ScoreModel(lambda x, s: x / (1 + s.reshape(-1, 1, 1, 1) ** 2), scales=(0.01, 10.0))
    post = prior + likelihoods.Gaussian(torch.zeros(SHAPE), None, 0.3)
    ensemble = draw(post)
    assert bool(ensemble.tree["sample_stats"]["lp"].isnull().all())
    with pytest.raises(TypeError, match="has no value"):
        post(ensemble.samples()[:, 0], 0.1)
