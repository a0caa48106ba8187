"""A prior of small curvature and an operator of row and column sums, for potentia."""

from potentia_curvature._energy import Curvature
from potentia_curvature._operator import Margins

__all__ = ["Curvature", "Margins"]
