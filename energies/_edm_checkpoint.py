"""Tensors out of NVIDIA's EDM pickles, without running what they hold."""

import json
import math
import os
import pickle
import tempfile
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NoReturn, TypedDict

import torch
from torch import Tensor

# How torch.save begins in the format that storages are pickled in: protocol 2 and its magic number.
_LEGACY = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
_KINDS = {"f": (2, 4, 8), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8), "b": (1,)}


class EDMCheckpoint(TypedDict):
    """What :func:`read_edm_pickle` finds of a network."""

    class_name: str
    tensors: dict[str, Tensor]
    init: dict[str, Any]
    settings: dict[str, Any]


def read_edm_pickle(path: str | Path) -> EDMCheckpoint:
    """The averaged network of an EDM snapshot: its tensors and what it was made with.

    ``network-snapshot-*.pkl`` files hold Python source that their own reader executes. Here none is: of all names that
    the pickle asks for, those of tensors, module containers and plain data are answered with inert stand-ins, and any
    other is refused. ``tensors`` is named as a state dict; ``init`` holds the keywords of the constructor; ``settings``
    the plain attributes of the network, its defaults included (``sigma_data``, ``img_resolution``). NVIDIA's networks
    (SongUNet, DhariwalUNet) are not rebuilt here: that needs their code, to which these are what it asks for.

    Shapes: tensors as stored, on the CPU.
    Raises: FileNotFoundError; ValueError for a file that is no such pickle, is cut short, or asks for anything else.
    Source: Karras et al. 2022; the format is that of torch_utils.persistence, version 6, in NVlabs/edm.
    """
    with open(path, "rb") as file:
        try:
            return _checkpoint(path, _Reader(file, path).load())
        except _Refused:
            raise
        # Whatever a broken pickle can cause: its opcodes index, call and allocate as they please.
        except Exception as err:
            raise ValueError(f"{path}: no readable EDM pickle: {type(err).__name__}: {err}") from err


def convert_edm_pickle(source: str | Path, target: str | Path) -> EDMCheckpoint:
    """Write the tensors of an EDM snapshot as safetensors, which hold no code; returns what was read.

    The file's metadata has ``class_name`` as text, and ``init`` and ``settings`` as JSON. A file in the way is
    replaced, once the new one is whole.

    Raises: FileNotFoundError; ValueError as :func:`read_edm_pickle` does.
    """
    from safetensors.torch import save

    read = read_edm_pickle(source)
    metadata = {
        "format": "pt",
        "class_name": read["class_name"],
        "init": json.dumps(read["init"]),
        "settings": json.dumps(read["settings"]),
    }
    data = save(read["tensors"], metadata)
    folder = Path(target).absolute().parent
    handle, name = tempfile.mkstemp(dir=folder, prefix=f".{Path(target).name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(name, 0o644)
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return read


def _checkpoint(path: str | Path, held: object) -> EDMCheckpoint:
    """What the unpickled stand-ins say of a network."""
    network = held.get("ema") if isinstance(held, dict) else None
    if not isinstance(network, _Record):
        raise _Refused(f"{path}: no EDM pickle, expected a dict with a network under 'ema'")
    tensors = dict(_tensors(path, network, "", ()))
    if not tensors:
        raise _Refused(f"{path}: the network under 'ema' has no tensors")
    fields = vars(network)
    init = fields.get("_init_kwargs") or {}
    if not isinstance(init, dict) or not _is_plain(init):
        raise _Refused(f"{path}: the network's constructor arguments are no plain data")
    settings = {k: v for k, v in fields.items() if not k.startswith("_") and k != "training" and _is_plain(v)}
    name = str(fields.get("_class_name", getattr(network, "_stands_for", "")))
    return {"class_name": name, "tensors": tensors, "init": _plain(init), "settings": _plain(settings)}


class _Refused(ValueError):
    """A pickle asked for something that is not handed out, or held something else than a network."""


class _Record:
    """What stands in for an object of any class: its attributes, as pickled."""


class _Reader(pickle.Unpickler):
    """An unpickler that knows the names below, and answers each with a stand-in of its own.

    Stand-ins are made for each reader, since a pickle may set attributes of whatever it is given.
    """

    def __init__(self, file: Any, path: str | Path) -> None:
        super().__init__(file)
        self.path = path
        self.allowed = _stand_ins(path)

    def find_class(self, module: str, name: str, /) -> Any:
        known = self.allowed.get(f"{module}.{name}")
        if known is not None:
            return known
        if module.startswith("torch.nn.modules.") and name.isidentifier():
            return type("_Module", (_Record,), {"_stands_for": name})
        _refuse(self.path, f"{module}.{name}")

    def persistent_load(self, pid: Any, /) -> NoReturn:
        _refuse(self.path, "a persistent object")


def _stand_ins(path: str | Path) -> dict[str, Any]:
    """The names that EDM's pickles need, and what is given for them."""

    def persistent(meta: dict[str, Any]) -> _Record:
        """The attributes and the name of the class; its source, which comes along, is dropped."""
        if not isinstance(meta, dict) or meta.get("type") != "class" or not isinstance(meta.get("state"), dict):
            _refuse(path, "a persistent object of another kind")
        record = _Record()
        vars(record).update({str(k): v for k, v in meta["state"].items()}, _class_name=str(meta.get("class_name")))
        return record

    def storage(data: bytes) -> Any:
        return _storage(path, data)

    def tensor(held: Any, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
        return _tensor(path, held, offset, size, stride)

    def parameter(data: Tensor, *_: Any) -> Tensor:
        return data

    class Dict(dict[Any, Any]):
        __slots__ = ()

    return {
        "torch_utils.persistence._reconstruct_persistent_obj": persistent,
        "torch._utils._rebuild_tensor_v2": tensor,
        "torch._utils._rebuild_parameter": parameter,
        "torch.storage._load_from_bytes": storage,
        "collections.OrderedDict": Dict,
        "dnnlib.util.EasyDict": Dict,
        "builtins.set": set,
        **_number_stand_ins(path),
    }


def _number_stand_ins(path: str | Path) -> dict[str, Any]:
    """The names that numpy's numbers need: a dtype that knows its code and byte order, and Python's numbers."""

    class Dtype:
        def __init__(self, code: str, *_: Any) -> None:
            self.code, self.order = str(code), "="

        def __setstate__(self, state: Any) -> None:
            self.order = str(state[1])

    def scalar(dtype: Any, data: bytes) -> Any:
        return _scalar(path, dtype.code, dtype.order, data)

    names = [f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")]
    return {"numpy.dtype": Dtype, **dict.fromkeys(names, scalar)}


def _storage(path: str | Path, data: object) -> Any:
    """A storage from the bytes that torch pickles it as: a file of torch within the pickle, read as weights only."""
    if not isinstance(data, bytes) or not data.startswith(_LEGACY):
        _refuse(path, "a storage of another format")
    try:
        held = torch.load(BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as err:
        raise _Refused(f"{path}: refuses to load a storage: {str(err).partition(chr(10))[0]}") from err
    if not isinstance(held, torch.storage.TypedStorage):
        _refuse(path, f"a {type(held).__name__} for a storage")
    return held


def _tensor(path: str | Path, storage: Any, offset: Any, size: Any, stride: Any) -> Tensor:
    """A tensor of its own from a view of a storage, within the storage's bounds and no larger than it."""
    if not isinstance(storage, torch.storage.TypedStorage):
        _refuse(path, f"a tensor out of a {type(storage).__name__}")
    flat = torch.empty(0, dtype=storage.dtype)
    held = storage._untyped_storage.nbytes() // flat.element_size()
    if math.prod(size) > held:
        _refuse(path, f"a tensor of {math.prod(size)} entries out of a storage of {held}")
    flat.set_(storage._untyped_storage, 0, (held,), (1,))
    # as_strided refuses views that leave the storage.
    return flat.as_strided(tuple(size), tuple(stride), offset).clone(memory_format=torch.contiguous_format)


def _scalar(path: str | Path, code: str, order: str, data: object) -> Any:
    """A number of numpy as Python's."""
    import numpy as np

    kind, bits = code[:1], code[1:]
    if not isinstance(data, bytes) or not bits.isdigit() or int(bits) not in _KINDS.get(kind, ()):
        _refuse(path, f"a numpy scalar of dtype {code}")
    return np.frombuffer(data, np.dtype((">" if order == ">" else "<") + code), count=1)[0].item()


def _tensors(path: str | Path, module: _Record, prefix: str, above: tuple[int, ...]) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers of a module and of those within, as in a state dict."""
    if id(module) in above:
        raise _Refused(f"{path}: module {prefix[:-1] or 'ema'} contains itself")
    fields = vars(module)
    passing = fields.get("_non_persistent_buffers_set") or ()
    for kind in ("_parameters", "_buffers"):
        for name, value in _entries(path, fields, kind, prefix):
            if isinstance(value, Tensor) and name not in passing:
                yield f"{prefix}{name}", value
            elif value is not None and not isinstance(value, Tensor):
                raise _Refused(f"{path}: {prefix}{name} is a {type(value).__name__}, expected a tensor")
    for name, value in _entries(path, fields, "_modules", prefix):
        if isinstance(value, _Record):
            yield from _tensors(path, value, f"{prefix}{name}.", (*above, id(module)))
        elif value is not None:
            raise _Refused(f"{path}: {prefix}{name} is a {type(value).__name__}, expected a module")


def _entries(path: str | Path, fields: Mapping[str, Any], kind: str, prefix: str) -> list[tuple[str, Any]]:
    table = fields.get(kind)
    if not isinstance(table, dict) or not all(isinstance(k, str) for k in table):
        raise _Refused(f"{path}: module {prefix[:-1] or 'ema'} has no {kind}")
    return list(table.items())


def _is_plain(value: object) -> bool:
    """Whether JSON holds it."""
    if isinstance(value, Mapping):
        return all(isinstance(k, str) and _is_plain(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, str | bool | int | float)


def _plain(value: Any) -> Any:
    """Dicts and lists for stand-ins and tuples."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _refuse(path: str | Path, what: str) -> NoReturn:
    raise _Refused(f"{path}: refuses to load {what}, which is no part of an EDM network")
