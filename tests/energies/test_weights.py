"""Files of weights: what comes back, and what is refused without being run."""

import json
import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from potentia import Energy
from potentia._random import standard_normal
from potentia.energies import (
    EDM,
    Denoiser,
    EDMPotential,
    Gaussian,
    ScaleOffset,
    ScoreModel,
    UNet,
    _weights,
    load,
    read_card,
    save,
    shipped,
)

SCALES = (0.05, 5.0)
SHAPE = (1, 5, 4)
INFO = {"name": "small", "images": {"channels": 1, "range": [0, 1]}, "note": "größer als 1/3", "psnr": 1 / 3}


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return standard_normal(shape, torch.Generator().manual_seed(seed), dtype=dtype)


def randomised(module: nn.Module) -> Any:
    for k, p in enumerate(module.parameters()):
        p.data = 0.2 * rand(*p.shape, seed=k, dtype=p.dtype)
    return module


def energy(
    form: Any = "residual", *, channels: int = 1, offset: bool = False, shape: Any = None, dtype: Any = None
) -> Any:
    """A small energy with random parameters; "score" is a ScoreModel."""
    net = UNet(channels, widths=(8, 16), embedding=4, attention=2, patch=2)
    if form == "score":
        made: Any = ScoreModel(EDM(net, 0.3), SCALES, shape=shape)
    else:
        psi = (EDMPotential if form == "scalar" else EDM)(net, 0.3)
        made = Denoiser(psi, SCALES, form=form, offset=ScaleOffset(*SCALES, 3) if offset else None, shape=shape)
    return randomised(made.to(dtype or torch.float32))


CASES: dict[str, Callable[[], Any]] = {
    "residual": energy,
    "inner-product": lambda: energy("inner-product", offset=True),
    "scalar": lambda: energy("scalar", offset=True),
    "score": lambda: energy("score"),
    "complex": lambda: energy(channels=2, shape=SHAPE),
    "complex scalar": lambda: energy("scalar", channels=2),
    "complex score": lambda: energy("score", channels=2, shape=SHAPE),
    "double": lambda: energy(offset=True, dtype=torch.float64),
}


def answers(u: Energy, *, is_complex: bool) -> list[Tensor]:
    """Whatever an energy says of some images at some scales."""
    found = []
    for dtype in (torch.float32, torch.float64):
        x = rand(3, *SHAPE, seed=9, dtype=dtype.to_complex() if is_complex else dtype)
        for sigma in (None, 0.4, torch.tensor([0.05, 0.6, 5.0])):
            found += [u.grad(x, sigma), u.denoise(x, sigma)]
            found += [u(x, sigma).detach(), *u.value_and_grad(x, sigma)] if u.has_value else []
    return found


@pytest.mark.parametrize("case", CASES)
def test_what_is_saved_comes_back_bit_by_bit(case: str, tmp_path: Path) -> None:
    u = CASES[case]()
    path = tmp_path / "new folder" / "u.safetensors"
    assert save(u, path, INFO) == path
    stream = torch.get_rng_state()
    again = load(path)
    assert torch.equal(torch.get_rng_state(), stream), "load draws from the global generator"
    assert type(again) is type(u)
    assert again.scales == u.scales
    assert again.event_shape == u.event_shape
    assert getattr(again, "form", None) == getattr(u, "form", None)
    states = u.state_dict(), again.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(*map(dict.values, states), strict=True))
    is_complex = "complex" in case
    got, want = answers(again, is_complex=is_complex), answers(u, is_complex=is_complex)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(got, want, strict=True))
    assert not any(p.requires_grad for p in again.parameters())
    assert not any(m.training for m in again.modules())
    assert [p.name for p in path.parent.iterdir()] == ["u.safetensors"]
    # A second time, the file is the same.
    assert save(again, tmp_path / "twice", INFO).read_bytes() == path.read_bytes()


def test_a_changed_parameter_is_seen(tmp_path: Path) -> None:
    """The planted fault of the comparison above: one weight off by one bit."""
    u = energy()
    save(u, tmp_path / "u")
    again = load(tmp_path / "u")
    weight = again.psi.network.first.weight
    weight.view(-1)[0] = torch.nextafter(weight.view(-1)[0], torch.tensor(9.0))
    pairs = zip(answers(again, is_complex=False), answers(u, is_complex=False), strict=True)
    assert not all(torch.equal(a, b) for a, b in pairs)


def test_half_precision_is_widened(tmp_path: Path) -> None:
    path = rewritten(tmp_path, lambda header, tensors: tensors.update({k: t.half() for k, t in tensors.items()}))
    u = load(path)
    assert {p.dtype for p in u.parameters()} == {torch.float32}
    assert torch.equal(u.psi.network.first.weight, energy().psi.network.first.weight.half().float())


def test_the_card(tmp_path: Path) -> None:
    u = energy("inner-product", offset=True, shape=SHAPE)
    card = read_card(save(u, tmp_path / "u", INFO))
    assert card.info == INFO
    assert card.energy == {
        "class": "Denoiser", "scales": [0.05, 5.0], "shape": [1, 5, 4], "form": "inner-product"
    }  # fmt: skip
    assert card.preconditioning == {"class": "EDM", "sigma_data": 0.3}
    assert card.network == {
        "class": "UNet", "channels_in": 1, "channels_out": 1, "widths": [8, 16], "blocks": 1, "attention": 2,
        "embedding": 4, "patch": 2,
    }  # fmt: skip
    assert card.offset == {"low": 0.05, "high": 5.0, "degree": 3}
    plain = read_card(str(save(energy(), tmp_path / "plain")))
    assert plain.info == {}
    assert plain.offset is None


def test_a_card_is_read_without_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(energy(), tmp_path / "u", INFO)
    monkeypatch.setattr(_weights, "UNet", None)
    monkeypatch.setattr(torch, "isfinite", None)
    assert read_card(path).info == INFO


# Names.


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with two energies of its own, and an empty current folder."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(_weights.importlib.resources, "files", lambda name: tmp_path / name)
    folder = tmp_path / "potentia.energies" / "weights"
    save(energy(), folder / "digits-28.safetensors", {"name": "digits"})
    save(energy("score"), folder / "brain-t1.safetensors")
    (folder / "README.md").touch()
    return folder


def test_names_of_the_package(package: Path) -> None:
    assert shipped() == ("brain-t1", "digits-28")
    assert isinstance(load("digits-28"), Denoiser)
    assert isinstance(load("brain-t1"), ScoreModel)
    assert read_card("digits-28").info == {"name": "digits"}


def test_a_folder_of_the_same_name_is_not_in_the_way(package: Path) -> None:
    Path("digits-28").mkdir()
    assert read_card("digits-28").info == {"name": "digits"}


@pytest.mark.parametrize("name", ["digits", "brain-t1.safetensors", "../weights/digits-28", "", ".", "no/such/file"])
@pytest.mark.parametrize("read", [load, read_card])
def test_an_unknown_name_gets_those_there_are(package: Path, read: Callable[[str], Any], name: str) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        read(name)
    assert str(caught.value) == (
        f"{name}: is neither a file nor an energy of the package, expected a path, hf://owner/name, or one of "
        "brain-t1, digits-28"
    )


def test_a_package_without_energies(package: Path) -> None:
    for path in package.iterdir():
        path.unlink()
    package.rmdir()
    assert shipped() == ()
    with pytest.raises(FileNotFoundError, match=r"or one of none yet$"):
        load("digits-28")


def test_every_energy_of_the_package_loads() -> None:
    for name in shipped():
        u = load(name)
        assert u.scales is not None
        assert not any(p.requires_grad for p in u.parameters())
        assert read_card(name).info, f"{name} says nothing of where it comes from"


# Files that are not what they should be.


def rewritten(folder: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], Any], u: Any = None) -> Path:
    """A file whose header and tensors were changed after it was written."""
    path = save(energy() if u is None else u, folder / "sound.safetensors")
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["potentia"])
        tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    change(header, tensors)
    path = folder / "changed.safetensors"
    save_file(tensors, path, metadata={"potentia": json.dumps(header)})
    return path


def refused(path: Path, says: str, *, card_too: bool = False) -> None:
    """Loading raises one ValueError that names the file and says what is wrong with it."""
    for read in (load, read_card) if card_too else (load,):
        with pytest.raises(ValueError, match=says) as caught:
            read(path)
        assert type(caught.value) is ValueError
        assert str(caught.value).startswith(f"{path}: ")


def test_files_cut_short(tmp_path: Path) -> None:
    whole = save(energy(), tmp_path / "whole").read_bytes()
    path = tmp_path / "short"
    for size in [*(len(whole) * k // 10 for k in range(10)), 1, 7, 8, 9, len(whole) - 1]:
        path.write_bytes(whole[:size])
        refused(path, "cannot be read as safetensors", card_too=True)
    path.write_bytes(whole + b"\0")
    refused(path, "cannot be read as safetensors", card_too=True)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 4096,
        b"\xff" * 4096,
        b"not a file of weights at all, but a sentence",
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 60) + b'{"a":{"dtype":"F32","shape":[1000000],"data_offsets":[0,4]}}' + b"\0" * 4,
    ],
    ids=["empty", "zeros", "ones", "text", "length", "no tensors", "shape"],
)
def test_files_of_something_else(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    refused(path, "cannot be read as safetensors|has no potentia header", card_too=True)


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_pickles_are_refused_and_not_run(tmp_path: Path) -> None:
    sentinel, path = tmp_path / "sentinel", tmp_path / "u.safetensors"
    for write in (
        lambda: torch.save(Payload(sentinel), path),
        lambda: torch.save({"weight": torch.zeros(3), "x": Payload(sentinel)}, path),
        lambda: torch.save(Payload(sentinel), path, _use_new_zipfile_serialization=False),
        lambda: path.write_bytes(pickle.dumps(Payload(sentinel))),
    ):
        write()
        refused(path, "cannot be read as safetensors", card_too=True)
        assert not sentinel.exists()
    # The planted fault: who does read it as a pickle runs it.
    pickle.loads(path.read_bytes())
    assert sentinel.exists()


def test_safetensors_of_others(tmp_path: Path) -> None:
    path = tmp_path / "other"
    for metadata in (None, {}, {"format": "pt"}):
        save_file({"weight": torch.zeros(3)}, path, metadata=metadata)
        refused(path, "has no potentia header, expected a file written by energies.save", card_too=True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "its header is no JSON"),
        ("{", "its header is no JSON"),
        ("{'format': 1}", "its header is no JSON"),
        ("[" * 200_000, "its header is no JSON"),
        ("1" * 10_000, "its header is no JSON"),
        ("null", "has format None, this version reads 1"),
        ("3", "has format 3, this version reads 1"),
        ("[1]", r"has format \[1\], this version reads 1"),
        ("{}", "has format None, this version reads 1"),
        ('{"format": 2}', "has format 2, this version reads 1"),
        ('{"format": "1"}', "has format '1', this version reads 1"),
        ('{"format": 1}', r"its header has \['format'\], expected \['card', 'energy', "),
    ],
)
def test_headers_that_are_none(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "u"
    save_file({"weight": torch.zeros(3)}, path, metadata={"potentia": text})
    refused(path, says, card_too=True)


def put(part: str, key: str, value: Any) -> Callable[[dict[str, Any], Any], Any]:
    return lambda header, tensors: header[part].__setitem__(key, value)


NOT_OURS = "its header describes no energy of this version"
HEADERS: dict[str, tuple[Callable[[dict[str, Any], Any], Any], str]] = {
    "format": (lambda h, t: h.update(format=2), "has format 2, this version reads 1"),
    "a field more": (lambda h, t: h.update(run="os.system"), r"its header has \[.*'run'.*\], expected"),
    "a field less": (lambda h, t: h.pop("card"), "its header has .*, expected"),
    **{
        f"{part} is {value!r}": (
            lambda h, t, part=part, value=value: h.update({part: value}),
            f"{part} of its header is {type(value).__name__}, expected an object",
        )
        for part in ("energy", "preconditioning", "network", "card", "offset")
        for value in ([], "text", 0, False)
    },
    "energy class": (put("energy", "class", "os.system"), f"{NOT_OURS}: class is 'os.system', expected Denoiser or"),
    "network class": (put("network", "class", "os.system"), f"{NOT_OURS}: class is 'os.system', expected UNet"),
    "preconditioning class": (put("preconditioning", "class", "builtins.eval"), "class is 'builtins.eval', expected"),
    "class of another table": (put("energy", "class", "UNet"), "class is 'UNet', expected Denoiser or ScoreModel"),
    "class is a list": (put("energy", "class", ["Denoiser"]), NOT_OURS),
    "no class": (lambda h, t: h["energy"].pop("class"), NOT_OURS),
    "no scales": (lambda h, t: h["energy"].pop("scales"), NOT_OURS),
    "form": (put("energy", "form", "__class__"), f"{NOT_OURS}: denoiser: form is '__class__'"),
    "offset as text": (put("energy", "offset", "os.system"), NOT_OURS),
    "psi": (put("energy", "psi", "os.system"), NOT_OURS),
    "scales": (put("energy", "scales", [0, 1]), NOT_OURS),
    "scales NaN": (put("energy", "scales", [float("nan"), 1]), NOT_OURS),
    "shape": (put("energy", "shape", [1, 5]), NOT_OURS),
    "sigma_data": (put("preconditioning", "sigma_data", -1), NOT_OURS),
    "sigma_data huge": (put("preconditioning", "sigma_data", 10**400), NOT_OURS),
    "network in text": (put("preconditioning", "network", "UNet"), NOT_OURS),
    "unknown setting": (put("network", "device", "cuda"), NOT_OURS),
    "widths": (put("network", "widths", [8, 12]), NOT_OURS),
    "widths as text": (put("network", "widths", "88"), NOT_OURS),
    "widths as a number": (put("network", "widths", 8), NOT_OURS),
    "blocks": (put("network", "blocks", 0), NOT_OURS),
    "offset setting": (lambda h, t: h.update(offset={"low": 1, "high": 2, "degree": 3, "run": 1}), NOT_OURS),
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers_of_other_energies(case: str, tmp_path: Path) -> None:
    change, says = HEADERS[case]
    refused(rewritten(tmp_path, change), says)


def test_a_score_has_no_offset(tmp_path: Path) -> None:
    def change(header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        header["offset"] = {"low": 0.1, "high": 1.0, "degree": 2}

    refused(rewritten(tmp_path, change, energy("score")), NOT_OURS)


FIRST = "psi.network.first.weight"
TENSORS: dict[str, tuple[Callable[[dict[str, Any], dict[str, Tensor]], Any], str]] = {
    "missing": (lambda h, t: t.pop(FIRST), rf"lacks \['{FIRST}'\], has nothing beside, against its header"),
    "surplus": (lambda h, t: t.update(more=torch.zeros(2)), r"lacks nothing, has \['more'\] beside"),
    "renamed": (lambda h, t: t.update(more=t.pop(FIRST)), r"lacks \['.*'\], has \['more'\] beside"),
    "shape": (lambda h, t: t.update({FIRST: t[FIRST][:4]}), rf"{FIRST} has shape \(4, 4, 3, 3\), its header gives"),
    "flat": (lambda h, t: t.update({FIRST: t[FIRST].reshape(-1)}), rf"{FIRST} has shape \(288,\), its header gives"),
    "NaN": (lambda h, t: t[FIRST][0].fill_(torch.nan), f"{FIRST} has entries that are not finite"),
    "infinite": (lambda h, t: t[FIRST][0].fill_(torch.inf), f"{FIRST} has entries that are not finite"),
    **{
        str(dtype): (
            lambda h, t, dtype=dtype: t.update({FIRST: t[FIRST].to(dtype)}),
            f"{FIRST} has dtype {dtype}, expected one of torch.float64, ",
        )
        for dtype in (torch.int64, torch.int8, torch.bool, torch.float8_e4m3fn, torch.complex64)
    },
    "wider": (put("network", "widths", [8, 24]), "has shape .*, its header gives"),
    "deeper": (put("network", "widths", [8, 16, 16]), r"lacks \['psi.network.down.2"),
    "no attention": (put("network", "attention", 0), r"lacks nothing, has \['psi.network.middle"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_do_not_fit_their_header(case: str, tmp_path: Path) -> None:
    change, says = TENSORS[case]
    refused(rewritten(tmp_path, change), says)


HUGE: dict[str, Callable[[dict[str, Any], Any], Any]] = {
    "widths": put("network", "widths", [8 * 10**8, 8 * 10**8]),
    "widths of 1e300": put("network", "widths", [8 * 10**300] * 2),
    "many levels": put("network", "widths", [8] * 100_000),
    "channels": put("network", "channels_in", 10**12),
    "blocks": put("network", "blocks", 10**12),
    "embedding": put("network", "embedding", 10**12),
    "embedding that would do": put("network", "embedding", 20_000),
    "patch": put("network", "patch", 10**6),
    "patch of 1e300": put("network", "patch", 10**300),
    "degree": lambda header, tensors: header.update(offset={"low": 0.1, "high": 1.0, "degree": 10**12}),
}


class Largest(TorchDispatchMode):
    """Notes how many entries the largest tensor has that is made within, other than on the meta device."""

    entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and not out.is_meta:
            self.entries = max(self.entries, out.numel())
        return out


@pytest.mark.parametrize("case", HUGE)
def test_absurd_settings_allocate_nothing(case: str, tmp_path: Path) -> None:
    """Memory would not do for most of these; neither would the time for the levels and blocks."""
    path = rewritten(tmp_path, HUGE[case])
    with Largest() as largest:
        refused(path, NOT_OURS if "1e300" in case else "its header")
    assert largest.entries < 10_000


def test_allocations_are_seen(tmp_path: Path) -> None:
    """The planted fault: the network itself is made before its sizes are compared with the file's."""
    path = rewritten(tmp_path, put("network", "embedding", 200))
    with Largest() as largest:
        _weights._assemble(read_card(path))
    assert largest.entries == 200**2


# Writing.


def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(energy(), tmp_path / "u.safetensors", INFO)
    before = path.read_bytes()

    def half_way(self: Path, data: bytes) -> None:
        with self.open("wb") as file:
            file.write(data[:100])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", half_way)
    with pytest.raises(OSError, match="no space left"):
        save(energy("scalar"), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["u.safetensors"]


def test_files_have_the_permissions_of_others(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("")
    path = save(energy(), tmp_path / "u.safetensors", INFO)
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize(
    "info",
    [{"a": torch.zeros(2)}, {"a": float("nan")}, {"a": float("inf")}, {1: 2, "a": 3}, {"a": {1, 2}}, [1, 2], "text"],
    ids=str,
)
def test_info_that_is_no_json(info: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^save: info of .*u is no JSON: "):
        save(energy(), tmp_path / "u", info)
    assert list(tmp_path.iterdir()) == []


class Mine(Denoiser):
    """A subclass: a file cannot say what it adds."""


class MyEDM(EDM):
    """Another."""


def test_energies_that_a_file_cannot_describe(tmp_path: Path) -> None:
    net = UNet(1, widths=(8,))
    for u in (
        Gaussian(0.0, 1.0),
        Denoiser(lambda x, s: x, SCALES),
        Denoiser(EDM(nn.Conv2d(1, 1, 1), 0.5), SCALES),
        ScoreModel(net, SCALES),
        Mine(EDM(net, 0.5), SCALES),
        Denoiser(MyEDM(net, 0.5), SCALES),
    ):
        with pytest.raises(TypeError, match=r"^save: .* is a .*, expected a Denoiser or ScoreModel of EDM\(UNet\)"):
            save(u, tmp_path / "u")
    with pytest.raises(TypeError, match=r"^save: denoiser has an offset of function, expected a ScaleOffset$"):
        save(Denoiser(EDM(net, 0.5), SCALES, offset=lambda s: s), tmp_path / "u")
    assert list(tmp_path.iterdir()) == []


# The hub.


class Hub:
    """Files by (repository, file, revision), in place of the network."""

    def __init__(self, files: dict[tuple[str, str, str | None], Path | Exception]) -> None:
        self.files = files

    def hf_hub_download(self, repo_id: str, filename: str, *, revision: str | None = None) -> str:
        found = self.files.get((repo_id, filename, revision), OSError(f"404: no {filename}\nRequest ID: 5"))
        if isinstance(found, Exception):
            raise found
        return str(found)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub({})
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=made.hf_hub_download))
    return made


@pytest.mark.parametrize(
    ("address", "asked"),
    [
        ("hf://owner/name", ("owner/name", "energy.safetensors", None)),
        ("hf://owner/name@v1.2", ("owner/name", "energy.safetensors", "v1.2")),
        ("hf://owner/name/other.safetensors", ("owner/name", "other.safetensors", None)),
        ("hf://owner/name/a/b.safetensors@refs/pr/3", ("owner/name", "a/b.safetensors", "refs/pr/3")),
    ],
)
def test_files_of_the_hub(hub: Hub, address: str, asked: tuple[str, str, str | None], tmp_path: Path) -> None:
    hub.files[asked] = save(energy(), tmp_path / "cached", INFO)
    assert read_card(address).info == INFO
    assert isinstance(load(address), Denoiser)


@pytest.mark.parametrize("error", [OSError("404: no such file\nRequest ID: 5"), ValueError("404: no such file")])
def test_files_that_the_hub_does_not_have(hub: Hub, error: Exception) -> None:
    hub.files["owner/name", "energy.safetensors", None] = error
    with pytest.raises(FileNotFoundError, match=r"^hf://owner/name: cannot be fetched: 404: no such file$"):
        load("hf://owner/name")
    hub.files["owner/name", "energy.safetensors", None] = OSError()
    with pytest.raises(FileNotFoundError, match=r"^hf://owner/name: cannot be fetched: OSError$"):
        load("hf://owner/name")


@pytest.mark.parametrize("name", ["RepositoryNotFoundError", "LocalEntryNotFoundError", "HFValidationError"])
def test_the_hubs_own_errors_are_among_those(name: str) -> None:
    errors = pytest.importorskip("huggingface_hub.errors")
    assert issubclass(getattr(errors, name), OSError | ValueError)


@pytest.mark.parametrize(
    "address", ["hf://", "hf://owner", "hf://owner/", "hf:///name", "hf://a//b", "hf://a/b/", "hf://@v1"]
)
def test_malformed_addresses(hub: Hub, address: str) -> None:
    with pytest.raises(ValueError, match=rf"^{address}: expected hf://owner/name, hf://owner/name/file, or either"):
        load(address)


def test_a_file_of_the_hub_is_checked_like_any_other(hub: Hub, tmp_path: Path) -> None:
    path = tmp_path / "cached"
    torch.save({}, path)
    hub.files["owner/name", "energy.safetensors", None] = path
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        load("hf://owner/name")


def test_without_the_hubs_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"^load needs huggingface_hub: pip install 'potentia\[hub\]'$"):
        load("hf://owner/name")
