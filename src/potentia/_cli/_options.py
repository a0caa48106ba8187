"""Options of ``potentia sample``."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SampleOptions:
    """Options of ``potentia sample``."""

    data: str
    noise_std: float | None
    store: str
    task: str | None = None
    acceleration: float | None = None
    coils: int | None = None
    mask: str | None = None
    coil_maps: str | None = None
    blur: float | None = None
    prior: str = "gaussian-field"
    prior_data: tuple[str, ...] = ()
    sampler: str | None = None
    budget: int = 100
    sigma_max: float | None = None
    sigma_min: float | None = None
    levels: int | None = None
    steps: int | None = None
    chains: int = 16
    draws: int = 1
    seed: int = 0
    device: str | None = None
    dtype: str | None = None
    truth: str | None = None
    plot: Path | None = None
    page: Path | None = None
    index: int | None = None
    slice_axis: int = 2
    overwrite: bool = False
    resume: bool = False
    durability: str = "process"
