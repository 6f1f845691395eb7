"""Unpacking: honest archives arrive whole, hostile and damaged ones leave nothing behind. All archives are real."""

import gzip
import io
import random
import shutil
import stat
import struct
import tarfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from datasets import archives
from datasets.archives import examine, most_bytes, unpack
from datasets.errors import UserError

PICTURE = b"not looked at here " * 50
Entry = tuple[str | zipfile.ZipInfo, bytes] | tarfile.TarInfo


def tar(path: Path, *entries: Entry, mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as file:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                file.addfile(entry)
            else:
                info = tarfile.TarInfo(str(entry[0]))
                info.size = len(entry[1])
                file.addfile(info, io.BytesIO(entry[1]))
    return path


def special(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, target, mode
    return info


def zipped(path: Path, *entries: Entry) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for entry in entries:
            assert isinstance(entry, tuple)
            file.writestr(*entry)
    return path


def unix_entry(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return info


MAKERS = {"tar": tar, "zip": zipped}
both_kinds = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def unpacked(archive: Path, folder: Path) -> dict[str, bytes]:
    """What a caller does: examine, then unpack into an empty folder; returns what is there then."""
    listing = examine(archive)
    folder.mkdir()
    unpack(listing, folder)
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refusal(archive: Path) -> str:
    """The reason; and nothing may appear beside the archive."""
    before = sorted(archive.parent.rglob("*"))
    with pytest.raises(UserError) as caught:
        unpacked(archive, archive.parent / "out")
    assert sorted(archive.parent.rglob("*")) == before
    assert caught.value.subject == str(archive)
    assert len(str(caught.value)) < 300
    return caught.value.reason


CONTENT = (("set/train/1.jpg", PICTURE), ("set/train/2.PNG", b""), ("set/val/1.jpg", b"\xff" * 3_000_000))
UNPACKED = {"train/1.jpg": PICTURE, "train/2.PNG": b"", "val/1.jpg": b"\xff" * 3_000_000}


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("flavour", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_honest_tars(tmp_path: Path, mode: str, flavour: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tarfile.TarFile, "format", flavour)
    folder = special("set", tarfile.DIRTYPE, mode=0o2775)
    assert unpacked(tar(tmp_path / "a", folder, *CONTENT, mode=mode), tmp_path / "out") == UNPACKED


def test_tar_with_dot_folder_and_long_names(tmp_path: Path) -> None:
    long = "x" * 180 + ".jpg"
    entries = special(".", tarfile.DIRTYPE), (f"./train/{long}", b"1"), ("./val/b.jpg", b"2")
    assert unpacked(tar(tmp_path / "a", *entries), tmp_path / "out") == {
        f"train/{long}": b"1",
        "val/b.jpg": b"2",
    }


def test_honest_zip(tmp_path: Path) -> None:
    assert unpacked(zipped(tmp_path / "a", ("set/", b""), *CONTENT), tmp_path / "out") == UNPACKED


def test_only_pictures_and_plain_text_are_kept(tmp_path: Path) -> None:
    kept = ["a/1.jpg", "a/notes.txt", "README", "b/x.tiff"]
    others = ["a/run.sh", "a/.hidden.jpg", "__MACOSX/._1.jpg", "a/Thumbs.db", "setup.py", "a.jpg.exe"]
    archive = zipped(tmp_path / "a.zip", *((name, name.encode()) for name in kept + others))
    assert set(unpacked(archive, tmp_path / "out")) == set(kept)


def test_common_folder_is_dropped_unless_it_has_a_meaning(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", ("train/1.jpg", b"1"))
    assert examine(archive).files == [PurePosixPath("1.jpg")]
    assert examine(archive, keep_tops=("train",)).files == [PurePosixPath("train/1.jpg")]


def test_permissions_are_those_of_a_new_file(tmp_path: Path) -> None:
    unpacked(tar(tmp_path / "a", special("a.jpg", mode=0o777), ("b/c.jpg", b"")), tmp_path / "out")
    (tmp_path / "plain").touch()
    assert (tmp_path / "out/a.jpg").stat().st_mode == (tmp_path / "plain").stat().st_mode


HOSTILE_NAMES = {
    "parent": (["../evil.jpg"], "leads out"),
    "deep parent": (["a/../../evil.jpg"], "leads out"),
    "absolute": (["/tmp/evil.jpg"], "absolute"),
    "twice": (["a.jpg", "a.jpg"], "twice"),
    "twice, spelt differently": (["a.jpg", "./a.jpg"], "twice"),
    "case": (["a.jpg", "A.JPG"], "case"),
    "case of a folder": (["Train/a.jpg", "train/b.jpg"], "case"),
    "composed letters": (["\u00e9.jpg", "e\u0301.jpg"], "one name"),
    "file and folder": (["a.jpg", "a.jpg/b.jpg"], "both as a file and as a folder"),
    "folder and file": (["a.jpg/b.jpg", "a.jpg"], "both as a file and as a folder"),
    "windows": (["..\\evil.jpg"], "Windows"),
    "drive": (["C:/evil.jpg"], "Windows"),
    "newline": (["a\nb.jpg"], "control"),
}


@both_kinds
@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("case", HOSTILE_NAMES)
def test_hostile_names_are_refused_before_the_first_byte(tmp_path: Path, make: Any, case: str) -> None:
    names, reason = HOSTILE_NAMES[case]
    assert reason in refusal(make(tmp_path / "a", ("good.jpg", PICTURE), *((name, b"1") for name in names)))


HOSTILE_ENTRIES: dict[str, tuple[list[Entry], str]] = {
    "symlink and file": ([special("a", tarfile.SYMTYPE, "/tmp"), ("a/evil.jpg", PICTURE)], "link"),
    "symlink to a sibling": ([special("a.jpg", tarfile.SYMTYPE, "b.jpg")], "link"),
    "hard link": ([special("a.jpg", tarfile.LNKTYPE, "/etc/passwd")], "link"),
    "pipe": ([special("a.jpg", tarfile.FIFOTYPE)], "pipe"),
    "device": ([special("a.jpg", tarfile.CHRTYPE)], "device"),
    "sparse": ([special("a.jpg", tarfile.GNUTYPE_SPARSE)], "sparse"),
    "set user id": ([special("a.jpg", mode=0o4755)], "set-user-id"),
    "set group id": ([special("a.jpg", mode=0o2755)], "set-user-id"),
    "zip: link": ([(unix_entry("link.jpg", stat.S_IFLNK | 0o777), b"/etc/passwd")], "link"),
    "zip: pipe": ([(unix_entry("pipe.jpg", stat.S_IFIFO | 0o644), b"")], "pipe"),
    "zip: set user id": ([(unix_entry("suid.jpg", stat.S_IFREG | 0o4755), b"")], "set-user-id"),
}


@pytest.mark.parametrize("case", HOSTILE_ENTRIES)
def test_hostile_entries_are_refused_before_the_first_byte(tmp_path: Path, case: str) -> None:
    entries, reason = HOSTILE_ENTRIES[case]
    make: Any = zipped if case.startswith("zip") else tar
    assert reason in refusal(make(tmp_path / "a", ("good.jpg", PICTURE), *entries))


def test_name_that_ends_at_a_zero_byte(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", ("good.jpgX.exe", b"1"))
    archive.write_bytes(archive.read_bytes().replace(b"good.jpgX", b"good.jpg\0"))
    assert "control characters" in refusal(archive)


def test_encrypted_zip(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", ("a.jpg", b"1"))
    data = bytearray(archive.read_bytes())
    data[6] |= 1  # flag of the local header
    data[data.index(b"PK\x01\x02") + 8] |= 1  # and of the table of contents
    archive.write_bytes(data)
    assert "encrypted" in refusal(archive)


@both_kinds
def test_bomb_is_refused_by_its_own_figures(tmp_path: Path, make: Any) -> None:
    """315 MB from 306 kB."""
    archive = make(tmp_path / "a", ("a.bmp", bytes(315_000_000)))
    assert archive.stat().st_size < 400_000
    assert "bomb" in refusal(archive)


def test_lying_zip_is_stopped_by_the_bytes_that_arrive(tmp_path: Path) -> None:
    """The table of contents claims 10 bytes where 40 MB are; nothing larger than allowed reaches the disk."""
    archive = zipped(tmp_path / "a.zip", ("a.bmp", bytes(40_000_000)))
    real, claimed = struct.pack("<I", 40_000_000), struct.pack("<I", 10)
    archive.write_bytes(archive.read_bytes().replace(real, claimed))
    assert examine(archive).bytes == 10
    with pytest.raises(UserError, match=r"bomb|damaged"):
        unpacked(archive, tmp_path / "out")
    assert sum(p.stat().st_size for p in (tmp_path / "out").iterdir()) <= 17 << 20


def test_bytes_are_counted_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing that allowed more than the writer does: writing stops at the limit all the same."""
    archive = tar(tmp_path / "a.tar", ("a.bmp", bytes(30 << 20)), ("b.bmp", bytes(30 << 20)))
    assert "bomb" in refusal(archive)
    with monkeypatch.context() as patch:
        patch.setattr(archives, "SLACK", 100 << 20)
        listing = examine(archive)
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="bomb"):
        unpack(listing, tmp_path / "out")
    written = sum(p.stat().st_size for p in (tmp_path / "out").iterdir())
    assert written <= most_bytes(archive) == (16 << 20) + 100 * archive.stat().st_size


@both_kinds
def test_too_many_members(tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = make(tmp_path / "a", *((f"{i}.jpg", b"") for i in range(40)))
    monkeypatch.setattr(archives, "MOST_MEMBERS", 30)
    assert "more than 30 members" in refusal(archive)
    monkeypatch.setattr(archives, "MOST_MEMBERS", 40)
    assert len(examine(archive).files) == 40


def test_a_million_members_are_refused_without_reading_their_table(tmp_path: Path) -> None:
    """A 64-bit end record as zip writers make it for more than 65535 members, behind a table of 56 MB."""
    table = 56_000_000
    wide = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 10**6, 10**6, table, 4)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, 4 + table, 1)
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    with (tmp_path / "a.zip").open("wb") as file:
        file.write(b"PK\x03\x04")
        file.seek(table, 1)
        file.write(wide + locator + end)
    assert "far too many members" in refusal(tmp_path / "a.zip")


def test_no_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = examine(zipped(tmp_path / "a.zip", ("a.jpg", bytes(5 << 20))))
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(archives, "free_space", lambda _: (64 << 20) + 1000)
    with pytest.raises(UserError, match=r"no space: need 5.0 MiB, free 0.0 MiB"):
        unpack(listing, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def member_ends(path: Path) -> list[int]:
    with tarfile.open(path) as file:
        return [entry.offset_data + -(-entry.size // 512) * 512 for entry in file]


def test_truncated_archives(tmp_path: Path) -> None:
    """Cut anywhere, also exactly between two members of a tar, which Python's reader takes for the end."""
    entries = [(f"{i}.jpg", bytes([i]) * 3000) for i in range(4)]
    plain = tar(tmp_path / "plain.tar", *entries, mode="w")
    for whole in (plain, tar(tmp_path / "a.tar.gz", *entries), zipped(tmp_path / "a.zip", *entries)):
        data = whole.read_bytes()
        cuts = member_ends(plain) if whole == plain else [len(data) - 1]
        for cut in (len(data) // 2, *cuts):
            place = tmp_path / f"{whole.name} {cut}"
            place.mkdir()
            (place / "archive").write_bytes(data[:cut])
            assert "truncated or damaged" in refusal(place / "archive"), (whole.name, cut, len(data))


def test_damaged_content_is_found_by_checksum(tmp_path: Path) -> None:
    stored = tmp_path / "a.zip"
    with zipfile.ZipFile(stored, "w") as file:
        file.writestr("a.jpg", PICTURE)
    stored.write_bytes(stored.read_bytes().replace(b"looked at", b"lookEd at", 1))
    with pytest.raises(UserError, match="damaged"):
        unpacked(stored, tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    packed = tar(tmp_path / "a.tar.gz", ("a.jpg", PICTURE)).read_bytes()
    broken = gzip.compress(gzip.decompress(packed).replace(b"looked at", b"lookEd at", 1))
    (tmp_path / "b.tar.gz").write_bytes(broken[:-8] + packed[-8:])  # the checksum of the right content
    assert "damaged" in refusal(tmp_path / "b.tar.gz")


NO_ARCHIVES = {
    "nothing": (b"", "empty"),
    "page": (b"<!DOCTYPE html><html>404", "HTML page"),
    "page behind spaces": (b"\n <html>", "HTML page"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
    "bytes": (b"\x00\x01\x02", "not a tar, tar.gz or zip"),
    "gzip of text": (gzip.compress(b"only text, no tar", mtime=0), "damaged"),
    "zip of zeros": (b"PK\x03\x04" + bytes(100), "damaged"),
}


@pytest.mark.parametrize("case", NO_ARCHIVES)
def test_not_an_archive(tmp_path: Path, case: str) -> None:
    content, reason = NO_ARCHIVES[case]
    (tmp_path / "a.zip").write_bytes(content)
    assert reason in refusal(tmp_path / "a.zip")


@pytest.mark.parametrize("size", [b"77777777777\0", b"\xff" * 10 + b"\xfe\x00"])  # 8 GB; -512 in base 256
def test_header_of_absurd_length_is_not_read(tmp_path: Path, size: bytes) -> None:
    """A pax header: Python's reader would ask for all of it at once, or go back and read it for ever."""
    header = bytearray(special("x", tarfile.XHDTYPE).tobuf())
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(bytes(header) + bytes(1024))
    assert "absurd" in refusal(tmp_path / "a.tar") or size[0] == 0xFF  # newer Pythons refuse it themselves


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_random_damage_never_escapes_as_another_exception(tmp_path: Path, kind: str) -> None:
    """100 archives with a few random bytes changed: whole, or one UserError; never a file outside."""
    rng = random.Random(0)
    content = (*CONTENT[:2], ("n.txt", b"hello"))
    archive, out = tmp_path / "a", tmp_path / "out"
    data = (zipped(archive, *content) if kind == "zip" else tar(archive, *content, mode="w")).read_bytes()
    data = {"tar": data[:4096], "tar.gz": gzip.compress(data, mtime=0), "zip": data}[kind]
    refused = 0
    for _ in range(100):
        spoiled = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            spoiled[rng.randrange(len(data))] = rng.randrange(256)
        archive.write_bytes(spoiled)
        try:
            unpacked(archive, out)
        except UserError:
            refused += 1
        shutil.rmtree(out, ignore_errors=True)
        assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert refused
