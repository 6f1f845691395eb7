"""Files that are given as checkpoints and are something else: cut, changed, hostile, or not a checkpoint at all."""

import io
import os
import pickle
import random
import resource
import struct
import subprocess
import sys
import tarfile
import textwrap
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

from datasets.errors import UserError
from gan.checkpoint import load_file, save_checkpoint

ROOT = Path(__file__).resolve().parents[1]
STATE = {"w": torch.arange(100.0), "b": torch.arange(100, 200.0), "n": [1, "text", None]}


def saved(folder: Path) -> Path:
    return save_checkpoint(folder, STATE, step=1, epoch=0, keep=1)


def refusal(path: Path) -> str:
    """The one line, which must never carry torch's advice."""
    with pytest.raises(UserError) as caught:
        load_file(path)
    line = f"error: {caught.value}"
    assert len(line) <= 300
    assert "weights_only" not in line
    assert "safe_globals" not in line
    assert caught.value.__cause__ is None  # nor in the traceback of run.log
    assert caught.value.exit_code == 2
    return line


# --- cut or changed ---


@pytest.mark.parametrize("where", [0, 1, 3, 100, 0.5, -1])
def test_a_cut_file_is_counted(tmp_path: Path, where: float) -> None:
    path = saved(tmp_path)
    data = path.read_bytes()
    size = int(len(data) * where) if 0 < where < 1 else int(where) if where >= 0 else len(data) + int(where)
    path.write_bytes(data[:size])
    assert f"incomplete: {size} of {len(data)} bytes" in refusal(path)
    Path(f"{path}.sha256").unlink()
    assert "is empty (0 bytes)" if size == 0 else "not a complete checkpoint" in refusal(path)


def test_each_of_1000_flipped_bits_is_found(tmp_path: Path) -> None:
    path = saved(tmp_path)
    data = path.read_bytes()
    rng = random.Random(0)
    for _ in range(1000):
        flipped = bytearray(data)
        place = rng.randrange(len(data) * 8)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(UserError, match="checksum mismatch"):
            load_file(path)


def test_without_a_sidecar_a_flipped_bit_never_changes_a_value(tmp_path: Path) -> None:
    path = saved(tmp_path)
    data = path.read_bytes()
    Path(f"{path}.sha256").unlink()
    rng = random.Random(1)
    found = 0
    for _ in range(1000):
        flipped = bytearray(data)
        place = rng.randrange(len(data) * 8)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            state = load_file(path)
        except UserError:
            found += 1
            continue
        assert torch.equal(state["w"], STATE["w"])
        assert torch.equal(state["b"], STATE["b"])
        assert state["n"] == STATE["n"]
    assert found > 400  # the others hit padding, dates and the like


def test_a_record_marked_as_a_folder_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    Path(f"{path}.sha256").unlink()
    data = bytearray(path.read_bytes())
    data[data.rindex(b"archive/data/0") - 46 + 38] |= 0x10  # torch itself then gives uninitialised memory
    path.write_bytes(data)
    assert "unusual record archive/data/0" in refusal(path)


def test_1000_mutilated_files_never_give_other_values(tmp_path: Path) -> None:
    data = saved(tmp_path).read_bytes()
    path = tmp_path / "mutant.pt"
    rng = random.Random(2)
    for _ in range(1000):
        mutant = bytearray(data)
        for _ in range(rng.randrange(1, 20)):
            start = rng.randrange(len(mutant))
            match rng.randrange(3):
                case 0:
                    mutant[start] = rng.randrange(256)
                case 1:
                    del mutant[start : start + rng.randrange(1, 50)]
                case 2:
                    mutant[start:start] = rng.randbytes(rng.randrange(1, 50))
        path.write_bytes(mutant)
        try:
            state = load_file(path)
        except UserError as error:
            assert "weights_only" not in str(error)
            continue
        assert torch.equal(state["w"], STATE["w"])  # only padding was hit
        assert torch.equal(state["b"], STATE["b"])
        assert state["n"] == STATE["n"]


# --- hostile ---


class Call:
    """Unpickles as a call."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


def with_pickle(path: Path, data: bytes, records: dict[str, bytes] | None = None, method: int = 0) -> Path:
    """A checkpoint's zip around any pickle."""
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", b"little")
        archive.writestr("archive/version", b"3\n")
        for name, content in (records or {}).items():
            archive.writestr(f"archive/{name}", content)
    return path


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    data = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def tensor_pickle(
    elements: int, size: tuple[int, ...], stride: tuple[int, ...], storage: bytes = b"ctorch\nFloatStorage\n"
) -> bytes:
    """{"w": a tensor over storage 0}, written by hand (protocol 2)."""
    identity = b"(" + text("storage") + storage + text("0") + text("cpu") + number(elements) + b"tQ"
    shape = b"(" + b"".join(map(number, size)) + b"t" + b"(" + b"".join(map(number, stride)) + b"t"
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + identity + number(0) + shape
    return b"\x80\x02}" + text("w") + call + b"\x89ccollections\nOrderedDict\n)RtRs."


FOUR = {"data/0": b"1234"}
BYTEARRAY = b"\x80\x02}" + text("w") + b"cbuiltins\nbytearray\n" + number(10**10) + b"\x85Rs."


def test_the_hand_written_pickle_is_a_checkpoint(tmp_path: Path) -> None:
    data = struct.pack("<6f", *range(6))
    path = with_pickle(tmp_path / "a.pt", tensor_pickle(6, (2, 3), (3, 1)), {"data/0": data})
    assert torch.equal(load_file(path)["w"], torch.arange(6.0).reshape(2, 3))


def hostile_files(folder: Path, marker: Path) -> dict[str, Path]:
    """Files that would create `marker`, by way of the reader that trusts them."""
    system = Call(os.system, f"touch {marker}")
    evaluate = Call(eval, f"open({str(marker)!r}, 'w')")
    hub = Call(torch.hub.load, str(folder), "entry", "source=local")
    files = {}
    for name, thing in {"system": system, "eval": evaluate, "hub": hub}.items():
        files[name] = folder / f"{name}.pt"
        torch.save({"w": torch.zeros(2), "x": thing}, files[name])
        files[f"legacy-{name}"] = folder / f"legacy-{name}.pt"
        torch.save({"x": thing}, files[f"legacy-{name}"], _use_new_zipfile_serialization=False)
    files["raw"] = folder / "raw.pt"
    files["raw"].write_bytes(pickle.dumps({"x": system}))
    files["raw-text"] = folder / "raw-text.pt"
    files["raw-text"].write_bytes(pickle.dumps({"x": system}, protocol=0))
    files["tar"] = folder / "tar.pt"
    with tarfile.open(files["tar"], "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            data = pickle.dumps(system)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    evil = b"cos\nsystem\n"
    nested = tensor_pickle(2, (2,), (1,), evil + b"(" + text(f"touch {marker}") + b"tR")
    files["nested-storage"] = with_pickle(folder / "nested.pt", nested, {"data/0": bytes(8)})
    inside = b"\x80\x02}" + text("w") + b"(" + text("storage") + pickle.dumps(system, 2)[2:-1] + b"tQs."
    files["inside-identity"] = with_pickle(folder / "inside.pt", inside)
    state = b"\x80\x02ccollections\nOrderedDict\n)R}" + text("items") + pickle.dumps(system, 2)[2:-1] + b"sb."
    files["build"] = with_pickle(folder / "build.pt", state)
    files["torchscript"] = folder / "script.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(files["torchscript"]))
    return files


def test_hostile_files_are_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "hubconf.py").write_text(f"open({str(marker)!r}, 'w')\n")
    files = hostile_files(tmp_path, marker)
    assert len(files) == 13
    for name, path in files.items():
        assert "not a plain-tensor checkpoint, refused" in refusal(path), name
        assert not marker.exists(), name
    with files["raw"].open("rb") as file:  # the trap itself works: an unguarded reader would have run it
        pickle.Unpickler(file).load()
    assert marker.exists()


@pytest.mark.parametrize(
    ("data", "records", "said"),
    [
        (
            tensor_pickle(10**12, (10**12,), (1,)),
            FOUR,
            "storage 0 declares 1000000000000 elements and holds 4 bytes",
        ),
        (tensor_pickle(2, (1,), (1,)), FOUR, "storage 0 declares 2 elements"),
        (tensor_pickle(1, (10**12,), (0,)), FOUR, "a tensor of 1000000000000 elements in a storage of 1"),
        (tensor_pickle(1, (2,), (1,)), FOUR, "a tensor of 2 elements in a storage of 1"),
        (tensor_pickle(2, (2,), (2,)), {"data/0": bytes(8)}, "a tensor of 2 elements in a storage of 2"),
        (tensor_pickle(1, (2**20,) * 64, (0,) * 64), FOUR, ""),
        (tensor_pickle(1, (1,) * 65, (1,) * 65), FOUR, "impossible tensor"),
        (tensor_pickle(1, (-1,), (1,)), FOUR, "impossible tensor"),
        (tensor_pickle(1, (1,), (-1,)), FOUR, "impossible tensor"),
        (BYTEARRAY, {}, "names builtins.bytearray"),
        (b"\x80\x02}" + text("w") + b"ctorch._utils\n_rebuild_tensor_v2\n)Rs.", {}, "broken pickle"),
        (b"\x80\x02" + b"]" * 1_000_001 + b".", {}, "more than 1000000 values"),
        (b"\x80\x02]r\xff\xff\xff\x7f.", {}, "not a dictionary"),  # put at place 2**31 - 1 of the memo
        (b"\x80\x02K\x01.", {}, "not a dictionary"),
        (b"\x80\x02}", {}, "broken pickle"),
        (b"", {}, "broken pickle"),
        (b"\x80\x02tQ.", {}, "broken pickle"),
        (b"\x80\x02}h\x05s.", {}, "broken pickle"),
        (b"\x80\x02}.", {"code/model.py": b"print()"}, "unexpected record"),
    ],
)
def test_what_declares_too_much_or_makes_no_sense_is_refused(
    tmp_path: Path, data: bytes, records: dict[str, bytes], said: str
) -> None:
    line = refusal(with_pickle(tmp_path / "a.pt", data, records))
    assert f"not a plain-tensor checkpoint, refused: {said}" in line


def test_overlapping_records_are_refused(tmp_path: Path) -> None:
    path = with_pickle(tmp_path / "a.pt", b"\x80\x02}.", {"data/0": bytes(4000), "data/1": b""})
    data = bytearray(path.read_bytes())
    first, second = (data.rindex(name) - 46 for name in (b"archive/data/0", b"archive/data/1"))
    data[second + 16 : second + 28] = data[first + 16 : first + 28]  # CRC and sizes
    data[second + 42 : second + 46] = data[first + 42 : first + 46]  # place in the file
    path.write_bytes(data)
    assert "records larger than the file" in refusal(path)


def test_a_second_directory_after_the_end_is_refused(tmp_path: Path) -> None:
    path = with_pickle(tmp_path / "a.pt", b"\x80\x02}.")
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"a place to hide another directory"
    assert "something after its end" in refusal(path)


def test_bombs_need_no_memory(tmp_path: Path) -> None:
    bombs = [tmp_path / f"{name}.pt" for name in ("declared", "bytearray", "list", "deflated")]
    with_pickle(bombs[0], tensor_pickle(10**12, (10**12,), (1,)), FOUR)
    with_pickle(bombs[1], BYTEARRAY)
    with_pickle(bombs[2], b"\x80\x02]" + b"(" + b"]" * 10_000_000 + b"e.")
    with_pickle(
        bombs[3], tensor_pickle(2**26, (2**26,), (1,)), {"data/0": bytes(2**28)}, zipfile.ZIP_DEFLATED
    )
    assert [
        bomb.stat().st_size < limit for bomb, limit in zip(bombs, (1500, 1500, 2**24, 300_000), strict=True)
    ]
    script = """
        import resource, sys
        from pathlib import Path
        from datasets.errors import UserError
        from gan.checkpoint import load_file
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for path in sys.argv[1:]:
            try:
                load_file(Path(path))
            except UserError as error:
                print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, bombs)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) == len(bombs)
    found = ("declares 1000000000000", "names builtins.bytearray", "more than 1000000", "compressed record")
    for line, bomb, said in zip(lines, bombs, found, strict=True):
        used, _, refused = line.partition(" ")
        assert f"not a plain-tensor checkpoint, refused: {said}" in refused.replace("storage 0 ", "")
        assert int(used) * 1024 < 1.5 * bomb.stat().st_size + 200e6


# --- something else ---


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html><html><body>404</body></html>", "looks like an HTML page"),
        (b"\n  <html><head>", "looks like an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git-lfs pointer"),
        (b"hello\n" * 100, "a text file"),
        (b"", "is empty (0 bytes)"),
        (bytes(range(256)) * 8, "not a plain-tensor checkpoint, refused"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "not a plain-tensor checkpoint, refused"),
    ],
)
def test_other_files_are_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "ckpt-00000001.pt"
    path.write_bytes(content)
    assert said in refusal(path)


def test_places_that_are_no_file(tmp_path: Path) -> None:
    assert "is a folder" in refusal(tmp_path)
    assert "no such file" in refusal(tmp_path / "missing.pt")
    os.mkfifo(tmp_path / "fifo.pt")
    assert "is not an ordinary file" in refusal(tmp_path / "fifo.pt")
    (tmp_path / "empty.zip").write_bytes(b"PK\x05\x06" + bytes(18))
    assert "refused" in refusal(tmp_path / "empty.zip")


def test_an_ordinary_zip_of_pictures_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/1.png", b"x")
    assert "not a plain-tensor checkpoint, refused" in refusal(path)


def test_a_file_from_a_gpu_loads_on_the_cpu(tmp_path: Path) -> None:
    data = tensor_pickle(6, (2, 3), (3, 1)).replace(text("cpu"), text("cuda:3"))
    path = with_pickle(tmp_path / "a.pt", data, {"data/0": struct.pack("<6f", *range(6))})
    assert load_file(path)["w"].device.type == "cpu"


def test_a_plain_state_dict_of_other_programs_loads(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    torch.save(network.state_dict(), tmp_path / "latest_net_G.pth")
    loaded = load_file(tmp_path / "latest_net_G.pth")
    assert loaded.keys() == network.state_dict().keys()
    assert type(loaded) is dict


def test_an_unreadable_file(tmp_path: Path) -> None:
    path = saved(tmp_path)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user (root) reads every file")
    with pytest.raises(UserError, match="cannot be read"):
        load_file(path)


def test_memory_used_by_loading_is_about_the_file(tmp_path: Path) -> None:
    big = {"w": torch.zeros(2**25)}  # 128 MiB
    path = save_checkpoint(tmp_path, big, step=1, epoch=0, keep=1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    load_file(path)
    used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert used < 1.5 * path.stat().st_size + 200e6
