"""Samplers one after the other."""

from pathlib import Path

import pytest
import torch

import potentia as pt
from potentia import annealers, energies, inference, likelihoods
from potentia.inference import ALPS, Chained, Info, Langevin, Sampler, State

SHAPE = (1, 4, 4)


def posterior() -> pt.Sum:
    prior = energies.Gaussian(torch.zeros(SHAPE, dtype=torch.float64), 1.0)
    return prior + likelihoods.Gaussian(torch.ones(SHAPE, dtype=torch.float64), noise_std=0.5)


class Counter(Sampler):
    """Adds what it has learned, one more at each step, to the image; learns until it is frozen."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __repr__(self) -> str:
        return f"Counter({self.steps})"

    @property
    def steps_per_draw(self) -> int:
        return self.steps

    @property
    def adapts(self) -> bool:
        return True

    def start(self, posterior, shape, dtype, generator):  # type: ignore[no-untyped-def]
        return torch.zeros(shape, dtype=dtype)

    def init(self, posterior, x0, generator):  # type: ignore[no-untyped-def]
        kept = {"adapted_count": torch.zeros(()), "adapted_frozen": torch.zeros(()), "passing": torch.ones(())}
        return State(x0, None, 0, generator, memory=kept)

    def step(self, posterior, state):  # type: ignore[no-untyped-def]
        memory = dict(state.memory)
        memory["adapted_count"] = memory["adapted_count"] + (1 - memory["adapted_frozen"])
        memory["passing"] = memory["passing"] + 1
        return state._replace(x=state.x + 0, memory=memory, step=state.step + 1), Info(None, 1.0, 1)

    def freeze(self, memory):  # type: ignore[no-untyped-def]
        return {**memory, "adapted_frozen": torch.ones(())}


def run(sampler: Sampler, draws: int) -> State:
    generators = [torch.Generator().manual_seed(0)]
    state = sampler.init(posterior(), torch.zeros(1, *SHAPE, dtype=torch.float64), generators)
    for _ in range(draws * sampler.steps_per_draw):
        state, _ = sampler.step(posterior(), state)
    return state


def test_stages_are_flattened_and_their_steps_add_up() -> None:
    a, b, c = Langevin(steps_per_draw=3), Langevin(0.5, steps_per_draw=4), Counter(2)
    assert (a >> b >> c).stages == (a, b, c) == (a >> (b >> c)).stages
    assert (a >> b >> c).steps_per_draw == 9
    assert repr(a >> c) == f"{a!r} >> Counter(2)"
    assert (a >> c).default_warmup == a.default_warmup
    assert (ALPS(annealers.Constant(0.1, 2)) >> c).default_warmup == 1
    assert (ALPS(annealers.Constant(0.1, 2)) >> a).default_warmup == 0
    assert (ALPS(annealers.Constant(0.1, 2)) >> a).independent_draws
    assert not (a >> b).independent_draws


def test_a_stage_keeps_what_it_learns_from_draw_to_draw_and_nothing_else() -> None:
    sampler = Counter(2) >> Langevin(steps_per_draw=1) >> Counter(3)
    memory = run(sampler, 3).memory
    assert (memory["0/adapted_count"], memory["adapted_count"]) == (6, 9)
    assert memory["passing"] == 4  # of the last stage's last start
    assert not any(name.startswith("1/") for name in memory)


def test_freezing_reaches_every_stage() -> None:
    sampler = Counter(2) >> Counter(3)
    state = run(sampler, 2)
    state = state._replace(memory=sampler.freeze(state.memory))
    for _ in range(2 * sampler.steps_per_draw):
        state, _ = sampler.step(posterior(), state)
    assert (state.memory["0/adapted_count"], state.memory["adapted_count"]) == (4, 6)


def test_one_stage_after_another_is_what_it_would_be_by_hand() -> None:
    a, b = Langevin(0.7, steps_per_draw=5), Langevin(0.3, rule="euler", steps_per_draw=4)
    got = run(a >> b, 1).x
    generators = [torch.Generator().manual_seed(0)]
    state = a.init(posterior(), torch.zeros(1, *SHAPE, dtype=torch.float64), generators)
    for _ in range(5):
        state, _ = a.step(posterior(), state)
    state = b.init(posterior(), state.x, generators)
    for _ in range(4):
        state, _ = b.step(posterior(), state)
    torch.testing.assert_close(got, state.x, rtol=0, atol=0)


@pytest.mark.parametrize("first", [ALPS(annealers.Geometric(5.0, 0.1, 4), 2), Langevin(steps_per_draw=3)])
def test_draws_through_sample_are_independent_where_the_first_stage_says_so(first: Sampler) -> None:
    sampler = first >> Counter(2)
    drawn = pt.sample(posterior(), sampler, num_chains=2, num_draws=200, seed=1, progress=False).samples()
    lag = (drawn[:, 1:] - drawn.mean()) * (drawn[:, :-1] - drawn.mean())
    correlation = float(lag.mean() / drawn.var())
    bound = 4 / (2 * 199 * 16) ** 0.5
    assert abs(correlation) < bound if first.independent_draws else abs(correlation) < 0.2


def test_an_interrupted_run_goes_on_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = ALPS(annealers.Geometric(5.0, 0.1, 4), 2) >> Counter(2) >> Langevin(steps_per_draw=2)
    monkeypatch.setattr("potentia.io._schema._CHUNK_BYTES", 256)  # blocks of two draws
    settings = dict(num_chains=2, num_draws=6, seed=3, progress=False)
    whole = pt.sample(posterior(), sampler, store=tmp_path / "whole.zarr", **settings).samples()
    steps = 0
    step = Counter.step

    def stop(self, posterior, state):  # type: ignore[no-untyped-def]
        nonlocal steps
        steps += 1
        if steps > 9:
            raise KeyboardInterrupt
        return step(self, posterior, state)

    monkeypatch.setattr(Counter, "step", stop)
    with pytest.raises(KeyboardInterrupt):
        pt.sample(posterior(), sampler, store=tmp_path / "cut.zarr", **settings)
    monkeypatch.setattr(Counter, "step", step)
    cut = pt.sample(posterior(), sampler, store=tmp_path / "cut.zarr", resume=True, **settings).samples()
    torch.testing.assert_close(cut, whole, rtol=0, atol=0)


def test_what_is_no_sampler_is_refused() -> None:
    with pytest.raises(TypeError):
        Langevin() >> 3  # type: ignore[operator]
    with pytest.raises(TypeError, match="a stage is a int"):
        Chained((Langevin(), 3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no stages"):
        Chained(())


def test_annealed_then_langevin_samples_a_gaussian() -> None:
    sampler = ALPS(annealers.Geometric(5.0, 0.1, 4), 2) >> Langevin(1.0, steps_per_draw=2)
    drawn = inference.sample(posterior(), sampler, num_chains=400, seed=5, progress=False).samples()
    assert abs(float(drawn.var()) / 0.2 - 1) < 4 * (2 / (400 * 16)) ** 0.5
