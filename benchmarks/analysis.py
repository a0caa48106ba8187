"""Time and memory of the uncertainty analysis of a large ensemble, against xarray with Dask and ArviZ.

    python benchmarks/analysis.py [--chains 4 --draws 160 --size 320 --folder DIR --only NAME ...]
        [--repeats 3] [--out benchmarks/results/analysis]

A store of 2 x size x size images is written to a temporary folder and removed afterwards; its draws are first-order
autoregressive. Each analysis runs in a process of its own, on a store just opened whose files the system may hold in
its cache; of several repeats the least times are kept. CPU seconds sum over threads, and stand beside wall-clock time
because other work may share the machine. Memory is the process's peak resident set, all libraries and pages of mapped
files included. ArviZ is timed on some of the pixels, and its time taken times their number over those.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
LEVELS = [0.05, 0.5, 0.95]
ARVIZ_PIXELS = 256
PACKAGES = ("xarray", "dask", "arviz", "zarr", "numpy", "torch")
SIDE = 40  # of Dask's chunks, as finalize(rechunk=True) would have them


def write_store(path: Path, chains: int, draws: int, size: int) -> None:
    import torch

    from potentia.io import EnsembleWriter

    generator = torch.Generator().manual_seed(0)
    event = (2, size, size)
    writer = EnsembleWriter.create(
        path, num_chains=chains, num_draws=draws, event_shape=event, constant={"truth": torch.zeros(event)}
    )
    state = torch.randn(chains, *event, generator=generator)
    for k in range(draws):
        state = 0.6 * state + 0.8 * torch.randn(chains, *event, generator=generator)
        writer.append(state, {"lp": float(k), "n_grad": k})
        if writer.ready_to_commit:
            writer.commit(b"")
    writer.close()


def opened(path: Path) -> Any:
    from potentia.io import open_ensemble

    return open_ensemble(path)


def dask_quantile(path: Path) -> Any:
    import xarray as xr

    tree = xr.open_datatree(path, engine="zarr", consolidated=False, chunks={})
    image = tree["posterior"].to_dataset()[["image"]].chunk({"chain": -1, "draw": -1, "y": SIDE, "x": SIDE})
    return image.quantile(LEVELS, dim=("chain", "draw"), skipna=False).compute()


def dask_quantile_default(path: Path) -> Any:
    import xarray as xr

    tree = xr.open_datatree(path, engine="zarr", consolidated=False, chunks={})
    image = tree["posterior"].to_dataset()[["image"]].chunk({"chain": -1, "draw": -1, "y": SIDE, "x": SIDE})
    return image.quantile(LEVELS, dim=("chain", "draw")).compute()


def arviz_rhat(path: Path) -> Any:
    import arviz

    image = opened(path).image
    step = max(1, int(np.sqrt(image[0, 0].size / ARVIZ_PIXELS)))
    some = image[..., ::step, ::step].load()
    begun, cpu = time.perf_counter(), time.process_time()
    arviz.rhat(some.to_dataset())
    share = image[0, 0].size / some[0, 0].size
    return {"wall": (time.perf_counter() - begun) * share, "cpu": (time.process_time() - cpu) * share}


def pixel_diagnostics(*names: str) -> Callable[[Path], Any]:
    def run(path: Path) -> Any:
        from potentia.inference._pixels import pixel_diagnostics as of

        return of(opened(path), names)

    return run


def exported(path: Path, call: Callable[[Any, Path], Any]) -> Any:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        return call(opened(path), Path(folder))


def mean_and_std(path: Path) -> Any:
    ensemble = opened(path)
    begun, cpu = time.perf_counter(), time.process_time()
    ensemble.mean(), ensemble.std()
    return {"wall": time.perf_counter() - begun, "cpu": time.process_time() - cpu}


def regions(path: Path) -> Any:
    ensemble = opened(path)
    mask = np.zeros(ensemble.event_shape, bool)
    mask[:, : mask.shape[1] // 2, : mask.shape[2] // 4] = True
    return ensemble.regions({"left": mask, "rest": ~mask}, threshold=0.5)


# In this order: the store is rechunked on the way.
TASKS: dict[str, Callable[[Path], Any]] = {
    "nothing (imports, open)": opened,
    "mean and std": mean_and_std,
    "3 quantiles": lambda p: opened(p).quantile(LEVELS),
    "3 quantiles, Dataset.quantile by Dask": dask_quantile,
    "3 quantiles, the same, skipping NaN (default)": dask_quantile_default,
    "interval": lambda p: opened(p).interval(0.9),
    "R-hat": pixel_diagnostics("rhat"),
    "R-hat, ArviZ (extrapolated)": arviz_rhat,
    "bulk ESS": pixel_diagnostics("ess_bulk"),
    "tail ESS": pixel_diagnostics("ess_tail"),
    "MCSE of the mean": pixel_diagnostics("mcse_mean"),
    "probability(x > 0.5)": lambda p: opened(p).probability(lambda x: x > 0.5),
    "probability_above(0.5)": lambda p: opened(p).probability_above(0.5),
    "2 regions": regions,
    "10 components": lambda p: opened(p).components(10),
    "distances": lambda p: opened(p).distances(),
    "modes": lambda p: opened(p).modes(),
    "calibration": lambda p: opened(p).calibration(),
    "to_netcdf": lambda p: exported(p, lambda e, f: e.to_netcdf(f / "a.nc")),
    "to_nifti(std)": lambda p: exported(p, lambda e, f: e.to_nifti(f / "a.nii.gz", "std")),
    "figures": lambda p: exported(p, lambda e, f: e.figures(f)),
    "finalize(rechunk=True)": lambda p: opened(p).finalize(rechunk=True),
    "3 quantiles, rechunked": lambda p: opened(p).quantile(LEVELS),
    "R-hat, rechunked": pixel_diagnostics("rhat"),
}


def run_task(name: str, path: Path) -> dict[str, float]:
    import arviz  # noqa: F401 - so that imports are in nobody's time
    import dask.array  # noqa: F401
    import torch  # noqa: F401
    import xarray  # noqa: F401

    from potentia import io  # noqa: F401
    from potentia.inference import _pixels  # noqa: F401

    begun, cpu = time.perf_counter(), time.process_time()
    told = TASKS[name](path)
    spent = {"wall": time.perf_counter() - begun, "cpu": time.process_time() - cpu}
    if isinstance(told, dict):
        spent = told
    return {**spent, "peak_mb": peak_memory()}


def peak_memory() -> float:
    """Peak resident set in MB; getrusage would tell that of the parent process where it was greater."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def measure(name: str, path: Path, repeats: int) -> dict[str, float]:
    command = [sys.executable, str(Path(__file__).resolve()), "--task", name, "--store", str(path)]
    found = []
    for _ in range(repeats):
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found.append(json.loads(told.strip().splitlines()[-1]))
    return {
        "wall": min(f["wall"] for f in found),
        "cpu": min(f["cpu"] for f in found),
        "peak_mb": max(f["peak_mb"] for f in found),
    }


def targets(rows: dict[str, dict[str, float]]) -> list[str]:
    """What the analysis is to reach, and whether it does."""
    told = []

    def add(text: str, value: float, met: bool) -> None:
        told.append(f"{text.format(value)} ({'met' if met else 'NOT met'})")

    if "mean and std" in rows:
        spent = rows["mean and std"]["wall"]
        add("mean and std in {:.3f} s, at most 0.1", spent, spent <= 0.1)
    for kind in ("wall", "cpu"):
        ours, dask = rows.get("3 quantiles"), rows.get("3 quantiles, Dataset.quantile by Dask")
        if ours and dask:
            ratio = dask[kind] / ours[kind]
            add(f"three quantiles {{:.1f}} x as fast as Dask's, {kind} time, at least 2", ratio, ratio >= 2)
        ours, arviz = rows.get("R-hat"), rows.get("R-hat, ArviZ (extrapolated)")
        if ours and arviz:
            ratio = arviz[kind] / ours[kind]
            add(f"R-hat of all pixels {{:.0f}} x as fast as ArviZ's, {kind} time, at least 20", ratio, ratio >= 20)
    own = {n: r for n, r in rows.items() if "Data" not in n and "default" not in n and "ArviZ" not in n}
    if own:
        name = max(own, key=lambda n: own[n]["peak_mb"])
        peak = own[name]["peak_mb"]
        add(f"peak memory at most {{:.0f}} MB ({name}), at most 1000", peak, peak <= 1000)
    return told


def report(about: dict[str, Any], rows: dict[str, dict[str, float]], out: Path) -> None:
    goals = targets(rows)
    lines = [
        "# Uncertainty analysis of a large ensemble",
        "",
        f"{about['date']}, {about['machine']}, {about['versions']}. {about['ensemble']}. Each line is a process of its "
        "own; its memory has all that is imported in it. Measured by `benchmarks/analysis.py`.",
        "",
        *(f"- {goal}" for goal in goals),
        "",
        "| analysis | wall s | CPU s | peak MB |",
        "|---|---|---|---|",
        *(f"| {name} | {r['wall']:.3f} | {r['cpu']:.3f} | {r['peak_mb']:.0f} |" for name, r in rows.items()),
    ]
    out.with_suffix(".md").write_text("\n".join(lines) + "\n")
    out.with_suffix(".json").write_text(json.dumps({"about": about, "targets": goals, "rows": rows}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--draws", type=int, default=160)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the store is made, and removed")
    parser.add_argument("--only", action="append", choices=list(TASKS))
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json")
    parser.add_argument("--task", choices=list(TASKS), help=argparse.SUPPRESS)
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        print(json.dumps(run_task(options.task, options.store)))
        return
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
    threads = os.environ.get("OMP_NUM_THREADS") or f"{os.cpu_count()}"
    about = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, OMP_NUM_THREADS {threads}",
        "versions": ", ".join(
            f"{n} {metadata.version(n)}" for n in ("xarray", "dask", "arviz", "zarr", "numpy", "torch")
        ),
        "ensemble": f"{options.chains} chains x {options.draws} draws x 2 x {options.size} x {options.size} float32, "
        f"{options.chains * options.draws * 2 * options.size**2 * 4 / 1e6:.0f} MB",
    }
    rows = {}
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-analysis-") as folder:
        path = Path(folder) / "ensemble.zarr"
        write_store(path, options.chains, options.draws, options.size)
        for name in options.only or TASKS:
            rows[name] = measure(name, path, options.repeats)
            told = rows[name]
            print(f"{name:48}{told['wall']:10.3f} s{told['cpu']:10.3f} s CPU{told['peak_mb']:8.0f} MB", flush=True)
    print(*targets(rows), sep="\n")
    if options.out:
        report(about, rows, options.out)


if __name__ == "__main__":
    main()
