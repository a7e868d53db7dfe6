"""Where the processes of a pod listen for each other: on the pod's address, and on no other interface."""

import fcntl
import ipaddress
import socket
import struct
from pathlib import Path

GET_ADDRESS = 0x8915
"""SIOCGIFADDR of Linux: the IPv4 address of an interface."""


def listen(address: tuple[str, int], backlog: int) -> socket.socket:
    """Listen on one address of this pod, IPv4 or IPv6."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    return socket.create_server(address, family=family, backlog=backlog)


def name_interface(address: str) -> dict[str, str]:
    """Return the variables that keep gloo and NCCL on the interface with this address; empty if none has it.

    For IPv6 gloo gets none: it would take any address of the interface, and by default takes that of the host's name.
    """
    interface = _find_interface(address)
    if interface is None:
        return {}
    exact = {"NCCL_SOCKET_IFNAME": f"={interface}"}  # without `=`, it is a prefix
    return exact if ":" in address else exact | {"GLOO_SOCKET_IFNAME": interface}


def _find_interface(address: str) -> str | None:
    packed = ipaddress.ip_address(address).packed
    if len(packed) > 4:
        known = Path("/proc/net/if_inet6")
        lines = [line.split() for line in known.read_text(encoding="ascii").splitlines()] if known.exists() else []
        return next((fields[-1] for fields in lines if fields[0] == packed.hex()), None)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, GET_ADDRESS, struct.pack("256s", name.encode()))
            except OSError:  # an interface without an IPv4 address, or another system than Linux
                continue
            if answer[20:24] == packed:
                return name
    return None
