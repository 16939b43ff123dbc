import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from gpuclf.datasets import decoding, to_rows
from gpuclf.datasets.rows import as_rows

RNG = np.random.default_rng(3)
COLOUR = RNG.integers(0, 256, (5, 6, 7, 3), np.uint8)  # (N, height, width, channels)


def rows_by_loops(images):
    """Take (N, height, width, channels) to rows, pixel by pixel."""
    n, height, width, channels = images.shape
    rows = np.zeros((n, channels * height * width), images.dtype)
    for i in range(n):
        at = 0
        for c in range(channels):
            for y in range(height):
                for x in range(width):
                    rows[i, at] = images[i, y, x, c]
                    at += 1
    return rows


def saved(folder, images, suffix=".png"):
    paths = [folder / f"{i}{suffix}" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    return paths


# --- layout --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_either_place_of_the_channels_gives_the_same_rows(lib, layout, dtype):
    images = COLOUR if layout == "NHWC" else COLOUR.transpose(0, 3, 1, 2)
    X = lib.asarray(images.astype(dtype))
    rows, image_shape, found = as_rows(X)
    np.testing.assert_array_equal(lib.to_numpy(rows), rows_by_loops(COLOUR))
    assert (image_shape, found) == ((3, 6, 7), layout)
    assert rows.dtype == X.dtype
    assert type(rows) is type(X)


def test_grey_images_and_rows(lib):
    rows, image_shape, layout = as_rows(lib.asarray(COLOUR[..., 0]))
    np.testing.assert_array_equal(lib.to_numpy(rows), rows_by_loops(COLOUR[..., :1]))
    assert (image_shape, layout) == ((1, 6, 7), "NHW")
    X = lib.asarray(COLOUR.reshape(5, -1))
    assert as_rows(X) == (X, None, None) if lib.name.startswith("numpy") else as_rows(X)[0] is X


def test_the_layout_is_that_of_cifar10():
    """A red image has its 1,024 red numbers first."""
    red = np.zeros((1, 32, 32, 3), np.uint8)
    red[..., 0] = 200
    assert to_rows(red)[0, :1024].tolist() == [200] * 1024
    assert not to_rows(red)[0, 1024:].any()


def test_planes_in_order_are_not_copied():
    planes = np.ascontiguousarray(COLOUR.transpose(0, 3, 1, 2))
    for images in (planes, planes[:, 0].copy()):
        assert np.shares_memory(as_rows(images)[0], images)
        assert np.shares_memory(to_rows(images), images)
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    tensor = torch.from_numpy(planes)
    assert as_rows(tensor)[0].data_ptr() == tensor.data_ptr()


@pytest.mark.parametrize(
    ("shape", "readings", "remedies"),
    [
        ((2, 3, 5, 3), ("3 planes of 5 x 3", "3 x 5 pixels with 3"), ("NCHW", "NHWC")),
        ((2, 1, 5, 4), ("1 planes of 5 x 4", "1 x 5 pixels with 4"), ("NCHW", "NHWC")),
        ((2, 7, 5, 6), ("7 planes of 5 x 6", "7 x 5 pixels with 6", "neither"), ("NCHW", "NHWC")),
        ((32, 32, 3), ("32 grey images of 32 x 3", "one colour image"), ("NHW", None)),
        ((32, 24, 4), ("32 grey images of 24 x 4", "one colour image"), ("NHW", None)),
        ((3, 32, 24), ("3 grey images of 32 x 24", "one colour image"), ("NHW", None)),
    ],
)
def test_a_shape_of_two_readings_is_an_error_that_names_both(shape, readings, remedies):
    images = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    with pytest.raises(ValueError, match=re.escape(str(shape))) as error:
        to_rows(images)
    for reading in readings:
        assert reading in str(error.value)
    for layout in remedies:
        if layout is None:
            assert "images[None, ...]" in str(error.value)
            assert to_rows(images[None, ...]).shape == (1, np.prod(shape))
        else:
            assert f"layout='{layout}'" in str(error.value)
            assert to_rows(images, layout=layout).shape == (len(images), np.prod(shape[1:]))


@pytest.mark.parametrize("shape", [(4, 28, 28), (1, 28, 28), (5, 3, 3), (2, 4, 4)])
def test_three_axes_are_grey_images(shape):
    assert as_rows(np.zeros(shape))[1] == (1, *shape[1:])


@pytest.mark.parametrize("shape", [(), (5,), (1, 2, 3, 4, 5)])
def test_other_numbers_of_axes_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(N, height, width, channels\), .* got \("):
        to_rows(np.zeros(shape))


def test_a_layout_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="must be one of 'NHWC', 'NCHW', 'NHW', got 'HWC'"):
        to_rows(COLOUR, layout="HWC")
    with pytest.raises(ValueError, match=r"\(5, 6, 7, 3\), which is not of layout 'NHW'"):
        to_rows(COLOUR, layout="NHW")
    with pytest.raises(ValueError, match=r"a batch of its own: images\[None, \.\.\.\]"):
        to_rows(COLOUR[0], layout="NHWC")
    np.testing.assert_array_equal(
        to_rows(COLOUR[0][None, ...], layout="NHWC"), rows_by_loops(COLOUR[:1])
    )


# --- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([0, 1, 255], np.int64), [0, 1, 255]),
        (np.array([0, 1, 1], np.uint16), [0, 1, 1]),
        (np.array([0.0, 128.0, 255.0]), [0, 128, 255]),
        (np.array([0.0, 2.0, 255.0], np.float32), [0, 2, 255]),
        (np.array([0.0, 1.0, 1.0]), [0, 255, 255]),
        (np.array([0.0, 0.1, 0.999]), [0, 26, 255]),
        (np.array([0.0, 0.1, 0.999], np.float16), [0, 25, 255]),
        (np.array([False, True, True]), [0, 255, 255]),
    ],
)
def test_values_become_bytes_by_one_rule(values, expected):
    rows = to_rows(values.reshape(1, 3))
    assert rows.dtype == np.uint8
    assert rows.tolist() == [expected]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_each_byte_survives_division_by_255(dtype):
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    np.testing.assert_array_equal(to_rows((every / 255).astype(dtype)), every.reshape(1, -1))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.0, 0.5, 1.5], r"are 0\.\.1\.5, neither .* numpy.round\(images\), or cut fractions"),
        ([0.0, 0.5, np.nan], "hold NaN or infinity"),
        ([-np.inf, 0.5, 1.0], "hold NaN or infinity"),
        ([-1.0, 0.5, 1.0], r"-1\.\.1, neither .* \(images \+ 1\) / 2"),
        ([-2.1, 0.5, 2.2], r"-2\.1\.\.2\.2, neither .*as_rows\(images\)"),
        ([0, 300, 65535], r"0\.\.65535, neither .* images // 256"),
        ([0, 3, -1], r"-1\.\.3, neither"),
    ],
)
def test_what_can_be_no_bytes_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        to_rows(np.array(values).reshape(1, 3))


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32", "float64"])
def test_values_in_every_library(lib, dtype, small_blocks):
    if lib.name == "opaque" and dtype != "uint8":
        pytest.skip("the range of values cannot be seen without looking at them")
    values = RNG.integers(0, 256, (40, 6, 5, 3)).astype(dtype)
    rows = to_rows(lib.asarray(values))
    np.testing.assert_array_equal(lib.to_numpy(rows), rows_by_loops(values))
    assert rows.dtype == lib.xp.uint8
    if dtype.startswith("float"):
        rows = to_rows(lib.asarray(values / np.array(255, dtype)))
        np.testing.assert_array_equal(lib.to_numpy(rows), rows_by_loops(values))


def test_one_block_alone_does_not_decide_what_floats_are(small_blocks):
    images = np.zeros((50, 2, 2))
    images[-1, 0, 0] = 255
    images[0, 0, 0] = 1
    assert to_rows(images)[[0, -1], 0].tolist() == [1, 255]


def test_images_are_not_changed():
    images = COLOUR / 255
    before = images.copy()
    to_rows(images)
    np.testing.assert_array_equal(images, before)


# --- pictures ------------------------------------------------------------------------------------


def test_pictures_paths_and_arrays_give_the_same_rows(tmp_path):
    expected = rows_by_loops(COLOUR)
    paths = saved(tmp_path, COLOUR)
    pictures = [Image.fromarray(image) for image in COLOUR]
    for images in (paths, list(map(str, paths)), pictures, list(COLOUR), tuple(COLOUR)):
        np.testing.assert_array_equal(to_rows(images), expected)
    np.testing.assert_array_equal(to_rows(iter(paths)), expected)
    np.testing.assert_array_equal(to_rows([paths[0], pictures[1]]), expected[:2])
    for single in (paths[0], str(paths[0]), pictures[0]):
        np.testing.assert_array_equal(to_rows(single), expected[:1])


def test_a_list_of_tensors():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    planes = [torch.from_numpy(image.transpose(2, 0, 1).copy()) for image in COLOUR]
    np.testing.assert_array_equal(to_rows(planes).numpy(), rows_by_loops(COLOUR))


@pytest.mark.parametrize(
    ("picture", "colour"),
    [
        (Image.new("L", (2, 2), 77), (77, 77, 77)),
        (Image.new("1", (2, 2), 1), (255, 255, 255)),
        (Image.new("RGB", (2, 2), (1, 2, 3)), (1, 2, 3)),
        (Image.new("RGBA", (2, 2), (200, 0, 0, 255)), (200, 0, 0)),
        (Image.new("RGBA", (2, 2), (200, 0, 0, 0)), (255, 255, 255)),  # shown on white
        (Image.new("LA", (2, 2), (10, 0)), (255, 255, 255)),
        (Image.new("RGB", (2, 2), (9, 8, 7)).quantize(4), (9, 8, 7)),
        (Image.fromarray(np.full((2, 2), 40_000, np.uint16)), (156, 156, 156)),
    ],
    ids=["grey", "black and white", "colour", "opaque", "clear", "clear grey", "palette", "16 bit"],
)
def test_kinds_of_pictures(tmp_path, picture, colour):
    picture.save(tmp_path / "a.png")
    for image in (picture, tmp_path / "a.png"):
        assert to_rows(image).reshape(3, 4)[:, 0].tolist() == list(colour)


def test_a_clear_colour_of_a_palette_is_shown_on_white(tmp_path):
    picture = Image.new("P", (2, 2), 1)
    picture.putpalette([0, 0, 0, 5, 6, 7])
    picture.save(tmp_path / "a.png", transparency=1)
    assert set(to_rows(tmp_path / "a.png").tolist()[0]) == {255}


def test_half_clear_is_mixed_with_white():
    picture = Image.new("RGBA", (1, 1), (0, 100, 255, 128))
    assert to_rows(picture).tolist() == [[127, 177, 255]]


def test_grey_is_made_on_request():
    picture = Image.new("RGB", (1, 1), (100, 150, 200))
    assert to_rows(picture, channels=1).tolist() == [[round(29.9 + 88.05 + 22.8)]]
    with pytest.raises(ValueError, match=r"must be 3 \(colour\) or 1 \(grey\), got 2"):
        to_rows(picture, channels=2)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotation_by_exif(tmp_path, orientation):
    """The eight orientations, by the definition of their row and column 0."""
    upright = np.array([[10, 20, 30], [40, 50, 60]], np.uint8)
    turned = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: upright.T[::-1],  # stored lying on its left side
        7: upright[::-1, ::-1].T,
        8: upright.T[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(turned)).save(tmp_path / "a.png", exif=exif)
    rows = to_rows(tmp_path / "a.png", channels=1)
    np.testing.assert_array_equal(rows.reshape(2, 3), upright)


def test_pictures_with_32_bits_a_pixel_are_refused():
    with pytest.raises(ValueError, match="image 0: its pixels have 32 bits"):
        to_rows(Image.fromarray(np.full((2, 2), 200, np.int32)))


def test_a_picture_is_left_as_it_is(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(path)
    with Image.open(path) as picture:
        to_rows(picture, size=4)
        assert picture.size == (64, 64)


# --- sizes ---------------------------------------------------------------------------------------


def test_size_is_height_and_width_and_keeps_what_fits(tmp_path):
    paths = saved(tmp_path, COLOUR)
    np.testing.assert_array_equal(to_rows(paths, size=(6, 7)), rows_by_loops(COLOUR))
    wide = np.zeros((2, 40, 3), np.uint8)
    wide[:, 20:] = 255
    (path,) = saved(tmp_path, [wide])
    image = to_rows(path, size=(4, 8)).reshape(3, 4, 8)
    assert (image[:, :, :3] == 0).all()
    assert (image[:, :, 5:] == 255).all()
    assert to_rows(path, size=5).shape == (1, 75)


def test_arrays_are_stretched_as_pictures_are():
    pictures = [Image.fromarray(image) for image in COLOUR]
    np.testing.assert_array_equal(to_rows(COLOUR, size=(9, 5)), to_rows(pictures, size=(9, 5)))
    assert to_rows(COLOUR[..., 0], size=8).shape == (5, 64)


def test_a_jpeg_that_is_much_larger_keeps_its_picture(tmp_path):
    """Decoded at a part of its size, it must be that of the whole."""
    y, x = np.mgrid[:900, :1200]
    image = np.stack([x * 255 // 1200, y * 255 // 900, 0 * x + 90], axis=-1).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "a.jpg", quality=95)
    rows = to_rows(tmp_path / "a.jpg", size=(15, 20)).astype(int)
    whole = to_rows(Image.fromarray(image), size=(15, 20)).astype(int)
    assert abs(rows - whole).max() <= 4


def test_different_sizes_need_one(tmp_path):
    pictures = [Image.new("L", (4, 6)), Image.new("L", (5, 6))]
    with pytest.raises(ValueError, match=r"image 0 is 6 x 4 .* and image 1 is 6 x 5; .*size=\(32"):
        to_rows(pictures)
    assert to_rows(pictures, size=(32, 32)).shape == (2, 3072)
    with pytest.raises(ValueError, match=r"\(5, 4\) and \(6, 4\); pass pictures"):
        to_rows([np.zeros((6, 4)), np.zeros((5, 4))])


@pytest.mark.parametrize("size", [0, (3, -1), (0, 4)])
def test_sizes_below_one_pixel_are_refused(size):
    with pytest.raises(ValueError, match="at least 1 pixel"):
        to_rows(COLOUR, size=size)


@pytest.mark.parametrize("size", [2.5, "32", (1, 2, 3), (4, 4.0)])
def test_sizes_that_are_none_are_refused(size):
    with pytest.raises(TypeError, match=r"a number of pixels or \(height, width\)"):
        to_rows(COLOUR, size=size)


# --- what cannot be read -------------------------------------------------------------------------


@pytest.mark.parametrize("size", [None, 8])
def test_unreadable_files_are_named(tmp_path, size):
    paths = saved(tmp_path, COLOUR)
    paths[1].write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"1\.png.*: not an image in PNG, JPEG, WEBP, BMP"):
        to_rows(paths[1:], size=size)
    with pytest.raises(ValueError, match=r"missing\.png.*No such file"):
        to_rows([tmp_path / "missing.png"], size=size)


def test_other_decoders_are_not_reached(tmp_path):
    """The suffix says PNG; for what the file holds Pillow would start another program."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.eps")
    with pytest.raises(ValueError, match="not an image in PNG"):
        to_rows((tmp_path / "a.eps").rename(tmp_path / "a.png"), size=4)


@pytest.mark.parametrize("images", [5, None, [1, 2], [[1, 2], [3, 4]]])
def test_what_is_no_images_is_refused_by_its_type(images):
    with pytest.raises(TypeError, match=r"got (int|NoneType|an item of type (int|list))"):
        to_rows(images)
    with pytest.raises(ValueError, match="there is no image in the list"):
        to_rows([])


def test_without_pillow_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=re.escape("pip install pillow")):
        to_rows([tmp_path / "a.png"])
    assert to_rows(COLOUR).shape == (5, 126)


def test_pillow_is_imported_where_it_is_used():
    script = "import sys, gpuclf.datasets; sys.exit('PIL' in sys.modules or 'rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


# --- progress ------------------------------------------------------------------------------------


def test_progress_shows_after_two_seconds_only(monkeypatch, capsys):
    times = iter([0.0, 1.0, 1.9, 2.5])
    monkeypatch.setattr(decoding, "_now", lambda: next(times))
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    with decoding.late_progress("reading images", 3) as advance:
        advance()
        advance()
        assert capsys.readouterr().err == ""
        advance()
    assert "reading images" in capsys.readouterr().err
