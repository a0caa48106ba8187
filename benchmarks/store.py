"""Speed of the ensemble writer against a plain file that takes the same bytes.

    python benchmarks/store.py [--draws 160 --chains 4 --repeats 7 --folder DIR --json FILE]

Three things are timed in turn, over and over, in one process, each onto the same disk and none with an fsync: (a) the
draws written raw, one after the other, to one file; (b) ``EnsembleWriter`` as ``sample`` uses it, append by append and
commit by commit, with the running sums; (c) the same without the sums. The draws, 2 x 320 x 320 in float32, are drawn
beforehand. Each run begins with what the one before it wrote deleted and the disk's caches flushed. Ratios are medians
over the rounds, pair by pair.

Without an fsync a plain file is a copy into the kernel's page cache, faster than any disk. So two times are taken of
each run: until the last call returns, and until a closing ``sync`` has brought all of it onto the disk.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from potentia.io import EnsembleWriter
from potentia.io._moments import Moments

SHAPE = (2, 320, 320)
STATE = b"\0" * 65536


def write_raw(path: Path, draws: list[Tensor]) -> None:
    with path.open("wb", buffering=0) as file:
        for images in draws:
            file.write(memoryview(images.numpy()).cast("B"))


def write_store(path: Path, draws: list[Tensor]) -> None:
    chains = len(draws[0])
    writer = EnsembleWriter.create(
        path, num_chains=chains, num_draws=len(draws), event_shape=SHAPE, state_bytes=len(STATE)
    )
    for k, images in enumerate(draws):
        writer.append(images, {"lp": float(k), "sigma": 0.1, "step_size": 1.0, "acceptance_rate": 1.0, "n_grad": k})
        if writer.ready_to_commit:
            writer.commit(STATE)


def counted(sums: Moments, block: Any) -> Moments:
    """Count the draws and leave their sums alone."""
    return Moments(sums.count + block.shape[1], sums.mean, sums.m2)


def write_without_sums(path: Path, draws: list[Tensor]) -> None:
    with mock.patch.object(Moments, "updated", counted):
        write_store(path, draws)


def timed(call: Callable[[Path, list[Tensor]], None], folder: Path, draws: list[Tensor]) -> tuple[float, float]:
    path = folder / "out"
    os.sync()
    begun = time.perf_counter()
    call(path, draws)
    returned = time.perf_counter() - begun
    os.sync()
    on_disk = time.perf_counter() - begun
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    return returned, on_disk


def table(title: str, times: dict[str, list[float]], megabytes: float) -> dict[str, float]:
    print(f"{title:28}{'s':>10}{'MB/s':>10}{'of raw':>10}")
    ratios = {}
    for name, spent in times.items():
        ratios[name] = statistics.median(a / b for a, b in zip(times["raw file"], spent, strict=True))
        middle = statistics.median(spent)
        print(f"  {name:26}{middle:10.3f}{megabytes / middle:10.0f}{ratios[name]:10.2f}")
    limit = 0.8
    print(
        f"  store: {ratios['store']:.2f} of raw (at least {limit}: {'met' if ratios['store'] >= limit else 'NOT met'})"
    )
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=160)
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=Path(), help="where to write; deleted afterwards")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    # Sixteen distinct draws, used over and over, so that memory does not limit how many are written.
    distinct = [torch.randn(options.chains, *SHAPE) for _ in range(16)]
    draws = [distinct[k % 16] for k in range(options.draws)]
    megabytes = sum(d.numel() * d.element_size() for d in draws) / 1e6
    calls = {"raw file": write_raw, "store": write_store, "store, no sums": write_without_sums}
    returned: dict[str, list[float]] = {name: [] for name in calls}
    on_disk: dict[str, list[float]] = {name: [] for name in calls}
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-store-") as folder:
        for round_ in range(options.repeats + 1):
            for name, call in calls.items():
                times = timed(call, Path(folder), draws)
                if round_:
                    returned[name].append(times[0])
                    on_disk[name].append(times[1])

    print(f"{options.chains} chains x {options.draws} draws of {SHAPE} float32: {megabytes:.0f} MB, medians")
    ratios = {
        "returned": table("until the calls return", returned, megabytes),
        "on_disk": table("until it is on the disk", on_disk, megabytes),
    }
    if options.json:
        options.json.write_text(json.dumps(ratios, indent=2) + "\n")


if __name__ == "__main__":
    main()
