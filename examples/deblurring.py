"""Deblurring a photograph of a face, by a learned prior and by total variation.

The face is cut out of scikit-image's portrait of Eileen Collins (public domain), blurred and noised. The prior
"faces-64", learned of synthetic faces of 64 x 64 pixels, comes with the package; its network is convolutional, so that
other sizes work too. ``ALPS`` draws the ensemble: at every scale it denoises by the prior, solves with the blur, which
costs two Fourier transforms, and adds noise.

Total variation, the prior of old, is sampled too, with an unknown weight, for comparison.

    pip install scikit-image
    python examples/deblurring.py --figure deblurring.png
"""

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import potentia as pt
from potentia import annealers, energies, inference, likelihoods

PEAK = 2.0  # images are in [-1, 1]


def face(side: int) -> Tensor:
    """A face, (3, side, side) in [-1, 1]."""
    from skimage.data import astronaut
    from skimage.transform import resize

    cut = astronaut()[0:200, 120:320]
    small = resize(cut, (side, side), anti_aliasing=True)  # in [0, 1]
    return torch.from_numpy(2 * small - 1).permute(2, 0, 1).float().contiguous()


def learned(data: likelihoods.Gaussian, args: argparse.Namespace) -> pt.Ensemble:
    """Every chain one anneal, from pure noise down to well below the finest texture."""
    anneal = annealers.Geometric(10.0, 0.02, args.levels, steps=args.steps)
    posterior = energies.load("faces-64") + data
    return pt.sample(posterior, inference.ALPS(anneal), num_chains=args.chains, seed=args.seed, progress=False)


def total_variation(data: likelihoods.Gaussian, args: argparse.Namespace) -> pt.Ensemble:
    """Langevin dynamics of the image, and the weight drawn given it."""
    tv = energies.TotalVariation(0.02).named("tv")
    numbers = data.y.numel()
    law = inference.Homogeneous(numbers - len(data.y), 1.0)  # a constant in each channel costs nothing
    sampler = inference.Gibbs({
        "image": inference.Langevin(0.3, curvature=1000.0, steps_per_draw=10),
        "weight": inference.Weight("tv", shape=1.0, rate=1e-2, normaliser=law),
    })  # fmt: skip
    settings = {"num_chains": min(4, args.chains), "num_draws": args.draws, "num_warmup": args.draws}
    with inference.without_diagnostics():  # short, as it is for comparison
        return pt.sample(tv + data, sampler, seed=args.seed, progress=False, **settings)


class Row(NamedTuple):
    """How well a prior found the face; of the measurements alone there is only the PSNR."""

    prior: str
    psnr: float
    coverage: float
    std: float


def psnr(image: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio in dB."""
    return float(10 * torch.log10(PEAK**2 / (image - truth).square().mean()))


def judge(name: str, ensemble: pt.Ensemble, truth: Tensor) -> Row:
    """Compare with the truth."""
    mean = ensemble.samples().mean((0, 1))
    return Row(name, psnr(mean, truth), ensemble.coverage(truth, 0.9), float(ensemble.std().mean()))


def figure(path: str, truth: Tensor, y: Tensor, draws: dict[str, Tensor]) -> None:
    """Truth, measurements, and for each prior mean, one draw and standard deviation."""
    import matplotlib.pyplot as plt

    def shown(x: Tensor) -> "np.ndarray[Any, Any]":
        return ((x + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy()

    fig, axes = plt.subplots(2, 4, figsize=(11, 5.8), layout="constrained")
    axes[0, 0].imshow(shown(truth))
    axes[1, 0].imshow(shown(y))
    titles = [["truth"], ["measured"]]
    top = max(float(x.std(0).mean(0).quantile(0.99)) for x in draws.values())
    for row, title, (name, x) in zip(axes, titles, draws.items(), strict=True):
        row[1].imshow(shown(x.mean(0)))
        row[2].imshow(shown(x[-1]))
        std = row[3].imshow(x.std(0).mean(0).numpy(), cmap="magma", vmin=0, vmax=top)
        fig.colorbar(std, ax=row[3], shrink=0.8)
        title += [f"{name}: mean", "a draw", "std"]
    for ax, title in zip(axes.flat, titles[0] + titles[1], strict=True):
        ax.set(title=title, xticks=[], yticks=[])
    fig.savefig(path, dpi=120)
    plt.close(fig)


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Run the example; a row for the measurements and one for each prior."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=64, help="pixels a side, divisible by 8 (default %(default)s)")
    parser.add_argument("--blur", type=float, default=1.5, help="width in pixels (default %(default)s)")
    parser.add_argument("--noise-std", type=float, default=0.05, help="noise level (default %(default)s)")
    parser.add_argument("--levels", type=int, default=25, help="of the annealer (default %(default)s)")
    parser.add_argument("--steps", type=int, default=3, help="a level (default %(default)s)")
    parser.add_argument("--chains", type=int, default=12, help="(default %(default)s)")
    parser.add_argument("--draws", type=int, default=40, help="of total variation (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of noise and sampler (default %(default)s)")
    parser.add_argument("--figure", metavar="FILE", help="write a figure")
    args = parser.parse_args(arguments)

    truth = face(args.side)
    blur = likelihoods.GaussianBlur(args.blur, (args.side, args.side))
    y = blur.measure(truth, args.noise_std, torch.Generator().manual_seed(args.seed))
    data = likelihoods.Gaussian(y, blur, args.noise_std)
    ensembles = {"faces-64": learned(data, args), "tv": total_variation(data, args)}
    rows = [Row("none: measured", psnr(y, truth), float("nan"), float("nan"))]
    rows += [judge(name, ensemble, truth) for name, ensemble in ensembles.items()]
    print(f"{'prior':16} {'PSNR':>8} {'coverage':>9} {'std':>7}")
    for row in rows:
        print(f"{row.prior:16} {row.psnr:5.1f} dB {row.coverage:9.1%} {row.std:7.3f}")
    if args.figure:
        figure(args.figure, truth, y, {name: e.samples().flatten(0, 1) for name, e in ensembles.items()})
        print(f"figure: {args.figure}")
    return rows


if __name__ == "__main__":
    main()
