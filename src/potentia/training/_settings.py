"""How long, how fast and on what noise a network is trained."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from potentia._validate import count, positive
from potentia.training._noise import LogUniform, NoiseScales, noise_from_spec

Precision = Literal["32-true", "64-true", "bf16-mixed", "16-mixed"]


@dataclass(frozen=True)
class Settings:
    """Settings of one training.

    ``batch`` counts the images of a step over all processes together; ``learning_rate`` is reached after ``warmup``
    steps and falls to zero by half a cosine; ``ema`` is the decay a step of the averaged weights, lower at the start;
    gradients are cut to the norm ``clip``; ``precision`` is Lightning Fabric's; ``compile`` runs the network through
    torch.compile, for teachers only, since it has no double backward.

    Raises: ValueError for a setting out of range.
    """

    steps: int
    batch: int = 64
    learning_rate: float = 1e-3
    warmup: int = 100
    ema: float = 0.999
    clip: float = 1.0
    noise: NoiseScales = field(default_factory=lambda: LogUniform(0.01, 10.0))
    precision: Precision = "32-true"
    seed: int = 0
    compile: bool = False

    def __post_init__(self) -> None:
        count("training", "steps", self.steps)
        count("training", "batch", self.batch)
        count("training", "warmup", self.warmup, least=0)
        count("training", "seed", self.seed, least=0)
        positive("training", "learning_rate", self.learning_rate)
        positive("training", "clip", self.clip)
        if not 0 <= self.ema < 1:
            raise ValueError(f"training: ema is {self.ema:g}, expected 0 to below 1")
        if self.precision not in get_args(Precision):
            raise ValueError(f"training: precision is {self.precision!r}, expected {', '.join(get_args(Precision))}")

    def rate(self, step: int) -> float:
        """The learning rate of step 0, 1, ..."""
        rise = min(1.0, (step + 1) / (self.warmup + 1))
        return self.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * step / self.steps))

    def as_dict(self) -> dict[str, Any]:
        """What tells one training from another, for checkpoints and headers."""
        return {**asdict(self), "noise": {"distribution": type(self.noise).__name__, **asdict(self.noise)}}  # type: ignore[call-overload]

    @classmethod
    def from_spec(cls, where: str, spec: Mapping[str, Any]) -> "Settings":
        """Read a table of a recipe.

        Raises: ValueError for unknown or missing keys and settings out of range.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(spec) - known)
        if unknown:
            raise ValueError(f"{where}: unknown keys {', '.join(unknown)}, expected some of {', '.join(sorted(known))}")
        if "steps" not in spec:
            raise ValueError(f"{where}: steps is missing")
        given = dict(spec)
        if "noise" in given:
            given["noise"] = noise_from_spec(where, given["noise"])
        return cls(**given)
