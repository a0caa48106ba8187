"""The ensemble store and the files of weights: what goes in comes out, or is refused."""

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from ensembles import ensemble_of, stops_after
from hypothesis import strategies as st
from identities_base import Check, Fault, Identity, planted
from torch import Tensor

import potentia as pt
from potentia import energies, inference, io, likelihoods
from potentia._random import standard_normal
from potentia.inference import Info, Sampler, State
from potentia.io import Ensemble, EnsembleWriter, StoreError
from potentia.io import _schema as schema
from potentia.io._checked import CheckedStore
from potentia.testing import strategies
from potentia.testing._report import require

STORES = "Stores and weights"
FIELDS = (torch.float32, torch.float64, torch.complex64, torch.complex128)


@st.composite
def drawn(draw: st.DrawFn) -> tuple[Tensor, int]:
    """Images (chain, draw, C, H, W) of any field, and how many draws stand in a block."""
    chains, draws, side = st.integers(1, 3), st.integers(2, 6), st.integers(1, 4)
    shape = draw(st.tuples(chains, draws, st.integers(1, 2), side, side))
    g = draw(strategies.generators())
    return standard_normal(shape, g, dtype=draw(st.sampled_from(FIELDS))), draw(st.integers(1, shape[1]))


def differences(got: Tensor, want: Tensor) -> str | None:
    if got.dtype != want.dtype or got.shape != want.shape:
        return f"{got.dtype} {tuple(got.shape)}"
    wrong = int((got != want).sum())
    return f"{wrong} other numbers" if wrong else None


def round_trip(case: tuple[Tensor, int]) -> None:
    """What is appended is read back bit for bit, from the disk and from memory."""
    images, block = case
    with tempfile.TemporaryDirectory() as folder:
        for path in (None, Path(folder) / "a.zarr"):
            made = ensemble_of(images, path, block=block)
            for ensemble in [made] if path is None else [made, io.open_ensemble(path)]:
                wrong = differences(ensemble.samples(), images)
                require(wrong is None, "Ensemble", "what was appended is read back to the bit", wrong, "the same bits")


def summaries(case: tuple[Tensor, int]) -> None:
    """Mean, standard deviation, quantiles and coverage are those of the samples, computed anew."""
    images, block = case
    ensemble = ensemble_of(images, block=block)
    pooled = images.flatten(0, 1).numpy()
    parts = np.concatenate([pooled.real, pooled.imag], 1) if images.is_complex() else pooled
    parts = parts.astype(np.float64)
    single = images.dtype in (torch.float32, torch.complex64)
    room = 1e-5 if single else 1e-9
    wanted = {
        "mean": (ensemble.mean(), parts.mean(0)),
        "std": (ensemble.std(), parts.std(0, ddof=1)),
        "quantile": (ensemble.quantile([0.1, 0.5]), np.quantile(parts, [0.1, 0.5], axis=0)),
    }
    for name, (got, want) in wanted.items():
        values = _in_order(got.values, images)
        off = float(np.abs(values - want).max())
        require(off <= room * (1 + np.abs(want).max()), "Ensemble", f"{name} is that of the samples", off, 0)


def _in_order(values: Any, images: Tensor) -> Any:
    """Stored channels are real and imaginary part in turn; here all real ones come first."""
    if not images.is_complex():
        return values
    return np.concatenate([values[..., 0::2, :, :], values[..., 1::2, :, :]], -3)


@st.composite
def flips(draw: st.DrawFn) -> tuple[Tensor, int, list[tuple[int, int]]]:
    """An ensemble, and which bits of which files are to be flipped, one at a time, counted modulo what there is."""
    images, block = draw(drawn())
    places = st.tuples(st.integers(0, 2**16), st.integers(0, 2**20))
    return images, block, draw(st.lists(places, min_size=1, max_size=6))


def damage(case: tuple[Tensor, int, list[tuple[int, int]]]) -> None:
    """With any one bit of any file flipped, the store is refused, or what it gives is what it gave."""
    images, block, places = case
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what zarr finds in a store that is not as it should be
        path = Path(folder) / "a.zarr"
        ensemble_of(images, path, block=block)
        files = sorted(p for p in path.rglob("*") if p.is_file() and p.stat().st_size)
        for at, bit in places:
            file = files[at % len(files)]
            sound = file.read_bytes()
            raw = bytearray(sound)
            raw[bit // 8 % len(raw)] ^= 1 << bit % 8
            file.write_bytes(raw)
            wrong = _told(path, images)
            file.write_bytes(sound)
            name = file.relative_to(path)
            require(wrong is None, "Ensemble", f"a flipped bit is refused or harmless ({name})", wrong, "StoreError")


def _told(path: Path, images: Tensor) -> str | None:
    """What is wrong with what a store gives, or None if it is refused."""
    try:
        return differences(io.open_ensemble(path).samples(), images)
    except StoreError:
        return None
    except Exception as err:  # what a reader that does not look may meet
        return type(err).__name__


# Interrupted runs.


def resumed(case: tuple[Sampler, int, int]) -> None:
    """A run that is interrupted and taken up gives the bits of the one that was not."""
    sampler, stop, seed = case
    y = torch.linspace(-1, 1, 16).reshape(1, 4, 4)
    posterior = energies.GaussianField.power_law((1, 4, 4)) + likelihoods.Gaussian(y, None, 0.3)
    with tempfile.TemporaryDirectory() as folder, inference.without_diagnostics():

        def run(store: str | None, **options: Any) -> Ensemble:
            sizes = {"num_chains": 2, "num_draws": 6, "num_warmup": 2, "seed": seed}
            # A copy, as another process would have: it knows nothing of the runs before.
            return pt.sample(posterior, replace(sampler), store=store, progress=False, **sizes, **options)

        whole = run(None).samples()
        store = str(Path(folder) / "a.zarr")
        try:
            with stops_after(sampler, stop), mock.patch.object(schema, "_CHUNK_BYTES", 64), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                run(store)
        except KeyboardInterrupt:
            pass
        committed = io.open_ensemble(store).num_draws
        require(0 < committed < 6, type(sampler).__name__, "an interrupted run leaves its draws", committed, "1 to 5")
        wrong = differences(run(store, resume=True).samples(), whole)
    require(wrong is None, type(sampler).__name__, "a resumed run is the uninterrupted one", wrong, "the same bits")


@st.composite
def interrupted(draw: st.DrawFn, make: Callable[[], Sampler] | None = None) -> tuple[Sampler, int, int]:
    known = [inference.Langevin(0.1), inference.MALA(0.1), inference.HMC(0.3, num_leapfrog=2)]
    sampler = draw(st.sampled_from(known)) if make is None else make()
    return replace(sampler, steps_per_draw=1), draw(st.integers(3, 7)), draw(st.integers(0, 99))


@dataclass(frozen=True)
class Hidden(inference.Langevin):
    """Remembers in itself, beside the state, how many steps it has done, and moves by that."""

    done: list[int] = field(default_factory=lambda: [0], init=False, compare=False, repr=False)

    def init(self, *args: Any) -> State:
        self.done[0] = 0
        return super().init(*args)

    def step(self, posterior: pt.Potential, state: State) -> tuple[State, Info]:
        self.done[0] += 1
        new, info = super().step(posterior, state)
        return new._replace(x=new.x + 1e-3 * self.done[0]), info


# Weights.


def weights(case: tuple[energies.Denoiser, Tensor]) -> None:
    """``load(save(U))`` has the values and gradients of U, bit for bit."""
    energy, x = case
    with tempfile.TemporaryDirectory() as folder:
        again = energies.load(energies.save(energy, Path(folder) / "u.safetensors"))
        for s in (0.1, 1.0):
            for got, want in zip(again.value_and_grad(x, s), energy.value_and_grad(x, s), strict=True):
                wrong = differences(got, want)
                require(wrong is None, "energies.load", "what was saved is loaded to the bit", wrong, "the same bits")


@st.composite
def networks(draw: st.DrawFn) -> tuple[energies.Denoiser, Tensor]:
    torch.manual_seed(draw(st.integers(0, 999)))
    net = energies.UNet(1, widths=(16, 16), embedding=16)
    for parameter in net.parameters():
        parameter.data.normal_(0, 0.1)  # a new network ends in zeros
    energy = energies.Denoiser(energies.EDM(net, 0.5), (0.05, 5.0)).eval().requires_grad_(False)
    return energy, torch.randn(2, 1, 8, 8)


ROUND_TRIP = Check("round_trip", round_trip, drawn(), 8)
SUMMARIES = Check("summaries", summaries, drawn(), 15)
DAMAGE = Check("damage", damage, flips(), 20)
RESUMED = Check("resumed", resumed, interrupted(), 8)
WEIGHTS = Check("weights", weights, networks(), 4)


def replaced(text: str, check: Check, owner: Any, name: str, new: Any, says: str, examples: int = 20) -> Fault:
    """A fault in the code under test, which is replaced while the check runs over sound cases."""
    sound = planted(text, check, check.sound, says, max_examples=examples)

    def run() -> None:
        with mock.patch.object(owner, name, new):
            sound.run()

    return Fault(text, run, says)


_append, _std, _load = EnsembleWriter.append, Ensemble.std, energies.load


def rounding(self: EnsembleWriter, images: Tensor, *args: Any, **options: Any) -> None:
    parts = torch.view_as_real(images) if images.is_complex() else images
    parts = parts.half().to(parts.dtype)
    _append(self, torch.view_as_complex(parts) if images.is_complex() else parts, *args, **options)


async def trusting(self: CheckedStore, key: str, prototype: Any) -> Any:
    return await self._fetch(key, prototype) if self.accepted(key) else None


def biased(self: Ensemble, ddof: int = 1) -> Any:
    return _std(self, ddof=0)


def halved(path: Any) -> Any:
    return _load(path).half().float()


IDENTITIES = [
    Identity(
        STORES,
        "round trip",
        "`open_ensemble(path).samples()` = what was appended, bit for bit, real or complex, in either precision",
        ROUND_TRIP,
        (replaced("images rounded on their way", ROUND_TRIP, EnsembleWriter, "append", rounding, "to the bit"),),
    ),
    Identity(
        STORES,
        "summaries",
        "mean, standard deviation and quantiles = those of the samples, computed anew",
        SUMMARIES,
        (replaced("a deviation over n in place of n − 1", SUMMARIES, Ensemble, "std", biased, "std is that"),),
    ),
    Identity(
        STORES,
        "checksums",
        "any one bit of any file flipped: StoreError, or the same samples",
        DAMAGE,
        (replaced("checksums not looked at", DAMAGE, CheckedStore, "_checked", trusting, "flipped bit", 60),),
    ),
    Identity(
        STORES,
        "resume",
        "interrupted after any step and resumed = uninterrupted, bit for bit",
        RESUMED,
        (planted("a sampler that remembers beside its state", RESUMED, interrupted(Hidden), "uninterrupted"),),
    ),
    Identity(
        STORES,
        "weights",
        "`load(save(U))` = U in value and gradient, bit for bit",
        WEIGHTS,
        (replaced("weights rounded on their way", WEIGHTS, energies, "load", halved, "to the bit"),),
    ),
]
TABLES: list[Any] = []
