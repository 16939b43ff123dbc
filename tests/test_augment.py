from functools import partial

import numpy as np
import pytest

from gpuclf import SoftmaxClassifier
from gpuclf.arrays import array_namespace
from gpuclf.augment import augmented, horizontal_flip, in_turn, random_shift
from gpuclf.samples.standardized import Standardized

SHAPE = (3, 2, 4)


def make_images(n, dtype=np.uint8):
    # No image is its own mirror, and no channel or row equals another.
    values = np.random.default_rng(0).permutation(n * 24).reshape(n, 24)
    return (values % 256 if dtype == np.uint8 else values).astype(dtype)


def mirror(image):
    """Reverse each row of each channel, one after another."""
    rows = image.reshape(-1, SHAPE[-1])
    return np.concatenate([row[::-1] for row in rows])


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_each_image_is_itself_or_its_exact_mirror(lib, dtype):
    X = make_images(40, dtype)
    flipped = lib.to_numpy(horizontal_flip(lib.asarray(X), np.random.default_rng(1), SHAPE))
    assert flipped.dtype == dtype
    assert flipped.shape == X.shape
    kept = [np.array_equal(a, b) for a, b in zip(X, flipped, strict=True)]
    mirrored = [np.array_equal(mirror(a), b) for a, b in zip(X, flipped, strict=True)]
    assert all(k != m for k, m in zip(kept, mirrored, strict=True))
    assert any(kept)
    assert any(mirrored)


def test_about_half_are_flipped():
    X = make_images(4000, np.float64)
    flipped = horizontal_flip(X, np.random.default_rng(2), SHAPE)
    share = np.mean(np.any(flipped != X, axis=1))
    assert abs(share - 0.5) < 0.04  # five standard deviations


def test_the_generator_decides_and_moves_on(lib):
    X = lib.asarray(make_images(50))
    rng = np.random.default_rng(3)
    first = lib.to_numpy(horizontal_flip(X, rng, SHAPE))
    second = lib.to_numpy(horizontal_flip(X, rng, SHAPE))
    again = lib.to_numpy(horizontal_flip(X, np.random.default_rng(3), SHAPE))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, second)


def test_every_library_flips_the_same_images(lib):
    X = make_images(50)
    here = horizontal_flip(X, np.random.default_rng(4), SHAPE)
    there = horizontal_flip(lib.asarray(X), np.random.default_rng(4), SHAPE)
    np.testing.assert_array_equal(lib.to_numpy(there), here)
    assert array_namespace(there) is array_namespace(lib.asarray(X))
    assert there.device == lib.asarray(X).device


def test_standardized_images_keep_their_statistics(lib):
    X = make_images(50)
    samples = Standardized(lib.asarray(X), np.arange(24.0), np.arange(1.0, 25.0))
    flipped = horizontal_flip(samples, np.random.default_rng(5), SHAPE)
    assert isinstance(flipped, Standardized)
    expected = horizontal_flip(X, np.random.default_rng(5), SHAPE)
    np.testing.assert_array_equal(lib.to_numpy(flipped.X), expected)
    np.testing.assert_array_equal(lib.to_numpy(flipped.mean), np.arange(24.0))
    np.testing.assert_array_equal(lib.to_numpy(flipped.scale), np.arange(1.0, 25.0))


def test_the_batch_passed_in_is_unchanged(lib):
    X = lib.asarray(make_images(50))
    before = lib.to_numpy(X).tobytes()
    horizontal_flip(X, np.random.default_rng(6), SHAPE)
    horizontal_flip(Standardized(X, 0.0, 1.0), np.random.default_rng(6), SHAPE)
    assert lib.to_numpy(X).tobytes() == before


def test_images_are_cifars_by_default():
    X = np.zeros((30, 3, 32, 32), np.uint8)
    X[..., :16] = 1  # left half
    flipped = horizontal_flip(X.reshape(30, 3072), np.random.default_rng(7)).reshape(X.shape)
    sides = {(image[0, 0, 0], image[0, 0, -1]) for image in flipped}
    assert sides == {(1, 0), (0, 1)}


def test_a_shape_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="reshape"):
        horizontal_flip(np.zeros((2, 25)), np.random.default_rng(0), SHAPE)


def shifted_in_loops(X, moves, shape):
    """Move pixel by pixel; outside, the nearest pixel of the edge counts."""
    images, (_, height, width) = X.reshape(len(X), *shape), shape
    out = np.empty_like(images)
    for n, (down, right) in enumerate(zip(*moves, strict=True)):
        for row in range(height):
            for column in range(width):
                at = min(max(row + down, 0), height - 1), min(max(column + right, 0), width - 1)
                out[n, :, row, column] = images[n, :, at[0], at[1]]
    return out.reshape(X.shape)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("pixels", [1, 5])  # 5 are more than the image has
def test_images_are_moved_as_in_loops(lib, dtype, pixels):
    X = make_images(40, dtype)
    before = X.copy()
    moves = np.random.default_rng(8).integers(-pixels, pixels + 1, (2, 40))
    given = lib.asarray(X)
    found = random_shift(given, np.random.default_rng(8), SHAPE, pixels)
    assert lib.to_numpy(found).dtype == dtype
    np.testing.assert_array_equal(lib.to_numpy(found), shifted_in_loops(X, moves, SHAPE))
    np.testing.assert_array_equal(lib.to_numpy(given), before)
    assert {*moves.ravel().tolist()} == {*range(-pixels, pixels + 1)}


def test_augmentations_follow_one_another(lib):
    X = make_images(30)
    samples = Standardized(lib.asarray(X), np.arange(24.0), np.arange(1.0, 25.0))
    rng, again = np.random.default_rng(9), np.random.default_rng(9)
    steps = [partial(f, image_shape=SHAPE) for f in (horizontal_flip, random_shift)]
    found = in_turn(samples, rng, steps)
    expected = random_shift(horizontal_flip(X, again, SHAPE), again, SHAPE)
    np.testing.assert_array_equal(lib.to_numpy(found.X), expected)
    np.testing.assert_array_equal(lib.to_numpy(found.mean), np.arange(24.0))
    assert rng.random() == again.random()


ODD_BATCHES = {
    "fewer rows": (lambda X, rng: X[:1, ...], "(8, 24), one row for each label, got shape (1, 24)"),
    "other columns": (lambda X, rng: X[:, :5], "got shape (8, 5)"),
    "images": (lambda X, rng: array_namespace(X).reshape(X, (8, *SHAPE)), "(8, 3, 2, 4)"),
    "nothing": (lambda X, rng: None, "got a NoneType"),
    "a list": (lambda X, rng: [[0] * 24] * 8, "got a list"),
}


@pytest.mark.parametrize("odd", ODD_BATCHES)
def test_a_batch_of_another_shape_is_refused(lib, odd):
    augment, message = ODD_BATCHES[odd]
    X = lib.asarray(make_images(8))
    with pytest.raises(ValueError, match="augment must return a batch of the shape") as error:
        augmented(augment, X, np.random.default_rng(0))
    assert message in str(error.value)


def test_a_batch_brought_elsewhere_is_refused(strict):
    X = strict.asarray(make_images(8))
    with pytest.raises(
        ValueError, match=r"augment .* where it got one, .*strict.* got it in numpy"
    ):
        augmented(lambda X, rng: strict.to_numpy(X), X, np.random.default_rng(0))


def test_training_refuses_an_augmentation_that_drops_rows():
    X, y = make_images(60), np.arange(60) % 3
    for augment in (lambda X, rng: X[:1], lambda X, rng: X.to_array()[:, :5]):
        model = SoftmaxClassifier(max_iter=3, augment=augment)
        with pytest.raises(ValueError, match="augment must return a batch of the shape"):
            model.fit(X, y)
    # Mixing samples, or other numbers, is the augmentation's own business.
    noise = SoftmaxClassifier(max_iter=1, augment=lambda X, rng: X.to_array() + rng.normal(size=24))
    noise.fit(X, y)
