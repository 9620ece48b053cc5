r"""Whether what is computed here is right: operations on edges, kernels, and a small flow.

Operations on edges are compared with dense formulas, in which an edge is an entry of a matrix:
:math:`\sum_{e \to i} w_e (x_c - x_i) = (W - \operatorname{diag}(W 1))\, x`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from torch import Tensor

from eqflow import rng
from eqflow.cli.checkup.finding import FAIL, OK, WARN, Finding
from eqflow.edges import (
    Edges,
    attention_diffusion,
    segment_softmax,
    squared_distance,
    use_backend,
    weighted_difference,
)
from eqflow.errors import ExitCode
from eqflow.evaluate.laws import flow_laws
from eqflow.flows import Flow
from eqflow.testing import TOLERANCE
from eqflow.train.build import build_flow
from eqflow.train.config import ModelConfig, SolverConfig

CODE = ExitCode.NUMERICAL
NODES, FEATURES = 12, 24
OPERATIONS = ("weighted_difference", "segment_softmax", "attention_diffusion", "egcl_messages")
WIDTH = 16


def look_at_torch() -> Iterator[Finding]:
    """The torch backend against dense formulas, values and gradients, in float64."""
    errors = {name: _difference(*pair) for name, pair in _operations().items()}
    name, worst = max(errors.items(), key=lambda one: one[1])
    if worst <= TOLERANCE[torch.float64]:
        text = f"{len(errors)} operations on edges and their gradients are right to {worst:.0e}"
        yield Finding(OK, "torch backend", text, CODE)
    else:
        text = f"{name} is {worst:.1e} off a dense formula; install torch anew"
        yield Finding(FAIL, "torch backend", text, CODE)


def look_at_triton() -> Iterator[Finding]:
    """Triton's kernels against the torch backend, on each GPU, else in Triton's interpreter."""
    about = "Triton kernels"
    if find_spec("triton") is None:
        grade = WARN if torch.cuda.is_available() else OK
        yield Finding(grade, about, "Triton is not installed: torch does their work", CODE)
        return
    places = [torch.device("cuda", place) for place in range(torch.cuda.device_count())]
    with _interpreted(not places):
        from eqflow.edges import kernels
        from eqflow.edges.kernels.device import INTERPRETED

        if not places and not INTERPRETED:
            yield Finding(OK, about, "not run: there is no GPU, and torch does their work", CODE)
            return
        for device in places or [torch.device("cpu")]:
            where = "in Triton's interpreter" if device.type == "cpu" else f"on {device}"
            problems = {
                name: kernels.failing(
                    getattr(kernels, name), device, torch.float32, WIDTH, "tf32x3"
                )
                for name in OPERATIONS
            }
            wrong = [f"{name}: {problem}" for name, problem in problems.items() if problem]
            if wrong:
                text = f"{'; '.join(wrong)}; torch does their work, slower"
                yield Finding(FAIL, about, text, CODE)
            else:
                yield Finding(OK, about, f"{len(problems)} agree with torch {where}", CODE)


def look_at_flow() -> Iterator[Finding]:
    """The laws of a small flow with random weights: symmetry, inverse, divergence, density."""
    laws = list(flow_laws(small_flow(), structures=2))
    broken = [law for law in laws if not law.holds]
    for law in broken:
        text = f"error {law.error:.1e}, tolerance {law.tolerance:.0e}; install torch anew"
        yield Finding(FAIL, law.name, text, CODE)
    if not broken:
        text = f"all {len(laws)} laws hold: symmetry, inverse, divergence, log-likelihood"
        yield Finding(OK, "a small flow", text, CODE)


def look_at_molecules() -> Iterator[Finding]:
    """Whether RDKit reads a molecule."""
    from eqflow.chem.molfile import read_molfile

    block = "\n\n\n  1  0  0  0  0  0  0  0  0  0999 V2000\n"
    block += "    0.5000    0.0000    0.0000 O   0  0\nM  END\n"
    atoms = read_molfile(block)
    if atoms is not None and atoms.numbers.tolist() == [8] and float(atoms.x[0, 0]) == 0.5:
        yield Finding(OK, "molecules", "RDKit reads a molfile", ExitCode.USAGE)
    else:
        text = "RDKit does not read a molfile of one atom; install rdkit anew"
        yield Finding(FAIL, "molecules", text, ExitCode.USAGE)


def look_at_pictures() -> Iterator[Finding]:
    """Whether matplotlib draws, which it also has to do with a home that cannot be written."""
    import io

    from eqflow.view.canvas import new_figure

    buffer = io.BytesIO()
    new_figure(1.0, 1.0, "E(3)").savefig(buffer, format="png", dpi=20)
    yield Finding(OK, "pictures", f"matplotlib draws ({buffer.tell():,} bytes)", ExitCode.USAGE)


def small_flow() -> Flow:
    """A flow of four points in space, its weights random so that nothing is zero by chance."""
    statistics = {
        "dimension": 3,
        "scale": 1.0,
        "compositions": {"elements": [], "counts": [[4]], "weights": [1]},
    }
    flow = build_flow(ModelConfig(layers=1, width=8), SolverConfig(), statistics, seed=0)
    source = rng.generator(0, "doctor", "weights")
    for parameter in flow.parameters():
        parameter.data = 0.1 * rng.normal(tuple(parameter.shape), parameter.data, source)
    return flow


def _operations() -> dict[str, tuple[list[Tensor], list[Tensor]]]:
    """What the backend finds and what a dense formula does, each with its gradients."""
    source = rng.generator(0, "doctor", "edges")
    like = torch.zeros((), dtype=torch.float64)
    chosen = rng.uniform((NODES, NODES), like, source) < 0.4
    receiver, sender = chosen.nonzero().T
    edges = Edges.from_index(torch.stack([sender, receiver]), NODES)
    place = edges.receiver, edges.sender  # sorted by the receiver

    def draw(*shape: int) -> Tensor:
        return rng.normal(shape, like, source).requires_grad_()

    def dense(values: Tensor, empty: float = 0.0) -> Tensor:
        return torch.full((NODES, NODES), empty, dtype=like.dtype).index_put(place, values)

    def attention(logits: Tensor) -> Tensor:
        softmax = dense(logits, -torch.inf).softmax(1)
        return softmax.nan_to_num(0.0)[place]

    def diffused(w: Tensor, x: Tensor) -> Tensor:
        return dense(w) @ x - dense(w).sum(1, keepdim=True) * x

    w, logits, x = draw(edges.count), draw(edges.count), draw(NODES, FEATURES)
    query, key = draw(NODES, FEATURES), draw(NODES, FEATURES)
    with use_backend("torch"):
        found = {
            "weighted_difference": (weighted_difference(w, x, edges), [w, x]),
            "segment_softmax": (segment_softmax(logits, edges), [logits]),
            "squared_distance": (squared_distance(x, edges), [x]),
            "attention_diffusion": (attention_diffusion(query, key, x, edges), [query, key, x]),
        }
        scores = (query @ key.T / FEATURES**0.5)[place]
        expected = {
            "weighted_difference": diffused(w, x),
            "segment_softmax": attention(logits),
            "squared_distance": (x[edges.sender] - x[edges.receiver]).square().sum(1),
            "attention_diffusion": diffused(attention(scores), x),
        }
        return {
            name: (_with_gradients(value, inputs), _with_gradients(expected[name], inputs))
            for name, (value, inputs) in found.items()
        }


def _with_gradients(value: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    covector = torch.linspace(-1, 1, value.numel(), dtype=value.dtype).reshape(value.shape)
    return [value.detach(), *torch.autograd.grad(value, inputs, covector, retain_graph=True)]


def _difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest error of values or gradients, relative to the largest entry of each."""
    pairs = zip(found, expected, strict=True)
    errors = [float((one - other).abs().max() / other.abs().max()) for one, other in pairs]
    return max(error if error == error else torch.inf for error in errors)


@contextmanager
def _interpreted(wanted: bool) -> Iterator[None]:
    """Kernels decorated within are interpreted: Triton asks the environment when it decorates."""
    before = os.environ.get("TRITON_INTERPRET")
    if wanted:
        os.environ["TRITON_INTERPRET"] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("TRITON_INTERPRET", None)
        else:
            os.environ["TRITON_INTERPRET"] = before
