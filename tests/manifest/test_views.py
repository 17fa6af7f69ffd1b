"""Views against numpy's own flips and turns, and each against its inverse, to the pixel."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from sartorius_infer.errors import ManifestError
from sartorius_infer.manifest.views import IDENTITY, View, parse_view, parse_views

Array = NDArray[np.generic]

TURNED: dict[str, Callable[[Array], Array]] = {
    "identity": lambda a: a,
    "hflip": lambda a: np.flip(a, -1),
    "vflip": lambda a: np.flip(a, -2),
    "rot90": lambda a: np.rot90(a, 1, axes=(-2, -1)),
    "rot180": lambda a: np.rot90(a, 2, axes=(-2, -1)),
    "rot270": lambda a: np.rot90(a, 3, axes=(-2, -1)),
    "transpose": lambda a: np.swapaxes(a, -1, -2),
    "transverse": lambda a: np.swapaxes(np.rot90(a, 2, axes=(-2, -1)), -1, -2),
}
NAMES = [*TURNED, "scale:1.25", *(f"{name}+scale:0.5" for name in TURNED)]

views = st.sampled_from(NAMES).map(parse_view)
sides = st.integers(1, 12)


@st.composite
def boxed_images(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """An image (1, H, W) with no two pixels alike, and a whole-pixel box (1, 4) in it."""
    height, width = draw(sides), draw(sides)
    x0, y0 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    x1, y1 = draw(st.integers(x0 + 1, width)), draw(st.integers(y0 + 1, height))
    return torch.arange(1, height * width + 1).view(1, height, width), torch.tensor(
        [[x0, y0, x1, y1]], dtype=torch.float32
    )


def size_hw(image: Tensor) -> tuple[int, int]:
    return int(image.shape[-2]), int(image.shape[-1])


def crop(image: Tensor, box: Tensor) -> Tensor:
    x0, y0, x1, y1 = (int(value) for value in box)
    return image[..., y0:y1, x0:x1]


def bounds(image: Tensor) -> list[int]:
    """The tightest half-open xyxy box of the pixels above 0."""
    _, ys, xs = torch.nonzero(image, as_tuple=True)
    return [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1]


@pytest.mark.parametrize("name", TURNED)
@pytest.mark.parametrize("shape", [(4, 7), (3, 4, 7), (2, 3, 5, 5), (0, 28, 28)])
def test_names_mean_what_numpy_means(name: str, shape: tuple[int, ...]) -> None:
    pixels = np.arange(np.prod(shape)).reshape(shape)
    np.testing.assert_array_equal(parse_view(name).image(torch.from_numpy(pixels)), TURNED[name](pixels))


@given(views, boxed_images())
def test_the_box_bounds_the_same_pixels(view: View, boxed: tuple[Tensor, Tensor]) -> None:
    image, box = boxed
    seen_box = view.boxes(box, size_hw(image))
    inside = torch.zeros_like(image)
    crop(inside, box[0]).fill_(1)
    assert bounds(view.image(inside)) == seen_box[0].tolist()
    assert torch.equal(crop(view.image(image), seen_box[0]), view.image(crop(image, box[0])))


@given(views, boxed_images())
def test_a_roi_mask_comes_back(view: View, boxed: tuple[Tensor, Tensor]) -> None:
    image, box = boxed
    seen_mask = crop(view.image(image), view.boxes(box, size_hw(image))[0])
    assert torch.equal(view.image_back(seen_mask), crop(image, box[0]))


@given(views, boxed_images())
def test_inverses_undo_and_are_undone(view: View, boxed: tuple[Tensor, Tensor]) -> None:
    image, box = boxed
    seen_image, seen_box = view.image(image), view.boxes(box, size_hw(image))
    assert torch.equal(view.image_back(seen_image), image)
    assert torch.equal(view.boxes_back(seen_box, size_hw(image)), box)
    assert torch.equal(view.image(view.image_back(image)), image)
    hw = size_hw(view.image_back(image))
    assert torch.equal(view.boxes(view.boxes_back(box, hw), hw), box)


corners = st.floats(-100, 900, width=32)


@given(views, st.lists(st.tuples(*[corners] * 4), max_size=5))
def test_any_box_comes_back_to_rounding(view: View, boxes: list[tuple[float, ...]]) -> None:
    xyxy = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    seen = view.boxes(xyxy, (520, 704))
    assert seen.shape == xyxy.shape and seen.dtype == torch.float32
    torch.testing.assert_close(view.boxes_back(seen, (520, 704)), xyxy, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", NAMES)
def test_sides_keep_their_order(name: str) -> None:
    seen = parse_view(name).boxes(torch.tensor([[1.0, 2.0, 5.0, 3.0]]), (9, 11))[0]
    assert (seen[2:] > seen[:2]).all()


@pytest.mark.parametrize("name", NAMES)
def test_no_boxes(name: str) -> None:
    view, none = parse_view(name), torch.zeros((0, 4))
    assert view.boxes(none, (5, 9)).shape == view.boxes_back(none, (5, 9)).shape == (0, 4)


def test_inputs_are_left_alone() -> None:
    view, image, box = parse_view("rot90"), torch.arange(6).view(2, 3), torch.tensor([[0.0, 0.0, 2.0, 1.0]])
    view.image(image), view.boxes(box, (2, 3)), view.boxes_back(box, (2, 3))
    assert torch.equal(image, torch.arange(6).view(2, 3)) and box.tolist() == [[0, 0, 2, 1]]


def test_the_eight_differ() -> None:
    image = torch.arange(9).view(3, 3)
    assert len({tuple(parse_view(name).image(image).flatten().tolist()) for name in TURNED}) == 8


def test_scales_leave_pixels_and_boxes_alone() -> None:
    view, image, box = parse_view("scale:1.25"), torch.rand(3, 4, 5), torch.tensor([[0.5, 1.0, 3.25, 2.0]])
    assert view == View(scale=1.25)
    assert torch.equal(view.image(image), image) and torch.equal(view.image_back(image), image)
    assert torch.equal(view.boxes(box, (4, 5)), box) and torch.equal(view.boxes_back(box, (4, 5)), box)


@pytest.mark.parametrize("name", TURNED)
def test_names_combine_with_a_scale(name: str) -> None:
    plain, scaled = parse_view(name), parse_view(f"{name}+scale:1.25")
    assert plain.scale == 1 and scaled.scale == 1.25
    assert scaled == View(plain.transpose, plain.hflip, plain.vflip, 1.25)


@pytest.mark.parametrize(
    ("text", "scale"), [("scale:0.25", 0.25), ("scale:4", 4.0), ("scale:4.0", 4.0), ("scale:.5", 0.5)]
)
def test_scales_up_to_their_limits(text: str, scale: float) -> None:
    assert parse_view(text) == View(scale=scale)


def test_identity() -> None:
    assert parse_view("identity") == IDENTITY == View()


# fmt: off
BAD_NAMES = [
    "", " ", "hflip ", " hflip", "hflip\n", "Hflip", "HFLIP", "flip", "rot45", "rot-90", "rot90 rot90",
    "hflip+", "+", "+hflip", "hflip+vflip", "hflip+hflip", "hflip + scale:2", "hflip+scale",
    "scale", "scale:", "scale:+", "scale:1.25+", "scale:1.25+hflip", "scale:2+scale:2", "+scale:2",
    "hflip+scale:2+scale:2", "hflip+scale:", "scale: 1.25", "scale:1.25 ", "scale:1_2", "scale:1e0",
    "scale:+1.5", "scale:0x1", "scale:1,25", "scale:\u0661", "scale:1.2.5", "scale:.", "Scale:1",
    "scale:0", "scale:-1", "scale:0.2499", "scale:4.001", "scale:1e9", "scale:nan", "scale:inf", "scale:-inf",
]
# fmt: on


@pytest.mark.parametrize("text", BAD_NAMES)
def test_names_parse_strictly(text: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_view(text)
    assert repr(text) in str(caught.value) and "expected" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("identity,identity", "view 'identity': expected each view once, found it again"),
        ("hflip, rot90 ,rot90", "view 'rot90': expected each view once, found it again"),
        (
            "scale:1.0,identity",
            "view 'identity': expected each view once, found it again, which is 'scale:1.0'",
        ),
        (
            "hflip,hflip+scale:1",
            "view 'hflip+scale:1': expected each view once, found it again, which is 'hflip'",
        ),
        ("identity,sideways", "view 'sideways': expected identity"),
        ("identity,", "view '': expected identity"),
    ],
)
def test_a_list_names_each_view_once(text: str, said: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_views(text)
    assert str(caught.value).startswith(said)


@given(st.lists(st.sampled_from(NAMES), min_size=1))
def test_names_of_different_views_are_a_list(names: list[str]) -> None:
    if len(set(map(parse_view, names))) == len(names):
        assert parse_views(", ".join(names)) == names
    else:
        with pytest.raises(ManifestError, match="expected each view once"):
            parse_views(", ".join(names))


def test_no_list_is_no_views() -> None:
    assert parse_views(None) is parse_views("") is None


@given(st.text(alphabet="hvflipscaerot:+.0125 _\n", max_size=16))
def test_only_the_grammar_parses(text: str) -> None:
    symmetry, _, scale = text.partition("+")
    if symmetry.startswith("scale:"):
        symmetry, scale = "identity", text
    known = symmetry in TURNED and (scale.startswith("scale:") or text == symmetry)
    digits = scale.removeprefix("scale:")
    known = known and (not scale or (set(digits) <= set("0125.") and digits[-1:] not in ("", ".")))
    try:
        parse_view(text)
    except ManifestError:
        return
    assert known
