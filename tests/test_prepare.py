"""`python -m datasets.prepare`: from an archive or a server to a folder that is whole or not there."""

import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, serving
from PIL import Image

from datasets import prepare
from datasets.errors import UserError, run_command
from datasets.files import whole_folder
from datasets.prepare import KNOWN_SETS, KnownSet, check_folder, download, join_pairs, split_pairs, split_test

COUNTS = {"train": 3, "val": 2}
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """The command in this process, in a folder of its own; gives exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["prepare", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            run_command(prepare.main)
        return int(end.value.code or 0), *capsys.readouterr()

    return command


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address it is served at."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Be quiet."""

    (tmp_path / "web").mkdir()
    handler = partial(Quiet, directory=str(tmp_path / "web"))
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), handler)) as address:
        yield tmp_path / "web", f"{address}/set.tgz"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def png(seed: int = 0, width: int = 8, height: int = 4) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def save(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def make_archive(path: Path, counts: Mapping[str, int] = COUNTS, top: str = "set/") -> Path:
    with tarfile.open(path, "w:gz") as file:
        for name, data in ((f"{folder}/{k}.png", png(k)) for folder in counts for k in range(counts[folder])):
            info = tarfile.TarInfo(top + name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


# --- known sets and archives ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "counts", [COUNTS, {"train": 3}, {"train": 3, "val": 1}, {"train": 4, "val": 2}, {"text": 0}]
)
def test_from_archive(tmp_path: Path, counts: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A known set with the published counts arrives whole, with others not at all."""
    monkeypatch.setitem(KNOWN_SETS, "small", KnownSet("https://set.invalid/small.tar.gz", "", COUNTS))
    archive = make_archive(tmp_path / "a.tar.gz", counts)
    before, output = archive.read_bytes(), tmp_path / "deep/data"
    digest = hashlib.sha256(before).hexdigest()
    if counts != COUNTS:
        with pytest.raises(UserError, match=r"instead of|no picture"):
            download("small", output, archive)
        assert names(tmp_path) == ["a.tar.gz"]
        return
    [line] = download("small", output, archive, sha256=digest.upper())
    assert line.startswith(f"{output}: train 3, val 2; ")
    found = files(output)
    assert json.loads(found.pop("source.json")) == {
        "name": "small", "source": "a.tar.gz", "bytes": len(before), "sha256": digest, "counts": COUNTS,
    }  # fmt: skip
    assert found == {f"{folder}/{k}.png": png(k) for folder, count in COUNTS.items() for k in range(count)}
    assert archive.read_bytes() == before
    assert names(tmp_path / "deep") == ["data"]


@pytest.mark.parametrize(("digest", "reason"), [("0" * 64, "has SHA-256"), ("abc", "not a SHA-256")])
def test_wrong_hash_leaves_nothing(tmp_path: Path, digest: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        download("mine", tmp_path / "data", make_archive(tmp_path / "a.tar.gz"), sha256=digest)
    assert names(tmp_path) == ["a.tar.gz"]


@pytest.mark.parametrize("name", ["unknown", "../evil", "a/b", ".hidden", ""])
def test_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"not a known data set|not a name"):
        download(name, tmp_path / "data")
    assert names(tmp_path) == []


def test_target_with_files_is_untouched_and_nothing_is_fetched(tmp_path: Path) -> None:
    save(tmp_path / "data/mine.txt", b"kept")
    with pytest.raises(UserError, match="not empty"):
        download("maps", tmp_path / "data")
    assert files(tmp_path) == {"data/mine.txt": b"kept"}


def test_download_from_a_server(web: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = web
    make_archive(folder / "set.tgz")
    [line] = download("mine", tmp_path / "out/data", url=url)
    assert "train 3, val 2" in line
    assert json.loads((tmp_path / "out/data/source.json").read_text())["source"] == url
    assert names(tmp_path / "out") == ["data"]


@pytest.mark.parametrize("fault", ["hash", "truncated", "text", "page", "hostile", "missing"])
def test_bad_downloads_leave_nothing(web: tuple[Path, str], tmp_path: Path, fault: str) -> None:
    folder, url = web
    archive = make_archive(folder / "set.tgz", top="../" if fault == "hostile" else "set/")
    whole = archive.read_bytes()
    contents = {"truncated": whole[: len(whole) // 2], "text": b"quota exceeded", "page": b"<html>404"}
    archive.write_bytes(contents.get(fault, whole))
    if fault == "missing":
        archive.unlink()
    with pytest.raises(UserError) as caught:
        download("mine", tmp_path / "out/data", url=url, sha256="0" * 64 if fault == "hash" else None)
    assert caught.value.subject == url
    assert len(f"error: {caught.value}") <= 300
    assert files(tmp_path / "out") == {}


@pytest.mark.parametrize(
    ("module", "call"),
    [
        ("archives", lambda root: download("mine", root / "data", root / "a.tar.gz")),
        ("prepare", lambda root: split_test(root / "all", root / "data")),
    ],
)
def test_a_kill_never_leaves_a_folder_that_looks_whole(tmp_path: Path, module: str, call: Any) -> None:
    """SIGKILL after the k-th file; the next run completes, without what the first one left."""
    make_archive(tmp_path / "a.tar.gz")
    for k in range(5):
        save(tmp_path / f"all/train/{k}.png", png(k))
    before = names(tmp_path)
    script = (
        "import os, signal, sys; from pathlib import Path; from datasets import archives, prepare\n"
        "root, module = Path(), sys.argv[2]\n"
        "class Deadly(archives.tqdm):\n"
        "    left = int(sys.argv[1])\n"
        "    def update(self):\n"
        "        self.left -= 1\n"
        "        if not self.left: os.kill(os.getpid(), signal.SIGKILL)\n"
        "getattr(sys.modules['datasets'], module).tqdm = Deadly\n"
        "if module == 'archives': prepare.download('mine', Path('data'), Path('a.tar.gz'))\n"
        "else: prepare.split_test(Path('all'), Path('data'))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for k in (1, 4):
        killed = subprocess.run([sys.executable, "-c", script, str(k), module], cwd=tmp_path, env=environment)
        assert killed.returncode == -signal.SIGKILL
        left = [re.sub("[0-9a-f]{12}", "X", name) for name in names(tmp_path)]
        assert left == [".data.X.tmp", *before]
    call(tmp_path)
    assert names(tmp_path) == sorted([*before, "data"])
    assert len(files(tmp_path / "data")) == (6 if module == "archives" else 5)


def test_disk_full_keeps_the_download(
    web: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, url = web
    make_archive(folder / "set.tgz")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "out/.data.0123456789ab.tmp/train/1.png"))

    monkeypatch.setattr(prepare, "unpack", full)
    with pytest.raises(UserError, match="no space left"):
        download("mine", tmp_path / "out/data", url=url)
    assert sorted(files(tmp_path / "out")) == ["mine.download", "mine.download.json"]
    monkeypatch.undo()
    (folder / "set.tgz").unlink()  # not asked again
    download("mine", tmp_path / "out/data", url=url)
    assert names(tmp_path / "out") == ["data"]


# --- folders that appear whole -------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_whole_folder_after_an_error(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), whole_folder(tmp_path / "a/b/c") as folder:
        (folder / "half").touch()
        raise error
    assert names(tmp_path) == []


def test_whole_folder_takes_an_empty_one_and_follows_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with whole_folder(tmp_path / "link") as folder:
        (folder / "x").touch()
    assert names(tmp_path) == ["link", "real"] and names(tmp_path / "real") == ["x"]


def test_whole_folder_is_filled_by_one_at_a_time(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "a") as folder:
        (folder / "x").touch()
        with pytest.raises(UserError, match="another process"), whole_folder(tmp_path / "a"):
            pass
        assert (folder / "x").exists()
    assert (tmp_path / "a/x").exists()


# --- join and split ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("splits", [("",), ("train/", "val/"), ("train/", "val/", "test/")])
def test_join_then_split_gives_the_same_pixels(run: Run, tmp_path: Path, splits: tuple[str, ...]) -> None:
    for number, part in enumerate(splits):
        for k in range(2 + number):
            save(tmp_path / f"a/{part}p{k}.png", png(10 * number + k))
            save(tmp_path / f"b/{part}p{k}.png", png(100 + 10 * number + k))
    counts = ", ".join(f"{part.rstrip('/')} {2 + number}".strip() for number, part in enumerate(splits))
    joined = run("join", "--a", "a", "--b", "b", "--output", "ab")
    assert joined == (0, f"ab: {counts} pairs, A left, B right\n", "")
    assert run("split", "--input", "ab", "--output", "out") == (0, f"out: {counts} pairs in A and B\n", "")
    assert files(tmp_path / "out").keys() == {
        f"{side}/{path}" for side in "AB" for path in files(tmp_path / "a")
    }
    for path in files(tmp_path / "a"):
        both = [pixels(tmp_path / folder / path) for folder in "ab"]
        assert np.array_equal(pixels(tmp_path / "ab" / path), np.concatenate(both, axis=1))
        assert np.array_equal([pixels(tmp_path / "out" / side / path) for side in "AB"], both)


def test_join_refuses(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"

    def refusal() -> UserError:
        before = files(tmp_path)
        with pytest.raises(UserError) as caught:
            join_pairs(a, b, tmp_path / "ab")
        assert files(tmp_path) == before and not (tmp_path / "ab").exists()
        return caught.value

    assert "no such folder" in refusal().reason
    a.mkdir()
    b.mkdir()
    assert "no image" in refusal().reason
    for path in (a / "1.png", a / "2.png", b / "1.png"):
        save(path, png())
    assert refusal().reason == "2 images in A, 1 in B; without a partner of equal stem: 2.png"
    save(b / "2.png", png(width=9))
    assert "is 8x4" in refusal().reason and "9x4" in refusal().reason
    save(b / "2.png", png()[:60])
    assert refusal().subject == str(b / "2.png")
    save(b / "2.jpg", png())
    assert "same stem" in refusal().reason
    save(b / "train/1.png", png())
    assert "none in A, train in B" in refusal().reason


def test_split_refuses_odd_widths(tmp_path: Path) -> None:
    save(tmp_path / "ab/1.png", png())
    save(tmp_path / "ab/2.png", png(width=9))
    with pytest.raises(UserError, match="odd width, 9x4"):
        split_pairs(tmp_path / "ab", tmp_path / "parts")
    assert names(tmp_path) == ["ab"]


# --- test split ----------------------------------------------------------------------------------------------


def test_split_test_of_pairs(run: Run, tmp_path: Path) -> None:
    """Pairs stay together, the choice is that of the seed, and nothing is lost."""
    for k in range(20):
        save(tmp_path / f"all/A/{k}.png", png(k))
        save(tmp_path / f"all/B/{k}.png", png(100 + k))
    before = files(tmp_path / "all")
    code, out, err = run("split-test", "--input", "all", "--output", "data", "--fraction", "0.25")
    assert (code, out, err) == (0, "data: A/train 15, A/test 5, B/train 15, B/test 5, paired\n", "")
    found = files(tmp_path / "data")
    assert {Path(name).parent.as_posix() for name in found} == {"A/train", "B/train", "A/test", "B/test"}
    assert {f"{name[0]}/{Path(name).name}": content for name, content in found.items()} == before
    chosen = names(tmp_path / "data/A/test")
    assert names(tmp_path / "data/B/test") == chosen and files(tmp_path / "all") == before
    split_test(tmp_path / "all", tmp_path / "again", 0.25)
    assert names(tmp_path / "again/A/test") == chosen
    split_test(tmp_path / "all", tmp_path / "other", 0.25, seed=1)
    assert names(tmp_path / "other/A/test") != chosen


def test_split_test_of_other_layouts(tmp_path: Path) -> None:
    for k in range(10):
        save(tmp_path / f"two/trainA/{k}.png", png(k))
        save(tmp_path / f"two/trainB/b{k % 4}.png", png(k))
        save(tmp_path / f"sides/{k}.png", png(k))
    [line] = split_test(tmp_path / "two", tmp_path / "o")
    assert line.endswith("o: trainA 9, testA 1, trainB 3, testB 1, unaligned")
    [line] = split_test(tmp_path / "sides", tmp_path / "p", 0.5, dataset_mode="aligned")
    assert line.endswith("p: train 5, test 5, aligned")
    assert files(tmp_path / "sides").keys() == {Path(name).name for name in files(tmp_path / "p")}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("--input all --fraction 0", "out of range"),
        ("--input all --fraction 1", "out of range"),
        ("--input all --fraction nan", "out of range"),
        ("--input all --fraction 0.5 --seed -1", "out of range"),
        ("--input all --fraction 0.5 --seed 99999999999999999999", "out of range"),
        ("--input all", "has a test split already: test"),
        ("--input one", "too few"),
        ("--input plain", "no train split"),
    ],
)
def test_split_test_refuses(run: Run, tmp_path: Path, arguments: str, reason: str) -> None:
    for name in ("all/train/1.png", "all/train/2.png", "all/test/3.png", "one/train/1.png", "plain/1.png"):
        save(tmp_path / name, png())
    before = files(tmp_path)
    code, out, err = run("split-test", "--output", "data", *arguments.split())
    assert (code, out) == (2, "") and reason in err and err.count("\n") == 1
    assert files(tmp_path) == before


# --- check ---------------------------------------------------------------------------------------------------


def test_check_counts_sizes_and_modes(tmp_path: Path) -> None:
    for k in range(3):
        save(tmp_path / f"train/{k}.png", png(k))
    Image.new("L", (10, 4)).save(tmp_path / "train/3.png")
    save(tmp_path / "val/0.png", png())
    lines = list(check_folder(tmp_path))
    assert lines[:3] == ["train: 4 pairs, aligned", "  sizes: 8x4 (3), 10x4 (1)", "  modes: RGB (3), L (1)"]
    assert "val: 1 pairs, aligned" in lines


def test_check_of_other_layouts(tmp_path: Path) -> None:
    for k in range(3):
        for folder in ("u/trainA", "p/A/train", "p/B/train", "f"):
            save(tmp_path / folder / f"{k}.png", png(k))
    save(tmp_path / "u/trainB/x.png", png())
    unaligned, paired, plain = (list(check_folder(tmp_path / root)) for root in "upf")
    assert unaligned[0] == "train: 3 in A, 1 in B, unaligned"
    assert unaligned[-1].startswith("not there: no folders testA and testB")
    assert paired[0] == "train: 3 pairs, paired"
    assert plain[0] == "pictures: 3, no A and B: for translation only"
    assert not any("not there" in line for line in plain)


def test_check_finds_what_is_wrong(run: Run, tmp_path: Path) -> None:
    assert "no such folder" in run("check", "none")[2]
    assert "no data set here" in run("check", tmp_path)[2]
    for k in range(3):
        save(tmp_path / f"pairs/A/train/{k}.png", png(k))
        save(tmp_path / f"pairs/B/train/{k + 1}.png", png(k))
        save(tmp_path / f"train/{k}.png", png(k))
        save(tmp_path / f"test/{k}.png", png(k))
    assert "without a partner" in run("check", "pairs")[2]
    code, out, err = run("check", tmp_path)
    assert (code, err) == (0, "")
    assert "train: 3 pairs" in out and "test: 3 pairs" in out
    save(tmp_path / "train/1.png", png(1)[:60])
    save(tmp_path / "test/2.png", b"")
    code, out, err = run("check", tmp_path)
    first, *others = err.splitlines()
    assert code == 2 and first.startswith(f"error: {tmp_path}: 2 problems")
    assert all(line.startswith("  ") for line in others)
    assert "train/1.png" in err and "test/2.png" in err
    code, out, err = run("check", tmp_path, "--skip_bad")
    assert (code, err) == (0, "")
    assert "train: 2 pairs" in out and "1.png" in out


# --- the command line ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        "download nothing",
        "download maps --from_archive nothing.tgz",
        "download maps --from_archive page.tgz",
        "download maps --timeout 0",
        "join --a x --b y --output z",
        "split --input page.tgz --output z",
        "check nothing",
    ],
)
def test_one_line_and_exit_code_2(run: Run, tmp_path: Path, arguments: str) -> None:
    (tmp_path / "page.tgz").write_bytes(b"<html>")
    code, out, err = run(*arguments.split())
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    assert names(tmp_path) == ["page.tgz"]


@pytest.mark.parametrize("arguments", ["", "fetch", "download", "download maps --outptu x", "check x --skip"])
def test_unknown_flags_and_commands(run: Run, tmp_path: Path, arguments: str) -> None:
    code, out, err = run(*arguments.split())
    assert (code, out) == (2, "") and "--help" in err
    assert names(tmp_path) == []


def test_help_names_the_known_sets(run: Run) -> None:
    code, out, _ = run("download", "--help")
    assert code == 0 and all(name in out for name in KNOWN_SETS)


def test_help_comes_without_torch() -> None:
    """Both commands: what they import to show their help is light."""
    code = (
        "import sys; sys.argv = ['x', '--help']\n"
        "from datasets import prepare, synthetic\n"
        "for main in (prepare.main, synthetic.main):\n"
        "    try: main()\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.endswith("False\n"), result.stderr
