"""Likelihoods: noise models, and the forward operators that they stand on."""

if __name__ != "potentia.likelihoods":
    raise ImportError("use potentia.likelihoods, not the bare folder name")

from potentia.likelihoods._additive import Laplace, StudentT
from potentia.likelihoods._basic import Downsample, Identity, Mask, Matrix
from potentia.likelihoods._blur import ProductConvolution, ValidConvolution
from potentia.likelihoods._colour import Bayer, ChannelMix
from potentia.likelihoods._convolution import Convolution, GaussianBlur, MotionBlur
from potentia.likelihoods._deepinv import from_deepinv
from potentia.likelihoods._forward_model import ForwardModel
from potentia.likelihoods._gamma import Gamma
from potentia.likelihoods._gaussian import Gaussian
from potentia.likelihoods._mri import Fourier, Sense
from potentia.likelihoods._multi_slice import SimultaneousSlices, caipi_phases
from potentia.likelihoods._noise import NoiseModel
from potentia.likelihoods._non_cartesian import NonCartesian, density_weights
from potentia.likelihoods._off_resonance import OffResonance
from potentia.likelihoods._operator import Operator
from potentia.likelihoods._phase_retrieval import CodedDiffraction, FourierPhaseRetrieval, PaddedFourier, PhaseRetrieval
from potentia.likelihoods._poisson import Poisson
from potentia.likelihoods._poisson_gaussian import PoissonGaussian
from potentia.likelihoods._pylops import from_pylops
from potentia.likelihoods._quantised import Quantised
from potentia.likelihoods._rician import Rician
from potentia.likelihoods._sampling import (
    equispaced_mask,
    partial_fourier_mask,
    poisson_disk_mask,
    random_mask,
)
from potentia.likelihoods._simulation import birdcage_maps, cartesian_mask
from potentia.likelihoods._stack import Stack
from potentia.likelihoods._structured_random import StructuredRandom
from potentia.likelihoods._super_resolution import SuperResolution
from potentia.likelihoods._tomography import FanBeam, Radon
from potentia.likelihoods._tone_curve import ToneCurve
from potentia.likelihoods._trajectories import radial_trajectory, spiral_trajectory

__all__ = [
    "Bayer",
    "ChannelMix",
    "CodedDiffraction",
    "Convolution",
    "Downsample",
    "FanBeam",
    "ForwardModel",
    "Fourier",
    "FourierPhaseRetrieval",
    "Gamma",
    "Gaussian",
    "GaussianBlur",
    "Identity",
    "Laplace",
    "Mask",
    "Matrix",
    "MotionBlur",
    "NoiseModel",
    "NonCartesian",
    "OffResonance",
    "Operator",
    "PaddedFourier",
    "PhaseRetrieval",
    "Poisson",
    "PoissonGaussian",
    "ProductConvolution",
    "Quantised",
    "Radon",
    "Rician",
    "Sense",
    "SimultaneousSlices",
    "Stack",
    "StructuredRandom",
    "StudentT",
    "SuperResolution",
    "ToneCurve",
    "ValidConvolution",
    "birdcage_maps",
    "caipi_phases",
    "cartesian_mask",
    "density_weights",
    "equispaced_mask",
    "from_deepinv",
    "from_pylops",
    "partial_fourier_mask",
    "poisson_disk_mask",
    "radial_trajectory",
    "random_mask",
    "spiral_trajectory",
]
