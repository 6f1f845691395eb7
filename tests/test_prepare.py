"""`python -m datasets.prepare`: from an archive or a server to a folder that is whole or not there."""

import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator, Mapping
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from datasets import obtain as obtain_module
from datasets import prepare
from datasets.errors import UserError, run_command
from datasets.inspect_folder import check
from datasets.known_sets import KNOWN_SETS, KnownSet
from datasets.obtain import obtain
from datasets.output_folder import whole_folder
from datasets.pairs import join, split


class Command:
    """The command in this process, in a folder of its own; a process of its own costs seconds for torch."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
    ) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys
        monkeypatch.chdir(folder)

    def __call__(self, *arguments: str | Path) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        self.monkeypatch.setattr(sys, "argv", ["prepare", *map(str, arguments)])
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            run_command(prepare.main)
        return int(end.value.code or 0), *self.capsys.readouterr()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    return Command(monkeypatch, capsys, tmp_path)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def png(seed: int = 0, width: int = 8, height: int = 4) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def save(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def make_archive(path: Path, counts: Mapping[str, int], top: str = "set/") -> Path:
    with tarfile.open(path, "w:gz") as file:
        for folder, count in counts.items():
            for k in range(count):
                info = tarfile.TarInfo(f"{top}{folder}/{k}.png")
                data = png(k)
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
    return path


COUNTS = {"train": 3, "val": 2}


@pytest.fixture
def small_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KNOWN_SETS, "small", KnownSet("https://set.invalid/small.tar.gz", COUNTS, ""))


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address it is served at."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Be quiet."""

    folder = tmp_path / "web"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


# --- known sets and archives ---------------------------------------------------------------------------------


def test_published_counts() -> None:
    assert KNOWN_SETS["maps"].counts == {"train": 1096, "val": 1098}
    assert KNOWN_SETS["horse2zebra"].counts == {"trainA": 1067, "trainB": 1334, "testA": 120, "testB": 140}
    assert KNOWN_SETS["night2day"].counts == {"train": 17823, "test": 2287}
    assert all(known.url.startswith("https://efrosgans.eecs.berkeley.edu/") for known in KNOWN_SETS.values())


@pytest.mark.usefixtures("small_set")
def test_from_archive(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "a.tar.gz", COUNTS)
    before = archive.read_bytes()
    digest = hashlib.sha256(before).hexdigest()
    output = tmp_path / "deep/data"
    assert obtain("small", output, archive=archive, hash_wanted=digest.upper()) == COUNTS
    found = files(output)
    record = json.loads(found.pop("source.json"))
    assert record == {
        "name": "small", "source": "a.tar.gz", "bytes": len(before), "sha256": digest, "counts": COUNTS,
    }  # fmt: skip
    assert found == {f"{folder}/{k}.png": png(k) for folder, count in COUNTS.items() for k in range(count)}
    assert archive.read_bytes() == before
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["data"]


@pytest.mark.usefixtures("small_set")
@pytest.mark.parametrize(
    "counts", [{"train": 3}, {"train": 3, "val": 1}, {"train": 4, "val": 2}, {"text": 0}]
)
def test_wrong_counts_leave_nothing(tmp_path: Path, counts: dict[str, int]) -> None:
    archive = make_archive(tmp_path / "a.tar.gz", counts)
    with pytest.raises(UserError, match=r"instead of|no picture"):
        obtain("small", tmp_path / "out/data", archive=archive)
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar.gz"]


def test_wrong_hash_leaves_nothing(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "a.tar.gz", COUNTS)
    with pytest.raises(UserError, match="SHA-256"):
        obtain("mine", tmp_path / "data", archive=archive, hash_wanted="0" * 64)
    with pytest.raises(UserError, match="not a SHA-256"):
        obtain("mine", tmp_path / "data", archive=archive, hash_wanted="abc")
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar.gz"]


@pytest.mark.parametrize("name", ["unknown", "../evil", "a/b", ".hidden", ""])
def test_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"not a known data set|not a name"):
        obtain(name, tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_target_with_files_is_untouched_and_nothing_is_fetched(tmp_path: Path) -> None:
    save(tmp_path / "data/mine.txt", b"kept")
    with pytest.raises(UserError, match="not empty"):
        obtain("maps", tmp_path / "data")
    assert files(tmp_path) == {"data/mine.txt": b"kept"}


def test_download_from_a_server(web: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = web
    make_archive(folder / "set.tgz", COUNTS)
    output = tmp_path / "out/data"
    assert obtain("mine", output, url=f"{url}/set.tgz") == COUNTS
    assert json.loads((output / "source.json").read_text())["source"] == f"{url}/set.tgz"
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["data"]


@pytest.mark.parametrize("fault", ["hash", "truncated", "text", "page", "hostile", "missing"])
def test_bad_downloads_leave_nothing(web: tuple[Path, str], tmp_path: Path, fault: str) -> None:
    folder, url = web
    archive = make_archive(folder / "set.tgz", COUNTS)
    whole = archive.read_bytes()
    if fault == "truncated":
        archive.write_bytes(whole[: len(whole) // 2])
    elif fault == "text":
        archive.write_bytes(b"quota exceeded")
    elif fault == "page":
        archive.write_bytes(b"<!doctype html><title>404</title>")
    elif fault == "hostile":
        make_archive(archive, COUNTS, top="../")
    elif fault == "missing":
        archive.unlink()
    with pytest.raises(UserError) as caught:
        wanted = "0" * 64 if fault == "hash" else None
        obtain("mine", tmp_path / "out/data", url=f"{url}/set.tgz", hash_wanted=wanted)
    assert caught.value.subject == f"{url}/set.tgz"
    assert len(f"error: {caught.value}") <= 300
    assert files(tmp_path / "out") == {}


def test_a_kill_while_unpacking_never_leaves_a_folder_that_looks_whole(tmp_path: Path) -> None:
    """SIGKILL after the k-th file; the next run completes, without what the first one left."""
    make_archive(tmp_path / "a.tar.gz", COUNTS)
    script = (
        "import os, signal, sys; from pathlib import Path; from datasets import archives, obtain\n"
        "write = archives.write\n"
        "def deadly(plan, folder, progress):\n"
        "    done = []\n"
        "    def count(n):\n"
        "        done.append(n)\n"
        "        if len(done) == int(sys.argv[1]): os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return write(plan, folder, progress=count)\n"
        "archives.write = deadly\n"
        "obtain.obtain('mine', Path('data'), archive=Path('a.tar.gz'))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for k in (1, 4):
        result = subprocess.run(
            [sys.executable, "-c", script, str(k)], cwd=tmp_path, env=environment, capture_output=True
        )
        assert result.returncode == -signal.SIGKILL
        assert sorted(p.name for p in tmp_path.iterdir()) == [".data.partial", "a.tar.gz"]
    assert obtain("mine", tmp_path / "data", archive=tmp_path / "a.tar.gz") == COUNTS
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar.gz", "data"]
    assert len(files(tmp_path / "data")) == 6


def test_disk_full_keeps_the_download(
    web: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, url = web
    make_archive(folder / "set.tgz", COUNTS)

    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device", str(tmp_path / "out/.data.partial/train/1.png"))

    monkeypatch.setattr(obtain_module.archives, "write", full)
    with pytest.raises(UserError, match="no space left"):
        obtain("mine", tmp_path / "out/data", url=f"{url}/set.tgz")
    assert sorted(files(tmp_path / "out")) == ["mine.download", "mine.download.json"]
    monkeypatch.undo()
    (folder / "set.tgz").unlink()  # not asked again
    assert obtain("mine", tmp_path / "out/data", url=f"{url}/set.tgz") == COUNTS


# --- folders that appear whole -------------------------------------------------------------------------------


def test_whole_folder_after_an_error(tmp_path: Path) -> None:
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), whole_folder(tmp_path / "a/b/c") as folder:
            (folder / "half").touch()
            raise error
        assert list(tmp_path.iterdir()) == []


def test_whole_folder_takes_an_empty_one_and_follows_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with whole_folder(tmp_path / "link") as folder:
        (folder / "x").touch()
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == ["link", "real", "real/x"]


def test_whole_folder_is_filled_by_one_at_a_time(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "a") as folder:
        (folder / "x").touch()
        with pytest.raises(UserError, match="another process"), whole_folder(tmp_path / "a"):
            pass
        assert (folder / "x").exists()
    assert (tmp_path / "a/x").exists()


# --- join and split ------------------------------------------------------------------------------------------


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("splits", [("",), ("train/", "val/"), ("train/", "val/", "test/")])
def test_join_then_split_gives_the_same_pixels(tmp_path: Path, splits: tuple[str, ...]) -> None:
    for number, part in enumerate(splits):
        for k in range(2 + number):
            save(tmp_path / f"a/{part}p{k}.png", png(10 * number + k))
            save(tmp_path / f"b/{part}p{k}.png", png(100 + 10 * number + k))
    wanted = {part.rstrip("/") or ".": 2 + number for number, part in enumerate(splits)}
    assert join(tmp_path / "a", tmp_path / "b", tmp_path / "ab") == wanted
    for path in files(tmp_path / "a"):
        both = pixels(tmp_path / "ab" / path)
        assert np.array_equal(both[:, :8], pixels(tmp_path / "a" / path))
        assert np.array_equal(both[:, 8:], pixels(tmp_path / "b" / path))
    assert split(tmp_path / "ab", tmp_path / "parts") == wanted
    assert files(tmp_path / "parts").keys() == {f"{s}/{path}" for s in "AB" for path in files(tmp_path / "a")}
    for path in files(tmp_path / "a"):
        assert np.array_equal(pixels(tmp_path / "parts/A" / path), pixels(tmp_path / "a" / path))
        assert np.array_equal(pixels(tmp_path / "parts/B" / path), pixels(tmp_path / "b" / path))


def test_join_pairs_by_stem_whatever_the_format_and_order(tmp_path: Path) -> None:
    names = [f"n{k}" for k in range(6)]
    random.Random(0).shuffle(names)
    for name in names:
        save(tmp_path / f"a/{name}.png", png(int(name[1])))
        Image.new("L", (8, 4), int(name[1])).save(tmp_path / f"a/{name}.bmp.tmp", "BMP")
    (tmp_path / "b").mkdir()
    for name in reversed(names):
        Image.new("L", (8, 4), 40 * int(name[1])).save(tmp_path / f"b/{name}.bmp")
    assert join(tmp_path / "a", tmp_path / "b", tmp_path / "ab") == {".": 6}
    for name in names:
        assert (pixels(tmp_path / f"ab/{name}.png")[:, 8:] == 40 * int(name[1])).all()


def joined(tmp_path: Path) -> UserError:
    before = files(tmp_path)
    with pytest.raises(UserError) as caught:
        join(tmp_path / "a", tmp_path / "b", tmp_path / "ab")
    assert files(tmp_path) == before and not (tmp_path / "ab").exists()
    return caught.value


def test_join_refuses(tmp_path: Path) -> None:
    assert "no such folder" in joined(tmp_path).reason
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert "no image" in joined(tmp_path).reason
    save(tmp_path / "a/1.png", png())
    save(tmp_path / "a/2.png", png())
    save(tmp_path / "b/1.png", png())
    error = joined(tmp_path)
    assert "2 images in A, 1 in B; 1 without a partner" in error.reason
    assert error.details == (str(tmp_path / "a/2.png"),)
    save(tmp_path / "b/2.png", png(width=9))
    assert "is 8x4" in joined(tmp_path).reason and "9x4" in joined(tmp_path).reason
    save(tmp_path / "b/2.png", png()[:60])
    assert joined(tmp_path).subject == str(tmp_path / "b/2.png")
    save(tmp_path / "b/2.jpg", png())
    assert "same stem" in joined(tmp_path).reason
    save(tmp_path / "b/train/1.png", png())
    assert "none in A, train in B" in joined(tmp_path).reason


def test_split_refuses_odd_widths(tmp_path: Path) -> None:
    save(tmp_path / "ab/1.png", png())
    save(tmp_path / "ab/2.png", png(width=9))
    with pytest.raises(UserError, match="odd width, 9x4"):
        split(tmp_path / "ab", tmp_path / "parts")
    assert [p.name for p in tmp_path.iterdir()] == ["ab"]


# --- check ---------------------------------------------------------------------------------------------------


def test_check_counts_sizes_and_modes(tmp_path: Path) -> None:
    for k in range(3):
        save(tmp_path / f"train/{k}.png", png(k))
    Image.new("L", (10, 4)).save(tmp_path / "train/3.png")
    save(tmp_path / "val/0.png", png())
    lines = list(check(tmp_path))
    assert lines[:3] == ["train: 4 pairs, aligned", "  sizes: 8x4 (3), 10x4 (1)", "  modes: RGB (3), L (1)"]
    assert "val: 1 pairs, aligned" in lines


def test_check_of_other_layouts(tmp_path: Path) -> None:
    for k in range(3):
        save(tmp_path / f"u/trainA/{k}.png", png(k))
        save(tmp_path / f"p/A/train/{k}.png", png(k))
        save(tmp_path / f"p/B/train/{k}.png", png(k + 5))
        save(tmp_path / f"f/{k}.png", png(k))
    save(tmp_path / "u/trainB/x.png", png())
    assert next(iter(check(tmp_path / "u"))) == "train: 3 in A, 1 in B, unaligned"
    assert list(check(tmp_path / "u"))[-1].startswith("not there: no folders testA and testB")
    assert next(iter(check(tmp_path / "p"))) == "train: 3 pairs, paired"
    assert next(iter(check(tmp_path / "f"))) == "pictures: 3, no A and B: for translation only"


def test_check_finds_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        list(check(tmp_path / "none"))
    with pytest.raises(UserError, match="no data set here"):
        list(check(tmp_path))
    for k in range(3):
        save(tmp_path / f"A/train/{k}.png", png(k))
        save(tmp_path / f"B/train/{k + 1}.png", png(k))
    with pytest.raises(UserError, match="without a partner"):
        list(check(tmp_path))


def test_check_command(run: Command, tmp_path: Path) -> None:
    for k in range(3):
        save(tmp_path / f"train/{k}.png", png(k))
        save(tmp_path / f"test/{k}.png", png(k))
    code, out, err = run("check", tmp_path)
    assert (code, err) == (0, "")
    assert "train: 3 pairs" in out and "test: 3 pairs" in out
    save(tmp_path / "train/1.png", png(1)[:60])
    save(tmp_path / "test/2.png", b"")
    code, out, err = run("check", tmp_path)
    assert code == 2
    lines = err.splitlines()
    assert lines[0].startswith(f"error: {tmp_path}: 2 problems") and all(
        x.startswith("  ") for x in lines[1:]
    )
    assert "train/1.png" in err and "test/2.png" in err and "Traceback" not in err
    code, out, err = run("check", tmp_path, "--skip_bad")
    assert (code, err) == (0, "")
    assert "train: 2 pairs" in out and "1.png" in out


# --- the command line ----------------------------------------------------------------------------------------


def test_commands_end_to_end(run: Command, tmp_path: Path) -> None:
    make_archive(tmp_path / "a.tgz", COUNTS)
    result = subprocess.run(
        [sys.executable, "-m", "datasets.prepare", "download", "mine", "--from_archive", "a.tgz"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    assert "data/mine: train 3, val 2" in result.stdout
    code, out, _ = run("split", "--input", "data/mine", "--output", "parts")
    assert (code, out) == (0, "parts: train 3, val 2 pairs in A and B\n")
    code, out, _ = run("join", "--a", "parts/A", "--b", "parts/B", "--output", "again")
    assert (code, out) == (0, "again: train 3, val 2 pairs, A left, B right\n")
    for path in files(tmp_path / "again"):
        assert np.array_equal(pixels(tmp_path / "again" / path), pixels(tmp_path / "data/mine" / path))


@pytest.mark.parametrize(
    "arguments",
    [
        ["download", "nothing"],
        ["download", "maps", "--from_archive", "nothing.tgz"],
        ["download", "maps", "--from_archive", "page.tgz"],
        ["join", "--a", "x", "--b", "y", "--output", "z"],
        ["split", "--input", "page.tgz", "--output", "z"],
        ["check", "nothing"],
    ],
)
def test_one_line_and_exit_code_2(run: Command, tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "page.tgz").write_bytes(b"<html>")
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["page.tgz"]


@pytest.mark.parametrize(
    "arguments",
    [[], ["fetch"], ["download"], ["download", "maps", "--outptu", "x"], ["check", "x", "--skip"]],
)
def test_unknown_flags_and_commands(run: Command, tmp_path: Path, arguments: list[str]) -> None:
    code, _, err = run(*arguments)
    assert code == 2 and "usage:" in err
    assert list(tmp_path.iterdir()) == []


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
