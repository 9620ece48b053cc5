"""Downloads over TLS, and what may answer in place of the server: others, or endless files."""

from __future__ import annotations

import hashlib
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from eqflow.data import fetch
from eqflow.data.download import is_safe
from eqflow.errors import DataError, UsageError

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()

# Made for this test and of no use elsewhere: for 127.0.0.1 and localhost, valid until 2120.
SELF_SIGNED = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg+bPPxFFp1UrxQsF0
Lcw/ZGyvfYaE9ffL2GOVEoJTZY6hRANCAAQy4RttChp0qBywd0TLaFkw5OI++sSy
IS6/5VwNZUUQoHFI4lOpd9UWx+0R7dXVc9WjafFznnMA6WXL/qZKPGxT
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBgjCCASegAwIBAgIBATAKBggqhkjOPQQDAjAZMRcwFQYDVQQDDA50ZXN0IG9m
IGVxZmxvdzAgFw0yMDAxMDEwMDAwMDBaGA8yMTIwMDEwMTAwMDAwMFowGTEXMBUG
A1UEAwwOdGVzdCBvZiBlcWZsb3cwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAQy
4RttChp0qBywd0TLaFkw5OI++sSyIS6/5VwNZUUQoHFI4lOpd9UWx+0R7dXVc9Wj
afFznnMA6WXL/qZKPGxTo14wXDAaBgNVHREEEzARhwR/AAABgglsb2NhbGhvc3Qw
DwYDVR0TAQH/BAUwAwEB/zAOBgNVHQ8BAf8EBAMCAoQwHQYDVR0OBBYEFBirdT7w
HwOwWm9qX6yXGHVRCJ7BMAoGCCqGSM49BAMCA0kAMEYCIQDOZEm2zBMLpH3aKazA
0HR7+KzUf2JN14eYz/9IGaHSvgIhAN+qjXDV+hEZtsWkCrn9k92IPGKmzr0ce4bW
T5HdytqT
-----END CERTIFICATE-----
"""


class Handler(BaseHTTPRequestHandler):
    """Serves `CONTENT`, sends elsewhere, or does not come to an end."""

    def do_GET(self):
        """Answer one request."""
        target = getattr(self.server, "targets", {}).get(self.path)
        if target is not None:
            self.send_response(302)
            self.send_header("Location", target)
            self.end_headers()
            return
        self.send_response(200)
        if self.path == "/huge":
            self.send_header("Content-Length", str(1 << 50))
        elif self.path != "/endless":
            self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        try:
            self.wfile.write(CONTENT)
            while self.path == "/endless":
                self.wfile.write(CONTENT)
        except OSError:
            self.server.hung_up.set()

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def self_signed(tmp_path: Path) -> Path:
    path = tmp_path / "self_signed.pem"
    path.write_text(SELF_SIGNED)
    return path


def serving(context: ssl.SSLContext | None) -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        server.hung_up = threading.Event()
        server.handle_error = lambda *_: None  # a client that hangs up says so by itself
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def plain() -> Iterator[ThreadingHTTPServer]:
    yield from serving(None)


@pytest.fixture
def secure(self_signed: Path) -> Iterator[ThreadingHTTPServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed)
    yield from serving(context)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "downloads" / "file.bin"


def left(target: Path) -> list[str]:
    return [path.name for path in target.parent.iterdir()] if target.parent.is_dir() else []


def test_a_server_with_a_good_certificate_is_believed(secure, self_signed, target, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(self_signed))
    for host in ("127.0.0.1", "localhost"):
        target.unlink(missing_ok=True)
        fetch(f"https://{host}:{secure.server_port}/file", target, SHA256)
        assert target.read_bytes() == CONTENT


def test_a_certificate_that_is_not_good_is_refused_by_its_name(secure, target):
    with pytest.raises(DataError) as caught:
        fetch(f"https://127.0.0.1:{secure.server_port}/file", target, SHA256)
    for words in (
        "certificate of 127.0.0.1 is not good",
        "self-signed",
        "SSL_CERT_FILE",
        "save it",
    ):
        assert words in str(caught.value)
    assert not left(target)


def test_what_is_no_tls_at_all_is_refused(plain, target):
    with pytest.raises(DataError, match="no connection"):
        fetch(f"https://127.0.0.1:{plain.server_port}/file", target, SHA256)
    assert not left(target)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/file",
        "http://127.0.0.1.example.org/file",
        "http://127.0.0.1@example.org/file",
        "http://localhost.example.org/file",
        "HTTP://EXAMPLE.ORG/file",
        "http://[::ffff:8.8.8.8]/file",
        "http://0.0.0.0/file",
        "ftp://example.org/file",
        "file:///etc/hostname",
        "data:text/plain,x",
        "https://",
        "https:///file",
        "http://[::1/file",
        "//example.org/file",
        "",
    ],
)
def test_an_address_without_tls_is_refused_before_anyone_is_asked(url, target):
    assert not is_safe(url)
    with pytest.raises(UsageError, match="https"):
        fetch(url, target, SHA256)
    assert not target.parent.exists()


@pytest.mark.parametrize(
    "url", ["https://example.org/x", "HTTPS://example.org", "http://127.9.9.9:1/", "http://[::1]/x"]
)
def test_addresses_of_tls_and_of_this_machine_are_not(url):
    assert is_safe(url)


@pytest.mark.parametrize(
    "place",
    [
        "http://example.org/file",
        "file:///etc/hostname",
        "ftp://example.org/file",
        "data:text/plain,x",
        "http://127.0.0.1@example.org/file",
    ],
)
def test_a_server_cannot_send_us_to_an_address_without_tls(
    secure, plain, self_signed, target, monkeypatch, place
):
    monkeypatch.setenv("SSL_CERT_FILE", str(self_signed))
    for scheme, server in (("https", secure), ("http", plain)):
        server.targets = {"/file": place}
        with pytest.raises(DataError, match=r"sent us to|not allowed"):
            fetch(f"{scheme}://127.0.0.1:{server.server_port}/file", target, SHA256)
    assert not left(target)


def test_a_server_may_send_us_on_to_one_with_tls_but_not_in_circles(
    secure, plain, self_signed, target, monkeypatch
):
    monkeypatch.setenv("SSL_CERT_FILE", str(self_signed))
    plain.targets = {
        "/file": f"https://localhost:{secure.server_port}/file",
        "/circle": "/circle",
    }
    fetch(f"http://127.0.0.1:{plain.server_port}/file", target, SHA256)
    assert target.read_bytes() == CONTENT
    with pytest.raises(DataError, match="302"):
        fetch(f"http://127.0.0.1:{plain.server_port}/circle", target, "0" * 64)


def test_an_endless_answer_is_cut_off(plain, target):
    target.parent.mkdir()
    target.write_bytes(b"old")
    with pytest.raises(DataError, match=r"and more bytes, expected at most 3,000,000"):
        fetch(f"http://127.0.0.1:{plain.server_port}/endless", target, SHA256, None, 3_000_000)
    assert plain.hung_up.wait(30)
    assert left(target) == ["file.bin"]
    assert target.read_bytes() == b"old"


def test_an_answer_that_says_it_is_too_large_is_not_read(plain, target):
    told = []
    with pytest.raises(DataError, match=f"{1 << 50:,} bytes, expected at most"):
        fetch(f"http://127.0.0.1:{plain.server_port}/huge", target, SHA256, told.append)
    assert not told
    assert not left(target)
