"""A prior of your own: as a function in one line, or as a class with its gradient, checked either way.

The prior says that neighbouring pixels differ little and sometimes much, by the logarithm of the hyperbolic cosine of
their differences d,

    U(x) = weight * sum log cosh(d / scale),

a parabola for small differences and a straight line for edges. ``energies.Function`` takes it as it is written, and
autograd gives the gradient. A subclass of ``potentia.Energy`` may bring a gradient in closed form, which is faster; and
may bring a wrong one. ``potentia.testing.check_energy`` tells, by differences of the values.

Blocks are denoised under it by the Metropolis-adjusted Langevin algorithm.

    python examples/custom_energy.py --figure custom_energy.png
"""

import argparse
import math
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

import potentia as pt
from potentia import energies, inference, likelihoods, testing

WEIGHT, SCALE = 0.7, 0.05


def differences(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each pixel from its neighbours on the right and below."""
    return torch.diff(x, dim=-1), torch.diff(x, dim=-2)


def log_cosh(d: Tensor) -> Tensor:
    """Log cosh d, which does not overflow: |d| + log(1 + e^(-2 |d|)) - log 2."""
    return torch.logaddexp(d, -d) - math.log(2.0)


def edges(x: Tensor) -> Tensor:
    """U(x) in nats: (*batch, C, H, W) -> (*batch,). Summed over the last three dimensions, never over the batch."""
    return WEIGHT * sum(log_cosh(d / SCALE).sum((-3, -2, -1)) for d in differences(x))


class Edges(pt.Energy):
    """The same as a class, with a closed-form gradient: differences of the slopes tanh(d / scale).

    Shapes: x (*batch, C, H, W), real; returns (*batch,). Units: scale in the image's unit; U in nats.
    """

    default_name: ClassVar[str] = "edges"

    def __init__(self, weight: float = WEIGHT, scale: float = SCALE) -> None:
        super().__init__()
        self.weight, self.scale = weight, scale

    @property
    def is_complex(self) -> bool:
        """Real images only: complex ones are refused with a sentence that says so."""
        return False

    def forward(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        """U(x); sigma is for priors with noise scales, and ignored here."""
        self.check(x)
        dx, dy = differences(x)
        return (
            self.weight
            * (log_cosh(dx / self.scale).sum((-3, -2, -1)) + log_cosh(dy / self.scale).sum((-3, -2, -1))).double()
        )

    def value_and_grad(self, x: Tensor, sigma: float | Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Both at once; ``grad`` calls this."""
        with torch.no_grad():
            value = self(x)
            slopes = [self.weight / self.scale * torch.tanh(d / self.scale) for d in differences(x)]
            grad = torch.zeros_like(x)
            grad[..., :, 1:] += slopes[0]
            grad[..., :, :-1] -= slopes[0]
            grad[..., 1:, :] += slopes[1]
            grad[..., :-1, :] -= slopes[1]
        return value, grad


class WrongEdges(Edges):
    """The mistake to find: a gradient that forgets the scale. Samplers run on it, and draw something else."""

    def value_and_grad(self, x: Tensor, sigma: float | Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The right value, and a gradient that is not its derivative."""
        value, grad = super().value_and_grad(x)
        return value, grad * self.scale


def complaint(energy: pt.Energy, x: Tensor) -> str | None:
    """What ``check_energy`` has to say against an energy: None if nothing."""
    try:
        testing.check_energy(energy, x)
    except AssertionError as err:
        return str(err)
    return None


def blocks(side: int, seed: int) -> Tensor:
    """Rectangles of different brightness, one over the other, (1, side, side)."""
    g = torch.Generator().manual_seed(seed)
    image = torch.full((1, side, side), 0.5, dtype=torch.float64)
    for brightness in (0.2, 0.8, 0.35, 0.65, 0.1, 0.9):
        height, width = torch.randint(side // 5, side // 2, (2,), generator=g).tolist()
        top, left = torch.randint(0, side - side // 4, (2,), generator=g).tolist()
        image[0, top : top + height, left : left + width] = brightness
    return image


class Found(NamedTuple):
    """How well the blocks were found, and what the checks said of the right and of the wrong class."""

    psnr: float
    psnr_measured: float
    coverage: float
    worst_rhat: float
    complaint: str | None
    complaint_wrong: str | None


def psnr(image: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, of images between 0 and 1."""
    return float(-10 * torch.log10((image - truth).square().mean()))


def figure(path: str, panels: dict[str, Tensor]) -> None:
    """Images side by side; the last one, the standard deviation, in colours of its own."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, len(panels), figsize=(3 * len(panels), 3), layout="constrained")
    for ax, (title, image) in zip(axes, panels.items(), strict=True):
        last = title == "posterior std"
        shown = ax.imshow(image[0].numpy(), cmap="magma" if last else "gray", vmin=0, vmax=None if last else 1)
        ax.set(title=title, xticks=[], yticks=[])
        fig.colorbar(shown, ax=ax, shrink=0.8)
    fig.savefig(path, dpi=120)
    plt.close(fig)


def main(arguments: Sequence[str] | None = None) -> Found:
    """Run the example; what it found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=32, help="pixels a side (default %(default)s)")
    parser.add_argument("--noise-std", type=float, default=0.1, help="noise level (default %(default)s)")
    parser.add_argument("--chains", type=int, default=4, help="(default %(default)s)")
    parser.add_argument("--draws", type=int, default=200, help="of each chain (default %(default)s)")
    parser.add_argument("--warmup", type=int, default=100, help="draws before those (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of truth, noise and sampler (default %(default)s)")
    parser.add_argument("--figure", metavar="FILE", help="write a figure")
    args = parser.parse_args(arguments)

    truth = blocks(args.side, args.seed)
    g = torch.Generator().manual_seed(args.seed)
    y = likelihoods.Identity().measure(truth, args.noise_std, g)

    prior = Edges()
    some = torch.rand(3, 1, 5, 6, generator=g, dtype=torch.float64)
    said, said_wrong = complaint(prior, some), complaint(WrongEdges(), some)
    print(f"check_energy of Edges: {said or 'no complaints'}\nand of WrongEdges: {said_wrong}\n")
    shorter = energies.Function(edges)
    assert torch.allclose(shorter.grad(some), prior.grad(some)), "the one-liner and the class should agree"

    posterior = prior + likelihoods.Gaussian(y, noise_std=args.noise_std)
    print(posterior)
    ensemble = pt.sample(
        posterior,
        inference.HMC(steps_per_draw=4),
        num_chains=args.chains,
        num_draws=args.draws,
        num_warmup=args.warmup,
        seed=args.seed,
        progress=False,
    )
    draws = ensemble.samples()
    mean, std = draws.mean((0, 1)), draws.flatten(0, 1).std(0)
    found = Found(
        psnr(mean, truth),
        psnr(y, truth),
        ensemble.coverage(truth, 0.9),
        float(inference.rhat(draws).max()),
        said,
        said_wrong,
    )
    print(f"\nPSNR {found.psnr:.1f} dB, of the measurements {found.psnr_measured:.1f} dB")
    print(f"90 % intervals hold the truth in {found.coverage:.1%} of pixels; worst R-hat {found.worst_rhat:.3f}")
    if args.figure:
        figure(args.figure, {"truth": truth, "measured": y, "posterior mean": mean, "posterior std": std})
        print(f"figure: {args.figure}")
    return found


if __name__ == "__main__":
    main()
