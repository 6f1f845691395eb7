"""Where weights come from: search order, verification, and a download from a local server that misbehaves."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import serving

from datasets.errors import UserError
from datasets.files import sha256_of
from evaluate.weights import (
    SOURCES,
    Weights,
    WeightsChoice,
    WeightsSource,
    find_file,
    load_weights,
)

CONTENT = bytes(range(256)) * 4000  # about 1 MB
PREFIX = hashlib.sha256(CONTENT).hexdigest()[:8]
NAME = f"w-{PREFIX}.pth"


@dataclass
class Server:
    """A local server. cut: bytes after which it hangs up; ranges: the Range headers it saw."""

    address: str = ""
    cut: int | None = None
    ranges: list[str | None] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.ranges.append(asked)
            start = int(asked[6:-1]) if asked else 0
            self.send_response(206 if start else 200)
            self.send_header("ETag", '"one version"')
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
            self.send_header("Content-Length", str(len(CONTENT) - start))
            self.end_headers()
            self.wfile.write(CONTENT[start : state.cut])

        def log_message(self, *args: object) -> None:
            pass

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as state.address:
        yield state


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No weights anywhere: empty cache, no variables."""
    monkeypatch.delenv("I2I_WEIGHTS", raising=False)
    monkeypatch.delenv("I2I_OFFLINE", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


def _source(server: Server) -> WeightsSource:
    return replace(SOURCES["inception"], url=server.address + "/w", file_names=(NAME,))


def load(network: str, path: Path | None = None, allow: bool = False, **changes: str) -> Weights:
    """Weights from this file, or from the installed package; changes: of their source."""
    source = replace(SOURCES[network], **changes)  # type: ignore[arg-type]
    return load_weights(source, WeightsChoice(Path(), allow_unverified=allow), path)


def test_search_order(server: Server, places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download, torch.hub's folder, our cache, I2I_WEIGHTS, a named file: each goes before the ones ahead of it."""
    source, cache = _source(server), places / "cache"
    assert find_file(source, None, cache).read_bytes() == CONTENT
    (cache / "weights" / NAME).unlink()
    for folder in (places / "torch/hub/checkpoints", cache / "weights", places / "own"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / NAME).touch()
        if folder.name == "own":
            monkeypatch.setenv("I2I_WEIGHTS", str(folder))
        assert find_file(source, None, cache) == folder / NAME
    (places / "named.pth").touch()
    assert find_file(source, places / "named.pth", cache) == places / "named.pth"
    assert len(server.ranges) == 1
    monkeypatch.setenv("I2I_WEIGHTS", str(places / "nothing"))
    with pytest.raises(UserError, match=r"I2I_WEIGHTS: .*nothing is no folder"):
        find_file(source, None, cache)


def test_download_goes_on_where_it_was_cut(server: Server, places: Path) -> None:
    source, cache = _source(server), places / "cache"
    server.cut = 300_000
    with pytest.raises(UserError, match="missing; http"):
        find_file(source, None, cache)
    assert not (cache / "weights" / NAME).exists()
    server.cut = None
    assert find_file(source, None, cache).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=300000-"]
    assert [path.name for path in (cache / "weights").iterdir()] == [NAME]


def test_download_beside_another(server: Server, places: Path) -> None:
    """The folder of arriving files is not empty when one of them is complete."""
    other = places / "cache" / "weights" / "arriving" / "other.pth.part"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"half")
    assert find_file(_source(server), None, places / "cache").read_bytes() == CONTENT
    assert other.read_bytes() == b"half"


def test_download_with_another_hash_is_removed(server: Server, places: Path) -> None:
    source = replace(_source(server), file_names=("w-00000000.pth",))
    with pytest.raises(UserError, match=f"SHA-256 begins {PREFIX}; removed"):
        find_file(source, None, places / "cache")
    assert not [path for path in (places / "cache").rglob("*") if path.is_file()]


def test_without_the_file_the_line_says_where_to_put_it(
    server: Server, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline by a flag or by the variable, no server, a cache that cannot be written."""
    source, cache = SOURCES["inception"], places / "cache"
    with pytest.raises(UserError, match="missing; http") as caught:
        find_file(source, None, cache, offline=True)
    line = str(caught.value)
    assert str(cache / "weights" / source.file_names[0])[-100:] in line
    assert source.url in line and "6726825d" in line and "--inception_weights" in line
    with pytest.raises(UserError, match="cannot be reached"):
        find_file(replace(source, url="http://127.0.0.1:1/w.pth"), None, cache)
    cache.rename(places / "other")
    cache.touch()
    with pytest.raises(UserError, match="missing; http"):
        find_file(_source(server), None, cache)
    monkeypatch.setenv("I2I_OFFLINE", "1")
    with pytest.raises(UserError, match="downloads are off"):
        find_file(SOURCES["alexnet"], None, cache)


def test_unknown_weights_are_refused_unless_allowed(places: Path) -> None:
    path = places / "own.pth"
    torch.save({"a": torch.zeros(2)}, path)
    with pytest.raises(UserError, match="not 6726825d"):
        load("inception", path)
    allowed = load("inception", path, allow=True)
    assert not allowed.verified and allowed.digest == sha256_of(path)


def _random_alexnet() -> dict[str, torch.Tensor]:
    from torchvision.models import alexnet

    torch.manual_seed(0)
    state = alexnet(weights=None, num_classes=2).features.state_dict()
    return {f"features.{name}": value for name, value in state.items()} | {"classifier.1.bias": torch.ones(3)}


def test_alexnet_is_known_by_its_five_layers(places: Path) -> None:
    """The full file and the convolutions alone have one fingerprint; one changed weight has another."""
    state = _random_alexnet()
    full, part, changed = places / "full.pth", places / "part.pth", places / "changed.pth"
    torch.save(state, full)
    torch.save({k: v for k, v in state.items() if k.startswith("features")}, part)
    state["features.10.bias"][0] += 1e-3
    torch.save(state, changed)
    with pytest.raises(UserError, match="not torchvision's ImageNet AlexNet"):
        load("alexnet", full)
    digest = load("alexnet", full, allow=True).digest
    assert load("alexnet", full, digest=digest).verified
    assert load("alexnet", part, digest=digest).verified
    with pytest.raises(UserError, match="fingerprint"):
        load("alexnet", changed, digest=digest)
    del state["features.0.bias"]
    torch.save(state, part)
    with pytest.raises(UserError, match=r"no features\.0\.bias in it"):
        load("alexnet", part, allow=True)


def test_heads_are_known_by_their_fingerprint(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the installed package are; a package with one other number in them is not."""
    published = load("heads")
    assert published.verified and published.digest == SOURCES["heads"].digest
    package = SimpleNamespace(submodule_search_locations=[str(places / "lpips")])
    monkeypatch.setattr("evaluate.weights.find_spec", lambda name: package)
    with pytest.raises(UserError, match=r"alex\.pth: "):
        load("heads")
    own = places / "lpips" / "weights" / "v0.1" / "alex.pth"
    own.parent.mkdir(parents=True)
    state = {name: value.clone() for name, value in published.state.items()}
    torch.save(state, own)
    assert load("heads").verified  # another file of the same numbers
    state["lin3.model.1.weight"][0, 7] += 1e-3
    torch.save(state, own)
    with pytest.raises(UserError, match=r"fingerprint .* not the heads of LPIPS v0\.1 .*--allow_unverified"):
        load("heads")
    allowed = load("heads", allow=True)
    assert not allowed.verified and allowed.digest not in (published.digest, "")
    del state["lin4.model.1.weight"]
    torch.save(state, own)
    with pytest.raises(UserError, match=r"no lin4\.model\.1\.weight in it"):
        load("heads", allow=True)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04 cut"])
def test_what_is_no_file_of_weights(places: Path, content: bytes) -> None:
    path = places / "x.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a readable file of weights"):
        load("alexnet", path, allow=True)


def test_a_named_file_must_be_usable_a_missing_one_need_not(places: Path) -> None:
    cache = places / "cache"
    found, missing = WeightsChoice(cache, offline=True).find(["inception", "heads"])
    assert list(found) == ["heads"] and "missing; https" in missing["inception"].reason
    with pytest.raises(UserError, match="no such file of Inception weights"):
        WeightsChoice(cache, {"inception": places / "none.pth"}).find(["inception"])
