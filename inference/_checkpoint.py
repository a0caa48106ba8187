"""The sampler's state as bytes: what a run needs to go on where it stopped."""

import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from potentia.inference._protocol import State

_LENGTH = struct.Struct("<Q")
_SLACK = 4096  # for the header, whose length depends on how many tensors there are


def _tensors(state: State, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
    held = {"x": state.x, **{f"white_{i}": w for i, w in enumerate(state.white or ())}}
    packed = {name: torch.view_as_real(t) if t.is_complex() else t for name, t in held.items()}
    random = {"generators": torch.stack([g.get_state() for g in generators])}
    return {name: t.detach().cpu().contiguous() for name, t in (packed | random).items()}


def capacity(state: State, generators: Sequence[torch.Generator]) -> int:
    """Bytes to set aside for the state of these chains at any time."""
    sizes = {name: t.numel() * t.element_size() for name, t in _tensors(state, generators).items()}
    return _SLACK + sizes["generators"] + 3 * sizes["x"]


def encode(state: State, generators: Sequence[torch.Generator], done: int, n_grad: int) -> bytes:
    """Pack positions, carried random numbers, generators and counters: a length, then safetensors."""
    from safetensors.torch import save

    counters = torch.tensor([state.step, done, n_grad], dtype=torch.int64)
    body = save({**_tensors(state, generators), "counters": counters, "complex": torch.tensor([state.x.is_complex()])})
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
        is_complex = bool(held["complex"].item())
        steps, done, n_grad = (int(v) for v in held["counters"])
        random = held["generators"]
    except (struct.error, SafetensorError, KeyError) as err:
        raise ValueError(f"resume: the saved sampler state cannot be read: {err}") from err
    for generator, words in zip(generators, random, strict=True):
        # A clone: torch crashes on a row of a larger tensor.
        generator.set_state(words.clone())

    def image(name: str) -> Tensor:
        t = held[name].to(device)
        return torch.view_as_complex(t) if is_complex else t

    names = sorted(name for name in held if name.startswith("white_"))
    white = tuple(image(name) for name in names) or None
    return State(image("x"), white, steps, generators), done, n_grad
