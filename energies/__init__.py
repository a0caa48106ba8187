"""Priors: which images are likely.

Analytic and multi-scale: ``Gaussian``, ``GaussianField``, ``GaussianMixture``. Learned and multi-scale: ``Denoiser``,
and ``ScoreModel``, which has scores but no values. Hand-made, without scales: ``TotalVariation``, ``Sparsity`` (in a
``Wavelet`` or ``DCT`` basis), ``FieldsOfExperts``, ``StudentT``. Your own: ``Function``.
"""

if __name__ != "potentia.energies":
    raise ImportError("use potentia.energies, not the bare folder name")

from potentia.energies._denoiser import Denoiser, ScoreModel
from potentia.energies._experts import FieldsOfExperts, StudentT
from potentia.energies._field import GaussianField
from potentia.energies._function import Function
from potentia.energies._gaussian import Gaussian
from potentia.energies._mixture import GaussianMixture
from potentia.energies._sparsity import Sparsity
from potentia.energies._transforms import DCT, Wavelet
from potentia.energies._variation import TotalVariation

__all__ = [
    "DCT",
    "Denoiser",
    "FieldsOfExperts",
    "Function",
    "Gaussian",
    "GaussianField",
    "GaussianMixture",
    "ScoreModel",
    "Sparsity",
    "StudentT",
    "TotalVariation",
    "Wavelet",
]
