"""Checkpoints of trainings: tensors and plain values, written so that an interruption leaves the last whole one."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from potentia._files import written_whole


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write beside the file, then rename over it once it is on the disk."""
    with written_whole(path, durable=True) as file:
        torch.save(dict(state), file)


def read_checkpoint(path: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Read a checkpoint of the training that ``identity`` describes; only tensors and plain values are loaded.

    Raises: ValueError for a file that is none, or one of another training, naming the first difference.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, ValueError) as err:
        reason = str(err).partition("\n")[0] or type(err).__name__
        raise ValueError(f"{path}: cannot be read as a checkpoint: {reason}") from err
    expected = {"identity", "step", "trained", "average", "optimizer"}
    if not isinstance(state, dict) or set(state) != expected:
        raise ValueError(f"{path}: is no checkpoint of a training, expected the entries {', '.join(sorted(expected))}")
    there = state["identity"]
    for key in sorted({*there, *identity}):
        if there.get(key) != identity.get(key):
            raise ValueError(
                f"{path}: is a checkpoint of another training: {key} was {there.get(key)}, is {identity.get(key)}"
            )
    return state
