"""Deblurring with an unknown blur and an unknown noise level, both sampled beside the image.

``inference.Gibbs`` draws in turn the image given blur and noise, the blur's width given the image (by slice sampling,
which needs no step size), and the noise level given both (exactly, from a Gamma distribution):

    x ~ N(0, spectrum),   width ~ Uniform(0.3, 3),   1 / noise_std^2 ~ Gamma(1, 0.01),
    y ~ N(blur_width x, noise_std^2)

The intervals of the image then count what is not known of blur and noise. Since all is Gaussian given the two, the
image can be integrated out by hand: the table compares the draws with that integral, and with the truth.

    python examples/blind_deblurring.py --draws 1000 --figure blind_deblurring.png
"""

import argparse
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Gamma, Uniform

import potentia as pt
from potentia import energies, inference, likelihoods

UNKNOWNS = ("blur", "noise_std")
NARROWEST, WIDEST = 0.3, 3.0
SHAPE, RATE = 1.0, 0.01


class Problem(NamedTuple):
    """What was simulated: the measurements, and the truth behind them."""

    field: energies.GaussianField
    y: Tensor
    image: Tensor
    blur: float
    noise_std: float

    def operator(self, width: float) -> likelihoods.GaussianBlur:
        """A blur of this width, in pixels."""
        return likelihoods.GaussianBlur(width, tuple(self.y.shape[-2:])).double()

    def likelihood(self, width: float) -> likelihoods.Gaussian:
        """With noise_std 1: ``NoiseStd`` multiplies it by the noise level."""
        return likelihoods.Gaussian(self.y, self.operator(width), noise_std=1.0)


def simulate(side: int, blur: float, noise_std: float, seed: int) -> Problem:
    """Draw an image, blur it and add noise."""
    g = torch.Generator().manual_seed(seed)
    field = energies.GaussianField.power_law((1, side, side), 2.5, corner=0.08, dtype=torch.float64)
    problem = Problem(field, field.sample(g, 1)[0], field.sample(g, 1)[0], blur, noise_std)
    return problem._replace(y=problem.operator(blur).measure(problem.image, noise_std, g))


def sample(problem: Problem, chains: int, draws: int, warmup: int, seed: int) -> pt.Ensemble:
    """Image, blur and noise level together; the ensemble has the latter two as ``parameter("blur")`` and so on."""
    between = Uniform(*torch.tensor([NARROWEST, WIDEST], dtype=torch.float64))
    sampler = inference.Gibbs({
        # One step draws the image exactly: given the other two, its posterior is Gaussian, and P its covariance.
        "image": inference.Langevin(steps_per_draw=1),
        "blur": inference.Unknown("gaussian", problem.likelihood, between, width=0.5),
        "noise_std": inference.NoiseStd("gaussian", shape=SHAPE, rate=RATE),
    })  # fmt: skip
    return pt.sample(
        problem.field + problem.likelihood(1.0),
        sampler,
        num_chains=chains,
        num_draws=draws,
        num_warmup=warmup,
        seed=seed,
        progress=False,
    )


class Grid(NamedTuple):
    """The exact density of both unknowns, on a grid and normalised there: mass (blur, noise_std)."""

    blur: Tensor
    noise_std: Tensor
    mass: Tensor

    def moments(self, unknown: str) -> tuple[float, float]:
        """Mean and standard deviation of one."""
        at = getattr(self, unknown)
        mass = self.mass.sum(1 if unknown == "blur" else 0)
        mean = float((at * mass).sum())
        return mean, math.sqrt(float((at.square() * mass).sum()) - mean**2)


def integrate(problem: Problem, points: int = 200) -> Grid:
    """The image integrated out: y's Fourier coefficients are independent, of variance |h|^2 spectrum + noise_std^2."""
    power = torch.fft.fft2(problem.y, norm="ortho").abs().square().flatten()
    delta = torch.zeros_like(problem.y)
    delta[..., 0, 0] = 1
    widths = torch.linspace(NARROWEST, WIDEST, points, dtype=torch.float64)
    levels = torch.linspace(problem.noise_std / 3, problem.noise_std * 3, points, dtype=torch.float64)
    log_density = torch.empty(points, points, dtype=torch.float64)
    for i, width in enumerate(widths):
        transfer = torch.fft.fft2(problem.operator(float(width))(delta)).abs().square()
        variance = (transfer * problem.field.spectrum).flatten() + levels[:, None] ** 2
        log_density[i] = -0.5 * (power / variance + variance.log()).sum(-1)
    # The prior is of 1 / noise_std^2: the last term is the change of variables.
    prior = Gamma(*torch.tensor([SHAPE, RATE], dtype=torch.float64)).log_prob(levels**-2) - 3 * levels.log()
    log_density += prior
    mass = (log_density - log_density.max()).exp()
    return Grid(widths, levels, mass / mass.sum())


class Row(NamedTuple):
    """One unknown: truth, draws, and what they should be."""

    unknown: str
    truth: float
    low: float
    high: float
    mean: float
    std: float
    exact_mean: float
    exact_std: float
    ess: float
    rhat: float

    @property
    def off(self) -> float:
        """How far the mean is off, in Monte-Carlo standard errors."""
        return (self.mean - self.exact_mean) / (self.exact_std / self.ess**0.5)


def compare(problem: Problem, ensemble: pt.Ensemble, exact: Grid) -> list[Row]:
    """The draws beside the integral."""
    rows = []
    for unknown in UNKNOWNS:
        drawn = torch.from_numpy(ensemble.parameter(unknown).values)
        low, high = drawn.flatten().quantile(torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist()
        mean, std = exact.moments(unknown)
        ess, rhat = float(inference.ess(drawn)), float(inference.rhat(drawn))
        truth = getattr(problem, unknown)
        rows.append(Row(unknown, truth, low, high, float(drawn.mean()), float(drawn.std()), mean, std, ess, rhat))
    return rows


def table(rows: Sequence[Row]) -> str:
    """The comparison for a terminal."""
    heads = f"{'90 % interval':>16} {'drawn':>15} {'exact':>15} {'off by':>10} {'ESS':>6} {'R-hat':>6}"
    lines = [f"{'':10} {'truth':>6} {heads}"]
    lines += [
        f"{r.unknown:10} {r.truth:6.3f} {r.low:7.3f} to {r.high:5.3f} {r.mean:7.3f} ± {r.std:5.3f} "
        f"{r.exact_mean:7.3f} ± {r.exact_std:5.3f} {r.off:+5.1f} MCSE {r.ess:6.0f} {r.rhat:6.3f}"
        for r in rows
    ]
    return "\n".join(lines)


def figure(path: str, problem: Problem, ensemble: pt.Ensemble, exact: Grid) -> None:
    """Both unknowns over their exact density; truth, measurements, mean and standard deviation."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 5, figsize=(17, 3.2), layout="constrained")
    blur, level = (ensemble.parameter(name).values.ravel() for name in UNKNOWNS)
    axes[0].plot(blur, level, ".", markersize=2, alpha=0.5, label="draws")
    axes[0].contour(exact.blur, exact.noise_std, exact.mass.T, colors="k", linewidths=0.8)
    axes[0].plot(problem.blur, problem.noise_std, "x", color="C3", markersize=10, label="truth")
    axes[0].set(xlabel="width of the blur", ylabel="noise std", title="draws, and exact density")
    margins = [(values.min() - values.std(), values.max() + values.std()) for values in (blur, level)]
    axes[0].set(xlim=margins[0], ylim=margins[1])
    axes[0].legend(loc="upper right")
    low, high = float(problem.image.min()), float(problem.image.max())
    panels = {"truth": problem.image, "measured": problem.y, "posterior mean": ensemble.samples().mean((0, 1))}
    for ax, (title, image) in zip(axes[1:], panels.items(), strict=False):
        shown = ax.imshow(image[0].numpy(), vmin=low, vmax=high)
        ax.set(title=title, xticks=[], yticks=[])
    fig.colorbar(shown, ax=axes[3], shrink=0.8)
    fig.colorbar(axes[4].imshow(ensemble.std().values[0], cmap="magma"), ax=axes[4], shrink=0.8)
    axes[4].set(title="posterior std", xticks=[], yticks=[])
    fig.savefig(path, dpi=120)
    plt.close(fig)


def main(arguments: Sequence[str] | None = None) -> tuple[list[Row], float]:
    """Run the example; the rows of its table, and the coverage of the image's 90 % intervals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=20, help="pixels a side (default %(default)s)")
    parser.add_argument("--blur", type=float, default=1.2, help="true width in pixels (default %(default)s)")
    parser.add_argument("--noise-std", type=float, default=0.2, help="true noise level (default %(default)s)")
    parser.add_argument("--chains", type=int, default=4, help="(default %(default)s)")
    parser.add_argument("--draws", type=int, default=300, help="of each chain (default %(default)s)")
    parser.add_argument("--warmup", type=int, default=100, help="draws before those (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of truth, noise and sampler (default %(default)s)")
    parser.add_argument("--figure", metavar="FILE", help="write a figure")
    args = parser.parse_args(arguments)

    problem = simulate(args.side, args.blur, args.noise_std, args.seed)
    ensemble = sample(problem, args.chains, args.draws, args.warmup, args.seed)
    exact = integrate(problem)
    rows = compare(problem, ensemble, exact)
    print(table(rows))
    coverage = ensemble.coverage(problem.image, 0.9)
    error = float((ensemble.samples().mean((0, 1)) - problem.image).square().mean().sqrt())
    print(f"\nimage: root mean square error {error:.3f}, 90 % intervals hold the truth in {coverage:.1%} of pixels")
    if args.figure:
        figure(args.figure, problem, ensemble, exact)
        print(f"figure: {args.figure}")
    return rows, coverage


if __name__ == "__main__":
    main()
