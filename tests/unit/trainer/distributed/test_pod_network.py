"""The address and the interface of a pod; this machine has loopback at least."""

import socket
from pathlib import Path

import pytest

from finetune_trainer.distributed.pod_network import listen, name_interface


def test_an_address_has_its_interface() -> None:
    assert name_interface("127.0.0.1") == {"NCCL_SOCKET_IFNAME": "=lo", "GLOO_SOCKET_IFNAME": "lo"}


def test_an_address_that_no_interface_has_sets_nothing() -> None:
    assert name_interface("192.0.2.7") == {}
    assert name_interface("2001:db8::7") == {}


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="the kernel has no IPv6")
def test_gloo_finds_an_ipv6_address_by_the_name_of_the_host() -> None:
    assert name_interface("::1") in ({"NCCL_SOCKET_IFNAME": "=lo"}, {})


def test_one_address_is_listened_on_and_no_other() -> None:
    with listen(("127.0.0.2", 0), 1) as server:
        port = server.getsockname()[1]
        socket.create_connection(("127.0.0.2", port), 10).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 10)
