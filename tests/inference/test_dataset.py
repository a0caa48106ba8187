"""``sample_dataset``: equal ensembles whoever computes them, failures told and not fatal, work resumed by item."""

import contextlib
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import cloudpickle
import distributed
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from s3_server import s3_server
from torch import Tensor

import potentia as pt
from potentia import energies, inference, likelihoods
from potentia.inference import _cluster as cluster_of
from potentia.inference import _dataset as dataset
from potentia.inference._dataset import FailedItemsWarning, Reconstruction, item_seed, sample_dataset
from potentia.io import StoreError, StoreExistsError, open_ensemble
from potentia.io import _schema as schema
from potentia.io._collection import (
    Collection,
    CollectionWriter,
    held,
    item_path,
    open_collection,
    remove_unfinished,
    stored_state,
)
from potentia.io._location import Location

# Workers cannot import a test file.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

SHAPE = (1, 6, 5)
PORT = {"dashboard_address": "127.0.0.1:0"}  # none is shown, but without a free port for it Dask warns
DRAWS = 12
SAMPLER = inference.Langevin(step_size=0.5)
NAMES = ("a.png", "b 2.npy")


def posterior(item: int, prior: pt.Potential | None = None) -> pt.Potential:
    y = torch.randn(SHAPE, generator=torch.Generator().manual_seed(item))
    return (prior or energies.Gaussian(torch.zeros(SHAPE), 1.0)) + likelihoods.Gaussian(y, likelihoods.Identity(), 0.5)


def in_small_blocks() -> None:
    """Commit every draw, so that whatever interrupts a run leaves something to go on from."""
    schema._CHUNK_BYTES = 1  # type: ignore[misc]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "_CHUNK_BYTES", 1)


@pytest.fixture(scope="module")
def client() -> Iterator[distributed.Client]:
    """One worker of two threads, within this process."""
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None, scheduler_kwargs=PORT
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as own,
    ):
        yield own


@pytest.fixture(scope="module")
def processes() -> Iterator[distributed.Client]:
    """Two workers, each a process of its own."""
    with cluster_of.connected(None, 2, 1, 2) as own:
        yield own


def run(root: Path, client: Any, build: Callable[[Any], Any] = posterior, **options: Any) -> Collection:
    items = options.pop("items", {name: k for k, name in enumerate(NAMES)})
    defaults: dict[str, Any] = {"num_chains": 2, "num_draws": DRAWS, "seed": 3, "progress": False}
    with inference.without_diagnostics():
        return sample_dataset(items, build, SAMPLER, root=root, client=client, **(defaults | options))


def samples(collection: Collection, names: tuple[str, ...] = NAMES) -> Tensor:
    return torch.stack([collection[name].samples() for name in names])


@pytest.fixture(scope="module")
def reference() -> Tensor:
    """What every run must give: each item sampled by itself."""
    with inference.without_diagnostics():
        return torch.stack(
            [
                pt.sample(
                    posterior(k), SAMPLER, num_chains=2, num_draws=DRAWS, seed=item_seed(3, name), progress=False
                ).samples()
                for k, name in enumerate(NAMES)
            ]
        )


def assert_same(collection: Collection, reference: Tensor) -> None:
    assert collection.complete == NAMES
    assert torch.equal(samples(collection), reference)
    means = torch.stack([torch.from_numpy(collection[name].mean().values) for name in NAMES])
    assert torch.equal(torch.from_numpy(collection.mean().values), means)


def test_ensembles_do_not_depend_on_the_workers(
    client: distributed.Client, processes: distributed.Client, reference: Tensor, tmp_path: Path
) -> None:
    assert not torch.equal(reference[0], reference[1])
    assert_same(run(tmp_path / "threads", client), reference)
    assert_same(run(tmp_path / "processes", processes), reference)


def test_what_a_worker_cannot_import_fails_the_item_and_not_the_worker(
    processes: distributed.Client, reference: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("nowhere_to_be_found")
    exec("def build(k): raise AssertionError\nclass Item: pass", module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.warns(FailedItemsWarning, match="No module named 'nowhere_to_be_found'"):
        unknown = run(tmp_path / "build", processes, module.build)
    assert unknown.failed.keys() == set(NAMES)
    with pytest.warns(FailedItemsWarning, match="1 of 2 items failed.*No module named 'nowhere_to_be_found'"):
        mixed = run(tmp_path / "item", processes, items={NAMES[0]: 0, "b": module.Item()})
    assert torch.equal(mixed[NAMES[0]].samples(), reference[0])


def test_ensembles_depend_neither_on_the_order_nor_on_other_items(
    client: distributed.Client, reference: Tensor, tmp_path: Path
) -> None:
    backwards = run(tmp_path / "root", client, items={"z": 7, NAMES[1]: 1})
    assert backwards.names == ("z", NAMES[1])
    assert torch.equal(backwards[NAMES[1]].samples(), reference[1])
    grown = run(tmp_path / "root", client, resume=True)
    assert grown.names == (*NAMES, "z")
    assert torch.equal(samples(grown), reference)
    other = run(tmp_path / "other", client, items={NAMES[0]: 0}, seed=4)
    assert not torch.equal(samples(other, NAMES[:1])[0], reference[0])


def test_a_local_cluster_is_made_and_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def within(**options: Any) -> distributed.LocalCluster:
        options.pop("preload")  # for processes
        made.extend([LOCAL(**options, processes=False), options["n_workers"]])
        return made[0]

    monkeypatch.setattr(distributed, "LocalCluster", within)
    assert run(tmp_path / "root", None, workers=5, items={"a": 0}).complete == ("a",)
    assert made[1] == 1  # no more workers than items
    assert made[0].status is distributed.Status.closed
    with pytest.raises(ValueError, match="No clients found"):
        distributed.default_client()


LOCAL = distributed.LocalCluster


@given(st.integers(0, 2**63), st.text(max_size=20), st.text(max_size=20))
def test_seeds_follow_from_seed_and_name(seed: int, name: str, other: str) -> None:
    assert 0 <= item_seed(seed, name) < 2**63
    assert item_seed(seed, name) == item_seed(seed, name)
    assert (item_seed(seed, name) == item_seed(seed, other)) == (name == other)
    assert item_seed(seed, name) != item_seed(seed + 1, name)


def test_seeds_are_the_same_for_ever() -> None:
    assert item_seed(0, "a.png") == 9156644118951487697


class Fails(RuntimeError):
    pass


def broken(item: int) -> pt.Potential:
    if item == 1:
        raise Fails("the data\n are bad")
    return posterior(item)


def test_a_failure_is_told_and_the_others_go_on(client: distributed.Client, reference: Tensor, tmp_path: Path) -> None:
    with pytest.warns(FailedItemsWarning, match=r"1 of 2 items failed, such as b 2\.npy: Fails: the data are bad"):
        collection = run(tmp_path / "root", client, broken)
    assert list(collection.failed) == ["b 2.npy"]
    assert "test_dataset.py:" in collection.failed["b 2.npy"]
    item = open_collection(tmp_path / "root").states["b 2.npy"]
    assert "raise Fails" in item.traceback
    assert item.num_draws == 0
    with pytest.raises(StoreError, match=r"b 2\.npy has no ensemble: it failed: Fails: the data are bad"):
        collection["b 2.npy"]
    assert torch.equal(samples(collection, NAMES[:1]), reference[:1])
    # Mended, the item is done and the failure forgotten.
    again = run(tmp_path / "root", client, resume=True)
    assert again.failed == {}
    assert torch.equal(samples(again), reference)


class Faulty:
    """A quadratic that raises, or kills its process, at one evaluation, as often as ``times`` says; notes each call."""

    def __init__(self, notes: Path, kill: bool = False, times: int = 1) -> None:
        self.notes, self.kill, self.times, self.calls = notes, kill, times, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        with self.notes.open("a") as told:
            told.write(".")
            broke = self.notes.read_text().count("!")
            if self.calls == (25 if broke else 190) and broke < self.times:
                told.write("!")
                told.flush()
                if self.kill:
                    os.kill(os.getpid(), signal.SIGKILL)
                raise Fails("in the middle")
        return 0.5 * x.square().sum(dim=(-3, -2, -1))

    def posterior(self, item: int) -> pt.Potential:
        in_small_blocks()
        self.calls = 0
        return posterior(item, energies.Function(self))


def plain(item: int) -> pt.Potential:
    return posterior(item, energies.Function(lambda x: 0.5 * x.square().sum(dim=(-3, -2, -1))))


@pytest.fixture(scope="module")
def plain_reference() -> Tensor:
    with inference.without_diagnostics():
        return pt.sample(
            plain(0), SAMPLER, num_chains=2, num_draws=DRAWS, seed=item_seed(3, "a"), progress=False
        ).samples()


@pytest.mark.usefixtures("small_blocks")
def test_an_item_that_broke_off_goes_on_from_its_last_committed_draw(
    client: distributed.Client, plain_reference: Tensor, tmp_path: Path
) -> None:
    build = Faulty(tmp_path / "notes").posterior
    with pytest.warns(FailedItemsWarning, match="in the middle"):
        half = run(tmp_path / "root", client, build, items={"a": 0})
    begun = half.states["a"].num_draws
    assert 0 < begun < DRAWS
    assert torch.equal(half["a"].samples(), plain_reference[:, :begun])
    evaluated = (tmp_path / "notes").stat().st_size
    whole = run(tmp_path / "root", client, build, items={"a": 0}, resume=True)
    assert whole.complete == ("a",)
    assert torch.equal(whole["a"].samples(), plain_reference)
    # It did not begin anew.
    assert (tmp_path / "notes").stat().st_size - evaluated < evaluated


def test_the_item_of_a_killed_worker_is_tried_again_given_up_and_resumed(
    processes: distributed.Client, plain_reference: Tensor, tmp_path: Path
) -> None:
    # Dask blames a death on all that waited at the worker as well: nothing may.
    assert processes.run_on_scheduler(lambda dask_scheduler: dask_scheduler.WORKER_SATURATION) == 1
    killer = Faulty(tmp_path / "notes", kill=True, times=2)
    items = {"a": True, "b": False, "c": False}

    def build(kills: bool) -> pt.Potential:
        return killer.posterior(0) if kills else plain(0)

    with pytest.warns(FailedItemsWarning, match=r"1 of 3 items failed, such as a: its worker died 2 times"):
        collection = run(tmp_path / "root", processes, build, items=items)
    assert collection.complete == ("b", "c")
    assert (tmp_path / "notes").read_text().count("!") == 2
    begun = collection.states["a"].num_draws
    assert 0 < begun < DRAWS
    assert torch.equal(collection["a"].samples(), plain_reference[:, :begun])
    whole = run(tmp_path / "root", processes, build, items={"a": True}, resume=True)
    assert torch.equal(whole["a"].samples(), plain_reference)


def test_workers_that_are_gone_are_not_waited_for(
    client: distributed.Client, reference: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_of, "_GRACE", 0.5)

    first = str(tmp_path / "root" / f"{NAMES[0]}.zarr")

    def deadly(item: int) -> pt.Potential:
        while item == 1:
            if stored_state("first", first).state == "complete":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.01)
        return posterior(item)

    async def gone() -> None:
        """Instead of another worker."""

    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, dashboard_address=None, scheduler_kwargs=PORT, silence_logs=50
        ) as mortal,
        distributed.Client(mortal, set_as_default=False) as own,
    ):
        for nanny in mortal.workers.values():
            nanny.instantiate = gone
        with pytest.raises(OSError, match=r"the cluster has had no workers for 0\.5 s, expected one or more"):
            run(tmp_path / "root", own, deadly)
    left = open_collection(tmp_path / "root")
    assert left.complete == NAMES[:1]
    assert left.failed == {}
    assert_same(run(tmp_path / "root", client, resume=True), reference)


def test_workers_that_are_away_for_a_while_are_waited_for(reference: Tensor, tmp_path: Path) -> None:
    """None is there to begin with, nor for a while in the middle."""
    with (
        distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=None, scheduler_kwargs=PORT) as empty,
        distributed.Client(empty, set_as_default=False) as own,
        mock.patch.object(cluster_of, "_GRACE", 0.4),
    ):
        watch = cluster_of._Watch(own)
        begun = time.monotonic()
        while time.monotonic() < begun + 0.8:
            watch.look()
        empty.scale(1)
        own.wait_for_workers(1)
        watch._asked = -1.0
        watch.look()
        empty.scale(0)
        while own.nthreads():
            time.sleep(0.01)
        watch.look()
        time.sleep(0.1)
        empty.scale(1)
        own.wait_for_workers(1)
        assert_same(run(tmp_path / "root", own), reference)


@pytest.mark.parametrize(("error", "calls"), [(ConnectionError, 3), (FileNotFoundError, 1), (ValueError, 1)])
def test_what_may_pass_is_tried_again_and_what_lasts_is_not(
    error: type[Exception], calls: int, client: distributed.Client, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"

    def build(item: int) -> pt.Potential:
        with notes.open("a") as told:
            told.write(".")
        raise error("not today")

    with pytest.warns(FailedItemsWarning, match="not today"):
        run(tmp_path / "root", client, build, items={"a": 0}, retries=2)
    assert notes.read_text() == "." * calls


def test_ctrl_c_keeps_what_is_finished_and_stops_the_rest(
    client: distributed.Client, reference: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = tmp_path / "gate"

    def build(item: int) -> pt.Potential:
        while item > 0 and not gate.exists():
            time.sleep(0.01)
        return posterior(item)

    def pressed(*_: Any, **__: Any) -> Any:
        def advance(note: str) -> None:
            raise KeyboardInterrupt

        return contextlib.nullcontext(advance)

    items = {name: k for k, name in enumerate((*NAMES, "c", "d", "e", "f", "g", "h"))}
    with monkeypatch.context() as patched:
        patched.setattr(dataset, "progress_bar", pressed)
        with pytest.raises(KeyboardInterrupt) as kept:  # and with it everything that a frame refers to
            run(tmp_path / "root", client, build, items=items)
    left = open_collection(tmp_path / "root")
    assert left.names == tuple(items)
    assert left.complete == NAMES[:1]
    assert left.failed == {}
    gate.touch()
    for _ in range(500):
        if not any(client.processing().values()):
            break
        time.sleep(0.02)
    whole = resumed_when_alone(tmp_path / "root", client)
    assert kept.traceback
    assert torch.equal(samples(whole), reference)
    assert len([name for name, item in whole.states.items() if item.state == "pending"]) >= 4


def resumed_when_alone(root: Path, client: distributed.Client) -> Collection:
    """A thread that runs cannot be stopped: wait until it has let go of its item."""
    for name in NAMES:
        for _ in range(200):
            try:
                with held(Location.of(root), name, name):
                    break
            except StoreError:
                time.sleep(0.05)
    return run(root, client, resume=True)


def test_a_finished_item_is_skipped_and_one_of_other_data_refused(client: distributed.Client, tmp_path: Path) -> None:
    first = run(tmp_path / "root", client)
    chunk = next((tmp_path / "root" / "a.png.zarr" / "posterior" / "image").glob("c.*"))
    before = chunk.stat().st_mtime_ns
    created = [first[name].attrs for name in NAMES]
    with pytest.warns(FailedItemsWarning, match=r"1 of 2 items failed, such as b 2\.npy: .*data or weights .* differ"):
        again = run(tmp_path / "root", client, lambda item: posterior(item + (item == 1) * 10), resume=True)
    assert chunk.stat().st_mtime_ns == before
    assert [again[name].attrs for name in NAMES] == created
    assert again.complete == NAMES[:1]


@pytest.mark.usefixtures("small_blocks")
def test_a_begun_item_of_other_data_is_refused(client: distributed.Client, tmp_path: Path) -> None:
    build = Faulty(tmp_path / "notes").posterior
    with pytest.warns(FailedItemsWarning):
        half = run(tmp_path / "root", client, build, items={"a": 0})
    kept = half["a"].samples()
    with pytest.warns(FailedItemsWarning, match="of the stored run"):
        other = run(tmp_path / "root", client, lambda item: build(1), items={"a": 0}, resume=True)
    assert torch.equal(other["a"].samples(), kept)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seed": 4}, "seed of the stored collection is 3, this run has 4"),
        ({"num_draws": 13}, "num_draws of the stored collection is 12, this run has 13"),
        ({"num_warmup": 1}, "num_warmup"),
        ({"record": {"noise_std": 0.1}}, "noise_std of the stored collection is None, this run has 0.1"),
        ({"resume": False}, "a collection exists there already"),
    ],
)
def test_a_collection_of_other_options_is_refused(
    options: dict[str, Any], words: str, client: distributed.Client, tmp_path: Path
) -> None:
    CollectionWriter.create(tmp_path / "root", NAMES, _record())
    index = (tmp_path / "root" / "collection.json").read_bytes()
    with pytest.raises(StoreError, match=words):
        run(tmp_path / "root", client, **{"resume": True, **options})
    assert (tmp_path / "root" / "collection.json").read_bytes() == index


def _record() -> dict[str, object]:
    return dataset._Task(posterior, SAMPLER, "", 2, DRAWS, None, 3, 1, None, None, "process").record()


def test_what_another_run_writes_is_left_to_it(client: distributed.Client, reference: Tensor, tmp_path: Path) -> None:
    root = tmp_path / "root"
    CollectionWriter.create(root, NAMES, _record())
    with (
        held(Location.of(root), "b 2.npy", "the item"),
        pytest.warns(FailedItemsWarning, match=r"item b 2\.npy is being written by another run"),
    ):
        collection = run(root, client, resume=True)
    assert torch.equal(samples(collection, NAMES[:1]), reference[:1])
    with (
        held(Location.of(root), ".index", "the collection"),
        pytest.raises(StoreError, match="the collection is being written by another run"),
    ):
        run(root, client, resume=True)
    assert torch.equal(samples(run(root, client, resume=True)), reference)


def test_an_overwritten_collection_is_new(client: distributed.Client, tmp_path: Path) -> None:
    run(tmp_path / "root", client, seed=9, items={NAMES[1]: 1})
    with pytest.raises(StoreExistsError, match="a collection exists there already"):
        run(tmp_path / "root", client)
    new = run(tmp_path / "root", client, items={NAMES[0]: 0}, overwrite=True)
    assert new.names == NAMES[:1]
    assert sorted(p.name for p in (tmp_path / "root").glob("*.zarr")) == ["a.png.zarr"]


def test_a_reconstruction_brings_its_own_sampler_start_and_constants(
    client: distributed.Client, tmp_path: Path
) -> None:
    own = inference.Langevin(step_size=0.25)
    truth = torch.ones(SHAPE)

    def build(item: int) -> Reconstruction:
        return Reconstruction(posterior(item), own, init=torch.zeros(SHAPE), constant_data={"truth": truth})

    collection = run(tmp_path / "root", client, build, items={"a": 0})
    with inference.without_diagnostics():
        alone = pt.sample(
            posterior(0),
            own,
            num_chains=2,
            num_draws=DRAWS,
            init=torch.zeros(SHAPE),
            seed=item_seed(3, "a"),
            progress=False,
        )
    assert torch.equal(collection["a"].samples(), alone.samples())
    assert np.array_equal(collection["a"].tree["constant_data"]["truth"], truth)


def test_workers_use_one_thread_of_torch_and_give_back_what_there_was(
    client: distributed.Client, tmp_path: Path
) -> None:
    def build(item: int) -> Reconstruction:
        return Reconstruction(posterior(item), constant_data={"threads": torch.tensor([torch.get_num_threads()])})

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        for threads in (1, 2):
            collection = run(tmp_path / str(threads), client, build, items={"a": 0}, threads=threads)
            assert collection["a"].tree["constant_data"]["threads"].values.tolist() == [threads]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_damaged_item_is_told(client: distributed.Client, tmp_path: Path) -> None:
    run(tmp_path / "root", client, items={"a": 0})
    victim = next((tmp_path / "root" / "a.zarr" / "posterior" / "image").glob("c.*"))
    victim.write_bytes(b"\0" * victim.stat().st_size)
    with pytest.warns(FailedItemsWarning, match=r"1 of 1 items failed, such as a: .*a\.zarr"):
        collection = run(tmp_path / "root", client, items={"a": 0}, resume=True)
    assert list(collection.failed) == ["a"]


def test_remains_of_a_killed_worker_are_cleared_away(tmp_path: Path) -> None:
    left, other = tmp_path / ".a [1].zarr.0123456789ab.creating", tmp_path / ".b.zarr.0123456789ab.creating"
    left.mkdir()
    other.mkdir()
    remove_unfinished(Location.of(tmp_path), "a [1]")
    assert not left.exists()
    assert other.exists()


def test_collections_lie_in_buckets_too(
    client: distributed.Client, reference: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("moto")
    pytest.importorskip("obstore")
    with s3_server("scans") as environment:
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        root: Any = "s3://scans/today"
        collection = run(root, client, items={NAMES[0]: 0})
        assert torch.equal(samples(collection, NAMES[:1]), reference[:1])
        assert collection.mean().compute().shape == (1, *SHAPE)
        with pytest.raises(StoreExistsError, match="a collection exists there already"):
            run(root, client)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"items": {}}, ValueError, "there are no items"),
        ({"items": ["a"]}, TypeError, "items is a list, expected a mapping"),
        ({"items": {"a/b": 0}}, ValueError, "'a/b' cannot name an item"),
        ({"build": 3}, TypeError, "build is a int"),
        ({"build": threading.Lock().__enter__}, TypeError, "cannot be sent to a worker"),
        ({"num_chains": 0}, ValueError, "num_chains must be at least 1"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"retries": -1}, ValueError, "retries must be at least 0"),
        ({"resume": True, "overwrite": True}, ValueError, "does not go with overwrite"),
        ({"workers": 2}, ValueError, "workers are those of the cluster"),
        ({"workers": 0, "client": None}, ValueError, "workers must be at least 1"),
        ({"client": 3}, TypeError, "client is a int"),
        ({"resume": True}, StoreError, "there is no collection"),
        ({"durability": "none"}, ValueError, "durability is 'none'"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(
    options: dict[str, Any], error: type[Exception], words: str, client: distributed.Client, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        run(tmp_path / "root", options.pop("client", client), **options)
    assert list(tmp_path.iterdir()) == []


def test_ensembles_are_analysed_through_a_cluster(
    client: distributed.Client, processes: distributed.Client, tmp_path: Path
) -> None:
    """Draws that a process holds in chunks are reduced by the workers, which open the store themselves."""
    collection = run(tmp_path / "root", client)
    ensemble = open_ensemble(item_path(Location.of(tmp_path / "root"), NAMES[1]))
    image = ensemble.dask({"chain": 1, "draw": 5})["posterior"]["image"]
    with processes.as_current():
        spread = image.std(("chain", "draw")).compute(scheduler=processes)
        everything = collection.image().max(("chain", "draw")).compute(scheduler=processes)
        means = collection.mean().compute(scheduler=processes)
    drawn = samples(collection).numpy()
    assert np.allclose(spread, drawn[1].std((0, 1)), rtol=1e-5)
    assert np.array_equal(everything, drawn.max((1, 2)))
    assert np.allclose(means, drawn.mean((1, 2)), atol=1e-6)
