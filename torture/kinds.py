"""Every kind of input that the kit reads: real files of it, its mutation, and the commands that read it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

from torture.archives import (
    mutate_npz,
    mutate_pickle,
    mutate_pickles,
    mutate_results_zip,
    mutate_safetensors,
    mutate_torch,
)
from torture.bits import Mutation
from torture.pictures import PICTURES, mutate_png, mutate_tiff
from torture.scene import JOURNAL, PREDICT, TUNE
from torture.texts import (
    mutate_csv,
    mutate_journal,
    mutate_json,
    mutate_python,
    mutate_toml,
    mutate_yaml,
)


@dataclass(frozen=True)
class Command:
    """One way in which a kind is read.

    words    of the command line; "FILE" is the mutated one
    needs    files and folders of the scene that it reads besides
    writes   where it may write; a folder ends in "/"
    then     words of a `check` that must find nothing wrong with what was written
    program  the module that is run
    weight   how often it is drawn, against the kind's others
    """

    words: tuple[str, ...]
    needs: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    then: tuple[str, ...] = ()
    program: str = "sartorius_infer"
    weight: int = 4


@dataclass(frozen=True)
class Kind:
    """Files of the scene of one kind, the mutation of each suffix, the commands."""

    files: tuple[str, ...]
    mutations: dict[str, Mutation]
    commands: tuple[Command, ...]

    def mutation(self, file: str) -> Mutation:
        """The mutation by structure of one of the files."""
        return self.mutations[PurePath(file).suffix]


_CHECK = ("check", "--submission")
_RUN = Command((*PREDICT, "--out", "out/s.csv"), ("w", "ok"), ("out/s.csv",), (*_CHECK, "out/s.csv"))
_RUN_ALL = Command(
    (*PREDICT, "--out", "out/r.json", "--overlays", "out/o", "--save-predictions", "out/p"),
    ("w", "ok"),
    ("out/r.json", "out/o/", "out/p/"),
    (*_CHECK, "out/r.json"),
    weight=1,
)
_SCORE_FILES = ("out/score.json", "out/images.csv")


def _score(truth: str, found: str, *needs: str) -> Command:
    words = ("score", "--truth", truth, "--submission", found)
    return Command((*words, "--json", _SCORE_FILES[0], "--per-image", _SCORE_FILES[1]), needs, _SCORE_FILES)


def _show(*words: str, needs: tuple[str, ...]) -> Command:
    return Command(
        ("show", "--images", "cells", *words, "--out", "out/page.html"), needs, ("out/page.html",), weight=1
    )


def _reads_weights(*needs: str) -> tuple[Command, ...]:
    """What reads a checkpoint: a description, an import, a run."""
    return (
        Command(("models", "--weights", "FILE"), needs),
        Command(
            ("import", "FILE", "--classes", "a,b,c", "--out", "out/w", "--half"),
            needs,
            ("out/w/",),
            weight=2,
        ),
        Command(
            ("--weights", "FILE", "--images", "ok", "--workers", "1", "--out", "out/s.csv"),
            (*needs, "ok"),
            ("out/s.csv",),
            (*_CHECK, "out/s.csv"),
            weight=1,
        ),
    )


def _pictures(suffix: str, *names: str) -> Kind:
    return Kind(tuple(f"images/{name}{suffix}" for name in names), PICTURES, (_RUN, _RUN_ALL))


KINDS: dict[str, Kind] = {
    "png": _pictures(".png", "gray", "colour", "wide", "palette"),
    "tiff": _pictures(".tif", "gray", "colour", "wide", "lzw", "packed", "fax", "planes", "plain"),
    "jpeg": _pictures(".jpg", "gray", "colour"),
    "bmp": _pictures(".bmp", "gray", "colour"),
    "webp": _pictures(".webp", "gray", "colour"),
    "label maps": Kind(
        ("labels/i0.png", "labels/i1.tif"),
        {".png": mutate_png, ".tif": mutate_tiff},
        (_score("labels", "submission.csv", "labels", "submission.csv"),),
    ),
    "train.csv": Kind(
        ("train.csv",),
        {".csv": mutate_csv},
        (
            _score("FILE", "submission.csv", "submission.csv"),
            _show("--submission", "submission.csv", "--truth", "FILE", needs=("cells", "submission.csv")),
        ),
    ),
    "COCO truth": Kind(
        ("coco.json",),
        {".json": mutate_json},
        (_score("FILE", "results.json", "results.json"), _score("FILE", "submission.csv", "submission.csv")),
    ),
    "submissions": Kind(
        ("submission.csv",),
        {".csv": mutate_csv},
        (
            Command((*_CHECK, "FILE", "--images", "cells"), ("cells",)),
            _score("train.csv", "FILE", "train.csv"),
            _show("--submission", "FILE", needs=("cells",)),
        ),
    ),
    "sample submissions": Kind(
        ("sample.csv",),
        {".csv": mutate_csv},
        (Command((*_RUN.words, "--sample-submission", "FILE"), ("w", "ok", "images/gray.png"), _RUN.writes),),
    ),
    "results": Kind(
        ("results.json", "results.zip"),
        {".json": mutate_json, ".zip": mutate_results_zip},
        (
            Command((*_CHECK, "FILE", "--images", "cells", "--image-ids", "ids.json"), ("cells", "ids.json")),
            _score("coco.json", "FILE", "coco.json"),
        ),
    ),
    "image ids": Kind(
        ("ids.json",),
        {".json": mutate_json},
        (
            Command(
                (*PREDICT[:3], "cells", "--image-ids", "FILE", "--workers", "1", "--out", "out/r.zip"),
                ("w", "cells"),
                ("out/r.zip",),
                (*_CHECK, "out/r.zip"),
            ),
            Command((*_CHECK, "results.json", "--image-ids", "FILE"), ("results.json",)),
        ),
    ),
    "manifests": Kind(
        ("w/weights_manifest.json",),
        {".json": mutate_json},
        (
            Command(("models", "--weights", "FILE"), ("w",)),
            Command(_RUN.words, ("w", "ok", "images/gray.png"), _RUN.writes, _RUN.then),
        ),
    ),
    "rules": Kind(
        ("rules.json",),
        {".json": mutate_json},
        (Command((*_RUN.words, "--rules", "FILE"), ("w", "ok", "images/gray.png"), _RUN.writes, _RUN.then),),
    ),
    "Detectron2 YAML": Kind(
        ("d2/config.yaml",),
        {".yaml": mutate_yaml},
        (Command(("models", "--weights", "d2/model_final.pth"), ("d2",)),),
    ),
    "MMDetection config": Kind(
        ("mm/config.py",),
        {".py": mutate_python},
        (Command(("models", "--weights", "mm/net.pth", "--config", "FILE"), ("mm",)),),
    ),
    "safetensors": Kind(("ck/net.safetensors",), {".safetensors": mutate_safetensors}, _reads_weights()),
    "torch zip": Kind(("ck/plain.pth", "ck/run.pth"), {".pth": mutate_torch}, _reads_weights()),
    "torch legacy": Kind(("ck/older.pth",), {".pth": mutate_pickles}, _reads_weights()),
    "pickles": Kind(("ck/arrays2.pkl", "ck/arrays4.pkl"), {".pkl": mutate_pickle}, _reads_weights()),
    "journals": Kind(
        (f"{JOURNAL}/0.part",),
        {".part": mutate_journal},
        (
            Command(
                (*PREDICT[:3], "ok", "cells", "--workers", "1", "--resume", "--out", "out/s.csv"),
                ("w", "ok", "cells", JOURNAL),
                ("out/s.csv", f"{JOURNAL}/"),
                (*_CHECK, "out/s.csv"),
            ),
        ),
    ),
    "saved predictions": Kind(
        ("saved/i0.npz",),
        {".npz": mutate_npz},
        (
            Command(
                (
                    "show",
                    "--predictions",
                    "saved",
                    "--images",
                    "cells",
                    "--truth",
                    "train.csv",
                    "--weights",
                    "w/weights_manifest.json",
                    "--out",
                    "out/page.html",
                ),
                ("saved", "cells", "train.csv", "w"),
                ("out/page.html",),
                weight=12,
            ),
            Command(
                TUNE,
                ("saved", "train.csv", "w"),
                ("out/t.json", "out/t.png", "out/t_weights/"),
                weight=1,
            ),
        ),
    ),
    "recipes": Kind(
        ("recipe.toml",),
        {".toml": mutate_toml},
        (
            Command(
                ("FILE", "--data", "data", "--out", "out/run", "--time-limit", "0.0001"),
                ("data",),
                ("out/run/",),
                program="training",
            ),
        ),
    ),
}
