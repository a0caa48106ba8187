"""Calibration on closed-form posteriors: ours beside deepinv's samplers, all given the same exact denoiser.

    PEERS/bin/python benchmarks/calibration_peers.py [--samplers WORDS ...] [--samples 500] [--runs 1] [--seed 0]
        [--tune] [--quick] [--resume] [--draw] [--out benchmarks/results/calibration-peers]

It needs an environment with deepinv beside potentia (``make bench-env``), and writes what ``calibration.py`` writes, on
the problems PROBLEMS. Without deepinv, ours run alone. ``--tune`` prints, for each setting of GRIDS, SW2 over its
floor on the problems TUNING, which are other instances, and writes nothing: the settings with the least mean stand in
``_deepinv_samplers.py``. Of deepinv 0.5.0, all samplers are here that sample such a posterior; it has no DAPS.
"""

import argparse
import itertools
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import _closed_form as closed_form
import calibration
import torch
from _record import RESULTS

PROBLEMS = ("box-8/0", "random80-8/0", "blur-8/0", "box-16/0", "random80-16/0", "blur-16/0")
TUNING = ("box-8/1", "random80-8/1", "blur-8/1")
OURS = ("LM", "DPS", "DiffPIR", "MMPS >> LM", "TwistedSMC", "ALPS.calibrated(250)", "ALPS.calibrated(modes=True)")
GRIDS: dict[str, dict[str, Sequence[Any]]] = {
    "deepinv ULA": {"share": (0.25, 0.5, 0.9)},
    "deepinv SK-ROCK": {"share": (0.1, 0.25, 0.5, 0.9)},
    "deepinv DDRM": {"eta": (0.6, 0.85, 1.0), "etab": (0.7, 1.0)},
    "deepinv DiffPIR": {"lambda_": (0.3, 1.0, 3.0, 7.0, 15.0), "zeta": (0.1, 0.3, 0.6, 1.0)},
    "deepinv DPS": {"weight": (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0), "guidance": ("norm", "annealed")},
    "deepinv PiGDM": {"steps": (200, 500)},
    "deepinv moment matching": {"steps": (200,), "cg": (3, 10)},
}


def samplers(words: Sequence[str]) -> dict[str, Any]:
    """Ours and, where it is installed, deepinv's; those whose name contains one of the words."""
    found: dict[str, Any] = {name: calibration.SAMPLERS[name]() for name in OURS}
    try:
        from _deepinv_samplers import SAMPLERS
    except ImportError as err:
        print(f"deepinv's samplers are left out: {err}", flush=True)
    else:
        found |= {name: make() for name, make in SAMPLERS.items()}
    return {name: sampler for name, sampler in found.items() if any(word in name for word in words)}


def tune(chosen: dict[str, Any], num: int, problems: Sequence[str]) -> None:
    """Print how every setting of deepinv's samplers does."""
    for name, sampler in chosen.items():
        grid = GRIDS.get(name, {})
        for values in itertools.product(*grid.values()) if grid else ():
            settings = dict(zip(grid, values, strict=True))
            trial = replace(sampler, settings={**sampler.settings, **settings})
            found = [calibration.run_case(closed_form.problem(p), trial, num, 0) for p in problems]
            ratios = [f["scores"]["sw2"] / f["scores"]["sw2 floor"] if "scores" in f else float("inf") for f in found]
            told = ", ".join(f"{r:.2f}" for r in ratios)
            print(f"{name} {settings}: mean {statistics.fmean(ratios):.2f} ({told})", flush=True)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samplers", nargs="+", metavar="WORDS", default=[""])
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "calibration-peers")
    for flag in ("--tune", "--quick", "--resume", "--draw"):
        parser.add_argument(flag, action="store_true")
    options = parser.parse_args(arguments)
    options.problems = list(PROBLEMS)
    if options.quick:
        options.problems, options.samples = ["box-8/0"], 50
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    torch.set_num_threads(1)
    chosen = samplers(options.samplers)
    if options.tune:
        tune(chosen, options.samples, TUNING[:1] if options.quick else TUNING)
        return
    calibration.run(options, chosen)


if __name__ == "__main__":
    main()
