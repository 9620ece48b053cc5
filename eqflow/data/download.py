"""One file from the web, either wholly there and of the expected content, or not there at all."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import IO

from eqflow import storage
from eqflow.errors import DataError, UsageError

Progress = Callable[[int, int | None], None]

TIMEOUT = 60.0  # Seconds without a byte.
CHUNK = 1 << 20
HEADERS = {"User-Agent": "eqflow"}


def fetch(url: str, path: str | Path, sha256: str, progress: Progress | None = None) -> Path:
    """Download a file unless it is there already with the right checksum.

    The content goes to a temporary file in the same folder and gets its name only when its checksum
    is right. Nothing is resumed: an interrupted download starts again.

    Args:
        url: `http` or `https` address.
        path: Where the file goes.
        sha256: Expected SHA-256 in hexadecimal.
        progress: Called with the bytes received and, where the server says, those expected.

    Returns:
        `path`.

    Raises:
        UsageError: If the address is of another scheme.
        DataError: If the server does not answer, answers an error, sends too little, or something
            with another checksum.
        StorageError: If the file cannot be written.
    """
    path = Path(path)
    if not url.lower().startswith(("http://", "https://")):
        raise UsageError(f"{url}: found no http address, expected one to download {path.name}.")
    if path.is_file() and storage.sha256_of(path) == sha256:
        return path
    storage.write_atomically(path, partial(_receive, url, path, sha256, progress))
    return path


def _receive(url: str, path: Path, sha256: str, progress: Progress | None, file: IO[bytes]) -> None:
    digest = hashlib.sha256()
    received = 0
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(url, headers=HEADERS), timeout=TIMEOUT
        )
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
        expected = int(length) if length.isdigit() else None
        while True:
            try:
                chunk = response.read(CHUNK)
            except (OSError, HTTPException) as error:
                raise _interrupted(url, path, received, error) from error
            if not chunk:
                break
            digest.update(chunk)
            file.write(chunk)
            received += len(chunk)
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


def _interrupted(url: str, path: Path, received: int, error: Exception) -> DataError:
    reason = getattr(error, "reason", None) or error or type(error).__name__
    return DataError(
        f"{url}: no connection after {received} bytes ({reason}), expected the file. Check the "
        f"network, or download the file elsewhere and save it as {path}."
    )
