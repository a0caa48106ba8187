"""Conformance checks and Hypothesis strategies, for the classes of this package and for yours.

``check_energy(MyEnergy(), images)`` raises an AssertionError that says which promise of ``Potential`` the class breaks;
``check_multiscale``, ``check_gaussian_oracle``, ``check_sum``, ``check_forward_model``, ``check_operator`` and
``check_quadratic`` look at the rest, ``check_kernel`` at samplers. ``strategies`` draws shapes, images, scales and
instances of every public class; ``examples`` lists the instances.

Source: the idea of public contract tests is NIFTy's (``extra.py``) and zarr's (``zarr.testing``).
"""

from potentia.testing import examples, strategies
from potentia.testing._energy import check_energy
from potentia.testing._forward_model import check_forward_model
from potentia.testing._kernel import check_kernel
from potentia.testing._multiscale import check_gaussian_oracle, check_multiscale
from potentia.testing._operator import check_operator
from potentia.testing._quadratic import check_quadratic
from potentia.testing._sum import check_sum

__all__ = [
    "check_energy",
    "check_forward_model",
    "check_gaussian_oracle",
    "check_kernel",
    "check_multiscale",
    "check_operator",
    "check_quadratic",
    "check_sum",
    "examples",
    "strategies",
]
