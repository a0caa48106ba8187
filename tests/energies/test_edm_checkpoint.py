"""EDM's pickles: tensors come out, and nothing in them is run."""

import builtins
import copy
import json
import os
import pickle
import pickletools
import sys
import types
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from potentia.energies._edm_checkpoint import convert_edm_pickle, read_edm_pickle

# What runs if the source within a pickle is executed.
SOURCE = "import pathlib\npathlib.Path({!r}).touch()\n"


@pytest.fixture
def sentinel(tmp_path: Path) -> Path:
    return tmp_path / "sentinel"


@pytest.fixture
def persistence(monkeypatch: pytest.MonkeyPatch, sentinel: Path) -> Callable[[type], type]:
    """Modules by the names of NVIDIA's, and the decorator by which their classes are pickled with their source."""
    held = types.ModuleType("torch_utils.persistence")

    def _reconstruct_persistent_obj(meta: dict[str, Any]) -> None:
        sentinel.touch()
        raise AssertionError("the pickle's own reader was called")

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    held._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
    util = types.ModuleType("dnnlib.util")
    util.EasyDict = type("EasyDict", (dict,), {"__module__": "dnnlib.util"})  # type: ignore[attr-defined]
    for module in (types.ModuleType("torch_utils"), held, types.ModuleType("dnnlib"), util):
        monkeypatch.setitem(sys.modules, module.__name__, module)

    def persistent_class(cls: type) -> type:
        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            cls.__init__(self, *args, **kwargs)  # type: ignore[misc]
            self._init_args, self._init_kwargs = copy.deepcopy(args), copy.deepcopy(kwargs)

        def reduce(self: Any) -> tuple[Any, ...]:
            meta = {
                "type": "class", "version": 6, "module_src": SOURCE.format(str(sentinel)),
                "class_name": cls.__name__, "state": dict(self.__dict__),
            }  # fmt: skip
            return _reconstruct_persistent_obj, (meta,), None

        return type(cls.__name__, (cls,), {"__init__": init, "__reduce__": reduce})

    return persistent_class


def snapshot(persistent: Callable[[type], type]) -> tuple[dict[str, Any], nn.Module]:
    """A network with EDM's ingredients: preconditioning around blocks in a dict, numpy's numbers, odd tensors."""

    class Linear(nn.Module):
        def __init__(self, incoming: int, outgoing: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(
                torch.randn(outgoing, incoming, generator=torch.Generator().manual_seed(outgoing))
            )
            self.bias = None

    class SongUNet(nn.Module):
        def __init__(self, layer: type, widths: list[int]) -> None:
            super().__init__()
            self.map_layer0 = layer(3, 4)
            self.map_label = None
            self.enc = nn.ModuleDict({f"8x8_block{k}": layer(4, w) for k, w in enumerate(widths)})
            self.dec = nn.ModuleList([layer(4, 2)])
            self.plain = nn.Conv2d(1, 2, 3)
            self.skip_scale = np.sqrt(0.5)
            self.register_buffer("freqs", torch.arange(12.0).reshape(3, 4).T[1:])
            self.register_buffer("narrow", torch.ones(2, dtype=torch.float16))
            self.register_buffer("passing", torch.ones(2), persistent=False)
            self.register_buffer("absent", None)

    layer, unet = persistent(Linear), persistent(SongUNet)

    class EDMPrecond(nn.Module):
        def __init__(self, img_resolution: int, sigma_min: Any = 0, widths: Any = (), augment: Any = None) -> None:
            super().__init__()
            self.img_resolution, self.sigma_min, self.sigma_data = img_resolution, sigma_min, 0.5
            self.sigma_max = float("inf")
            self.model = unet(layer, list(widths))
            # Classes pickle themselves as globals; NVIDIA's constructors hold none.
            self.model._init_args = ()

    util = sys.modules["dnnlib.util"]
    net = persistent(EDMPrecond)(img_resolution=8, sigma_min=np.float64(0.002), widths=[4, 6], augment=None)
    net._init_kwargs = util.EasyDict(net._init_kwargs)
    loss = persistent(type("EDMLoss", (), {"__init__": lambda self: setattr(self, "P_mean", -1.2)}))()
    net.eval().requires_grad_(False)
    return {"ema": net, "loss_fn": loss, "augment_pipe": None, "dataset_kwargs": {"path": "images.zip"}}, net


@pytest.fixture
def good(persistence: Callable[[type], type], tmp_path: Path) -> tuple[Path, nn.Module]:
    held, net = snapshot(persistence)
    path = tmp_path / "network-snapshot-000001.pkl"
    path.write_bytes(pickle.dumps(held))
    return path, net


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_tensors_and_arguments_come_out(
    persistence: Callable[[type], type], tmp_path: Path, sentinel: Path, protocol: int
) -> None:
    held, net = snapshot(persistence)
    path = tmp_path / "network.pkl"
    path.write_bytes(pickle.dumps(held, protocol=protocol))
    read = read_edm_pickle(path)
    want = net.state_dict()
    assert read["tensors"].keys() == want.keys()
    assert {"model.map_layer0.weight", "model.enc.8x8_block1.weight", "model.freqs"} <= want.keys()
    for name, t in read["tensors"].items():
        assert t.dtype == want[name].dtype
        assert torch.equal(t, want[name]), name
        assert t.is_contiguous()
    assert read["class_name"] == "EDMPrecond"
    assert read["init"] == {"img_resolution": 8, "sigma_min": 0.002, "widths": [4, 6], "augment": None}
    assert read["settings"]["sigma_data"] == 0.5
    assert read["settings"]["img_resolution"] == 8
    assert type(read["init"]) is dict
    assert not sentinel.exists()


def test_the_sentinel_works(good: tuple[Path, nn.Module], sentinel: Path) -> None:
    """The planted fault: pickle's own reader runs what the file holds."""
    with pytest.raises(AssertionError, match="own reader"):
        pickle.loads(good[0].read_bytes())
    assert sentinel.exists()


def test_converted_files_hold_the_same(good: tuple[Path, nn.Module], tmp_path: Path) -> None:
    target = tmp_path / "network.safetensors"
    target.write_text("in the way")
    read = convert_edm_pickle(good[0], target)
    with safe_open(target, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert tensors.keys() == read["tensors"].keys()
    assert all(torch.equal(tensors[name], t) for name, t in good[1].state_dict().items())
    assert json.loads(metadata["init"]) == read["init"]
    assert json.loads(metadata["settings"]) == read["settings"]
    assert metadata["class_name"] == "EDMPrecond"
    assert sorted(p.name for p in tmp_path.iterdir()) == [good[0].name, "network.safetensors"]


def test_nothing_is_written_for_a_file_that_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.pkl").write_text("no pickle")
    with pytest.raises(ValueError, match="no readable EDM pickle"):
        convert_edm_pickle(tmp_path / "bad.pkl", tmp_path / "out.safetensors")
    with pytest.raises(FileNotFoundError):
        convert_edm_pickle(tmp_path / "absent.pkl", tmp_path / "out.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["bad.pkl"]


# Malice.


class Calls:
    """Pickles as a call: what an attacker writes into a file."""

    def __init__(self, fn: Callable[..., Any], *args: Any, state: Any = None) -> None:
        self.fn, self.args, self.state = fn, args, state

    def __reduce__(self) -> tuple[Any, ...]:
        return (self.fn, self.args) if self.state is None else (self.fn, self.args, self.state)


def by_name(module: str, name: str, argument: str, protocol: int = 4) -> bytes:
    """A pickle that calls a global by a name that pickle itself would not write, dotted ones included."""

    def text(s: str) -> bytes:
        return b"X" + len(s.encode()).to_bytes(4, "little") + s.encode()

    if protocol < 4:
        return b"\x80\x02" + f"c{module}\n{name}\n".encode() + text(argument) + b"\x85R."
    return b"\x80\x04" + text(module) + text(name) + b"\x93" + text(argument) + b"\x85R."


def load_from_bytes(data: bytes) -> Any:
    return Calls(torch.storage._load_from_bytes, data)


def legacy(obj: Any) -> bytes:
    buffer = BytesIO()
    torch.save(obj, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def zipped(obj: Any) -> bytes:
    buffer = BytesIO()
    torch.save(obj, buffer)
    return buffer.getvalue()


def attacks(sentinel: Path) -> dict[str, bytes]:
    """Files that create the sentinel when they are unpickled without care."""
    shell, python = f"touch {sentinel}", f"__import__('pathlib').Path({str(sentinel)!r}).touch()"
    system = Calls(os.system, shell)
    # A file that torch.load without weights_only would run.
    hidden = sentinel.with_suffix(".pt")
    hidden.write_bytes(zipped({"x": system}))
    # The check of the magic number alone would let this by.
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
    payload = magic + pickle.dumps(1001, protocol=2) + pickle.dumps(system, protocol=2)
    return {
        "system": pickle.dumps({"ema": system}),
        "eval": pickle.dumps({"ema": Calls(builtins.eval, python)}),
        "exec": pickle.dumps(Calls(builtins.exec, python)),
        "alias": by_name("posix", "system", shell),
        "alias, protocol 2": by_name("posix", "system", shell, protocol=2),
        "dotted": by_name("torch.storage", "os.system", shell),
        "dotted in an allowed name": by_name("torch_utils.persistence", "sys.modules", shell),
        "dotted in modules": by_name("torch.nn.modules.container", "torch.os.system", shell),
        "submodule": by_name("torch.nn.modules", "module.torch.os.system", shell),
        "getattr": pickle.dumps(Calls(getattr, Calls(__import__, "os"), "system")),
        "import": pickle.dumps(Calls(__import__, "os")),
        "torch.load": pickle.dumps({"ema": Calls(torch.load, str(hidden))}),
        "nested legacy": pickle.dumps({"ema": load_from_bytes(legacy(system))}),
        "nested legacy, cut": pickle.dumps({"ema": load_from_bytes(payload)}),
        "nested zip": pickle.dumps({"ema": load_from_bytes(zipped(system))}),
        "nested pickle": pickle.dumps({"ema": load_from_bytes(pickle.dumps(system))}),
        "state": pickle.dumps(Calls(torch.storage._load_from_bytes, b"", state={"x": system})),
        "rebuild by type": pickle.dumps(Calls(torch._tensor._rebuild_from_type_v2, os.system, int, (shell,), None)),
    }


NAMES = [
    "system", "eval", "exec", "alias", "alias, protocol 2", "dotted", "dotted in an allowed name", "dotted in modules",
    "submodule", "getattr", "import", "torch.load", "nested legacy", "nested legacy, cut", "nested zip",
    "nested pickle", "state", "rebuild by type",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_malice_is_refused_and_not_run(tmp_path: Path, sentinel: Path, name: str) -> None:
    path = tmp_path / "evil.pkl"
    path.write_bytes(attacks(sentinel)[name])
    with pytest.raises(ValueError, match=rf"^{path}: refuses to load "):
        read_edm_pickle(path)
    assert not sentinel.exists()


def test_every_attack_is_tried(sentinel: Path) -> None:
    assert sorted(NAMES) == sorted(attacks(sentinel))


@pytest.mark.parametrize(
    "name", ["system", "eval", "exec", "alias", "alias, protocol 2", "nested legacy", "nested zip"]
)
def test_the_attacks_work_on_careless_readers(sentinel: Path, name: str) -> None:
    """The planted fault: the same bytes, given to pickle, create the sentinel."""
    pickle.loads(attacks(sentinel)[name])
    assert sentinel.exists()


def test_stand_ins_are_not_changed_by_a_pickle(good: tuple[Path, nn.Module], tmp_path: Path) -> None:
    """BUILD sets attributes of whatever lies on the stack: of that reader's stand-ins only."""
    for module, name in (("torch._utils", "_rebuild_parameter"), ("torch.nn.modules.container", "ModuleDict")):
        state = b"}X\x05\x00\x00\x00_evil" + b"K\x01s"
        (tmp_path / "evil.pkl").write_bytes(b"\x80\x02" + f"c{module}\n{name}\n".encode() + b"N" + state + b"\x86b.")
        with pytest.raises(ValueError, match="expected a dict with a network"):
            read_edm_pickle(tmp_path / "evil.pkl")
    assert not hasattr(torch._utils._rebuild_parameter, "_evil")
    assert not hasattr(nn.ModuleDict, "_evil")
    assert read_edm_pickle(good[0])["class_name"] == "EDMPrecond"


# Damage.


def test_cut_files_give_one_error(good: tuple[Path, nn.Module], tmp_path: Path, sentinel: Path) -> None:
    data = good[0].read_bytes()
    path = tmp_path / "cut.pkl"
    for n in range(0, len(data) - 1, 97):
        path.write_bytes(data[:n])
        with pytest.raises(ValueError, match=rf"^{path}: "):
            read_edm_pickle(path)
    assert not sentinel.exists()


def test_changed_bytes_give_one_error_or_none(good: tuple[Path, nn.Module], tmp_path: Path, sentinel: Path) -> None:
    data = bytearray(good[0].read_bytes())
    generator = np.random.default_rng(0)
    path = tmp_path / "changed.pkl"
    ends = [pos for op, _, pos in pickletools.genops(bytes(data)) if op.name in ("REDUCE", "BUILD", "STACK_GLOBAL")]
    for place in [*generator.integers(0, len(data), 200), *ends[:50]]:
        changed = data.copy()
        changed[place] = int(generator.integers(0, 256))
        path.write_bytes(changed)
        message = f"{path}: "
        try:
            read_edm_pickle(path)
        except ValueError as err:
            message = str(err)
        assert message.startswith(f"{path}: ")
    assert not sentinel.exists()


def recursive() -> dict[str, Any]:
    ring: dict[str, Any] = {}
    ring["ring"] = ring
    return ring


def stand_in(persistence: Callable[[type], type], **fields: Any) -> Any:
    thing = persistence(type("Net", (), {}))()
    vars(thing).clear()
    tables = {"_parameters": {"w": torch.ones(2)}, "_buffers": {}, "_modules": {}, **fields}
    vars(thing).update({k: v for k, v in tables.items() if v is not None})
    return thing


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"_parameters": {}}, "the network under 'ema' has no tensors"),
        ({"_parameters": None}, "module ema has no _parameters"),
        ({"_buffers": {1: torch.ones(1)}}, "module ema has no _buffers"),
        ({"_buffers": {"b": "text"}}, "b is a str, expected a tensor"),
        ({"_modules": {"m": torch.ones(1)}}, "m is a Tensor, expected a module"),
        ({"_init_kwargs": {"x": torch.ones(1)}}, "constructor arguments are no plain data"),
        ({"_init_kwargs": recursive()}, "RecursionError"),
    ],
)
def test_other_objects_are_refused(
    persistence: Callable[[type], type], tmp_path: Path, fields: dict[str, Any], match: str
) -> None:
    path = tmp_path / "odd.pkl"
    path.write_bytes(pickle.dumps({"ema": stand_in(persistence, **fields)}))
    with pytest.raises(ValueError, match=rf"^{path}: .*{match}"):
        read_edm_pickle(path)


def test_networks_within_themselves_are_refused(persistence: Callable[[type], type], tmp_path: Path) -> None:
    outer = nn.ModuleDict()
    outer._modules["a"] = nn.ModuleDict()
    outer._modules["a"]._modules["b"] = outer
    path = tmp_path / "ring.pkl"
    path.write_bytes(pickle.dumps({"ema": outer}))
    with pytest.raises(ValueError, match=rf"^{path}: module a.b contains itself"):
        read_edm_pickle(path)


def rebuilt(size: Any, stride: Any, offset: Any = 0) -> Any:
    storage = torch.arange(6.0)._typed_storage()
    return Calls(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, {})


@pytest.mark.parametrize(
    ("tensor", "match"),
    [
        (rebuilt((7,), (1,)), "a tensor of 7 entries out of a storage of 6"),
        (rebuilt((10**9,), (0,)), "a tensor of 1000000000 entries"),
        (rebuilt((3,), (4,)), "RuntimeError"),
        (rebuilt((3,), (1,), 5), "RuntimeError"),
        (rebuilt((3,), (-1,)), "RuntimeError"),
        (rebuilt((3,), ("x",)), "TypeError"),
        (Calls(torch._utils._rebuild_tensor_v2, "text", 0, (1,), (1,), False, {}), "a tensor out of a str"),
        (load_from_bytes(legacy({"a": torch.ones(2)})), "a dict for a storage"),
        (Calls(np._core.multiarray.scalar, np.dtype("O"), None), "a numpy scalar of dtype O8"),
    ],
)
def test_tensors_stay_within_their_storage(tmp_path: Path, tensor: Any, match: str) -> None:
    path = tmp_path / "odd.pkl"
    path.write_bytes(pickle.dumps({"ema": tensor}))
    with pytest.raises(ValueError, match=rf"^{path}: .*{match}"):
        read_edm_pickle(path)


def test_views_are_copied(persistence: Callable[[type], type], tmp_path: Path) -> None:
    t: Tensor = torch.arange(6.0).reshape(2, 3)
    path = tmp_path / "views.pkl"
    path.write_bytes(pickle.dumps({"ema": stand_in(persistence, _parameters={"a": t.T, "b": t[1]})}))
    tensors = read_edm_pickle(path)["tensors"]
    assert torch.equal(tensors["a"], t.T)
    assert torch.equal(tensors["b"], t[1])


@pytest.mark.parametrize("data", [b"", b"text", pickle.dumps([1, 2]), pickle.dumps({"ema": 3}), pickle.dumps({})])
def test_other_files_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "other.pkl"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"^{path}: no (readable )?EDM pickle"):
        read_edm_pickle(path)
