"""Energies in files: tensors in safetensors, everything else in its JSON header."""

import importlib.resources
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from potentia._files import written_whole
from potentia._potential import Energy
from potentia._validate import shape_text
from potentia.energies._denoiser import Denoiser, ScoreModel
from potentia.energies._edm import EDM, EDMPotential
from potentia.energies._offset import ScaleOffset
from potentia.energies._shared import optional
from potentia.energies._unet import UNet

FORMAT = 1
KEY = "potentia"
SUFFIX = ".safetensors"
HUB = "hf://"
HUB_FILE = "energy.safetensors"
# The one place where names in files meet classes; nothing else in a file is looked up.
NETWORKS: dict[str, type[nn.Module]] = {"UNet": UNet}
ENERGIES: dict[str, type[nn.Module]] = {"Denoiser": Denoiser, "ScoreModel": ScoreModel}
PRECONDITIONERS: dict[str, type[nn.Module]] = {"EDM": EDM, "EDMPotential": EDMPotential}
PRECISIONS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
FIELDS = {"format", "energy", "preconditioning", "network", "offset", "card"}


@dataclass(frozen=True)
class Card:
    """What a file of weights says about itself.

    ``info`` holds what its maker wrote: name, images (channels, size, complex or real, range), training data and
    licence, metrics, code version. The other fields are what the energy is rebuilt from.
    """

    energy: Mapping[str, Any]
    preconditioning: Mapping[str, Any]
    network: Mapping[str, Any]
    offset: Mapping[str, Any] | None
    info: Mapping[str, Any] = field(default_factory=dict)


def save(energy: Energy, path: str | Path, info: Mapping[str, Any] | None = None) -> Path:
    """Write an energy made of the package's networks as safetensors with a JSON header.

    ``energy`` is a ``Denoiser`` or ``ScoreModel`` of an ``EDM`` or ``EDMPotential`` network. ``info`` is kept in the
    header: name, training data and licence, range of the images, metrics. The file appears whole or not at all.

    Raises: TypeError for an energy or a network that a file cannot describe; ValueError for info that is no JSON.
    """
    path = Path(path)
    net = energy.psi if isinstance(energy, Denoiser) else energy.denoiser if isinstance(energy, ScoreModel) else None
    known = [type(energy) in ENERGIES.values(), type(net) in PRECONDITIONERS.values()]
    if not all(known) or not isinstance(net, EDM | EDMPotential) or not isinstance(net.network, UNet):
        raise TypeError(
            f"save: {energy.name} is a {type(energy).__name__} of {type(net).__name__}, "
            "expected a Denoiser or ScoreModel of EDM(UNet) or EDMPotential(UNet)"
        )
    offset = energy.offset if isinstance(energy, Denoiser) else None
    if offset is not None and not isinstance(offset, ScaleOffset):
        raise TypeError(f"save: {energy.name} has an offset of {type(offset).__name__}, expected a ScaleOffset")
    scales = cast("tuple[float, float]", energy.scales)
    shape = None if energy.event_shape is None else list(energy.event_shape)
    described: dict[str, Any] = {"class": type(energy).__name__, "scales": list(scales), "shape": shape}
    if isinstance(energy, Denoiser):
        described["form"] = energy.form
    header: dict[str, Any] = {
        "format": FORMAT,
        "energy": described,
        "preconditioning": {"class": type(net).__name__, "sigma_data": net.sigma_data},
        "network": {"class": type(net.network).__name__, **net.network.settings},
        "offset": None if offset is None else offset.settings,
    }
    try:
        text = json.dumps({**header, "card": dict(info or {})}, allow_nan=False, sort_keys=True)
    except (TypeError, ValueError, RecursionError) as err:
        raise ValueError(f"save: info of {path} is no JSON: {err}") from err
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().contiguous().cpu() for k, v in energy.state_dict().items()}
    with written_whole(path) as part:
        # Written by Python, which leaves the file readable to whom the user's umask says.
        part.write_bytes(serialize(tensors, metadata={KEY: text}))
    return path


def load(name_or_path: str | Path) -> Energy:
    """Read an energy: by the name of one that comes with the package, a path, or hf://owner/name[/file][@revision].

    A name is letters, digits and dashes without a suffix, such as "digits-28"; ``shipped()`` lists them. Hugging Face
    files come through huggingface_hub and its cache. Only tensors and JSON are read, and nothing in a file is executed.
    The energy is on the CPU, in double precision if the file is and in single precision otherwise, in evaluation mode,
    and its parameters require no gradients.

    Raises: FileNotFoundError for what is not there, with the names there are; ValueError for a file that is corrupt,
        cut short, a pickle, of another format or whose tensors do not fit its header; ImportError without
        huggingface_hub.
    """
    path = _locate(name_or_path)
    card, tensors = _read(path, tensors=True)
    return _build(path, card, tensors).eval().requires_grad_(False)


def read_card(name_or_path: str | Path) -> Card:
    """Read the header of a file of weights alone.

    Raises: as ``load``.
    """
    return _read(_locate(name_or_path), tensors=False)[0]


def shipped() -> tuple[str, ...]:
    """The names of the energies that come with the package."""
    folder = importlib.resources.files("potentia.energies") / "weights"
    if not folder.is_dir():
        return ()
    return tuple(sorted(p.name.removesuffix(SUFFIX) for p in folder.iterdir() if p.name.endswith(SUFFIX)))


def _locate(name_or_path: str | Path) -> Path:
    text = str(name_or_path)
    if text.startswith(HUB):
        return _fetch(text)
    path = Path(text)
    if path.is_file():
        return path
    if text in shipped():
        return Path(str(importlib.resources.files("potentia.energies") / "weights" / (text + SUFFIX)))
    raise FileNotFoundError(
        f"{text}: is neither a file nor an energy of the package, expected a path, hf://owner/name, or one of "
        f"{', '.join(shipped()) or 'none yet'}"
    )


def _fetch(address: str) -> Path:
    hub = optional("huggingface_hub", "hub", "load")
    place, _, revision = address.removeprefix(HUB).partition("@")
    parts = place.split("/")
    if len(parts) < 2 or not all(parts):
        raise ValueError(f"{address}: expected hf://owner/name, hf://owner/name/file, or either with @revision")
    file = "/".join(parts[2:]) or HUB_FILE
    try:
        return Path(hub.hf_hub_download("/".join(parts[:2]), file, revision=revision or None))
    except (OSError, ValueError) as err:  # what the hub raises for missing files, repositories and networks
        what = next(iter(str(err).splitlines()), type(err).__name__)
        raise FileNotFoundError(f"{address}: cannot be fetched: {what}") from err


def _read(path: Path, *, tensors: bool) -> tuple[Card, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            held = {k: file.get_tensor(k) for k in file.keys()} if tensors else {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as err:
        raise ValueError(f"{path}: cannot be read as safetensors: {err}") from err
    if KEY not in metadata:
        raise ValueError(f"{path}: has no {KEY} header, expected a file written by energies.save")
    try:
        header = json.loads(metadata[KEY])
    except (ValueError, RecursionError) as err:
        raise ValueError(f"{path}: its header is no JSON: {err}") from err
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        got = header.get("format") if isinstance(header, dict) else header
        raise ValueError(f"{path}: has format {got!r}, this version reads {FORMAT}")
    if set(header) != FIELDS:
        raise ValueError(f"{path}: its header has {sorted(header)}, expected {sorted(FIELDS)}")
    for what in sorted(FIELDS - {"format"}):
        if not (isinstance(header[what], dict) or (what == "offset" and header[what] is None)):
            raise ValueError(f"{path}: {what} of its header is {type(header[what]).__name__}, expected an object")
    card = Card(header["energy"], header["preconditioning"], header["network"], header["offset"], header["card"])
    return card, held


def _build(path: Path, card: Card, tensors: Mapping[str, Tensor]) -> Energy:
    """Rebuild an energy, once it is known to be no larger than the file."""
    try:
        _refuse_more_blocks(card.network, len(tensors))
        # The meta device allocates nothing, whatever sizes a header asks for.
        with torch.device("meta"):
            sketch = _assemble(card)
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError, RuntimeError) as err:
        raise ValueError(f"{path}: its header describes no energy of this version: {err}") from err
    _refuse_misfit(path, sketch, tensors)
    # A network starts with random numbers, which are not to be taken from the caller's.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        energy = _assemble(card)
    double = any(t.dtype == torch.float64 for t in tensors.values())
    energy.to(torch.float64 if double else torch.float32).load_state_dict(dict(tensors))
    return energy


def _assemble(card: Card) -> Energy:
    network = _make(NETWORKS, card.network)
    net = _make(PRECONDITIONERS, card.preconditioning, network)
    offset = {} if card.offset is None else {"offset": ScaleOffset(**card.offset)}
    return cast(Energy, _make(ENERGIES, card.energy, net, **offset))


def _refuse_more_blocks(network: Mapping[str, Any], tensors: int) -> None:
    """Refuse a network of more blocks than the file has tensors, which would take forever even without memory."""
    blocks, widths = network.get("blocks", 1), network.get("widths", ())
    if isinstance(blocks, int) and blocks * len(widths) > tensors:
        raise ValueError(f"network has {len(widths)} levels of {blocks} blocks, the file {tensors} tensors")


def _make(classes: Mapping[str, type[nn.Module]], described: Mapping[str, Any], *args: Any, **given: Any) -> Any:
    """Call the class that a part of a header names."""
    settings = {**described, **given}
    name = settings.pop("class")
    if name not in classes:
        raise ValueError(f"class is {name!r}, expected {' or '.join(classes)}")
    return classes[name](*args, **settings)


def _refuse_misfit(path: Path, energy: Energy, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are not those of an energy, by name, shape, kind and finiteness."""
    wanted = {k: tuple(v.shape) for k, v in energy.state_dict().items()}
    missing, surplus = sorted(set(wanted) - set(tensors)), sorted(set(tensors) - set(wanted))
    if missing or surplus:
        raise ValueError(
            f"{path}: lacks {missing[:3] or 'nothing'}, has {surplus[:3] or 'nothing'} beside, against its header"
        )
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != shape:
            raise ValueError(
                f"{path}: {name} has shape {shape_text(tuple(tensors[name].shape))}, "
                f"its header gives {shape_text(shape)}"
            )
        t = tensors[name]
        if t.dtype not in PRECISIONS:
            raise ValueError(f"{path}: {name} has dtype {t.dtype}, expected one of {', '.join(map(str, PRECISIONS))}")
        if not bool(torch.isfinite(t).all()):
            raise ValueError(f"{path}: {name} has entries that are not finite")
