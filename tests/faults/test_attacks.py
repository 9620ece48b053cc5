"""Pickles where files belong: none is ever opened, by any verb, under any name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import tiny_nodes
from canaries import ends_of, forms, openings
from processes import environment

import eqflow
from eqflow.graphs.citations import PARTS

STRUCTURES = (".xyz", ".extxyz", ".sdf", ".npz", ".npy", ".smi")
Injected = Callable[[], None]

NEVER = "never opened, refused by its name, exit 3"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run and one that was stopped, with their data, and what is left of a search."""
    folder = tmp_path_factory.mktemp("attacks")
    data = tiny.particles(folder / "data.npy")
    assert tiny.train(data, folder / "run") == 0
    tiny.train_until(data, folder / "stopped", 4)
    tiny_nodes.graph(folder / "graph.npz")
    return folder


@pytest.fixture(scope="module")
def mark(base: Path) -> Path:
    return base / "the canary sang"


@pytest.fixture(scope="module")
def pickles(mark: Path) -> dict[str, bytes]:
    return forms(mark)


class Attack:
    """Files planted one by one, each with the command that is to meet it."""

    def __init__(self, folder: Path, mark: Path, injected: Injected) -> None:
        self.folder, self.mark, self.injected = folder, mark, injected
        self.cases: list[list[str]] = []
        self.planted: list[Path] = []

    def plant(self, path: Path, content: bytes, *words: str) -> None:
        """Put content at a place and remember the command; `{}` in words is the place."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self.cases.append([word.replace("{}", str(path)) for word in words])
        self.planted.append(path)
        self.injected()

    def outcome(self, *codes: int, named: bool = True, **options: object) -> list[list[object]]:
        """How all ended: none opened, each with one of the codes and the file in its message."""
        ends = ends_of(self.cases, self.folder, self.mark, **options)
        for words, path, (code, out, err, sang) in zip(self.cases, self.planted, ends, strict=True):
            told = f"{words}\n{code}\n{out}\n{err}"
            assert not sang, told
            assert code in codes, told
            assert not named or str(path) in err, told
            assert "Traceback" not in out + err, told
        return ends


@pytest.fixture
def attack(tmp_path: Path, mark: Path, injected: Injected) -> Attack:
    return Attack(tmp_path, mark, injected)


def test_the_canary_sings_for_whoever_opens_it(pickles: dict[str, bytes], mark: Path) -> None:
    import pickle

    for name, content in pickles.items():
        opening = openings().get(name, pickle.loads)
        opening(content)
        assert mark.exists(), name
        mark.unlink()


@pytest.mark.fault(4, "a pickle, in 12 forms, as the weights of a run", NEVER)
def test_no_verb_opens_a_pickle_as_weights(
    base: Path, pickles: dict[str, bytes], attack: Attack
) -> None:
    data = base / "data.npy"
    for place, content in enumerate(pickles.values()):
        run = attack.folder / f"run {place}"
        shutil.copytree(base / "run", run)
        (run / "weights.safetensors.sha256").unlink()
        weights = run / "weights.safetensors"
        attack.plant(weights, content, "sample", f"run={run}", "out=x.npy", "n=2")
        attack.plant(weights, content, "check", "run={}")
        for ending in (".safetensors", ".pt", ".npy", ".npz", ".pkl"):
            alone = attack.folder / f"alone {place}{ending}"
            attack.plant(alone, content, "score", "run={}", f"data.path={data}", "out=x.csv")
    ends = attack.outcome(3)
    for path, (_, _, err, _) in zip(attack.planted, ends, strict=True):
        if path.read_bytes()[:1] not in b"\x1f\x93":  # neither compressed nor numpy's own
            assert "never opened because it can run code" in str(err), err
            assert "convert it where it was made" in str(err), err
    assert not list(attack.folder.glob("x.*"))


@pytest.mark.slow
@pytest.mark.fault(4, "a pickle, in 12 forms, as the state to resume from", NEVER)
def test_no_state_is_unpickled(base: Path, pickles: dict[str, bytes], attack: Attack) -> None:
    for place, content in enumerate(pickles.values()):
        run = attack.folder / f"run {place}"
        shutil.copytree(base / "stopped", run)
        states = sorted((run / "checkpoints").glob("*.pt"))
        for state in states:
            state.write_bytes(content)
            (run / "checkpoints" / f"{state.name}.sha256").unlink()
        attack.plant(states[0], content, *tiny.words(base / "data.npy", run))
    attack.outcome(3, env=environment(PYTHONOPTIMIZE="1"))


@pytest.mark.slow
@pytest.mark.fault(
    4, "a pickle as any other file of a run folder", "never opened; refused, or written anew"
)
def test_no_file_of_a_run_folder_is_unpickled(
    base: Path, pickles: dict[str, bytes], attack: Attack
) -> None:
    names = ("provenance.json", "summary.json", "metrics.csv", "log.txt", "tensorboard/events.out")
    chosen = ("pickle 0", "pickle 5", "state", "npz")
    for form in chosen:
        for name in names:
            run = attack.folder / f"{form} as {name.replace('/', ' ')}"
            shutil.copytree(base / "stopped", run)
            words = tiny.words(base / "data.npy", run)
            attack.plant(run / name, pickles[form], *words, "train.tensorboard=true")
        run = attack.folder / f"{form} as config"
        shutil.copytree(base / "stopped", run)
        attack.plant(run / "config.yaml", pickles[form], *tiny.words(base / "data.npy", run))
    attack.outcome(0, 2, 3, named=False)


@pytest.mark.slow
@pytest.mark.fault(4, "a pickle, in 12 forms, as data of each ending", NEVER)
def test_no_reader_of_structures_unpickles(
    base: Path, pickles: dict[str, bytes], attack: Attack
) -> None:
    for place, content in enumerate(pickles.values()):
        for ending in STRUCTURES:
            path = attack.folder / f"data {place}{ending}"
            attack.plant(path, content, "score", f"run={base / 'run'}", "data.path={}", "out=x.csv")
        path = attack.folder / f"data {place}.npz"
        sample = ["sample", f"run={base / 'run'}", "out=x.npy"]
        attack.plant(path, content, *sample, "like={}")
        attack.plant(path, content, *sample, "fixed={}")
    ends = attack.outcome(3, env=environment(PYTHONOPTIMIZE="1"))
    for (_, _, err, _), path in zip(ends, attack.planted, strict=True):
        if path.read_bytes()[:1] in b"c(\x80":
            assert "never opened because it can run code" in str(err), err
            assert "convert it where it was made" in str(err), err


@pytest.mark.slow
@pytest.mark.fault(4, "a pickle, in 12 forms, as data of each ending", NEVER)
def test_no_training_opens_a_pickle_as_data(
    base: Path, pickles: dict[str, bytes], attack: Attack
) -> None:
    for place, content in enumerate(pickles.values()):
        run = attack.folder / "run"
        for ending in STRUCTURES:
            attack.plant(
                attack.folder / f"data {place}{ending}", content, *tiny.words(Path("{}"), run)
            )
        for source, ending in (("images", ".gz"), ("images", ".idx"), ("voxels", ".npz")):
            path = attack.folder / f"{source} {place}{ending}"
            words = tiny.words(Path("{}"), run, f"data.source={source}", "data.dimension=3")
            if source == "images":
                words[words.index("data.dimension=3")] = "data.dimension=2"
            attack.plant(path, content, *words)
        graph = attack.folder / f"graph {place}.npz"
        attack.plant(graph, content, *tiny_nodes.words(Path("{}"), run))
    attack.outcome(3)
    assert not (attack.folder / "run").exists()


@pytest.mark.slow
@pytest.mark.fault(4, "a pickle in place of the raw files of Cora", NEVER)
def test_raw_files_of_citation_graphs_are_known_or_not_opened(
    pickles: dict[str, bytes], attack: Attack
) -> None:
    for place, content in enumerate([*pickles.values(), b""]):
        folder = attack.folder / f"raw {place}"
        for part in PARTS:
            (folder / "Cora" / "raw").mkdir(parents=True, exist_ok=True)
            (folder / "Cora" / "raw" / f"ind.cora.{part}").write_bytes(content)
        words = ["train", "experiment=cora", f"data.path={folder}", "run.dir=run"]
        attack.plant(folder / "Cora" / "raw" / "ind.cora.x", content, *words)
        # The same in the cache, where a download left it: it is downloaded anew, from nowhere.
        cached = attack.folder / "cache" / "planetoid" / "ind.cora.x"
        if not place:
            attack.plant(cached, content, "train", "experiment=cora", "run.dir=run")
    proxies = dict.fromkeys(("https_proxy", "HTTPS_PROXY"), "http://127.0.0.1:9")
    env = environment(EQFLOW_CACHE=str(attack.folder / "cache"), **proxies)
    for name in ("no_proxy", "NO_PROXY"):
        env.pop(name, None)
    attack.outcome(3, env=env, named=True)
    assert not (attack.folder / "run").exists()


@pytest.mark.slow
@pytest.mark.fault(4, "a pickle, in 12 forms, as published weights", NEVER)
def test_published_weights_are_not_unpickled(pickles: dict[str, bytes], attack: Attack) -> None:
    for place, content in enumerate(pickles.values()):
        path = attack.folder / f"weights {place}.npz"
        attack.plant(path, content, "import-enf", "weights={}", "run.dir=made")
        folder = attack.folder / f"folder {place}"
        folder.mkdir()
        (folder / "dequantizer.npy").write_bytes(content)
        attack.plant(
            folder / "flow.npy", content, "import-enf", f"weights={folder}", "run.dir=made"
        )
    attack.outcome(3)
    assert not (attack.folder / "made").exists()


@pytest.mark.slow
@pytest.mark.fault(4, "a pickle as a file of a search", "never opened, refused by its name")
def test_no_file_of_a_search_is_unpickled(
    base: Path, pickles: dict[str, bytes], attack: Attack
) -> None:
    pytest.importorskip("optuna")
    for form in ("pickle 0", "pickle 5", "npz"):
        for name in ("study.db", "search.yaml"):
            folder = attack.folder / f"{form} as {name}"
            words = [f"data.path={base / 'graph.npz'}", *tiny_nodes.MODEL, *tiny_nodes.LOOP]
            space = ["space.train.learning_rate=[1e-3,0.3,log]", "trials=1", f"dir={folder}"]
            attack.plant(folder / name, pickles[form], "tune", *words, *space)
    attack.outcome(2, 3)  # an old pickle is a line of YAML as well: then it is another search


@pytest.mark.fault(4, "a pickle given to Python's `eqflow.load`, `read` and `load_graph`", NEVER)
def test_python_opens_none_either(
    pickles: dict[str, bytes], tmp_path: Path, mark: Path, injected: Injected
) -> None:
    from eqflow.data import read_images, read_voxels
    from eqflow.errors import DataError
    from eqflow.graphs import load_graph, read_graph
    from eqflow.train.checkpoint import read_state

    doors: list[tuple[str, Callable[[Path], object]]] = [
        *((ending, eqflow.read) for ending in STRUCTURES),
        (".safetensors", eqflow.load),
        (".pt", read_state),
        (".npz", read_graph),
        (".npz", lambda path: load_graph("file", path)),
        (".npz", read_voxels),
        (".gz", read_images),
    ]
    for content in pickles.values():
        for ending, door in doors:
            path = tmp_path / f"file{ending}"
            path.write_bytes(content)
            with pytest.raises(DataError, match=path.name):
                door(path)
            assert not mark.exists()
            injected()


# Code that lies about in the folder where one works


@pytest.mark.fault(
    4,
    "modules, plugins and settings planted in the current folder",
    "none of them is imported by the command or its workers",
)
@pytest.mark.slow
def test_what_lies_in_the_current_folder_is_not_imported(
    tmp_path: Path, injected: Injected
) -> None:
    import subprocess
    import sys

    mark = tmp_path / "the canary sang"
    here = tmp_path / "here"
    here.mkdir()
    code = f"open({str(mark)!r}, 'w').close()\n"
    modules = ["torch", "yaml", "hydra", "numpy", "matplotlib", "json", "eqflow", "evil", "pickle"]
    modules += ["sitecustomize", "usercustomize", "conftest", "optuna", "triton", "rdkit", "ase"]
    for module in modules:
        (here / f"{module}.py").write_text(code)
        injected()
    (here / "hydra_plugins").mkdir()
    (here / "hydra_plugins" / "evil.py").write_text(code)
    (here / "hydra_plugins" / "__init__.py").write_text(code)
    (here / "matplotlibrc").write_text("backend: module://evil\n")
    (here / ".hydra").mkdir()
    (here / "config.yaml").write_text("hydra:\n  searchpath: [file:///tmp]\n_target_: os.system\n")
    (here / "configs").mkdir()
    (here / "configs" / "doctor.yaml").write_text("_target_: os.system\ndir: ${oc.env:HOME}\n")
    # The console script, as installers make it: its own folder is searched, not the current one.
    script = tmp_path / "bin" / "eqflow"
    script.parent.mkdir()
    script.write_text("import sys\nfrom eqflow.cli.main import main\nsys.exit(main())\n")
    molecules = tmp_path / "molecules.smi"  # these are embedded by a process of their own
    molecules.write_text("C\nCC\nCO\nO\nCCO\nCCC\nOO\nCOC\n")
    train = ["train", f"data.path={molecules}", f"run.dir={tmp_path / 'run'}"]
    train += [*tiny.MODEL, *tiny.LOOP, "data.elements=H,C,O", "data.validation=0.2"]
    for words in (["doctor"], [*train, "data.test=0.2"]):
        ended = subprocess.run(
            [sys.executable, str(script), *words],
            cwd=here,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert not mark.exists(), words
        assert ended.returncode == 0, ended.stdout + ended.stderr
        if words == ["doctor"]:
            assert f"from {Path(eqflow.__file__).parent}" in ended.stdout
    others = ["hydra_plugins", "matplotlibrc", ".hydra", "config.yaml", "configs"]
    assert sorted(os.listdir(here)) == sorted([*(f"{module}.py" for module in modules), *others])
