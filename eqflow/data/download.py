"""One file from the web, either wholly there and of the expected content, or not there at all.

It comes over TLS, from a server whose certificate is good, or from this very machine; it has a
known SHA-256, and is no larger than it may be. No other address is followed to.
"""

from __future__ import annotations

import hashlib
import ipaddress
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from eqflow import storage
from eqflow.errors import DataError, UsageError

Progress = Callable[[int, int | None], None]

TIMEOUT = 60.0  # Seconds without a byte.
CHUNK = 1 << 20
LARGEST = 1 << 30  # Bytes, where no one knows better.
HEADERS = {"User-Agent": "eqflow"}


def fetch(
    url: str,
    path: str | Path,
    sha256: str,
    progress: Progress | None = None,
    largest: int = LARGEST,
) -> Path:
    """Download a file unless it is there already with the right checksum.

    The content goes to a temporary file in the same folder and gets its name only when its checksum
    is right. Nothing is resumed: an interrupted download starts again.

    Args:
        url: `https` address; `http` only to this machine, such as `http://127.0.0.1:8000/file`.
        path: Where the file goes.
        sha256: Expected SHA-256 in hexadecimal.
        progress: Called with the bytes received and, where the server says, those expected.
        largest: Most bytes that are taken.

    Returns:
        `path`.

    Raises:
        UsageError: If the address is another.
        DataError: If the server does not answer, is not the one of its certificate, sends us to an
            address that is not safe, answers an error, sends too little or too much, or something
            with another checksum.
        StorageError: If the file cannot be written.
    """
    path = Path(path)
    if not is_safe(url):
        raise UsageError(
            f"{url}: found no https address, expected one to download {path.name}: what comes "
            "without TLS may come from anyone. Download it by other means and save it as "
            f"{path}."
        )
    if path.is_file() and storage.sha256_of(path) == sha256:
        return path
    storage.write_atomically(path, partial(_receive, url, path, sha256, progress, largest))
    return path


def is_safe(url: str) -> bool:
    """Whether an address is one of TLS, or of this machine.

    >>> is_safe("https://example.org/x"), is_safe("http://127.0.0.1:80/x"), is_safe("file:///x")
    (True, True, False)
    >>> is_safe("http://127.0.0.1@example.org/x")
    False
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    if parts.scheme == "https":
        return bool(host)
    return parts.scheme == "http" and _is_this_machine(host)


def _is_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows to safe addresses alone."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """The next request.

        Raises:
            DataError: If the address is not safe.
        """
        if not is_safe(newurl):
            fp.close()
            raise DataError(
                f"{req.full_url}: the server sent us to {newurl}, expected an https address. "
                "Nothing was kept; download the file by other means."
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """What opens addresses of the web, and no others: not of files, FTP or data."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=ssl.create_default_context()),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _SafeRedirects(),
    ):
        opener.add_handler(handler)
    return opener


def _receive(
    url: str, path: Path, sha256: str, progress: Progress | None, largest: int, file: IO[bytes]
) -> None:
    digest = hashlib.sha256()
    received = 0
    try:
        request = urllib.request.Request(url, headers=HEADERS)
        response = _opener().open(fullurl=request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        raise DataError(
            f"{url}: the server answered {error.code} {error.reason}, expected the file. "
            f"Download it by other means and save it as {path}."
        ) from error
    except (OSError, HTTPException, ValueError) as error:
        raise _interrupted(url, path, received, error) from error
    with response:
        length = response.headers.get("Content-Length", "")
        expected = int(length) if length.isascii() and length.isdigit() else None
        if expected is not None and expected > largest:
            raise _too_large(url, path, f"{expected:,}", largest)
        while True:
            try:
                chunk = response.read(CHUNK)
            except (OSError, HTTPException) as error:
                raise _interrupted(url, path, received, error) from error
            if not chunk:
                break
            received += len(chunk)
            if received > largest:
                raise _too_large(url, path, f"{received:,} and more", largest)
            digest.update(chunk)
            file.write(chunk)
            if progress is not None:
                progress(received, expected)
    if expected is not None and received != expected:
        raise DataError(
            f"{url}: the transfer was cut off, found {received} of {expected} bytes. Try again."
        )
    if digest.hexdigest() != sha256:
        raise DataError(
            f"{url}: found {received} bytes with the SHA-256 {digest.hexdigest()}, expected "
            f"{sha256}. The server sent something else; nothing was kept. Try again, or download "
            f"the file by other means and save it as {path}."
        )


def _too_large(url: str, path: Path, found: str, largest: int) -> DataError:
    return DataError(
        f"{url}: found {found} bytes, expected at most {largest:,}. The server sent something "
        f"else; nothing was kept. Download the file by other means and save it as {path}."
    )


def _interrupted(url: str, path: Path, received: int, error: Exception) -> DataError:
    reason = getattr(error, "reason", None) or error or type(error).__name__
    if isinstance(reason, ssl.SSLCertVerificationError):
        return DataError(
            f"{url}: the certificate of {urlsplit(url).hostname} is not good "
            f"({reason.verify_message}), so anyone may have answered. Nothing was kept. Check the "
            "clock of this machine; where a proxy of your own stands between, set SSL_CERT_FILE to "
            f"its certificate; or download the file elsewhere and save it as {path}."
        )
    return DataError(
        f"{url}: no connection after {received} bytes ({reason}), expected the file. Check the "
        f"network, or download the file elsewhere and save it as {path}."
    )
