"""``sample_dataset``: many reconstructions, one ensemble each, over a Dask cluster."""

import contextlib
import hashlib
import os
import pickle
import time
import traceback
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, cast

import torch
from torch import Tensor

from potentia._potential import Potential
from potentia._validate import count
from potentia.inference._cluster import connected, ended
from potentia.inference._heard import heard_warnings
from potentia.inference._prepare import fingerprint, parse_dtype
from potentia.inference._progress import progress_bar
from potentia.inference._protocol import Sampler
from potentia.inference._sample import default_sampler, sample
from potentia.inference._summary import DiagnosticWarning, summary, without_diagnostics
from potentia.io import Durability, StoreError, open_ensemble
from potentia.io._collection import (
    Collection,
    CollectionWriter,
    described,
    held,
    item_path,
    open_collection,
    remove_unfinished,
    stored_state,
)
from potentia.io._location import Location
from potentia.io._writer import check_durability

if TYPE_CHECKING:
    from distributed import Client, Future

    from potentia.io import Ensemble

_SAVE_EVERY = 2.0  # seconds between writes of the index, which grows with the number of items
_JUDGED_PIXELS = 256
_MOST_WARNINGS = 20  # of items, each repeated with the names of those that gave it


class FailedItemsWarning(UserWarning):
    """Items of a data set could not be reconstructed; the others were."""


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What a ``build`` function may return where a posterior alone does not say enough.

    Args:
        posterior: What to sample: usually ``prior + likelihood``.
        sampler: How, if that depends on the item.
        init: Where to start: (C, H, W), or (chains, C, H, W).
        constant_data: Arrays to keep in the item's store, such as the true image.
    """

    posterior: Potential
    sampler: Sampler | None = None
    init: Tensor | None = None
    constant_data: Mapping[str, Any] = field(default_factory=dict)


Build = Callable[[Any], "Potential | Reconstruction"]


def sample_dataset(
    items: Mapping[str, Any],
    build: Build,
    sampler: Sampler | None = None,
    *,
    root: str | os.PathLike[str],
    num_chains: int,
    num_draws: int = 1,
    num_warmup: int | None = None,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    durability: Durability | str = "process",
    client: "Client | str | None" = None,
    workers: int | None = None,
    threads: int = 1,
    retries: int = 2,
    device: str | None = None,
    dtype: torch.dtype | str | None = None,
    progress: bool = True,
    record: Mapping[str, object] | None = None,
) -> Collection:
    """Reconstruct every item of a data set, each into a store of its own, on the workers of a Dask cluster.

    A worker calls ``build(items[name])`` and samples what it gives into ``ROOT/NAME.zarr``. An item's seed follows
    from ``(seed, name)``, so that its ensemble depends neither on the number of workers, nor on the order, nor on
    which other items there are. An item that fails is noted, with the reason, and the others go on; the item of a
    worker that dies is tried again by another, from its last committed draw. Ctrl-C leaves the finished items, and
    begun ones at their last committed draw.

    Workers compute with one thread of torch each unless ``threads`` says more: several workers on one machine would
    otherwise each start as many threads as it has cores, and sums that are split over another number of threads
    round differently, so that results would depend on the machine.

    Args:
        items: What to reconstruct, by name. Values are sent to the workers: paths, better than arrays. Names become
            those of files.
        build: Makes the posterior, on the worker: a function that can be pickled, or a lambda.
        sampler: How to sample; that of a ``Reconstruction`` goes before it. By default as for ``sample``.
        root: Folder that all workers reach, or the URL of an object store.
        num_chains: Chains side by side, in each item.
        num_draws: Draws to keep of each chain.
        num_warmup: Draws to throw away first; None is the sampler's own default.
        seed: Seed of all random numbers, zero or more.
        resume: Go on with a collection: finished items are skipped once their posterior, sampler and seed are found to
            be the same, begun ones go on, failed and new ones start.
        overwrite: Replace an existing collection in a folder.
        durability: What committed draws survive, as for ``sample``.
        client: A Dask client, or the address of a scheduler (``tcp://host:8786``); by default a cluster of processes
            on this machine, for as long as the call lasts. A script needs ``if __name__ == "__main__":`` for that.
        workers: Processes of that local cluster; by default as many as there are cores, and never more than items.
        threads: Threads of torch in each worker.
        retries: How often an item is tried again after a failure of files or network, or, on a local cluster, after
            its worker died; a given cluster's own ``distributed.scheduler.allowed-failures`` counts deaths there.
        device: Where to compute; by default where the posterior's tensors are.
        dtype: Precision, as for ``sample``.
        progress: Show a progress bar over the items where the output is a terminal.
        record: More to keep in the index, such as options of a program, which a resumed run must agree with.

    Returns:
        The collection; ``failed`` says which items failed, and why.

    Raises:
        TypeError: For arguments of the wrong kind, or a ``build`` that cannot be pickled.
        ValueError: For arguments out of range, before anything is written.
        StoreError: For a collection that exists, cannot be written, or was begun with other options.
        OSError: If no scheduler answers at the address, or the workers are gone and none comes back for a minute: what
            was done stays, and is resumed from.
        ImportError: Without Dask's ``distributed``.

    Warns:
        FailedItemsWarning: If items failed.
        DiagnosticWarning: If the diagnostics of items give cause, as ``sample`` does.
        UserWarning: What else an item warned of, after its name.
    """
    _check(items, build, sampler, resume, overwrite, client, workers)
    task = _Task(
        build,
        sampler,
        _absolute(root),
        count("sample_dataset", "num_chains", num_chains),
        count("sample_dataset", "num_draws", num_draws),
        None if num_warmup is None else count("sample_dataset", "num_warmup", num_warmup, least=0),
        count("sample_dataset", "seed", seed, least=0),
        count("sample_dataset", "threads", threads),
        device,
        None if dtype is None else str(parse_dtype(dtype)).removeprefix("torch."),
        check_durability("sample_dataset", durability),
    )
    count("sample_dataset", "retries", retries, least=0)
    # Unpacked where the item is reconstructed: what a worker cannot import fails its item, and not the worker.
    packed = _packed("build or sampler", task)
    data = [_packed(f"item {name!r}", value) for name, value in items.items()]
    place = Location.of(root)
    with connected(client, workers, retries, len(items)) as cluster:
        wanted = {**task.record(), **(record or {})}
        writer = CollectionWriter.create(
            root, list(items), wanted, resume=resume, overwrite=overwrite, durable=durability == "power"
        )
        with held(place, ".index", "the collection"), progress_bar("items", len(items), shown=progress) as advance:
            warned = _run(cluster, packed, dict(zip(items, data, strict=True)), writer, retries, advance)
    collection = open_collection(root)
    _warn(collection, list(items), warned)
    return collection


def item_seed(seed: int, name: str) -> int:
    """The seed of one item: a hash of the data set's seed and the item's name, below 2^63."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@dataclass(frozen=True, eq=False)
class _Task:
    """Everything that a worker needs to know, but for the item."""

    build: Build
    sampler: Sampler | None
    root: str
    num_chains: int
    num_draws: int
    num_warmup: int | None
    seed: int
    threads: int
    device: str | None
    dtype: str | None
    durability: str

    def record(self) -> dict[str, object]:
        """What makes two runs one: threads and devices round differently, but that is for whoever resumes to mind."""
        return {
            "num_chains": self.num_chains,
            "num_draws": self.num_draws,
            "num_warmup": self.num_warmup,
            "seed": self.seed,
            "sampler": None if self.sampler is None else repr(self.sampler),
            "dtype": self.dtype,
        }


class _Warned(NamedTuple):
    """A warning: whether it is one of diagnostics, and what it says."""

    diagnostic: bool
    message: str

    @classmethod
    def of(cls, warning: Warning) -> Self:
        own = type(warning) in (UserWarning, DiagnosticWarning)
        text = " ".join(str(warning).split())
        return cls(isinstance(warning, DiagnosticWarning), text if own else f"{type(warning).__name__}: {text}")


@dataclass(frozen=True)
class _Outcome:
    """What a worker says of an item; text alone, since a user's exceptions may not survive the journey."""

    name: str
    told: Mapping[str, Any] | None = None
    message: str = ""
    traceback: str = ""
    warned: tuple[_Warned, ...] = ()


def _reconstruct(name: str, data: bytes, packed: bytes) -> _Outcome:
    """Reconstruct one item, on a worker, from its data and its task as ``_packed`` makes them.

    Raises: OSError, so that Dask tries again: files and networks recover, what is wrong with the data does not.
    """
    with heard_warnings() as heard:
        try:
            told, message, trace = _finished_item(name, data, pickle.loads(packed)), "", ""
        except Exception as err:
            if _may_pass(err):
                raise
            told, (message, trace) = None, _told(err)
    warned = tuple(dict.fromkeys(_Warned.of(warning) for warning in heard))
    if told is not None:
        told["concerns"] = [w.message for w in warned if w.diagnostic] + told["concerns"]
    return _Outcome(name, told, message, trace, warned)


def _finished_item(name: str, data: bytes, task: _Task) -> dict[str, Any]:
    """What the index keeps of an item, once it is reconstructed."""
    root = Location.of(task.root)
    with _torch_threads(task.threads), held(root, name, f"item {name}"), without_diagnostics():
        remove_unfinished(root, name)
        ensemble = _sampled(name, pickle.loads(data), task)
        concerns = [c.message for c in summary(ensemble, max_pixels=_JUDGED_PIXELS).concerns]
        return {**described(ensemble), "concerns": concerns}


def _sampled(name: str, data: Any, task: _Task) -> "Ensemble":
    path = item_path(Location.of(task.root), name)
    built = task.build(data)
    made = built if isinstance(built, Reconstruction) else Reconstruction(built)
    if not isinstance(made.posterior, Potential):
        raise TypeError(
            f"sample_dataset: build gives a {type(made.posterior).__name__}, expected a potential or a Reconstruction"
        )
    sampler = made.sampler or task.sampler or default_sampler(made.posterior)
    seed = item_seed(task.seed, name)
    begun = stored_state(name, path)
    if begun.state == "failed":
        raise StoreError(begun.message)
    if begun.state == "complete":
        return _finished(path, made.posterior, sampler, task, seed)
    return sample(
        made.posterior,
        sampler,
        num_chains=task.num_chains,
        num_draws=task.num_draws,
        num_warmup=task.num_warmup,
        init=made.init,
        seed=seed,
        store=path,
        resume=begun.state == "partial",
        device=task.device,
        dtype=task.dtype,
        durability=task.durability,
        progress=False,
        constant_data=made.constant_data,
    )


def _finished(path: str, posterior: Potential, sampler: Sampler, task: _Task, seed: int) -> "Ensemble":
    """A complete ensemble, once it is known to be of this run.

    Raises: StoreError if its posterior, data included, its sampler or its numbers are others.
    """
    ensemble = open_ensemble(path)
    wanted: dict[str, object] = {
        "num_chains": task.num_chains,
        "num_draws": task.num_draws,
        "seed": seed,
        "sampler": repr(sampler),
        "posterior": repr(posterior),
        "fingerprint": fingerprint(posterior),
    }
    for key, want in wanted.items():
        got = ensemble.attrs.get(key)
        if got != want:
            what = "the posterior's data or weights" if key == "fingerprint" else key
            told = "differ from this run's" if key == "fingerprint" else f"is {got!r}, this run has {want!r}"
            raise StoreError(f"{path}: {what} of the finished item {told}; move it away to reconstruct it anew")
    return ensemble


def _may_pass(err: Exception) -> bool:
    """Whether trying again may help."""
    lasting = (StoreError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
    return isinstance(err, OSError) and not isinstance(err, lasting)


def _told(err: BaseException) -> tuple[str, str]:
    """One sentence, and for what is not one of our own, where it happened."""
    message = " ".join(str(err).split())
    if isinstance(err, StoreError | FloatingPointError | FileNotFoundError):
        return message, ""
    frames = traceback.extract_tb(err.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    kind = type(err).__name__
    told = (
        message if isinstance(err, ValueError) and message else f"{kind}: {message}{where}" if message else kind + where
    )
    return told, "".join(traceback.format_exception(err))


@contextlib.contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    """Compute with this many threads, in this thread; a worker that is not ours gets back what it had."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check(
    items: object,
    build: object,
    sampler: object,
    resume: bool,
    overwrite: bool,
    client: object,
    workers: int | None,
) -> None:
    if not isinstance(items, Mapping):
        raise TypeError(f"sample_dataset: items is a {type(items).__name__}, expected a mapping of names to data")
    if not items:
        raise ValueError("sample_dataset: there are no items, expected at least one")
    if not callable(build):
        raise TypeError(f"sample_dataset: build is a {type(build).__name__}, expected a function of an item's data")
    if sampler is not None and not isinstance(sampler, Sampler):
        raise TypeError(f"sample_dataset: sampler is a {type(sampler).__name__}, expected one of potentia.inference")
    if resume and overwrite:
        raise ValueError("sample_dataset: resume does not go with overwrite")
    if workers is not None:
        count("sample_dataset", "workers", workers)
        if client is not None:
            raise ValueError("sample_dataset: workers are those of the cluster that is given, expected client alone")


def _packed(what: str, value: object) -> bytes:
    """Bytes that travel to a worker.

    Raises: TypeError for what cannot be pickled.
    """
    import cloudpickle

    try:
        return bytes(cloudpickle.dumps(value))
    except Exception as err:  # whatever a user's object raises
        raise TypeError(f"sample_dataset: {what} cannot be sent to a worker: {err}") from err


def _absolute(root: str | os.PathLike[str]) -> str:
    place = Location.of(root)  # a worker may stand in another folder
    if place.folder is None and place.url is None:
        raise ValueError(
            f"sample_dataset: root is {os.fspath(root)!r}, expected a folder or the URL of an object store"
        )
    return str(place.folder or place.url)


def _run(
    client: "Client",
    packed: bytes,
    items: Mapping[str, bytes],
    writer: CollectionWriter,
    retries: int,
    advance: Callable[[str], None],
) -> dict[str, tuple[_Warned, ...]]:
    """Submit all items, and note each as it ends; the warnings of each."""
    names = list(items)
    run = uuid.uuid4().hex[:12]  # a resumed run must not be answered from the scheduler's memory
    keys = [f"potentia-{run}-{k}" for k in range(len(names))]
    data = list(items.values())
    futures = client.map(_reconstruct, names, data, key=keys, packed=packed, pure=False, retries=retries)
    of_future = dict(zip(keys, names, strict=True))
    saved, failures = time.monotonic(), 0
    warned: dict[str, tuple[_Warned, ...]] = {}
    try:
        for future, found in ended(client, futures):
            outcome = _outcome(of_future[str(future.key)], future, found)
            if outcome.told is None:
                failures += 1
                writer.fail(outcome.name, outcome.message, outcome.traceback)
            else:
                writer.finish(outcome.name, outcome.told)
            warned[outcome.name] = outcome.warned
            future.release()
            advance(f"{failures} failed" if failures else "")
            if time.monotonic() - saved > _SAVE_EVERY:
                writer.save()
                saved = time.monotonic()
    except BaseException:
        with contextlib.suppress(Exception):
            client.cancel(futures, force=True)
        raise
    finally:
        writer.save()
    return warned


def _outcome(name: str, future: "Future[Any]", found: object) -> _Outcome:
    import distributed

    if future.status == "finished":
        if isinstance(found, _Outcome):
            return found
        return _Outcome(name, None, f"the worker gave a {type(found).__name__}, expected another version of potentia")
    if future.status == "error":
        err = cast(BaseException | None, future.exception())  # a coroutine for an asynchronous client only
        if isinstance(err, distributed.KilledWorker):
            died = err.allowed_failures + 1
            return _Outcome(
                name, None, f"its worker died {died} times: it was killed, ran out of memory, or crashed in native code"
            )
        if err is not None:
            message, _ = _told(err)
            return _Outcome(name, None, message, "".join(traceback.format_exception(err)))
    return _Outcome(name, None, f"the scheduler dropped it (it is {future.status}), expected it to run")


def _warn(collection: Collection, names: list[str], warned: Mapping[str, tuple[_Warned, ...]]) -> None:
    states = collection.states
    failed = [states[name] for name in names if states[name].state == "failed"]
    if failed:
        first = failed[0]
        warnings.warn(
            f"sample_dataset: {len(failed)} of {len(names)} items failed, such as {first.name}: {first.message}",
            FailedItemsWarning,
            stacklevel=3,
        )
    whose: dict[_Warned, list[str]] = {}
    for name in names:
        for warning in warned.get(name, ()):
            whose.setdefault(warning, []).append(name)
    for warning, of in list(whose.items())[:_MOST_WARNINGS]:
        others = f" and {len(of) - 1} more" if len(of) > 1 else ""
        kind = DiagnosticWarning if warning.diagnostic else UserWarning
        warnings.warn(f"sample_dataset: {of[0]}{others}: {warning.message}", kind, stacklevel=3)
    if len(whose) > _MOST_WARNINGS:
        left = len(whose) - _MOST_WARNINGS
        warnings.warn(f"sample_dataset: items gave {left} more warnings", stacklevel=3)
    told = {warning.message for warning in whose}
    suspect = [(name, [c for c in states[name].concerns if c not in told]) for name in names]
    suspect = [(name, concerns) for name, concerns in suspect if concerns]
    if suspect:
        name, concerns = suspect[0]
        warnings.warn(
            f"sample_dataset: {len(suspect)} of {len(names)} items are suspect, such as {name}: {concerns[0]}",
            DiagnosticWarning,
            stacklevel=3,
        )
