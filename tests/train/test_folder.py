"""The fingerprint of data: of a file, and of a folder by the names and contents of its files."""

import hashlib
from pathlib import Path

from eqflow.train.folder import fingerprint


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_generated_data_have_none_and_a_file_has_its_own(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_bytes(b"one")
    assert fingerprint(None) is None
    assert fingerprint(str(tmp_path / "a.xyz")) == {
        "path": str(tmp_path / "a.xyz"),
        "sha256": sha256(b"one"),
    }


def test_that_of_a_folder_is_of_the_list_that_sha256sum_prints(tmp_path: Path) -> None:
    for name, content in (("b ä.xyz", b"two"), ("a.xyz", b"one")):
        (tmp_path / name).write_bytes(content)
    listed = f"{sha256(b'one')}  a.xyz\n{sha256(b'two')}  b ä.xyz\n"
    expected = {"path": str(tmp_path), "sha256": sha256(listed.encode())}
    assert fingerprint(str(tmp_path)) == expected
    (tmp_path / ".hidden").write_bytes(b"three")
    (tmp_path / "README.txt").write_bytes(b"not read")
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "c.xyz").write_bytes(b"four")
    assert fingerprint(str(tmp_path)) == expected


def test_another_name_or_content_is_another_fingerprint(tmp_path: Path) -> None:
    file = tmp_path / "a.xyz"
    file.write_bytes(b"one")
    seen = [fingerprint(str(tmp_path))]
    file.write_bytes(b"two")
    seen.append(fingerprint(str(tmp_path)))
    file.rename(tmp_path / "b.xyz")
    seen.append(fingerprint(str(tmp_path)))
    assert len({one["sha256"] for one in seen if one}) == 3
