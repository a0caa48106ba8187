"""Inference: samplers, point estimates, diagnostics, and ``sample``, which runs a sampler and keeps what it draws."""

from typing import TYPE_CHECKING, Any

if __name__ != "potentia.inference":
    raise ImportError("use potentia.inference, not the bare folder name")

from potentia._random import standard_normal
from potentia.inference._alps import ALPS
from potentia.inference._calibrated import Calibrated
from potentia.inference._calibration import SBCResult, simulation_based_calibration
from potentia.inference._chained import Chained
from potentia.inference._chees import ChEES
from potentia.inference._daps import DAPS
from potentia.inference._dataset import FailedItemsWarning, Reconstruction, sample_dataset
from potentia.inference._diagnostics import ess, mcse, nested_rhat, rhat
from potentia.inference._diffpir import DiffPIR
from potentia.inference._dps import DPS
from potentia.inference._evidence import Evidence, EvidenceWarning, log_evidence
from potentia.inference._geweke import GewekeResult, geweke_test
from potentia.inference._gibbs import Gibbs
from potentia.inference._hmc import HMC
from potentia.inference._langevin import Langevin
from potentia.inference._mala import MALA
from potentia.inference._map import MapEstimate, map_estimate
from potentia.inference._mmps import MMPS
from potentia.inference._mmse import MmseEstimate, mmse
from potentia.inference._parameters import NoiseStd, Parameter, Unknown, Weight
from potentia.inference._pixels import pixel_diagnostics
from potentia.inference._precondition import Preconditioner
from potentia.inference._predictive import PredictiveCheck, posterior_predictive_check
from potentia.inference._protocol import Info, Sampler, State
from potentia.inference._pyro import Homogeneous, Normaliser, PotentialFunction, PyroModel, potential_fn, pyro_model
from potentia.inference._rank_histogram import RankHistogram, rank_histogram
from potentia.inference._rules import Rule
from potentia.inference._sample import sample
from potentia.inference._smc import SMC
from potentia.inference._split_gibbs import SplitGibbs
from potentia.inference._summary import DiagnosticWarning, Summary, summary, without_diagnostics
from potentia.inference._tarp import TARPResult, tarp
from potentia.inference._tempering import ParallelTempering
from potentia.inference._twisted import TwistedSMC

if TYPE_CHECKING:
    from potentia.inference._pyro_kernel import PyroMALA

__all__ = [
    "ALPS",
    "DAPS",
    "DPS",
    "HMC",
    "MALA",
    "MMPS",
    "SMC",
    "Calibrated",
    "ChEES",
    "Chained",
    "DiagnosticWarning",
    "DiffPIR",
    "Evidence",
    "EvidenceWarning",
    "FailedItemsWarning",
    "GewekeResult",
    "Gibbs",
    "Homogeneous",
    "Info",
    "Langevin",
    "MapEstimate",
    "MmseEstimate",
    "NoiseStd",
    "Normaliser",
    "ParallelTempering",
    "Parameter",
    "PotentialFunction",
    "Preconditioner",
    "PredictiveCheck",
    "PyroMALA",
    "PyroModel",
    "RankHistogram",
    "Reconstruction",
    "Rule",
    "SBCResult",
    "Sampler",
    "SplitGibbs",
    "State",
    "Summary",
    "TARPResult",
    "TwistedSMC",
    "Unknown",
    "Weight",
    "ess",
    "geweke_test",
    "log_evidence",
    "map_estimate",
    "mcse",
    "mmse",
    "nested_rhat",
    "pixel_diagnostics",
    "posterior_predictive_check",
    "potential_fn",
    "pyro_model",
    "rank_histogram",
    "rhat",
    "sample",
    "sample_dataset",
    "simulation_based_calibration",
    "standard_normal",
    "summary",
    "tarp",
    "without_diagnostics",
]


def __getattr__(name: str) -> Any:
    """Load what subclasses Pyro's classes, and Pyro with it, when it is first asked for."""
    if name == "PyroMALA":
        from potentia.inference._pyro_kernel import PyroMALA

        return PyroMALA
    raise AttributeError(f"module 'potentia.inference' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
