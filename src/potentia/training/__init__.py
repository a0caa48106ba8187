"""Training of priors: a diffusion teacher, its energy, and how good they are."""

from potentia.training._engine import Trained, fit
from potentia.training._evaluate import (
    asymmetry,
    denoising_psnr,
    energy_asymmetry,
    energy_values,
    ordering,
    psnr,
    relative_residual,
    roc_area,
)
from potentia.training._noise import LogNormal, LogUniform
from potentia.training._objectives import Denoising, Distillation, Objective, ScoreMatching
from potentia.training._settings import Settings

__all__ = [
    "Denoising",
    "Distillation",
    "LogNormal",
    "LogUniform",
    "Objective",
    "ScoreMatching",
    "Settings",
    "Trained",
    "asymmetry",
    "denoising_psnr",
    "energy_asymmetry",
    "energy_values",
    "fit",
    "ordering",
    "psnr",
    "relative_residual",
    "roc_area",
]
