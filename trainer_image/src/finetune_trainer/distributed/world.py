"""The processes that train together, seen from one of them; a process that trains alone asks nobody."""

import logging
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

from finetune_api.handoff import ExitCode
from finetune_trainer.errors import Stopped, TrainerError
from finetune_trainer.sigterm import StopFlag

logger = logging.getLogger(__name__)

T = TypeVar("T")

LONGEST_COLLECTIVE = timedelta(minutes=30)
"""A step in which a process does not answer for so long hangs; what may take longer is waited for by asking."""
MEET_SECONDS = 900.0
"""How long a process, whose pod is there, may take to begin."""
LOOK_SECONDS = 0.1
LEAVE_SECONDS = 15.0

Beat = Callable[[], None]


class World:
    """A process that trains alone, and what it would ask of others."""

    rank = 0
    size = 1
    local_rank = 0
    node = 0

    @property
    def is_first(self) -> bool:
        """Whether this is the process that saves and publishes."""
        return self.rank == 0

    def agree(self, flag: bool) -> bool:
        """Whether any process says so; all must ask at the same point."""
        return flag

    def gather(self, mine: torch.Tensor) -> list[torch.Tensor]:
        """Every process's tensor, of the same shape and on the CPU, in order of the ranks."""
        return [mine]

    def gather_bytes(self, mine: bytes) -> list[bytes]:
        """Every process's bytes, in order of the ranks."""
        size = torch.tensor([len(mine)], dtype=torch.int64)
        sizes = [int(one) for one in self.gather(size)]
        padded = torch.zeros(max(sizes), dtype=torch.uint8)
        padded[: len(mine)] = torch.frombuffer(bytearray(mine), dtype=torch.uint8)
        return [bytes(one[:length].numpy()) for one, length in zip(self.gather(padded), sizes, strict=True)]

    def tell(self, name: str, value: str = "") -> None:
        """Leaves a word for those that wait for it."""

    def wait(self, name: str, beat: Beat) -> str:
        """The word of that name, however long it takes; `beat` is called meanwhile and may raise."""
        return ""

    def meet(self, name: str, beat: Beat) -> None:
        """Waits until every process has come to this point, however long it takes."""
        self.tell(f"{name}/{self.rank}")
        for rank in range(self.size):
            self.wait(f"{name}/{rank}", beat)

    def deal(self, all_of_them: Sequence[T]) -> Iterator[tuple[T, bool]]:
        """This process's share, every so-many-th, and whether each counts: shares are filled up to the same length."""
        rounds = -(-len(all_of_them) // self.size)
        for turn in range(rounds):
            at = turn * self.size + self.rank
            is_counted = at < len(all_of_them)
            yield all_of_them[at if is_counted else 0], is_counted

    def part(self, beat: Beat) -> None:
        """Ends what holds the processes together, once the first is ready to go on alone."""

    def leave(self) -> None:
        """The last word between the processes: the first one stays until all have said it."""


ALONE = World()


class ManyRanks(World):
    """One of several processes, with a group of its own for words between the CPUs."""

    def __init__(self, rank: int, size: int, local_rank: int, local_size: int, store: Store) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self.node = rank // local_size
        self._store = store
        self._control = dist.new_group(backend="gloo", timeout=LONGEST_COLLECTIVE)

    def agree(self, flag: bool) -> bool:
        """Whether any process says so."""
        word = torch.tensor([int(flag)], dtype=torch.int32)
        dist.all_reduce(word, dist.ReduceOp.MAX, group=self._control)
        return bool(word.item())

    def gather(self, mine: torch.Tensor) -> list[torch.Tensor]:
        """Every process's tensor."""
        found = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(found, mine, group=self._control)
        return found

    def tell(self, name: str, value: str = "") -> None:
        """Leaves a word."""
        self._store.set(name, value)

    def wait(self, name: str, beat: Beat) -> str:
        """Asks for the word until it is there."""
        while not self._store.check([name]):
            beat()
            time.sleep(LOOK_SECONDS)
        return str(self._store.get(name), "utf-8")

    def part(self, beat: Beat) -> None:
        """All at the same time: NCCL takes a process that leaves for itself for a lost one, and ends the others."""
        if self.is_first:
            self.tell("trained")
        else:
            self.wait("trained", beat)
        dist.destroy_process_group()

    def leave(self) -> None:
        """The first process holds the words of all, and must not be gone while another still asks."""
        names = [f"left/{rank}" for rank in range(self.size)]
        deadline = time.monotonic() + LEAVE_SECONDS
        try:
            self.tell(names[self.rank])
            while self.is_first and not self._store.check(names) and time.monotonic() < deadline:
                time.sleep(LOOK_SECONDS)
        except RuntimeError as error:  # the first process has published, or was lost
            logger.debug("the last word was not heard: %s", error)


class AgreedStop(StopFlag):
    """A stop that all processes see at the same point, for work in which none can go on without the others."""

    def __init__(self, stop: StopFlag, world: World) -> None:
        super().__init__()
        self._stop, self._world = stop, world

    def is_set(self) -> bool:
        """Whether any process was asked to stop; all must look at the same point."""
        return self._world.agree(self._stop.is_set())

    def raise_if_set(self) -> None:
        """Raise `Stopped` in all processes, or in none."""
        is_asked = self._stop.is_set()
        if self._world.agree(is_asked):
            raise Stopped if is_asked else Stopped("stopped together with a pod that got SIGTERM")


def join(rank: int, size: int, local: tuple[int, int], address: tuple[str, int], beat: Beat) -> World:
    """Meets the other processes; `beat` is called while they have not come, and may raise.

    `local` is the place among the processes of this pod and their number. Only then is anything asked that cannot be
    broken off.
    """
    local_rank, local_size = local
    is_first = rank == 0
    host, port = ("127.0.0.1" if is_first else address[0]), address[1]
    deadline = time.monotonic() + MEET_SECONDS
    while not is_first and not _answers((host, port)):
        beat()
        _require_in_time(deadline, "rank 0")
        time.sleep(LOOK_SECONDS)
    store = dist.TCPStore(  # type: ignore[attr-defined]
        host, port, None, is_first, timeout=LONGEST_COLLECTIVE, wait_for_workers=False
    )
    store.set(f"here/{rank}", "")
    while not store.check([f"here/{one}" for one in range(size)]):
        beat()
        _require_in_time(deadline, "some of the other processes")
        time.sleep(LOOK_SECONDS)
    backend = "gloo"
    if torch.cuda.is_available():
        if torch.cuda.device_count() < local_size:
            told = f"resources.gpusPerNode is {local_size}, but the pod has {torch.cuda.device_count()} GPUs"
            raise TrainerError(ExitCode.INVALID_CONFIG, f"{told}: see what resources.gpuResourceName stands for")
        torch.cuda.set_device(local_rank)
        backend = "cuda:nccl,cpu:gloo"
    groups = PrefixStore("groups", store)
    dist.init_process_group(backend, store=groups, rank=rank, world_size=size, timeout=LONGEST_COLLECTIVE)
    return ManyRanks(rank, size, local_rank, local_size, PrefixStore("words", store))


def _require_in_time(deadline: float, missing: str) -> None:
    if time.monotonic() > deadline:
        told = f"{missing} did not come within {MEET_SECONDS:.0f} seconds"
        raise TrainerError(ExitCode.INTERNAL_ERROR, f"{told}: see the logs of the pods of this attempt")


def _answers(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, 1.0).close()
    except OSError:
        return False
    return True


def in_order(shares: Iterable[torch.Tensor], count: int) -> torch.Tensor:
    """What `deal` has dealt, put together again: the first of every share, then the second, without what was filled."""
    together = torch.stack(list(shares), dim=1)
    return together.reshape(-1, *together.shape[2:])[:count]
