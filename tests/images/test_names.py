"""What names tell: label maps beside images, and names that mean one image."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sartorius_infer.files import as_id
from sartorius_infer.images.names import folder_of, is_image, maps_beside, match_names


@pytest.mark.parametrize(
    ("names", "maps"),
    [
        (["image.tif", "class1.tif", "Class2.TIF", "class.txt"], ["class1.tif", "Class2.TIF"]),
        (["IMAGE.png", "class1.tif"], ["class1.tif"]),
        (["class1.tif", "class2.tif"], []),
        (["img.tif", "class1.tif"], []),
        (["a.jpg", "a_masks.png", "b_masks.png", "b.txt"], ["a_masks.png"]),
        (["a.tif", "a_cp_masks.tif", "b_cp_masks.tif"], ["a_cp_masks.tif"]),
        (["a_masks.tif", "a_masks_masks.tif"], ["a_masks_masks.tif"]),
        (["_masks.tif", ".tif"], []),
        (["images", "masks", "labels", "others"], ["masks", "labels"]),
        (["masks", "labels", "image"], []),
        ([], []),
    ],
)
def test_label_maps_beside_images(names: list[str], maps: list[str]) -> None:
    assert maps_beside(names) == {*maps}


def test_images_by_name() -> None:
    assert all(map(is_image, ("a.png", "b.c.TIFF", ".webp")))
    assert not any(map(is_image, ("a.npy", "png", "")))


@pytest.mark.parametrize(
    ("said", "known"),
    [
        ("a", "a"),
        ("a.png", "a"),
        ("a.TIFF", "a"),
        ("a", "a.png"),
        ("a.png", "a.tif"),
        ("test/a.png", "a"),
        ("test\\a.png", "a"),
        ("test/a", "a"),
        ("test/a.png", "test_a"),
        ("C:\\data\\a.jpg", "a"),
        ("a_image", "a"),
        ("a/image.tif", "a"),
        ("a_Image", "a"),
        ("a", "a_image"),
        ("a.tif", "a_image"),
        (unicodedata.normalize("NFD", "é.png"), "é"),
    ],
)
def test_names_that_are_one(said: str, known: str) -> None:
    assert match_names([said, "x"], [known, "x"]) == {said: known, "x": "x"}


@pytest.mark.parametrize(
    ("said", "known"),
    [
        ("a.csv", "a"),
        ("a.b", "a"),
        ("b_a", "a"),
        ("ab", "a"),
        ("train_a_image", "a"),
        ("image", "a"),
        ("_image", ""),
        ("A", "a"),
        ("", "a"),
    ],
)
def test_names_that_are_two(said: str, known: str) -> None:
    assert match_names([said, "x"], [known, "x"]) == {"x": "x"}


def test_the_only_image_may_be_called_image() -> None:
    assert match_names(["image"], ["a"]) == {"image": "a"}
    assert match_names(["a/image.tif"], ["b"]) == {"a/image.tif": "b"}
    assert match_names(["a"], ["image"]) == {"a": "image"}
    assert match_names(["image"], ["a", "b"]) == match_names(["image", "a"], ["c"]) == {}


def test_the_nearer_name_comes_first() -> None:
    both = ["a", "a_image", "a.png"]
    assert match_names(both, both) == {name: name for name in both}
    assert match_names(["a.png", "a"], ["a"]) == {"a": "a"}
    assert match_names(["a_image", "a.png"], ["a"]) == {"a.png": "a"}
    assert match_names(["a.tif", "a_image.tif"], ["a", "a_image"]) == {"a.tif": "a", "a_image.tif": "a_image"}


def test_a_path_without_its_first_folders() -> None:
    paths = {"a": "p/q/a.tif", "x_c": "x/c.v1.png", "y_c": "y\\c.png", "d": ""}
    for said, known in (("q_a", "a"), ("p/q/a.png", "a"), ("c.v1", "x_c"), ("c", "y_c")):
        assert match_names([said], paths, paths) == {said: known}
    for said in ("r_a", "train_y_c", "d.v1", "q"):
        assert match_names([said], paths, paths) == {}
    assert match_names(["q_a"], paths) == {}
    with pytest.raises(ValueError, match="expected one name of a, found 'q_a' and 'p_q_a'"):
        match_names(["q_a", "p_q_a"], paths, paths)


def test_what_fits_two_images_fits_none() -> None:
    assert match_names(["a"], ["a.png", "a.tif"]) == {}
    with pytest.raises(ValueError, match=r"expected one name of a, found 'a\.png' and 'a\.tif'"):
        match_names(["a.png", "a.tif"], ["a"])
    with pytest.raises(ValueError, match="expected one name of a, found 'x/a' and 'y/a'"):
        match_names(["x/a", "y/a"], ["a"])
    forms = [unicodedata.normalize(form, "é") for form in ("NFC", "NFD")]
    assert match_names(forms, ["é"]) == dict.fromkeys(forms, "é")


_NAMES = st.lists(st.text("ab/_.png", max_size=6) | st.sampled_from(["a_image", "a.png", "b/image.tif"]))


@given(_NAMES, _NAMES)
def test_an_image_has_one_name_and_its_own_goes_first(said: list[str], known: list[str]) -> None:
    ids = {as_id(name) for name in known}
    try:
        found = match_names(said, ids)
    except ValueError:
        return
    assert set(found) <= set(said)
    assert {text: as_id(text) for text in said if as_id(text) in ids}.items() <= found.items()
    owners = {(image_id, as_id(text)) for text, image_id in found.items()}
    assert len(owners) == len(set(found.values())), "two names of one image"


def test_the_folder_of_an_image_by_itself() -> None:
    assert [folder_of(name) for name in ("a_image", "a/image.tif", "image", "a")] == ["a", "a", "image", "a"]
