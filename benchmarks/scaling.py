"""How time and memory of a step grow with chains and image size, and what a second rank brings.

    python benchmarks/scaling.py [--prior learned analytic] [--chains 1 2 ... 256] [--side 32 64 128 256 512]
        [--ranks 1 2] [--repeats 7] [--device cpu] [--resume] [--quick] [--draw] [--out benchmarks/results/scaling]

A step is one of ``inference.ALPS`` on an inpainting posterior (half of the pixels at random), with the learned energy
``digits-28`` or total variation as prior. Chains grow at 64 x 64, sizes with 4 chains. Each point is a process of its
own on one thread: seconds of a step are the least of the repeats, in CPU seconds (GPU: wall time); memory is the most
held while the chains are made and stepped, above what the process held before. The slope is that of log cost against
log work (chains times pixels), over the points with at least a sixteenth of the most work: at most 1.10 means that a
chain or a pixel more costs no more than the one before. Ranks share 16 chains of 64 x 64 out on this machine: wall
seconds of a whole ``sample`` into a store, without the start of the processes.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from _record import (
    about,
    environment,
    files,
    parsed,
    parser,
    peak_memory,
    publish,
    redraw,
    resumed,
    seconds,
    sentence,
    slope,
    synchronise,
    table,
    verdict,
)

import potentia as pt
from potentia import annealers, energies, inference, likelihoods
from potentia._random import chain_generators

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LIMIT, REACH = 1.10, 16
SIDE, CHAINS, RANK_CHAINS = 64, 4, 16
LEAST_BYTES = 2**20  # below this the allocator's own steps are what one sees
PRIORS = ("learned", "analytic")


def posterior(prior: str, side: int) -> pt.Sum:
    """An inpainting posterior on (1, side, side)."""
    mask = (torch.rand(1, side, side, generator=torch.Generator().manual_seed(side)) < 0.5).float()
    energy = energies.load("digits-28") if prior == "learned" else 5.0 * energies.TotalVariation()
    return energy + likelihoods.Gaussian(0.5 * mask, likelihoods.Mask(mask), 0.1)


def point(prior: str, chains: int, side: int, repeats: int, device: str) -> dict[str, float]:
    """Seconds and bytes of a step: what the process of one point does."""
    target = posterior(prior, side).to(device)
    sampler = inference.ALPS(annealers.Constant(0.3, 2), steps_per_level=10_000)
    generators = chain_generators(0, range(chains), device)
    warm = torch.randn(1, 1, 8, 8, device=device)
    torch.fft.fft2(warm), torch.nn.functional.conv2d(warm, warm)  # libraries that load at their first use
    synchronise(device)
    with peak_memory(device) as peak:
        state = sampler.init(target, torch.randn(chains, 1, side, side, device=device), generators)
        spent = []

        def step() -> None:
            nonlocal state
            state, _ = sampler.step(target, state)

        for _ in range(repeats + 1):
            spent.append(seconds(step, device))
    return {"seconds": min(spent[1:]), "bytes": peak.bytes}


def rank_run(prior: str, rank: int, count: int, folder: str, draws: int) -> None:
    """What a rank's process does; rank 0 prints the wall seconds."""
    from torch import distributed

    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=count)
    target = posterior(prior, SIDE)
    sampler = inference.ALPS(annealers.Constant(0.3, 2), steps_per_level=5)
    for name in ("first", "timed"):
        distributed.barrier()
        begun = time.perf_counter()
        with inference.without_diagnostics():
            pt.sample(
                target,
                sampler,
                num_chains=RANK_CHAINS,
                num_draws=1 if name == "first" else draws,
                store=f"{folder}/{name}.zarr",
                progress=False,
            )
        distributed.barrier()
    if rank == 0:
        print(json.dumps({"seconds": time.perf_counter() - begun}))
    distributed.destroy_process_group()


def launched(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--one", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())


def answer(process: subprocess.Popen[str]) -> dict[str, float]:
    """What a process printed last.

    Raises: RuntimeError if it failed.
    """
    out, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{process.args}: ended with {process.returncode}")
    return json.loads(out.splitlines()[-1]) if out else {}


def ranks(prior: str, count: int, draws: int) -> dict[str, float]:
    """Wall seconds of one run shared out among so many processes."""
    with tempfile.TemporaryDirectory() as folder:
        processes = [launched("rank", prior, rank, count, folder, draws) for rank in range(count)]
        first, *_ = [answer(p) for p in processes]
        return first


def cases(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The points: which of them are swept, prior, chains, side and ranks."""
    for prior in options.prior:
        for n in options.chains:
            yield {"sweep": "chains", "prior": prior, "chains": n, "side": SIDE, "ranks": 1}
        for side in options.side:
            yield {"sweep": "side", "prior": prior, "chains": CHAINS, "side": side, "ranks": 1}
        for n in options.ranks if torch.device(options.device).type == "cpu" else ():
            yield {"sweep": "ranks", "prior": prior, "chains": RANK_CHAINS, "side": SIDE, "ranks": n}


def slopes(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of every sweep over chains or sizes, the slopes of seconds and bytes against work."""
    found = []
    for prior, sweep in dict.fromkeys((r["prior"], r["sweep"]) for r in rows if r["sweep"] != "ranks"):
        mine = [r for r in rows if (r["prior"], r["sweep"]) == (prior, sweep)]
        work = [r["chains"] * r["side"] ** 2 for r in mine]
        for cost, least in (("seconds", 0), ("bytes", LEAST_BYTES)):
            pairs = [(w, r[cost]) for w, r in zip(work, mine, strict=True) if w * REACH >= max(work)]
            pairs = [(w, c) for w, c in pairs if c is not None and c > least]
            if len({w for w, _ in pairs}) > 1:
                value = slope(*zip(*pairs, strict=True))
                found.append({"prior": prior, "sweep": sweep, "cost": cost, "slope": value, "met": value <= LIMIT})
    return found


def report(content: dict[str, Any]) -> str:
    rows = []
    for r in content["rows"]:
        held = "" if r["bytes"] is None else f"{r['bytes'] / 1e6:.1f}"
        work = (r["sweep"], r["prior"], str(r["chains"]), f"{r['side']} x {r['side']}", str(r["ranks"]))
        rows.append([*work, f"{1e3 * r['seconds']:.2f}", held])
    lines = ["# Scaling", "", sentence(content["about"]), "", "One step of ALPS; for ranks a whole run.", ""]
    lines += table(["sweep", "prior", "chains", "image", "ranks", "ms", "MB"], rows, words=2)
    lines += ["", "Slope of log cost against log work, from a sixteenth of the most work on:", ""]
    for s in slopes(content["rows"]):
        lines.append(f"- {s['prior']}, {s['sweep']}, {s['cost']}: {s['slope']:.2f} ({verdict(s['slope'], LIMIT)})")
    for prior in dict.fromkeys(r["prior"] for r in content["rows"]):
        spent = {r["ranks"]: r["seconds"] for r in content["rows"] if (r["prior"], r["sweep"]) == (prior, "ranks")}
        lines += [f"- {prior}: {n} ranks are {spent[1] / spent[n]:.2f} times as fast as 1" for n in spent if n > 1]
    return "\n".join(lines)


def figure(content: dict[str, Any]) -> "Figure":
    from matplotlib.figure import Figure

    made = Figure(figsize=(8.5, 3.8), layout="constrained")
    panels = dict(zip(("seconds", "bytes"), made.subplots(1, 2), strict=True))
    swept = dict.fromkeys((r["prior"], r["sweep"]) for r in content["rows"] if r["sweep"] != "ranks")
    for cost, axis in panels.items():
        for prior, sweep in swept:
            mine = [r for r in content["rows"] if (r["prior"], r["sweep"]) == (prior, sweep) and r[cost]]
            work = [r["chains"] * r["side"] ** 2 for r in mine]
            axis.loglog(work, [r[cost] for r in mine], marker="o", label=f"{prior}, by {sweep}")
        axis.set(xlabel="chains x pixels", ylabel=f"{cost} of a step")
    panels["seconds"].legend()
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    made = parser(__doc__, "scaling", "--resume")
    made.add_argument("--prior", nargs="+", choices=PRIORS, default=list(PRIORS))
    made.add_argument("--chains", type=int, nargs="+", default=[2**k for k in range(9)])
    made.add_argument("--side", type=int, nargs="+", default=[2**k for k in range(5, 10)])
    made.add_argument("--ranks", type=int, nargs="*", default=[1, 2])
    made.add_argument("--repeats", type=int, default=7)
    options = parsed(made, arguments)
    if options.draw:
        print(redraw(options.out, report, figure))
        return
    draws = 20
    if options.quick:
        options.prior, options.chains, options.side, options.ranks = ["analytic"], [1, 16], [], []
        options.repeats = 2
    settings = {"repeats": options.repeats, "draws of a rank's run": draws}
    rows = resumed(options.out, settings) if options.resume else []
    content = {"about": about(options.device), "settings": settings, "rows": rows}
    for case in cases(options):
        if any(all(row[k] == v for k, v in case.items()) for row in rows):
            continue
        if case["sweep"] == "ranks":
            found = {**ranks(case["prior"], case["ranks"], draws), "bytes": None}
        else:
            numbers = (case["prior"], case["chains"], case["side"], options.repeats, options.device)
            found = answer(launched("point", *numbers))
        rows.append({**case, **found})
        publish(options.out, content, report, figure)
        print(rows[-1], flush=True)
    print(files(options.out)["md"].read_text("utf-8"))


def one(kind: str, *arguments: str) -> None:
    """What a process of its own does."""
    torch.set_num_threads(1)
    if kind == "point":
        prior, chains, side, repeats, device = arguments
        print(json.dumps(point(prior, int(chains), int(side), int(repeats), device)))
    else:
        prior, rank, count, folder, draws = arguments
        rank_run(prior, int(rank), int(count), folder, int(draws))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(*sys.argv[2:])
    else:
        main()
