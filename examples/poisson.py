"""Imaging by few photons: counts of a blurred object, and images that are positive by construction.

The logarithm of the brightness is a Gaussian field, so that brightness is positive and varies by factors (a
log-Gaussian Cox process). The camera sees it through a blur and counts photons, ``--photons`` a pixel on average:

    x ~ N(0, spectrum),   y ~ Poisson(gain * blur(exp(x)) + background)

The forward model ``GaussianBlur @ Exponential`` is not linear and the noise not Gaussian, so that no step is exact. The
curvature about the most probable image, ``Preconditioner.gauss_newton``, makes a preconditioner that Hamiltonian Monte
Carlo (HMC) steps well with, and its Metropolis test keeps the draws right.

A posterior predictive check asks whether counts like these could come from the model at all. It sees misfit, and not
all that is wrong: where one forgets the background the image takes it up, and the check is passed, but the intervals
hold the truth too seldom.

    python examples/poisson.py --photons 3 --figure poisson.png
"""

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

import potentia as pt
from potentia import annealers, energies, inference, likelihoods
from potentia.inference import Preconditioner


class Exponential(likelihoods.ForwardModel):
    """A(x) = exp(x): from log brightness to brightness, pixel by pixel.

    Without ``vjp`` and ``jvp`` derivatives come from autograd, which is slower.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(*batch, C, H, W) -> the same."""
        return x.exp()

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        """The Jacobian is diagonal, exp(x)."""
        return x.exp() * v

    def jvp(self, x: Tensor, t: Tensor) -> Tensor:
        """The same."""
        return x.exp() * t

    def output_shape(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the image."""
        return tuple(input_shape)

    def input_shape(self, output_shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the measurement."""
        return tuple(output_shape)


class Problem(NamedTuple):
    """The prior and the truth, of the log brightness; the counts and what they are of."""

    prior: energies.GaussianField
    truth: Tensor
    counts: Tensor
    camera: likelihoods.ForwardModel
    gain: float
    background: float

    def likelihood(self, background: float) -> likelihoods.Poisson:
        """The counts under this background."""
        return likelihoods.Poisson(self.counts, self.camera, gain=self.gain, background=background)


def simulate(side: int, photons: float, background: float, seed: int) -> Problem:
    """Draw a log brightness, and count."""
    g = torch.Generator().manual_seed(seed)
    prior = energies.GaussianField.power_law((1, side, side), 3.0, corner=0.1, dtype=torch.float64)
    truth = prior.sample(g, 1)[0]
    camera = likelihoods.GaussianBlur(0.7, (side, side)).double() @ Exponential()
    gain = photons / float(truth.exp().mean())
    counts = torch.poisson(gain * camera(truth) + background, generator=g)
    return Problem(prior, truth, counts, camera, gain, background)


class Found(NamedTuple):
    """What came out under one background."""

    draws: Tensor
    coverage: float
    error: float
    acceptance: float
    worst_rhat: float
    predictive_p: float


def sample(problem: Problem, background: float, args: argparse.Namespace) -> Found:
    """Mode, preconditioner about it, HMC, and a predictive check."""
    posterior = problem.prior + problem.likelihood(background)
    # The prior is Gaussian and the mode the only one: a single scale will do, and L-BFGS does the work.
    mode = inference.map_estimate(posterior, annealers.Constant(1e-3), steps_per_level=1, init=problem.truth * 0).image
    ensemble = pt.sample(
        posterior,
        inference.HMC(preconditioner=Preconditioner.gauss_newton(posterior, mode), num_leapfrog=args.leapfrog),
        num_chains=args.chains,
        num_draws=args.draws,
        num_warmup=args.warmup,
        init=mode,
        seed=args.seed,
        progress=False,
    )
    draws = ensemble.samples()
    check = inference.posterior_predictive_check(posterior, ensemble, seed=args.seed)
    return Found(
        draws,
        ensemble.coverage(problem.truth, 0.9),
        float((draws.mean((0, 1)) - problem.truth).square().mean().sqrt()),
        float(ensemble.tree["sample_stats/acceptance_rate"].mean()),
        float(inference.rhat(draws).max()),
        check.p_value,
    )


def figure(path: str, problem: Problem, draws: Tensor) -> None:
    """Brightness: truth, counts, mean, relative spread, and two draws."""
    import matplotlib.pyplot as plt

    bright = draws.flatten(0, 1).exp()
    top = float(problem.truth.exp().quantile(0.99))
    panels = {
        "truth": (problem.truth.exp(), "gray", top),
        "counts": (problem.counts, "gray", None),
        "posterior mean": (bright.mean(0), "gray", top),
        "std / mean": (bright.std(0) / bright.mean(0), "magma", None),
        "a draw": (bright[0], "gray", top),
        "another": (bright[-1], "gray", top),
    }
    fig, axes = plt.subplots(2, 3, figsize=(10, 6.4), layout="constrained")
    for ax, (title, (image, colours, most)) in zip(axes.flat, panels.items(), strict=True):
        fig.colorbar(ax.imshow(image[0].numpy(), cmap=colours, vmin=0, vmax=most), ax=ax, shrink=0.9)
        ax.set(title=title, xticks=[], yticks=[])
    fig.savefig(path, dpi=120)
    plt.close(fig)


def main(arguments: Sequence[str] | None = None) -> dict[str, Found]:
    """Run the example; what was found under the right model and under the wrong one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=24, help="pixels a side (default %(default)s)")
    parser.add_argument("--photons", type=float, default=5.0, help="a pixel, of the object (default %(default)s)")
    parser.add_argument("--background", type=float, default=2.0, help="counts a pixel (default %(default)s)")
    parser.add_argument("--chains", type=int, default=4, help="(default %(default)s)")
    parser.add_argument("--draws", type=int, default=250, help="of each chain (default %(default)s)")
    parser.add_argument("--warmup", type=int, default=50, help="draws before those (default %(default)s)")
    parser.add_argument("--leapfrog", type=int, default=5, help="steps a draw (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of truth, counts and sampler (default %(default)s)")
    parser.add_argument("--figure", metavar="FILE", help="write a figure")
    args = parser.parse_args(arguments)
    problem = simulate(args.side, args.photons, args.background, args.seed)
    found = {
        "right": sample(problem, problem.background, args),
        "background forgotten": sample(problem, 0.0, args),
    }
    print(f"{'model':21} {'RMSE':>6} {'coverage':>9} {'acceptance':>11} {'worst R-hat':>12} {'predictive p':>13}")
    for name, f in found.items():
        mixing = f"{f.acceptance:11.2f} {f.worst_rhat:12.3f}"
        print(f"{name:21} {f.error:6.3f} {f.coverage:9.1%} {mixing} {f.predictive_p:13.3f}")
    if args.figure:
        figure(args.figure, problem, found["right"].draws)
        print(f"figure: {args.figure}")
    return found


if __name__ == "__main__":
    main()
