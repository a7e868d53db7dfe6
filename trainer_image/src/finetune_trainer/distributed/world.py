"""The training processes from the view of one of them; a process that trains alone communicates with no other."""

import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import PrefixStore, Store
from typing_extensions import override

from finetune_api.handoff import ExitCode
from finetune_trainer.distributed.pod_network import listen
from finetune_trainer.errors import Stopped, TrainerError
from finetune_trainer.sigterm import StopFlag

logger = logging.getLogger(__name__)

T = TypeVar("T")

JOIN_SECONDS = 900.0
"""How long a process may take to connect once the first one listens."""
POLL_SECONDS = 0.1
LEAVE_SECONDS = 15.0

OnPoll = Callable[[], None]


class World:
    """A process that trains alone."""

    rank = 0
    size = 1
    local_rank = 0
    node = 0
    timeout_seconds = 0.0
    """How long a process waits for one that does nothing."""

    @property
    def is_first(self) -> bool:
        """Return whether this process saves and publishes."""
        return self.rank == 0

    def any_rank(self, flag: bool) -> bool:
        """Return whether the flag is set in any process; a collective."""
        return flag

    def gather(self, own: torch.Tensor) -> list[torch.Tensor]:
        """Return every process's tensor, of the same shape and on the CPU, in order of the ranks; a collective."""
        return [own]

    def gather_bytes(self, own: bytes) -> list[bytes]:
        """Return every process's bytes, in order of the ranks; a collective."""
        size = torch.tensor([len(own)], dtype=torch.int64)
        sizes = [int(one) for one in self.gather(size)]
        padded = torch.zeros(max(sizes), dtype=torch.uint8)
        padded[: len(own)] = torch.frombuffer(bytearray(own), dtype=torch.uint8)
        return [bytes(one[:length].numpy()) for one, length in zip(self.gather(padded), sizes, strict=True)]

    def set_key(self, name: str, value: str = "") -> None:
        """Set a key in the store of the processes."""

    def find_key(self, name: str) -> str | None:
        """Return the key's value, or None if it is not set."""
        return ""

    def choose(self, name: str, value: str) -> str:
        """Set a key unless it is set; return its value, which is the same in all processes."""
        return value

    def add(self, name: str, amount: int) -> int:
        """Add to a number in the store, and return it."""
        return amount

    def wait_key(self, name: str, on_poll: OnPoll) -> str:
        """Return the key's value; wait for it without limit, calling `on_poll`, which may raise."""
        return ""

    def barrier(self, name: str, on_poll: OnPoll) -> None:
        """Wait without limit until every process has reached this point."""
        self.set_key(f"{name}/{self.rank}")
        for rank in range(self.size):
            self.wait_key(f"{name}/{rank}", on_poll)

    def shard(self, items: Sequence[T]) -> Iterator[tuple[T, bool]]:
        """Yield every n-th item, and whether it counts: all shards are padded to the same length."""
        rounds = -(-len(items) // self.size)
        for turn in range(rounds):
            at = turn * self.size + self.rank
            is_counted = at < len(items)
            yield items[at if is_counted else 0], is_counted

    def gather_shards(self, own: Sequence[T], count: int) -> list[T]:
        """Return what all processes made of their `shard` of so many items, in the order of these; a collective.

        It is sent as JSON.
        """
        shares = [json.loads(one) for one in self.gather_bytes(json.dumps(own).encode())]
        return [shares[at % self.size][at // self.size] for at in range(count)]

    def destroy_group(self, on_poll: OnPoll) -> None:
        """Destroy the process group once the first process no longer needs it."""

    def leave(self) -> None:
        """Wait until all processes have finished with the store, which the first one hosts."""


ALONE = World()


class ManyRanks(World):
    """One of several processes, with a Gloo group of its own for tensors on the CPU."""

    def __init__(
        self, rank: int, size: int, local_rank: int, local_size: int, store: Store, *, timeout: timedelta
    ) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self.node = rank // local_size
        self.timeout_seconds = timeout.total_seconds()
        self._store = store
        self._control = dist.new_group(backend="gloo", timeout=timeout)

    @override
    def any_rank(self, flag: bool) -> bool:
        found = torch.tensor([int(flag)], dtype=torch.int32)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self._control)
        return bool(found.item())

    @override
    def gather(self, own: torch.Tensor) -> list[torch.Tensor]:
        found = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(found, own, group=self._control)
        return found

    @override
    def set_key(self, name: str, value: str = "") -> None:
        self._store.set(name, value)

    @override
    def find_key(self, name: str) -> str | None:
        return str(self._store.get(name), "utf-8") if self._store.check([name]) else None

    @override
    def choose(self, name: str, value: str) -> str:
        return str(self._store.compare_set(name, "", value), "utf-8")

    @override
    def add(self, name: str, amount: int) -> int:
        return self._store.add(name, amount)

    @override
    def wait_key(self, name: str, on_poll: OnPoll) -> str:
        while (value := self.find_key(name)) is None:
            on_poll()
            time.sleep(POLL_SECONDS)
        return value

    @override
    def destroy_group(self, on_poll: OnPoll) -> None:
        # All processes leave together: NCCL treats one that leaves early as lost and aborts the rest.
        if self.is_first:
            self.set_key("trained")
        else:
            self.wait_key("trained", on_poll)
        dist.destroy_process_group()

    @override
    def leave(self) -> None:
        names = [f"left/{rank}" for rank in range(self.size)]
        deadline = time.monotonic() + LEAVE_SECONDS
        try:
            self.set_key(names[self.rank])
            while self.is_first and not self._store.check(names) and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
        except RuntimeError as error:  # the first process has published, or was lost
            logger.debug("the connection to the store is lost: %s", error)


class AgreedStop(StopFlag):
    """A stop that all processes observe at the same point, for work that none can continue without the others.

    Both methods are collectives; `raise_if_set` raises in all processes or in none.
    """

    def __init__(self, stop: StopFlag, world: World) -> None:
        super().__init__()
        self.own, self._world = stop, world

    @override
    def is_set(self) -> bool:
        return self._world.any_rank(self.own.is_set())

    @override
    def raise_if_set(self) -> None:
        is_asked = self.own.is_set()
        if self._world.any_rank(is_asked):
            raise Stopped if is_asked else Stopped("stopped together with a pod that received SIGTERM")


def join(
    rank: int,
    size: int,
    local: tuple[int, int],
    address: tuple[str, int],
    on_poll: OnPoll,
    *,
    timeout: timedelta,
) -> World:
    """Join the other processes; until all have arrived, `on_poll` is called and may raise.

    `local` is the local rank and the number of processes in this pod; `address` is where rank 0 listens. A process that
    is silent for `timeout` in a collective hangs; work that can take longer polls a key instead. Calls that cannot be
    interrupted come last.
    """
    local_rank, local_size = local
    is_first = rank == 0
    # Without limit: the first process may push the result of an earlier run before. If it hangs, its progress stalls.
    while not is_first and not _is_open(address):
        on_poll()
        time.sleep(POLL_SECONDS)
    # Without a socket of ours torch listens on every address.
    listening = listen(address, size).detach() if is_first else None
    store = dist.TCPStore(  # type: ignore[attr-defined]
        *address, None, is_first, timeout=timeout, wait_for_workers=False, master_listen_fd=listening
    )
    store.set(f"here/{rank}", "")
    deadline = time.monotonic() + JOIN_SECONDS
    while not store.check([f"here/{one}" for one in range(size)]):
        on_poll()
        if time.monotonic() > deadline:
            problem = f"some of the other processes did not connect within {JOIN_SECONDS:.0f} seconds"
            raise TrainerError(ExitCode.INTERNAL_ERROR, f"{problem}: see the logs of the pods of this attempt")
        time.sleep(POLL_SECONDS)
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
        backend = "cuda:nccl,cpu:gloo"
    groups = PrefixStore("groups", store)
    dist.init_process_group(backend, store=groups, rank=rank, world_size=size, timeout=timeout)
    return ManyRanks(rank, size, local_rank, local_size, PrefixStore("keys", store), timeout=timeout)


@contextmanager
def as_only_process() -> Iterator[None]:
    """Make the libraries take this process, which has left its group, for the only one of it, on the GPU that it has.

    They would wait for the others and compute a share of the rows, or use every visible GPU.
    """
    if "WORLD_SIZE" not in os.environ:
        yield
        return
    os.environ |= {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    # Without a group the libraries make one, at the address whose port the processes' own store holds.
    backend = "cuda:nccl,cpu:gloo" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _is_open(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, 1.0).close()
    except OSError:
        return False
    return True


def unshard(shards: Iterable[torch.Tensor], count: int) -> torch.Tensor:
    """Return the items of `World.shard` in their original order, without the padding."""
    together = torch.stack(list(shards), dim=1)
    return together.reshape(-1, *together.shape[2:])[:count]
