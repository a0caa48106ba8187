"""The ensemble writer against a plain file that takes the same bytes, what it costs a sampler, and its memory.

    python benchmarks/store.py [--draws 160 --chains 4 --repeats 7 --folder DIR] [--quick] [--draw]
        [--out benchmarks/results/store]

1. Speed. Three things are timed in turn, over and over, in one process, each onto the same disk and none with an fsync:
   (a) the draws, 2 x 320 x 320 in float32, written raw, one after the other, to one file; (b) ``EnsembleWriter`` as
   ``sample`` uses it, with the running sums and checksums; (c) the same with ``durability="power"``. Each run begins
   with what the one before it wrote deleted and the disk's caches flushed. Without an fsync a plain file is a copy into
   the kernel's page cache, faster than any disk, so two times are taken of each run: until the last call returns, and
   until a closing ``sync`` has brought all of it onto the disk.
2. Stall. Draws of 10 ms of work each (sleep, as of a sampler on another device; and, apart, arithmetic on one core)
   with and without the writer beside: how much longer the loop takes, until the last append and until the store is
   closed.
3. Memory. The peak above that of the loop alone, in blocks.

Ratios are medians over the rounds, pair by pair.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from _record import about, parsed, parser, publish, redraw, sentence, table
from torch import Tensor

from potentia.io import EnsembleWriter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHAPE = (2, 320, 320)
STATE = b"\0" * 65536
STATS = {"lp": -1.0, "sigma": 0.1, "step_size": 1.0, "acceptance_rate": 1.0, "n_grad": 1}


def write_raw(path: Path, draws: list[Tensor]) -> None:
    with path.open("wb", buffering=0) as file:
        for images in draws:
            file.write(memoryview(images.numpy()).cast("B"))


def writer_for(path: Path | None, num_chains: int, num_draws: int, **options: Any) -> EnsembleWriter:
    return EnsembleWriter.create(
        path, num_chains=num_chains, num_draws=num_draws, event_shape=SHAPE, state_bytes=len(STATE), **options
    )


def write_store(path: Path, draws: list[Tensor], **options: Any) -> None:
    writer = writer_for(path, len(draws[0]), len(draws), **options)
    for images in draws:
        writer.append(images, STATS)
        if writer.ready_to_commit:
            writer.commit(STATE)
    writer.close()


def write_durably(path: Path, draws: list[Tensor]) -> None:
    write_store(path, draws, durability="power")


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def timed(call: Callable[[Path, list[Tensor]], None], folder: Path, draws: list[Tensor]) -> tuple[float, float]:
    path = folder / "out"
    os.sync()
    begun = time.perf_counter()
    call(path, draws)
    returned = time.perf_counter() - begun
    os.sync()
    on_disk = time.perf_counter() - begun
    remove(path)
    return returned, on_disk


def speed(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds and ratios to a raw file."""
    # Sixteen distinct draws, used over and over, so that memory does not limit how many are written.
    distinct = [torch.randn(options.chains, *SHAPE) for _ in range(16)]
    draws = [distinct[k % 16] for k in range(options.draws)]
    calls = {"raw file": write_raw, "store": write_store, "store, power": write_durably}
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for round_ in range(options.repeats + 1):
        for name, call in calls.items():
            times = timed(call, folder, draws)
            if round_:
                spent[name].append(times)
    megabytes = sum(d.nbytes for d in draws) / 1e6
    told: dict[str, Any] = {"megabytes": megabytes}
    for k, moment in enumerate(("returned", "on disk")):
        raw = [t[k] for t in spent["raw file"]]
        for name, times in spent.items():
            mine = [t[k] for t in times]
            told[f"{name}, {moment}"] = {
                "seconds": statistics.median(mine),
                "of raw": statistics.median(a / b for a, b in zip(raw, mine, strict=True)),
            }
    return told


def work(kind: str, images: Tensor, seconds: float) -> Tensor:
    """A draw's work: asleep, or busy on one core; a new tensor either way, as samplers give."""
    end = time.perf_counter() + seconds
    images = images + 0.001
    if kind == "asleep":
        time.sleep(max(0.0, end - time.perf_counter()))
        return images
    small = torch.ones(64, 64)
    while time.perf_counter() < end:
        small = torch.tanh(small)
    return images


def loop(kind: str, path: Path | None, chains: int, draws: int, queue_blocks: int) -> tuple[float, float]:
    """Seconds until the last append, and until the store is closed; no store for a path of None."""
    images = torch.randn(chains, *SHAPE)
    writer = None if path is None else writer_for(path, chains, draws, queue_blocks=queue_blocks)
    begun = time.perf_counter()
    for _ in range(draws):
        images = work(kind, images, 0.01)
        if writer is not None:
            writer.append(images, STATS)
            if writer.ready_to_commit:
                writer.commit(STATE)
    sampled = time.perf_counter() - begun
    if writer is not None:
        writer.close()
    return sampled, time.perf_counter() - begun


def stall(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """How much longer a loop of draws takes with a writer, as a share."""
    told: dict[str, Any] = {}
    ways = {"thread": 3, "no thread": 1}
    for kind in ("asleep", "busy"):
        shares: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for round_ in range(options.repeats):
            bare, _ = loop(kind, None, options.chains, options.draws, 1)
            for name, blocks in ways.items():
                os.sync()
                sampled, closed = loop(kind, folder / "out", options.chains, options.draws, blocks)
                remove(folder / "out")
                if round_ or options.repeats == 1:
                    shares[name].append((sampled / bare - 1, closed / bare - 1))
        for name, found in shares.items():
            told[f"{kind}, {name}"] = {
                "until the last append": statistics.median(f[0] for f in found),
                "until closed": statistics.median(f[1] for f in found),
            }
    return told


PEAK = """
import sys
sys.path.insert(0, sys.argv[1])
import store, torch
from pathlib import Path
torch.set_num_threads(1)
chains, draws, blocks = int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
store.loop("asleep", Path(sys.argv[2] + "-first"), chains, 1, 1)        # what is loaded once

def kilobytes(what):
    return int(next(l for l in open("/proc/self/status") if l.startswith(what)).split()[1])

def peak(path):
    open("/proc/self/clear_refs", "w").write("5")                       # the peak begins anew
    before = kilobytes("VmRSS")
    store.loop("busy", path, chains, draws, blocks)
    return kilobytes("VmHWM") - before

alone = peak(None)
print((peak(Path(sys.argv[2])) - alone) * 1024)
"""


def memory(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Peak memory above that of the loop alone, in blocks."""
    image = options.chains * int(np.prod(SHAPE)) * 4
    told: dict[str, Any] = {}
    for blocks in (1, 3):
        out = subprocess.run(
            [sys.executable, "-c", PEAK, str(Path(__file__).parent), str(folder / f"m{blocks}"), str(options.chains),
             str(options.draws), str(blocks)],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        writer = writer_for(folder / "block", options.chains, options.draws)
        block = image * writer.block
        remove(folder / "block")
        told[f"{blocks} blocks"] = {"blocks above": int(out.stdout) / block, "allowed": blocks + 1}
    return told


def report(content: dict[str, Any]) -> str:
    settings, speeds = content["settings"], content["speed"]
    what = f"{settings['chains']} chains x {settings['draws']} draws of {tuple(SHAPE)} float32"
    lines = ["# The ensemble writer", "", sentence(content["about"]), "", f"{what}, {speeds['megabytes']:.0f} MB.", ""]
    rows = [[n, f"{r['seconds']:.3f}", f"{r['of raw']:.2f}"] for n, r in speeds.items() if isinstance(r, dict)]
    lines += [*table(["written", "seconds", "of raw speed"], rows), ""]
    moments = ("until the last append", "until closed")
    rows = [[name, *(f"{row[m]:+.1%}" for m in moments)] for name, row in content["stall"].items()]
    lines += [*table(["stall at 10 ms a draw", *moments], rows), ""]
    rows = [[n, f"{r['blocks above']:.2f}", str(r["allowed"])] for n, r in content["memory"].items()]
    return "\n".join([*lines, *table(["memory", "blocks above the loop's own", "allowed"], rows)])


def figure(content: dict[str, Any]) -> "Figure":
    from matplotlib.figure import Figure

    made = Figure(figsize=(6, 2.6), layout="constrained")
    axis = made.subplots()
    rows = {name: row for name, row in content["speed"].items() if isinstance(row, dict)}
    axis.barh(list(rows), [content["speed"]["megabytes"] / row["seconds"] for row in rows.values()])
    axis.set(xlabel="MB a second")
    axis.invert_yaxis()
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    made = parser(__doc__, "store")
    made.add_argument("--draws", type=int, default=160)
    made.add_argument("--chains", type=int, default=4)
    made.add_argument("--repeats", type=int, default=7)
    made.add_argument("--folder", type=Path, default=Path(), help="where to write; deleted afterwards")
    options = parsed(made, arguments)
    if options.draw:
        print(redraw(options.out, report, figure))
        return
    if options.quick:
        options.draws, options.chains, options.repeats = 4, 1, 1
    settings = {"chains": options.chains, "draws": options.draws, "repeats": options.repeats}
    content: dict[str, Any] = {"about": about(), "settings": settings}
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-store-") as name:
        content["speed"] = speed(options, Path(name))
        content["stall"] = stall(options, Path(name))
        content["memory"] = memory(options, Path(name))
    print(publish(options.out, content, report, figure))


if __name__ == "__main__":
    main()
