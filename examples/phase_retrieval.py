"""Phase retrieval: detectors that see how bright a diffraction pattern is, and what of the image stays hidden.

A complex image is multiplied by a few known masks of random phases, and the magnitudes of the Fourier transforms are
measured with noise. The prior is a complex Gaussian field.

Magnitudes do not change if the whole image is turned by a phase, and nor does this prior: the posterior is as likely
all the way round a circle. Chains that start anywhere end at different phases. R-hat rightly says that they do not
agree, and the mean over chains tends to nothing. Turned so that they agree with one of them, the chains tell the same
story. With a single mask there are other ambiguities, and chains that fit the magnitudes with another image: ``--masks
1``.

    python examples/phase_retrieval.py --masks 4 --figure phase_retrieval.png
"""

import argparse
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

import potentia as pt
from potentia import energies, inference, likelihoods


class Problem(NamedTuple):
    """The prior, the truth and the likelihood."""

    prior: energies.GaussianField
    truth: Tensor
    data: likelihoods.Gaussian


def simulate(side: int, masks: int, noise_std: float, seed: int) -> Problem:
    """Draw an image, and measure the magnitudes under random masks."""
    g = torch.Generator().manual_seed(seed)
    mean = torch.zeros(1, 1, 1, dtype=torch.complex128)
    prior = energies.GaussianField.power_law((1, side, side), 3.0, corner=0.1, mean=mean, dtype=torch.float64)
    truth = prior.sample(g, 1)[0]
    phases = 2 * math.pi * torch.rand(masks, side, side, generator=g, dtype=torch.float64)
    model = likelihoods.CodedDiffraction(torch.polar(torch.ones_like(phases), phases))
    z = model(truth)
    y = z + noise_std * torch.randn(z.shape, generator=g, dtype=torch.float64)
    return Problem(prior, truth, likelihoods.Gaussian(y, model, noise_std))


def turned(x: Tensor, to: Tensor) -> Tensor:
    """Images (*batch, C, H, W), each turned by the phase that brings it closest to ``to``."""
    product = (to * x.conj()).sum((-3, -2, -1), keepdim=True)
    return x * product / product.abs()


def sample(problem: Problem, args: argparse.Namespace) -> pt.Ensemble:
    """Chains from random draws of the prior, which come to the measurements by way of more noise than there is.

    Under the noise as it is, a chain may settle where many magnitudes are wrong: the posterior has other, far less
    likely modes. With ten times the noise they run into one another.
    """
    x = problem.prior.sample(torch.Generator().manual_seed(args.seed + 1), args.chains)
    data = problem.data
    with inference.without_diagnostics():  # it is to be expected that chains disagree
        for factor in (10.0, 3.0, 1.0):
            last = factor == 1
            ensemble = pt.sample(
                problem.prior + likelihoods.Gaussian(data.y, data.operator, factor * float(data.noise_std)),
                inference.HMC(num_leapfrog=args.leapfrog, steps_per_draw=2),
                num_chains=args.chains,
                num_draws=args.draws if last else 1,
                num_warmup=args.warmup,
                init=x,
                seed=args.seed,
                progress=False,
            )
            x = ensemble.samples()[:, -1]
    return ensemble


class Found(NamedTuple):
    """What the chains say, as they are and turned."""

    chi2: list[float]
    rhat: float
    rhat_turned: float
    error: float
    error_turned: float
    coverage: float


def judge(problem: Problem, draws: Tensor) -> Found:
    """Fit of each chain; R-hat, error of the mean and coverage, relative to the image's size."""
    with torch.no_grad():
        residual = problem.data.residual(draws.flatten(0, 1)).reshape(*draws.shape[:2], -1) / problem.data.noise_std
    chi2 = residual.square().mean((1, 2)).tolist()
    # To one draw, and not to the truth, which nobody has; then all of them to the truth, by one phase.
    agreed = turned(draws, draws[0, -1])
    told = turned(agreed.mean((0, 1)), problem.truth)
    every = turned(draws, told)
    size = problem.truth.abs().square().mean().sqrt()
    parts, truth = torch.view_as_real(every.flatten(0, 1)), torch.view_as_real(problem.truth)
    low, high = parts.quantile(torch.tensor([0.05, 0.95], dtype=torch.float64), dim=0)

    def worst(x: Tensor) -> float:
        return float(torch.stack([inference.rhat(x.real), inference.rhat(x.imag)]).quantile(0.99))

    def error(mean: Tensor) -> float:
        return float((mean - problem.truth).abs().square().mean().sqrt() / size)

    return Found(
        chi2,
        worst(draws),
        worst(agreed),
        error(draws.mean((0, 1))),
        error(told),
        float(((low <= truth) & (truth <= high)).double().mean()),
    )


def figure(path: str, problem: Problem, draws: Tensor) -> None:
    """Phases and magnitudes: of the truth, of chains as they ended, and of the mean once they agree."""
    import matplotlib.pyplot as plt

    mean = turned(turned(draws, draws[0, -1]).mean((0, 1)), problem.truth)
    panels = {"truth": problem.truth} | {f"chain {c}": draws[c, -1] for c in range(min(3, len(draws)))}
    panels |= {"mean of chains": draws.mean((0, 1)), "mean once they agree": mean}
    top = float(problem.truth.abs().max())
    fig, axes = plt.subplots(2, len(panels), figsize=(2.6 * len(panels), 5.2), layout="constrained")
    for column, (title, image) in zip(axes.T, panels.items(), strict=True):
        size = column[0].imshow(image[0].abs().numpy(), cmap="gray", vmin=0, vmax=top)
        phase = column[1].imshow(image[0].angle().numpy(), cmap="twilight", vmin=-math.pi, vmax=math.pi)
        column[0].set_title(title)
        for ax in column:
            ax.set(xticks=[], yticks=[])
    fig.colorbar(size, ax=axes[0, -1], shrink=0.8, label="magnitude")
    fig.colorbar(phase, ax=axes[1, -1], shrink=0.8, label="phase")
    fig.savefig(path, dpi=120)
    plt.close(fig)


def main(arguments: Sequence[str] | None = None) -> Found:
    """Run the example; what it found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=16, help="pixels a side (default %(default)s)")
    parser.add_argument("--masks", type=int, default=4, help="known masks (default %(default)s)")
    parser.add_argument("--noise-std", type=float, default=0.1, help="of the magnitudes (default %(default)s)")
    parser.add_argument("--chains", type=int, default=6, help="(default %(default)s)")
    parser.add_argument("--draws", type=int, default=150, help="of each chain (default %(default)s)")
    parser.add_argument("--warmup", type=int, default=60, help="draws before those, thrice (default %(default)s)")
    parser.add_argument("--leapfrog", type=int, default=15, help="steps of a path (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of truth, noise and sampler (default %(default)s)")
    parser.add_argument("--figure", metavar="FILE", help="write a figure")
    args = parser.parse_args(arguments)
    problem = simulate(args.side, args.masks, args.noise_std, args.seed)
    draws = sample(problem, args).samples()
    found = judge(problem, draws)
    phases = (draws[:, -1] * problem.truth.conj()).sum((-3, -2, -1)).angle().tolist()
    print("chain   phase against the truth   chi2 / measurement")
    for c, (phase, chi2) in enumerate(zip(phases, found.chi2, strict=True)):
        print(f"{c:5d} {math.degrees(phase):19.0f} deg {chi2:20.3f}")
    print(f"\n{'':18} {'as they are':>12} {'turned':>8}")
    print(f"{'R-hat':18} {found.rhat:12.2f} {found.rhat_turned:8.3f}   (99th percentile of pixels)")
    print(f"{'error of the mean':18} {found.error:12.3f} {found.error_turned:8.3f}   (relative)")
    print(f"\n90 % intervals, turned, hold the truth in {found.coverage:.1%} of real and imaginary parts")
    if args.figure:
        figure(args.figure, problem, draws)
        print(f"figure: {args.figure}")
    return found


if __name__ == "__main__":
    main()
