"""How good a denoiser and its energy are."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from potentia._potential import Energy
from potentia._random import standard_normal
from potentia._tensor import inner, squared_norm

Denoise = Callable[[Tensor, Tensor], Tensor]
BATCH = 64


def noisy_images(images: Tensor, sigma: float, seed: int = 0) -> Tensor:
    """The images with noise of one scale; the same noise for the same seed and scale, whoever asks."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + round(1e6 * sigma))
    return images + sigma * standard_normal(tuple(images.shape), generator, dtype=images.dtype)


def in_batches(fn: Denoise, x: Tensor, sigma: float, batch: int = BATCH) -> Tensor:
    """fn(x, sigma) of many images, a batch at a time, detached."""
    return torch.cat([fn(part, torch.full((len(part),), sigma)).detach() for part in x.split(batch)])


def psnr(estimate: Tensor, truth: Tensor, peak: float) -> float:
    """10 log10(peak^2 / MSE) in dB, of the mean square error over all images and real entries."""
    entries = truth.numel() * (2 if truth.is_complex() else 1)
    mse = float(squared_norm(estimate - truth).sum()) / entries
    return float(10 * torch.log10(torch.tensor(peak**2 / mse, dtype=torch.float64)))


def denoising_psnr(denoise: Denoise, images: Tensor, sigmas: Sequence[float], peak: float) -> dict[str, float]:
    """PSNR in dB at each scale; the denoiser is called as (x, sigma (N,))."""
    return {f"{s:g}": psnr(in_batches(denoise, noisy_images(images, s), s), images, peak) for s in sigmas}


def relative_residual(energy: Energy, teacher: Denoise, images: Tensor, sigmas: Sequence[float]) -> dict[str, float]:
    """||grad E - (x - D)|| / ||x - D|| at noisy images of each scale: the error of the gradient field."""
    found = {}
    for s in sigmas:
        x = noisy_images(images, s)
        with torch.no_grad():
            wanted = in_batches(teacher, x, s)
        got = in_batches(energy.denoise, x, s)
        found[f"{s:g}"] = float((squared_norm(got - wanted).sum() / squared_norm(x - wanted).sum()).sqrt())
    return found


def asymmetry(denoise: Callable[[Tensor], Tensor], x: Tensor, probes: int = 4, seed: int = 0) -> float:
    """How far the Jacobian J of a denoiser is from symmetric, by random probes.

    The largest |<u, J^T v> - <v, J^T u>| / (||J^T u|| ||v|| + ||J^T v|| ||u||) over pairs u, v and images.
    Zero to rounding for the gradient field of an energy; the denoiser is to be differentiable in x (N, C, H, W).
    """
    generator = torch.Generator().manual_seed(seed)
    z = x.detach().requires_grad_(True)
    out = denoise(z)
    worst = 0.0
    for _ in range(probes):
        u, v = (standard_normal(tuple(x.shape), generator, dtype=x.dtype) for _ in range(2))
        ju, jv = (torch.autograd.grad(out, z, w, retain_graph=True)[0] for w in (u, v))
        gap = (inner(v, ju) - inner(u, jv)).abs()
        size = (squared_norm(ju) * squared_norm(v)).sqrt() + (squared_norm(jv) * squared_norm(u)).sqrt()
        worst = max(worst, float((gap / size).max()))
    return worst


def energy_asymmetry(energy: Energy, images: Tensor, sigma: float) -> float:
    """``asymmetry`` of an energy's own denoiser, in double precision, at noisy images."""
    double = copy.deepcopy(energy).double()
    x = noisy_images(images, sigma).to(torch.complex128 if images.is_complex() else torch.float64)
    scales = torch.full((len(x),), sigma, dtype=torch.float64)

    def denoise(z: Tensor) -> Tensor:
        (slope,) = torch.autograd.grad(double(z, scales).sum(), z, create_graph=True)
        return z - sigma**2 * slope

    return asymmetry(denoise, x)


def energy_values(energy: Energy, images: Tensor, sigma: float) -> Tensor:
    """U_sigma of many images, in nats, shape (N,)."""
    with torch.no_grad():
        return in_batches(energy, images, sigma)


def roc_area(low: Tensor, high: Tensor) -> float:
    """The probability that a random entry of ``high`` exceeds one of ``low``: the area under the ROC curve."""
    pooled = torch.cat([low, high])
    ordered, rank = pooled.unique(return_inverse=True)
    counts = torch.bincount(rank, minlength=len(ordered)).double()
    middle = counts.cumsum(0) - counts / 2 + 0.5  # ties share their rank
    ranks = middle[rank[len(low) :]].sum()
    n, m = len(low), len(high)
    return float((ranks - m * (m + 1) / 2) / (n * m))


def ordering(energy: Energy, clean: Tensor, strange: Tensor, sigmas: Sequence[float]) -> dict[str, Any]:
    """How often energy says clean < noisy < out of distribution, and how well it tells clean from strange images.

    ``strange`` images are those of another kind, one a clean image; noisy ones are the clean with noise of the scale
    itself, the images that the potential of that scale is made for. ``auroc`` is by the energy alone; images that are
    simpler than the clean ones have lower energies, as they have in every density of images (Nalisnick et al. 2019), so
    that ``typicality``, the area by the distance from the median of the clean ones, stands beside it.
    """
    pairs = min(len(clean), len(strange))
    clean, strange = clean[:pairs], strange[:pairs]
    found: dict[str, Any] = {}
    for s in sigmas:
        low, noisy, high = (energy_values(energy, x, s) for x in (clean, noisy_images(clean, s, seed=1), strange))
        found[f"{s:g}"] = {
            "ordered": float(((low < noisy) & (noisy < high)).double().mean()),
            "auroc": roc_area(low, high),
            "typicality": roc_area((low - low.median()).abs(), (high - low.median()).abs()),
            "clean": float(low.median()),
            "noisy": float(noisy.median()),
            "strange": float(high.median()),
        }
    return found
