"""What ``sample`` costs over the gradient evaluations it makes.

    python benchmarks/overhead.py [--repeats 5] [--device cpu] [--quick] [--draw] [--out benchmarks/results/overhead]

For each case the chains of one ``sample`` call, kept in memory, are timed in turn with a bare loop that evaluates the
posterior's value and gradient as many times on the same batch and does nothing else. The figure is the median over the
rounds of their ratio, in CPU seconds on one thread (GPU: wall time), after a first call. The posteriors: a learned
energy of 96 x 96 pixels with a mask (9,216 numbers an image); total variation and a blur of 128 x 128 (16,384); and as
the hardest case a Gaussian with a blur, whose gradient is two Fourier transforms, of 128 x 128 and 256 x 256: there the
random numbers alone are a good part of a gradient, and their share is shown. A draw is kept every 30 gradients.
"""

import statistics
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from _record import about, parsed, parser, publish, redraw, seconds, sentence, table, verdict

import potentia as pt
from potentia import energies, inference, likelihoods
from potentia._random import chain_generators, standard_normal
from potentia.inference import Sampler
from potentia.inference._hmc import HMC
from potentia.inference._mala import MALA

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHAINS = 4
LIMIT = 1.10


def learned(side: int) -> pt.Sum:
    prior = energies.load("digits-28")
    mask = (torch.rand(1, side, side, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    y = mask * torch.zeros(1, side, side)
    return prior + likelihoods.Gaussian(y, likelihoods.Mask(mask), noise_std=0.1)


def variation(side: int) -> pt.Sum:
    y = torch.zeros(1, side, side)
    blur = likelihoods.GaussianBlur(1.5, (side, side))
    return 5.0 * energies.TotalVariation() + likelihoods.Gaussian(y, blur, noise_std=0.1)


def gaussian(side: int) -> pt.Sum:
    y = torch.zeros(1, side, side)
    blur = likelihoods.GaussianBlur(1.5, (side, side))
    return energies.Gaussian(torch.zeros(1, side, side), 1.0) + likelihoods.Gaussian(y, blur, noise_std=0.1)


CASES: dict[str, tuple[Callable[[int], pt.Sum], int, int]] = {
    "learned energy, mask": (learned, 96, 30),
    "total variation, blur": (variation, 128, 900),
    "Gaussian, blur": (gaussian, 128, 900),
    "Gaussian, blur, larger": (gaussian, 256, 300),
}


def overhead(name: str, sampler: Sampler, gradients: int, repeats: int, device: str) -> dict[str, Any]:
    """Time of ``sample`` over that of as many gradients, and the share of the random numbers in the former."""
    make, side, steps = CASES[name]
    posterior, shape = make(side).to(device), (1, side, side)
    generators = chain_generators(0, range(CHAINS), device)
    x = 0.1 * standard_normal((CHAINS, *shape), generators, dtype=torch.float32, device=torch.device(device))
    draws = steps // (sampler.steps_per_draw * gradients)
    count = draws * sampler.steps_per_draw * gradients

    def sampled() -> object:
        with warnings.catch_warnings(action="ignore", category=pt.DiagnosticWarning):  # too few draws to mix
            return pt.sample(
                posterior, sampler, num_chains=CHAINS, num_draws=draws, num_warmup=0, init=x, progress=False
            )

    def bare() -> None:
        for _ in range(count + 1):  # one to start with
            posterior.value_and_grad(x)

    def noise() -> None:
        for _ in range(count // gradients):
            standard_normal(x.shape, generators, dtype=x.dtype, device=x.device)

    sampled(), bare()
    rounds = [tuple(seconds(call, device) for call in (sampled, bare, noise)) for _ in range(repeats)]
    return {
        "posterior": name,
        "ratio": statistics.median(s / b for s, b, _ in rounds),
        "noise": statistics.median(n / b for _, b, n in rounds),
        "gradient_ms": 1e3 * statistics.median(b for _, b, _ in rounds) / (count + 1),
        "numbers": float(side * side),
    }


def samplers() -> dict[str, tuple[Sampler, int]]:
    """What is timed, and how many gradients a step takes."""
    plain = inference.Preconditioner.identity()
    return {
        "Langevin": (inference.Langevin(1e-4, preconditioner=plain, sigma=0.1, steps_per_draw=30), 1),
        "MALA": (MALA(1e-4, preconditioner=plain, sigma=0.1, steps_per_draw=30), 1),
        "HMC, 6 leapfrogs": (HMC(1e-2, num_leapfrog=6, preconditioner=plain, sigma=0.1, steps_per_draw=5), 6),
    }


def report(content: dict[str, Any]) -> str:
    head = [
        "posterior",
        "sampler",
        "numbers an image",
        "gradient, ms",
        "sample / gradients",
        "random numbers",
        "",
    ]
    rows = []
    for r in content["rows"]:
        numbers = (f"{r['numbers']:,.0f}", f"{r['gradient_ms']:.2f}", f"{r['ratio']:.3f}", f"{r['noise']:.3f}")
        rows.append([r["posterior"], r["sampler"], *numbers, verdict(r["ratio"], LIMIT)])
    return "\n".join(["# Overhead of sample", "", sentence(content["about"]), "", *table(head, rows, words=2)])


def figure(content: dict[str, Any]) -> "Figure":
    from matplotlib.figure import Figure

    rows = content["rows"]
    made = Figure(figsize=(7, 0.6 + 0.3 * len(rows)), layout="constrained")
    axis = made.subplots()
    labels = [f"{r['posterior']}: {r['sampler']}" for r in rows]
    axis.barh(labels, [r["ratio"] - r["noise"] for r in rows], label="all else")
    axis.barh(labels, [r["noise"] for r in rows], left=[r["ratio"] - r["noise"] for r in rows], label="random numbers")
    axis.axvline(LIMIT, color="black", lw=0.8)
    axis.set(xlabel="time of sample over that of its gradients")
    axis.invert_yaxis()
    axis.legend()
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    made = parser(__doc__, "overhead")
    made.add_argument("--repeats", type=int, default=5)
    options = parsed(made, arguments)
    if options.draw:
        print(redraw(options.out, report, figure))
        return
    names, chosen, repeats = list(CASES), samplers(), options.repeats
    if options.quick:
        names, chosen, repeats = ["Gaussian, blur"], {"Langevin": chosen["Langevin"]}, 1
    content = {"about": about(options.device), "settings": {"repeats": repeats}, "rows": []}
    for name in names:
        for label, (sampler, gradients) in chosen.items():
            content["rows"].append({"sampler": label, **overhead(name, sampler, gradients, repeats, options.device)})
            text = publish(options.out, content, report, figure)
    print(text)


if __name__ == "__main__":
    main()
