"""Damage valid ensemble stores in every way a seeded generator thinks of, and see what is read off them.

    python benchmarks/damage.py                     # 1,000 stores
    python benchmarks/damage.py --count 100 --seed 7

A damaged store must open with all that the sound one gives, or fail with StoreError: never a wrong number, never
another exception, never a hang, never memory without bound. Ends with status 1 otherwise.
"""

import argparse
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from potentia.io import EnsembleWriter, StoreError, open_ensemble
from potentia.io import _schema as schema

EVENT = (1, 4, 6)
CHAINS, DRAWS = 2, 8
LIMIT = 20  # seconds that one store may take
MEMORY = 2 * 2**30  # bytes that all of them may add

Told = dict[str, Any]


# Sound stores


def make_stores(folder: Path) -> dict[str, Path]:
    """Write the stores that are then damaged: whole, half-done, complex with extra images, by two ranks, packed."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("whole.zarr", "half.zarr", "summaries.zarr", "ranks.zarr", "packed.zip")
    paths = {name.partition(".")[0]: folder / name for name in names}
    with mock.patch.object(schema, "_CHUNK_BYTES", 2 * 4 * EVENT[1] * EVENT[2]):
        _write(paths["whole"], DRAWS).close(sampling_time=1.0)
        _write(paths["half"], DRAWS // 2).flush()
        writer = _write(paths["summaries"], DRAWS, is_complex=True)
        ensemble = writer.close(sampling_time=2.0)
        for seed, name in ((1, "map"), (2, "mmse")):
            ensemble.set_summary(name, _normal(EVENT, torch.complex64, seed))
        ensemble.save(paths["packed"])
        ensemble.finalize(rechunk=True)
        _write(paths["ranks"], DRAWS // 2, num_ranks=2).flush()
        _feed(EnsembleWriter.resume(paths["ranks"], rank=1, num_ranks=2, queue_blocks=1)[0], DRAWS // 2 + 2, 1, False)
    return paths


def _normal(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def _write(path: Path, draws: int, *, is_complex: bool = False, num_ranks: int = 1) -> EnsembleWriter:
    dtype = torch.complex64 if is_complex else torch.float32
    truth = _normal(EVENT, dtype, 90)
    writer = EnsembleWriter.create(
        path,
        num_chains=CHAINS,
        num_draws=DRAWS,
        event_shape=EVENT,
        is_complex=is_complex,
        attrs={"seed": 5, "posterior": "gaussian + tv", "sampler": "Langevin(step_size=0.1)"},
        observed={"y": truth + 1},
        constant={"truth": truth, "zero_filled": truth * 2},
        state_bytes=64,
        num_ranks=num_ranks,
        queue_blocks=1,
    )
    _feed(writer, draws, CHAINS // num_ranks, is_complex)
    return writer


def _feed(writer: EnsembleWriter, draws: int, chains: int, is_complex: bool) -> None:
    for k in range(draws):
        images = _normal((chains, *EVENT), torch.complex64 if is_complex else torch.float32, 100 + k)
        writer.append(images, {"lp": float(k), "n_grad": 3 * k, "sigma": 0.5})
        if writer.ready_to_commit:
            writer.commit(f"after draw {k}".encode())


# What is read off a store


def told_by(path: Path) -> Told:
    """Everything that an ensemble gives, and what a resumed run starts from."""
    ensemble = open_ensemble(path)
    told: Told = {
        "shape": (ensemble.num_chains, ensemble.num_draws, ensemble.event_shape, ensemble.is_complex),
        "attrs": ensemble.attrs,
        "samples": ensemble.samples().numpy(),
        "mean": ensemble.mean().values,
        "std": ensemble.std().values,
        "quantile": ensemble.quantile([0.1, 0.5]).values,
        "interval": ensemble.interval(0.8).values,
        "summary": json.dumps(ensemble.summary()),
    }
    for node in ensemble.tree.subtree:
        told[f"{node.path} attrs"] = dict(node.attrs)
        for name, variable in node.to_dataset().variables.items():
            told[f"{node.path}/{name}"] = (variable.dims, variable.values)
    ranks = ensemble.attrs.get("num_ranks", 1) if path.is_dir() else 0  # nothing goes on in an archive
    for rank in range(ranks):
        writer, state = EnsembleWriter.resume(path, rank=rank, num_ranks=ranks, queue_blocks=1)
        told[f"state {rank}"] = (writer.num_committed, state)
    return told


def differences(got: Told, want: Told) -> list[str]:
    """Names of what is not bit for bit the same."""
    return sorted(name for name in got.keys() | want.keys() if not _same(got.get(name), want.get(name)))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        return a.tolist() == b.tolist() if a.dtype.kind in "OTU" else a.tobytes() == b.tobytes()
    return bool(a == b)


# Damage


def _flip(file: Path, rng: np.random.Generator, _: Path) -> str:
    raw = bytearray(file.read_bytes())
    places = rng.integers(len(raw), size=int(rng.integers(1, 5))) if raw else []
    for place in places:
        raw[place] ^= 1 << int(rng.integers(8))
    file.write_bytes(raw)
    return f"bits flipped at {list(map(int, places))}"


def _scribble(file: Path, rng: np.random.Generator, _: Path) -> str:
    raw = bytearray(file.read_bytes())
    start = int(rng.integers(max(1, len(raw))))
    stop = min(len(raw), start + int(rng.integers(1, 64)))
    raw[start:stop] = bytes(stop - start) if rng.random() < 0.5 else rng.bytes(stop - start)
    file.write_bytes(raw)
    return f"bytes {start} to {stop} overwritten"


def _truncate(file: Path, rng: np.random.Generator, _: Path) -> str:
    size = int(rng.integers(max(1, file.stat().st_size)))
    os.truncate(file, size)
    return f"cut to {size} bytes"


def _extend(file: Path, rng: np.random.Generator, _: Path) -> str:
    size = int(rng.choice([1, 8, 2**34]))  # sparse: takes no room on the disk
    os.truncate(file, file.stat().st_size + size)
    return f"grown by {size} bytes"


def _empty(file: Path, rng: np.random.Generator, _: Path) -> str:
    file.write_bytes(b"")
    return "emptied"


def _remove(file: Path, rng: np.random.Generator, _: Path) -> str:
    file.unlink()
    return "removed"


def _remove_folder(file: Path, rng: np.random.Generator, store: Path) -> str:
    folders = [p for p in file.parents if store in p.parents]
    if folders:
        shutil.rmtree(folders[int(rng.integers(len(folders)))])
    else:
        file.unlink()
    return "its folder removed"


def _folder_instead(file: Path, rng: np.random.Generator, _: Path) -> str:
    file.unlink()
    file.mkdir()
    return "replaced by a folder"


def _link_instead(file: Path, rng: np.random.Generator, _: Path) -> str:
    file.unlink()
    file.symlink_to(file.name if rng.random() < 0.3 else "nowhere")
    return "replaced by a dangling link"


def _pipe_instead(file: Path, rng: np.random.Generator, _: Path) -> str:
    file.unlink()
    os.mkfifo(file)
    return "replaced by a pipe"


def _no_permission(file: Path, rng: np.random.Generator, _: Path) -> str:
    file.chmod(0)
    return "permissions taken"


def _another(file: Path, rng: np.random.Generator, store: Path) -> Path:
    """Return another file of the store, of the same size where there is one, the same name more often than not."""
    others = [p for p in files_of(store) if p != file]
    alike = [p for p in others if p.stat().st_size == file.stat().st_size] or others
    return alike[int(rng.integers(len(alike)))]


def _swap(file: Path, rng: np.random.Generator, store: Path) -> str:
    other = _another(file, rng, store)
    here, there = file.read_bytes(), other.read_bytes()
    file.write_bytes(there)
    other.write_bytes(here)
    return f"swapped with {other.relative_to(store)}"


def _replace(file: Path, rng: np.random.Generator, store: Path) -> str:
    other = _another(file, rng, store)
    shutil.copyfile(other, file)
    return f"replaced by {other.relative_to(store)}"


def _duplicate(file: Path, rng: np.random.Generator, store: Path) -> str:
    name = {0: "c.9", 1: "c.0.9", 2: "c.1.3.0.0.0", 3: "zarr.json", 4: "c.0.0.0.0.0.partial"}[int(rng.integers(5))]
    folder = file.parent if rng.random() < 0.5 else file.parent.parent / "copy"
    folder.mkdir(exist_ok=True)
    if not (folder / name).exists():
        shutil.copyfile(file, folder / name)
    return f"copied to {folder.name}/{name}"


def _foreign(file: Path, rng: np.random.Generator, store: Path) -> str:
    """Put in the file of the same name of another store, or of an earlier time."""
    twins = [p for p in store.parent.parent.glob(f"sound/*/{file.relative_to(store)}") if p.is_file()]
    twin = twins[int(rng.integers(len(twins)))]
    shutil.copyfile(twin, file)
    return f"taken from {twin.relative_to(store.parent.parent).parts[1]}"


def _edit(file: Path, rng: np.random.Generator, store: Path) -> str:
    """Change one entry of some metadata."""
    metadata = [p for p in files_of(store) if p.name == "zarr.json"]
    file = metadata[int(rng.integers(len(metadata)))]
    document = json.loads(file.read_text())
    holder, key = _choose(document, rng)
    old = holder[key]
    holder[key] = _other_value(old, rng)
    file.write_text(json.dumps(document))
    return f"{file.relative_to(store)}: {key} {old!r} made {holder[key]!r}"[:120]


def _choose(document: Any, rng: np.random.Generator) -> tuple[Any, Any]:
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(document)
    return places[int(rng.integers(len(places)))]


def _other_value(old: Any, rng: np.random.Generator) -> Any:
    wild = [None, True, "", "x" * 10, -1, 0, 1, 10**12, 2**63, 1e300, "float16", "int64", "gzip", [], {}, [10**12] * 5]
    near: list[Any] = []
    if isinstance(old, int | float) and not isinstance(old, bool):
        near = [old + 1, old - 1, old * 2, -old]
    elif isinstance(old, str):
        near = [old.upper(), old + "1", {"float32": "int32", "float64": "int64", "little": "big"}.get(old, old[:-1])]
    elif isinstance(old, list) and old:
        near = [old[:-1], old[::-1], [*old, old[-1]], [{"name": "gzip", "configuration": {"level": 1}}, *old]]
    elif isinstance(old, bool):
        near = [not old]
    pool = near if near and rng.random() < 0.6 else wild
    return pool[int(rng.integers(len(pool)))]


def _deep(file: Path, rng: np.random.Generator, store: Path) -> str:
    metadata = [p for p in files_of(store) if p.name == "zarr.json"]
    file = metadata[int(rng.integers(len(metadata)))]
    file.write_text("[" * 200_000)
    return f"{file.relative_to(store)}: nested without end"


DAMAGES: tuple[tuple[Callable[[Path, np.random.Generator, Path], str], float], ...] = (
    (_flip, 5), (_scribble, 3), (_edit, 6), (_truncate, 2), (_extend, 1), (_empty, 1), (_remove, 2),
    (_remove_folder, 1), (_folder_instead, 1), (_link_instead, 1), (_pipe_instead, 1), (_no_permission, 0.5),
    (_swap, 3), (_replace, 2), (_duplicate, 2), (_foreign, 2), (_deep, 0.3),
)  # fmt: skip


def files_of(store: Path) -> list[Path]:
    """All files of a store, in one order on every machine."""
    return sorted(p for p in store.rglob("*") if p.is_file())


def damage(store: Path, rng: np.random.Generator) -> str:
    """Damage a store in one way; what was done."""
    if store.is_file():
        spoil = (_flip, _scribble, _truncate, _empty)[int(rng.choice(4, p=[0.4, 0.4, 0.15, 0.05]))]
        return f"{spoil.__name__.strip('_')}: {spoil(store, rng, store)}"
    weights = np.array([weight for _, weight in DAMAGES])
    how = DAMAGES[int(rng.choice(len(DAMAGES), p=weights / weights.sum()))][0]
    files = files_of(store)
    if rng.random() < 0.5:  # metadata are two thirds of the files, and chunks more telling
        files = [p for p in files if p.name != "zarr.json"]
    file = files[int(rng.integers(len(files)))]
    return f"{how.__name__.strip('_')}: {file.relative_to(store)} {how(file, rng, store)}"


# The run


class Hang(BaseException):
    """A store that took too long."""


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Raises: Hang."""

    def ring(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(store: Path, want: Told) -> tuple[str, str]:
    """Say what became of a damaged store, and the particulars: ``refused`` and ``same`` are well."""
    try:
        with at_most(LIMIT):
            different = differences(told_by(store), want)
    except StoreError as err:
        text = str(err)
        return ("refused", text) if "\n" not in text else ("message of several lines", text)
    except Hang:
        return "hang", f"more than {LIMIT} s"
    except Exception as err:
        return type(err).__name__, str(err)[:200]
    return ("wrong", ", ".join(different)[:200]) if different else ("same", "")


def _copy(store: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    if store.is_file():
        shutil.copyfile(store, to)
    else:
        shutil.copytree(store, to)


def run(count: int, seed: int, folder: Path, only: int | None = None) -> tuple[Counter[str], list[str]]:
    """Damage ``count`` stores: how often each outcome came, and what went wrong."""
    sound = make_stores(folder / "sound")
    # A copy is read, since a resumed run writes.
    wants = {}
    for name, path in sound.items():
        _copy(path, folder / "read" / path.name)
        wants[name] = told_by(folder / "read" / path.name)
    tally: Counter[str] = Counter()
    wrong = []
    for case in range(count) if only is None else [only]:
        rng = np.random.default_rng([seed, case])
        name = list(sound)[int(rng.integers(len(sound)))]
        store = folder / "damaged" / sound[name].name
        _copy(sound[name], store)
        what = damage(store, rng)
        result, particulars = outcome(store, wants[name])
        tally[result] += 1
        if only is not None:
            print(f"case {case}, {name}, {what}: {result}: {particulars}")
        if result not in ("refused", "same"):
            wrong.append(f"case {case}, {name}, {what}: {result}: {particulars}")
        shutil.rmtree(folder / "damaged")
    return tally, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="stores to damage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="one case alone, told in full")
    options = parser.parse_args()
    torch.set_num_threads(1)
    begun, memory = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        tally, wrong = run(options.count, options.seed, Path(folder), options.case)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024
    for line in wrong:
        print(line)
    told = ", ".join(f"{n} {result}" for result, n in tally.most_common())
    print(f"{sum(tally.values())} stores in {time.perf_counter() - begun:.0f} s, {grown / 2**20:.0f} MiB more: {told}")
    return 1 if wrong or grown > MEMORY else 0


if __name__ == "__main__":
    sys.exit(main())
