"""Two hosts on one machine: network namespaces with a cable between them, and one file system for both."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

CABLE = "cable"
_INTO = ("--user", "--preserve-credentials")
_OWNER = ("unshare", "--user", "--map-root-user")
_HOST = ("unshare", "--net", "--uts", "--mount")


@dataclass(frozen=True)
class Host:
    """A name and a network of its own, which is one end of the cable, at `address`."""

    name: str
    address: str
    holder: int

    @property
    def enter(self) -> tuple[str, ...]:
        """What to write before a command, so that it runs here."""
        return ("nsenter", f"--target={self.holder}", *_INTO, "--net", "--uts", "--mount")

    def crash(self) -> None:
        """End at once whatever runs here but the host itself."""
        network = os.readlink(f"/proc/{self.holder}/ns/net")
        while running := [pid for pid in _processes() if _network(pid) == network and pid != self.holder]:
            for pid in running:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _network(pid: int) -> str | None:
    """The network that a process sees, None where it is none of ours or has ended."""
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:
        return None


def require_hosts() -> None:
    """Skip a test where this machine does not allow it."""
    missing = [tool for tool in ("unshare", "nsenter", "ip", "hostname") if not shutil.which(tool)]
    if missing:
        pytest.skip(f"two hosts need {', '.join(missing)}")
    probe = [*_OWNER, *_HOST, "sh", "-c", "ip link add one type veth peer name two"]
    done = subprocess.run(probe, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"network namespaces are not allowed here: {done.stderr.strip()}")


@contextmanager
def two_hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    """Until the block ends, and whatever runs there with it; their names stand in a file in `folder`."""
    with ExitStack() as stack:
        first = stack.enter_context(_held(*_OWNER, *_HOST))
        inside = ("nsenter", f"--target={first}", *_INTO)
        second = stack.enter_context(_held(*inside, *_HOST))
        cable = ["ip", "link", "add", CABLE, "type", "veth", "peer", "name", CABLE, "netns", str(second)]
        subprocess.run([*inside, "--net", *cable], check=True)
        hosts = Host("one", "10.77.0.1", first), Host("two", "10.77.0.2", second)
        (folder / "hosts").write_text("".join(f"{host.address} {host.name}\n" for host in hosts))
        for host in hosts:
            # torchrun looks up the name of its host.
            setting = f"mount --bind {folder}/hosts /etc/hosts; hostname {host.name}; ip link set lo up"
            setting += f"; ip link set {CABLE} up; ip address add {host.address}/24 dev {CABLE}"
            subprocess.run([*host.enter, "sh", "-ec", setting], check=True)
        try:
            yield hosts
        finally:
            for host in hosts:
                host.crash()


@contextmanager
def _held(*words: str) -> Iterator[int]:
    """The id of a process that sleeps in new namespaces, once it is there."""
    holder = subprocess.Popen([*words, "sleep", "infinity"])
    try:
        name = Path(f"/proc/{holder.pid}/comm")
        while holder.poll() is None and name.read_text() != "sleep\n":
            time.sleep(0.01)
        yield holder.pid
    finally:
        holder.kill()
        holder.wait()
