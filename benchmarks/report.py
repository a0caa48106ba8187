"""Size of the report, and how soon a browser shows it.

    python benchmarks/report.py [--chains 4 --draws 160 --size 320 --repeats 5 --folder DIR --json FILE]

Complex images of a disc with smooth phase, correlated draws about it, stored with truth and MAP: 4 chains of 160 draws
of 2 x 320 x 320 unless told otherwise. The page is opened from disk in headless Chromium, each time in a browser of its
own. Times are those of the page's own performance record, in seconds since it was asked for: the first paint (text and
tables), the panels (every map is drawn), and complete (draws and samples can be looked at). Needs playwright and a
chromium.
"""

import argparse
import json
import math
import resource
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potentia.io import EnsembleWriter
from potentia.report import write_report

MOST_MEGABYTES = 20.0
MOST_SECONDS = 2.0
EVENTS = """() => Object.fromEntries([...performance.getEntriesByType('paint'), ...performance.getEntriesByType('mark')]
  .map((entry) => [entry.name, entry.startTime]))"""


def picture(size: int) -> Tensor:
    axis = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    inside = ((x / 0.7) ** 2 + (y / 0.9) ** 2 < 1).float()
    magnitude = inside * (0.6 + 0.3 * torch.sin(9 * x) * torch.cos(7 * y))
    return torch.polar(magnitude, 1.5 * x * y + 0.7 * x)[None]


def make_store(path: Path, chains: int, draws: int, size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    truth = picture(size)
    std = 0.02 + 0.05 * truth.abs()
    writer = EnsembleWriter.create(
        path,
        num_chains=chains,
        num_draws=draws,
        event_shape=(1, size, size),
        is_complex=True,
        constant={"truth": truth},
    )
    noise = torch.zeros(chains, 1, size, size, dtype=torch.complex64)
    for k in range(draws):
        fresh = torch.randn(noise.shape, dtype=torch.complex64, generator=generator)
        noise = 0.5 * noise + math.sqrt(0.75) * fresh
        writer.append(truth + std * noise, {"lp": -1000.0 - k % 7, "acceptance_rate": 0.8, "n_grad": 100 * (k + 1)})
        if writer.ready_to_commit:
            writer.commit()
    writer.close(sampling_time=60.0).set_summary("map", 0.98 * truth)


def opened(path: Path, chromium: str) -> dict[str, float]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(path.as_uri())
        events: dict[str, float] = {}
        # The browser notes a paint only after the frame has been shown.
        for _ in range(400):
            events = page.evaluate(EVENTS)
            if {"first-paint", "panels", "complete"} <= events.keys():
                break
            page.wait_for_timeout(25)
        browser.close()
    return events


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--draws", type=int, default=160)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write; deleted afterwards")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise SystemExit("there is no chromium on this machine, expected one to open the page")
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-report-") as folder:
        store = Path(folder).resolve() / "a.zarr"
        make_store(store, options.chains, options.draws, options.size)
        begun = time.perf_counter()
        page = write_report(store)
        written = time.perf_counter() - begun
        megabytes = page.stat().st_size / 1e6
        rounds = [opened(page, chromium) for _ in range(options.repeats)]
    names = ("first-paint", "first-contentful-paint", "panels", "complete")
    seconds = {name: [events[name] / 1e3 for events in rounds] for name in names}
    result: dict[str, Any] = {
        "megabytes": megabytes,
        "write_seconds": written,
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "seconds": {name: {"median": statistics.median(s), "worst": max(s)} for name, s in seconds.items()},
    }
    print(f"{options.chains} chains x {options.draws} draws of 2 x {options.size} x {options.size} float32")
    small = megabytes < MOST_MEGABYTES
    print(f"  page: {megabytes:.1f} MB (under {MOST_MEGABYTES:.0f}: {'met' if small else 'NOT met'})")
    print(f"  written in {written:.1f} s, peak memory {result['peak_megabytes']:.0f} MB")
    print(f"  {'':26}{'median s':>10}{'worst s':>10}")
    for name in names:
        told = result["seconds"][name]
        print(f"  {name:26}{told['median']:10.2f}{told['worst']:10.2f}")
    soon = max(seconds["first-paint"]) < MOST_SECONDS
    print(f"  first paint under {MOST_SECONDS:.0f} s in every round: {'met' if soon else 'NOT met'}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
