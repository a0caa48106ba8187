"""One rung of an annealer."""

from dataclasses import dataclass

from potentia.annealers import _checks


@dataclass(frozen=True)
class Level:
    """One noise scale: where the sampler stays, how warm, for how many steps and how large.

    Temperature 0 asks for a minimum instead of samples; steps None leaves their number to the sampler.

    Units:  sigma is in the image's unit; the temperature divides the potential; step_size is the drift's factor eps.
    Raises: TypeError for what is no number; ValueError if sigma or step_size is not finite and above zero, the
        temperature is below zero, or there are fewer than one steps.
    """

    sigma: float
    temperature: float = 1.0
    steps: int | None = None
    step_size: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigma", _checks.positive("Level: sigma", self.sigma))
        object.__setattr__(self, "temperature", _checks.not_negative("Level: temperature", self.temperature))
        object.__setattr__(self, "step_size", _checks.positive("Level: step_size", self.step_size))
        if self.steps is not None:
            object.__setattr__(self, "steps", _checks.count("Level: steps", self.steps))
