"""Every reader of something that a user hands over, with valid files to break and the law it keeps.

The law: what is returned is sound, or an error of eqflow says which file and what is wrong with it.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import struct
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import enf_files
import numpy as np
import tiny
import tiny_nodes
import torch
import yaml
from faults import mutations
from hypothesis import strategies as st

from eqflow.chem.elements import LARGEST
from eqflow.chem.formula import numbers_of_formula
from eqflow.cli.compose import composed, options_of_train, train_keys
from eqflow.cli.conditions import properties_of
from eqflow.cli.search_space import parsed
from eqflow.data import read_images, read_report, read_voxels
from eqflow.data.qm9 import EXCLUDED, EXCLUDED_COUNT, load_qm9
from eqflow.data.records import ABSURD_COORDINATE, COINCIDENT_DISTANCE
from eqflow.errors import DataError, EqflowError, ExitCode, UsageError
from eqflow.geometry import Clouds
from eqflow.graphs import Graph, load_graph
from eqflow.train import Run
from eqflow.train.checkpoint import WEIGHTS
from eqflow.train.config import SolverConfig
from eqflow.train.enf import read_enf
from eqflow.train.weights import load

Payload = Any
REFUSED: list[
    Path
] = []  # what was refused; a fuzz run that refuses nothing, or all, proves nothing


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        broken: What is handed to it.
        write: Puts that into an empty folder and says what is to be read.
        read: Reads it and holds what comes of it against the law; only errors of eqflow may leave.
        heavy: How many examples of another reader one of this costs.
    """

    broken: st.SearchStrategy[Payload]
    write: Callable[[Path, Payload], Path]
    read: Callable[[Path], None]
    heavy: int = 1


class Unsound(Exception):
    """What a reader returned, or said, breaks the law."""


def require(holds: bool, what: str) -> None:
    if not holds:
        raise Unsound(what)


def told(path: Path, read: Callable[[], Any], *kinds: type[EqflowError]) -> Any:
    """What `read` returns; or None after an error of one of the kinds that names the file."""
    expected = kinds or (DataError,)
    try:
        return read()
    except expected as error:
        text = str(error)
        require(str(path) in text, f"no file is named: {text[:300]}")
        require("Traceback" not in text and len(text) < 5_000, f"not for people: {text[:300]}")
        require(error.exit_code is not ExitCode.BUG, f"told as a bug: {text[:300]}")
        REFUSED.append(path)
        return None


def require_sound(clouds: Clouds) -> None:
    """What `read_report` promises, each pair of points held against each other."""
    x, sizes = clouds.x.numpy(), clouds.sizes.tolist()
    require(len(clouds) > 0 and min(sizes) > 0, f"sizes {sizes[:5]}")
    require(sum(sizes) == len(x) and len(clouds.source) == len(clouds), "counts differ")
    require(bool(np.isfinite(x).all()), "positions that are not finite")
    require(all(values.shape == (len(clouds),) for values in clouds.properties.values()), "shapes")
    if clouds.numbers is None:
        return
    numbers = clouds.numbers
    require(bool(((numbers >= 0) & (numbers <= LARGEST)).all()), "no element")
    require(float(np.abs(x).max()) <= ABSURD_COORDINATE, "absurd positions")
    for cloud in clouds:
        if 1 < len(cloud.x) < 500:
            pairs = torch.pdist(cloud.x.double())
            require(float(pairs.min()) >= COINCIDENT_DISTANCE * (1 - 1e-6), "coincident points")


def structures(path: Path, dimension: int | None = None) -> None:
    """Stopping at the first problem and skipping all problems agree with each other."""
    kinds = (DataError, UsageError) if path.suffix == ".npy" else (DataError,)
    stopped = told(path, lambda: read_report(path, dimension), *kinds)
    skipping = told(path, lambda: read_report(path, dimension, "skip"), *kinds)
    if stopped is not None:
        require_sound(stopped.clouds)
        require(not stopped.skipped, "found problems and did not stop")
        require(skipping is not None and not skipping.skipped, "skipped what was sound")
        require(torch.equal(skipping.clouds.x, stopped.clouds.x), "read another thing")
    elif skipping is not None:
        require_sound(skipping.clouds)
        require(len(skipping.skipped) > 0, "stopped at what is no problem")


def file(name: str) -> Callable[[Path, bytes], Path]:
    """Writes one file of a name."""

    def write(folder: Path, content: bytes) -> Path:
        path = folder / name
        path.write_bytes(content)
        return path

    return write


XYZ = [
    b"3\nwater gap=0.25\nO 0 0 0.119\nH 0 0.763 -0.477\nH 0 -0.763 -0.477\n"
    b"2\n\nH 0 0 0\nF 0 0 .92\n",
    b"5\ngdb 1\t157.7118\t157.70997\t157.70699\t0.\t13.21\t-0.3877\t0.1171\t0.5048\t35.3641\t"
    b"0.044749\t-40.47893\t-40.476062\t-40.475117\t-40.498597\t6.469\n"
    b"C\t-0.0126981359\t1.0858041578\t0.0080009958\t-0.535689\n"
    b"H\t0.002150416\t-0.0060313176\t0.0019761204\t0.133921\n"
    b"H\t1.0117308433\t1.4637511618\t2.7657481*^-4\t0.133922\n"
    b"H\t-0.540815069\t1.4475266138\t-0.8766437152\t0.133923\n"
    b"H\t-0.5238136345\t1.4379326443\t0.9063972942\t0.133923\n"
    b"1341.307\t1341.3284\nC\tC\nInChI=1S/CH4/h1H4\n",
]
EXTXYZ = [
    b'2\nLattice="9 0 0 0 9 0 0 0 9" Properties=species:S:1:pos:R:3:initial_charges:R:1:forces:R:3'
    b' "zero point"=0.5 energy=-1e3\nNa 0 0 0 1 0 0 0\nCl 2.36 0 0 -1 0 0 0\n'
    b"1\nProperties=Z:I:1:pos:R:3\n10 0 0 0\n",
    b"2\nProperties=pos:R:3:species:S:1:formal_charges:I:1\n0 0 0 X 0\n1 0 0 X 0\n",
]
V2000 = b"""water
     RDKit          3D

  3  2  0  0  0  0            999 V2000
    0.0000    0.0000    0.1190 O   0  0  0  0  0  0  0  0  0  0  0  0
    0.0000    0.7630   -0.4770 H   0  0  0  0  0  0  0  0  0  0  0  0
    0.0000   -0.7630   -0.4770 H   0  0  0  0  0  0  0  0  0  0  0  0
  1  2  1  0
  1  3  1  0
M  CHG  1   1   0
M  END
> <gap>
0.25

$$$$
"""
V3000 = b"""ammonium
     RDKit          3D

  0  0  0  0  0  0            999 V3000
M  V30 BEGIN CTAB
M  V30 COUNTS 3 2 1 0 0
M  V30 BEGIN ATOM
M  V30 1 N 0.0 0.0 0.0 0 CHG=1
M  V30 2 H 0.9 0.3 0.3 0
M  V30 3 H -0.9 0.3 -
M  V30 0.3 0
M  V30 END ATOM
M  V30 BEGIN BOND
M  V30 1 1 1 2
M  V30 2 1 1 3
M  V30 END BOND
M  V30 BEGIN SGROUP
M  V30 1 DAT 0 ATOMS=(1 1) FIELDNAME=a -
M  V30 FIELDDATA="b"
M  V30 END SGROUP
M  V30 BEGIN COLLECTION
M  V30 MDLV30/STEABS ATOMS=(1 1)
M  V30 END COLLECTION
M  V30 END CTAB
M  END
$$$$
"""
SGROUPS = b"""groups
     RDKit          3D

  4  3  0  0  1  0            999 V2000
    0.0000    0.0000    0.0000 C   0  0  1  0  0  0  0  0  0  1  0  0
    1.5000    0.0000    0.0000 R#  0  0  0  0  0  0  0  0  0  0  0  0
    0.0000    1.5000    0.0000 L   0  0  0  0  0  0  0  0  0  0  0  0
    0.0000    0.0000    1.5000 Cl  0  0  0  0  0  0  0  0  0  0  0  0
  1  2  1  1
  1  3  2  3
  1  4  1  0
  3 F    2   6   7
M  RAD  1   1   2
M  ISO  1   1  13
M  RGP  1   2   1
M  ALS   3  2 F C   N
M  STY  1   1 SUP
M  SAL   1  2   1   2
M  SBL   1  1   3
M  SMT   1 Me
M  SDT   1 name
M  ZZC   1 x
A    1
alias
M  END
$$$$
"""
SDF = [V2000 + V3000, V3000, SGROUPS + V2000, SGROUPS]
SMILES = (
    b"smiles name\nC methane\n[NH4+] ammonium\nO=C=O\nc1ccccc1 benzene\n# no molecule\nCC(=O)[O-]\n"
)


def _flat() -> dict[str, np.ndarray]:
    x = np.arange(24.0).reshape(8, 3) ** 1.5
    numbers = np.array([6, 1, 1, 8, 6, 1, 1, 1])
    return {"x": x, "ptr": np.array([0, 3, 8]), "numbers": numbers}


ARRAYS = [
    _flat() | {"formal_charges": np.zeros(8, np.int64), "gap": np.array([0.5, 0.25])},
    {
        "num_atoms": np.array([3, 5]),
        "charges": _flat()["numbers"].astype(np.int8),
        "positions": _flat()["x"].astype(np.float32),
    },
    {"positions": _flat()["x"].reshape(2, 4, 3), "numbers": np.array([6, 1, 1, 8])},
]
ARRAY_NAMES = ["x", "ptr", "numbers", "formal_charges", "num_atoms", "charges", "positions", "gap"]


@st.composite
def _npy(draw: mutations.Draw) -> bytes:
    array = draw(mutations.broken_arrays([{"x": ARRAYS[2]["positions"]}])).get("x", np.zeros(3))
    match draw(st.integers(0, 3)):
        case 0:
            return mutations.promising(array, draw(st.sampled_from(mutations.LIES)))
        case 1:
            return draw(mutations.broken_bytes([mutations.npy_bytes(array)]))
        case _:
            return mutations.npy_bytes(array)


def _write_folder(folder: Path, files: list[tuple[str, bytes]]) -> Path:
    for name, content in files:
        (folder / name).write_bytes(content)
    return folder


def _folder_files() -> st.SearchStrategy[list[tuple[str, bytes]]]:
    of_kind = [
        st.tuples(st.just("a.xyz"), mutations.broken_bytes(XYZ) | st.just(XYZ[0])),
        st.tuples(st.just("b.extxyz"), mutations.broken_bytes(EXTXYZ) | st.just(EXTXYZ[0])),
        st.tuples(st.just("c.sdf"), mutations.broken_bytes(SDF) | st.just(V2000)),
        st.tuples(st.just("d.npz"), mutations.broken_archive(ARRAYS)),
        st.tuples(st.just("notes.txt"), st.binary(max_size=10)),
    ]
    return st.lists(st.one_of(of_kind), max_size=4)


def _idx() -> bytes:
    pixels = (np.arange(3 * 4 * 5) % 7 * 40).astype(np.uint8)
    return b"\0\0\x08\x03" + struct.pack(">III", 3, 4, 5) + pixels.tobytes()


IDX = [_idx(), gzip.compress(_idx(), mtime=0), b"\0\0\x08\x03" + struct.pack(">III", 2, 0, 0)]
BOMB = gzip.compress(
    b"\0\0\x08\x03" + struct.pack(">III", 2**31, 2**31, 1) + bytes(5_000_000), mtime=0
)


def images(path: Path) -> None:
    found = told(path, lambda: read_images(path, max_points=5, dequantize=True))
    if found is not None:
        require_sound(found.clouds)


VOXELS = [
    {
        "packed": np.packbits(np.arange(2 * 27).reshape(2, 27) % 3 == 0, axis=1),
        "shape": np.array([2, 3, 3, 3]),
    }
]


def voxels(path: Path) -> None:
    found = told(path, lambda: read_voxels(path, 5))
    if found is not None:
        require_sound(found.clouds)


def _tar(members: list[tuple[str, bytes]], is_packed: bool) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return gzip.compress(buffer.getvalue(), mtime=0) if is_packed else buffer.getvalue()


QM9 = [("dsgdb9nsd_000001.xyz", XYZ[1]), ("dsgdb9nsd_000002.xyz", XYZ[0][:75])]
LIST = "".join(f"{i} C 1\n" for i in range(2, EXCLUDED_COUNT + 2)).encode()


@st.composite
def _release(draw: mutations.Draw) -> tuple[str, bytes, bytes]:
    is_packed = draw(st.booleans())
    members = [
        (name, draw(mutations.broken_bytes([content])) if draw(st.booleans()) else content)
        for name, content in QM9
    ]
    content = _tar(members, is_packed)
    if draw(st.booleans()):
        content = draw(mutations.broken_bytes([content]))
    listed = draw(mutations.broken_bytes([LIST])) if draw(st.integers(0, 3)) == 0 else LIST
    return ".tar.gz" if is_packed else ".tar", content, listed


def _write_release(folder: Path, payload: tuple[str, bytes, bytes]) -> Path:
    ending, content, listed = payload
    (folder / EXCLUDED).write_bytes(listed)
    (folder / f"release{ending}").write_bytes(content)
    return folder / f"release{ending}"


def qm9(path: Path) -> None:
    # The list of what is left out stands beside the archive, and is named where it is broken.
    found = told(path.parent, lambda: load_qm9(path))
    if found is not None and len(found):
        require_sound(found)


GRAPH_NAMES = ["node_features", "node_labels", "edges", "adj_data", "x_shape", "name", "encoding"]


def _graphs() -> list[dict[str, np.ndarray]]:
    plain = tiny_nodes.arrays(12)
    edges = plain["edge_index"]
    indptr = np.concatenate([[0], np.cumsum(np.bincount(edges[0], minlength=12))])
    order = np.lexsort((edges[1], edges[0]))
    sparse = {
        "adj_shape": np.array([12, 12]),
        "adj_indptr": indptr,
        "adj_indices": edges[1][order],
        "adj_data": np.ones(len(order), np.float32),
        "attr_shape": np.array([12, 6]),
        "attr_indptr": np.arange(13),
        "attr_indices": np.arange(12) % 6,
        "attr_data": np.ones(12, np.float32),
        "labels": plain["y"],
    }
    masks = {f"{part}_masks": plain[f"{part}_mask"].T for part in ("train", "val", "test")}
    heterophilous = {
        "node_features": plain["x"],
        "node_labels": plain["y"],
        "edges": edges.T,
        **masks,
    }
    more = {"encoding": plain["x"][:, :2], "ptr": np.array([0, 12]), "name": np.array("tiny")}
    return [plain, plain | more, sparse, heterophilous]


def graph(path: Path) -> None:
    for needs_labels in (True, False):
        read = partial(load_graph, "file", path, needs_labels=needs_labels)
        found = told(path, read)
        if found is not None:
            require_graph(found)


def require_graph(found: Graph) -> None:
    nodes = found.nodes
    require(nodes > 0 and found.x.shape[0] == nodes == len(found.y), "counts differ")
    values = found.x.values() if found.x.layout is torch.sparse_csr else found.x
    require(bool(values.isfinite().all()), "features that are not finite")
    ends = torch.cat([found.edges.sender, found.edges.receiver])
    require(
        not ends.numel() or bool((ends >= 0).all() and (ends < nodes).all()), "edges to nowhere"
    )
    require(int(found.y.min()) >= -1, "labels")
    for split in found.splits:
        require(all(bool(part.any()) for part in split.parts.values()), "an empty part")


RAW = ["ind.cora.x", "ind.cora.graph", "ind.cora.test.index"]


def citations(path: Path) -> None:
    require(told(path, lambda: load_graph("cora", path)) is None, "another file was taken for Cora")


def enf(path: Path) -> None:
    told(path, lambda: read_enf(path, SolverConfig()))


def _published() -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in enf_files.published().items()}


SETTINGS = {"args.model": np.array("egnn_dynamics"), "args.actnorm": np.array(True)}
HISTOGRAM = {"n_nodes.keys": np.array([3, 5]), "n_nodes.prob": np.array([0.5, 0.5])}


@st.composite
def _original_files(draw: mutations.Draw) -> dict[str, bytes]:
    found = {}
    for name, file_name in (("flow.", "flow.npy"), ("dequantizer.", "dequantizer.npy")):
        state = {
            key.removeprefix(name): value
            for key, value in enf_files.published().items()
            if key.startswith(name)
        }
        found[file_name] = saved(state)
    name = draw(st.sampled_from(sorted(found)))
    found[name] = (
        mutations.repacked(draw, found[name])
        if draw(st.booleans())
        else draw(mutations.broken_bytes([found[name]]))
    )
    return found


def saved(state: Any) -> bytes:
    """What `torch.save` writes."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def formula(path: Path) -> None:
    text = path.read_bytes().decode()
    try:
        numbers = numbers_of_formula(text)
    except EqflowError as error:
        require(error.exit_code in (ExitCode.USAGE, ExitCode.DATA), str(error)[:300])
        require(len(str(error)) < 5_000, "not for people")
        REFUSED.append(path)
        return
    require(0 < len(numbers) <= 10**6 and numbers == sorted(numbers), "no formula")


def properties(path: Path) -> None:
    words = path.read_bytes().decode().split("\n")
    try:
        found = properties_of(words)
    except UsageError as error:
        require(str(error).startswith("properties: found"), str(error)[:300])
        REFUSED.append(path)
        return
    require(all(map(math.isfinite, found.values())), "no numbers")


SPACES = ["[1e-4,1e-1,log]", "[16,128]", "relu|tanh", "[0,1", "true|false", "1|2|3"]
SPACE_KEYS = [
    "train.learning_rate",
    "model.width",
    "model",
    "train.steps",
    "data.elements",
    "nokey",
]


def space(path: Path) -> None:
    key, _, text = path.read_bytes().decode().partition("\n")
    try:
        found = parsed({key: text}, train_keys([]), options_of_train([]))
    except UsageError as error:
        require(str(error).startswith(f"space.{key}"), str(error)[:300])
        REFUSED.append(path)
        return
    require(set(found) == {key}, "another key")


WORDS = ["train.steps=10", "model.width=1e2", "data.elements=[H,C]", "experiment=dw4", "model=e3nn"]
WORDS += ["data.path=/a b/ü.xyz", "train.minutes=null", "run.dir=${seed}", "data.properties=[gap]"]


def command(path: Path) -> None:
    words = path.read_bytes().decode().split("\n")
    try:
        composed("train", words)
    except UsageError as error:
        require(bool(str(error).strip()) and len(str(error)) < 50_000, "not for people")
        REFUSED.append(path)


# A run folder in all its parts, made once a process.
class RunFolder:
    """A tiny run that was stopped, and the pieces of it that are broken."""

    def __init__(self) -> None:
        import tempfile

        self.place = Path(tempfile.mkdtemp(prefix="run-"))
        self.data = tiny.particles(self.place / "a.npy", count=24)
        self.words = tiny.words(
            self.data, self.place / "run", "train.tensorboard=false", "train.steps=20"
        )[1:]
        run = Run(composed("train", self.words), lambda line: None)
        run.train(lambda: True, lambda trainer, figures: None)
        self.files = {
            str(path.relative_to(self.place / "run")): path.read_bytes()
            for path in sorted((self.place / "run").rglob("*"))
            if path.is_file() and path.suffix != ".sha256"
        }
        (self.state,) = [name for name in self.files if name.endswith(".pt")]

    @classmethod
    def made(cls) -> RunFolder:
        if _MADE.get("run") is None:
            _MADE["run"] = cls()
        return _MADE["run"]


_MADE: dict[str, Any] = {}
TEXTS = ["config.yaml", "provenance.json", "summary.json", "metrics.csv", "log.txt"]


@st.composite
def _run_files(draw: mutations.Draw) -> dict[str, bytes]:
    made = RunFolder.made()
    files = dict(made.files)
    files["summary.json"] = b'{"steps": 3, "ended_by": "train.steps"}'
    if draw(st.booleans()):
        del files["summary.json"]
    match draw(st.integers(0, 4)):
        case 0:
            state = torch.load(io.BytesIO(files[made.state]), weights_only=True)
            files[made.state] = saved(draw(mutations.broken_tree(state)))
        case 1:
            files[made.state] = mutations.repacked(draw, files[made.state])
        case 2:
            files[made.state] = draw(mutations.broken_bytes([files[made.state]]))
        case 3:
            plain = yaml.safe_load(files["config.yaml"])
            files["config.yaml"] = yaml.safe_dump(draw(mutations.broken_tree(plain))).encode()
        case _:
            name = draw(st.sampled_from([name for name in TEXTS if name in files]))
            files[name] = draw(mutations.broken_bytes([files[name]]))
    return files


def _write_files(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def resumed(path: Path) -> None:
    made = RunFolder.made()
    words = [word for word in made.words if not word.startswith("run.dir=")]
    run = Run(composed("train", [*words, f"run.dir={path}"]), lambda line: None)
    told(
        path,
        lambda: run.train(lambda: True, lambda trainer, figures: None),
        DataError,
        UsageError,
    )


@st.composite
def _weights(draw: mutations.Draw) -> bytes:
    if "weights" not in _MADE:
        import tempfile

        folder = Path(tempfile.mkdtemp(prefix="weights-"))
        tiny.joint_run(folder)
        made = RunFolder.made()
        _MADE["weights"] = [(folder / WEIGHTS).read_bytes(), made.files[WEIGHTS]]
    content = draw(st.sampled_from(_MADE["weights"]))
    if draw(st.integers(0, 2)) == 0:
        return draw(mutations.broken_bytes([content]))
    header, data = mutations.split_safetensors(content)
    match draw(st.integers(0, 2)):
        case 0:
            header = draw(mutations.broken_tree(header))
        case _:
            key = draw(st.sampled_from(["config", "statistics"]))
            tree = draw(mutations.broken_tree(json.loads(header["__metadata__"][key])))
            header["__metadata__"][key] = json.dumps(tree)
    return mutations.safetensors_bytes(header, data)


def weights(path: Path) -> None:
    told(path, lambda: load(path))


TARGETS: dict[str, Target] = {
    "xyz": Target(mutations.broken_bytes(XYZ), file("a.xyz"), structures),
    "extxyz": Target(mutations.broken_bytes(EXTXYZ), file("a.extxyz"), structures),
    "sdf": Target(mutations.broken_bytes(SDF), file("a.sdf"), structures),
    "smi": Target(mutations.broken_bytes([SMILES]), file("a.smi"), structures, heavy=40),
    "npz": Target(mutations.broken_archive(ARRAYS, ARRAY_NAMES), file("a.npz"), structures),
    "npy": Target(_npy(), file("a.npy"), lambda path: structures(path, 3)),
    "folder": Target(_folder_files(), _write_folder, structures, heavy=2),
    "images": Target(mutations.broken_bytes([*IDX, BOMB]), file("a.gz"), images),
    "voxels": Target(mutations.broken_archive(VOXELS, ["packed", "shape"]), file("a.npz"), voxels),
    "qm9": Target(_release(), _write_release, qm9, heavy=2),
    "graph": Target(mutations.broken_archive(_graphs(), GRAPH_NAMES), file("a.npz"), graph),
    "planetoid": Target(
        st.dictionaries(st.sampled_from(RAW), st.binary(max_size=50), max_size=3),
        _write_files,
        citations,
    ),
    "enf archive": Target(
        mutations.broken_archive([_published() | SETTINGS, _published() | HISTOGRAM]),
        file("a.npz"),
        enf,
        heavy=3,
    ),
    "enf folder": Target(_original_files(), _write_files, enf, heavy=3),
    "weights": Target(_weights(), file("a.safetensors"), weights, heavy=2),
    "run": Target(_run_files(), _write_files, resumed, heavy=20),
    "formula": Target(
        mutations.broken_words(["C2H6O", "Na+Cl-", "(CH3)2CO", "C60"]).map(str.encode),
        file("formula"),
        formula,
    ),
    "properties": Target(
        mutations.broken_words(["gap=0.3\nmu=1.2", "gap=-1e-3"]).map(str.encode),
        file("properties"),
        properties,
    ),
    "space": Target(
        st.builds(
            lambda key, text: f"{key}\n{text}".encode(),
            st.sampled_from(SPACE_KEYS),
            mutations.broken_words(SPACES),
        ),
        file("space"),
        space,
    ),
    "words": Target(
        st.lists(st.sampled_from(WORDS) | mutations.broken_words(WORDS), max_size=4).map(
            lambda words: "\n".join(words).encode("utf-8", "surrogatepass")
        ),
        file("words"),
        command,
        heavy=30,
    ),
}
