"""Recipes: one TOML file that says everything about a prior and its training."""

import importlib.resources
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from torch import nn

from potentia._validate import positive
from potentia.energies import EDM, Denoiser, EDMPotential, ScaleOffset, UNet
from potentia.energies._denoiser import Form
from potentia.training._augment import Augment
from potentia.training._settings import Settings

TABLES = {"card", "data", "augment", "network", "teacher", "energy", "evaluate"}
ENERGY_KEYS = {"form", "scales", "consistency"}
NETWORK_KEYS = {"widths", "blocks", "attention", "embedding", "patch", "sigma_data"}
EVALUATE_KEYS = {"sigmas", "peak", "images"}
SIGMAS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


@dataclass(frozen=True)
class Recipe:
    """A recipe as read: what to train on, what network, how long, and how to judge it."""

    name: str
    card: Mapping[str, Any]
    data: Mapping[str, Any]
    augment: Augment
    network: Mapping[str, Any]
    sigma_data: float | None
    teacher: Settings | None
    energy: Settings | None
    form: Form
    scales: tuple[float, float]
    consistency: float
    sigmas: tuple[float, ...]
    peak: float
    images: int

    @property
    def is_complex(self) -> bool:
        """Whether images are complex."""
        return bool(self.data.get("complex", False))

    def unet(self, channels: int, *, outputs: int | None = None) -> UNet:
        """A fresh network for images of that many channels."""
        parts = channels * (2 if self.is_complex else 1)
        return UNet(parts, outputs, **self.network)

    def denoiser(self, channels: int, sigma_data: float) -> EDM:
        """A fresh teacher."""
        return EDM(self.unet(channels), sigma_data)

    def make_energy(self, psi: nn.Module) -> Denoiser:
        """The energy of a network, with an offset where scales are to be made comparable."""
        offset = ScaleOffset(*self.scales) if self.consistency else None
        return Denoiser(cast(Any, psi), self.scales, form=self.form, offset=offset)

    def fresh_psi(self, channels: int, sigma_data: float) -> nn.Module:
        """A network of the recipe's form, untrained."""
        if self.form == "scalar":
            return EDMPotential(self.unet(channels, outputs=1), sigma_data)
        return self.denoiser(channels, sigma_data)


def shipped_recipes() -> tuple[str, ...]:
    """The names of the recipes that come with the package."""
    folder = importlib.resources.files("potentia.training") / "recipes"
    if not folder.is_dir():
        return ()
    return tuple(sorted(p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml")))


def read_recipe(name_or_path: str | Path, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe by the name of one that comes with the package or by path.

    ``changes`` are settings in TOML that override the file's, such as "teacher.steps=100".

    Raises: FileNotFoundError; ValueError for what is no TOML, and for unknown, missing or wrong settings.
    """
    text = str(name_or_path)
    path = Path(text)
    if text in shipped_recipes() and not path.exists():
        path = Path(str(importlib.resources.files("potentia.training") / "recipes" / f"{text}.toml"))
    if not path.is_file():
        raise FileNotFoundError(
            f"{text}: is neither a file nor a recipe of the package, expected a path or one of "
            f"{', '.join(shipped_recipes()) or 'none yet'}"
        )
    try:
        spec = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise ValueError(f"{path}: is no TOML: {err}") from err
    for change in changes:
        _merge(spec, change)
    return _recipe(str(path), spec, path.stem)


def _merge(spec: dict[str, Any], change: str) -> None:
    try:
        override = tomllib.loads(change)
    except tomllib.TOMLDecodeError as err:
        raise ValueError(f"{change!r}: is no TOML setting, expected such as teacher.steps=100: {err}") from err

    def into(target: dict[str, Any], source: dict[str, Any]) -> None:
        for key, value in source.items():
            if isinstance(value, dict) and isinstance(target.get(key), dict):
                into(target[key], value)
            else:
                target[key] = value

    into(spec, override)


def _recipe(where: str, spec: Mapping[str, Any], stem: str) -> Recipe:
    _known(where, "the recipe", spec, {"name", *TABLES})
    if "data" not in spec:
        raise ValueError(f"{where}: has no [data]")
    network, energy, judged = (dict(spec.get(t, {})) for t in ("network", "energy", "evaluate"))
    _known(where, "[network]", network, NETWORK_KEYS)
    _known(where, "[evaluate]", judged, EVALUATE_KEYS)
    own = {k: energy.pop(k) for k in ENERGY_KEYS if k in energy}
    form = own.get("form", "residual")
    if form not in get_args(Form):
        raise ValueError(f"{where}: form is {form!r}, expected one of {', '.join(get_args(Form))}")
    sigma_data = network.pop("sigma_data", None)
    return Recipe(
        name=str(spec.get("name", stem)),
        card=dict(spec.get("card", {})),
        data=spec["data"],
        augment=Augment.from_spec(spec.get("augment", {})),
        network=network,
        sigma_data=None if sigma_data is None else positive(where, "sigma_data", sigma_data),
        teacher=Settings.from_spec(f"{where}: [teacher]", spec["teacher"]) if "teacher" in spec else None,
        energy=Settings.from_spec(f"{where}: [energy]", energy) if energy else None,
        form=form,
        scales=tuple(own.get("scales", (0.01, 10.0))),
        consistency=float(own.get("consistency", 0.0)),
        sigmas=tuple(judged.get("sigmas", SIGMAS)),
        peak=float(judged.get("peak", 2.0)),
        images=int(judged.get("images", 256)),
    )


def _known(where: str, what: str, given: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(set(given) - known)
    if unknown:
        raise ValueError(f"{where}: {what} has unknown keys {', '.join(unknown)}, expected {', '.join(sorted(known))}")
