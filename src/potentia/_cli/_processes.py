"""The process group of a command that ``torchrun`` started several times."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def process_group() -> Iterator[tuple[int, int | None]]:
    """Join the processes that torchrun started; gives the rank, and the rank on this machine, or 0 and None alone.

    They talk through gloo, also where they compute on CUDA: what they say is short.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield 0, None
        return
    from torch import distributed

    distributed.init_process_group("gloo")
    try:
        yield distributed.get_rank(), int(os.environ.get("LOCAL_RANK", "0"))
    finally:
        # Its threads must not outlive the interpreter.
        distributed.destroy_process_group()
