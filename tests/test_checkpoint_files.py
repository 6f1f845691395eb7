"""Files that are given as checkpoints and are something else: cut, changed, hostile, or not a checkpoint at all."""

import hashlib
import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import tarfile
import textwrap
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_support import write_first_format

from datasets.errors import UserError
from gan.checkpoint import load_checkpoint, load_file, save_checkpoint
from gan.zip_pickle import STORAGES

ROOT = Path(__file__).resolve().parents[1]
STATE: dict[str, Any] = {
    "w": torch.arange(100.0), "b": torch.arange(100, 200.0).to(torch.float16), "n": [1, "text", None, (2.5,)],
}  # fmt: skip


def saved(folder: Path, form: str) -> Path:
    if form == "pt":
        return write_first_format(folder, STATE, step=1, epoch=0)
    return save_checkpoint(folder, STATE, step=1, epoch=0, keep=1)


def refusal(path: Path) -> str:
    """The one line, which must never carry torch's advice."""
    with pytest.raises(UserError) as caught:
        load_file(path)
    line = f"error: {caught.value}"
    assert len(line) <= 300 and line.isprintable()
    assert "weights_only" not in line and "safe_globals" not in line
    assert caught.value.__cause__ is None  # nor in the traceback of run.log
    assert caught.value.exit_code == 2
    return line


def is_state(state: dict[str, Any]) -> bool:
    return all(torch.equal(state[key], STATE[key]) for key in "wb") and state["n"] == STATE["n"]


# --- cut or changed


@pytest.mark.parametrize("form", ["safetensors", "pt"])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, form: str) -> None:
    path = saved(tmp_path, form)
    data = path.read_bytes()
    path.with_name(f"{path.name}.sha256").unlink(missing_ok=True)
    for size in range(len(data)):
        path.write_bytes(data[:size])
        line = refusal(path)
        if form == "safetensors" and size > 8:
            assert f"incomplete: {size} of " in line
    path.write_bytes(data)
    assert is_state(load_file(path))


@pytest.mark.parametrize("form", ["safetensors", "pt"])
def test_each_flipped_bit_is_found(tmp_path: Path, form: str) -> None:
    path = saved(tmp_path, form)
    data = path.read_bytes()
    for place in random.Random(0).sample(range(len(data) * 8), 1000):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        line = refusal(path)
        if (form == "pt" and place > 16) or place // 8 > len(data) - 600:  # in the data, not in the header
            assert "checksum mismatch" in line


@pytest.mark.parametrize("form", ["safetensors", "pt"])
def test_1000_mutilated_files_never_give_other_values(tmp_path: Path, form: str) -> None:
    """Without a sidecar: a mutant is refused, or only padding was hit."""
    data = saved(tmp_path, form).read_bytes()
    path = tmp_path / f"mutant.{form}"
    rng, refused = random.Random(2), 0
    for _ in range(1000):
        mutant = bytearray(data)
        for _ in range(rng.randrange(1, 20)):
            start, length = rng.randrange(len(mutant)), rng.randrange(1, 50)
            match rng.randrange(3):
                case 0:
                    mutant[start] ^= 1 << rng.randrange(8)
                case 1:
                    del mutant[start : start + length]
                case 2:
                    mutant[start:start] = rng.randbytes(length)
        path.write_bytes(mutant)
        try:
            assert is_state(load_file(path))
        except UserError:
            refused += 1
    assert refused > 900


def test_memory_used_by_loading_and_saving_is_about_the_file(tmp_path: Path) -> None:
    script = """
        state = {"w": [torch.ones(2**20) for _ in range(64)]}  # 256 MiB
        load_file(save_checkpoint(Path(sys.argv[1]), {}, step=1, epoch=0, keep=1))
        before = peak()
        path = save_checkpoint(Path(sys.argv[1]), state, step=1, epoch=0, keep=1)
        print(peak() - before)
        torch.save(state, "old.pt")
        del state
        for file in (path, Path("old.pt")):
            load_file(file)
            print(peak() - before)
    """
    saving, loading, loading_old = map(int, run_python(script, tmp_path, cwd=tmp_path).splitlines())
    assert saving < 40_000  # KiB: one tensor at a time, where the library's own writer takes twice the file
    assert loading < 100_000  # what the state took before
    assert loading_old < 100_000


def run_python(script: str, *arguments: object, cwd: Path = ROOT) -> str:
    start = """
        import os, resource, sys, time, torch
        from pathlib import Path
        from datasets.errors import UserError
        from gan.checkpoint import load_file, save_checkpoint
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    """
    code = textwrap.dedent(start) + textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=cwd, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout


# --- hostile: safetensors


def with_header(path: Path, header: bytes, data: bytes = b"") -> Path:
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def with_state(path: Path, state: str, w: torch.Tensor | None = None, **values: str) -> Path:
    """A file of format 2, written out by hand, with at most one tensor. Its SHA-256 is right, whatever the state is."""
    shapes = {} if w is None else {"w": list(w.shape)}
    data = b"" if w is None else w.numpy().tobytes()
    metadata = {"format": "2", "version": "2.0", "step": "1", "epoch": "0", "state": state} | values
    described = [metadata, [[name, "F32", shape] for name, shape in shapes.items()]]
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode() + data).hexdigest()
    header = {"__metadata__": metadata | {"sha256": digest}} | {
        name: {"dtype": "F32", "shape": shape, "data_offsets": [0, len(data)]}
        for name, shape in shapes.items()
    }
    return with_header(path, json.dumps(header).encode(), data)


ONE = torch.arange(6, dtype=torch.int32).view(torch.float32).reshape(2, 3)  # bytes that are a text too


@pytest.mark.parametrize(
    "state",
    [
        "",
        "[1, {}]",
        "[" * 500_000,
        "[" * 500_000 + "]" * 500_000,
        "[" + "9" * 5000 + ", {}]",
        "NaN",
        '[{"dict": [["a", {"tensor": "v"}]]}, {}]',
        '[{"dict": [["a", {"text": "v"}]]}, {}]',
        '[{"dict": [["a", {"text": "w"}], ["b", {"text": "w"}]]}, {}]',  # texts could grow by being named often
        '[{"dict": [["a"]]}, {}]',
        '[{"dict": [[[], 1]]}, {}]',
        '[{"dict": [[{}, 1]]}, {}]',
        '[{"dict": 3}, {}]',
        '[{"float": "x"}, {}]',
        '[{"tuple": null}, {}]',
        '[{"call": "os.system"}, {}]',
        '[{"dict": [], "tuple": []}, {}]',
        '[{"dict": []}, {"w": [1000000000000, 1]}]',
        '[{"dict": []}, {"w": [0, 0]}]',
        '[{"dict": []}, {"w": [-3, 1]}]',
        '[{"dict": []}, {"w": ["x", 1]}]',
        '[{"dict": []}, {"w": 7}]',
        '[{"dict": []}, {"v": [3, 1]}]',
    ],
    ids=range(23),
)
def test_a_state_that_makes_no_sense_is_refused(tmp_path: Path, state: str) -> None:
    assert "not a plain-tensor checkpoint, refused" in refusal(
        with_state(tmp_path / "a.safetensors", state, ONE)
    )


def test_the_hand_written_state_is_a_checkpoint(tmp_path: Path) -> None:
    state = '[{"dict": [["a", {"tensor": "w"}], [7, {"tuple": [{"float": "inf"}]}]]}, {"w": [1, 2]}]'
    loaded = load_file(with_state(tmp_path / "a.safetensors", state, ONE))
    assert torch.equal(loaded["a"], ONE) and loaded["a"].stride() == (1, 2)
    assert loaded[7] == (float("inf"),)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"format": "3", "version": "2.1"}, "made by 2.1, this is 2.0 (update this program)"),
        ({"format": "x"}, "damaged: its header makes no sense"),
        ({"format": "9" * 5000}, "damaged: its header makes no sense"),
        ({"epoch": "x"}, "damaged: its header makes no sense"),
    ],
    ids=["newer", "format", "digits", "epoch"],
)
def test_other_versions(tmp_path: Path, values: dict[str, str], said: str) -> None:
    assert said in refusal(with_state(tmp_path / "a.safetensors", '[{"dict": []}, {}]', **values))


def entry(end: int, shape: list[int], begin: int = 0) -> str:
    return json.dumps({"dtype": "F32", "shape": shape, "data_offsets": [begin, end]})


META = json.dumps(
    dict.fromkeys(("version", "sha256", "state"), "") | {"format": "2", "step": "1", "epoch": "0"}
)


@pytest.mark.parametrize(
    ("header", "data", "said"),
    [
        ("{", b"", "damaged"),
        ("{}", b"", "a safetensors file of another program"),
        (f'{{"w": {entry(4, [1])}}}', b"1234", "a safetensors file of another program"),
        ('{"__metadata__": 3}', b"", "damaged"),
        ('{"__metadata__": {"format": 2}}', b"", "another program"),
        (f'{{"__metadata__": {META}, "w": 3}}', b"", "damaged"),
        (f'{{"__metadata__": {META}, "w": {entry(4 * 10**12, [10**12])}}}', b"1234", "incomplete: "),
        (f'{{"__metadata__": {META}, "w": {entry(4, [10**12])}}}', b"1234", "damaged"),
        (f'{{"__metadata__": {META}, "w": {entry(4, [2**62, 2**62])}}}', b"1234", "damaged"),
        (f'{{"__metadata__": {META}, "w": {entry(8, [1], 4)}}}', b"12345678", "damaged"),
        (f'{{"__metadata__": {META}, "w": {entry(4, [1])}, "v": {entry(4, [1])}}}', b"1234", "damaged"),
        (f'{{"__metadata__": {META}, "w": {entry(4, [1])}}}', b"12345", "wrong size"),
        (f'{{"__metadata__": {META}, "w": {"[" * 100_000}', b"", "damaged"),
        ("{" + " " * 2_200_000, b"", "a header of 2200001 bytes in a file of"),
    ],
    ids=range(14),
)
def test_a_header_that_declares_what_is_not_there(
    tmp_path: Path, header: str, data: bytes, said: str
) -> None:
    assert said in refusal(with_header(tmp_path / "a.safetensors", header.encode(), data))


# --- hostile: zip files of a pickle


class Call:
    """Unpickles as a call."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


def with_pickle(path: Path, data: bytes, records: dict[str, bytes] | None = None, method: int = 0) -> Path:
    """A checkpoint's zip around any pickle."""
    content = {"data.pkl": data, "byteorder": b"little", "version": b"3\n"} | (records or {})
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, record in content.items():
            archive.writestr(f"archive/{name}", record)
    return path


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    data = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


FLOATS, ORDERED = b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n)R"


def identity(elements: int, kind: bytes = FLOATS, key: bytes = text("0")) -> bytes:
    return b"(" + text("storage") + kind + key + text("cpu") + number(elements) + b"tQ"


def tensor(storage: bytes, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    shape = b"(" + b"".join(map(number, size)) + b"t(" + b"".join(map(number, stride)) + b"t"
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + shape
    return call + b"\x89" + ORDERED + b"tR"


def one(elements: int, size: tuple[int, ...], stride: tuple[int, ...], **named: Any) -> bytes:
    """{"w": a tensor over storage 0}, written by hand (protocol 2)."""
    return b"\x80\x02}" + text("w") + tensor(identity(elements), size, stride, **named) + b"s."


FOUR = {"data/0": b"1234"}
BYTEARRAY = b"\x80\x02}" + text("w") + b"cbuiltins\nbytearray\n" + number(10**10) + b"\x85Rs."
# a list in a list in a list ..., each twice: 2 ** 40 values once it is walked through
ALIASES = b"\x80\x02}" + text("a") + b"((K\x01tq\x00" + b"".join(
    b"(h%ch%ctq%c" % (n, n, n + 1) for n in range(40)
) + b"ts."  # fmt: skip
# the same in tuples, which can be keys: to hash or to print it takes 2 ** 40 steps
DOUBLED = b")" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(40))
INSIDE_ITSELF = b"\x80\x02}" + text("a") + b"]q\x00h\x00as."
MANY_VIEWS = b"\x80\x02}(" + b"".join(
    text(f"{n}") + tensor(identity(2**18), (2**18,), (1,)) for n in range(1000)
) + b"u."  # fmt: skip


def test_the_hand_written_pickle_is_a_checkpoint(tmp_path: Path) -> None:
    data = struct.pack("<6f", *range(6))
    path = with_pickle(tmp_path / "a.pt", one(6, (2, 3), (3, 1)), {"data/0": data})
    assert torch.equal(load_file(path)["w"], torch.arange(6.0).reshape(2, 3))
    gpu = one(6, (2, 3), (3, 1)).replace(text("cpu"), text("cuda:3"))
    assert load_file(with_pickle(tmp_path / "b.pt", gpu, {"data/0": data}))["w"].device.type == "cpu"


def hostile_files(folder: Path, marker: Path) -> dict[str, Path]:
    """Files that would create `marker`, by way of the reader that trusts them."""
    system = Call(os.system, f"touch {marker}")
    names = "system hub legacy raw raw-text tar nested-storage inside-identity build getattr torchscript"
    files = {name: folder / f"{name}.pt" for name in names.split()}
    torch.save({"w": torch.zeros(2), "x": system}, files["system"])
    torch.save({"x": Call(torch.hub.load, str(folder), "entry", "source=local")}, files["hub"])
    torch.save({"x": system}, files["legacy"], _use_new_zipfile_serialization=False)
    files["raw"].write_bytes(pickle.dumps({"x": system}))
    files["raw-text"].write_bytes(pickle.dumps({"x": system}, protocol=0))
    with tarfile.open(files["tar"], "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            data = pickle.dumps(system)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    call = b"cos\nsystem\n(" + text(f"touch {marker}") + b"tR"
    body = pickle.dumps(system, 2)[2:-1]
    pickles = {
        "nested-storage": b"\x80\x02}" + text("w") + tensor(identity(2, call), (2,), (1,)) + b"s.",
        "inside-identity": b"\x80\x02}" + text("w") + b"(" + text("storage") + body + b"tQs.",
        "build": b"\x80\x02" + ORDERED + b"}" + text("items") + body + b"sb.",
        "getattr": b"\x80\x02}" + text("x") + b"cbuiltins\ngetattr\n" + call + text("x") + b"\x86Rs.",
    }
    for name, data in pickles.items():
        with_pickle(files[name], data, {"data/0": bytes(8)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(files["torchscript"]))
    return files


def test_hostile_files_are_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "hubconf.py").write_text(f"open({str(marker)!r}, 'w')\n")
    files = hostile_files(tmp_path, marker)
    for name, path in files.items():
        assert "not a plain-tensor checkpoint" in refusal(path), name
        assert "not a plain-tensor checkpoint" in refusal(path.rename(path.with_suffix(".safetensors"))), name
        assert not marker.exists(), name
    with files["raw"].with_suffix(".safetensors").open("rb") as file:
        pickle.Unpickler(file).load()  # the trap works: an unguarded reader runs it
    assert marker.exists()


@pytest.mark.parametrize(
    ("data", "records", "said"),
    [
        (one(10**12, (10**12,), (1,)), FOUR, "storage 0 declares 1000000000000 elements and holds 4 bytes"),
        (one(2, (1,), (1,)), FOUR, "storage 0 declares 2 elements"),
        (one(1, (10**12,), (0,)), FOUR, "a tensor of 1000000000000 elements in a storage of 1"),
        (one(1, (2,), (1,)), FOUR, "a tensor of 2 elements in a storage of 1"),
        (one(2, (2,), (2,)), {"data/0": bytes(8)}, "a tensor of 2 elements in a storage of 2"),
        (one(2, (1,), (1,), offset=2), {"data/0": bytes(8)}, "a tensor of 1 elements in a storage of 2"),
        (one(1, (2**20,) * 64, (0,) * 64), FOUR, ""),
        (one(1, (1,) * 65, (1,) * 65), FOUR, "impossible tensor"),
        (one(1, (-1,), (1,)), FOUR, "impossible tensor"),
        (one(1, (1,), (-1,)), FOUR, "impossible tensor"),
        (one(1, (1,), ()), FOUR, ""),
        (BYTEARRAY, {}, "names builtins.bytearray"),
        (ALIASES, {}, "more than 1000000 values"),
        (INSIDE_ITSELF, {}, "more than 1000000 values"),
        (MANY_VIEWS, {"data/0": bytes(2**20)}, "tensors that show more than twice"),
        (b"\x80\x02}" + text("w") + b"ctorch._utils\n_rebuild_tensor_v2\n)Rs.", {}, "broken pickle"),
        (b"\x80\x02}" + text("w") + FLOATS + number(10**12) + b"\x85Rs.", FOUR, "broken pickle"),
        (b"\x80\x02]r\xff\xff\xff\x7f.", {}, "not a dictionary"),  # at place 2**31 - 1 of the memo
        (b"\x80\x02}" + DOUBLED + b"Ns.", {}, "a key that is neither a text nor a whole number"),
        (b"\x80\x02}" + text("w") + identity(1, key=DOUBLED) + b"s.", FOUR, "broken pickle"),
        (b"\x80\x02}" + text("w") + b"ccollections\nOrderedDict\n]\x85Rs.", {}, "broken pickle"),
        (b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".", {}, "not a dictionary"),
        (b"\x80\x02}" + text("a") + b"]" * 100_000 + b"a" * 99_999 + b"s.", {}, "broken pickle"),
        (b"\x80\x02K\x01.", {}, "not a dictionary"),
        (b"\x80\x02}", {}, ""),
        (b"", {}, ""),
        (b"\x80\x02tQ.", {}, "broken pickle"),
        (b"\x80\x02}h\x05s.", {}, "broken pickle"),
        (b"\x80\x04\x95" + b"\xff" * 8, {}, ""),
        (
            b"\x80\x02}" + text("a") + b"c__main__\nx\nN}" + text("m") + b"K\x01s\x86bs.",
            {},
            "names __main__.x",
        ),
        (b"\x80\x02}" + text("a") + ORDERED[:-2] + b"N}" + text("x") + b"Ns\x86bs.", {}, "broken pickle"),
        (b"\x80\x02}.", {"../0": bytes(4), "byteorder": b"big"}, "made on a big-endian machine"),
    ],
    ids=range(32),
)
def test_what_declares_too_much_or_makes_no_sense_is_refused(
    tmp_path: Path, data: bytes, records: dict[str, bytes], said: str
) -> None:
    line = refusal(with_pickle(tmp_path / "a.pt", data, records))
    assert f"not a plain-tensor checkpoint, refused: {said}" in line


def test_one_record_read_as_two_types_is_refused(tmp_path: Path) -> None:
    """torch keeps the first type for both, and the second tensor would end behind the storage."""
    first, second = tensor(identity(1), (1,), (1,)), tensor(identity(4, b"ctorch\nByteStorage\n"), (4,), (1,))
    data = b"\x80\x02}(" + text("a") + first + text("b") + second + b"u."
    assert "storage 0 has two types" in refusal(with_pickle(tmp_path / "a.pt", data, FOUR))


def overlap(data: bytearray) -> None:
    first, second = (data.rindex(name) - 46 for name in (b"archive/data/0", b"archive/data/1"))
    data[second + 16 : second + 28] = data[first + 16 : first + 28]  # CRC and sizes
    data[second + 42 : second + 46] = data[first + 42 : first + 46]  # place in the file


def hide_after_the_end(data: bytearray) -> None:
    data[-2:] = (20).to_bytes(2, "little")  # a comment, a place to hide another directory
    data += bytes(20)


@pytest.mark.parametrize(
    ("change", "said"),
    [(overlap, "records larger than the file"), (hide_after_the_end, "something after its end")],
    ids=["overlap", "hidden"],
)
def test_zip_files_that_readers_disagree_about(
    tmp_path: Path, change: Callable[[bytearray], None], said: str
) -> None:
    path = with_pickle(tmp_path / "a.pt", b"\x80\x02}.", {"data/0": bytes(4000), "data/1": b""})
    assert load_file(path) == {}
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)
    assert said in refusal(path)


def test_bombs_need_neither_memory_nor_time(tmp_path: Path) -> None:
    """Each in a fork of its own: less memory than one and a half times the file and 200 MB."""
    big = one(2**26, (2**26,), (1,))
    header = ",".join(f'"{n}":{entry(0, [0])}' for n in range(27_000))
    bombs = {
        "storage 0 declares": with_pickle(tmp_path / "a.pt", one(10**12, (10**12,), (1,)), FOUR),
        "names builtins.bytearray": with_pickle(tmp_path / "b.pt", BYTEARRAY),
        "more than 1000000 values": with_pickle(tmp_path / "c.pt", b"\x80\x02](" + b"]" * 10_000_000 + b"e."),
        "compressed record": with_pickle(
            tmp_path / "d.pt", big, {"data/0": bytes(2**28)}, zipfile.ZIP_DEFLATED
        ),
        "more than 1000000 values ": with_pickle(tmp_path / "e.pt", ALIASES),
        "tensors that show": with_pickle(tmp_path / "f.pt", MANY_VIEWS, {"data/0": bytes(2**20)}),
        "malformed state": with_state(tmp_path / "g.safetensors", "[" + "[[],[]]," * 250_000 + "1]"),
        "checksum": with_header(tmp_path / "h.safetensors", f'{{"__metadata__":{META},{header}}}'.encode()),
        "a header of": with_header(tmp_path / "i.safetensors", b"{" + b"[" * 2**23),
    }
    script = """
        load_file(save_checkpoint(Path(sys.argv[1]), {}, step=1, epoch=0, keep=1))  # all modules are there
        for bomb in sys.argv[2:]:
            sys.stdout.flush()
            if os.fork() == 0:
                before, start = peak(), time.process_time()
                try:
                    load_file(Path(bomb))
                except UserError as error:
                    print(peak() - before, time.process_time() - start, error)
                sys.stdout.flush()
                os._exit(0)
            os.wait()
    """
    outcomes = run_python(script, tmp_path / "run", *bombs.values()).splitlines()
    for (said, bomb), outcome in zip(bombs.items(), outcomes, strict=True):
        used, seconds, refused = outcome.split(" ", 2)
        assert said.strip() in refused
        assert int(used) * 1024 < 1.5 * bomb.stat().st_size + 200e6, said
        assert float(seconds) < 5, said


# --- something else


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html><html><body>404</body></html>", "looks like an HTML page"),
        (b"\n  <html><head>", "looks like an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git-lfs pointer"),
        (b"hello\n" * 100, "looks like text"),
        (b"", "is empty (zero bytes)"),
        (bytes(range(256)) * 8, "not a plain-tensor checkpoint, refused"),
        (b"8BPS" + bytes(100), "not a plain-tensor checkpoint but looks like a Photoshop file"),
        (b"PK\x05\x06" + bytes(18), "refused: "),
    ],
    ids=range(8),
)
def test_other_files_are_named(tmp_path: Path, content: bytes, said: str) -> None:
    for name in ("ckpt-00000001.pt", "ckpt-00000001.safetensors"):
        path = tmp_path / name
        path.write_bytes(content)
        assert said in refusal(path)
    with pytest.raises(UserError, match="no valid checkpoint"):
        load_checkpoint(tmp_path)


def test_places_that_are_no_file(tmp_path: Path) -> None:
    assert "is a folder" in refusal(tmp_path)
    assert "no such file" in refusal(tmp_path / "missing.pt")
    os.mkfifo(tmp_path / "fifo.pt")
    assert "is not a regular file" in refusal(tmp_path / "fifo.pt")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a/1.png", b"x")
    assert "not a plain-tensor checkpoint, refused" in refusal(tmp_path / "a.zip")


def test_a_plain_state_dict_of_other_programs_loads(tmp_path: Path) -> None:
    """Against torch's own reader."""
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    state = {"epoch": 3, "lr": 0.1, "flags": [True, None, (-1, 2**40)], **network.state_dict()}
    state |= {str(kind): torch.ones(3).to(kind)[1:] for kind in STORAGES.values()} | {
        "none": torch.zeros(0, 2)
    }
    state |= {"turned": torch.randn(3, 4).T, "parameter": torch.nn.Parameter(torch.randn(2))}
    path = tmp_path / "latest_net_G.pth"
    torch.save(state, path)
    loaded, theirs = load_file(path), torch.load(path, weights_only=True)
    assert loaded.keys() == theirs.keys()
    for key, value in theirs.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(loaded[key], value) and loaded[key].dtype == value.dtype
            assert loaded[key].stride() == value.stride()
        else:
            assert loaded[key] == value
