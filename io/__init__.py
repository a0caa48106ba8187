"""Ensembles on disk and in memory, and readers of images and scans."""

if __name__ != "potentia.io":
    raise ImportError("use potentia.io, not the bare folder name")

from potentia.io._bart import read_cfl, write_cfl
from potentia.io._coils import compress_coils, espirit_maps, mix_coils
from potentia.io._collection import Collection, open_collection
from potentia.io._ensemble import Ensemble, open_ensemble
from potentia.io._errors import StoreError, StoreExistsError
from potentia.io._kspace import centre_crop, remove_oversampling, sampling_mask, scale_kspace
from potentia.io._modes import Modes
from potentia.io._noise import estimate_noise_std, noise_covariance, noise_samples, prewhiten, whitening_matrix
from potentia.io._read_scan import read_scan
from potentia.io._readers import read_array, read_image, scale_to_percentile
from potentia.io._scan import Scan
from potentia.io._truth import Calibration
from potentia.io._writer import Durability, EnsembleWriter, check_target

__all__ = [
    "Calibration",
    "Collection",
    "Durability",
    "Ensemble",
    "EnsembleWriter",
    "Modes",
    "Scan",
    "StoreError",
    "StoreExistsError",
    "centre_crop",
    "check_target",
    "compress_coils",
    "espirit_maps",
    "estimate_noise_std",
    "mix_coils",
    "noise_covariance",
    "noise_samples",
    "open_collection",
    "open_ensemble",
    "prewhiten",
    "read_array",
    "read_cfl",
    "read_image",
    "read_scan",
    "remove_oversampling",
    "sampling_mask",
    "scale_kspace",
    "scale_to_percentile",
    "whitening_matrix",
    "write_cfl",
]
