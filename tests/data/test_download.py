"""Downloads against a server on this machine: all or nothing."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from eqflow.data import fetch
from eqflow.errors import DataError, StorageError, UsageError

CONTENT = bytes(range(256)) * 9000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves `CONTENT`, or less, or errors, by the path."""

    def do_GET(self):
        """Answer one request."""
        self.server.requests += 1
        if self.path == "/missing":
            self.send_error(404)
            return
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/file")
            self.end_headers()
            return
        self.send_response(200)
        if self.path != "/unsized":
            self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[: 300_000 if self.path == "/short" else None])

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.requests = 0
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def address(server):
    return f"http://127.0.0.1:{server.server_port}"


@pytest.mark.parametrize("path", ["/file", "/moved", "/unsized"])
def test_a_file_arrives_whole_and_progress_is_told(tmp_path, address, path):
    told = []
    target = tmp_path / "new folder" / "file.bin"
    assert fetch(address + path, target, SHA256, lambda *now: told.append(now)) == target
    assert target.read_bytes() == CONTENT
    expected = None if path == "/unsized" else len(CONTENT)
    assert told[-1] == (len(CONTENT), expected)
    assert [entry.name for entry in target.parent.iterdir()] == ["file.bin"]


def test_a_file_that_is_there_is_not_downloaded_again(tmp_path, server, address):
    for _ in range(2):
        fetch(f"{address}/file", tmp_path / "a", SHA256)
    assert server.requests == 1
    (tmp_path / "a").write_bytes(b"damaged")
    fetch(f"{address}/file", tmp_path / "a", SHA256)
    assert (tmp_path / "a").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("path", "sha256", "words"),
    [
        ("/missing", SHA256, "404"),
        ("/short", SHA256, "cut off, found 300000 of"),
        ("/file", "0" * 64, "SHA-256"),
    ],
)
def test_a_failed_download_leaves_the_old_file_and_nothing_else(
    tmp_path, address, path, sha256, words
):
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(DataError, match=words):
        fetch(address + path, tmp_path / "a", sha256)
    assert (tmp_path / "a").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_no_network_says_what_to_do_instead(tmp_path, server, address):
    server.shutdown()
    server.server_close()
    with pytest.raises(DataError, match=r"no connection.*save it as"):
        fetch(f"{address}/file", tmp_path / "a", SHA256)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path, address):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        fetch(f"{address}/file", tmp_path / "file" / "a", SHA256)


def test_other_schemes_are_refused(tmp_path):
    with pytest.raises(UsageError, match="http"):
        fetch("file:///etc/hostname", tmp_path / "a", SHA256)
