"""Tomography from few angles: an image of pieces, and which of its edges the measurements do not see.

A disc with inclusions is seen by parallel rays under ``--angles`` directions, far fewer than an exact inversion asks
for. Total variation is the prior, an image being made of pieces. How strongly it should weigh is not known beforehand,
and is sampled beside the image (``inference.Weight``): total variation is homogeneous of degree one, so that the weight
has a Gamma distribution given the image. The least-squares image, with a little of Tikhonov's regularisation, is what
the measurements give by themselves.

Image and weight are drawn in turn, and hold one another: given a thousand pixels the weight can move by a few per cent.
In the default setting ``sample`` warns of that, and rightly: pixels agree between chains, the weight not quite yet.
Twenty times the ``--draws`` make it quiet.

    python examples/ct.py --angles 12 --figure ct.png
"""

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

import potentia as pt
from potentia import energies, inference, likelihoods
from potentia.inference import Preconditioner

EPSILON = 0.02  # where total variation is made smooth, far below the steps between pieces


def phantom(side: int) -> Tensor:
    """A disc with three inclusions, values between 0 and 1: (1, side, side). Edges are a pixel wide."""
    at = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2) / (side / 2)
    y, x = torch.meshgrid(at, at, indexing="ij")

    def ellipse(cx: float, cy: float, rx: float, ry: float) -> Tensor:
        radius = (((x - cx) / rx).square() + ((y - cy) / ry).square()).sqrt()
        return ((1 - radius) * min(rx, ry) * side / 2 + 0.5).clamp(0, 1)

    image = 0.4 * ellipse(0, 0, 0.85, 0.75)
    image = image + 0.5 * ellipse(-0.35, 0.1, 0.16, 0.3)
    image = image - 0.3 * ellipse(0.3, -0.25, 0.22, 0.18)
    return (image + 0.4 * ellipse(0.3, 0.3, 0.14, 0.14))[None]


class Problem(NamedTuple):
    """The truth, and its sinogram under a likelihood."""

    truth: Tensor
    data: likelihoods.Gaussian


def simulate(side: int, angles: int, noise: float, seed: int) -> Problem:
    """Project and add noise, ``noise`` times the sinogram's greatest value."""
    g = torch.Generator().manual_seed(seed)
    truth = phantom(side)
    degrees = torch.arange(angles, dtype=torch.float64) * 180 / angles
    rays = likelihoods.Radon(degrees, (side, side))
    std = noise * float(rays(truth).max())
    return Problem(truth, likelihoods.Gaussian(rays.measure(truth, std, g), rays, std))


def sample(problem: Problem, start: Tensor, args: argparse.Namespace) -> pt.Ensemble:
    """Image and weight of the prior together, from ``start`` on."""
    tv = energies.TotalVariation(EPSILON).named("tv")
    # Degree one, and in as many dimensions as there are pixels but one: a constant costs nothing.
    law = inference.Homogeneous(problem.truth.numel() - 1, 1.0)
    sampler = inference.Gibbs({
        # Edges make the prior stiffer than the rays make the likelihood: a solver for the latter would not pay.
        "image": inference.HMC(num_leapfrog=args.leapfrog, steps_per_draw=3, preconditioner=Preconditioner.identity()),
        "weight": inference.Weight("tv", shape=1.0, rate=1e-2, normaliser=law),
    })  # fmt: skip
    return pt.sample(
        tv + problem.data,
        sampler,
        num_chains=args.chains,
        num_draws=args.draws,
        num_warmup=args.warmup,
        init=start,
        seed=args.seed,
        progress=False,
    )


class Found(NamedTuple):
    """How well the image was found."""

    psnr: float
    psnr_least_squares: float
    coverage: float
    weight: float
    worst_rhat: float


def psnr(image: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, of images between 0 and 1."""
    return float(-10 * torch.log10((image - truth).square().mean()))


def figure(path: str, problem: Problem, plain: Tensor, draws: Tensor) -> None:
    """Sinogram, truth, both estimates, spread, and where the error is."""
    import matplotlib.pyplot as plt

    mean, std = draws.mean((0, 1)), draws.flatten(0, 1).std(0)
    panels = {
        "truth": (problem.truth, "gray", 1.0),
        "sinogram": (problem.data.y, "gray", None),
        "least squares": (plain, "gray", 1.0),
        "posterior mean": (mean, "gray", 1.0),
        "posterior std": (std, "magma", None),
        "|mean - truth|": ((mean - problem.truth).abs(), "magma", float(2 * std.max())),
    }
    fig, axes = plt.subplots(2, 3, figsize=(10, 6.4), layout="constrained")
    for ax, (title, (image, colours, most)) in zip(axes.flat, panels.items(), strict=True):
        aspect = "auto" if title == "sinogram" else "equal"
        shown = ax.imshow(image[0].numpy(), cmap=colours, vmin=0, vmax=most, aspect=aspect)
        fig.colorbar(shown, ax=ax, shrink=0.9)
        ax.set(title=title, xticks=[], yticks=[])
    fig.savefig(path, dpi=120)
    plt.close(fig)


def main(arguments: Sequence[str] | None = None) -> Found:
    """Run the example; what it found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=32, help="pixels a side (default %(default)s)")
    parser.add_argument("--angles", type=int, default=12, help="directions (default %(default)s)")
    parser.add_argument("--noise", type=float, default=0.03, help="share of the greatest value (default %(default)s)")
    parser.add_argument("--chains", type=int, default=4, help="(default %(default)s)")
    parser.add_argument("--draws", type=int, default=150, help="of each chain (default %(default)s)")
    parser.add_argument("--warmup", type=int, default=100, help="draws before those (default %(default)s)")
    parser.add_argument("--leapfrog", type=int, default=20, help="steps of a path (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of noise and sampler (default %(default)s)")
    parser.add_argument("--figure", metavar="FILE", help="write a figure")
    args = parser.parse_args(arguments)

    problem = simulate(args.side, args.angles, args.noise, args.seed)
    form = problem.data.quadratic()
    assert form is not None
    plain = form.solve(form.linear, 10.0)
    ensemble = sample(problem, plain, args)
    draws = ensemble.samples()
    found = Found(
        psnr(draws.mean((0, 1)), problem.truth),
        psnr(plain, problem.truth),
        ensemble.coverage(problem.truth, 0.9),
        float(ensemble.parameter("weight").mean()),
        float(inference.rhat(draws).max()),
    )
    numbers = problem.data.y.numel() / problem.truth.numel()
    print(f"{args.angles} angles, {numbers:.0%} as many rays as pixels; total variation weighs {found.weight:.1f}\n")
    print(f"PSNR: posterior mean {found.psnr:.1f} dB, least squares {found.psnr_least_squares:.1f} dB")
    print(f"90 % intervals hold the truth in {found.coverage:.1%} of pixels; worst R-hat {found.worst_rhat:.3f}")
    if args.figure:
        figure(args.figure, problem, plain, draws)
        print(f"figure: {args.figure}")
    return found


if __name__ == "__main__":
    main()
