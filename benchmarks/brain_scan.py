"""A real scan without a truth: eightfold undersampled brain k-space of 8 coils, from file to uncertainty map.

    python benchmarks/brain_scan.py --data ../shared/data [--prior brain-t1 --prior tv --prior field]
        [--chains 4] [--draws 100] [--steps 3] [--hold-out 0.05] [--figure] [--out benchmarks/results/brain-scan]

Noise is made white by the border of k-space, coil maps come from ESPIRiT. Of the samples outside the calibration square
a share is held out: what the posterior predicts of them, and how often its 90 % interval holds them, tells priors apart
where there is no truth. Chains start from an anneal down to the finest scale and go on by Langevin dynamics there; for
priors without scales by Langevin dynamics with an unknown weight of the prior. It writes OUT.json, OUT.md and, with
``--figure``, OUT.png.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from restoration import machine
from torch import Tensor

from potentia import annealers, energies, inference, io, likelihoods
from potentia.io import Ensemble

LEVEL, HALF_WIDTH = 0.9, 1.6449  # of the normal distribution
SIGMA_MAX, SIGMA_MIN, LEVELS = 0.3, 0.02, 15


@dataclass(frozen=True)
class Scan:
    """What was measured, in units in which the image's 99th percentile is 1 and noise has std ``noise_std`` a part.

    Shapes: y (coils, H, W); maps (coils, H, W); train, held (H, W), True where measured and used, or held out;
        head (H, W).
    """

    y: Tensor
    maps: Tensor
    train: Tensor
    held: Tensor
    head: Tensor
    noise_std: float

    def likelihood(self) -> likelihoods.Gaussian:
        return likelihoods.Gaussian(self.y, likelihoods.Sense(self.maps, self.train.float()), self.noise_std)


def read(path: Path, hold_out: float, seed: int = 0) -> Scan:
    """Whiten, calibrate, hold out and scale."""
    scan = io.read_scan(path).prepared()
    assert scan.coil_maps is not None
    y, maps, mask = (torch.from_numpy(array[0]) for array in (scan.kspace, scan.coil_maps, scan.mask))
    centre = torch.zeros_like(mask)
    height, width = mask.shape
    centre[height // 2 - 12 : height // 2 + 12, width // 2 - 12 : width // 2 + 12] = True
    chance = torch.rand(mask.shape, generator=torch.Generator().manual_seed(seed))
    held = mask & ~centre & (chance < hold_out)
    train = mask & ~held
    plain = likelihoods.Gaussian(y, likelihoods.Sense(maps, train.float()), 1.0)
    image = plain.structure.with_tolerance(1e-4).solve(plain.linear, 0.01)
    head = maps.abs().square().sum(0) > 0.5
    scale = float(image[0].abs()[head].quantile(0.99))
    return Scan(y / scale, maps, train, held, head, 1 / scale)


def sample(name: str, scan: Scan, options: argparse.Namespace) -> Ensemble:
    """An ensemble under one of the priors."""
    data = scan.likelihood()
    shape, pixels = (1, *scan.train.shape), scan.train.numel()
    settings: dict[str, Any] = {"num_chains": options.chains, "seed": options.seed, "progress": options.progress}
    with inference.without_diagnostics():
        if name not in ("tv", "field"):
            prior = energies.load(name)
            posterior = prior + data
            anneal = annealers.Geometric(SIGMA_MAX, SIGMA_MIN, LEVELS, steps=3)
            starts = inference.sample(posterior, inference.ALPS(anneal, tolerance=1e-3), **settings).samples()[:, -1]
            walk = inference.Langevin(sigma=SIGMA_MIN, steps_per_draw=options.steps, tolerance=1e-3)
            return inference.sample(posterior, walk, num_draws=options.draws, num_warmup=3, init=starts, **settings)
        if name == "field":
            zero = torch.zeros(1, 1, 1, dtype=torch.complex64)
            prior, degree = energies.GaussianField.power_law(shape, 1.0, mean=zero), 2.0
            dims, walk = 2 * pixels, inference.Langevin(steps_per_draw=1, tolerance=1e-3)
        else:
            prior, degree, dims = energies.TotalVariation(0.003), 1.0, 2 * pixels - 2
            walk = inference.Langevin(0.5, steps_per_draw=20, curvature=3e4, tolerance=1e-3)
        weight = inference.Weight("prior", shape=1.0, rate=1e-3, normaliser=inference.Homogeneous(dims, degree))
        gibbs = inference.Gibbs({"image": walk, "weight": weight})
        return inference.sample(
            prior.named("prior") + data, gibbs, num_draws=options.draws, num_warmup=options.draws // 2, **settings
        )


def scores(ensemble: Ensemble, scan: Scan) -> dict[str, float]:
    """Fit, prediction of what was held out, mixing and spread."""
    draws = ensemble.samples()
    flat = draws.flatten(0, 1)
    data = scan.likelihood()
    measured = 2 * int(scan.train.sum()) * len(scan.y)
    some = flat[:: max(1, len(flat) // 16)]
    chi2 = [float((data.residual(x) / scan.noise_std).abs().square().sum()) / measured for x in some]
    rest = likelihoods.Sense(scan.maps, scan.held.float())
    predicted = torch.stack([rest(x)[:, scan.held] for x in flat])
    off = torch.view_as_real(predicted.mean(0) - scan.y[:, scan.held])
    variance = torch.view_as_real(predicted).var(0) + scan.noise_std**2
    parts = [draws.real, draws.imag] if draws.is_complex() else [draws]
    rhat = torch.stack([inference.rhat(part[:, :, 0]) for part in parts]).amax(0)
    return {
        "chi2": float(np.mean(chi2)),
        "held-out z2": float((off.square() / variance).mean()),
        "held-out coverage": float((off.abs() < HALF_WIDTH * variance.sqrt()).double().mean()),
        "held-out log score": float(-0.5 * (off.square() / variance + variance.log()).mean()),
        "rhat below 1.05": float((rhat[scan.head] < 1.05).double().mean()),
        "std in the head": float(flat.std(0)[0][scan.head].mean()),
        "samples": float(len(flat)),
    }


COLUMNS = {
    "chi2": ("chi2 / dof", 3),
    "held-out z2": ("held out: z2", 3),
    "held-out coverage": ("coverage", 3),
    "held-out log score": ("log score", 3),
    "rhat below 1.05": ("R-hat < 1.05", 3),
    "std in the head": ("std", 4),
    "samples": ("samples", 0),
    "seconds": ("s", 0),
}


def report(content: dict[str, Any]) -> str:
    """The table in Markdown."""
    lines = [
        "# A real scan: 8 coils, 230 x 180, eightfold undersampled, no truth",
        "",
        content["run"],
        "",
        "Noise made white by the outermost samples of k-space; maps by ESPIRiT; images of magnitude 1 at their 99th",
        "percentile. chi2 / dof: mean over samples of the squared residual over the noise variance, a real number",
        "measured. Held out: samples of k-space that the posterior did not see, their error over posterior spread and",
        "noise together (z2, 1 is right), how often the 90 % interval holds them, and the log density of the",
        "prediction a real number (higher is better). R-hat: share of pixels in the head. Std: mean in the head.",
        "",
        "| prior | " + " | ".join(name for name, _ in COLUMNS.values()) + " |",
        "| --- |" + " ---: |" * len(COLUMNS),
    ]
    for row in content["rows"]:
        cells = [f"{row['scores'][key]:.{digits}f}" for key, (_, digits) in COLUMNS.items()]
        lines.append(f"| {row['prior']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(ensemble: Ensemble, scan: Scan, path: Path) -> None:
    """What the measured k-space gives by itself, mean, std, and three samples."""
    from matplotlib.figure import Figure

    flat = ensemble.samples().flatten(0, 1)
    plain = likelihoods.Sense(scan.maps, scan.train.float()).adjoint(scan.y)
    mean, std = flat.mean(0)[0], flat.std(0)[0]
    panels: list[tuple[str, NDArray[Any], float]] = [
        ("zero-filled", (plain[0].abs() / plain.abs().max()).numpy(), 1.0),
        ("mean", mean.abs().numpy(), 1.2),
        ("std", std.numpy(), float(std[scan.head].quantile(0.99))),
        *((f"sample {k + 1}", flat[k * len(flat) // 3, 0].abs().numpy(), 1.2) for k in range(3)),
    ]
    figure = Figure(figsize=(11, 9), layout="constrained")
    for axis, (title, image, top) in zip(figure.subplots(2, 3).flat, panels, strict=True):
        shown = axis.imshow(image, cmap="magma" if title == "std" else "gray", vmin=0, vmax=top)
        figure.colorbar(shown, ax=axis, shrink=0.7)
        axis.set(title=title, xticks=[], yticks=[])
    figure.savefig(path, dpi=80)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--prior", action="append")
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--hold-out", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--progress", action="store_true")
    parser.add_argument("--figure", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/brain-scan"))
    return parser.parse_args()


def main() -> None:
    options = parse()
    scan = read(options.data / "mri" / "brain_8coil_ksp_230x180.npy", options.hold_out)
    paths = {end: options.out.with_name(f"{options.out.name}.{end}") for end in ("json", "md", "png")}
    rows = json.loads(paths["json"].read_text("utf-8"))["rows"] if paths["json"].exists() else []
    for name in options.prior or ["brain-t1", "tv", "field"]:
        begun = time.perf_counter()
        ensemble = sample(name, scan, options)
        seconds = time.perf_counter() - begun
        found = {**scores(ensemble, scan), "seconds": seconds}
        rows = [row for row in rows if row["prior"] != name] + [{"prior": name, "scores": found}]
        kept = {key: value for key, value in vars(options).items() if isinstance(value, int | float)}
        content = {"run": machine(), "settings": kept, "noise_std": scan.noise_std, "rows": rows}
        paths["json"].parent.mkdir(parents=True, exist_ok=True)
        paths["json"].write_text(json.dumps(content, indent=1) + "\n", "utf-8")
        paths["md"].write_text(report(content), "utf-8")
        print(f"{name}: {found}", flush=True)
        if options.figure and name == "brain-t1":
            draw(ensemble, scan, paths["png"])
    print(paths["md"].read_text("utf-8"))


if __name__ == "__main__":
    main()
