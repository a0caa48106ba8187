"""Several processes that share out the chains of one run, as ``torchrun`` starts them."""

from collections.abc import Callable
from dataclasses import dataclass

from potentia.io import StoreError


@dataclass(frozen=True)
class Ranks:
    """This process among those that sample together: its index and their number."""

    index: int
    count: int

    @classmethod
    def of_process(cls) -> "Ranks":
        """As ``torch.distributed`` says, once its process group was made; otherwise one process alone."""
        from torch import distributed

        if not (distributed.is_available() and distributed.is_initialized()):
            return cls(0, 1)
        return cls(distributed.get_rank(), distributed.get_world_size())

    def wait(self) -> None:
        """Return when all ranks have come here."""
        if self.count > 1:
            from torch import distributed

            distributed.barrier()

    def first(self, make: Callable[[], None]) -> None:
        """Let rank 0 do something that the others wait for.

        Raises: StoreError on the other ranks where rank 0 failed; what went wrong on rank 0 itself.
        """
        self._alone(0, make)

    def in_turn(self, make: Callable[[], None]) -> None:
        """Let one rank after the other do something; all go on when the last has done it.

        Raises: StoreError on the other ranks where one failed; what went wrong on that one itself.
        """
        for rank in range(self.count):
            self._alone(rank, make)

    def _alone(self, rank: int, make: Callable[[], None]) -> None:
        if self.count == 1:
            make()
            return
        from torch import distributed

        failed: list[str | None] = [None]
        try:
            if self.index == rank:
                make()
        except BaseException as err:
            failed = [str(err) or type(err).__name__]
            raise
        finally:
            distributed.broadcast_object_list(failed, src=rank)
        if failed[0] is not None:
            raise StoreError(f"rank {rank}: {failed[0]}")
