"""The shape of the house, read off the source: imports point one way, each danger has one door."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

PACKAGE = Path(__file__).resolve().parents[1] / "eqflow"

# What each part may import, at module level or within a function. There are no other parts.
GROUND = {"errors", "rng", "storage", "halving"}
MAY_IMPORT = {
    "errors": set(),
    "rng": {"errors"},
    "storage": {"errors"},
    "halving": {"errors"},
    "geometry": GROUND,
    "edges": GROUND | {"geometry"},
    "nn": GROUND | {"geometry", "edges"},
    "flows": GROUND | {"geometry", "edges", "nn", "chem"},
    "graphs": GROUND | {"geometry", "edges", "nn", "flows", "data"},
    "targets": GROUND | {"geometry"},
    "testing": GROUND | {"geometry"},
    "chem": GROUND | {"geometry"},
    "data": GROUND | {"geometry", "chem"},
    "evaluate": GROUND
    | {"geometry", "edges", "nn", "flows", "graphs", "chem", "targets", "testing"},
    "view": GROUND | {"geometry", "chem"},
    "train": GROUND
    | {"geometry", "edges", "nn", "flows", "graphs", "chem", "data", "targets", "evaluate"},
}
TOP = {"cli", "__init__", "__main__"}  # these may import everything

# Doors from the bottom of the house to the top, opened only when someone goes through.
DOORS = {
    ("geometry/clouds.py", "eqflow.data.files"),
    ("geometry/clouds.py", "eqflow.data.pyg"),
    ("geometry/clouds.py", "eqflow.chem.convert"),
    ("testing/symmetry.py", "eqflow.evaluate.symmetry"),
    ("testing/symmetry.py", "eqflow.train.weights"),
}

# Where each outside package may be imported; others may be imported anywhere.
HOMES = {
    "hydra": {"cli"},
    "optuna": {"cli"},
    "torchdiffeq": {"flows/ode.py"},
    "rdkit": {"chem", "evaluate", "view"},
    "ase": {"chem", "data", "targets", "evaluate", "view"},
}
# Even there only within the function that needs it, so that no one else pays for the import.
LAZY = {("data", "ase"), ("targets", "ase")}

# They unpickle, or run text as code.
FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "jsonpickle", "joblib"}
FORBIDDEN_MODULES |= {"shelve", "marshal", "pandas", "runpy", "code", "codeop", "imp"}
# Deeper modules that do, each with the one file in which something else stands guard.
GUARDED = {
    "torch_geometric.io": "graphs/citations.py",  # only the very bytes whose SHA-256 is known
    "torch_geometric.datasets": "",
    "urllib.request": "data/download.py",  # only over TLS, only with a checksum
    "hydra.utils": "",
    "torch.hub": "",
    "torch.package": "",
}
# Calls by their full name, and what they do.
FORBIDDEN_CALLS = {
    **dict.fromkeys(("eval", "exec", "compile", "builtins.eval", "builtins.exec"), "runs text"),
    **dict.fromkeys(("os.system", "os.popen", "subprocess.getoutput"), "asks a shell"),
    **dict.fromkeys(("torch.jit.load", "torch.hub.load", "torch.export.load"), "loads code"),
    **dict.fromkeys(("np.fromregex", "numpy.fromregex"), "is not needed"),
}
# Methods, of whatever they are called.
FORBIDDEN_METHODS = {
    "read_pickle": "unpickles",
    "add_safe_globals": "lets an unpickler call what is named",
    "unsafe_load": "makes objects of tags of YAML",
    "full_load": "makes objects of tags of YAML",
    "register_new_resolver": "lets a config call what is named",
    "instantiate": "lets a config call what is named",
    "broadcast_object_list": "unpickles what another process sends",
    "all_gather_object": "unpickles what another process sends",
    "gather_object": "unpickles what another process sends",
    "scatter_object_list": "unpickles what another process sends",
    "recv_object_list": "unpickles what another process sends",
    "extractall": "unpacks an archive to wherever it says; read its members as streams",
    "unpack_archive": "unpacks an archive to wherever it says; read its members as streams",
    "mktemp": "names a file that someone else may make first",
}
# A word of the command line, and nothing out of a file, names what is imported by its name.
NAMED_BY_THE_USER = {"pkgutil.resolve_name": "cli/target.py"}
RANDOM_MODULES = {"random"}
TORCH_DRAWS = {"rand", "randn", "randint", "randperm", "normal", "multinomial", "bernoulli"}
GLOBAL_DRAWS = {"rand_like", "randn_like", "randint_like", "manual_seed", "seed"}

# Functions that are checked as they are called; under a bare name nobody would know them.
BARE = {"torch.load", "numpy.load", "yaml.load", "os.system", "os.popen", "builtins.eval"}

# Functions that open a path, mode second; any other `.open` is a method of a path, mode first.
OPENERS = {"open", "io.open", "os.fdopen", "gzip.open", "bz2.open", "lzma.open", "tarfile.open"}
OPENERS |= {"zipfile.ZipFile", "ZipFile"}

MODULES = [
    (path.relative_to(PACKAGE).as_posix(), path.read_text(encoding="utf-8"))
    for path in sorted(PACKAGE.rglob("*.py"))
]


def part_of(module: str) -> str:
    """`geometry/clouds.py` and `eqflow.geometry.clouds` are both of the part `geometry`."""
    if "/" in module or module.endswith(".py"):
        return module.split("/")[0].removesuffix(".py")
    names = module.split(".")
    return names[1] if len(names) > 1 else "__init__"


def imports(module: str, tree: ast.Module) -> Iterator[tuple[int, str, bool]]:
    """Line, full name, and whether it is within a function, of every import that is executed."""
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    within = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        # A name used for types alone costs nothing, unless it is one of ours.
        quiet = id(node) in typing_only
        for name in names_of(module, node):
            if not quiet or name.split(".")[0] == "eqflow":
                yield node.lineno, name, id(node) in within


def names_of(module: str, node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.Call) and ast.unparse(node.func) in (
        "importlib.import_module",
        "import_module",
        "__import__",
    ):
        first = node.args[0] if node.args else None
        return [first.value] if isinstance(first, ast.Constant) else ["a computed name"]
    if not isinstance(node, ast.ImportFrom):
        return []
    if node.level:
        above = ["eqflow", *module.split("/")[:-1]]
        above = above[: len(above) - node.level + 1]
        source = ".".join([*above, *([node.module] if node.module else [])])
    else:
        source = node.module or ""
    # A function under its bare name would be called past the checks of calls.
    if any(f"{source}.{alias.name}" in BARE for alias in node.names):
        return ["pickle"]
    # What torch.load raises on a file that is no state: an exception's name runs nothing.
    if source == "pickle" and [alias.name for alias in node.names] == ["UnpicklingError"]:
        return []
    # `from eqflow import rng` imports the part rng; deeper names do not change the part.
    if source == "eqflow":
        return [f"eqflow.{alias.name}" for alias in node.names]
    return [source]


def wrong_imports(module: str, source: str) -> list[str]:
    part, found = part_of(module), []
    for line, name, within in imports(module, ast.parse(source)):
        where, root = f"eqflow/{module}:{line}", name.split(".")[0]
        for deep, home in GUARDED.items():
            if f"{name}.".startswith(f"{deep}.") and module != home:
                found.append(f"{where}: {name} may be imported only in {home or 'no module'}")
        if root in FORBIDDEN_MODULES:
            found.append(f"{where}: {name} may run code from a file; nothing is unpickled")
        if root in RANDOM_MODULES or name.startswith("numpy.random"):
            found.append(f"{where}: {name} is global randomness; draw through eqflow.rng")
        if name == "a computed name":
            found.append(f"{where}: imports {name}, which no one can check")
        if root == "eqflow" and part not in TOP:
            allowed = MAY_IMPORT.get(part)
            if allowed is None:
                found.append(f"{where}: {part} has no place in MAY_IMPORT")
            elif part_of(name) not in allowed | {part} and not (within and (module, name) in DOORS):
                found.append(f"{where}: {part} may not import {name}")
        if root in HOMES:
            home = HOMES[root] & {part, module}
            if not home:
                found.append(f"{where}: {root} may be imported only in {sorted(HOMES[root])}")
            elif (part, root) in LAZY and not within:
                found.append(f"{where}: {root} may be imported in {part} only within a function")
    return found


def wrong_calls(module: str, source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            reason = wrong_call(module, node)
            if reason:
                found.append(f"eqflow/{module}:{node.lineno}: {ast.unparse(node.func)} {reason}")
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in ("np.random", "numpy.random"):
            found.append(f"eqflow/{module}:{node.lineno}: draws past eqflow.rng")
    return found


def wrong_call(module: str, call: ast.Call) -> str | None:
    name = ast.unparse(call.func)
    last = name.split(".")[-1]
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if name in FORBIDDEN_CALLS or last in FORBIDDEN_METHODS:
        return FORBIDDEN_CALLS.get(name) or FORBIDDEN_METHODS[last]
    if NAMED_BY_THE_USER.get(name, module) != module:
        return "imports what is named; only the user may name it"
    if keywords.get("shell", "False") != "False":
        return "asks a shell"
    if name in ("yaml.load", "yaml.load_all") and keywords.get("Loader") != "yaml.SafeLoader":
        return "makes objects of tags of YAML"
    if last == "read_array" and keywords.get("allow_pickle") != "False":
        return "unpickles with allow_pickle"
    if name == "torch.load" and keywords.get("weights_only") != "True":
        return "unpickles without weights_only=True"
    if (
        name in ("np.load", "numpy.load", "np.lib.npyio.NpzFile")
        and keywords.get("allow_pickle", "False") != "False"
    ):
        return "unpickles with allow_pickle"
    if module != "rng.py":
        if last == "manual_seed" or (name.startswith("torch.") and last in GLOBAL_DRAWS):
            return "touches the global generator; draw through eqflow.rng"
        if name.startswith("torch.") and last in TORCH_DRAWS and "generator" not in keywords:
            return "draws from the global generator; pass one made by eqflow.rng"
    if module != "storage.py" and writes(call, name, last):
        return "writes a file past eqflow.storage"
    return None


def writes(call: ast.Call, name: str, last: str) -> set[str]:
    """The modes in which a call opens a file to write, `?` where that is decided as it runs."""
    if last in ("write_text", "write_bytes"):
        return {"w"} if "." in name and not name.startswith("storage.") else set()
    if name == "os.open":
        return {"w"} if "O_CREAT" in ast.unparse(call) else set()
    if last not in ("open", "fdopen", "ZipFile"):
        return set()
    position = 1 if name in OPENERS else 0
    modes = [keyword.value for keyword in call.keywords if keyword.arg == "mode"]
    modes += call.args[position : position + 1]
    texts = [str(mode.value) if isinstance(mode, ast.Constant) else "?" for mode in modes]
    return {letter for text in texts for letter in text if letter in "wax+?"}


# The house itself.


@pytest.mark.parametrize(("module", "source"), MODULES, ids=[name for name, _ in MODULES])
def test_a_module_imports_only_what_lies_below_it(module, source):
    assert not wrong_imports(module, source)


BESIDE = [PACKAGE.parent / name for name in ("train.py", "sample.py", "pytest_eqflow.py")]


@pytest.mark.parametrize("path", [path for path in BESIDE if path.is_file()], ids=lambda p: p.name)
def test_what_is_beside_the_package_opens_nothing_unsafe_either(path):
    source = path.read_text(encoding="utf-8")
    assert not wrong_calls("cli/x.py", source)
    assert not wrong_imports("cli/x.py", source)


CONFIGS = sorted((PACKAGE.parent / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_config_names_no_code_and_reads_no_environment(path):
    assert not wrong_in_config(path.read_text(encoding="utf-8"))


def wrong_in_config(text: str) -> list[str]:
    """What of a config would call something, read the environment or search other folders."""
    events = list(yaml.parse(text, Loader=yaml.SafeLoader))
    tags = [event.tag for event in events if getattr(event, "tag", None)]
    values = [event.value for event in events if isinstance(event, yaml.ScalarEvent)]
    bad = [
        value for value in values if re.search(r"\$\{[^}]*:|_target_|^hydra\b|searchpath", value)
    ]
    return [*tags, *bad]


@pytest.mark.parametrize(("module", "source"), MODULES, ids=[name for name, _ in MODULES])
def test_a_module_draws_writes_and_loads_only_through_the_doors(module, source):
    assert not wrong_calls(module, source)


def test_the_parts_can_be_put_in_order():
    below: set[str] = set()
    left = dict(MAY_IMPORT)
    while left:
        ready = {part for part, needs in left.items() if needs <= below}
        assert ready, f"{sorted(left)} import each other in a circle"
        below |= ready
        left = {part: needs for part, needs in left.items() if part not in ready}


def test_every_door_is_used():
    """An exception nobody needs is taken off the list."""
    sources = dict(MODULES)
    used = {
        (module, name)
        for module in {door[0] for door in DOORS}
        for _, name, _ in imports(module, ast.parse(sources[module]))
    }
    assert used >= DOORS


# The check itself, on small bad examples.

BAD_IMPORTS = [
    ("geometry/x.py", "from eqflow.edges import Edges"),
    ("geometry/x.py", "from eqflow import nn"),
    ("geometry/x.py", "import eqflow.flows.ode"),
    ("geometry/x.py", "from ..nn import egnn"),
    ("geometry/x.py", "def f():\n    from eqflow.data.files import write"),
    ("geometry/x.py", "import importlib\nimportlib.import_module('eqflow.nn')"),
    ("geometry/x.py", "import importlib\nname = 'eqflow.nn'\nimportlib.import_module(name)"),
    ("geometry/clouds.py", "from eqflow.data.files import write"),
    ("geometry/clouds.py", "def f():\n    from eqflow.nn import EGNN"),
    ("flows/x.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import eqflow.train"),
    ("nn/x.py", "import eqflow"),
    ("rng.py", "from eqflow.geometry import Clouds"),
    ("extras/x.py", "from eqflow.errors import UsageError"),
    ("train/x.py", "import hydra"),
    ("train/x.py", "def f():\n    from hydra.utils import instantiate"),
    ("nn/x.py", "from rdkit import Chem"),
    ("flows/x.py", "import ase.io"),
    ("train/x.py", "def f():\n    import ase"),
    ("data/x.py", "import ase"),
    ("data/x.py", "def f():\n    from rdkit import Chem"),
    ("flows/continuous.py", "from torchdiffeq import odeint"),
    ("train/x.py", "import pickle"),
    ("train/x.py", "from pickle import UnpicklingError, loads"),
    ("train/x.py", "import joblib"),
    ("train/x.py", "def f():\n    import _pickle"),
    ("train/x.py", "import pandas as pd"),
    ("train/x.py", "from marshal import loads"),
    ("train/x.py", "from torch import load"),
    ("train/x.py", "from os import system"),
    ("train/x.py", "from yaml import load"),
    ("train/x.py", "from torch_geometric.io import fs"),
    ("graphs/pyg.py", "from torch_geometric.io import read_planetoid_data"),
    ("graphs/pyg.py", "from torch_geometric.datasets import Planetoid"),
    ("data/qm9.py", "import urllib.request"),
    ("cli/compose.py", "from hydra.utils import instantiate"),
    ("train/x.py", "import random"),
    ("train/x.py", "from numpy.random import default_rng"),
]
GOOD_IMPORTS = [
    ("geometry/x.py", "from eqflow import rng\nfrom eqflow.errors import ShapeError"),
    ("geometry/x.py", "from . import segments\nfrom .segments import Segments"),
    ("geometry/clouds.py", "def f():\n    from eqflow.data.files import write"),
    ("geometry/x.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import ase"),
    ("nn/x.py", "from ..edges import Edges"),
    ("data/x.py", "def f():\n    from ase.collections import g2"),
    ("flows/ode.py", "from torchdiffeq import odeint"),
    ("train/x.py", "from pickle import UnpicklingError"),
    ("data/download.py", "import urllib.request\nfrom urllib.parse import urlsplit"),
    ("graphs/citations.py", "def f():\n    from torch_geometric.io import read_planetoid_data"),
    ("data/x.py", "import torch_geometric.data"),
    ("cli/main.py", "import hydra\nfrom eqflow.train import loop"),
    ("__init__.py", "from eqflow.geometry import Clouds"),
]
BAD_CALLS = [
    "torch.manual_seed(0)",
    "np.random.seed(0)",
    "np.random.default_rng(0)",
    "torch.randn(3)",
    "torch.randperm(3)",
    "torch.randn_like(x)",
    "torch.Generator().manual_seed(0)",
    "eval('1')",
    "exec('1')",
    "compile('1', '', 'eval')",
    "builtins.eval('1')",
    "os.system('ls')",
    "subprocess.run('ls', shell=True)",
    "pd.read_pickle(path)",
    "yaml.load(text)",
    "yaml.load(text, Loader=yaml.Loader)",
    "yaml.unsafe_load(text)",
    "np.lib.format.read_array(file)",
    "np.lib.format.read_array(file, allow_pickle=flag)",
    "torch.jit.load(path)",
    "torch.serialization.add_safe_globals([f])",
    "OmegaConf.register_new_resolver('x', f)",
    "hydra.utils.instantiate(config)",
    "dist.broadcast_object_list(objects)",
    "archive.extractall(folder)",
    "shutil.unpack_archive(path)",
    "tempfile.mktemp()",
    "pkgutil.resolve_name(name)",
    "torch.load(path)",
    "torch.load(path, weights_only=False)",
    "np.load(path, allow_pickle=True)",
    "open(path, 'w')",
    "open(path, mode='ab')",
    "open(path, mode)",
    "path.open('w')",
    "path.write_text('')",
    "gzip.open(path, 'wb')",
    "zipfile.ZipFile(path, 'w')",
    "os.open(path, os.O_WRONLY | os.O_CREAT)",
]
GOOD_CALLS = [
    "torch.randn(3, generator=source)",
    "torch.load(path, weights_only=True)",
    "np.load(path, allow_pickle=False)",
    "np.load(path)",
    "np.lib.format.read_array(file, allow_pickle=False)",
    "yaml.safe_load(text)",
    "yaml.load(text, Loader=yaml.SafeLoader)",
    "re.compile('x')",
    "triton.compile(kernel)",
    "subprocess.run(['ls'])",
    "open(path)",
    "open(path, 'rb')",
    "path.open()",
    "path.open('rb')",
    "tarfile.open(path, 'r|*')",
    "zipfile.ZipFile(path)",
    "os.open(os.devnull, os.O_WRONLY)",
    "storage.write_text(path, '')",
    "model.eval()",
]


@pytest.mark.parametrize(("module", "source"), BAD_IMPORTS)
def test_a_bad_import_is_found(module, source):
    assert wrong_imports(module, source)


@pytest.mark.parametrize(("module", "source"), GOOD_IMPORTS)
def test_a_good_import_is_left_alone(module, source):
    assert not wrong_imports(module, source)


@pytest.mark.parametrize("source", BAD_CALLS)
def test_a_bad_call_is_found(source):
    assert wrong_calls("train/x.py", source)


@pytest.mark.parametrize("source", GOOD_CALLS)
def test_a_good_call_is_left_alone(source):
    assert not wrong_calls("train/x.py", source)


@pytest.mark.parametrize(
    "text",
    [
        "dir: ${oc.env:HOME}",
        "model:\n  _target_: os.system",
        "hydra:\n  searchpath: [file:///tmp]",
        "x: !!python/object/apply:os.system [ls]",
    ],
)
def test_a_bad_config_is_found(text):
    assert wrong_in_config(text)


def test_the_doors_may_do_what_they_are_for():
    assert not wrong_calls("cli/target.py", "pkgutil.resolve_name(name)")
    assert not wrong_calls("rng.py", "torch.randn(3)\ntorch.Generator().manual_seed(0)")
    assert not wrong_calls("storage.py", "open(path, 'wb')")
    assert wrong_calls("train/folder.py", "path.open('a', newline='')")
    assert wrong_calls("train/folder.py", "path.open('w')")
    assert not wrong_calls("train/folder.py", "storage.append(path, b'line')")
