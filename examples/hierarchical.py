"""Unknown noise level and unknown regularisation weight, sampled beside the image by Pyro's NUTS.

A Gaussian field is simulated, blurred and noised. The model knows the field's spectrum up to a factor, the weight, and
the noise up to its level:

    noise_std ~ HalfCauchy(1),   weight ~ Gamma(2, 1),   x ~ N(0, spectrum / weight),   y ~ N(A x, noise_std^2)

``pyro_model`` enters prior and likelihood into a Pyro model with their weights, and with the normalising constants
that these change. Since all is Gaussian given the two unknowns, the image can be integrated out by hand; the table
compares what NUTS found with that integral, and with the truth.

    python examples/hierarchical.py --draws 1000 --figure hierarchical.png
"""

# ruff: noqa: TID253 - an example for Pyro's users
import argparse
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide.initialization import init_to_sample
from pyro.ops.stats import effective_sample_size
from torch import Tensor

from potentia import energies, likelihoods
from potentia.inference import Normaliser, PyroModel, pyro_model

NOISE_PRIOR = dist.HalfCauchy(torch.tensor(1.0, dtype=torch.float64))
WEIGHT_PRIOR = dist.Gamma(torch.tensor(2.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
UNKNOWNS = ("noise_std", "weight")


class Problem(NamedTuple):
    """What was simulated: the measurements, and the truth behind them."""

    field: energies.GaussianField
    blur: likelihoods.GaussianBlur
    y: Tensor
    image: Tensor
    noise_std: float
    weight: float


def simulate(side: int, noise_std: float, weight: float, seed: int) -> Problem:
    """Draw an image from the field at this weight, blur it and add noise."""
    g = torch.Generator().manual_seed(seed)
    field = energies.GaussianField.power_law((1, side, side), 2.0, corner=0.15, dtype=torch.float64)
    blur = likelihoods.GaussianBlur(0.5, (side, side)).double()
    image = field.sample(g, 1)[0] / weight**0.5
    return Problem(field, blur, blur.measure(image, noise_std, g), image, noise_std, weight)


def scene(problem: Problem, normalisers: dict[str, Normaliser | None] | None = None) -> PyroModel:
    """Prior and likelihood with weight one each: ``noise_std^-2`` is the likelihood's weight."""
    data = likelihoods.Gaussian(problem.y, problem.blur, noise_std=1.0)
    return pyro_model(problem.field + data, normalisers=normalisers, init=problem.y, init_std=0.1)


def sample(
    problem: Problem,
    draws: int,
    warmup: int,
    seed: int,
    *,
    normalisers: dict[str, Normaliser | None] | None = None,
    progress: bool = False,
) -> dict[str, Tensor]:
    """Draw noise level, weight and image together.

    ``normalisers`` replaces the constants that ``pyro_model`` finds by itself: to see what becomes of the sampler
    without them, {"field": None, "gaussian": None}.
    """
    posterior = scene(problem, normalisers)

    def model() -> None:
        noise_std = pyro.sample("noise_std", NOISE_PRIOR)
        weight = pyro.sample("weight", WEIGHT_PRIOR)
        posterior(field=weight, gaussian=noise_std**-2)

    pyro.set_rng_seed(seed)
    kernel = NUTS(model, init_strategy=init_to_sample, max_tree_depth=7)
    mcmc = MCMC(kernel, num_samples=draws, warmup_steps=warmup, disable_progbar=not progress)
    mcmc.run()
    samples: dict[str, Tensor] = mcmc.get_samples()
    return samples


class Grid(NamedTuple):
    """The exact density of the logarithms of both unknowns, on a grid and normalised there."""

    log_noise: Tensor
    log_weight: Tensor
    mass: Tensor

    def marginal(self, unknown: str) -> tuple[Tensor, Tensor]:
        """Logarithms of one unknown, and their probabilities."""
        return (self.log_noise, self.mass.sum(1)) if unknown == "noise_std" else (self.log_weight, self.mass.sum(0))


def integrate(problem: Problem, points: int = 400) -> Grid:
    """Posterior of the two unknowns with the image integrated out: y's Fourier coefficients are independent.

    Each has variance ``|h|^2 spectrum / weight + noise_std^2``, h the blur's transfer function.
    """
    delta = torch.zeros_like(problem.y)
    delta[..., 0, 0] = 1
    transfer = torch.fft.fft2(problem.blur(delta)).abs().square()
    power = torch.fft.fft2(problem.y, norm="ortho").abs().square()
    s = torch.linspace(np.log(problem.noise_std / 8), np.log(problem.noise_std * 8), points, dtype=torch.float64)
    w = torch.linspace(np.log(problem.weight / 30), np.log(problem.weight * 30), points, dtype=torch.float64)
    log_density = torch.empty(points, points, dtype=torch.float64)
    for i, log_noise in enumerate(s):
        signal = (transfer * problem.field.spectrum).flatten() / w.exp()[:, None]
        variance = signal + (2 * log_noise).exp()
        log_density[i] = -0.5 * (power.flatten() / variance + variance.log()).sum(-1)
    # The last two terms: both unknowns' densities are those of their logarithms.
    log_density += (NOISE_PRIOR.log_prob(s.exp()) + s)[:, None] + (WEIGHT_PRIOR.log_prob(w.exp()) + w)[None, :]
    mass = (log_density - log_density.max()).exp()
    return Grid(s, w, mass / mass.sum())


class Row(NamedTuple):
    """One unknown, in logarithms but for the quantiles."""

    unknown: str
    truth: float
    low: float
    high: float
    mean: float
    std: float
    exact_mean: float
    exact_std: float
    ess: float


def compare(problem: Problem, samples: dict[str, Tensor], exact: Grid) -> list[Row]:
    """What NUTS found beside what the integral says, of the logarithm of each unknown."""
    rows = []
    for unknown in UNKNOWNS:
        logs, mass = exact.marginal(unknown)
        mean = float((logs * mass).sum())
        std = float(((logs - mean) ** 2 * mass).sum() ** 0.5)
        drawn = samples[unknown].double().log()
        low, high = (float(q) for q in drawn.exp().quantile(torch.tensor([0.05, 0.95], dtype=torch.float64)))
        ess = float(effective_sample_size(drawn[None]))
        truth = float(getattr(problem, unknown))
        rows.append(Row(unknown, truth, low, high, float(drawn.mean()), float(drawn.std()), mean, std, ess))
    return rows


def table(rows: Sequence[Row]) -> str:
    """The comparison for a terminal."""
    lines = [
        f"{'':10} {'truth':>7} {'90 % interval':>17} {'log: NUTS':>16} {'exact':>16} {'off by':>10} {'ESS':>6}",
    ]
    for r in rows:
        off = (r.mean - r.exact_mean) / (r.exact_std / r.ess**0.5)
        lines.append(
            f"{r.unknown:10} {r.truth:7.3f} {r.low:8.3f} to {r.high:5.3f} {r.mean:8.3f} ± {r.std:5.3f} "
            f"{r.exact_mean:8.3f} ± {r.exact_std:5.3f} {off:+6.1f} MCSE {r.ess:6.0f}"
        )
    return "\n".join(lines)


def figure(path: str, problem: Problem, samples: dict[str, Tensor], exact: Grid) -> None:
    """Histograms of both unknowns over the exact densities; truth, data, mean and std of the image."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(2, 3, figsize=(10, 6), layout="constrained")
    for ax, unknown in zip(axes[:, 0], UNKNOWNS, strict=True):
        logs, mass = exact.marginal(unknown)
        values = logs.exp()
        density = mass / (values * (logs[1] - logs[0]))
        ax.hist(samples[unknown].numpy(), bins=40, density=True, alpha=0.5, label="NUTS")
        ax.plot(values.numpy(), density.numpy(), "k", label="image integrated out")
        ax.axvline(getattr(problem, unknown), color="C3", label="truth")
        ax.set(xlabel=unknown, yticks=[], xlim=np.quantile(samples[unknown].numpy(), [0.001, 0.999]) * [0.8, 1.2])
    axes[0, 0].legend()
    x = samples["x"]
    panels = {"truth": problem.image, "measured": problem.y, "posterior mean": x.mean(0), "posterior std": x.std(0)}
    for ax, (title, image) in zip(axes[:, 1:].flat, panels.items(), strict=True):
        shown = ax.imshow(image[0].numpy())
        ax.set(title=title, xticks=[], yticks=[])
        fig.colorbar(shown, ax=ax)
    fig.savefig(path, dpi=120)
    plt.close(fig)


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Run the example; the rows of its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=12, help="pixels a side (default %(default)s)")
    parser.add_argument("--noise-std", type=float, default=0.3, help="true noise level (default %(default)s)")
    parser.add_argument("--weight", type=float, default=1.5, help="true weight (default %(default)s)")
    parser.add_argument("--draws", type=int, default=500, help="draws that are kept (default %(default)s)")
    parser.add_argument("--warmup", type=int, default=250, help="draws before those (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of truth and sampler (default %(default)s)")
    parser.add_argument("--figure", metavar="FILE", help="write a figure")
    parser.add_argument("--progress", action="store_true", help="show Pyro's progress bar")
    args = parser.parse_args(arguments)
    problem = simulate(args.side, args.noise_std, args.weight, args.seed)
    begun = time.perf_counter()
    samples = sample(problem, args.draws, args.warmup, args.seed, progress=args.progress)
    seconds = time.perf_counter() - begun
    exact = integrate(problem)
    rows = compare(problem, samples, exact)
    print(f"{args.side} x {args.side} pixels, {args.draws} draws of noise level, weight and image in {seconds:.0f} s\n")
    print(table(rows))
    error = float((samples["x"].mean(0) - problem.image).square().mean().sqrt())
    spread = float(samples["x"].std(0).square().mean().sqrt())
    print(f"\nimage: root mean square error {error:.3f}, posterior std {spread:.3f}")
    if args.figure:
        figure(args.figure, problem, samples, exact)
        print(f"figure: {args.figure}")
    return rows


if __name__ == "__main__":
    main()
