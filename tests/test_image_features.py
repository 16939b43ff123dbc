import math
from fractions import Fraction

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from gpuclf import SoftmaxClassifier, TwoLayerNetClassifier, extract_features
from gpuclf.datasets import course_split, load_cifar10, make_synthetic
from gpuclf.devices.cpu import blas_threads
from gpuclf.image_features import hog, hue_histogram


def hog_naive(image):
    """Histograms of a (3, H, W) image, a pixel at a time, from the definition."""
    _, height, width = image.shape
    red, green, blue = image.astype(int)
    grey = 299 * red + 587 * green + 114 * blue  # thousandths, so that nothing is rounded
    histograms = np.zeros((height // 8, width // 8, 9))
    for i in range(height):
        for j in range(width):
            dy = grey[i + 1, j] - grey[i - 1, j] if 0 < i < height - 1 else 0
            dx = grey[i, j + 1] - grey[i, j - 1] if 0 < j < width - 1 else 0
            degrees = math.degrees(math.atan2(dy, dx)) % 180
            histograms[i // 8, j // 8, int(degrees // 20)] += math.hypot(dx, dy) / 1000 / 64
    return histograms.ravel()


def hue_histogram_naive(image):
    """Share of the pixels of each hue, in fractions: no hue is rounded into a neighbour's bin."""
    counts = np.zeros(10)
    for pixel in image.reshape(3, -1).T:
        red, green, blue = (Fraction(int(value)) for value in pixel)
        value, chroma = max(red, green, blue), max(red, green, blue) - min(red, green, blue)
        if chroma == 0:
            hue = Fraction(0)
        elif value == red:
            hue = (green - blue) / chroma % 6
        elif value == green:
            hue = (blue - red) / chroma + 2
        else:
            hue = (red - green) / chroma + 4
        counts[math.floor(hue / 6 * 10)] += 1
    return counts / counts.sum()


def awkward_images():
    """Random and natural-looking images, and those whose pixels lie on the edges of bins."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (3, 3, 32, 32))
    few_values = rng.choice([0, 51, 102, 255], (3, 3, 32, 32))  # hues in tenths, ties, greys
    ramp = np.broadcast_to(np.arange(32) * 8, (3, 32, 32))
    ramps = np.stack(
        [ramp, ramp[..., ::-1], np.swapaxes(ramp, 1, 2), 255 - np.swapaxes(ramp, 1, 2)]
    )
    flat = np.stack([np.zeros((3, 32, 32)), np.full((3, 32, 32), 255)])
    natural = make_synthetic(3)[0].reshape(-1, 3, 32, 32)
    return np.concatenate([noise, few_values, ramps, flat, natural]).astype(np.uint8)


IMAGES = awkward_images()
ROWS = IMAGES.reshape(len(IMAGES), -1)


def test_hog_is_that_of_the_loops(lib):
    found = hog(lib.asarray(ROWS))
    assert found.dtype == lib.xp.float32
    expected = np.stack([hog_naive(image) for image in IMAGES])
    np.testing.assert_allclose(lib.to_numpy(found), expected, rtol=2e-6, atol=1e-6)


def test_a_cell_has_the_mean_of_the_smaller_cells_in_it(lib):
    small = lib.to_numpy(hog(lib.asarray(ROWS), cell=4)).reshape(len(ROWS), 4, 2, 4, 2, 9)
    large = lib.to_numpy(hog(lib.asarray(ROWS))).reshape(len(ROWS), 4, 4, 9)
    np.testing.assert_allclose(small.mean(axis=(2, 4)), large, rtol=1e-5, atol=1e-5)


@pytest.mark.essential_cases(2)
def test_hue_histogram_is_that_of_the_loops(lib):
    found = hue_histogram(lib.asarray(ROWS))
    assert found.dtype == lib.xp.float32
    expected = np.stack([hue_histogram_naive(image) for image in IMAGES])
    np.testing.assert_allclose(lib.to_numpy(found), expected, rtol=1e-6)


def test_hog_is_scikit_image_s_but_for_the_normalisation_of_cells():
    feature = pytest.importorskip("skimage.feature", reason="scikit-image is not installed")
    cells = hog(ROWS).reshape(len(ROWS), -1, 9)
    normalised = cells / np.maximum(cells.sum(axis=-1, keepdims=True), 1e-6)
    for image, found in zip(IMAGES, normalised, strict=True):
        expected = feature.hog(
            np.tensordot([299.0, 587.0, 114.0], image, axes=1),
            orientations=9,
            pixels_per_cell=(8, 8),
            cells_per_block=(1, 1),
            block_norm="L1",
        )
        np.testing.assert_allclose(found.ravel(), expected, atol=1e-5)


def test_hues_are_matplotlib_s():
    colors = pytest.importorskip("matplotlib.colors", reason="matplotlib is not installed")
    image = IMAGES[0]
    hues = colors.rgb_to_hsv(np.moveaxis(image, 0, -1) / 255)[..., 0]
    counts, _ = np.histogram(hues, bins=10, range=(0, 1))
    # A hue on the edge of two bins may be rounded into either.
    assert np.abs(hue_histogram(ROWS[:1])[0] * 1024 - counts).max() <= 2


def test_all_features(lib):
    images = lib.asarray(ROWS)
    found = extract_features(images)
    assert (tuple(found.shape), found.dtype) == ((len(ROWS), 154), lib.xp.float32)
    np.testing.assert_array_equal(lib.to_numpy(found[:, :144]), lib.to_numpy(hog(images)))
    np.testing.assert_array_equal(lib.to_numpy(found[:, 144:]), lib.to_numpy(hue_histogram(images)))
    np.testing.assert_array_equal(lib.to_numpy(images), ROWS)


def test_edges_point_where_they_should():
    image = np.zeros((3, 32, 32), np.uint8)
    image[:, :, 4:] = 200  # an upright edge: the grey changes from left to right, at 0 degrees
    histograms = hog(image.reshape(1, -1)).reshape(4, 4, 9)
    assert histograms[0, 0, 0] == 200 * 2 * 8 / 64  # two columns of eight pixels
    assert np.count_nonzero(histograms) == 4  # and nowhere but in the four cells of the edge
    lying = hog(np.swapaxes(image, 1, 2).reshape(1, -1)).reshape(4, 4, 9)
    np.testing.assert_array_equal(lying[..., 4], histograms[..., 0].T)  # 90 degrees
    mirrored = hog(image[..., ::-1].reshape(1, -1)).reshape(4, 4, 9)
    np.testing.assert_array_equal(mirrored, histograms[:, ::-1])  # from behind, the same edge


def test_no_orientation_is_rounded_across_zero(lib):
    same_grey = np.array([15, -9, 7])[:, None, None]  # 299 R + 587 G + 114 B does not change
    darkening = 100 + 2 * np.arange(32)[::-1] + np.zeros((3, 32, 1), int)  # from left to right
    stripes = (np.arange(32) // 2 % 2)[:, None]
    image = (darkening + same_grey * stripes).astype(np.uint8)
    cells = lib.to_numpy(hog(lib.asarray(image.reshape(1, -1)))).reshape(16, 9)
    assert np.all(cells[:, 0] > 0)
    np.testing.assert_array_equal(cells[:, 1:], 0)


def test_no_hue_is_rounded_into_the_next_bin(lib):
    """All hues that bytes can have, against whole numbers."""
    sector, chroma, step = (
        v.ravel() for v in np.meshgrid(range(6), range(1, 256), range(255), indexing="ij")
    )
    sector, chroma, step = (v[step < chroma] for v in (sector, chroma, step))
    n_images = len(sector) // 1024
    sector, chroma, step = (v[: n_images * 1024] for v in (sector, chroma, step))
    rising, falling, zero = step, chroma - step, 0 * step
    wheel = [  # from red by yellow, green, cyan, blue and magenta to red
        (chroma, rising, zero),
        (falling, chroma, zero),
        (zero, chroma, rising),
        (zero, falling, chroma),
        (rising, zero, chroma),
        (chroma, zero, falling),
    ]
    colours = np.choose(sector, np.array(wheel))
    images = colours.reshape(3, n_images, 1024).swapaxes(0, 1).reshape(n_images, 3072)
    bins = 10 * (sector * chroma + step) // (6 * chroma)
    expected = [np.bincount(of_image, minlength=10) for of_image in bins.reshape(n_images, 1024)]
    found = hue_histogram(lib.asarray(images.astype(np.uint8)))
    np.testing.assert_array_equal(lib.to_numpy(found) * 1024, expected)


@pytest.mark.parametrize("height", [8, 24])
def test_other_sizes(lib, height):
    image = np.random.default_rng(1).integers(0, 256, (3, height, 16), np.uint8)
    found = extract_features(lib.asarray(image.reshape(1, -1)), (3, height, 16))
    expected = np.concatenate([hog_naive(image), hue_histogram_naive(image)])
    np.testing.assert_allclose(lib.to_numpy(found)[0], expected, rtol=2e-6, atol=1e-6)


@pytest.mark.essential_cases(2)
def test_blocks_give_the_same(lib, small_blocks):
    calls = []
    found = extract_features(
        lib.asarray(ROWS), callback=lambda done, total: calls.append((done, total))
    )
    assert calls == [(7, 15), (14, 15), (15, 15)]
    expected = np.stack([np.r_[hog_naive(x), hue_histogram_naive(x)] for x in IMAGES])
    np.testing.assert_allclose(lib.to_numpy(found), expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("function", [extract_features, hog, hue_histogram])
class TestWrongImages:
    def test_dtype(self, function):
        with pytest.raises(TypeError, match=r"images must be uint8.*got float32"):
            function(np.zeros((2, 3072), np.float32))

    def test_length(self, function):
        with pytest.raises(ValueError, match=r"\(N, 3072\).*got \(2, 3071\).*image_shape="):
            function(np.zeros((2, 3071), np.uint8))

    def test_images_that_are_not_flat(self, function):
        with pytest.raises(ValueError, match=r"images\.transpose\(0, 3, 1, 2\)\.reshape"):
            function(np.zeros((2, 32, 32, 3), np.uint8))

    def test_no_images(self, function):
        with pytest.raises(ValueError, match="images is empty"):
            function(np.zeros((0, 3072), np.uint8))

    @pytest.mark.parametrize("shape", [(1, 32, 32), (3, 32, 30), (3, 4, 8), (3, 0, 8)])
    def test_image_shape(self, function, shape):
        with pytest.raises(ValueError, match=r"image_shape must be .* multiples of 8"):
            function(np.zeros((2, 3072), np.uint8), shape)

    def test_lists(self, function):
        with pytest.raises(TypeError, match="convert it with"):
            function([[0] * 3072])


@pytest.mark.real_data
def test_features_of_the_real_cifar10_tell_more_than_its_pixels():
    split = course_split(load_cifar10(download=False))
    train, val, test = (extract_features(X) for X in (split.X_train, split.X_val, split.X_test))
    softmax = SoftmaxClassifier(random_state=0).fit(train, split.y_train)
    assert softmax.score(val, split.y_val) >= 0.50
    net = TwoLayerNetClassifier(hidden_size=500, max_iter=10, random_state=0)
    net.fit(train, split.y_train)
    assert net.score(val, split.y_val) >= 0.60
    assert net.score(test, split.y_test) >= 0.60


def test_small_products_are_not_shared_among_threads():
    seen = []
    with threadpool_limits(limits=2, user_api="blas"):
        extract_features(ROWS, callback=lambda done, total: seen.append(blas_threads()))
    assert set(seen) == {1}
