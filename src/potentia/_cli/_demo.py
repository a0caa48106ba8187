"""``potentia demo``: the main job, on a real brain."""

import math
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from potentia import annealers, energies, inference, likelihoods
from potentia._cg import ConvergenceWarning
from potentia._cli._report import print_rows
from potentia._potential import Energy, Potential
from potentia._validate import count, positive
from potentia.io import check_target

DISTANCE_MM = 20  # between the slice that is measured and every slice that the prior is fitted to
HEIGHT_MM = 100  # of the measured slice above the bottom of the volume: through the ventricles
FRAME_MM = 192  # side of the square that is imaged, which holds every slice of the volume's brain
SIGMA_MAX = 1.0
SIGMA_MIN = 0.01
FIELD = "gaussian-field"
FIELD_TV = 2.0


@dataclass(frozen=True)
class DemoOptions:
    """Options of ``potentia demo``."""

    out: Path
    chains: int = 16
    levels: int = 20
    coils: int = 8
    acceleration: float = 4.0
    noise_std: float = 0.02
    prior: str = "brain-t1"
    tv: float | None = None
    pixel: int = 2
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True)
class Scan:
    """A simulated scan: truth (1, H, W) complex, the posterior, and the zero-filled image."""

    truth: Tensor
    posterior: Potential
    zero_filled: Tensor
    seen: str


def run_demo(options: DemoOptions) -> None:
    """Measure, sample, store, plot, and print how well it went."""
    store = options.out / "demo.zarr"
    count("demo", "chains", options.chains, least=2)
    check_target(store, overwrite=True)
    scan = simulate_scan(options)
    height, width = scan.truth.shape[-2:]
    print_rows(
        f"MNI152 T1, axial slice {height} x {width} at {options.pixel} mm. What the prior saw: {scan.seen}",
        [],
    )
    print_rows(repr(scan.posterior), [])
    anneal = annealers.Geometric(SIGMA_MAX, SIGMA_MIN, options.levels)
    begun = time.perf_counter()
    ensemble = inference.sample(
        scan.posterior,
        inference.ALPS(anneal),
        num_chains=options.chains,
        seed=options.seed,
        store=store,
        overwrite=True,
        device=options.device,
        constant_data={"truth": scan.truth, "zero_filled": scan.zero_filled},
    )
    sampled = time.perf_counter()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "map_estimate", ConvergenceWarning)  # the table says how far it came
        mode = inference.map_estimate(scan.posterior, anneal, device=options.device)
    best = mode.image.cpu()
    ensemble.set_summary("map", best)
    found = time.perf_counter()
    mean = ensemble.samples().mean(dim=(0, 1))
    picture = options.out / "demo.png"
    ensemble.plot(picture, truth=scan.truth, data=scan.zero_filled)
    quality = [
        (name, *score(image, scan.truth))
        for name, image in (("zero-filled", scan.zero_filled), ("MAP", best), ("mean", mean))
    ]
    print_rows("", [("", "PSNR (dB)", "SSIM"), *((n, f"{p:.2f}", f"{s:.3f}") for n, p, s in quality)])
    inside = head(scan.truth)
    steps = len(anneal) * 5
    most = min(0.9, (options.chains - 1) / (options.chains + 1))
    print_rows(
        "",
        [
            ("90 % interval holds the truth", f"{ensemble.coverage(scan.truth, 0.9):.3f} of all pixels"),
            ("", f"({most:.3f} is what {options.chains} samples of the right spread give)"),
            ("", f"{ensemble.coverage(scan.truth, 0.9, mask=inside):.3f} of the pixels in the head"),
            ("gradient evaluations a sample", str(steps)),
            ("gradient at the MAP", f"{mode.grad_norm:.2g} nats per unit at most, after {mode.iterations} iterations"),
            ("time", f"{sampled - begun:.1f} s for {options.chains} samples, {found - sampled:.1f} s for the MAP"),
            ("written", f"{store}, {picture}"),
        ],
    )


def simulate_scan(options: DemoOptions) -> Scan:
    """Take a slice, measure it, and put the posterior together."""
    slices, heights = brain_slices(options.pixel)
    middle = int(np.abs(heights - HEIGHT_MM).argmin())
    apart = np.abs(heights - heights[middle]) >= DISTANCE_MM
    rng = np.random.default_rng(options.seed)
    truth = with_phase(slices[middle : middle + 1], rng)[0]
    prior, tv, seen = choose_prior(options, with_phase(slices[apart], rng))
    shape = tuple(truth.shape[-2:])
    mask = likelihoods.cartesian_mask(shape, options.acceleration, seed=options.seed)
    operator = likelihoods.Sense(likelihoods.birdcage_maps(options.coils, shape), mask)
    noise = torch.Generator().manual_seed(options.seed)
    noise_std = positive("demo", "noise_std", options.noise_std)
    y = operator.measure(truth, noise_std, noise)
    data = likelihoods.Gaussian(y, operator, noise_std)
    posterior: Potential = prior + data
    if tv > 0:
        posterior = prior + tv * energies.TotalVariation() + data
    return Scan(truth, posterior, operator.adjoint(y), seen)


def choose_prior(options: DemoOptions, apart: Tensor) -> tuple[Energy, float, str]:
    """The prior that ``--prior`` names, the weight of total variation beside it, and what the prior was made of.

    ``apart`` are slices (N, 1, H, W) of the volume that the measured one is not alike to, for a field to be fitted to.

    Raises: FileNotFoundError, ValueError as ``energies.load``.
    """
    if options.prior == FIELD:
        tv = FIELD_TV if options.tv is None else options.tv
        seen = f"{len(apart)} slices of this volume, at least {DISTANCE_MM} mm away."
        return energies.GaussianField.fit(apart), tv, seen
    seen = str(energies.read_card(options.prior).info.get("data", "its file does not say."))
    return energies.load(options.prior), options.tv or 0.0, seen


def brain_slices(pixel: int) -> tuple[Tensor, np.ndarray]:
    """Axial slices of the MNI152 T1 brain with tissue in them, and their heights.

    Shapes: (N, 1, H, W) float32, H and W about 192 mm, multiples of eight pixels; heights (N,).
    Units: 1 is the 99th percentile of the head; heights in mm above the bottom of the volume.
    Raises: ImportError without nilearn; ValueError for a pixel size that is no whole number of mm.
    """
    step = count("demo", "pixel", pixel)
    try:
        from nilearn.datasets import load_mni152_template
    except ImportError as err:
        raise ImportError("demo: nilearn is missing, expected it for its brain: pip install 'potentia[demo]'") from err
    volume = np.asarray(load_mni152_template(resolution=1).get_fdata(), dtype=np.float32)
    volume = volume / np.percentile(volume[volume > 0], 99)
    # Front of the head up, and the patient's right on the left, as radiologists look at it.
    images = np.rot90(volume, axes=(0, 1)).transpose(2, 0, 1)[::step]
    top, left = ((n - FRAME_MM) // 2 for n in images.shape[1:])
    images = images[:, top : top + FRAME_MM, left : left + FRAME_MM]
    heights = np.arange(volume.shape[2])[::step]
    full = (images > 0.1).mean(axis=(1, 2)) > 0.1
    return _coarser(torch.from_numpy(images[full].copy())[:, None], step), heights[full]


def _coarser(images: Tensor, step: int) -> Tensor:
    """Average blocks of pixels, after padding to a size that they and three halvings divide."""
    unit = 8 * step
    height, width = (math.ceil(n / unit) * unit for n in images.shape[-2:])
    missing = height - images.shape[-2], width - images.shape[-1]
    edges = (missing[1] // 2, missing[1] - missing[1] // 2, missing[0] // 2, missing[0] - missing[0] // 2)
    padded = torch.nn.functional.pad(images, edges)
    return likelihoods.Downsample(step)(padded) if step > 1 else padded


def with_phase(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Give each image a smooth random phase, as coils and field inhomogeneity do.

    Shapes: (N, 1, H, W) real -> the same, complex.
    """
    height, width = images.shape[-2:]
    y = np.linspace(-1, 1, height)[:, None]
    x = np.linspace(-1, 1, width)[None, :]
    shapes: list[Any] = [x, y, x * y, x**2, y**2]
    phases = [
        rng.uniform(-np.pi, np.pi) + sum(a * s for a, s in zip(rng.normal(0, 0.7, len(shapes)), shapes, strict=True))
        for _ in range(len(images))
    ]
    phase = torch.from_numpy(np.stack(phases)[:, None].astype(np.float32))
    return torch.polar(images.contiguous(), phase)


def head(truth: Tensor) -> Tensor:
    """Pixels in the head: (1, H, W) bool."""
    return truth.abs() > 0.1


def score(image: Tensor, truth: Tensor) -> tuple[float, float]:
    """PSNR in dB and SSIM of the magnitude, peak 1. Shapes: (1, H, W) both."""
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    a, b = truth.abs()[0].double().numpy(), image.abs()[0].double().numpy()
    similarity = cast(float, structural_similarity(a, b, data_range=1.0))  # a tuple only where more is asked for
    return float(peak_signal_noise_ratio(a, b, data_range=1.0)), float(similarity)
