"""QM9 from a small archive of its form, a folder, the cache, and the shared subset."""

import io
import tarfile

import pytest
import torch

from eqflow.data import load_qm9, qm9
from eqflow.errors import DataError, EmptyData, EqflowError

PARTS = {
    1: "5\ngdb 1\t157.7118\t0.\nC\t-0.0126981359\t 1.0858041578\t 0.0080009958\t-0.535689\n"
    "H\t 0.002150416\t-0.0060313176\t 1.2*^-5\t 0.133921\n"
    "H\t 1.0117308433\t 1.4637511618\t 2.765748e-4\t 0.133922\n"
    "H\t-0.540815069\t 1.4475266138\t-0.8766437152\t 0.133923\n"
    "H\t-0.5238136345\t 1.4379326443\t 0.9063972942\t 0.133923\n"
    "1341.307\t1341.3284\t1341.365\nC\tC\t\nInChI=1S/CH4/h1H4\tInChI=1S/CH4/h1H4\n",
    3: "3\ngdb 3\t799.58812\nO\t-0.0343604951\t0.9775395708\t0.0076015923\t-0.589706\n"
    "H\t0.0647664923\t0.0205721989\t0.0015346341\t0.294853\n"
    "H\t0.8717903737\t1.3007924048\t0.0006931336\t0.294853\n"
    "1671.4222\t3803.6305\t3907.698\nO\tO\t\nInChI=1S/H2O/h1H2\tInChI=1S/H2O/h1H2\n",
    21: "2\ngdb 21\t1.\nC\t0.0\t0.0\t0.0\t0.\nF\t0.0\t0.0\t1.3\t0.\n900.1\nF\tF\t\nInChI\tInChI\n",
}
LIST = "*****\n3054 molecules failed\n Index  SMILES\n\n" + "".join(
    f"  {21 if i == 0 else 200_000 + i}  CC  CC  0.1\n" for i in range(3053)
)


def name(number: int) -> str:
    return f"dsgdb9nsd_{number:06d}.xyz"


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "release" / "dsgdb9nsd.xyz.tar.bz2"
    path.parent.mkdir()
    with tarfile.open(path, "w:bz2") as tar:
        for number in (3, 21, 1):
            content = PARTS[number].encode()
            entry = tarfile.TarInfo(f"../{name(number)}" if number == 3 else name(number))
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        link = tarfile.TarInfo("link_000009.xyz")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
    (path.parent / "uncharacterized.txt").write_text(LIST)
    return path


def test_the_archive_is_read_in_the_order_of_the_numbers_without_extracting(archive, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    clouds = load_qm9(archive)
    assert clouds.sizes.tolist() == [5, 3]
    assert clouds.numbers.tolist() == [6, 1, 1, 1, 1, 8, 1, 1]
    assert clouds.x[1, 2] == 1.2e-5
    assert clouds.source[0] == f"{archive}/{name(1)}:1"
    assert sorted(tmp_path.rglob("*")) == before


def test_uncharacterised_molecules_stay_when_asked_for(archive):
    assert load_qm9(archive, keep_uncharacterized=True).sizes.tolist() == [5, 3, 2]


def test_a_folder_of_the_files_is_the_same_as_the_archive(archive, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for number, text in PARTS.items():
        (folder / name(number)).write_text(text)
    (folder / "uncharacterized.txt").write_text(LIST)
    assert torch.equal(load_qm9(folder).x, load_qm9(archive).x)


def test_the_list_must_be_there_and_whole(archive):
    listed = archive.parent / "uncharacterized.txt"
    listed.write_text(LIST.rsplit("\n", 2)[0])
    with pytest.raises(DataError, match=r"found 305\d numbered lines, expected 3054"):
        load_qm9(archive)
    listed.unlink()
    with pytest.raises(DataError, match="keep_uncharacterized=True"):
        load_qm9(archive)


@pytest.fixture
def served(archive, monkeypatch):
    """The download is a copy of the small archive; each call is noted."""
    calls = []

    def copy(url, path, sha256, progress, largest):
        calls.append((url, sha256))
        assert largest in (qm9.LARGEST_ARCHIVE, qm9.LARGEST_LIST)
        source = archive if url == qm9.ARCHIVE_URL else archive.parent / "uncharacterized.txt"
        path.write_bytes(source.read_bytes())
        return path

    monkeypatch.setattr(qm9, "fetch", copy)
    return calls


def test_the_release_is_downloaded_and_parsed_once(served, archive, tmp_path, monkeypatch):
    monkeypatch.setenv("EQFLOW_CACHE", str(tmp_path / "cache"))
    first = load_qm9()
    assert served == [
        (qm9.ARCHIVE_URL, qm9.ARCHIVE_SHA256),
        (qm9.EXCLUDED_URL, qm9.EXCLUDED_SHA256),
    ]
    second = load_qm9(cache=tmp_path / "cache")
    assert len(served) == 2
    for clouds in (first, second):
        assert torch.equal(clouds.x, load_qm9(archive).x)
        assert torch.equal(clouds.numbers, load_qm9(archive).numbers)
    assert len(load_qm9(keep_uncharacterized=True)) == 3


def test_a_damaged_archive_is_named(archive):
    content = archive.read_bytes()
    for damaged in (content[: len(content) // 2], b"BZh9" + bytes(500), content[:-9] + bytes(9)):
        archive.write_bytes(damaged)
        with pytest.raises(DataError, match=r"damaged archive|found 0 files"):
            load_qm9(archive)


def test_a_bad_member_is_named_by_its_file_and_line(tmp_path):
    (tmp_path / name(1)).write_text(PARTS[1].replace("1.0858041578", "1.08x"))
    with pytest.raises(DataError, match=rf"{name(1)}:3: found '1.08x'"):
        load_qm9(tmp_path, keep_uncharacterized=True)


def test_what_is_no_release_is_refused(tmp_path):
    with pytest.raises(EmptyData, match="found 0 files"):
        load_qm9(tmp_path, keep_uncharacterized=True)
    with pytest.raises(DataError, match=r"expected|neither"):
        load_qm9(tmp_path / "qm9.zip")
    with pytest.raises(EqflowError):
        load_qm9(tmp_path / "absent.tar.bz2", keep_uncharacterized=True)


def test_the_local_subset_is_taken_as_it_is(shared_data):
    clouds = load_qm9(shared_data / "qm9" / "qm9_118744.npz")
    assert len(clouds) == 118_744
    assert int(clouds.sizes.min()) == 3
    assert int(clouds.sizes.max()) == 29


# Archives made to do harm


def tar_of(path, *entries):
    """An archive with a molecule and the entries, each a header and its content."""
    path.parent.mkdir(exist_ok=True)
    mode = "w:gz" if path.name.endswith("gz") else "w"
    with tarfile.open(path, mode, format=tarfile.PAX_FORMAT) as tar:
        for entry, content in ((tarfile.TarInfo(name(1)), PARTS[1].encode()), *entries):
            entry.size = entry.size or len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def entry_of(kind, where, link=""):
    entry = tarfile.TarInfo(where)
    entry.type, entry.linkname = kind, link
    return entry, b""


@pytest.mark.parametrize(
    "entry",
    [
        (tarfile.TarInfo("/etc/escaped_000002.xyz"), PARTS[3].encode()),
        (tarfile.TarInfo("../../escaped_000002.xyz"), PARTS[3].encode()),
        (tarfile.TarInfo("a/../../../escaped_000002.xyz"), PARTS[3].encode()),
        (tarfile.TarInfo("name\nwith lines\x1b[2J_000002.xyz"), PARTS[3].encode()),
    ],
    ids=["absolute", "above", "within and above", "control characters"],
)
def test_a_member_is_read_and_goes_nowhere_whatever_its_name(tmp_path, entry):
    path = tar_of(tmp_path / "release" / "x.tar", entry)
    before = sorted(tmp_path.rglob("*"))
    clouds = load_qm9(path, keep_uncharacterized=True)
    assert clouds.sizes.tolist() == [5, 3]
    assert "\n" not in "".join(clouds.source)
    assert sorted(tmp_path.rglob("*")) == before
    assert not list(tmp_path.parent.glob("escaped*"))


@pytest.mark.parametrize(
    "entry",
    [
        entry_of(tarfile.SYMTYPE, "link_000002.xyz", "/etc/hostname"),
        entry_of(tarfile.LNKTYPE, "hard_000002.xyz", "/etc/hostname"),
        entry_of(tarfile.LNKTYPE, "hard_000002.xyz", name(1)),
        entry_of(tarfile.CHRTYPE, "device_000002.xyz"),
        entry_of(tarfile.FIFOTYPE, "pipe_000002.xyz"),
        entry_of(tarfile.DIRTYPE, "folder_000002.xyz"),
    ],
    ids=["symbolic", "hard", "hard to a member", "device", "pipe", "folder"],
)
def test_only_plain_files_are_read(tmp_path, entry):
    path = tar_of(tmp_path / "x.tar", entry)
    before = sorted(tmp_path.rglob("*"))
    assert load_qm9(path, keep_uncharacterized=True).sizes.tolist() == [5]
    assert sorted(tmp_path.rglob("*")) == before


def raw_header(size, kind=tarfile.REGTYPE, where="bomb_000002.xyz"):
    entry = tarfile.TarInfo(where)
    entry.size, entry.type = size, kind
    return entry.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    "header",
    [
        raw_header(1 << 40),
        raw_header(qm9.LARGEST_MEMBER + 1),
        raw_header(1 << 33, tarfile.XHDTYPE),
        raw_header(1 << 33, tarfile.XGLTYPE),
        raw_header(1 << 33, tarfile.GNUTYPE_LONGNAME),
    ],
    ids=["terabyte", "a byte too large", "what is said of one", "of all", "a long name"],
)
def test_a_member_that_unpacks_to_too_much_is_not_read(tmp_path, header):
    import bz2

    path = tmp_path / "x.tar.bz2"
    path.write_bytes(bz2.compress(header + bytes(1 << 24)))
    assert path.stat().st_size < 10_000
    with pytest.raises(DataError, match=r"x\.tar\.bz2: found a damaged archive \(.* at most 1,048"):
        load_qm9(path, keep_uncharacterized=True)


def test_a_size_that_comes_in_front_of_its_header_counts_too(tmp_path):
    entry = tarfile.TarInfo("bomb_000002.xyz")
    entry.pax_headers = {"size": str(1 << 40)}
    path = tar_of(tmp_path / "x.tar", (entry, b"small"))
    with pytest.raises(DataError, match="of 1,099,511,627,776 bytes"):
        load_qm9(path, keep_uncharacterized=True)


def test_an_archive_of_too_many_members_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(qm9, "MOST_MEMBERS", 20)
    entries = [entry_of(tarfile.DIRTYPE, f"folder {number}") for number in range(30)]
    path = tar_of(tmp_path / "x.tar.gz", *entries)
    with pytest.raises(DataError, match="more than 20 members"):
        load_qm9(path, keep_uncharacterized=True)
