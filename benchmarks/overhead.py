"""What ``sample`` costs over the gradient evaluations it makes.

    python benchmarks/overhead.py [--repeats 7 --json FILE]

For each case the chains of one ``sample`` call, kept in memory, are timed in turn with a bare loop that evaluates the
posterior's value and gradient as many times on the same batch and does nothing else. The figure is the median over the
rounds of their ratio, in CPU seconds on one thread, after a first call of each. The posteriors: a learned energy of
96 x 96 pixels with a mask (9,216 numbers an image); total variation and a blur of 128 x 128 pixels (16,384); and as the
hardest case a Gaussian with a blur, whose gradient is two Fourier transforms, of 128 x 128 and 256 x 256. There the
random numbers alone are a good part of a gradient: their share is shown. A draw is kept every 30 gradients.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

import potentia as pt
from potentia import energies, inference, likelihoods
from potentia._random import chain_generators, standard_normal
from potentia.inference import Sampler
from potentia.inference._hmc import HMC
from potentia.inference._mala import MALA

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


def seconds(call: Callable[[], object]) -> float:
    begun = time.process_time()
    call()
    return time.process_time() - begun


def overhead(name: str, sampler: Sampler, gradients: int, repeats: int) -> dict[str, float]:
    """Time of ``sample`` over that of as many gradients, and the share of the random numbers in the former."""
    make, side, steps = CASES[name]
    posterior, shape = make(side), (1, side, side)
    generators = chain_generators(0, range(CHAINS))
    x = 0.1 * standard_normal((CHAINS, *shape), generators, dtype=torch.float32)
    draws = steps // (sampler.steps_per_draw * gradients)
    count = draws * sampler.steps_per_draw * gradients

    def sampled() -> object:
        return pt.sample(posterior, sampler, num_chains=CHAINS, num_draws=draws, num_warmup=0, init=x, progress=False)

    def bare() -> None:
        for _ in range(count + 1):  # one to start with
            posterior.value_and_grad(x)

    def noise() -> None:
        for _ in range(count // gradients):
            standard_normal(x.shape, generators, dtype=x.dtype)

    sampled(), bare()
    rounds = [(seconds(sampled), seconds(bare), seconds(noise)) for _ in range(repeats)]
    return {
        "ratio": statistics.median(s / b for s, b, _ in rounds),
        "noise": statistics.median(n / b for _, b, n in rounds),
        "gradient_ms": 1e3 * statistics.median(b for _, b, _ in rounds) / (count + 1),
        "numbers": float(side * side),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    plain = inference.Preconditioner.identity()
    samplers: dict[str, tuple[Sampler, int]] = {
        "Langevin": (inference.Langevin(1e-4, preconditioner=plain, sigma=0.1, steps_per_draw=30), 1),
        "MALA": (MALA(1e-4, preconditioner=plain, sigma=0.1, steps_per_draw=30), 1),
        "HMC, 6 leapfrogs": (HMC(1e-2, num_leapfrog=6, preconditioner=plain, sigma=0.1, steps_per_draw=5), 6),
    }
    found = {}
    print("| posterior | numbers an image | gradient, ms | sampler | sample / gradients | random numbers |")
    print("|---|---|---|---|---|---|")
    for name in CASES:
        for label, (sampler, gradients) in samplers.items():
            r = found[f"{name}: {label}"] = overhead(name, sampler, gradients, options.repeats)
            met = "" if r["ratio"] <= LIMIT else f" (over {LIMIT:.2f})"
            print(
                f"| {name} | {r['numbers']:,.0f} | {r['gradient_ms']:.1f} | {label} | {r['ratio']:.3f}{met} "
                f"| {r['noise']:.3f} |",
                flush=True,
            )
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
