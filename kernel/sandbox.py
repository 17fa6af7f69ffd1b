"""Run a command as on Kaggle: /kaggle/input read-only, /kaggle/working writable, and no network.

    unshare --user --map-root-user --mount --net python kernel/sandbox.py INPUT WORKING COMMAND...

Needs Linux with user namespaces. The network namespace has a loopback of its own and nothing else.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1


def main(words: list[str]) -> None:
    """Build the root, enter it, and become the command."""
    source, working, command = Path(words[0]), Path(words[1]), words[2:]
    _loopback_up()
    root = Path(tempfile.mkdtemp())
    _mount("-t", "tmpfs", "none", root)
    for path in sorted(Path("/").iterdir()):
        target = root / path.name
        if path.is_symlink():
            target.symlink_to(os.readlink(path))
        elif path.is_dir() and path.name != "kaggle":
            target.mkdir()
            _mount("--rbind", path, target)
    for name, folder in (("input", source), ("working", working)):
        target = root / "kaggle" / name
        target.mkdir(parents=True)
        _mount("--bind", folder.resolve(), target)
    _mount("-o", "remount,bind,ro", root / "kaggle" / "input")
    os.chroot(root)
    os.chdir("/kaggle/working")
    os.execvp(command[0], command)


def _mount(*words: object) -> None:
    subprocess.run(["mount", *map(str, words)], check=True)


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as device:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(device, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(device, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))


if __name__ == "__main__":
    main(sys.argv[1:])
