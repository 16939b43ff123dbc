import warnings

import numpy as np
import pytest
from PIL import Image

from gpuclf.datasets import DatasetError, DatasetNotFoundError, load_image_folder, to_rows

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".PNG")
COLOURS = {"ant": (250, 0, 0), "bee": (0, 250, 0), "cow": (0, 0, 250)}


def add(folder, name, colour, size=(9, 7)):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, quality=95)
    return path


def add_classes(root, n=6, classes=COLOURS):
    """Write pictures of one colour a class, of different kinds and sizes."""
    for name in classes:
        for i in range(n):
            file = f"{name}{i}{SUFFIXES[i % len(SUFFIXES)]}"
            add(root / name, file, COLOURS.get(name, (9, 9, 9)), (8 + i, 30 - i))
    return root


def assert_colours_fit(X, y, names):
    planes = X.reshape(len(X), 3, -1).astype(int)
    for image, label in zip(planes, y, strict=True):
        assert abs(image - np.array(COLOURS[names[label]])[:, None]).max() < 12


def test_a_folder_a_class(tmp_path):
    data = load_image_folder(add_classes(tmp_path), size=(10, 12), test_fraction=0.5)
    assert data.class_names == ("ant", "bee", "cow")
    assert data.image_shape == (3, 10, 12)
    assert data.name == tmp_path.name
    assert str(tmp_path) in data.source
    assert (data.X_train.dtype, data.y_train.dtype) == (np.uint8, np.int64)
    assert np.bincount(data.y_train).tolist() == np.bincount(data.y_test).tolist() == [3, 3, 3]
    assert_colours_fit(data.X_train, data.y_train, data.class_names)
    assert_colours_fit(data.X_test, data.y_test, data.class_names)


def test_files_come_in_the_order_of_their_names_at_any_depth(tmp_path):
    names = ["a/z.png", "a/B.png", "a/b/1.png", "a/10.png", "a/9.png", "Z/1.png"]
    for i, name in enumerate(names):
        add(tmp_path, name, (i, i, i))
    data = load_image_folder(str(tmp_path), size=2, test_fraction=0)
    assert data.class_names == ("Z", "a")
    assert data.y_train.tolist() == [0, 1, 1, 1, 1, 1]
    assert data.X_train[:, 0].tolist() == [5, 3, 4, 1, 2, 0]
    assert len(data.X_test) == 0


def test_pictures_are_those_of_to_rows(tmp_path):
    paths = [path for path in sorted(add_classes(tmp_path).rglob("*")) if path.is_file()]
    data = load_image_folder(tmp_path, test_fraction=0)
    np.testing.assert_array_equal(data.X_train, to_rows(paths, size=(32, 32)))
    grey = load_image_folder(tmp_path, test_fraction=0, channels=1)
    np.testing.assert_array_equal(grey.X_train, to_rows(paths, size=(32, 32), channels=1))
    assert grey.image_shape == (1, 32, 32)


@pytest.mark.parametrize("test", ["test", "val", "Validation"])
def test_parts_of_their_own(tmp_path, test):
    add_classes(tmp_path / "train")
    add_classes(tmp_path / test, n=2, classes=("bee",))
    data = load_image_folder(tmp_path)
    assert data.class_names == ("ant", "bee", "cow")
    assert (len(data.X_train), data.y_test.tolist()) == (18, [1, 1])
    assert_colours_fit(data.X_test, data.y_test, data.class_names)
    with pytest.raises(
        ValueError, match=r"test_fraction=0.5 has no use: .* test part of 2 samples"
    ):
        load_image_folder(tmp_path, test_fraction=0.5)


def test_test_comes_before_val(tmp_path):
    for name, n in (("train", 3), ("val", 1), ("test", 2)):
        add_classes(tmp_path / name, n)
    assert len(load_image_folder(tmp_path).X_test) == 6


def test_train_alone_gives_its_test_part(tmp_path):
    add_classes(tmp_path / "train", 5)
    data = load_image_folder(tmp_path)
    assert (len(data.X_train), len(data.X_test)) == (12, 3)


def test_train_may_be_a_class(tmp_path):
    for name in ("bus", "train"):
        add(tmp_path, f"{name}/1.png", (1, 2, 3))
    assert load_image_folder(tmp_path, test_fraction=0).class_names == ("bus", "train")


def test_the_test_part_may_not_have_classes_of_its_own(tmp_path):
    add_classes(tmp_path / "train", 1)
    add_classes(tmp_path / "test", 1, ("bee", "dog"))
    with pytest.raises(DatasetError, match=r"test has classes that .*train has no image of: dog\."):
        load_image_folder(tmp_path)


def test_a_test_folder_without_classes_is_named(tmp_path):
    add_classes(tmp_path / "train", 1)
    add(tmp_path, "test/1.png", (0, 0, 0))
    with pytest.raises(DatasetError, match=r"test has no folders of images.*1 images lie in it"):
        load_image_folder(tmp_path)
    assert len(load_image_folder(tmp_path / "train", test_fraction=0).X_train) == 3  # the remedy


def test_the_draw_of_the_test_part_hangs_on_the_seed_alone(tmp_path):
    add_classes(tmp_path, 8)

    def drawn(seed):
        return load_image_folder(tmp_path, seed=seed, size=4).X_test.tolist()

    assert drawn(1) == drawn(1)
    assert len({str(drawn(seed)) for seed in range(5)}) > 1


def test_what_is_hidden_or_no_picture_is_passed_over(tmp_path):
    add_classes(tmp_path, 1)
    for name in ("ant/.hidden.png", ".cache/1.png", "ant/.thumbnails/1.png"):
        add(tmp_path, name, (0, 0, 0))
    (tmp_path / "ant" / "notes.txt").write_text("x")
    (tmp_path / "README.md").write_text("x")
    (tmp_path / "bee" / "folder.png").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_image_folder(tmp_path, test_fraction=0).X_train) == 3


def test_images_of_other_types_are_counted(tmp_path):
    add_classes(tmp_path, 1)
    for name in ("ant/a.gif", "ant/deep/b.GIF", "bee/c.tiff", "bee/.d.gif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.warns(UserWarning, match=r"3 images in .* are of another type \(.gif, .tiff\)"):
        assert len(load_image_folder(tmp_path, test_fraction=0).X_train) == 3


def test_one_warning_names_and_counts_what_is_left_out(tmp_path):
    add_classes(tmp_path, 20)
    damaged = [tmp_path / "bee" / f"bee{i}.png" for i in range(0, 20, 6)]
    damaged += [tmp_path / "cow" / f"cow{i}{SUFFIXES[i % 6]}" for i in range(20)]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-60])
    (tmp_path / "empty").mkdir()
    (tmp_path / "void").mkdir()
    add(tmp_path, "loose.png", (0, 0, 0))
    with pytest.warns(UserWarning, match="cannot be read") as seen:
        data = load_image_folder(tmp_path, test_fraction=0)
    assert len(seen) == 1
    assert seen[0].filename == __file__
    message = str(seen[0].message)
    assert f"no image in 2 folders of {tmp_path}: empty, void" in message
    assert "1 images lie in" in message
    assert "24 of 60 files" in message
    assert "bee/bee0.png (" in message
    assert "and 14 more" in message
    assert "with them all of cow" in message
    assert data.class_names == ("ant", "bee")
    assert np.bincount(data.y_train).tolist() == [20, 16]
    assert_colours_fit(data.X_train, data.y_train, data.class_names)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_files_cut_anywhere_are_named_never_fatal(tmp_path, suffix):
    add(tmp_path, f"a/1{suffix}", (200, 10, 10))
    whole = (tmp_path / f"a/1{suffix}").read_bytes()
    for i in range(0, len(whole) - 1, 7):
        (tmp_path / f"a/cut{i:04}{suffix}").write_bytes(whole[:i])
    with pytest.warns(UserWarning, match=r"files in .* cannot be read: a/cut0000"):
        data = load_image_folder(tmp_path, test_fraction=0)
    assert 1 <= len(data.X_train) < 8  # trailing bytes of some kinds say nothing of the picture


def test_nothing_that_can_be_read(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"1 of 1 files .* a/1.png \(.*\)\. Nothing is left\."):
        load_image_folder(tmp_path)


def test_folders_without_classes(tmp_path):
    with pytest.raises(DatasetNotFoundError, match="missing is not a folder"):
        load_image_folder(tmp_path / "missing")
    for i in range(2):
        add(tmp_path, f"{i}.png", (0, 0, 0))
    with pytest.raises(DatasetError, match=r"2 images lie in it directly.*CLASS/image\.png"):
        load_image_folder(tmp_path)


def test_what_size_and_channels_may_be(tmp_path):
    with pytest.raises(ValueError, match="such as"):
        load_image_folder(tmp_path, size=None)
    with pytest.raises(ValueError, match="channels must be 3"):
        load_image_folder(tmp_path, channels=4)


def test_links_in_a_circle_end(tmp_path):
    add_classes(tmp_path, 1)
    (tmp_path / "ant" / "again").symlink_to(tmp_path, target_is_directory=True)
    assert len(load_image_folder(tmp_path, test_fraction=0).X_train) == 3
