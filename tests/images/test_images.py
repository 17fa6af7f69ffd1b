"""Finding and reading images: folders, mounts, the 8-bit rule, and paths that cannot be read."""

from __future__ import annotations

import os
import socket
import unicodedata
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from image_factories import GRAY, by_cv2, error_of, pixels_of, tiff
from numpy.typing import NDArray
from PIL import Image
from places import CASES, DATA

from sartorius_infer.competition import find_competition
from sartorius_infer.errors import ImageError
from sartorius_infer.images.find import ImageFile, find_images
from sartorius_infer.images.names import EXTENSIONS
from sartorius_infer.images.read import as_image, image_size, read_image
from sartorius_infer.types import UInt8

LIVECELL, SARTORIUS = DATA / "livecell" / "images", DATA / "sartorius" / "images"


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


SUFFIXES = " ".join(EXTENSIONS)


class TestFindImages:
    def test_a_folder_is_sorted_and_searched_by_extension_in_any_case(self, tmp_path: Path) -> None:
        names = [f"{index}{extension}" for index, extension in enumerate(EXTENSIONS)]
        touch(*(tmp_path / name for name in [*reversed(names), "Z.PNG", "a.b.TiF", ".c.png", "d.csv"]))
        touch(tmp_path / "inner" / "e.png", tmp_path / "folder.png" / "f.png")
        found = find_images([tmp_path])
        assert [file.path.name for file in found] == [*names, "Z.PNG", "a.b.TiF"]
        assert [file.id for file in found[-2:]] == ["Z", "a.b"]

    def test_files_keep_their_order_and_mix_with_folders(self, tmp_path: Path) -> None:
        touch(tmp_path / "b.png", tmp_path / "a.png", tmp_path / "in" / "1.bmp", tmp_path / "in" / "0.jpg")
        found = find_images([tmp_path / "b.png", tmp_path / "in", tmp_path / "a.png"])
        assert [file.id for file in found] == ["b", "0", "1", "a"]

    @pytest.mark.parametrize(
        ("sources", "message"),
        [
            (["nowhere"], "nowhere: expected an image or a folder, found nothing there"),
            (["nowhere.png"], "nowhere.png: expected an image or a folder, found nothing there"),
            (["in/notes.txt"], f"notes.txt: expected an image ({SUFFIXES}), found .txt"),
            (["in/LICENSE"], f"LICENSE: expected an image ({SUFFIXES}), found no extension"),
            (["in"], f"in: expected images ({SUFFIXES}), found 2 other file(s)"),
            (["one/a.png", "one"], "one/a.png: expected ids to be unique, found "),
            (["one/../one/a.png", "one"], "one/a.png: expected ids to be unique, found "),
            ([], "expected at least one image or folder, found none"),
        ],
    )
    def test_errors(self, tmp_path: Path, sources: list[str], message: str) -> None:
        touch(tmp_path / "in" / "notes.txt", tmp_path / "in" / "LICENSE", tmp_path / "in" / ".hidden.png")
        touch(tmp_path / "one" / "a.png", tmp_path / "two" / "a.tif")
        with pytest.raises(ImageError) as caught:
            find_images([tmp_path / source for source in sources])
        assert message in str(caught.value)

    def test_duplicates_name_both_files(self, tmp_path: Path) -> None:
        touch(tmp_path / "a.png", tmp_path / "a.tif")
        with pytest.raises(ImageError, match=r"a\.tif: .*a\.png"):
            find_images([tmp_path])

    def test_folders_within_are_searched_where_asked_for(self, tmp_path: Path) -> None:
        touch(tmp_path / "b.png", tmp_path / "z" / "a.png", tmp_path / "z" / "y" / "c.tif")
        touch(tmp_path / ".hidden" / "d.png", tmp_path / "z" / ".e.png")
        (tmp_path / "z" / "circle").symlink_to(tmp_path, target_is_directory=True)
        assert [file.id for file in find_images(tmp_path)] == ["b"]
        assert [file.id for file in find_images(tmp_path, recursive=True)] == ["a", "b", "c"]

    def test_files_of_one_name_are_called_by_their_paths(self, tmp_path: Path) -> None:
        names = ["a/image.tif", "b/image.tif", "c/d/image.png", "c/other.tif"]
        touch(*(tmp_path / name for name in names))
        expected = ["a_image", "b_image", "c_d_image", "other"]
        assert [file.id for file in find_images([tmp_path / name for name in names])] == expected
        assert [file.id for file in find_images(tmp_path, recursive=True)] == expected
        folders = [tmp_path / "b", tmp_path / "a"]
        assert [file.id for file in find_images(folders)] == ["b_image", "a_image"]
        assert [file.id for file in find_images([tmp_path / "b"])] == ["image"]

    def test_the_folder_that_holds_all_sources_is_what_paths_start_from(self, tmp_path: Path) -> None:
        touch(tmp_path / "p" / "q" / "a" / "image.tif", tmp_path / "p" / "q" / "b" / "image.tif")
        found = find_images(tmp_path / "p", recursive=True)
        assert [file.id for file in found] == ["q_a_image", "q_b_image"]
        found = find_images([file.path for file in found])
        assert [file.id for file in found] == ["a_image", "b_image"]

    def test_relative_sources(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        touch(tmp_path / "a" / "image.tif", tmp_path / "b" / "image.tif", tmp_path / "image.tif")
        monkeypatch.chdir(tmp_path / "a")
        assert [file.id for file in find_images([".", "../b"])] == ["a_image", "b_image"]
        assert [file.id for file in find_images("..", recursive=True)] == ["a_image", "b_image", "image"]

    def test_paths_that_become_one_id(self, tmp_path: Path) -> None:
        touch(tmp_path / "a" / "b_c.png", tmp_path / "a_b" / "c.png", tmp_path / "a_b" / "d" / "c.png")
        touch(tmp_path / "d" / "b_c.png")
        with pytest.raises(ImageError, match=r"c\.png: expected ids to be unique, found .*c\.png as well"):
            find_images(tmp_path, recursive=True)

    def test_what_is_passed_over_is_said_in_one_line(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        touch(*(tmp_path / name for name in ("a.png", "b.txt", "c.txt", "d.HEIC", "notes", ".hidden")))
        find_images(tmp_path)
        (record,) = caplog.records
        said = "passed over what is no image (.png .tif .tiff .jpg .jpeg .jfif .bmp .webp): "
        assert record.getMessage() == f"{said}.HEIC 1, .txt 2, no suffix 1"
        caplog.clear()
        find_images(tmp_path / "a.png")
        assert not caplog.records

    def test_label_maps_beside_images_are_passed_over(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Of courses, of the Data Science Bowl and of Cellpose; what is named is taken."""
        course = ["c/a/image.tif", "c/a/class1.tif", "c/a/class2.tif", "c/b/image.tif", "c/b/class1.tif"]
        touch(*(tmp_path / name for name in (*course, "p/x.jpg", "p/x_masks.png", "p/x_cp_masks.tif")))
        touch(*(tmp_path / name for name in ("d/n/images/n.png", "d/n/masks/1.png", "d/n/masks/of/2.png")))
        assert [file.id for file in find_images(tmp_path / "c", recursive=True)] == ["a_image", "b_image"]
        assert caplog.messages[-1].endswith(": label map 3")
        assert [file.id for file in find_images(tmp_path / "p")] == ["x"]
        assert [file.id for file in find_images(tmp_path / "d", recursive=True)] == ["n"]
        assert caplog.messages[-1].endswith(": label map 2")
        for path, count in (("c/a", 1), ("d/n/masks", 1)):
            assert len(find_images(tmp_path / path)) == count
        assert [file.id for file in find_images(tmp_path / "c" / "a" / "class1.tif")] == ["class1"]

    def test_pipes_and_sockets_are_never_opened(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        touch(tmp_path / "a.png")
        os.mkfifo(tmp_path / "b.png")
        (tmp_path / "c.png").symlink_to("/dev/zero")
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(tmp_path / "d.png"))
        assert [file.id for file in find_images(tmp_path)] == ["a"]
        assert caplog.records[0].getMessage().endswith(": device 1, pipe 1, socket 1")
        for name, kind in (("b", "pipe"), ("c", "device"), ("d", "socket")):
            path = tmp_path / f"{name}.png"
            with pytest.raises(
                ImageError, match=f"{name}.png: expected an image or a folder, found a {kind}"
            ):
                find_images(path)
            for use in (read_image, image_size):
                with pytest.raises(ImageError, match=f"{name}.png: expected a file, found a {kind}"):
                    use(ImageFile(name, path))

    def test_a_link_to_nothing_is_an_image_that_cannot_be_read(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
        (file,) = find_images(tmp_path)
        with pytest.raises(ImageError, match="No such file"):
            read_image(file)


class TestNames:
    @pytest.mark.parametrize("form", ["NFC", "NFD"])
    def test_ids_are_composed(self, tmp_path: Path, form: Literal["NFC", "NFD"]) -> None:
        touch(tmp_path / f"{unicodedata.normalize(form, 'zellé')}.png")
        (file,) = find_images(tmp_path)
        assert file.id == "zell\N{LATIN SMALL LETTER E WITH ACUTE}"
        assert unicodedata.is_normalized(form, file.path.name)

    def test_one_name_in_both_forms(self, tmp_path: Path) -> None:
        touch(*(tmp_path / f"{unicodedata.normalize(form, 'é')}.png" for form in ("NFC", "NFD")))
        with pytest.raises(ImageError, match="expected ids to be unique"):
            find_images(tmp_path)

    def test_bytes_that_are_no_text_are_one_image_that_cannot_be_read(self, tmp_path: Path) -> None:
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
        path.write_bytes(by_cv2(".png")(GRAY))
        (file,) = find_images(tmp_path)
        assert file.id == r"caf\udce9"
        for use in (read_image, image_size):
            with pytest.raises(ImageError, match="found other bytes; rename the file") as caught:
                use(file)
            str(caught.value).encode("utf-8")

    def test_folders_may_have_any_name(self, tmp_path: Path) -> None:
        folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
        folder.mkdir()
        (folder / "a.png").write_bytes(by_cv2(".png")(GRAY))
        (folder / "b.png").write_bytes(b"")
        good, bad = find_images(folder)
        assert np.array_equal(read_image(good).pixels, GRAY)
        with pytest.raises(ImageError) as caught:
            read_image(bad)
        str(caught.value).encode("utf-8")


class TestFindCompetition:
    @staticmethod
    def mount(folder: Path) -> tuple[Path, Path]:
        touch(folder / "sample_submission.csv", folder / "test" / "a.png", folder / "train" / "b.png")
        return folder / "test", folder / "sample_submission.csv"

    @pytest.mark.parametrize("slug", [".", "any", "datasets/me/any", "competitions/any", "1/2/3/4"])
    def test_mounts(self, tmp_path: Path, slug: str) -> None:
        assert find_competition(tmp_path) is None
        mounted = self.mount(tmp_path / slug)
        touch(tmp_path / "datasets" / "me" / "weights" / "a.pth")
        assert find_competition(tmp_path) == mounted

    def test_too_deep_hidden_or_half(self, tmp_path: Path) -> None:
        self.mount(tmp_path / "1" / "2" / "3" / "4" / "5")
        self.mount(tmp_path / ".hidden")
        self.mount(tmp_path / "train" / "copy")
        touch(tmp_path / "half" / "sample_submission.csv", tmp_path / "other" / "test" / "a.png")
        assert find_competition(tmp_path) is None
        assert find_competition(tmp_path / "nowhere") is None

    def test_of_several_the_one_named_after_sartorius(self, tmp_path: Path) -> None:
        self.mount(tmp_path / "a")
        self.mount(tmp_path / "competitions" / "z")
        with pytest.raises(ImageError, match=r"expected one competition, found 2: .*a, .*z"):
            find_competition(tmp_path)
        mounted = self.mount(tmp_path / "competitions" / "Sartorius-cells")
        assert find_competition(tmp_path) == mounted
        self.mount(tmp_path / "sartorius-copy")
        with pytest.raises(ImageError, match="found 2"):
            find_competition(tmp_path)

    def test_one_mounted_twice_by_a_link(self, tmp_path: Path) -> None:
        mounted = self.mount(tmp_path / "competitions" / "sartorius")
        (tmp_path / "link").symlink_to(mounted[0].parent, target_is_directory=True)
        found = find_competition(tmp_path)
        assert found is not None
        assert found[0].samefile(mounted[0])


class TestSixteenBits:
    @given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 6))), st.booleans())
    @settings(max_examples=50, deadline=None)
    def test_eight_bits_stored_in_sixteen_do_not_change(self, pixels: UInt8, as_tiff: bool) -> None:
        wide = pixels.astype(np.uint16)
        data = tiff(wide) if as_tiff else by_cv2(".png")(wide)
        assert np.array_equal(pixels_of(data), pixels)

    @given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 6))))
    @settings(max_examples=50, deadline=None)
    def test_multiples_of_257_do_not_change(self, pixels: UInt8) -> None:
        pixels[0, 0] = max(pixels[0, 0], 64)
        assert np.array_equal(pixels_of(by_cv2(".png")(pixels.astype(np.uint16) * 257)), pixels)

    @given(hnp.arrays(np.uint16, (3, 5)))
    @settings(max_examples=50, deadline=None)
    def test_scale(self, pixels: NDArray[np.uint16]) -> None:
        bits = next(bits for bits in (8, 10, 12, 14, 16) if pixels.max() < 2**bits)
        expected = np.floor(pixels.astype(float) * 255 / (2**bits - 1) + 0.5)
        assert np.array_equal(pixels_of(by_cv2(".png")(pixels)), expected)

    @given(
        st.sampled_from([10, 12, 14]),
        st.integers(1, 20),
        st.sampled_from(["edge", "any", "full"]),
        st.sampled_from([(48, 64), (200, 300)]),
        st.integers(0, 2**32 - 1),
    )
    @settings(max_examples=40, deadline=None)
    def test_a_handful_of_bright_pixels_does_not_decide(
        self, bits: int, hot: int, how: str, size_hw: tuple[int, int], seed: int
    ) -> None:
        draw = np.random.default_rng(seed)
        plain = camera(draw, bits, size_hw)
        bright = plain.copy()
        places = draw.choice(plain.size, hot, replace=False)
        lowest, highest = {"edge": (2**bits, 2**bits), "any": (2**bits, 65535), "full": (65535, 65535)}[how]
        bright.ravel()[places] = draw.integers(lowest, highest, hot, endpoint=True)
        read, expected = as_image(bright).pixels, as_image(plain).pixels.copy()
        expected.ravel()[places] = 255
        assert np.array_equal(read, expected)
        assert np.array_equal(pixels_of(tiff(bright)), expected)
        assert np.array_equal(pixels_of(tiff(bright, t262=0)), ~expected)

    @pytest.mark.parametrize(
        ("size_hw", "handful"),
        [((9, 11), 0), ((10, 10), 1), ((40, 50), 20), ((520, 704), 36), ((2000, 1500), 300)],
    )
    def test_how_many_are_a_handful(self, size_hw: tuple[int, int], handful: int) -> None:
        pixels = np.full(size_hw, 100, np.uint16)
        for count, read in ((handful, 100), (handful + 1, round(100 * 255 / 65535))):
            pixels.ravel()[:count] = 60_000
            assert as_image(pixels).pixels[-1, -1] == read

    def test_a_pixel_of_a_colour_counts_once_by_its_brightest_channel(self) -> None:
        pixels = np.full((40, 50, 3), (100, 200, 50), np.uint16)
        pixels[0, :20] = 60_000
        assert as_image(pixels).pixels[-1, -1].tolist() == [100, 200, 50]
        pixels[1, 0, 2] = 60_000
        assert as_image(pixels).pixels[-1, -1].tolist() == [0, 1, 0]

    @given(hnp.arrays(np.uint16, (3, 5)), st.integers(0, 65534), st.integers(1, 65535))
    @settings(max_examples=50, deadline=None)
    def test_limits(self, pixels: NDArray[np.uint16], low: int, more: int) -> None:
        high = min(low + more, 65535)
        expected = np.floor((pixels.clip(low, high).astype(float) - low) * 255 / (high - low) + 0.5)
        assert np.array_equal(as_image(pixels, (low, high)).pixels, expected)

    def test_limits_are_for_sixteen_bits(self, tmp_path: Path) -> None:
        path = tmp_path / "a.png"
        path.write_bytes(by_cv2(".png")(GRAY))
        assert np.array_equal(read_image(path, (0, 4095)).pixels, GRAY)
        path.write_bytes(by_cv2(".png")(GRAY.astype(np.uint16)))
        assert np.array_equal(read_image(path, (0, 510)).pixels, (GRAY.astype(int) + 1) // 2)

    @pytest.mark.skipif(not SARTORIUS.is_dir(), reason="the shared real images are not here")
    @pytest.mark.parametrize("bits", [10, 12, 14, 16])
    def test_real_images_at_a_camera_s_depth(self, bits: int) -> None:
        """All of them are read at the depth they have, with hot pixels or without."""
        draw = np.random.default_rng(0)
        for file in find_images([SARTORIUS])[:8]:
            gray = read_image(file).pixels
            deep = (gray.astype(np.uint16) << (bits - 8)) + draw.integers(
                0, 1 << (bits - 8), gray.shape, np.uint16
            )
            plain = as_image(deep).pixels
            assert np.abs(plain.astype(int) - gray).max() <= 1
            deep.ravel()[:: deep.size // 20][:20] = 65535
            assert np.count_nonzero(as_image(deep).pixels != plain) <= 20

    @pytest.mark.skipif(not CASES.is_dir(), reason="the shared cases are not here")
    def test_cases(self) -> None:
        plain, edge = (read_image(CASES / "hotpixel" / name / "x.tif").pixels for name in ("plain", "edge"))
        assert np.count_nonzero(plain != edge) == 1


def camera(draw: np.random.Generator, bits: int, size_hw: tuple[int, int]) -> NDArray[np.uint16]:
    """A smooth picture with the noise of photons, in the upper half of a camera's range."""
    rows, columns = np.mgrid[: size_hw[0], : size_hw[1]]
    light = 0.5 + 0.2 * np.sin(rows / 9) * np.cos(columns / 13) + draw.normal(0, 0.02, size_hw)
    return (light.clip(0, 1) * (2**bits - 1)).astype(np.uint16)


class TestUnreadable:
    def test_a_folder_named_like_an_image(self, tmp_path: Path) -> None:
        for use in (read_image, image_size):
            with pytest.raises(ImageError, match="Is a directory"):
                use(ImageFile("a", tmp_path))

    @pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
    def test_no_permission(self, tmp_path: Path) -> None:
        touch(tmp_path / "in" / "a.png")
        (tmp_path / "in" / "a.png").chmod(0)
        with pytest.raises(ImageError, match="Permission denied"):
            read_image(ImageFile("a", tmp_path / "in" / "a.png"))
        (tmp_path / "in").chmod(0)
        with pytest.raises(ImageError, match="Permission denied"):
            find_images([tmp_path / "in"])
        assert find_competition(tmp_path) is None
        (tmp_path / "in").chmod(0o700)


@pytest.mark.parametrize("folder", [LIVECELL, SARTORIUS], ids=["livecell", "sartorius"])
def test_real_images(folder: Path) -> None:
    if not folder.is_dir():
        pytest.skip("the shared real images are not here")
    for file in find_images([folder]):
        pixels = read_image(file).pixels
        assert image_size(file) == pixels.shape == (520, 704)
        with Image.open(file.path) as picture:
            assert np.array_equal(pixels, np.asarray(picture))


class TestNumbers:
    """Floats, signed and wide integers, which TIFF may hold."""

    @settings(max_examples=20)
    @given(hnp.arrays(np.float32, (6, 7), elements=st.floats(0, 1, width=32)))
    def test_fractions_are_of_white(self, values: NDArray[np.float32]) -> None:
        assert np.array_equal(pixels_of(tiff(values, t339=3)), np.floor(values * 255 + 0.5))

    @pytest.mark.parametrize(("kind", "code"), [("f4", 3), ("f8", 3), ("i2", 2), ("i4", 2), ("u4", 1)])
    def test_none_negative_or_too_large_is_as_16_bits(self, kind: str, code: int) -> None:
        values = np.random.default_rng(0).integers(0, 4000, (30, 40)).astype(np.uint16)
        expected = pixels_of(tiff(values))
        assert np.array_equal(pixels_of(tiff(values.astype(kind), t339=code)), expected)

    @pytest.mark.parametrize(("kind", "code"), [("f4", 3), ("f8", 3), ("i4", 2)])
    def test_others_go_from_lowest_to_highest_but_a_handful(self, kind: str, code: int) -> None:
        values = np.linspace(-1000, 1000, 100 * 100).reshape(100, 100)
        values[3, :10], values[5, :10] = -90_000, 90_000
        seen = pixels_of(tiff(values.astype(kind), t339=code))
        ordered = np.sort(values.astype(kind), axis=None)
        low, high = ordered[20].astype(float), ordered[-21].astype(float)
        shares = ((values.astype(kind).astype(float) - low) / (high - low)).clip(0, 1)
        assert np.array_equal(seen, np.floor(shares * 255 + 0.5))
        assert (seen[3, 0], seen[5, 0]) == (0, 255)

    def test_limits_of_a_manifest_count(self, tmp_path: Path) -> None:
        values = np.linspace(-50, 350, 48, dtype=np.float32).reshape(6, 8)
        (tmp_path / "a.tif").write_bytes(tiff(values, t339=3))
        seen = read_image(tmp_path / "a.tif", (0, 300)).pixels
        assert np.array_equal(seen, np.floor((values.astype(float) / 300).clip(0, 1) * 255 + 0.5))

    def test_flat_and_colour_and_0_as_white(self) -> None:
        assert np.ptp(pixels_of(tiff(np.full((5, 6), -7.5, np.float32), t339=3))) == 0
        colour = np.random.default_rng(0).random((5, 6, 3)).astype(np.float32)
        assert np.array_equal(pixels_of(tiff(colour, t339=[3] * 3)), np.floor(colour * 255 + 0.5))
        assert np.array_equal(
            pixels_of(tiff(colour[..., 0], t339=3, t262=0)), 255 - np.floor(colour[..., 0] * 255 + 0.5)
        )

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_what_is_no_number_is_refused(self, bad: float) -> None:
        values = np.zeros((5, 6), np.float32)
        values[0, :2] = bad
        assert error_of(tiff(values, t339=3)) == "expected finite numbers, found 2 of NaN or infinity"

    def test_two_channels_are_refused_with_advice(self) -> None:
        message = error_of(tiff(np.zeros((5, 6, 2), np.float32), t339=[3] * 2))
        assert message == "expected gray or RGB, found 2 channels; --channel N takes one"
