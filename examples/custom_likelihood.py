"""Noise of your own: measurements of which a few have gone astray, as by cosmic rays or dead pixels.

With probability p a measurement has ``wide`` times the noise:

    y ~ (1 - p) N(A x, noise_std^2) + p N(A x, (wide noise_std)^2).

A subclass of ``likelihoods.NoiseModel`` gives, for each measurement, the misfit, its slope and its curvature in z = A
x, a draw, and the constant that makes it a density. Whatever is built on likelihoods takes it then: operators,
samplers, predictive checks. ``potentia.testing.check_energy`` compares slope and misfit.

The same image is sampled under Gaussian noise of the same variance. That is the best a Gaussian can do, and it trusts
stray pixels as much as good ones.

    python examples/custom_likelihood.py --stray 0.1 --figure custom_likelihood.png
"""

import argparse
import math
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

import potentia as pt
from potentia import energies, inference, likelihoods, testing
from potentia.inference import Preconditioner


class Contaminated(likelihoods.NoiseModel):
    """Two kinds of Gaussian noise, one of them rare and ``wide`` times as strong; L(x) = -log p(y | x), exactly.

    Shapes: y as A gives it, real; x (*batch, C, H, W); returns (*batch,). Units: noise_std as y; L in nats.
    Raises: ValueError as ``NoiseModel``.
    """

    default_name: ClassVar[str] = "contaminated"

    def __init__(
        self,
        y: Tensor,
        operator: likelihoods.ForwardModel | None = None,
        *,
        noise_std: float,
        stray: float = 0.1,
        wide: float = 10.0,
    ) -> None:
        super().__init__(y, operator)
        self.noise_std, self.stray, self.wide = noise_std, stray, wide

    def _logs(self, r: Tensor) -> tuple[Tensor, Tensor]:
        """Log densities of a residual, good and stray, each with its probability."""
        constant = 0.5 * math.log(2 * math.pi) + math.log(self.noise_std)
        good = math.log(1 - self.stray) - constant - 0.5 * (r / self.noise_std).square()
        bad = math.log(self.stray / self.wide) - constant - 0.5 * (r / (self.wide * self.noise_std)).square()
        return good, bad

    def chance(self, z: Tensor, y: Tensor) -> Tensor:
        """The probability that a measurement is a stray one, given what it should be."""
        good, bad = self._logs(y - z)
        return torch.sigmoid(bad - good)

    def entries(self, z: Tensor, y: Tensor) -> Tensor:
        """-log p(y | z) of each measurement."""
        return -torch.logaddexp(*self._logs(y - z))

    def slopes(self, z: Tensor, y: Tensor) -> Tensor:
        """The residual over the variance: that of good ones and that of stray ones, by their probabilities."""
        chance = self.chance(z, y)
        return (z - y) / self.noise_std**2 * (1 - chance + chance / self.wide**2)

    def curvatures(self, z: Tensor) -> Tensor:
        """That of the good ones: the Fisher information, but for where the two kinds are hard to tell apart."""
        return z.new_tensor((1 - self.stray + self.stray / self.wide**2) / self.noise_std**2)

    def draw(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """A measurement for each z."""
        bad = torch.rand(z.shape, generator=generator, dtype=z.dtype) < self.stray
        noise = torch.randn(z.shape, generator=generator, dtype=z.dtype)
        return z + self.noise_std * torch.where(bad, self.wide, 1.0) * noise

    def log_normalisers(self) -> Tensor:
        """Zero: ``entries`` lacks no constant."""
        return torch.zeros((), dtype=torch.float64)

    def parameters_text(self) -> str:
        """What the printed tree says of the noise."""
        return f"noise_std {self.noise_std:g}, {self.stray:.0%} with {self.wide:g} times as much"


class Problem(NamedTuple):
    """The prior, and what was simulated from it."""

    prior: energies.GaussianField
    truth: Tensor
    data: Contaminated
    strays: Tensor


def simulate(side: int, noise_std: float, stray: float, seed: int) -> Problem:
    """Draw a field, blur it a little, and add noise; ``strays`` says where it came out too large to be good noise."""
    g = torch.Generator().manual_seed(seed)
    prior = energies.GaussianField.power_law((1, side, side), 3.0, corner=0.1, dtype=torch.float64)
    truth = prior.sample(g, 1)[0]
    blur = likelihoods.GaussianBlur(0.7, (side, side)).double()
    empty = Contaminated(torch.zeros_like(truth), blur, noise_std=noise_std, stray=stray)
    y = empty.simulate(truth, g)
    strays = (y - blur(truth)).abs() > 4 * noise_std
    return Problem(prior, truth, Contaminated(y, blur, noise_std=noise_std, stray=stray), strays)


class Row(NamedTuple):
    """What one noise model makes of the measurements."""

    noise: str
    rmse: float
    coverage: float
    predictive_p: float
    worst_rhat: float


def sample(problem: Problem, data: pt.Likelihood, args: argparse.Namespace) -> tuple[Row, Tensor]:
    """Sample the posterior under this noise model, and compare with the truth."""
    posterior = problem.prior + data
    # The curvature of what is not quadratic, about the image: it takes the same P to the samplers of both models.
    metric = Preconditioner.gauss_newton(posterior, problem.truth * 0)
    ensemble = pt.sample(
        posterior,
        inference.HMC(preconditioner=metric, steps_per_draw=3),
        num_chains=args.chains,
        num_draws=args.draws,
        num_warmup=args.warmup,
        seed=args.seed,
        progress=False,
    )
    draws = ensemble.samples()
    mean = draws.mean((0, 1))
    error = float((mean - problem.truth).square().mean().sqrt())
    # The greatest residual: what sees strays. Statistics of one's own are functions of measurements and images.
    check = inference.posterior_predictive_check(
        posterior, ensemble, lambda y, x: (y - data.operator(x)).abs().amax((-3, -2, -1)), seed=args.seed
    )
    rhat = float(inference.rhat(draws).max())
    return Row(data.name, error, ensemble.coverage(problem.truth, 0.9), check.p_value, rhat), mean


def figure(path: str, problem: Problem, means: dict[str, Tensor], chance: Tensor) -> None:
    """Truth and measurements, both means, and which pixels are held for stray."""
    import matplotlib.pyplot as plt

    low, high = float(problem.truth.min()), float(problem.truth.max())
    panels = {"truth": problem.truth, "measured": problem.data.y} | {f"mean, {k}": v for k, v in means.items()}
    fig, axes = plt.subplots(1, len(panels) + 1, figsize=(15, 3.2), layout="constrained")
    for ax, (title, image) in zip(axes, panels.items(), strict=False):
        shown = ax.imshow(image[0].numpy(), vmin=low, vmax=high)
        ax.set(title=title, xticks=[], yticks=[])
    fig.colorbar(shown, ax=axes[len(panels) - 1], shrink=0.8)
    shown = axes[-1].imshow(chance[0].numpy(), cmap="magma", vmin=0, vmax=1)
    axes[-1].set(title="probability of a stray", xticks=[], yticks=[])
    fig.colorbar(shown, ax=axes[-1], shrink=0.8)
    fig.savefig(path, dpi=120)
    plt.close(fig)


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Run the example; a row for each noise model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=32, help="pixels a side (default %(default)s)")
    parser.add_argument("--noise-std", type=float, default=0.2, help="of good measurements (default %(default)s)")
    parser.add_argument("--stray", type=float, default=0.1, help="share of stray ones (default %(default)s)")
    parser.add_argument("--chains", type=int, default=4, help="(default %(default)s)")
    parser.add_argument("--draws", type=int, default=200, help="of each chain (default %(default)s)")
    parser.add_argument("--warmup", type=int, default=100, help="draws before those (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of truth, noise and sampler (default %(default)s)")
    parser.add_argument("--figure", metavar="FILE", help="write a figure")
    args = parser.parse_args(arguments)

    problem = simulate(args.side, args.noise_std, args.stray, args.seed)
    data, blur = problem.data, problem.data.operator
    testing.check_energy(data, problem.prior.sample(torch.Generator().manual_seed(1), 2))
    std = args.noise_std * math.sqrt(1 + args.stray * (data.wide**2 - 1))
    found = {d.name: sample(problem, d, args) for d in (data, likelihoods.Gaussian(data.y, blur, std))}
    print(f"{'noise model':14} {'RMSE':>7} {'coverage':>9} {'predictive p':>13} {'worst R-hat':>12}")
    for row, _ in found.values():
        print(f"{row.noise:14} {row.rmse:7.3f} {row.coverage:9.1%} {row.predictive_p:13.3f} {row.worst_rhat:12.3f}")
    chance = data.chance(blur(found[data.name][1]), data.y)
    hits = float((chance > 0.5)[problem.strays].double().mean())
    print(f"\nof {int(problem.strays.sum())} stray measurements beyond 4 std, {hits:.0%} are known as such")
    if args.figure:
        figure(args.figure, problem, {name: mean for name, (_, mean) in found.items()}, chance)
        print(f"figure: {args.figure}")
    return [row for row, _ in found.values()]


if __name__ == "__main__":
    main()
