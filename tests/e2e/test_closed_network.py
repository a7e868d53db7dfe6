"""The cluster of the tests is closed: a machine on another link reaches nothing of it, and a pod of storage only S3."""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes import client
from test_cluster import PYTHON, RESTRICTED, SERVE, accounts, apply, fetch_from_pod, image, phase, pod, until

NODE, API_SERVICE = "10.97.0.1", "10.96.0.1"
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=2)"
LISTEN = "import socket, time; held = socket.create_server(('', 7000)); print('ready', flush=True); time.sleep(600)"

# Alone and late: the first `ip netns` binds /run/netns onto itself, and pods from before cannot be removed after that.
pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(not Path("/sys/class/net/ftc-node").exists(), reason="not the cluster of tests/cluster"),
]
__all__ = ["image"]


class Neighbour:
    """A machine on a link of its own: a network namespace that sends everything to this machine."""

    def __init__(self, number: int) -> None:
        self.name, self.gateway, self.address = (
            f"ftc-test-{number}",
            f"198.51.100.{4 * number + 1}",
            f"198.51.100.{4 * number + 2}",
        )
        link, peer = f"ftct{number}", f"ftcp{number}"
        self.link = link
        ip("netns", "add", self.name)
        ip("link", "add", link, "type", "veth", "peer", "name", peer, "netns", self.name)
        ip("address", "add", f"{self.gateway}/30", "dev", link)
        ip("link", "set", link, "up")
        ip("-n", self.name, "link", "set", "lo", "up")
        ip("-n", self.name, "address", "add", f"{self.address}/30", "dev", peer)
        ip("-n", self.name, "link", "set", peer, "up")
        ip("-n", self.name, "route", "add", "default", "via", self.gateway)

    def reaches(self, address: str, port: int) -> bool:
        command = ["ip", "netns", "exec", self.name, sys.executable, "-c", CONNECT, address, str(port)]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    def remove(self) -> None:
        subprocess.run(["ip", "link", "delete", self.link], check=False, capture_output=True)
        subprocess.run(["ip", "netns", "delete", self.name], check=False, capture_output=True)


def ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def neighbours() -> Iterator[tuple[Neighbour, Neighbour]]:
    made: list[Neighbour] = []
    try:
        made.extend(map(Neighbour, (0, 1)))
        yield made[0], made[1]
    finally:
        for one in made:
            one.remove()


@pytest.fixture
def namespace(_kubeconfig: None) -> Iterator[str]:
    name = f"closed-{uuid.uuid4().hex[:6]}"
    apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": RESTRICTED}})
    until("the namespace's service account", lambda: accounts(name))
    yield name
    client.CoreV1Api().delete_namespace(name)


def test_a_neighbour_reaches_neither_the_node_nor_a_service_nor_a_pod(
    neighbours: tuple[Neighbour, Neighbour], namespace: str, image: str
) -> None:
    apply(pod(namespace, "server", image, [PYTHON, "-c", SERVE]))
    phase(namespace, "server", "Running")
    address = client.CoreV1Api().read_namespaced_pod("server", namespace).status.pod_ip
    neighbour, _ = neighbours
    listener = subprocess.Popen([sys.executable, "-c", LISTEN], stdout=subprocess.PIPE)
    try:
        assert listener.stdout
        listener.stdout.readline()
        assert neighbour.reaches(neighbour.gateway, 7000), "the link itself does not work"
    finally:
        listener.kill()
        listener.communicate()
    targets = [(NODE, 16443), (NODE, 28333), (NODE, 20250), (API_SERVICE, 443), (address, 8080)]
    assert [one for one in targets if neighbour.reaches(*one)] == []


def test_packets_between_two_other_links_are_not_passed_on(neighbours: tuple[Neighbour, Neighbour]) -> None:
    before = Path(os.environ["FINETUNE_CLUSTER_DIR"]) / "sysctls.before"
    if '"net/ipv4/ip_forward": "1"' in before.read_text():
        pytest.skip("this machine passed packets on between its links before the cluster was started")
    one, other = neighbours
    command = ["ip", "netns", "exec", other.name, sys.executable, "-c", LISTEN]
    listener = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert listener.stdout
        listener.stdout.readline()
        assert other.reaches(other.address, 7000)
        assert not one.reaches(other.address, 7000)
    finally:
        listener.kill()
        listener.communicate()


def test_a_pod_reaches_none_of_the_object_stores_parts_that_ask_for_no_key(namespace: str, image: str) -> None:
    assert "403" in fetch_from_pod(namespace, image, f"http://{NODE}:28333/")
    for port in (28888, 29333, 28080, 28334):
        said = fetch_from_pod(namespace, image, f"http://{NODE}:{port}/")
        assert "refused" in said or "timed out" in said, (port, said)
