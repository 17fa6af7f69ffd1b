"""Lists of image ids, as courses and servers hand them out."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from sartorius_infer.errors import SubmissionError
from sartorius_infer.output.image_ids import Listed, read_image_ids


def write(folder: Path, content: Any, encoding: str = "utf-8") -> Path:
    path = folder / "ids.json"
    path.write_bytes((content if isinstance(content, str) else json.dumps(content)).encode(encoding))
    return path


def listed(*pairs: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"file_name": name, "id": number} for name, number in pairs]


def test_a_list_as_courses_hand_it_out(tmp_path: Path) -> None:
    content = [{"file_name": "b7c0-01.tif", "id": 1, "height": 96, "width": 128}, *listed(("x.y.png", 3))]
    ids = read_image_ids(write(tmp_path, content))
    assert ids.images == (Listed("b7c0-01.tif", 1, (96, 128)), Listed("x.y.png", 3))
    assert ids.categories is None
    assert ids.numbers(["x.y", "b7c0-01"]) == {"x.y": 3, "b7c0-01": 1}
    assert ids.numbers([]) == {}
    assert ids.unused([3]) == [Listed("b7c0-01.tif", 1, (96, 128))]


@pytest.mark.parametrize("images", [listed(("a.tif", 7)), {"7": {"file_name": "a.tif", "id": 7}}])
def test_a_coco_file_is_a_list_too(tmp_path: Path, images: Any) -> None:
    content = {"images": images, "annotations": [], "categories": [{"id": 2, "name": "x"}, {"id": "5"}]}
    ids = read_image_ids(write(tmp_path, content))
    assert (ids.numbers(["a"]), ids.categories) == ({"a": 7}, {2, 5})


@pytest.mark.parametrize("content", [{"a.tif": 7, "x/b.png": 8.0}, {"a": "7", "b": 8}, {"images": 7, "a": 8}])
def test_a_plain_mapping(tmp_path: Path, content: Any) -> None:
    ids = read_image_ids(write(tmp_path, content))
    names = ["images", "a"] if "images" in content else ["a", "b"]
    assert ids.numbers(names) == dict(zip(names, (7, 8), strict=True))
    assert ids.categories is None


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks_are_read(tmp_path: Path, encoding: str) -> None:
    assert read_image_ids(write(tmp_path, listed(("a.tif", 7)), encoding)).numbers(["a"]) == {"a": 7}


@pytest.mark.parametrize("number", [40, 40.0, "40", "40.0"])
def test_a_number_however_it_is_written(tmp_path: Path, number: Any) -> None:
    (found,) = read_image_ids(write(tmp_path, listed(("a.tif", number)))).numbers(["a"]).values()
    assert (found, type(found)) == (40, int)


@pytest.mark.parametrize(
    ("file_name", "image_id"),
    [
        ("a.tif", "a"),
        ("a", "a"),
        ("img.1", "img.1"),
        ("test/a.tif", "a"),
        ("test\\a.tif", "a"),
        ("C:\\data\\test\\a.TIF", "a"),
        ("/data/test/a.tif", "a"),
        ("./test/a.tif", "test/a"),
        ("test/plate/a.tif", "plate/a"),
        ("test/plate/a.tif", "plate_a"),
        ("train/a/image.tif", "a"),
        ("a/image.tif", "a"),
        ("a.tif", "a_image"),
        ("test/a.tif", "a_image"),
        (unicodedata.normalize("NFD", "café.png"), unicodedata.normalize("NFC", "café")),
        (unicodedata.normalize("NFC", "café.png"), unicodedata.normalize("NFD", "café")),
    ],
)
def test_names_that_are_one(tmp_path: Path, file_name: str, image_id: str) -> None:
    ids = read_image_ids(write(tmp_path, listed((file_name, 5), ("other.tif", 6))))
    assert ids.numbers([image_id]) == {image_id: 5}


def test_a_whole_name_comes_before_the_end_of_another(tmp_path: Path) -> None:
    ids = read_image_ids(
        write(tmp_path, listed(("a.tif", 1), ("x/a.tif", 2), ("y/b.tif", 3), ("z/b.tif", 4)))
    )
    assert ids.numbers(["a", "x/a", "y/b", "z_b"]) == {"a": 1, "x/a": 2, "y/b": 3, "z_b": 4}
    with pytest.raises(SubmissionError, match="expected one id of b, found 3 and 4"):
        ids.numbers(["a", "b"])


def test_one_number_is_one_image_s(tmp_path: Path) -> None:
    ids = read_image_ids(write(tmp_path, listed(("x/a.tif", 2))))
    with pytest.raises(SubmissionError, match="expected one image of id 2, found a and x_a"):
        ids.numbers(["a", "x_a"])


def test_a_repeated_entry_is_one(tmp_path: Path) -> None:
    ids = read_image_ids(write(tmp_path, listed(("a.tif", 2), ("a.tif", 2))))
    assert (len(ids.images), ids.numbers(["a"])) == (1, {"a": 2})


def test_every_missing_image_is_named_up_to_five(tmp_path: Path) -> None:
    path = write(tmp_path, listed(("a.tif", 7)))
    with pytest.raises(SubmissionError) as raised:
        read_image_ids(path).numbers(["a", *"bcdefgh"])
    assert (
        str(raised.value) == f"{path}: expected an id of each image, found none of b, c, d, e, f and 2 more"
    )


HOSTILE: dict[str, tuple[Any, str]] = {
    "no JSON": ("[", "expected a JSON list of image ids, found JSONDecodeError: "),
    "deep": ("[" * 100_000, "expected a JSON list of image ids, found RecursionError: "),
    "a number": (
        7,
        "expected a list of objects with file_name and id, a mapping of names to ids, or COCO's JSON with "
        "images, found int",
    ),
    "names by number": (
        {"7": "a.tif"},
        'entry 1: expected a file_name and an id, a whole number, found {"fi',
    ),
    "half a number": ({"a.tif": 7, "b.tif": 8.5}, "entry 2: expected a file_name and an id, a whole number"),
    "a mapping of objects": ({"a.tif": {"id": 7}}, "entry 1: expected a file_name and an id"),
    "images of another kind": ({"images": "a"}, "entry 1: expected a file_name and an id"),
    "a name twice": ('{"a.tif": 1, "a.tif": 2, "b": 3}', "expected each name once, found a.tif twice"),
    "one number of two names": (
        {"a.tif": 1, "b.tif": 1},
        "expected an id for each image, found 1 for a.tif and",
    ),
    "a list of names": (["a.tif"], 'entry 1: expected a file_name and an id, a whole number, found "a.tif"'),
    "no id": ([{"file_name": "a.tif"}], "entry 1: expected a file_name and an id"),
    "no name": ([*listed(("a.tif", 1)), {"id": 2}], "entry 2: expected a file_name and an id"),
    "an empty name": (listed(("", 1)), "entry 1: expected a file_name and an id"),
    "folders alone": (listed(("/", 1)), "entry 1: expected a file_name and an id"),
    "half an id": (listed(("a.tif", 1.5)), "entry 1: expected a file_name and an id"),
    "no number": (listed(("a.tif", "a")), "entry 1: expected a file_name and an id"),
    "true": (listed(("a.tif", True)), "entry 1: expected a file_name and an id"),
    "NaN": ('[{"file_name": "a.tif", "id": NaN}]', "entry 1: expected a file_name and an id"),
    "endless": ('[{"file_name": "a.tif", "id": 1e999}]', "entry 1: expected a file_name and an id"),
    "one id of two": (
        listed(("a.tif", 1), ("b.tif", 1)),
        "expected an id for each image, found 1 for a.tif and b.tif",
    ),
}


@pytest.mark.parametrize(("content", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_list_of_ids_is_one_line(tmp_path: Path, content: Any, reason: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(SubmissionError) as raised:
        read_image_ids(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert reason in str(raised.value)
    assert "\n" not in str(raised.value)


def test_no_file_and_no_text(tmp_path: Path) -> None:
    (tmp_path / "bytes.json").write_bytes(b"[\xff]")
    for name, reason in (("absent", "none to read: No such file"), ("bytes.json", "UnicodeDecodeError")):
        with pytest.raises(SubmissionError, match=f"expected a JSON list of image ids, found {reason}"):
            read_image_ids(tmp_path / name)
    with pytest.raises(TypeError, match="image ids: expected a path"):
        read_image_ids(7)  # type: ignore[arg-type]
