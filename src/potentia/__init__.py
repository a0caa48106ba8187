"""Potentia: compose energies and likelihoods into posteriors of images, sample them, and trust the spread.

``prior + likelihood`` is a posterior potential; ``sample`` draws an ensemble from it. The layers are
``potentia.energies``, ``likelihoods``, ``annealers``, ``inference``, ``io`` and ``testing``.
"""

import importlib
from typing import TYPE_CHECKING, Any

from potentia._algebra import Sum
from potentia._cg import ConvergenceWarning
from potentia._potential import Energy, Likelihood, Potential, ScoreOnly
from potentia._quadratic import Quadratic

if TYPE_CHECKING:
    from potentia import annealers, energies, inference, io, likelihoods, testing
    from potentia.inference import DiagnosticWarning, map_estimate, sample, summary
    from potentia.io import Ensemble, open_ensemble

    __version__: str

__all__ = [
    "ConvergenceWarning",
    "DiagnosticWarning",
    "Energy",
    "Ensemble",
    "Likelihood",
    "Potential",
    "Quadratic",
    "ScoreOnly",
    "Sum",
    "annealers",
    "energies",
    "inference",
    "io",
    "likelihoods",
    "map_estimate",
    "open_ensemble",
    "sample",
    "summary",
    "testing",
]

_LAYERS = {"annealers", "energies", "inference", "io", "likelihoods", "testing"}
_HOMES = {
    "sample": "potentia.inference",
    "DiagnosticWarning": "potentia.inference",
    "map_estimate": "potentia.inference",
    "summary": "potentia.inference",
    "Ensemble": "potentia.io",
    "open_ensemble": "potentia.io",
}


def __getattr__(name: str) -> Any:
    """Load a layer, or what the facade hands on from one, when first asked for; the version is the installed one."""
    if name in _LAYERS:
        return importlib.import_module(f"potentia.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("potentia")
    raise AttributeError(f"module 'potentia' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
