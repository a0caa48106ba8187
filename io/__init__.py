"""Ensembles on disk and in memory, and readers of images and scans."""

if __name__ != "potentia.io":
    raise ImportError("use potentia.io, not the bare folder name")

from potentia.io._collection import Collection, open_collection
from potentia.io._ensemble import Ensemble, open_ensemble
from potentia.io._errors import StoreError, StoreExistsError
from potentia.io._modes import Modes
from potentia.io._readers import read_array, read_image, scale_to_percentile
from potentia.io._truth import Calibration
from potentia.io._writer import Durability, EnsembleWriter, check_target

__all__ = [
    "Calibration",
    "Collection",
    "Durability",
    "Ensemble",
    "EnsembleWriter",
    "Modes",
    "StoreError",
    "StoreExistsError",
    "check_target",
    "open_collection",
    "open_ensemble",
    "read_array",
    "read_image",
    "scale_to_percentile",
]
