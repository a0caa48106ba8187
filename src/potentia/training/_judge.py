"""The evaluation of an energy: against its teacher, as a gradient field, and by what it thinks strange."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from potentia._potential import Energy
from potentia.energies import Denoiser, load, read_card, save
from potentia.training._evaluate import denoising_psnr, energy_asymmetry, ordering, relative_residual
from potentia.training._recipe import Recipe
from potentia.training._runner import Where, held_out_images, teacher_network
from potentia.training._sources import read_images

ORDER_SIGMAS = (0.05, 0.1, 0.2)
ASYMMETRY_IMAGES = 4
ASYMMETRY_SIGMA = 0.2


def evaluate(
    recipe: Recipe, where: Where, energy: str | None, teacher: Path | None, strange: Recipe | None, write: bool
) -> list[tuple[str, ...]]:
    """Measure an energy on the recipe's validation images; the rows of a table, also written to out/evaluation.json.

    ``energy`` is a name or a file, by default out/NAME.safetensors; the teacher is that of ``teacher`` or of
    out/teacher.safetensors, if it is there; ``strange`` is a recipe whose images are out of distribution. ``write``
    puts the metrics into the header of the energy's file too.

    Raises: FileNotFoundError, ValueError as ``load`` and ``read_images``; ValueError if what is loaded has no values.
    """
    source = energy or str(where.out / f"{recipe.name}.safetensors")
    model = load(source)
    if not isinstance(model, Denoiser):
        raise ValueError(  # noqa: TRY004 - the file is wrong, not a type in the caller's program
            f"{source}: is a {type(model).__name__}, expected an energy, which has values"
        )
    images = held_out_images(recipe, read_images(recipe.data, where.data), recipe.images)
    found: dict[str, Any] = {"psnr": denoising_psnr(model.denoise, images, recipe.sigmas, recipe.peak)}
    path = teacher or where.out / "teacher.safetensors"
    if teacher is not None or path.exists():
        net = teacher_network(path)
        with torch.no_grad():
            found["teacher_psnr"] = denoising_psnr(net, images, recipe.sigmas, recipe.peak)
        found["relative_residual"] = relative_residual(model, net, images, recipe.sigmas)
    found["asymmetry"] = energy_asymmetry(model, images[:ASYMMETRY_IMAGES], ASYMMETRY_SIGMA)
    if strange is not None:
        other = read_images(strange.data, where.data)
        found["ordering"] = {
            "strange": strange.name,
            **ordering(model, images, alike(other.validation, images), ORDER_SIGMAS),
        }
    where.out.mkdir(parents=True, exist_ok=True)
    (where.out / "evaluation.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    if write:
        _rewrite(source, model, found)
    return table(found)


def alike(images: Tensor, like: Tensor) -> Tensor:
    """Images of another kind in the shape of these: resized, channels averaged, magnitudes of complex ones.

    Values are mapped linearly so that the least and greatest of all are those of ``like``; as many as there are.

    Shapes: images (M, C', H', W') and like (N, C, H, W); returns (N, C, H, W), images repeated where there are too few.
    """
    real = images.abs() if images.is_complex() else images
    reference = like.abs() if like.is_complex() else like
    channels, *size = like.shape[1:]
    grey = real.mean(1, keepdim=True) if real.shape[1] != channels else real
    sized = F.interpolate(grey.expand(-1, channels, -1, -1), size, mode="bilinear", antialias=True)
    low, high = sized.amin(), sized.amax()
    scaled = reference.min() + (sized - low) / (high - low) * (reference.max() - reference.min())
    turns = -(-len(like) // len(scaled))
    return scaled.repeat(turns, 1, 1, 1)[: len(like)].to(like.dtype)


def table(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The measurements as rows of text."""
    rows: list[tuple[str, ...]] = [("sigma", "PSNR, dB", "teacher", "difference", "residual")]
    teacher, residual = found.get("teacher_psnr", {}), found.get("relative_residual", {})
    for s, value in found["psnr"].items():
        other = teacher.get(s)
        known = ("-", "-", "-") if other is None else (f"{other:.2f}", f"{value - other:+.2f}", f"{residual[s]:.3f}")
        rows.append((s, f"{value:.2f}", *known))
    rows.append(("asymmetry of the Jacobian, float64", f"{found['asymmetry']:.1e}"))
    for s, value in found.get("ordering", {}).items():
        if isinstance(value, dict):
            rows.append(
                (
                    f"sigma {s}: clean < noisy < {found['ordering']['strange']}",
                    f"{100 * value['ordered']:.1f} %",
                    f"AUROC {value['auroc']:.4f}",
                    f"by typicality {value['typicality']:.4f}",
                    f"medians {value['clean']:.4g}, {value['noisy']:.4g}, {value['strange']:.4g} nats",
                )
            )
    return rows


def _rewrite(source: str, model: Energy, found: Mapping[str, Any]) -> None:
    """Put measurements into the header of a file."""
    info = dict(read_card(source).info)
    path = Path(source)
    if not path.exists():
        raise ValueError(f"{source}: comes with the package, expected the path of a file to write metrics to")
    info["metrics"] = {**info.get("metrics", {}), **found}
    save(model, path, info)
