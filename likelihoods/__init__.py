"""Likelihoods: noise models, and the forward operators that they stand on."""

if __name__ != "potentia.likelihoods":
    raise ImportError("use potentia.likelihoods, not the bare folder name")

from potentia.likelihoods._basic import Downsample, Identity, Mask, Matrix
from potentia.likelihoods._convolution import Convolution, GaussianBlur, MotionBlur
from potentia.likelihoods._gaussian import Gaussian
from potentia.likelihoods._mri import Fourier, Sense
from potentia.likelihoods._operator import Operator
from potentia.likelihoods._simulation import birdcage_maps, cartesian_mask

__all__ = [
    "Convolution",
    "Downsample",
    "Fourier",
    "Gaussian",
    "GaussianBlur",
    "Identity",
    "Mask",
    "Matrix",
    "MotionBlur",
    "Operator",
    "Sense",
    "birdcage_maps",
    "cartesian_mask",
]
