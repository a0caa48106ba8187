"""From a recipe to weights: train a teacher, distil an energy."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from potentia.energies import EDM, Denoiser, ScoreModel, load, save
from potentia.training._augment import Augment
from potentia.training._engine import fit
from potentia.training._evaluate import denoising_psnr, relative_residual
from potentia.training._objectives import Denoising, Distillation, Objective, ScoreMatching
from potentia.training._recipe import Recipe
from potentia.training._settings import Settings
from potentia.training._sources import Images, read_images

TEACHER_SCALES = (0.002, 80.0)
VALIDATION = 128  # images that curves in training are measured on


@dataclass(frozen=True)
class Where:
    """Where a training reads and writes, and on what it runs."""

    data: Path
    out: Path
    device: str = "cpu"
    resume: bool = False
    progress: bool = True
    stop_after: int | None = None


def train_teacher(recipe: Recipe, where: Where) -> Path:
    """Train the recipe's teacher; returns the file of its weights, out/teacher.safetensors.

    Raises: ValueError for a recipe without [teacher]; otherwise as ``fit`` and ``read_images``.
    """
    settings = _needed(recipe.teacher, recipe, "teacher")
    images = read_images(recipe.data, where.data)
    spread = recipe.sigma_data or _spread(images.train)
    torch.manual_seed(settings.seed)
    net = recipe.denoiser(images.train.shape[1], spread)
    if settings.compile:
        net.network.compile()
    shown = held_out_images(recipe, images, VALIDATION)

    def measure(average: nn.Module) -> Mapping[str, Any]:
        with torch.no_grad():
            return {"psnr": denoising_psnr(average.cpu().eval(), shown, recipe.sigmas, recipe.peak)}

    average, line = _run(Denoising(net, spread), images, settings, recipe, where, where.out / "teacher", measure)
    target = where.out / "teacher.safetensors"
    if average is not None:
        save(ScoreModel(average, TEACHER_SCALES), target, _card(recipe, images, settings, line))
    return target


def train_energy(recipe: Recipe, where: Where, teacher: Path | None) -> Path:
    """Distil the recipe's energy from a teacher's weights, or train it with none; returns out/NAME.safetensors.

    Of the forms "residual" and "inner-product" psi starts from the teacher.

    Raises: ValueError for a recipe without [energy], or torch.compile asked for; otherwise as ``fit`` and ``load``.
    """
    settings = _needed(recipe.energy, recipe, "energy")
    if settings.compile:
        raise ValueError(f"{recipe.name}: torch.compile has no double backward, expected compile = false for an energy")
    images = read_images(recipe.data, where.data)
    shown = held_out_images(recipe, images, VALIDATION)
    torch.manual_seed(settings.seed)
    denoiser = None if teacher is None else teacher_network(teacher)
    if denoiser is None:
        spread = recipe.sigma_data or _spread(images.train)
        energy = recipe.make_energy(recipe.fresh_psi(images.train.shape[1], spread))
        objective: Objective[Any] = ScoreMatching(energy, spread, consistency=recipe.consistency)
    else:
        spread = denoiser.sigma_data
        psi = recipe.fresh_psi(images.train.shape[1], spread)
        if recipe.form != "scalar":
            psi.load_state_dict(denoiser.state_dict())
        energy = recipe.make_energy(psi)
        objective = Distillation(energy, denoiser, spread, consistency=recipe.consistency)

    def measure(average: nn.Module) -> Mapping[str, Any]:
        assert isinstance(average, Denoiser)
        found: dict[str, Any] = {"psnr": denoising_psnr(average.denoise, shown, recipe.sigmas, recipe.peak)}
        if denoiser is not None:
            found["relative_residual"] = relative_residual(average, denoiser, shown, recipe.sigmas)
        return found

    average, line = _run(objective, images, settings, recipe, where, where.out / "energy", measure)
    target = where.out / f"{recipe.name}.safetensors"
    if average is not None:
        assert isinstance(average, Denoiser)
        card = _card(recipe, images, settings, line)
        if denoiser is not None:
            with torch.no_grad():
                card["metrics"]["teacher_psnr"] = denoising_psnr(denoiser, shown, recipe.sigmas, recipe.peak)
        save(average, target, card)
    return target


def _run(
    objective: Objective[Any],
    images: Images,
    settings: Settings,
    recipe: Recipe,
    where: Where,
    folder: Path,
    measure: Any,
) -> tuple[Any, dict[str, Any]]:
    """Train; the averaged network and its last measurements on rank 0 once all steps are done, else None."""
    fabric = make_fabric(where.device, settings.precision)
    trained = fit(
        objective,
        images.train,
        settings,
        folder=folder,
        augment=recipe.augment,
        measure=measure,
        measure_every=max(1, settings.steps // 10),
        resume=where.resume,
        stop_after=where.stop_after,
        fabric=fabric,
        progress=where.progress,
        identity={"recipe": recipe.name, "network": dict(recipe.network), "augment": str(recipe.augment)},
    )
    if not (trained.finished and fabric.is_global_zero):
        return None, {}
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    return trained.network.cpu().eval(), json.loads(lines[-1])


def held_out_images(recipe: Recipe, images: Images, most: int) -> Tensor:
    """Validation images, evenly picked where there are more, with phases of the recipe's kind from a fixed seed."""
    held = images.validation
    picked = held[torch.linspace(0, len(held) - 1, min(most, len(held))).round().long()]
    keys = ("phase", "phase_amplitude", "phase_cutoff")
    phases = Augment(**{key: getattr(recipe.augment, key) for key in keys})
    return phases(picked, torch.Generator().manual_seed(0))


def make_fabric(device: str, precision: str) -> Fabric:
    """The engine's Fabric: one process, or as many as torchrun started.

    Raises: ValueError for a device other than cpu, cuda or cuda:N.
    """
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"training: device is {device!r}, expected cpu, cuda or cuda:N")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", str(world)))
        return Fabric(
            accelerator=kind,
            devices=local,
            num_nodes=world // local,
            strategy="ddp",
            precision=precision,  # type: ignore[arg-type]
        )
    devices: Any = [int(number)] if number else 1
    return Fabric(accelerator=kind, devices=devices, precision=precision)  # type: ignore[arg-type]


def _needed(settings: Settings | None, recipe: Recipe, table: str) -> Settings:
    if settings is None:
        raise ValueError(f"{recipe.name}: the recipe has no [{table}], which is needed to train one")
    return settings


def _spread(images: Tensor) -> float:
    """The standard deviation about zero of a real entry, to three digits: sigma_data."""
    entries = images.numel() * (2 if images.is_complex() else 1)
    return float(f"{float((images.abs().double().square().sum() / entries).sqrt()):.3g}")


def teacher_network(path: Path) -> EDM:
    """The network of a teacher's file.

    Raises: ValueError for a file that holds something else.
    """
    model = load(path)
    if not isinstance(model, ScoreModel) or not isinstance(model.denoiser, EDM):
        raise ValueError(  # noqa: TRY004 - the file is wrong, not a type in the caller's program
            f"{path}: holds a {type(model).__name__}, expected a teacher, as train teacher writes it"
        )
    return model.denoiser


def _card(recipe: Recipe, images: Images, settings: Settings, line: Mapping[str, Any]) -> dict[str, Any]:
    """The header of the weights: what the recipe says, what was read, how it was trained and how well it did."""
    shape = list(images.train.shape[1:])
    return {
        "name": recipe.name,
        **recipe.card,
        "images": {"shape": shape, "complex": images.train.is_complex(), "peak": recipe.peak},
        "sources": list(images.notes),
        "trained_on": len(images.train),
        "validated_on": len(images.validation),
        "training": settings.as_dict(),
        "metrics": {k: v for k, v in line.items() if k not in ("step", "loss")},
        "code_version": version("potentia"),
    }
