"""Inference: samplers, point estimates, and ``sample``, which runs a sampler and keeps what it draws."""

if __name__ != "potentia.inference":
    raise ImportError("use potentia.inference, not the bare folder name")

from potentia.inference._alps import ALPS
from potentia.inference._chained import Chained
from potentia.inference._langevin import Langevin
from potentia.inference._map import map_estimate
from potentia.inference._precondition import Preconditioner
from potentia.inference._protocol import Info, Sampler, State
from potentia.inference._rules import Rule
from potentia.inference._sample import sample

__all__ = ["ALPS", "Chained", "Info", "Langevin", "Preconditioner", "Rule", "Sampler", "State", "map_estimate", "sample"]
