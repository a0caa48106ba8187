"""Priors: which images are likely.

Analytic and multi-scale: ``Gaussian``, ``GaussianField``, ``GaussianMixture``. Learned and multi-scale: ``Denoiser``,
made of ``EDM`` or ``EDMPotential`` around a ``UNet``, and ``ScoreModel``, which has scores but no values. ``load``
reads those that come with the package (``shipped``), of a file or of a hub; ``save`` writes them. Denoisers from
elsewhere: ``from_diffusers``, ``from_deepinv``, ``from_function``, ``read_edm_pickle``. Without scales:
``TotalDeepVariation``, which is learned; ``TotalVariation``, ``Sparsity`` (in a ``Wavelet`` or ``DCT`` basis),
``FieldsOfExperts``, ``StudentT``. Your own: ``Function``.
"""

if __name__ != "potentia.energies":
    raise ImportError("use potentia.energies, not the bare folder name")

from potentia.energies._denoiser import Denoiser, ScoreModel
from potentia.energies._edm import EDM, EDMPotential
from potentia.energies._edm_checkpoint import convert_edm_pickle, read_edm_pickle
from potentia.energies._experts import FieldsOfExperts, StudentT
from potentia.energies._field import GaussianField
from potentia.energies._function import Function
from potentia.energies._gaussian import Gaussian
from potentia.energies._mixture import GaussianMixture
from potentia.energies._offset import ScaleOffset
from potentia.energies._outside import from_deepinv, from_diffusers, from_function
from potentia.energies._sparsity import Sparsity
from potentia.energies._tdv import TotalDeepVariation
from potentia.energies._transforms import DCT, Wavelet
from potentia.energies._unet import UNet
from potentia.energies._variation import TotalVariation
from potentia.energies._weights import Card, load, read_card, save, shipped

__all__ = [
    "DCT",
    "EDM",
    "Card",
    "Denoiser",
    "EDMPotential",
    "FieldsOfExperts",
    "Function",
    "Gaussian",
    "GaussianField",
    "GaussianMixture",
    "ScaleOffset",
    "ScoreModel",
    "Sparsity",
    "StudentT",
    "TotalDeepVariation",
    "TotalVariation",
    "UNet",
    "Wavelet",
    "convert_edm_pickle",
    "from_deepinv",
    "from_diffusers",
    "from_function",
    "load",
    "read_card",
    "read_edm_pickle",
    "save",
    "shipped",
]
