"""Schedules: through which noise scales, at which temperatures and with how many steps to approach a posterior."""

if __name__ != "potentia.annealers":
    raise ImportError("use potentia.annealers, not the bare folder name")

from potentia.annealers._annealer import Annealer, Ladder
from potentia.annealers._families import Constant, Cosine, Geometric, Karras, Linear
from potentia.annealers._level import Level

__all__ = ["Annealer", "Constant", "Cosine", "Geometric", "Karras", "Ladder", "Level", "Linear"]
