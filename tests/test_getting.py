"""Public measurements, downloaded from a server that breaks off, changes its mind and lies."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import tarfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from energylens import getting, table
from energylens.cli import main
from energylens.errors import ArtefactError, InputError, UsageError

CONTENT = bytes(range(256)) * 4096  # 1 MiB
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Behaviour:
    """What the server does: break off after so many bytes of each answer, in turn."""

    content: bytes = CONTENT
    breaks: list[int] = field(default_factory=list)
    ranges: bool = True
    tag: str | None = '"one"'
    status: int = 200
    kind: str = "application/octet-stream"
    moved: bool = False
    asked: list[str | None] = field(default_factory=list)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        does: Behaviour = self.server.behaviour  # type: ignore[attr-defined]
        wanted = self.headers.get("Range")
        does.asked.append(wanted)
        self.close_connection = True
        if does.status != 200:
            self.send_error(does.status)
            return
        if does.moved and not self.path.startswith("/there"):
            self.send_response(302)
            self.send_header("Location", "/there/file.bin")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = 0
        same = self.headers.get("If-Range") == does.tag
        if wanted and does.ranges and same:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(does.content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(does.content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            end = len(does.content)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{end}")
        else:
            self.send_response(200)
        self.send_header("Content-Type", does.kind)
        self.send_header("Content-Length", str(len(does.content) - start))
        if does.tag:
            self.send_header("ETag", does.tag)
        self.end_headers()
        body = does.content[start:]
        if does.breaks:
            body = body[: does.breaks.pop(0)]
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server():
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.behaviour = Behaviour()
    thread = threading.Thread(target=served.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield served
    served.shutdown()
    served.server_close()
    thread.join()


def url(server, name: str = "data.bin") -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/{name}"


def test_a_file_comes_whole_and_with_its_digest(server, tmp_path):
    seen = []
    got = getting.fetch(
        url(server), tmp_path / "a.bin", sha256=DIGEST, progress=lambda *n: seen.append(n)
    )
    assert got.path.read_bytes() == CONTENT
    assert (got.sha256, got.size_bytes, got.resumed_bytes) == (DIGEST, len(CONTENT), 0)
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin"]


def test_what_breaks_off_goes_on_where_it_was(server, tmp_path):
    server.behaviour.breaks = [300_000, 400_000]
    got = getting.fetch(url(server), tmp_path / "a.bin")
    assert got.path.read_bytes() == CONTENT
    assert got.resumed_bytes == 700_000
    assert server.behaviour.asked == [None, "bytes=300000-", "bytes=700000-"]


def test_a_later_command_goes_on_too(server, tmp_path):
    server.behaviour.breaks = [300_000, 0, 0, 0]
    with pytest.raises(ArtefactError, match=r"broke off after 300,000 bytes .* goes on from there"):
        getting.fetch(url(server), tmp_path / "a.bin")
    assert not (tmp_path / "a.bin").exists()
    got = getting.fetch(url(server), tmp_path / "a.bin", sha256=DIGEST)
    assert got.path.read_bytes() == CONTENT
    assert got.resumed_bytes == 300_000


def test_a_file_that_changed_meanwhile_is_begun_anew(server, tmp_path):
    server.behaviour.breaks = [300_000, 0, 0, 0]
    with pytest.raises(ArtefactError):
        getting.fetch(url(server), tmp_path / "a.bin")
    other = CONTENT[::-1][:-7]
    server.behaviour.content, server.behaviour.tag = other, '"two"'
    got = getting.fetch(url(server), tmp_path / "a.bin")
    assert got.path.read_bytes() == other
    assert got.resumed_bytes == 0


@pytest.mark.parametrize("tag", [None, 'W/"weak"'])
def test_without_a_way_to_know_that_it_is_the_same_nothing_is_gone_on_with(server, tmp_path, tag):
    server.behaviour.tag, server.behaviour.breaks = tag, [300_000]
    got = getting.fetch(url(server), tmp_path / "a.bin")
    assert got.path.read_bytes() == CONTENT
    assert server.behaviour.asked == [None, None]


def test_a_server_that_knows_no_ranges_is_read_from_the_beginning(server, tmp_path):
    server.behaviour.ranges, server.behaviour.breaks = False, [300_000]
    got = getting.fetch(url(server), tmp_path / "a.bin")
    assert got.path.read_bytes() == CONTENT
    assert got.resumed_bytes == 0


def test_what_was_whole_already_is_not_fetched_again(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(CONTENT)
    about = {"url": url(server), "validator": '"one"'}
    (tmp_path / "a.bin.part.json").write_text(json.dumps(about))
    got = getting.fetch(url(server), tmp_path / "a.bin", sha256=DIGEST)
    assert got.resumed_bytes == len(CONTENT)


def test_the_wrong_digest_leaves_nothing_behind(server, tmp_path):
    with pytest.raises(ArtefactError, match=r"must have the SHA-256 0000.*was removed"):
        getting.fetch(url(server), tmp_path / "a.bin", sha256="0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_a_page_in_place_of_the_file_is_refused_and_not_recorded(server, tmp_path):
    server.behaviour.kind = "text/html; charset=utf-8"
    server.behaviour.content = b"<!doctype html><title>Sign in</title>"
    with pytest.raises(ArtefactError, match="answers with a web page, not with the file"):
        getting.fetch(url(server), tmp_path / "file.bin")
    assert not (tmp_path / "file.bin").exists()
    assert main(["get", "azure-code", "--folder", str(tmp_path / "d"), "--url", url(server)]) == 1
    assert getting.recorded_digest(tmp_path / "d" / "azure-code", url(server)) is None


def test_a_file_that_has_moved_is_gone_on_with_where_it_is(server, tmp_path):
    server.behaviour.moved = True
    server.behaviour.breaks = [300_000]
    done = getting.fetch(url(server), tmp_path / "file.bin", sha256=DIGEST)
    assert done.resumed_bytes == 300_000
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_what_is_refused_says_why(server, tmp_path):
    server.behaviour.status = 404
    with pytest.raises(ArtefactError, match="the server says 404"):
        getting.fetch(url(server), tmp_path / "a.bin")
    with pytest.raises(UsageError, match="https://"):
        getting.fetch("file:///etc/hostname", tmp_path / "a.bin")
    with pytest.raises(UsageError, match="64 hexadecimal digits"):
        getting.fetch(url(server), tmp_path / "a.bin", sha256="abc")
    server.shutdown()
    server.server_close()
    with pytest.raises(ArtefactError, match="broke off after 0 bytes"):
        getting.fetch(url(server), tmp_path / "a.bin")


# ------------------------------------------------------------------------------- the command


def archive(**members: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as packed:
        for name, data in members.items():
            info = tarfile.TarInfo(name.replace("__", "/"))
            info.size = len(data)
            packed.addfile(info, io.BytesIO(data))
    return file.getvalue()


def leaderboard() -> bytes:
    """An archive as the leaderboard's, with a result of our own in it."""
    document = {
        "model_id": "Qwen/Qwen3-8B",
        "task": "gpqa",
        "weight_precision": "bfloat16",
        "configurations": [
            {
                "avg_batch_size": 30.0,
                "avg_output_len": 500.0,
                "avg_power_watts": 600.0,
                "energy_per_request_joules": 150.0,
                "energy_per_token_joules": 0.3,
                "gpu_model": "H100",
                "max_num_seqs": 32,
                "median_itl_ms": 14.0,
                "num_gpus": 1,
                "output_throughput_tokens_per_sec": 2000.0,
                "parallelization": {
                    "tensor_parallel": 1, "expert_parallel": 1, "data_parallel": 1,
                },
            }
        ],
    }  # fmt: skip
    result = json.dumps(document).encode()
    return archive(
        leaderboard__public__models__Qwen__x=b"not this",
        **{"leaderboard__data__models__Qwen3-8B.json": result, "leaderboard__README.md": b"x"},
    )


def test_get_downloads_checks_and_imports(server, tmp_path, capsys):
    server.behaviour.content = leaderboard()
    server.behaviour.breaks = [200]
    out, folder = tmp_path / "v3.csv", tmp_path / "data"
    get = ["get", "mlenergy-v3", "--url", url(server, "v3.tar.gz"), "--folder", str(folder)]
    assert main([*get, "-o", str(out), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["rows"], document["digest"], document["resumed_bytes"]) == (
        1, "first seen", 200,
    )  # fmt: skip
    assert any("Nobody has vouched" in note for note in document["notes"])
    assert table.read(out).energy_per_request_j.tolist() == [150.0]
    # The second time the digest of the first is what it must have.
    assert main([*get, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["digest"] == "checked"
    server.behaviour.content = archive(**{"x__models__a.json": b"{}"})
    server.behaviour.tag = '"two"'
    assert main(get) == 1
    assert "must have the SHA-256" in capsys.readouterr().err
    assert main([*get, "--changed", "-o", str(tmp_path / "new.csv")]) == 1  # but no result file
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "new.csv").exists()


def test_an_archive_that_is_cut_or_leads_elsewhere_is_refused(tmp_path):
    pattern = getting.SOURCES["mlenergy-v3"].members
    path = tmp_path / "a.tar.gz"
    for data, said in (
        (leaderboard()[:-40], "no whole tar archive"),
        (b"<html>moved</html>", "no whole tar archive"),
        (archive(README=b"x"), "none of the files"),
    ):
        path.write_bytes(data)
        with pytest.raises(InputError, match=said):
            getting.unpack(path, tmp_path / "out", pattern)
    path.write_bytes(archive(**{"x__models__..__..__evil.json": b"{}"}))
    with pytest.raises(InputError, match=r"none of the files|leads out"):
        getting.unpack(path, tmp_path / "out", pattern)
    assert not list(Path(tmp_path).rglob("evil.json"))


def test_only_what_its_licence_allows_is_named(capsys):
    assert main(["get", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {source["name"]: source["licence"] for source in listed["sources"]} == {
        "mlenergy-v3": "Apache-2.0",
        "mlenergy-v2": "Apache-2.0",
        "azure-conversation": "CC BY 4.0",
        "azure-code": "CC BY 4.0",
    }
    assert main(["get"]) == 0
    capsys.readouterr()
    for name, said in (
        ("powertrace", "states no licence"),
        ("mlenergy-v4", "must be one of"),
    ):
        assert main(["get", name]) == 2
        assert said in capsys.readouterr().err
    assert main(["get", "azure-code", "-o", "x.csv"]) == 2
    assert "leave -o out" in capsys.readouterr().err
