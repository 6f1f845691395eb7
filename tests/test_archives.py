"""Unpacking: honest archives arrive whole, hostile and damaged ones leave nothing behind. All archives are real."""

import gzip
import io
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest

from datasets import archives
from datasets.archives import Limits, plan, write
from datasets.errors import UserError

LIMITS = Limits()
PICTURE = b"not looked at here " * 50


def tar(path: Path, *entries: tuple[str, bytes] | tarfile.TarInfo, mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as file:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                file.addfile(entry)
            else:
                info = tarfile.TarInfo(entry[0])
                info.size = len(entry[1])
                file.addfile(info, io.BytesIO(entry[1]))
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zipped(path: Path, *entries: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in entries:
            file.writestr(name, data)
    return path


def unpack(archive: Path, folder: Path, limits: Limits = LIMITS) -> dict[str, bytes]:
    """What a caller does: plan, then write into an empty folder; returns what is there then."""
    wanted = plan(archive, limits=limits)
    folder.mkdir()
    write(wanted, folder, limits)
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(archive: Path, limits: Limits = LIMITS) -> str:
    """The reason; and nothing may appear beside the archive."""
    before = sorted(archive.parent.rglob("*"))
    with pytest.raises(UserError) as caught:
        unpack(archive, archive.parent / "out", limits)
    assert sorted(archive.parent.rglob("*")) == before
    assert caught.value.subject == str(archive)
    assert len(str(caught.value)) < 300
    return caught.value.reason


CONTENT = (("set/train/1.jpg", PICTURE), ("set/train/2.PNG", b""), ("set/val/1.jpg", b"\xff" * 3_000_000))
UNPACKED = {"train/1.jpg": PICTURE, "train/2.PNG": b"", "val/1.jpg": b"\xff" * 3_000_000}


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("flavour", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_honest_tars(tmp_path: Path, mode: str, flavour: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tarfile, "DEFAULT_FORMAT", flavour)
    monkeypatch.setattr(tarfile.TarFile, "format", flavour)
    folder = special("set", tarfile.DIRTYPE)
    folder.mode = 0o2775
    assert unpack(tar(tmp_path / "a", folder, *CONTENT, mode=mode), tmp_path / "out") == UNPACKED


def test_tar_with_dot_folder_and_long_names(tmp_path: Path) -> None:
    long = "x" * 180 + ".jpg"
    archive = tar(
        tmp_path / "a", special(".", tarfile.DIRTYPE), (f"./train/{long}", b"1"), ("./val/b.jpg", b"2")
    )
    assert unpack(archive, tmp_path / "out") == {f"train/{long}": b"1", "val/b.jpg": b"2"}


def test_honest_zip(tmp_path: Path) -> None:
    assert unpack(zipped(tmp_path / "a", ("set/", b""), *CONTENT), tmp_path / "out") == UNPACKED


def test_only_pictures_and_plain_text_are_kept(tmp_path: Path) -> None:
    kept = ["a/1.jpg", "a/notes.txt", "README", "b/x.tiff"]
    others = ["a/run.sh", "a/.hidden.jpg", "__MACOSX/._1.jpg", "a/Thumbs.db", "setup.py", "a.jpg.exe"]
    archive = zipped(tmp_path / "a.zip", *((name, name.encode()) for name in kept + others))
    wanted = plan(archive)
    assert sorted(map(str, wanted.files)) == sorted(kept)
    assert wanted.left_out == len(others)
    assert set(unpack(archive, tmp_path / "out")) == set(kept)


def test_common_folder_is_dropped_unless_it_has_a_meaning(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", ("train/1.jpg", b"1"))
    assert plan(archive).files == [PurePosixPath("1.jpg")]
    assert plan(archive, keep_tops=("train",)).files == [PurePosixPath("train/1.jpg")]


def test_permissions_are_those_of_a_new_file(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.jpg")
    info.mode, info.uid = 0o777, 0
    unpack(tar(tmp_path / "a", info, ("b/c.jpg", b"")), tmp_path / "out")
    (tmp_path / "plain").touch()
    assert (tmp_path / "out/a.jpg").stat().st_mode == (tmp_path / "plain").stat().st_mode


HOSTILE_TARS: dict[str, tuple[list, str]] = {
    "parent": ([("../evil.jpg", PICTURE)], "leads out"),
    "deep parent": ([("a/../../evil.jpg", PICTURE)], "leads out"),
    "absolute": ([("/tmp/evil.jpg", PICTURE)], "absolute"),
    "symlink and file": ([special("a", tarfile.SYMTYPE, "/tmp"), ("a/evil.jpg", PICTURE)], "link"),
    "symlink to a sibling": ([special("a.jpg", tarfile.SYMTYPE, "b.jpg")], "link"),
    "hard link": ([special("a.jpg", tarfile.LNKTYPE, "/etc/passwd")], "link"),
    "pipe": ([special("a.jpg", tarfile.FIFOTYPE)], "pipe"),
    "device": ([special("a.jpg", tarfile.CHRTYPE)], "device"),
    "twice": ([("a.jpg", b"1"), ("a.jpg", b"2")], "twice"),
    "twice, spelt differently": ([("a.jpg", b"1"), ("./a.jpg", b"2")], "twice"),
    "case": ([("a.jpg", b"1"), ("A.JPG", b"2")], "case"),
    "case of a folder": ([("Train/a.jpg", b"1"), ("train/b.jpg", b"2")], "case"),
    "composed letters": ([("\u00e9.jpg", b"1"), ("e\u0301.jpg", b"2")], "one name"),
    "file and folder": ([("a.jpg", b"1"), ("a.jpg/b.jpg", b"2")], "both as a file and as a folder"),
    "folder and file": ([("a.jpg/b.jpg", b"2"), ("a.jpg", b"1")], "both as a file and as a folder"),
    "windows": ([("..\\evil.jpg", PICTURE)], "Windows"),
    "drive": ([("C:/evil.jpg", PICTURE)], "Windows"),
    "newline": ([("a\nb.jpg", PICTURE)], "control"),
}


@pytest.mark.parametrize("case", HOSTILE_TARS)
def test_hostile_tars_are_refused_before_the_first_byte(tmp_path: Path, case: str) -> None:
    entries, reason = HOSTILE_TARS[case]
    archive = tar(tmp_path / "a.tar.gz", ("good/first.jpg", PICTURE), *entries)
    assert reason in refused(archive)


@pytest.mark.parametrize("bit", [stat.S_ISUID, stat.S_ISGID])
def test_set_user_id_file_is_refused(tmp_path: Path, bit: int) -> None:
    info = tarfile.TarInfo("a.jpg")
    info.mode = 0o755 | bit
    assert "set-user-id" in refused(tar(tmp_path / "a.tar", ("good.jpg", b""), info, mode="w"))


def unix_entry(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return info


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([("../evil.jpg", b"1")], "leads out"),
        ([("/abs.jpg", b"1")], "absolute"),
        ([(unix_entry("link.jpg", stat.S_IFLNK | 0o777), b"/etc/passwd")], "link"),
        ([(unix_entry("pipe.jpg", stat.S_IFIFO | 0o644), b"")], "pipe"),
        ([(unix_entry("suid.jpg", stat.S_IFREG | 0o4755), b"")], "set-user-id"),
        ([("same.jpg", b"1"), ("same.jpg", b"2")], "twice"),
        ([("a.png", b"1"), ("A.PNG", b"2")], "case"),
        ([("a\\..\\b.jpg", b"1")], "Windows"),
    ],
)
def test_hostile_zips_are_refused_before_the_first_byte(tmp_path: Path, entries: list, reason: str) -> None:
    assert reason in refused(zipped(tmp_path / "a.zip", ("good/first.jpg", PICTURE), *entries))


def test_name_that_ends_at_a_zero_byte(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", ("good.jpgX.exe", b"1"))
    archive.write_bytes(archive.read_bytes().replace(b"good.jpgX", b"good.jpg\0"))
    assert "control characters" in refused(archive)


def test_encrypted_zip(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", ("a.jpg", b"1"))
    data = bytearray(archive.read_bytes())
    data[6] |= 1  # flag of the local header
    data[data.index(b"PK\x01\x02") + 8] |= 1  # and of the table of contents
    archive.write_bytes(data)
    assert "encrypted" in refused(archive)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_bomb_is_refused_by_its_own_figures(tmp_path: Path, kind: str) -> None:
    """315 MB from 306 kB."""
    archive, zeros = tmp_path / "a", bytes(315_000_000)
    if kind == "zip":
        zipped(archive, ("a.bmp", zeros))
    else:
        tar(archive, ("a.bmp", zeros))
    assert archive.stat().st_size < 400_000
    assert "bomb" in refused(archive)


def test_lying_zip_is_stopped_by_the_bytes_that_arrive(tmp_path: Path) -> None:
    """The table of contents claims 10 bytes where 40 MB are; nothing larger than allowed reaches the disk."""
    archive = zipped(tmp_path / "a.zip", ("a.bmp", bytes(40_000_000)))
    real, claimed = struct.pack("<I", 40_000_000), struct.pack("<I", 10)
    archive.write_bytes(archive.read_bytes().replace(real, claimed))
    wanted = plan(archive)
    assert wanted.bytes == 10
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"bomb|damaged"):
        write(wanted, tmp_path / "out")
    assert sum(p.stat().st_size for p in (tmp_path / "out").iterdir()) <= 17 << 20


def test_bytes_are_counted_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan that believed in less than what comes: writing stops at the limit all the same."""
    archive = tar(tmp_path / "a.tar", ("a.bmp", bytes(30 << 20)), ("b.bmp", bytes(30 << 20)))
    with pytest.raises(UserError, match="bomb"):
        plan(archive)
    wanted = plan(archive, limits=Limits(slack=100 << 20))
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="bomb"):
        write(wanted, tmp_path / "out", Limits(slack=16 << 20))
    size = archive.stat().st_size
    assert sum(p.stat().st_size for p in (tmp_path / "out").iterdir()) <= (16 << 20) + 100 * size


def test_too_many_members(tmp_path: Path) -> None:
    names = [(f"{i}.jpg", b"") for i in range(40)]
    for archive in (tar(tmp_path / "a.tar.gz", *names), zipped(tmp_path / "a.zip", *names)):
        assert "more than 30 members" in refused(archive, Limits(entries=30))
        assert len(plan(archive, limits=Limits(entries=40)).files) == 40


def test_a_million_members_are_refused_without_reading_their_table(tmp_path: Path) -> None:
    """A 64-bit end record as zip writers make it for more than 65535 members, before an empty table."""
    wide = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 10**6, 10**6, 56_000_000, 4)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, 4, 1)
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04" + wide + locator + end)
    assert "more than 300000 members" in refused(tmp_path / "a.zip")


def test_no_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = zipped(tmp_path / "a.zip", ("a.jpg", bytes(5 << 20)))
    wanted = plan(archive)
    (tmp_path / "out").mkdir()
    usage = (0, 0, (64 << 20) + 1000)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: type("Usage", (), {"free": usage[2]}))
    with pytest.raises(UserError, match="no space: need 5 MiB, free 0"):
        write(wanted, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def member_ends(path: Path) -> list[int]:
    with tarfile.open(path) as file:
        return [entry.offset_data + -(-entry.size // 512) * 512 for entry in file]


def test_truncated_archives(tmp_path: Path) -> None:
    """Cut anywhere, also exactly between two members of a tar, which Python's reader takes for the end."""
    entries = [(f"{i}.jpg", bytes([i]) * 3000) for i in range(4)]
    plain = tar(tmp_path / "plain.tar", *entries, mode="w")
    makers: list[tuple[Path, list[int]]] = [(plain, member_ends(plain))]
    makers.append((tar(tmp_path / "a.tar.gz", *entries), []))
    makers.append((zipped(tmp_path / "a.zip", *entries), []))
    for whole, places in makers:
        data = whole.read_bytes()
        for cut in {*places, len(data) // 2, *([len(data) - 1] if whole != plain else [])}:
            place = tmp_path / "cut"
            place.mkdir()
            (place / "archive").write_bytes(data[:cut])
            assert "truncated or damaged" in refused(place / "archive"), (whole.name, cut, len(data))
            (place / "archive").unlink()
            place.rmdir()


def test_damaged_content_is_found_by_checksum(tmp_path: Path) -> None:
    stored = zipfile.ZipFile(tmp_path / "a.zip", "w")
    with stored:
        stored.writestr("a.jpg", PICTURE)
    data = stored_bytes = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(data.replace(b"looked at", b"lookEd at", 1))
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="damaged"):
        write(plan(tmp_path / "a.zip"), tmp_path / "out")
    packed = tar(tmp_path / "a.tar.gz", ("a.jpg", PICTURE)).read_bytes()
    broken = gzip.compress(gzip.decompress(packed).replace(b"looked at", b"lookEd at", 1))
    (tmp_path / "b.tar.gz").write_bytes(broken[:-8] + packed[-8:])  # the checksum of the right content
    assert "damaged" in refused(tmp_path / "b.tar.gz")
    assert stored_bytes == data


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>404", "HTML page"),
        (b"\n <html>", "HTML page"),
        (b"version https://git-lfs.github.com/spec/v1", "not a tar, tar.gz or zip"),
        (gzip.compress(b"only text, no tar"), "damaged"),
        (b"PK\x03\x04" + bytes(100), "damaged"),
    ],
)
def test_not_an_archive(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    assert reason in refused(tmp_path / "a.zip")


def test_header_that_claims_gigabytes_is_not_read(tmp_path: Path) -> None:
    """A pax header of 8 GB: Python's reader would ask for all of it at once."""
    header = bytearray(special("x", tarfile.XHDTYPE).tobuf())
    header[124:136] = b"77777777777\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(bytes(header) + bytes(1024))
    assert "absurd" in refused(tmp_path / "a.tar")


def test_random_damage_never_escapes_as_another_exception(tmp_path: Path) -> None:
    """300 archives with a few random bytes changed: whole, or one UserError; never a file outside."""
    import random

    rng = random.Random(0)
    makers: list[Callable[[], Path]] = [
        lambda: tar(tmp_path / "a", *CONTENT[:2], ("n.txt", b"hello"), mode="w"),
        lambda: tar(tmp_path / "a", *CONTENT[:2], ("n.txt", b"hello")),
        lambda: zipped(tmp_path / "a", *CONTENT[:2], ("n.txt", b"hello")),
    ]
    outcomes = set()
    for maker in makers:
        data = maker().read_bytes()
        data = data[:4096] if data[257:262] == b"ustar" else data
        for _ in range(100):
            spoiled = bytearray(data)
            for _ in range(rng.randint(1, 4)):
                spoiled[rng.randrange(len(data))] = rng.randrange(256)
            (tmp_path / "a").write_bytes(spoiled)
            out = tmp_path / "out"
            out.mkdir()
            try:
                write(plan(tmp_path / "a"), out)
                outcomes.add("ok")
            except UserError:
                outcomes.add("refused")
            for path in sorted(out.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            out.rmdir()
            assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert outcomes >= {"refused"}
