"""From a scan to an ensemble: undersampled k-space of several coils, with the learned prior of brains.

With ``--data FILE`` it reads any scan that ``potentia.io.read_scan`` knows (fastMRI, ISMRMRD, BART, numpy): makes the
noise white, by a noise scan or by the outermost samples of k-space, estimates the coils' sensitivities by ESPIRiT, and
scales, so that magnitudes are about 1 as the prior expects. Without it, a phantom is scanned by simulated coils.

Chains anneal down to the finest scale (``ALPS``) and go on there by Langevin dynamics; draws stream to ``--store``. A
scan has no truth to compare with. So a share of the samples of k-space is held out, and the ensemble has to predict
them: their error over what it and the noise allow for (z2, 1 is right), and how often its 90 % interval holds them. For
the phantom the truth is known as well.

    python examples/mri_brain.py --figure phantom.png
    python examples/mri_brain.py --data scan.h5 --slice 4 --store scan.zarr --figure scan.png
"""

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import potentia as pt
from potentia import annealers, energies, inference, io, likelihoods

SIGMA_MAX, SIGMA_MIN = 0.3, 0.02
CALIBRATION = 12  # half the side of the square of k-space that is never held out
HALF_WIDTH = 1.6449  # of the 90 % interval of a normal distribution


class Scan(NamedTuple):
    """K-space with white noise, in units in which the image is about 1.

    Shapes: y and maps (coils, H, W), complex; used and held (H, W), True where measured and used, or held out;
        truth (1, H, W), of the phantom only. Units: noise_std is that of real and of imaginary parts.
    """

    y: Tensor
    maps: Tensor
    used: Tensor
    held: Tensor
    noise_std: float
    truth: Tensor | None = None

    def likelihood(self) -> likelihoods.Gaussian:
        """Of the samples that are used."""
        return likelihoods.Gaussian(self.y, likelihoods.Sense(self.maps, self.used.float()), self.noise_std)

    def least_squares(self) -> Tensor:
        """The image that the measurements give by themselves, with a little of Tikhonov's regularisation."""
        plain = likelihoods.Gaussian(self.y, likelihoods.Sense(self.maps, self.used.float()), 1.0)
        return plain.structure.with_tolerance(1e-4).solve(plain.linear, 0.01)

    def inside(self) -> Tensor:
        """Where there are coil maps, and so an image: (H, W)."""
        return self.maps.abs().square().sum(0) > 0.5


def split(mask: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Which samples to use and which to hold out; the centre is used, which the coil maps come from."""
    height, width = mask.shape
    centre = torch.zeros_like(mask)
    rows, columns = (slice(n // 2 - CALIBRATION, n // 2 + CALIBRATION) for n in (height, width))
    centre[rows, columns] = 1
    held = mask & ~centre & (torch.rand(mask.shape, generator=torch.Generator().manual_seed(seed)) < share)
    return mask & ~held, held


def read(path: str, index: int | None, hold_out: float, seed: int) -> Scan:
    """Whiten, calibrate, hold out and scale one slice of a file."""
    scan = io.read_scan(path, index=index)
    if len(scan.kspace) > 1:
        raise SystemExit(f"{path}: holds {len(scan.kspace)} slices, pick one by --slice")
    scan = scan.prepared()
    y, maps, mask = (torch.from_numpy(array[0]) for array in (scan.kspace, scan.coil_maps, scan.mask))
    used, held = split(mask, hold_out, seed)
    whole = Scan(y, maps, used, held, 1.0)
    scale = float(whole.least_squares()[0].abs()[whole.inside()].quantile(0.99))
    return whole._replace(y=whole.y / scale, noise_std=1 / scale)


def phantom(side: int) -> Tensor:
    """An axial slice of a head without skull, in outline: ellipses of the three tissues, with a smooth phase."""
    at = torch.linspace(-1, 1, side)
    y, x = torch.meshgrid(at, at, indexing="ij")

    def ellipse(cx: float, cy: float, rx: float, ry: float) -> Tensor:
        radius = (((x - cx) / rx).square() + ((y - cy) / ry).square()).sqrt()
        return ((1 - radius) * min(rx, ry) * side / 2 + 0.5).clamp(0, 1)

    folds = 1 + 0.1 * torch.sin(10 * torch.atan2(y, x))
    grey, white = ellipse(0, 0, 0.64, 0.8), ellipse(0, 0, 0.52, 0.67).mul(folds).clamp(0, 1)
    image = 0.55 * grey * (1 - white) + 0.9 * white
    fluid = ellipse(-0.1, -0.1, 0.07, 0.24) + ellipse(0.1, -0.1, 0.07, 0.24)
    nuclei = ellipse(-0.26, 0.0, 0.1, 0.2) + ellipse(0.26, 0.0, 0.1, 0.2)
    image = image * (1 - fluid) + 0.2 * fluid
    image = image * (1 - nuclei) + 0.62 * nuclei
    return torch.polar(image, 0.6 * x - 0.4 * y * y)[None]


def simulate(side: int, coils: int, acceleration: float, noise_std: float, hold_out: float, seed: int) -> Scan:
    """Scan the phantom: random lines of k-space, noise of this standard deviation a part."""
    truth = phantom(side)
    maps = likelihoods.birdcage_maps(coils, (side, side))
    mask = likelihoods.cartesian_mask((side, side), acceleration, centre_fraction=0.12, seed=seed)
    y = likelihoods.Sense(maps, mask).measure(truth, noise_std, torch.Generator().manual_seed(seed))
    used, held = split(mask > 0, hold_out, seed)
    return Scan(y, maps, used, held, noise_std, truth)


def sample(scan: Scan, args: argparse.Namespace) -> pt.Ensemble:
    """Anneal, and go on at the finest scale."""
    posterior = energies.load("brain-t1") + scan.likelihood()
    anneal = annealers.Geometric(SIGMA_MAX, SIGMA_MIN, args.levels, steps=args.steps)
    settings: dict[str, Any] = {"num_chains": args.chains, "seed": args.seed, "progress": args.progress}
    starts = pt.sample(posterior, inference.ALPS(anneal, tolerance=1e-3), **settings).samples()[:, -1]
    kept = {} if scan.truth is None else {"truth": scan.truth}
    with inference.without_diagnostics():  # the numbers below tell; neighbouring draws are alike
        return pt.sample(
            posterior,
            inference.Langevin(sigma=SIGMA_MIN, steps_per_draw=args.steps, tolerance=1e-3),
            num_draws=args.draws,
            num_warmup=3,
            init=starts,
            store=args.store,
            overwrite=args.overwrite,
            constant_data=kept,
            **settings,
        )


class Found(NamedTuple):
    """Fit and prediction; of a phantom, PSNR and coverage too."""

    chi2: float
    held_z2: float
    held_coverage: float
    psnr: float | None
    psnr_least_squares: float | None
    coverage: float | None


def psnr(image: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio of the magnitudes in dB."""
    error = (image.abs() - truth.abs()).square().mean()
    return float(10 * torch.log10(truth.abs().max().square() / error))


def judge(scan: Scan, ensemble: pt.Ensemble) -> Found:
    """What the ensemble says of the samples that it has seen, of those that it has not, and of the truth."""
    flat = ensemble.samples().flatten(0, 1)
    some = flat[:: max(1, len(flat) // 8)]
    measured = 2 * int(scan.used.sum()) * len(scan.y)
    data = scan.likelihood()
    chi2 = np.mean([float((data.residual(x) / scan.noise_std).abs().square().sum()) / measured for x in some])
    rest = likelihoods.Sense(scan.maps, scan.held.float())
    predicted = torch.view_as_real(torch.stack([rest(x)[:, scan.held] for x in flat]))
    off = predicted.mean(0) - torch.view_as_real(scan.y[:, scan.held])
    variance = predicted.var(0) + scan.noise_std**2
    within = (off.abs() < HALF_WIDTH * variance.sqrt()).double().mean()
    known: tuple[float | None, ...] = (None, None, None)
    if scan.truth is not None:
        head = scan.truth.abs() > 0.1
        known = (
            psnr(flat.mean(0), scan.truth),
            psnr(scan.least_squares(), scan.truth),
            ensemble.coverage(scan.truth, 0.9, mask=head),
        )
    return Found(float(chi2), float((off.square() / variance).mean()), float(within), *known)


def figure(path: str, scan: Scan, ensemble: pt.Ensemble) -> None:
    """The sampling, what the measurements give by themselves, mean, spread, and a draw."""
    import matplotlib.pyplot as plt

    flat = ensemble.samples().flatten(0, 1)
    mean, std = flat.mean(0)[0].abs(), flat.std(0)[0]
    sampling = scan.used.float() + 0.5 * scan.held.float()
    panels: dict[str, tuple[Tensor, str, float]] = {
        "used (white), held out (grey)": (sampling, "gray", 1.0),
        "least squares": (scan.least_squares()[0].abs(), "gray", 1.2),
        "posterior mean": (mean, "gray", 1.2),
        "posterior std": (std, "magma", float(std[scan.inside()].quantile(0.99))),
        "a draw": (flat[-1, 0].abs(), "gray", 1.2),
    }
    if scan.truth is not None:
        panels["truth"] = (scan.truth[0].abs(), "gray", 1.2)
    fig, axes = plt.subplots(2, 3, figsize=(10, 7), layout="constrained")
    for ax, (title, (image, colours, top)) in zip(axes.flat, panels.items(), strict=False):
        fig.colorbar(ax.imshow(image.numpy(), cmap=colours, vmin=0, vmax=top), ax=ax, shrink=0.8)
        ax.set(title=title, xticks=[], yticks=[])
    for ax in axes.flat[len(panels) :]:
        ax.axis("off")
    fig.savefig(path, dpi=120)
    plt.close(fig)


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="FILE", help="a scan; without it a phantom is scanned")
    parser.add_argument("--slice", type=int, metavar="K", help="which slice of the file")
    parser.add_argument("--hold-out", type=float, default=0.05, help="share of samples (default %(default)s)")
    parser.add_argument("--side", type=int, default=96, help="of the phantom, in pixels (default %(default)s)")
    parser.add_argument("--coils", type=int, default=4, help="of its scan (default %(default)s)")
    parser.add_argument("--acceleration", type=float, default=4.0, help="of its scan (default %(default)s)")
    parser.add_argument("--noise-std", type=float, default=0.02, help="of its scan (default %(default)s)")
    parser.add_argument("--levels", type=int, default=12, help="of the annealer (default %(default)s)")
    parser.add_argument("--steps", type=int, default=3, help="a level, and a draw (default %(default)s)")
    parser.add_argument("--chains", type=int, default=3, help="(default %(default)s)")
    parser.add_argument("--draws", type=int, default=15, help="of each chain (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of mask, noise and sampler (default %(default)s)")
    parser.add_argument("--store", metavar="DIR", help="where to keep the draws, as zarr")
    parser.add_argument("--overwrite", action="store_true", help="replace a store that is there")
    parser.add_argument("--progress", action="store_true", help="show progress bars")
    parser.add_argument("--figure", metavar="FILE", help="write a figure")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> Found:
    """Run the example; what it found."""
    args = options(arguments)
    if args.data is None:
        scan = simulate(args.side, args.coils, args.acceleration, args.noise_std, args.hold_out, args.seed)
    else:
        scan = read(args.data, args.slice, args.hold_out, args.seed)
    coils, height, width = scan.y.shape
    print(f"{coils} coils, {height} x {width}, {float(scan.used.double().mean()):.1%} of k-space used")
    ensemble = sample(scan, args)
    found = judge(scan, ensemble)
    print(f"chi2 a measurement {found.chi2:.3f}")
    print(f"held out: z2 {found.held_z2:.3f}, 90 % intervals hold {found.held_coverage:.1%} of the samples")
    if found.psnr is not None:
        print(f"PSNR: posterior mean {found.psnr:.1f} dB, least squares {found.psnr_least_squares:.1f} dB")
        print(f"90 % intervals hold the truth in {found.coverage:.1%} of the head's real and imaginary parts")
    if args.store:
        print(f"store: {args.store}")
    if args.figure:
        figure(args.figure, scan, ensemble)
        print(f"figure: {args.figure}")
    return found


if __name__ == "__main__":
    main()
