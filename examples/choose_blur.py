"""Which blur, and which noise level, does a degraded image have? The evidence chooses, without seeing the truth.

An image is drawn from a prior, blurred and noised. For every width (or noise level) in question ``log_evidence``
estimates log p(y), the probability of what was measured under that width; the greatest wins, and a difference of 3 is
a factor of 20 in favour. How well some image fits the measurements cannot choose, for under any narrow blur and any low
noise level some image fits them perfectly; the evidence asks how likely the prior makes such an image.

The prior is a random texture of unknown contrast, a mixture of Gaussians, so that the evidence can be written out too:
the table has it beside the estimate.

    python examples/choose_blur.py --candidates 0.6 0.9 1.2 1.5 --figure evidence.png
    python examples/choose_blur.py --unknown noise --candidates 0.05 0.1 0.2
"""

import argparse
import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from potentia import Sum, annealers, energies, likelihoods
from potentia.inference import log_evidence

SIGMA_MAX, SIGMA_MIN = 10.0, 0.02


class Problem(NamedTuple):
    """What was simulated: the prior, the truth, and the measurements."""

    prior: energies.GaussianMixture
    image: Tensor
    y: Tensor
    blur: float
    noise_std: float

    def posterior(self, blur: float, noise_std: float) -> Sum:
        """The posterior, were these the width and the noise level."""
        return self.prior + likelihoods.Gaussian(self.y, operator(blur, self.image.shape[-1]), noise_std)


class Row(NamedTuple):
    """One candidate: the estimate with its standard error, and what it should be."""

    candidate: float
    log_evidence: float
    std_error: float
    exact: float


def operator(blur: float, side: int) -> likelihoods.GaussianBlur:
    """Blur of this width, in pixels."""
    return likelihoods.GaussianBlur(blur, (side, side)).double()


def textures(side: int) -> energies.GaussianMixture:
    """A random texture of unknown contrast: one of three, equally likely."""
    field = energies.GaussianField.power_law((1, side, side), 3.0, corner=0.15, dtype=torch.float64)
    correlation = torch.fft.ifft2(field.spectrum).real[0]
    at = torch.arange(side)
    lag = (at[:, None] - at[None, :]) % side
    covariance = correlation[lag[:, None, :, None], lag[None, :, None, :]].reshape(side**2, side**2)
    contrasts = torch.tensor([0.6, 1.0, 1.6], dtype=torch.float64)
    means = torch.zeros(3, 1, side, side, dtype=torch.float64)
    covariances = contrasts.square()[:, None, None] * covariance
    return energies.GaussianMixture(torch.full((3,), 1 / 3), means, covariances=covariances)


def simulate(side: int, blur: float, noise_std: float, seed: int) -> Problem:
    """Draw an image from the prior, blur it and add noise."""
    g = torch.Generator().manual_seed(seed)
    prior = textures(side)
    image = prior.sample(g, 1)[0]
    return Problem(prior, image, operator(blur, side).measure(image, noise_std, g), blur, noise_std)


def written_out(problem: Problem, blur: float, noise_std: float) -> float:
    """Log p(y) in closed form: given the component, y is Gaussian too."""
    side = problem.image.shape[-1]
    d = side**2
    matrix = operator(blur, side)(torch.eye(d, dtype=torch.float64).reshape(d, 1, side, side)).reshape(d, d).T
    basis, values = problem.prior.covariances.eigenvectors, problem.prior.covariances.eigenvalues
    logs = []
    for k, weight in enumerate(problem.prior.weights):
        covariance = (basis[k] * (values[k] + SIGMA_MIN**2)) @ basis[k].T
        total = matrix @ covariance @ matrix.T + noise_std**2 * torch.eye(d, dtype=torch.float64)
        density = torch.distributions.MultivariateNormal(matrix @ problem.prior.means[k].flatten(), total)
        logs.append(weight.log() + density.log_prob(problem.y.flatten()))
    return float(torch.stack(logs).logsumexp(0))


def compare(
    problem: Problem, unknown: str, candidates: Sequence[float], *, num_particles: int, num_runs: int, seed: int
) -> list[Row]:
    """The evidence of each candidate for the blur's width, or for the noise level, the other one known."""
    anneal = annealers.Geometric(SIGMA_MAX, SIGMA_MIN, 2)  # its ends; levels between are chosen on the way
    rows = []
    for candidate in candidates:
        blur, noise_std = (candidate, problem.noise_std) if unknown == "blur" else (problem.blur, candidate)
        found = log_evidence(
            problem.posterior(blur, noise_std),
            anneal,
            num_particles=num_particles,
            num_runs=num_runs,
            moves=4,
            seed=seed,
        )
        rows.append(Row(candidate, found.log_value, found.std_error, written_out(problem, blur, noise_std)))
    return rows


def best(rows: Sequence[Row]) -> Row:
    """The candidate with the greatest evidence."""
    return max(rows, key=lambda row: row.log_evidence)


def table(rows: Sequence[Row], unknown: str, truth: float) -> str:
    """The comparison for a terminal."""
    top = best(rows)
    lines = [f"{unknown:>8} {'log evidence':>20} {'exact':>10} {'off by':>8} {'below best':>11}"]
    for row in rows:
        off = (row.log_evidence - row.exact) / row.std_error
        marks = " <- chosen" * (row is top) + " (the truth)" * math.isclose(row.candidate, truth)
        lines.append(
            f"{row.candidate:8g} {row.log_evidence:12.2f} ± {row.std_error:5.2f} {row.exact:10.2f} {off:+5.1f} SE "
            f"{top.log_evidence - row.log_evidence:11.2f}{marks}"
        )
    return "\n".join(lines)


def figure(path: str, problem: Problem, rows: Sequence[Row], unknown: str) -> None:
    """Truth and measurements, and the evidence over the candidates."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
    for ax, (title, image) in zip(axes[:2], {"truth": problem.image, "measured": problem.y}.items(), strict=True):
        fig.colorbar(ax.imshow(image[0].numpy()), ax=ax)
        ax.set(title=title, xticks=[], yticks=[])
    at = [row.candidate for row in rows]
    axes[2].plot(at, [row.exact for row in rows], "k", label="exact")
    axes[2].errorbar(
        at, [row.log_evidence for row in rows], [2 * row.std_error for row in rows], fmt="o", label="estimate, 2 SE"
    )
    axes[2].axvline(problem.blur if unknown == "blur" else problem.noise_std, color="C3", label="truth")
    axes[2].set(xlabel=unknown, ylabel="log evidence")
    axes[2].legend()
    fig.savefig(path, dpi=120)
    plt.close(fig)


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Run the example; the rows of its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unknown", choices=("blur", "noise"), default="blur", help="what to choose (default blur)")
    parser.add_argument("--candidates", type=float, nargs="+", metavar="X", help="widths in pixels, or noise levels")
    parser.add_argument("--blur", type=float, default=0.9, help="true width in pixels (default %(default)s)")
    parser.add_argument("--noise-std", type=float, default=0.1, help="true noise level (default %(default)s)")
    parser.add_argument("--side", type=int, default=10, help="pixels a side (default %(default)s)")
    parser.add_argument("--particles", type=int, default=96, help="of each run (default %(default)s)")
    parser.add_argument("--runs", type=int, default=6, help="independent runs a candidate (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of truth and sampler (default %(default)s)")
    parser.add_argument("--figure", metavar="FILE", help="write a figure")
    args = parser.parse_args(arguments)
    candidates = args.candidates or (
        [0.5, 0.7, 0.9, 1.1, 1.3] if args.unknown == "blur" else [0.05, 0.07, 0.1, 0.14, 0.2]
    )
    problem = simulate(args.side, args.blur, args.noise_std, args.seed)
    begun = time.perf_counter()
    rows = compare(problem, args.unknown, candidates, num_particles=args.particles, num_runs=args.runs, seed=args.seed)
    seconds = time.perf_counter() - begun
    print(f"{args.side} x {args.side} pixels, {args.runs} runs of {args.particles} particles each, {seconds:.0f} s\n")
    print(table(rows, args.unknown, args.blur if args.unknown == "blur" else args.noise_std))
    if args.figure:
        figure(args.figure, problem, rows, args.unknown)
        print(f"\nfigure: {args.figure}")
    return rows


if __name__ == "__main__":
    main()
