"""A network and mounts of one's own, where the system allows them."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys

_JAIL = ("unshare", "--user", "--map-root-user", "--mount", "--net")
_INSIDE = "TORTURE_INSIDE"
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1


def cut_off() -> None:
    """Begin this program again without a network; where that is not allowed, say so and go on."""
    if os.environ.get(_INSIDE):
        _loopback()
        return
    os.environ[_INSIDE] = "1"
    words = [sys.executable, "-m", "torture", *sys.argv[1:]]
    if shutil.which("unshare") and not subprocess.run([*_JAIL, "true"], capture_output=True).returncode:
        os.execvp(_JAIL[0], [*_JAIL, *words])
    os.environ[_INSIDE] = "no"
    print("the network could not be taken away here: sockets are watched in forks alone", file=sys.stderr)


def has_mounts() -> bool:
    """Whether this process may mount."""
    return os.environ.get(_INSIDE) == "1"


def _loopback() -> None:
    """Processes of torchrun meet at localhost."""
    if not has_mounts():
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))
