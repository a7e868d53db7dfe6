"""The number of training processes, the ranks of this pod, and the environment of each."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from finetune_api.handoff import ENV_POD_IP, PEER_LINK_PORT, RENDEZVOUS_PORT, JobConfig
from finetune_api.pods.resources import PodResources, Resources
from finetune_api.scalars import parse_quantity
from finetune_trainer.distributed.pod_network import name_interface
from finetune_trainer.errors import InvalidConfig

ENV_NODE = "JOB_COMPLETION_INDEX"
"""The pod's completion index, set by the Indexed Job."""
ENV_THREADS = "OMP_NUM_THREADS"
"""torch reads it when it is imported."""
LEFT_GROUP = "left-group"
"""File in a rank's workspace: it has destroyed the process group and no longer needs the others."""
MEASURING = "measuring"
"""File in rank 0's workspace while all processes measure together, and the object that counts such attempts."""
THIS_MACHINE = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Layout:
    """The pods of an attempt and the processes in each, from the view of one pod."""

    nodes: int = 1
    per_node: int = 1
    node: int = 0
    first_pod: str = THIS_MACHINE
    address: str = THIS_MACHINE
    """The address of this pod, the only one on which its processes listen for each other."""
    rendezvous_port: int = RENDEZVOUS_PORT
    peer_link_port: int = PEER_LINK_PORT
    cores: int = 1

    @property
    def size(self) -> int:
        """Number of processes of the attempt."""
        return self.nodes * self.per_node

    @property
    def is_first(self) -> bool:
        """Whether rank 0 runs in this pod."""
        return self.node == 0

    @property
    def ranks(self) -> range:
        """The ranks of this pod's processes."""
        return range(self.node * self.per_node, (self.node + 1) * self.per_node)

    @property
    def threads(self) -> int:
        """Compute threads of each process: the processes of a pod share its cores."""
        return max(1, self.cores // self.per_node)

    def environment(self, local_rank: int, inherited: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of one process, with torch's variables."""
        return {ENV_THREADS: str(self.threads), **name_interface(self.address), **inherited} | {
            "RANK": str(self.ranks[local_rank]),
            "LOCAL_RANK": str(local_rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_WORLD_SIZE": str(self.per_node),
            "MASTER_ADDR": self.address if self.is_first else self.first_pod,
            "MASTER_PORT": str(self.rendezvous_port),
        }


def build_layout(
    config: JobConfig, rendezvous_port: int = RENDEZVOUS_PORT, peer_link_port: int = PEER_LINK_PORT
) -> Layout:
    """Return the layout that the job requests, from the view of this pod."""
    resources = config.spec.resources
    nodes = resources.num_nodes
    per_node = resources.ranks // nodes
    cores = count_cores(resources)
    if nodes == 1:
        return Layout(1, per_node, 0, THIS_MACHINE, THIS_MACHINE, rendezvous_port, peer_link_port, cores)
    node, address = os.environ.get(ENV_NODE, "0"), os.environ.get(ENV_POD_IP, "")
    if not config.first_pod or not node.isdecimal() or int(node) >= nodes or not address:
        found = f"firstPod is {config.first_pod!r}, {ENV_NODE} is {node!r} and {ENV_POD_IP} is {address!r}"
        raise InvalidConfig(f"resources.numNodes is {nodes}, but the pod has no valid rank or address: {found}")
    return Layout(nodes, per_node, int(node), config.first_pod, address, rendezvous_port, peer_link_port, cores)


def count_cores(resources: Resources | PodResources) -> int:
    """Return the cores of a pod: its CPU limit, else its request, else all cores of the node.

    By default torch starts a thread for each core of the node; with a CPU limit they compete for time.
    """
    available = len(os.sched_getaffinity(0))
    requested = (resources.limits or {}).get("cpu") or (resources.requests or {}).get("cpu")
    return min(available, max(1, parse_quantity(requested))) if requested else available
