"""The sampler's state as bytes: what a run needs to go on where it stopped."""

import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from potentia.inference._protocol import State

_LENGTH = struct.Struct("<Q")
_SLACK = 8192  # for the header, whose length depends on how many tensors there are
_COMPLEX = "complex:"


def _tensors(state: State, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
    held = {"x": state.x, **{f"white_{i}": w for i, w in enumerate(state.white or ())}}
    held |= {name: t for name, t in (("value", state.value), ("grad", state.grad)) if t is not None}
    held |= {f"memory:{name}": t for name, t in state.memory.items()}
    packed = {(_COMPLEX if t.is_complex() else "") + n: _real(t) for n, t in held.items()}
    random = {"generators": torch.stack([g.get_state() for g in generators])}
    return {name: t.detach().cpu().contiguous().clone() for name, t in (packed | random).items()}


def _real(t: Tensor) -> Tensor:
    return torch.view_as_real(t.resolve_conj()) if t.is_complex() else t


def capacity(state: State, generators: Sequence[torch.Generator]) -> int:
    """Bytes to set aside for the state of these chains at any time."""
    sizes = {name: t.numel() * t.element_size() for name, t in _tensors(state, generators).items()}
    memory = sum(size for name, size in sizes.items() if "memory:" in name)
    image = state.x.numel() * state.x.element_size()
    return _SLACK + sizes["generators"] + memory + 4 * image + 8 * len(state.x)


def encode(state: State, generators: Sequence[torch.Generator], done: int, n_grad: int) -> bytes:
    """Pack positions, carried numbers, memory, generators and counters: a length, then safetensors."""
    from safetensors.torch import save

    counters = torch.tensor([state.step, done, n_grad], dtype=torch.int64)
    body = save({**_tensors(state, generators), "counters": counters})
    return _LENGTH.pack(len(body)) + body


def decode(saved: bytes, generators: Sequence[torch.Generator], device: torch.device) -> tuple[State, int, int]:
    """Unpack a state, setting the generators to where they were: state, draws done, gradient evaluations.

    Raises: ValueError if the bytes are no such state.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        (length,) = _LENGTH.unpack_from(saved)
        held = load(saved[_LENGTH.size : _LENGTH.size + length])
        steps, done, n_grad = (int(v) for v in held.pop("counters"))
        random = held.pop("generators")
        tensors = {n.removeprefix(_COMPLEX): _image(n, t).to(device) for n, t in held.items()}
        x = tensors["x"]
    except (struct.error, SafetensorError, KeyError) as err:
        raise ValueError(f"resume: the saved sampler state cannot be read: {err}") from err
    for generator, words in zip(generators, random, strict=True):
        # A clone: torch crashes on a row of a larger tensor.
        generator.set_state(words.clone())
    white = tuple(tensors[name] for name in sorted(tensors) if name.startswith("white_")) or None
    memory = {name.removeprefix("memory:"): t for name, t in tensors.items() if name.startswith("memory:")}
    return State(x, white, steps, generators, tensors.get("value"), tensors.get("grad"), memory), done, n_grad


def _image(name: str, t: Tensor) -> Tensor:
    return torch.view_as_complex(t) if name.startswith(_COMPLEX) else t
