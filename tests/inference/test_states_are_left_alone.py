"""What samplers hand out is never changed in place: draws are written from the tensors themselves, later."""

import inspect
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

import potentia as pt
from potentia import annealers, energies, inference, likelihoods
from potentia.inference import Info, Sampler, State

SHAPE = (1, 4, 4)
CHAINS = 16
LEVELS = annealers.Geometric(2.0, 0.1, 3)


def blurred(std: float) -> pt.Potential:
    return likelihoods.Gaussian(torch.zeros(SHAPE), likelihoods.GaussianBlur(std, SHAPE), 0.3)


def gibbs(image: Sampler, **more: inference.Parameter) -> Sampler:
    blur = inference.Unknown("gaussian", blurred, torch.distributions.Uniform(0.5, 2.0))
    return inference.Gibbs({"image": image, "blur": blur, "noise_std": inference.NoiseStd(shape=2.0, rate=0.5), **more})


SAMPLERS: dict[str, Sampler] = {
    "ALPS": inference.ALPS(LEVELS),
    "Calibrated": inference.Calibrated(20),
    "ChEES": inference.ChEES(),
    "Chained": inference.ALPS(LEVELS) >> inference.Langevin() >> inference.MALA(steps_per_draw=2),
    "DAPS": inference.DAPS(LEVELS),
    "DPS": inference.DPS(LEVELS),
    "DiffPIR": inference.DiffPIR(LEVELS),
    "Gibbs": gibbs(inference.Langevin(), weight=inference.Weight("field", 2.0, 2.0)),
    "HMC": inference.HMC(),
    "Langevin": inference.Langevin(),
    "MALA": inference.MALA(preconditioner="low-rank", rank=2),
    "MMPS": inference.MMPS(LEVELS),
    "ParallelTempering": inference.ParallelTempering(LEVELS),
    "SMC": inference.SMC(LEVELS, moves=2),
    "SplitGibbs": inference.SplitGibbs(LEVELS, num_denoise=2),
    "TwistedSMC": inference.TwistedSMC(rank=2, num_runs=2),
}


def posterior() -> pt.Potential:
    y = torch.linspace(-1, 1, 16).reshape(SHAPE)
    return energies.GaussianField.power_law(SHAPE) + likelihoods.Gaussian(y, None, 0.3)


def test_every_sampler_is_here() -> None:
    public = {name: getattr(inference, name) for name in inference.__all__}
    known = {n for n, v in public.items() if inspect.isclass(v) and issubclass(v, Sampler)} - {"Sampler"}
    assert set(SAMPLERS) == known


def tensors(state: State) -> list[Tensor]:
    held = [state.x, state.value, state.grad, *(state.white or ()), *state.memory.values()]
    return [t for t in held if t is not None]


def changed(sampler: Sampler, draws: int = 3) -> int:
    """Run a sampler, and count the tensors of its states, and of its start, that are not what they were."""
    target = posterior()
    generators = [torch.Generator().manual_seed(k) for k in range(CHAINS)]
    x0 = sampler.start(target, (CHAINS, *SHAPE), torch.float32, generators)
    state = sampler.init(target, x0, generators)
    kept = [(t, t._version, t.clone()) for t in [x0, *tensors(state)]]
    for _ in range(draws):
        for _ in range(sampler.steps_per_draw):
            state, _ = sampler.step(target, state)
            kept += [(t, t._version, t.clone()) for t in tensors(state)]
        state = state._replace(memory=sampler.freeze(state.memory))
    return sum(t._version != version or not torch.equal(t.nan_to_num(), copy.nan_to_num()) for t, version, copy in kept)


@pytest.mark.parametrize("name", SAMPLERS)
def test_states_are_not_changed_in_place(name: str) -> None:
    assert changed(SAMPLERS[name]) == 0


@pytest.mark.parametrize("name", ["ALPS", "Chained", "ChEES", "DAPS", "DiffPIR", "HMC", "MALA", "MMPS", "SplitGibbs"])
def test_nor_are_those_of_gibbs_around_any_sampler(name: str) -> None:
    assert changed(gibbs(SAMPLERS[name])) == 0


@dataclass(frozen=True)
class InPlace(inference.Langevin):
    """Saves memory where it should not."""

    def step(self, posterior: pt.Potential, state: State) -> tuple[State, Info]:
        new, info = super().step(posterior, state)
        return new._replace(x=state.x.copy_(new.x)), info


def test_a_sampler_that_does_is_caught(tmp_path: Path) -> None:
    assert changed(InPlace()) > 0
    for store in (None, tmp_path / "a.zarr"):
        with pytest.raises(RuntimeError, match=r"images were changed in place after .*expected a new tensor for each"):
            pt.sample(posterior(), InPlace(), num_chains=2, num_draws=4, store=store, progress=False)
