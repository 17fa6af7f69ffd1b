"""One case: a kind's file mutated by seed and number, laid in a folder of its own, given to a command."""

from __future__ import annotations

import hashlib
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from random import Random

from torture.bits import mutate_bits
from torture.child import Outcome, forked, fresh
from torture.contract import EARLIER, contents, faults
from torture.kinds import KINDS, Command
from torture.scene import EXPECTED

FRESH = 60
"""One case in so many runs in a fresh process instead of a fork."""


@dataclass(frozen=True)
class Case:
    """A mutated file, the command that reads it, and how it came to be.

    by_bits  whether the mutation knew nothing of the format
    """

    kind: str
    number: int
    file: str
    content: bytes
    command: Command
    by_bits: bool
    is_fresh: bool

    @property
    def words(self) -> list[str]:
        """The command line."""
        return [self.file if word == "FILE" else word for word in self.command.words]


def draw(scene: Path, kind: str, seed: int, number: int) -> Case:
    """The same for the same words, whatever was drawn before."""
    digest = hashlib.sha256(f"{seed}/{kind}/{number}".encode()).digest()
    rng = Random(int.from_bytes(digest, "big"))
    what = KINDS[kind]
    file = rng.choice(what.files)
    command = rng.choices(what.commands, [c.weight for c in what.commands])[0]
    data, by_bits = (scene / file).read_bytes(), rng.randrange(3) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are twice in a zip
        content = (mutate_bits if by_bits else what.mutation(file))(data, rng)
    return Case(kind, number, file, content, command, by_bits, rng.randrange(FRESH) == 0)


def lay(case: Case, scene: Path, folder: Path) -> None:
    """The case's file, links to what its command needs besides, and earlier outputs."""
    for name in case.command.needs:
        for source in (scene / name, *(scene / name).rglob("*")):
            if source.is_file():
                _link(source, folder / source.relative_to(scene))
    target = folder / case.file
    target.unlink(missing_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(case.content)
    for name in case.command.writes:
        if not name.endswith("/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(EARLIER)


def _link(source: Path, target: Path) -> None:
    """Hard, since manifests refuse what leads out of their folder; journals are written to, and copied."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if ".journal" in str(target):
        shutil.copyfile(source, target)
    else:
        target.hardlink_to(source)


def run(case: Case, scene: Path, folder: Path) -> tuple[Outcome, list[str]]:
    """How the case's command ended in `folder`, which is new, and what of the contract does not hold."""
    folder.mkdir()
    lay(case, scene, folder)
    before, command = contents(folder), case.command
    if case.is_fresh:
        outcome = fresh([command.program, *case.words], folder).outcome()
    else:
        outcome = forked(command.program, case.words, folder, command.then).outcome()
    after = contents(folder)
    found = faults(outcome, command.program, case.words, command.writes, before, after)
    is_checked = case.kind == "journals" and case.by_bits and outcome.code == 0
    if is_checked and after["out/s.csv"] != (scene / EXPECTED).read_bytes():
        found.append("bytes of a damaged journal that are not those of a whole run")
    return outcome, found
