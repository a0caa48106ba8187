"""Runs that are killed, interrupted or cut off from their disk: what was committed is whole, and goes on to the bit."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

import potentia as pt
from potentia import energies, inference, likelihoods
from potentia.io import EnsembleWriter, StoreError
from potentia.io import _schema as schema
from potentia.io._blocks import Draw, Taker
from potentia.io._sink import Sink

DRAWS = 60

# Imports once, then forks a run for every line: a kill costs no import. No thread is started before the fork.
SERVER = """
import os, sys, time, warnings
import torch
torch.set_num_threads(1)
import numpy, xarray, zarr, zarr.storage, safetensors.torch
import potentia as pt
from potentia import energies, inference, likelihoods
from potentia.inference import _sample
from potentia.io import _schema, _writer

warnings.simplefilter("ignore")
_schema._CHUNK_BYTES = 4 * 5 * 64     # five draws of 8 x 8
_writer._PATIENCE = 0.02              # and blocks committed in part, again and again

class Slow(inference.Langevin):
    def step(self, posterior, state):
        time.sleep(pause)
        return super().step(posterior, state)
    def __repr__(self):
        return "Langevin()"

for line in sys.stdin:
    store, pause, draws = line.split()
    pause = float(pause)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            y = torch.linspace(-1, 1, 64).reshape(1, 8, 8)
            posterior = energies.GaussianField.power_law((1, 8, 8)) + likelihoods.Gaussian(y, None, 0.3)
            pt.sample(posterior, Slow(), num_chains=3, num_draws=int(draws), num_warmup=2, store=store,
                      resume=os.path.exists(store), progress=False)
            code = 0
        except KeyboardInterrupt:
            code = 130
        except BaseException as err:
            sys.stderr.write(repr(err) + "\\n")
        finally:
            sys.stderr.flush()
            os._exit(code)
    print(pid, flush=True)
    print(os.waitpid(pid, 0)[1], flush=True)
"""


class Server:
    """Starts runs, and says how they ended."""

    def __init__(self, folder: Path) -> None:
        script = folder / "server.py"
        script.write_text(SERVER, encoding="utf-8")
        self.process = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def run(
        self,
        store: Path,
        pause: float = 0.0,
        end: int | None = None,
        after: float = 0.0,
        draws: int = DRAWS,
        begun: bool = False,
    ) -> int:
        """Run, and send the signal ``end`` so many seconds later, or after the store is there if ``begun``.

        Returns the exit status, negative for a signal.
        """
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(f"{store} {pause} {draws}\n")
        stdin.flush()
        pid = int(stdout.readline())
        timer = None
        if end is not None:
            over = threading.Event()
            timer = threading.Thread(target=_send, args=(pid, end, after, store if begun else None, over))
            timer.start()
        code = os.waitstatus_to_exitcode(int(stdout.readline()))
        if timer is not None:
            over.set()
            timer.join()
        return code


def _send(pid: int, number: int, after: float, store: Path | None, over: threading.Event) -> None:
    while store is not None and not store.exists() and not over.wait(0.005):
        pass
    if not over.wait(after):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("server"))
    yield made
    made.process.kill()
    for pipe in (made.process.stdin, made.process.stdout):
        assert pipe is not None
        pipe.close()
    made.process.wait()


@pytest.fixture(scope="module")
def whole(server: Server, tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """What an uninterrupted run draws."""
    store = tmp_path_factory.mktemp("whole") / "a.zarr"
    assert server.run(store) == 0
    return pt.open_ensemble(store).samples()


def committed(store: Path, whole: torch.Tensor) -> int:
    """How many draws a store holds, each of them checked."""
    if not store.exists():
        return 0
    try:
        ensemble = pt.open_ensemble(store)
    except StoreError as err:
        if "no draw has been committed" in str(err):
            return 0
        raise
    n = ensemble.num_draws
    assert torch.equal(ensemble.samples(), whole[:, :n])
    np.testing.assert_allclose(ensemble.mean(), whole[:, :n].double().mean(dim=(0, 1)), rtol=0, atol=1e-9)
    return n


def test_twenty_kills_lose_nothing_that_was_committed(server: Server, whole: torch.Tensor, tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    store, seen, kills, run = tmp_path / "0.zarr", [], 0, 0
    while kills < 20:
        # Slow enough for several kills a run, at random moments of its writing, and sometimes before.
        code = server.run(store, 0.003, signal.SIGKILL, float(random.uniform(0.05, 0.35)), begun=kills % 4 != 0)
        assert code in (0, -signal.SIGKILL)
        kills += code != 0
        n = committed(store, whole)
        assert n == DRAWS or code != 0
        assert n >= (seen[-1] if seen else 0), "a kill took draws away that were committed before"
        seen.append(n)
        if n == DRAWS:
            run += 1
            store = tmp_path / f"{run}.zarr"
            seen.append(0)
    assert server.run(store) == 0
    assert committed(store, whole) == DRAWS
    assert sum(0 < n < DRAWS for n in seen) >= 5, "few kills struck a run under way"
    assert any(n % 5 for n in seen), "no kill came after a block that was committed in part"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_with_its_last_draw_committed(
    server: Server, whole: torch.Tensor, tmp_path: Path, number: int
) -> None:
    store = tmp_path / "a.zarr"
    assert server.run(store, 0.05, number, 2.0) == 130
    first = committed(store, whole)
    assert 1 <= first < DRAWS
    assert server.run(store) == 0
    assert committed(store, whole) == DRAWS


# Within this process


def posterior() -> pt.Potential:
    y = torch.linspace(-1, 1, 64).reshape(1, 8, 8)
    return energies.GaussianField.power_law((1, 8, 8)) + likelihoods.Gaussian(y, None, 0.3)


def draw(store: Path | None, draws: int = 20, **options: object) -> pt.Ensemble:
    with (
        mock.patch.object(schema, "_CHUNK_BYTES", 4 * 5 * 64),
        mock.patch("potentia.inference._sample.warn_if_suspect"),
    ):
        return pt.sample(
            posterior(), inference.Langevin(), num_chains=3, num_draws=draws, num_warmup=2, store=store, progress=False,
            **options,  # type: ignore[arg-type]
        )  # fmt: skip


def test_a_store_holds_what_memory_holds(tmp_path: Path, whole: torch.Tensor) -> None:
    assert torch.equal(draw(tmp_path / "a.zarr").samples(), draw(None).samples())
    assert torch.equal(draw(tmp_path / "b.zarr", durability="power").samples(), whole[:, :20])


def test_a_full_disk_stops_the_sampler_at_once(tmp_path: Path, whole: torch.Tensor) -> None:
    written, steps = Sink.write, []

    def full(self: Sink, order: object) -> None:
        if self.num_committed >= 5:
            raise OSError(28, "No space left on device")
        written(self, order)  # type: ignore[arg-type]

    plain = inference.Langevin.step

    def counted(self: inference.Langevin, *args: object) -> object:
        steps.append(1)
        time.sleep(0.01)
        return plain(self, *args)  # type: ignore[arg-type]

    store = tmp_path / "a.zarr"
    with (
        mock.patch.object(Sink, "write", full),
        mock.patch.object(inference.Langevin, "step", counted),
        pytest.raises(StoreError, match=r"a\.zarr: .*No space left on device.*5 draws are kept") as caught,
    ):
        draw(store, 1000)
    assert isinstance(caught.value.__cause__, OSError)
    assert len(steps) < 300, "the sampler went on for long"
    assert committed(store, whole) == 5
    with pytest.raises(StoreError, match="num_draws of the stored run is 1000, this run has 20"):
        draw(store, resume=True)


def test_a_run_without_a_saved_state_is_not_begun_anew(tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    record: dict[str, object] = {}
    make = EnsembleWriter.create.__func__  # type: ignore[attr-defined]

    def noted(cls: type[EnsembleWriter], path: object, **options: object) -> EnsembleWriter:
        record.update(options)
        writer: EnsembleWriter = make(cls, path, **options)
        return writer

    with mock.patch.object(EnsembleWriter, "create", classmethod(noted)):
        ensemble = draw(tmp_path / "whole.zarr")
    images = ensemble.samples()
    with mock.patch.object(schema, "_CHUNK_BYTES", 4 * 5 * 64):
        writer = EnsembleWriter.create(store, **record)  # type: ignore[arg-type]
        for k in range(3):
            writer.append(images[:, k], {})
        assert writer.close().num_draws == 3
    with pytest.raises(StoreError, match="3 draws are committed without the sampler's state"):
        draw(store, resume=True)


def test_the_sampler_waits_for_a_slow_disk_with_bounded_memory(tmp_path: Path) -> None:
    written, take = Sink.write, Taker.take
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def slow(self: Sink, state: bytes) -> None:
        time.sleep(0.02)
        written(self, state)

    def counted(self: Taker, *args: object) -> Draw:
        nonlocal most
        taken: Draw = take(self, *args)  # type: ignore[arg-type]
        alive.append(weakref.ref(taken.images))
        most = max(most, sum(ref() is not None for ref in alive))
        return taken

    with mock.patch.object(Sink, "write", slow), mock.patch.object(Taker, "take", counted):
        ensemble = draw(tmp_path / "a.zarr", 100)
    # Two blocks of five draws may wait beside the one that is being written; the next draw is the sampler's own.
    assert 5 < most <= 2 * 5 + 1
    assert torch.equal(ensemble.samples(), draw(None, 100).samples())


def test_a_durability_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="durability is 'fsync', expected one of process, power"):
        draw(tmp_path / "a.zarr", durability="fsync")
    assert not (tmp_path / "a.zarr").exists()
