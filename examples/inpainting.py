"""A digit with a hole in it: what may have stood there, by a learned prior.

A "3" is drawn with a soft brush, a block of pixels is left out and the others are noised. The prior "digits-28",
learned of handwritten digits, comes with the package. ``ALPS`` anneals every draw from noise to an image that agrees
with both, so that the ensemble shows different ways to fill the hole: a single best image would hide that there are
any.

The annealer falls geometrically, to below the noise; the mean of the ensemble is the estimate with the least expected
square error, and the standard deviation should be large within the hole and small outside of it.

    python examples/inpainting.py --chains 32 --figure inpainting.png
"""

import argparse
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

import potentia as pt
from potentia import annealers, energies, inference, likelihoods

SIDE = 28
PEAK = 2.0  # images are in [-1, 1]


def digit() -> Tensor:
    """A "3" of two arcs, white on black, as the prior's training images are: (1, 28, 28) in [-1, 1]."""

    def arc(row: float, column: float, height: float, width: float, start: float, end: float) -> Tensor:
        angle = torch.linspace(math.radians(start), math.radians(end), 120)
        return torch.stack([row - height * angle.sin(), column + width * angle.cos()], -1)

    pen = torch.cat([arc(9.5, 13.5, 4.5, 4.5, 160, -90), arc(18.5, 13.5, 4.5, 5.0, 90, -160)])
    pixel = torch.stack(torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij"), -1).float()
    distance = (pixel[:, :, None] - pen).norm(dim=-1).amin(-1)
    return 2 * torch.sigmoid((1.5 - distance) / 0.35)[None] - 1


def mask_of(height: int, width: int) -> Tensor:
    """0 in a block right of the middle, 1 elsewhere: (28, 28)."""
    mask = torch.ones(SIDE, SIDE)
    top = (SIDE - height) // 2
    mask[top : top + height, SIDE // 2 : SIDE // 2 + width] = 0
    return mask


class Found(NamedTuple):
    """How well the digit was found, within the hole and outside of it."""

    psnr: float
    psnr_hole: float
    coverage_hole: float
    std_hole: float
    std_seen: float


def psnr(image: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio in dB."""
    return float(10 * torch.log10(PEAK**2 / (image - truth).square().mean()))


def figure(path: str, truth: Tensor, y: Tensor, mask: Tensor, draws: Tensor) -> None:
    """Truth, measurements, mean and standard deviation, and some draws."""
    import matplotlib.pyplot as plt

    blank = torch.where(mask > 0, y[0], torch.nan)
    panels = {"truth": truth[0], "measured": blank, "posterior mean": draws.mean(0)[0]}
    panels |= {"posterior std": draws.std(0)[0]} | {f"draw {k + 1}": x[0] for k, x in enumerate(draws[:4])}
    fig, axes = plt.subplots(2, 4, figsize=(11, 5.6), layout="constrained")
    colours = plt.get_cmap("gray").with_extremes(bad="C0")
    for ax, (title, image) in zip(axes.flat, panels.items(), strict=False):
        if title == "posterior std":
            fig.colorbar(ax.imshow(image.numpy(), cmap="magma", vmin=0), ax=ax, shrink=0.8)
        else:
            ax.imshow(image.numpy(), cmap=colours, vmin=-1, vmax=1)
        ax.set(title=title, xticks=[], yticks=[])
    fig.savefig(path, dpi=120)
    plt.close(fig)


def main(arguments: Sequence[str] | None = None) -> Found:
    """Run the example; what it found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hole", type=int, nargs=2, default=(12, 9), metavar=("H", "W"), help="pixels (default 12 9)")
    parser.add_argument("--noise-std", type=float, default=0.1, help="noise level (default %(default)s)")
    parser.add_argument("--levels", type=int, default=30, help="of the annealer (default %(default)s)")
    parser.add_argument("--steps", type=int, default=3, help="a level (default %(default)s)")
    parser.add_argument("--chains", type=int, default=24, help="one draw each (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of noise and sampler (default %(default)s)")
    parser.add_argument("--figure", metavar="FILE", help="write a figure")
    args = parser.parse_args(arguments)

    truth, mask = digit(), mask_of(*args.hole)
    operator = likelihoods.Mask(mask)
    y = operator.measure(truth, args.noise_std, torch.Generator().manual_seed(args.seed))
    posterior = energies.load("digits-28") + likelihoods.Gaussian(y, operator, args.noise_std)
    anneal = annealers.Geometric(10.0, 0.02, args.levels, steps=args.steps)
    ensemble = pt.sample(posterior, inference.ALPS(anneal), num_chains=args.chains, seed=args.seed, progress=False)

    draws, hole = ensemble.samples()[:, 0], mask[None] == 0
    mean, std = draws.mean(0), draws.std(0)
    found = Found(
        psnr(mean, truth),
        psnr(mean[hole], truth[hole]),
        ensemble.coverage(truth, 0.9, mask=hole),
        float(std[hole].mean()),
        float(std[~hole].mean()),
    )
    print(f"{posterior}\n\n{args.chains} draws of {anneal.total_steps(1)} steps each")
    print(f"PSNR {found.psnr:.1f} dB, within the hole {found.psnr_hole:.1f} dB")
    print(f"within the hole 90 % intervals hold the truth in {found.coverage_hole:.1%} of pixels")
    print(f"standard deviation {found.std_hole:.3f} within the hole, {found.std_seen:.3f} outside")
    if args.figure:
        figure(args.figure, truth, y, mask, draws)
        print(f"figure: {args.figure}")
    return found


if __name__ == "__main__":
    main()
