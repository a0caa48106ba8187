"""Effective samples a second of CPU, and per 1,000 gradients: our samplers against Pyro, BlackJAX and NumPyro.

    python benchmarks/efficiency.py --peers-python PEERS/bin/python [--target gaussian-100 ...] [--method chees ...]
        [--dtype float32 --dtype float64] [--repeats 1] [--resume] [--quick] [--draw]
        [--out benchmarks/results/efficiency]

The peers run in an environment of their own, with benchmarks/peers.txt (``make bench-env``).
Without ``--peers-python`` only ours run. Every run is a process of its own on one thread. Times are CPU seconds of that
process, which other work on the machine lengthens less than wall time; "with warm-up" adds adaptation and compilation
to the sampling. The effective sample size is ArviZ's bulk ESS, least over all coordinates; a run counts as converged
where its R-hat, largest over the coordinates, is below 1.05, and only those are compared. Of several repeats the median
run by effective samples a second is reported. It writes OUT.json, OUT.md and OUT.png.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from _efficiency_targets import NAMES, Target, starts, target
from _record import about, files, publish, redraw, sentence
from torch import Tensor

import potentia as pt
from potentia._random import chain_generators
from potentia.inference import Preconditioner, Sampler
from potentia.inference._chees import ChEES
from potentia.inference._covariance import Dense
from potentia.inference._hmc import HMC
from potentia.inference._mala import MALA

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
PEERS = ("pyro-hmc", "pyro-nuts", "blackjax-mala", "blackjax-nuts", "blackjax-mclmc", "numpyro-nuts")
OURS = ("mala-identity", "mala-dense", "mala-exact", "hmc-dense", "chees", "chees-dense")
UNADJUSTED = ("blackjax-mclmc",)
LEAST_RHAT = 1.05
Row = dict[str, Any]
clock = time.process_time


class Mixed(pt.Energy):
    """A target of the benchmark: the same formula as the peers', its gradient in closed form."""

    def __init__(self, t: Target, dtype: torch.dtype) -> None:
        super().__init__()
        for name in ("log_weights", "means", "precisions"):
            self.register_buffer(name, torch.tensor(getattr(t, name), dtype=dtype))

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (1, 1, self.means.shape[1])

    @property
    def is_complex(self) -> bool:
        return False

    def forward(self, x: Tensor, sigma: Any = None) -> Tensor:
        return self.value_and_grad(x)[0]

    @torch.no_grad()
    def value_and_grad(self, x: Tensor, sigma: Any = None) -> tuple[Tensor, Tensor]:
        flat = x.flatten(1)
        if len(self.means) == 1:
            push = flat @ self.precisions[0]
            return 0.5 * (flat * push).sum(-1, dtype=torch.float64), push.reshape(x.shape)
        off = flat - self.means[:, None]
        push = off @ self.precisions
        logs = self.log_weights[:, None] - 0.5 * (off * push).sum(-1, dtype=torch.float64)
        grad = (logs.softmax(0).to(x.dtype)[..., None] * push).sum(0)
        return -logs.logsumexp(0), grad.reshape(x.shape)


def sampler(method: str, t: Target, dtype: torch.dtype) -> Sampler:
    identity = Preconditioner.identity()
    if method == "mala-exact":
        # Of the mixture, the covariance of both modes together.
        w = t.weights()
        centred = t.means - w @ t.means
        full = np.einsum("k,kij->ij", w, t.covariances + centred[:, :, None] * centred[:, None])
        c = torch.tensor(full)
        return MALA(preconditioner=Preconditioner(Dense(c.to(dtype), torch.linalg.cholesky(c).to(dtype))))
    return {
        "mala-identity": MALA(preconditioner=identity),
        "mala-dense": MALA(preconditioner="dense"),
        "hmc-dense": HMC(preconditioner="dense"),
        "chees": ChEES(preconditioner=identity),
        "chees-dense": ChEES(preconditioner="dense"),
    }[method]


def plan(method: str, dim: int) -> tuple[int, int, int]:
    """Chains, draws, warm-up."""
    large = dim > 500
    if method == "mala-identity":
        return (16, 2_000, 500) if large else (64, 8_000, 1_000)
    if method.startswith("mala"):
        return (128, 400, 150) if large else (256, 800, 150)
    return (128, 150, 150) if large else (256, 400, 150)


def run_ours(method: str, name: str, dtype_name: str, out: str) -> None:
    """What the process of one of our runs does; every step is one draw."""
    torch.set_num_threads(1)
    dtype: torch.dtype = getattr(torch, dtype_name)
    t = target(name)
    chains, draws, warmup = plan(method, t.dim)
    posterior, chosen = Mixed(t, dtype), sampler(method, t, dtype)
    x0 = torch.tensor(starts(name, chains), dtype=dtype)[:, None, None]
    generators = chain_generators(0, range(chains))
    kept = torch.empty(chains, draws, t.dim, dtype=dtype)
    begun = clock()
    state = chosen.init(posterior, x0, generators)
    for _ in range(warmup):
        state, _ = chosen.step(posterior, state)
    state = state._replace(memory=chosen.freeze(state.memory))
    middle, grads, accepted = clock(), 0, []
    for k in range(draws):
        state, info = chosen.step(posterior, state)
        kept[:, k] = state.x.flatten(1)
        grads += chains * info.n_grad
        accepted.append(info.acceptance)
    end = clock()
    rate = float(torch.stack([a for a in accepted if a is not None]).mean())
    np.savez(
        out, draws=kept.numpy(), compile=0.0, warmup=middle - begun, sampling=end - middle, grads=grads, acceptance=rate
    )


def measure(method: str, name: str, dtype: str, peers: str | None) -> Row:
    """Run one sampler in a process of its own and look at its draws."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arviz

    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "run.npz")
        if method in OURS:
            command = [sys.executable, __file__, "--one", method, name, dtype, out]
        else:
            command = [str(peers), str(HERE / "efficiency_peers.py"), method, name, dtype, out]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        subprocess.run(command, check=True, env=env, cwd=HERE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with np.load(out) as held:
            r = {k: held[k] for k in held.files}
    x = r.pop("draws").astype(np.float64)
    data = arviz.convert_to_dataset({"x": x})
    ess, rhat = float(arviz.ess(data)["x"].min()), float(arviz.rhat(data)["x"].max())
    ratio = x.reshape(-1, x.shape[-1]).var(0) / target(name).variance()
    times = {k: float(r[k]) for k in ("compile", "warmup", "sampling")}
    return {
        "method": method,
        "target": name,
        "dtype": dtype,
        "chains": x.shape[0],
        "draws": x.shape[1],
        "ess": ess,
        "rhat": rhat,
        "converged": rhat < LEAST_RHAT,
        "ess_per_second": ess / times["sampling"],
        "ess_per_second_with_warmup": ess / sum(times.values()),
        "ess_per_1000_gradients": 1000 * ess / int(r["grads"]),
        "gradients": int(r["grads"]),
        "acceptance": float(r["acceptance"]) if "acceptance" in r else None,
        "variance_ratio": [float(ratio.min()), float(ratio.max())],
        **{f"{k}_seconds": v for k, v in times.items()},
    }


def claims(rows: list[Row]) -> list[str]:
    """Our best against the best of Pyro and of the others, for each target and precision."""
    lines = []
    for name in NAMES:
        for dtype in ("float32", "float64"):
            here = [r for r in rows if r["target"] == name and r["dtype"] == dtype and r["converged"]]
            ours = [r for r in here if r["method"] in OURS and r["method"] != "mala-exact"]
            if not ours:
                continue
            words = []
            for rate, what in (("ess_per_second", "sampling"), ("ess_per_second_with_warmup", "with warm-up")):
                best = max(ours, key=lambda r: r[rate])
                adjusted = [r for r in here if r["method"] in PEERS and r["method"] not in UNADJUSTED]
                groups = {
                    "Pyro": [r for r in adjusted if r["method"].startswith("pyro")],
                    "the best other": [r for r in adjusted if not r["method"].startswith("pyro")],
                }
                groups["unadjusted MCLMC"] = [r for r in here if r["method"] in UNADJUSTED]
                for label, group in groups.items():
                    if not group:
                        words.append(f"{what}: no converged run of {label}")
                        continue
                    other = max(group, key=lambda r: r[rate])
                    words.append(
                        f"{what}: {best['method']} {best[rate] / other[rate]:.1f} x {label} ({other['method']})"
                    )
            lines.append(f"- {name}, {dtype}: " + "; ".join(words))
    return lines


def table(rows: list[Row]) -> str:
    head = (
        "| target | precision | sampler | ESS/s | with warm-up | ESS/1,000 gradients | ESS | R-hat "
        "| variance over truth |\n"
        "|---|---|---|---|---|---|---|---|---|"
    )
    lines = [head]
    for r in rows:
        low, high = r["variance_ratio"]
        name = r["method"] + (" (unadjusted)" if r["method"] in UNADJUSTED else "")
        mark = "" if r["converged"] else " not converged"
        lines.append(
            f"| {r['target']} | {r['dtype']} | {name} | {r['ess_per_second']:,.0f} | "
            f"{r['ess_per_second_with_warmup']:,.0f} | {r['ess_per_1000_gradients']:.1f} | {r['ess']:,.0f} | "
            f"{r['rhat']:.3f}{mark} | {low:.2f} to {high:.2f} |"
        )
    return "\n".join(lines)


def write(rows: list[Row], out: Path) -> str:
    order = [(n, d, m) for n in NAMES for d in ("float32", "float64") for m in (*OURS, *PEERS)]
    rows = sorted(rows, key=lambda r: order.index((r["target"], r["dtype"], r["method"])))
    head = {
        **about(packages=("potentia", "torch", "numpy", "arviz")),
        "peers": (HERE / "peers.txt").read_text().split(),
    }
    return publish(out, {"about": head, "rows": rows}, report, figure)


def report(content: dict[str, Any]) -> str:
    lines = [
        "# Efficiency of the samplers",
        "",
        f"{sentence(content['about'])} Peers: {', '.join(content['about']['peers'])}. One thread a run; seconds are "
        "CPU seconds. ESS: bulk, by ArviZ, least over the coordinates. Measured by `benchmarks/efficiency.py`.",
        "",
        "Gaussians have condition number 100 and are rotated at random; the mixture has two overlapping modes. "
        "`mala-exact` is told the covariance and takes no part in the comparison.",
        "",
        *claims(content["rows"]),
        "",
        table(content["rows"]),
    ]
    return "\n".join(lines)


def figure(content: dict[str, Any]) -> "Figure":
    """Effective samples a second of CPU, warm-up included, of the converged runs."""
    from matplotlib.figure import Figure

    rows = [r for r in content["rows"] if r["converged"]]
    names = [m for m in (*OURS, *PEERS) if any(r["method"] == m for r in rows)]
    made = Figure(figsize=(10, 3.6), layout="constrained")
    for axis, name in zip(made.subplots(1, len(NAMES), sharey=True), NAMES, strict=True):
        for dtype, mark in (("float32", "o"), ("float64", "s")):
            mine = [r for r in rows if (r["target"], r["dtype"]) == (name, dtype)]
            rates = [r["ess_per_second_with_warmup"] for r in mine]
            axis.plot(rates, [names.index(r["method"]) for r in mine], mark, label=dtype)
        axis.set(xscale="log", xlabel="ESS a second, with warm-up", title=name)
        axis.set(yticks=range(len(names)), yticklabels=names)
    axis.legend()
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers-python", help="python of an environment with benchmarks/peers.txt")
    parser.add_argument("--target", action="append", choices=NAMES)
    parser.add_argument("--method", action="append", choices=(*OURS, *PEERS))
    parser.add_argument("--dtype", action="append", choices=("float32", "float64"))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "efficiency")
    parser.add_argument("--resume", action="store_true", help="add to OUT.json what it does not have")
    parser.add_argument("--quick", action="store_true", help="two of ours on one target")
    parser.add_argument("--draw", action="store_true", help="make Markdown and figure of OUT.json, and measure nothing")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.draw:
        print(redraw(options.out, report, figure))
        return
    if options.quick:
        options.target, options.method, options.dtype = ["mixture-50"], ["chees"], ["float32"]
    if options.one:
        run_ours(*options.one)
        return
    methods = options.method or [*OURS, *(PEERS if options.peers_python else ())]
    rows: list[Row] = []
    if options.resume:
        rows = json.loads(files(options.out)["json"].read_text())["rows"]
    for name in options.target or NAMES:
        for dtype in options.dtype or ("float32", "float64"):
            done = {r["method"] for r in rows if (r["target"], r["dtype"]) == (name, dtype)}
            todo = [m for m in methods if m not in done]
            runs: dict[str, list[Row]] = {m: [] for m in todo}
            # In turn, so that a change in the load on the machine meets all of them.
            for method in todo * options.repeats:
                try:
                    runs[method].append(measure(method, name, dtype, options.peers_python))
                except subprocess.CalledProcessError as err:
                    print(f"{method} on {name} in {dtype} failed: {err}", flush=True)
                    continue
                middle = statistics.median_low([r["ess_per_second"] for r in runs[method]])
                rows = [r for r in rows if (r["method"], r["target"], r["dtype"]) != (method, name, dtype)]
                rows.append(next(r for r in runs[method] if r["ess_per_second"] == middle))
                print(table(rows[-1:]).splitlines()[-1], flush=True)
                write(rows, options.out)
    print("\n".join(claims(rows)))


if __name__ == "__main__":
    main()
