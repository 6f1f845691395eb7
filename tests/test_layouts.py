"""The four folder layouts are found by looking; what is missing is said together with what is there."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.errors import UserError
from datasets.layouts import NoSplit, find_inputs, find_sources, left_out


def picture(path: Path, size: tuple[int, int] = (8, 6), colour: tuple[int, int, int] = (1, 2, 3)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def tree(root: Path, *names: str) -> Path:
    root.mkdir(exist_ok=True)
    for name in names:
        picture(root / name)
    return root


def names(paths: tuple[Path, ...]) -> list[str]:
    return [path.name for path in paths]


def refusal(call: Callable[[], object], subject: Path | str) -> UserError:
    with pytest.raises(UserError) as caught:
        call()
    assert caught.value.subject == str(subject)
    assert len(f"error: {caught.value}") <= 300
    return caught.value


def test_unaligned(tmp_path: Path) -> None:
    root = tree(tmp_path, "trainA/2.png", "trainA/1.jpg", "trainB/x.png")
    tree(tmp_path, "testA/t.png", "testB/u.png", "testB/v.png")
    train, test = find_sources(root, "train"), find_sources(root, "test")
    assert (train.layout, train.split) == ("unaligned", "train")
    assert (names(train.a), names(train.b)) == (["1.jpg", "2.png"], ["x.png"])
    assert (test.split, names(test.a), names(test.b)) == ("test", ["t.png"], ["u.png", "v.png"])
    assert not train.is_paired
    swapped = train.swapped()
    assert (names(swapped.a), names(swapped.b)) == (["x.png"], ["1.jpg", "2.png"])
    assert swapped.swapped() == train


def test_aligned_halves_and_direction(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    values = np.random.default_rng(0).integers(0, 256, (6, 16, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "train" / "1.png")
    sources = find_sources(tmp_path, "train")
    assert sources.layout == "aligned"
    assert sources.is_paired
    assert sources.a == sources.b == (tmp_path / "train" / "1.png",)
    assert np.array_equal(np.asarray(sources.load_a(0)), values[:, :8])
    assert np.array_equal(np.asarray(sources.load_b(0)), values[:, 8:])
    swapped = sources.swapped()
    assert np.array_equal(np.asarray(swapped.load_a(0)), values[:, 8:])
    assert np.array_equal(np.asarray(swapped.load_b(0)), values[:, :8])
    assert sources.load_b(0, 1).mode == "L"


def test_paired_by_stem_whatever_the_extension(tmp_path: Path) -> None:
    root = tree(tmp_path, "A/train/2.png", "B/train/2.png", "A/test/2.png", "B/test/2.png")
    tree(tmp_path, "A/train/10.png", "B/train/10.jpg")
    sources = find_sources(root, "train")
    assert sources.layout == "paired" and sources.is_paired
    assert (names(sources.a), names(sources.b)) == (["10.png", "2.png"], ["10.jpg", "2.png"])
    assert sources.swapped().a == sources.b
    assert len(find_sources(root, "test").a) == 1


def test_val_counts_as_test_where_there_is_no_test(tmp_path: Path) -> None:
    maps = tree(tmp_path / "maps", "train/1.png", "val/2.png")
    assert (find_sources(maps, "test").split, names(find_sources(maps, "test").a)) == ("val", ["2.png"])
    picture(maps / "test/3.png")
    assert names(find_sources(maps, "test").a) == ["3.png"]
    other = tree(tmp_path / "o", "trainA/1.png", "trainB/1.png", "valA/2.png", "valB/3.png")
    assert names(find_sources(other, "test").b) == ["3.png"]
    pairs = tree(tmp_path / "p", "A/train/1.png", "B/train/1.png", "A/val/2.png", "B/val/2.png")
    assert find_sources(pairs, "test").split == "val"


def test_a_plain_folder_is_for_translation(tmp_path: Path) -> None:
    tree(tmp_path, "b.png", "a.png")
    sources = find_sources(tmp_path, "test")
    assert (sources.layout, names(sources.a), sources.b) == ("folder", ["a.png", "b.png"], ())
    assert not sources.is_paired
    assert "no train split" in refusal(lambda: find_sources(tmp_path, "train"), tmp_path).reason
    assert find_sources(tmp_path, "train", "folder").layout == "folder"


@pytest.mark.parametrize(
    ("a", "b", "layout", "test_a"),
    [
        ("train_A", "train_B", "paired", "test_A"),
        ("train_label", "train_img", "paired", "test_label"),
        ("train/input", "train/target", "paired", "val/input"),
        ("input/train", "target/train", "paired", "input/test"),
        ("train/A", "train/B", "paired", "test/A"),
        ("input", "target", "paired", ""),
        ("A", "B", "paired", ""),
    ],
)
def test_folders_of_other_programs(tmp_path: Path, a: str, b: str, layout: str, test_a: str) -> None:
    root = tree(tmp_path, f"{a}/1.png", f"{a}/2.png", f"{b}/1.png", f"{b}/2.png")
    sources = find_sources(root, "train")
    assert (sources.layout, sources.note) == (layout, f"A is {a}, B is {b}: {layout}")
    assert (sources.a[0].parent, sources.b[0].parent) == (root / a, root / b)
    assert "python -m datasets.prepare split-test" in refusal(lambda: find_sources(root, "test"), root).fix
    if test_a:
        test_b = test_a.replace("A", "B").replace("label", "img").replace("input", "target")
        tree(tmp_path, f"{test_a}/3.png", f"{test_b}/3.png")
        assert names(find_sources(root, "test").b) == ["3.png"]


@pytest.mark.parametrize(("a", "b"), [("A", "B"), ("train_A", "train_B"), ("train/A", "train/B")])
def test_folders_without_a_telling_name_hold_pairs_where_all_have_partners(
    tmp_path: Path, a: str, b: str
) -> None:
    root = tree(tmp_path, f"{a}/1.png", f"{b}/x.png")
    assert find_sources(root, "train").layout == "unaligned"
    tree(tmp_path, f"{b}/1.png")
    error = refusal(lambda: find_sources(root, "train"), root)
    assert error.reason == f"{a} and {b} share 1 of 2 stems, so they may hold pairs or not"
    assert "--dataset_mode unaligned" in error.fix
    assert "without a partner" in refusal(lambda: find_sources(root, "train", "paired"), root).reason
    assert find_sources(root, "train", "unaligned").layout == "unaligned"


def test_a_folder_of_side_by_side_pictures_is_taken_when_it_is_named(tmp_path: Path) -> None:
    tree(tmp_path, "1.png", "A/x.png")
    error = refusal(lambda: find_sources(tmp_path, "train"), tmp_path)
    assert "--dataset_mode aligned" in error.fix
    sources = find_sources(tmp_path, "train", "aligned")
    assert (names(sources.a), sources.note) == (["1.png"], "the folder itself: aligned")
    assert isinstance(refusal(lambda: find_sources(tmp_path, "test", "aligned"), tmp_path), NoSplit)


def test_the_layout_can_be_told(tmp_path: Path) -> None:
    root = tree(tmp_path, "trainA/1.png", "trainB/1.png", "train/1.png")
    assert find_sources(root, "train").layout == "unaligned"
    assert find_sources(root, "train", "aligned").layout == "aligned"
    refusal(lambda: find_sources(root, "train", "paired"), root)
    assert "aligned" in refusal(lambda: find_sources(root, "train", "single"), "--dataset_mode").fix


def test_the_first_so_many(tmp_path: Path) -> None:
    root = tree(tmp_path, *(f"trainA/{i}.png" for i in range(5)), *(f"trainB/{i}.png" for i in range(3)))
    sources = find_sources(root, "train", max_size=4)
    assert names(sources.a) == ["0.png", "1.png", "2.png", "3.png"]
    assert names(sources.b) == ["0.png", "1.png", "2.png"]


def test_the_order_is_that_of_the_names_not_of_the_disk(tmp_path: Path) -> None:
    stems = [f"{i:03}" for i in range(40)]
    found = []
    for seed in (1, 2):
        random.Random(seed).shuffle(stems)
        root = tree(tmp_path / str(seed), *(f"train/{stem}.png" for stem in stems))
        found.append(names(find_sources(root, "train").a))
    assert found[0] == found[1] == sorted(found[0])


def test_missing_and_empty_roots(tmp_path: Path) -> None:
    tree(tmp_path, "maps/train/1.png")
    error = refusal(lambda: find_sources(tmp_path / "map", "train"), tmp_path / "map")
    assert "no such folder" in error.reason
    assert "folders maps" in error.reason
    (tmp_path / "empty").mkdir()
    reason = refusal(lambda: find_sources(tmp_path / "empty", "train"), tmp_path / "empty").reason
    assert "looked for trainA and trainB, A/train and B/train, or train with side-by-side" in reason
    assert "in it: nothing" in reason
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "notes.txt").write_text("x")
    (tmp_path / "text" / "Train").mkdir()
    error = refusal(lambda: find_sources(tmp_path / "text", "train"), tmp_path / "text")
    assert "folders Train; 1 file, first notes.txt" in error.reason
    file = tmp_path / "maps" / "train" / "1.png"
    assert "is a file" in refusal(lambda: find_sources(file, "train"), file).reason


def test_folders_without_pictures_are_named(tmp_path: Path) -> None:
    root = tree(tmp_path, "trainA/1.png")
    (root / "trainB").mkdir()
    (root / "trainB" / "1.heic").write_bytes(b"x")
    error = refusal(lambda: find_sources(root, "train"), root / "trainB")
    assert error.reason == "no image in it; in it: 1 file, first 1.heic"
    assert ".png" in error.fix


def test_one_side_or_split_missing(tmp_path: Path) -> None:
    root = tree(tmp_path, "trainA/1.png", "testA/1.png", "testB/1.png")
    reason = refusal(lambda: find_sources(root, "train"), root).reason
    assert reason.startswith("trainA without trainB; in it: folders")
    root = tree(tmp_path / "p", "B/train/1.png")
    assert refusal(lambda: find_sources(root, "train"), root).reason.startswith("B/train without A/train")
    error = refusal(lambda: find_sources(root, "test"), root)
    assert isinstance(error, NoSplit) and "no folders A/test and B/test or A/val and B/val" in error.reason
    root = tree(tmp_path / "q", "train/1.png")
    error = refusal(lambda: find_sources(root, "test"), root)
    assert isinstance(error, NoSplit) and "no folder test or val; in it: folders train" in error.reason


def test_pairs_that_do_not_match_are_listed(tmp_path: Path) -> None:
    side_a = [f"A/train/a{i}.png" for i in range(12)]
    root = tree(tmp_path / "few", *side_a, *(f"B/train/a{i}.png" for i in range(11)))
    error = refusal(lambda: find_sources(root, "train"), root)
    assert error.reason == "12 images in A, 11 in B; without a partner of equal stem: A/train/a11.png"
    assert error.details == ()
    root = tree(tmp_path / "all", *side_a, *(f"B/train/b{i}.png" for i in range(12)))
    error = refusal(lambda: find_sources(root, "train"), root)
    assert error.reason.endswith("A/train/a0.png, A/train/a1.png, A/train/a10.png, ...")
    assert len(error.details) == 24
    root = tree(tmp_path / "twice", "A/train/a.png", "A/train/a.jpg", "B/train/a.png")
    error = refusal(lambda: find_sources(root, "train"), root / "A" / "train")
    assert error.reason == "a.jpg and a.png have the same stem"


def test_a_side_by_side_file_of_odd_width_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "1.png", (9, 4))
    sources = find_sources(tmp_path, "train")
    path = tmp_path / "train" / "1.png"
    assert "odd width, 9x4" in refusal(lambda: sources.load_a(0), path).reason


def test_links_that_go_round_do_not_hang(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "again").symlink_to(tmp_path / "train")
    (tmp_path / "train" / "self.png").symlink_to("self.png")
    picture(tmp_path / "train" / "1.png")
    assert names(find_sources(tmp_path, "train").a) == ["1.png", "self.png"]
    (tmp_path / "loop").symlink_to("loop")
    refusal(lambda: find_sources(tmp_path / "loop", "train"), tmp_path / "loop")


def test_inputs_to_translate(tmp_path: Path) -> None:
    tree(tmp_path, "b.png", "a.jpg", "sub/c.png")
    (tmp_path / "none").mkdir()
    assert [path.name for path in find_inputs(tmp_path, tmp_path / "out")] == ["a.jpg", "b.png", "c.png"]
    tree(tmp_path, "out/d.png", ".hidden/e.png")
    for name in ("notes.txt", "x.heic"):
        (tmp_path / name).touch()
    assert len(find_inputs(tmp_path, tmp_path / "out")) == 3
    assert left_out(tmp_path) == "3 folders (first: none), 2 files of other kinds (.heic .txt)"
    assert left_out(tmp_path, but_folders=True) == "2 files of other kinds (.heic .txt)"
    assert left_out(tmp_path / "sub") == ""
    assert find_inputs(tmp_path / "b.png", tmp_path / "out") == [tmp_path / "b.png"]
    refusal(lambda: find_inputs(tmp_path / "c.png", tmp_path / "out"), tmp_path / "c.png")
    assert (
        "no image"
        in refusal(lambda: find_inputs(tmp_path / "none", tmp_path / "out"), tmp_path / "none").reason
    )


def test_inputs_below_the_output_folder_are_taken_and_links_to_folders_are_named(tmp_path: Path) -> None:
    tree(tmp_path, "photos/a.png", "photos/sub/b.png", "elsewhere/c.png")
    (tmp_path / "photos" / "link").symlink_to(tmp_path / "elsewhere")
    found = find_inputs(tmp_path / "photos", tmp_path)
    assert [path.name for path in found] == ["a.png", "b.png"]
    assert left_out(tmp_path / "photos", but_folders=True) == "1 folder (first: link)"
