"""A schedule of your own: levels one by one, or a family of annealers by formula.

``ALPS`` walks from large noise scales to small ones. Where the scales should lie, how many steps each deserves and
where to end is the annealer's to say. It is any sequence of ``annealers.Level``: list them in an ``annealers.Ladder``,
or give a formula to a subclass of ``annealers.Annealer``.

A random field is measured through a blur, so that the posterior is Gaussian and its spread is known exactly. Annealers
of equally many steps are compared by the spread that they give. Coarse textures settle in a step or two at large
scales; the finest one, which the blur hides and the prior alone knows, settles slowly and only at scales near its own
standard deviation. An annealer that knows the prior's spectrum therefore hurries down to there and spends two thirds of
its steps from there on.

    python examples/custom_annealer.py --levels 24 --figure custom_annealer.png
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

import potentia as pt
from potentia import annealers, energies, inference, likelihoods
from potentia.annealers import Annealer, Ladder, Level


@dataclass(frozen=True, eq=False, repr=False)
class AtTextures(Annealer):
    """Geometric scales, a third of them down to ``above`` times a field's finest texture, the others below that.

    It begins above the coarsest texture and ends at ``end`` times the finest: their standard deviations are the roots
    of the field's spectrum.

    Raises: ValueError for fewer than six levels.
    """

    field: energies.GaussianField
    num_levels: int
    steps: int = 2
    above: float = 1.5
    end: float = 0.2

    def _build(self) -> Sequence[Level]:
        if self.num_levels < 6:
            raise ValueError(f"AtTextures: num_levels must be six or more, got {self.num_levels}")
        std = self.field.spectrum.sqrt()
        coarsest, finest = float(std.max()), float(std.min())
        hurried = self.num_levels // 3
        down = annealers.Geometric(3 * coarsest, self.above * finest, hurried, steps=self.steps)
        # One more and without the first, at which the levels above have ended.
        below = annealers.Geometric(self.above * finest, self.end * finest, self.num_levels - hurried + 1)
        return [*down, *(Level(sigma, steps=self.steps) for sigma in below.sigmas[1:])]


def schedules(field: energies.GaussianField, num_levels: int) -> dict[str, Annealer]:
    """The annealers to compare, each of as many steps as the others."""
    own = AtTextures(field, num_levels)
    # Levels one by one, as they might come from a file; "+" and slices make ladders too.
    halving = Ladder([Level(max(own.sigma_min, own.sigma_max / 2**k), steps=own.steps) for k in range(num_levels)])
    return {
        "Karras": annealers.Karras(own.sigma_max, own.sigma_min, num_levels, steps=own.steps),
        "halving": halving,
        "geometric": annealers.Geometric(own.sigma_max, own.sigma_min, num_levels, steps=own.steps),
        "at textures": own,
    }


class Problem(NamedTuple):
    """The prior, the truth and the measurements."""

    field: energies.GaussianField
    truth: Tensor
    data: likelihoods.Gaussian


def simulate(side: int, blur: float, noise_std: float, seed: int) -> Problem:
    """Draw a field, blur it and add noise."""
    g = torch.Generator().manual_seed(seed)
    field = energies.GaussianField.power_law((1, side, side), 3.0, corner=0.05, dtype=torch.float64)
    operator = likelihoods.GaussianBlur(blur, (side, side)).double()
    truth = field.sample(g, 1)[0]
    return Problem(field, truth, likelihoods.Gaussian(operator.measure(truth, noise_std, g), operator, noise_std))


def exact(problem: Problem) -> tuple[Tensor, float]:
    """Mean of the posterior, and the standard deviation that every pixel has: both terms are quadratic forms."""
    form = (problem.field + problem.data).quadratic()
    assert form is not None
    delta = torch.zeros_like(problem.truth)
    delta[..., 0, 0] = 1
    return form.solve(form.linear), float(form.solve(delta)[0, 0, 0].sqrt())


class Row(NamedTuple):
    """One annealer: its steps, and what its draws say."""

    name: str
    steps: int
    sigma_min: float
    spread: float
    coverage: float
    off: float


def compare(problem: Problem, num_levels: int, chains: int, seed: int) -> tuple[list[Row], dict[str, Annealer]]:
    """Draw under each annealer, and compare mean and spread with the exact ones."""
    mean, std = exact(problem)
    rows, ladders = [], schedules(problem.field, num_levels)
    for name, ladder in ladders.items():
        sampler = inference.ALPS(ladder)
        ensemble = pt.sample(problem.field + problem.data, sampler, num_chains=chains, seed=seed, progress=False)
        drawn = ensemble.samples()[:, 0]
        spread = float(drawn.var(0).mean().sqrt()) / std
        off = float((drawn.mean(0) - mean).square().mean().sqrt()) / (std / chains**0.5)
        rows.append(
            Row(name, sampler.steps_per_draw, ladder.sigma_min, spread, ensemble.coverage(problem.truth, 0.9), off)
        )
    return rows, ladders


def table(rows: Sequence[Row]) -> str:
    """The comparison for a terminal."""
    lines = [f"{'annealer':15} {'steps':>6} {'ends at':>8} {'spread':>8} {'coverage':>9} {'mean off by':>12}"]
    lines += [
        f"{r.name:15} {r.steps:6d} {r.sigma_min:8.3g} {r.spread:8.3f} {r.coverage:9.1%} {r.off:7.2f} MCSE" for r in rows
    ]
    return "\n".join(lines)


def figure(path: str, problem: Problem, rows: Sequence[Row], ladders: dict[str, Annealer]) -> None:
    """The schedules over their steps, beside the field's textures; and the spread of each."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    for name, ladder in ladders.items():
        sigmas = [level.sigma for level in ladder for _ in range(level.steps or 1)]
        axes[0].semilogy(sigmas, drawstyle="steps-post", label=name)
    std = problem.field.spectrum.sqrt()
    axes[0].axhspan(float(std.min()), float(std.max()), color="k", alpha=0.1, label="the field's textures")
    axes[0].set(xlabel="step", ylabel="noise scale")
    axes[0].legend()
    axes[1].bar([r.name for r in rows], [r.spread for r in rows])
    axes[1].axhline(1.0, color="k")
    axes[1].set(ylabel="std of the draws / exact std", ylim=(0.9, max(r.spread for r in rows) + 0.02))
    fig.savefig(path, dpi=120)
    plt.close(fig)


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Run the example; the rows of its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=24, help="pixels a side (default %(default)s)")
    parser.add_argument("--blur", type=float, default=1.0, help="width in pixels (default %(default)s)")
    parser.add_argument("--noise-std", type=float, default=0.1, help="noise level (default %(default)s)")
    parser.add_argument("--levels", type=int, default=24, help="of the annealers (default %(default)s)")
    parser.add_argument("--chains", type=int, default=100, help="draws, one a chain (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of truth, noise and sampler (default %(default)s)")
    parser.add_argument("--figure", metavar="FILE", help="write a figure")
    args = parser.parse_args(arguments)
    problem = simulate(args.side, args.blur, args.noise_std, args.seed)
    rows, ladders = compare(problem, args.levels, args.chains, args.seed)
    print(f"{args.chains} draws of {args.side} x {args.side} pixels; spread and coverage should be 1 and 90 %\n")
    print(table(rows))
    if args.figure:
        figure(args.figure, problem, rows, ladders)
        print(f"\nfigure: {args.figure}")
    return rows


if __name__ == "__main__":
    main()
