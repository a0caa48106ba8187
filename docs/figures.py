"""The pictures of the concept pages, each in a light and a dark variant.

    python docs/figures.py                  # all of them, into docs/pictures: about a minute
    python docs/figures.py sampler annealer

Everything drawn is computed with the package, from fixed seeds.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import potentia as pt
from potentia import annealers, energies, inference, likelihoods

FOLDER = Path(__file__).parent / "pictures"
REACH = 3.2  # half the side of the square in which images of two pixels are drawn
NOISE = 0.5

Axes = Any
Figure = Any


class Colours(NamedTuple):
    """A variant: the page's paper and ink, and what stands out on it."""

    suffix: str
    paper: str
    ink: str
    faint: str
    first: str
    second: str
    third: str


LIGHT = Colours("", "#ffffff", "#1c1e21", "#8a8f98", "#0a58ca", "#c2410c", "#15803d")
DARK = Colours("-dark", "#131416", "#dfe2e7", "#8a8f98", "#79aef7", "#fb923c", "#4ade80")


@contextmanager
def style(colours: Colours) -> Iterator[None]:
    """Matplotlib's settings for a variant."""
    import matplotlib.pyplot as plt

    inks = ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color", "axes.edgecolor")
    settings = {
        "figure.facecolor": colours.paper,
        "axes.facecolor": colours.paper,
        "savefig.facecolor": colours.paper,
        "legend.frameon": False,
        "font.size": 11,
        "axes.titlesize": 12,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": plt.cycler(color=[colours.first, colours.second, colours.third, colours.faint]),
        **dict.fromkeys(inks, colours.ink),
    }
    with plt.rc_context(settings):
        yield


def panels(columns: int, rows: int = 1, width: float = 9.0, height: float = 3.1) -> tuple[Figure, Any]:
    """A figure and its axes, one row of them as a list."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(rows, columns, figsize=(width, height), layout="constrained")
    return figure, axes


# Images of two pixels: what posteriors are, in the plane.


def two_pixels() -> energies.GaussianMixture:
    """Three kinds of images of two pixels, one of them elongated."""
    means = torch.tensor([[-1.3, 1.0], [1.3, 1.2], [0.3, -1.4]], dtype=torch.float64).reshape(3, 1, 1, 2)
    spread = [[[0.10, 0.00], [0.00, 0.10]], [[0.12, -0.06], [-0.06, 0.12]], [[0.5, 0.17], [0.17, 0.10]]]
    weights = torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)
    return energies.GaussianMixture(weights, means, covariances=torch.tensor(spread, dtype=torch.float64))


def mean_of_two(y: float = 0.9) -> likelihoods.Gaussian:
    """A measurement of the sum of the two pixels, with noise."""
    operator = likelihoods.Matrix(torch.tensor([[1.0, 1.0]], dtype=torch.float64), (1, 1, 2))
    return likelihoods.Gaussian(torch.tensor([y], dtype=torch.float64), operator, noise_std=NOISE)


def plane(num: int = 181) -> tuple[np.ndarray, Tensor]:
    """Coordinates along a side, and all images (num^2, 1, 1, 2) of the square."""
    side = np.linspace(-REACH, REACH, num)
    first, second = np.meshgrid(side, side)
    return side, torch.from_numpy(np.stack([first, second], -1).reshape(-1, 1, 1, 2))


def contours(axes: Axes, potential: pt.Potential, colours: Colours, sigma: float | None = None) -> None:
    """The levels of U in steps of one nat above its least value; the darker, the likelier."""
    side, images = plane()
    value = potential(images, sigma).numpy().reshape(len(side), -1)
    value = value - value.min()
    axes.contourf(side, side, np.exp(-value), levels=np.linspace(0.02, 1, 12), cmap=ramp(colours), zorder=0)
    axes.contour(side, side, value, levels=np.arange(1, 9), colors=colours.faint, linewidths=0.6, zorder=1)
    axes.set(aspect="equal", xlim=(-REACH, REACH), ylim=(-REACH, REACH), xticks=[-2, 0, 2], yticks=[-2, 0, 2])


def ramp(colours: Colours) -> Any:
    """From the paper to the first colour."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("ramp", [colours.paper, colours.first])


def potential(colours: Colours) -> Figure:
    """Prior, likelihood, and their sum."""
    figure, axes = panels(3, height=3.5)
    prior, data = two_pixels(), mean_of_two()
    for ax, shown, title in zip(
        axes, (prior, data, prior + data), ("prior  $U$", "likelihood  $L$", "posterior  $U + L$"), strict=True
    ):
        contours(ax, shown, colours)
        ax.set(title=title, xlabel="pixel 1")
    axes[0].set_ylabel("pixel 2")
    return figure


def multi_scale_energy(colours: Colours) -> Figure:
    """One prior at four noise scales, and where its denoiser takes images."""
    figure, axes = panels(4, height=2.8)
    prior = two_pixels()
    grid = torch.linspace(-2.7, 2.7, 7, dtype=torch.float64)
    images = torch.cartesian_prod(grid, grid).reshape(-1, 1, 1, 2)
    for ax, sigma in zip(axes, (2.0, 1.0, 0.4, 0.05), strict=True):
        contours(ax, prior, colours, sigma)
        start, move = images.reshape(-1, 2), (prior.denoise(images, sigma) - images).reshape(-1, 2)
        ax.quiver(*start.T, *move.T, angles="xy", scale_units="xy", scale=1, width=0.008, color=colours.second)
        ax.set(title=rf"$\sigma$ = {sigma:g}", xlabel="pixel 1")
    axes[0].set_ylabel("pixel 2")
    return figure


def _phantom() -> Tensor:
    """Discs and bars in a (1, 64, 64) image, between 0 and 1."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    image = 0.55 * ((x / 0.8) ** 2 + (y / 0.9) ** 2 < 1).float()
    image += 0.35 * ((x + 0.3) ** 2 + (y + 0.3) ** 2 < 0.05).float()
    image -= 0.35 * (((x - 0.3) / 0.6) ** 2 + (y + 0.2) ** 2 < 0.08).float()
    for k in range(4):
        image += 0.4 * ((x - 0.3 * k + 0.45).abs() < 0.03 + 0.015 * k).float() * ((y - 0.45).abs() < 0.22).float()
    return image.clamp(0, 1)[None]


def likelihood(colours: Colours) -> Figure:
    """An image, its measurement step by step, and two residuals."""
    truth = _phantom()
    generator = torch.Generator().manual_seed(0)
    mask = (torch.rand(64, 64, generator=generator) < 0.7).float()
    blur = likelihoods.GaussianBlur(1.5, (64, 64))
    operator = likelihoods.Mask(mask) @ blur
    data = likelihoods.Gaussian(operator.measure(truth, 0.05, generator), operator, noise_std=0.05)
    wrong = truth.clone()
    wrong[:, 30:48, 10:26] = 0.55  # the first bar and a half are missing
    figure, axes = panels(5, height=2.35)
    shown = {
        "image $x$": (truth, "gray", 0, 1),
        "$A x$": (operator(truth), "gray", 0, 1),
        "measured $y$": (data.y, "gray", 0, 1),
    }
    for label, image in (("residual of $x$", truth), ("residual without\ntwo bars", wrong)):
        shown[label] = (data.residual(image) / 0.05, "RdBu_r", -5, 5)
    for ax, (title, (image, cmap, low, high)) in zip(axes, shown.items(), strict=True):
        drawn = ax.imshow(image[0], cmap=cmap, vmin=low, vmax=high)
        ax.set(title=title, xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    for ax, image in zip(axes[3:], (truth, wrong), strict=True):
        ax.set_xlabel(f"$L$ = {float(data(image)):,.0f} nats")
    figure.colorbar(drawn, ax=axes[4], label=r"in units of $\eta$", fraction=0.05)
    return figure


def annealer(colours: Colours) -> Figure:
    """Scales by family; and the posteriors of a pixel on the way down, with chains that walk them."""
    figure, (left, right) = panels(2, height=3.4)
    families = {
        "Linear": annealers.Linear(10.0, 0.02, 20),
        "Cosine": annealers.Cosine(10.0, 0.02, 20),
        "Karras, rho=7": annealers.Karras(10.0, 0.02, 20),
        "Geometric": annealers.Geometric(10.0, 0.02, 20),
    }
    for (name, family), marker in zip(families.items(), "s^do", strict=True):
        left.plot(family.sigmas, marker=marker, markersize=3.5, linewidth=1, label=name)
    left.set(yscale="log", xlabel="level", ylabel=r"noise scale $\sigma$", xticks=[0, 5, 10, 15, 19])
    left.legend(loc="lower left")
    _posteriors_on_the_way(right, colours)
    return figure


def _posteriors_on_the_way(axes: Axes, colours: Colours) -> None:
    """The density of one pixel at each level, and twelve chains of ALPS."""
    double = torch.float64
    means = torch.tensor([-1.0, 1.2], dtype=double).reshape(2, 1, 1, 1)
    prior = energies.GaussianMixture(
        torch.tensor([0.5, 0.5], dtype=double), means, variances=torch.tensor([0.02, 0.04], dtype=double)
    )
    posterior = prior + likelihoods.Gaussian(torch.tensor([[[0.2]]], dtype=double), noise_std=1.2)
    anneal = annealers.Geometric(4.0, 0.03, 40, steps=1)
    side = torch.linspace(-3.5, 3.5, 301, dtype=double)
    density = []
    for sigma in anneal.sigmas:
        log = -posterior(side.reshape(-1, 1, 1, 1), sigma)
        density.append((log - log.max()).exp())
    axes.imshow(
        torch.stack(density, 1),
        extent=(-0.5, 39.5, -3.5, 3.5),
        origin="lower",
        aspect="auto",
        cmap=ramp(colours),
        alpha=0.75,
    )
    sampler = inference.ALPS(anneal)
    generator = torch.Generator().manual_seed(3)
    start = sampler.start(posterior, (12, 1, 1, 1), double, generator)
    state = sampler.init(posterior, start, generator)
    walked = []
    for _ in range(len(anneal)):
        state, _ = sampler.step(posterior, state)
        walked.append(state.x.flatten())
    axes.plot(torch.stack(walked), color=colours.second, linewidth=0.8, alpha=0.8)
    axes.set(xlabel=r"level, from $\sigma$ = 4 down to 0.03", ylabel="pixel", ylim=(-3.5, 3.5))


def sampler(colours: Colours) -> Figure:
    """Draws of three samplers from the same posterior of two pixels."""
    figure, axes = panels(3, height=3.4)
    posterior = two_pixels() + mean_of_two()
    for ax, (title, draws) in zip(axes, _draws().items(), strict=True):
        contours(ax, posterior, colours)
        ax.plot(*draws.reshape(-1, 2).T, ".", markersize=2.2, color=colours.second)
        ax.set(title=title, xlabel="pixel 1")
    axes[0].set_ylabel("pixel 2")
    return figure


@cache
def _draws() -> dict[str, Tensor]:
    """Six hundred draws each."""
    posterior = two_pixels() + mean_of_two()
    steep = annealers.Geometric(4.0, 0.1, 20)
    runs = {
        "ALPS as published": (inference.ALPS(steep, rule="published"), 1),
        "ALPS.calibrated()": (inference.ALPS.calibrated(), 1),
        "MALA from one start": (inference.MALA(curvature=10.0), 50),
    }
    start = torch.tensor([1.3, 1.2], dtype=torch.float64).reshape(1, 1, 2)
    found = {}
    with inference.without_diagnostics():
        for title, (method, draws) in runs.items():
            init = start if draws > 1 else None
            ensemble = pt.sample(
                posterior, method, num_chains=600 // draws, num_draws=draws, init=init, seed=0, progress=False
            )
            found[title] = ensemble.samples()
    return found


def ensemble(colours: Colours) -> Figure:
    """A digit with a hole: what was measured, four draws, and what is read off all of them."""
    truth, mask, y, found = _digit()
    draws = found.samples()[:, 0]
    figure, axes = panels(5, 2, height=4.4)
    grey = {"cmap": "gray", "vmin": -1, "vmax": 1}
    lower, upper = found.interval(0.9).values
    shown: dict[str, tuple[Any, dict[str, Any]]] = {
        "measured": (torch.where(mask > 0, y[0], torch.nan), grey),
        **{f"draw {k + 1}": (draws[k, 0], grey) for k in range(4)},
        "truth": (truth[0], grey),
        "mean": (found.mean()[0], grey),
        "std": (found.std()[0], {"cmap": "magma", "vmin": 0}),
        "90 % width": (upper[0] - lower[0], {"cmap": "magma", "vmin": 0}),
        "P(x > 0)": (found.probability_above(0.0)[0], {"cmap": "magma", "vmin": 0, "vmax": 1}),
    }
    for ax, (title, (image, options)) in zip(axes.flat, shown.items(), strict=True):
        ax.set_facecolor(colours.first)
        drawn = ax.imshow(image, **options)
        ax.set(title=title, xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        ax.set_anchor("N")
        if options is not grey:
            figure.colorbar(drawn, ax=ax, location="bottom", shrink=0.9, pad=0.03)
    return figure


@cache
def _digit() -> tuple[Tensor, Tensor, Tensor, pt.Ensemble]:
    """Truth, mask, measurements and 48 draws."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
    from inpainting import digit, mask_of

    truth, mask = digit(), mask_of(12, 9)
    operator = likelihoods.Mask(mask)
    y = operator.measure(truth, 0.1, torch.Generator().manual_seed(0))
    posterior = energies.load("digits-28") + likelihoods.Gaussian(y, operator, 0.1)
    anneal = annealers.Geometric(10.0, 0.02, 30, steps=3)
    return truth, mask, y, pt.sample(posterior, inference.ALPS(anneal), num_chains=48, seed=0, progress=False)


FIGURES: dict[str, Callable[[Colours], Figure]] = {
    "potential": potential,
    "multi-scale-energy": multi_scale_energy,
    "likelihood": likelihood,
    "annealer": annealer,
    "sampler": sampler,
    "ensemble": ensemble,
}


def save(figure: Figure, path: Path) -> None:
    """Write a picture of at most 256 colours, the same bytes for the same pixels."""
    import matplotlib.pyplot as plt
    from PIL import Image

    figure.canvas.draw()
    Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB").quantize(256).save(path, optimize=True)
    plt.close(figure)


def main() -> None:
    """Draw the pictures that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"which ones, of {', '.join(FIGURES)}; all of them without any")
    names = parser.parse_args().names or list(FIGURES)
    if not set(names) <= set(FIGURES):
        parser.error(f"got {', '.join(names)}, expected some of {', '.join(FIGURES)}")
    import matplotlib

    matplotlib.use("Agg")
    torch.set_num_threads(1)
    for name in names:
        for colours in (LIGHT, DARK):
            with style(colours), matplotlib.rc_context({"figure.dpi": 160}):
                path = FOLDER / f"{name}{colours.suffix}.png"
                save(FIGURES[name](colours), path)
                print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
