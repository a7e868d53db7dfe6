"""How many processes train together, which of them run in this pod, and how each is told of its place."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from finetune_api.handoff import LIFELINE_PORT, RENDEZVOUS_PORT, ExitCode, JobConfig
from finetune_api.pods import Resources
from finetune_api.scalars import parse_quantity
from finetune_trainer.errors import TrainerError

ENV_NODE = "JOB_COMPLETION_INDEX"
"""The pod's number, as an Indexed Job tells it."""
ENV_THREADS = "OMP_NUM_THREADS"
"""Read when torch is imported."""
PARTED = "parted"
"""A file in a process's workspace: it needs the others no more."""
THIS_MACHINE = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Layout:
    """The pods of an attempt and the processes in each, seen from one of the pods."""

    nodes: int = 1
    per_node: int = 1
    node: int = 0
    first_pod: str = THIS_MACHINE
    rendezvous_port: int = RENDEZVOUS_PORT
    lifeline_port: int = LIFELINE_PORT
    cores: int = 1

    @property
    def size(self) -> int:
        """All processes of the attempt."""
        return self.nodes * self.per_node

    @property
    def is_first(self) -> bool:
        """Whether this is the pod of rank 0."""
        return self.node == 0

    @property
    def ranks(self) -> range:
        """The ranks of this pod's processes."""
        return range(self.node * self.per_node, (self.node + 1) * self.per_node)

    @property
    def threads(self) -> int:
        """The threads of each process for arithmetic: the processes of a pod share its cores."""
        return max(1, self.cores // self.per_node)

    def environment(self, local_rank: int, inherited: Mapping[str, str]) -> dict[str, str]:
        """The environment of one process, in torch's words."""
        return {ENV_THREADS: str(self.threads), **inherited} | {
            "RANK": str(self.ranks[local_rank]),
            "LOCAL_RANK": str(local_rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_WORLD_SIZE": str(self.per_node),
            "MASTER_ADDR": self.first_pod,
            "MASTER_PORT": str(self.rendezvous_port),
        }


def layout_of(config: JobConfig, rendezvous_port: int = RENDEZVOUS_PORT, lifeline_port: int = LIFELINE_PORT) -> Layout:
    """The layout that the job asks for, seen from the pod that this process runs in."""
    resources = config.spec.resources
    nodes = resources.nodes
    per_node = resources.ranks // nodes
    if nodes == 1:
        return Layout(1, per_node, 0, THIS_MACHINE, rendezvous_port, lifeline_port, cores_of(resources))
    node = os.environ.get(ENV_NODE, "0")
    if not config.first_pod or not node.isdecimal() or int(node) >= nodes:
        told = f"firstPod is {config.first_pod!r} and {ENV_NODE} is {node!r}"
        raise TrainerError(
            ExitCode.INVALID_CONFIG, f"resources.nodes is {nodes}, but the pod does not know its place: {told}"
        )
    return Layout(nodes, per_node, int(node), config.first_pod, rendezvous_port, lifeline_port, cores_of(resources))


def cores_of(resources: Resources) -> int:
    """The cores of a pod: its CPU limit, else its request, else all of the node.

    Left to itself, torch starts a thread for each core of the node, and they wait for each other's turn.
    """
    seen = len(os.sched_getaffinity(0))
    given = (resources.limits or {}).get("cpu") or (resources.requests or {}).get("cpu")
    return min(seen, max(1, parse_quantity(given))) if given else seen
