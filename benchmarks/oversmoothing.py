"""What is left of random features on a 10×10 grid along 1000 untrained layers, by model.

    python benchmarks/oversmoothing.py [depth=1000] [seeds=5]

The setting of the entropy paper's figure: a grid of four neighbours with self loops, features
uniform in [0, 1), 64 channels, a fresh Glorot matrix in every layer, ReLU. All models of one seed
have the same matrices. The ascent is tried in its corrected form, with the energies' `C_i` and
without them, and in the forms that were published: the theorem as printed, and the loop of the
authors' code; beside them PairNorm, gradient gating, GRAFF, and the GCN itself with and without a
residual. Everything in float64.

Reference: Entropy Aware Message Passing in Graph Neural Networks (Nazari et al., 2024),
arXiv:2403.04636.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator

import networkx
import torch
from harness import RESULTS, write_results
from torch import Tensor

from eqflow import rng
from eqflow.edges import Edges, gather, segment_sum, squared_distance, weighted_difference
from eqflow.nn import (
    GraphConvolution,
    PairNorm,
    PairNormIndividually,
    PairNormThenCentre,
    dirichlet_energy,
    entropy,
    entropy_gradient,
    frequency_dominance,
    gating_rates,
    normalised_dirichlet_energy,
    with_self_loops,
)
from eqflow.nn.diffusion import GRAFF
from eqflow.view import along_depth

CHANNELS = 64
# λ and T, the last of them published for Cora. `C_i` is 1/18 within the grid: but for the rim,
# entropy and gradient at T = 1/18 are those of plain energies at T = 1.
EQUIVALENT = 1 / math.sqrt(5 * CHANNELS)
SETTINGS = ((1.0, 1.0), (1.0, EQUIVALENT), (20.0, 1.0), (1.0, 10.0))
TEMPERATURE = 1.0  # of the entropy that is reported
STEP = 0.1  # of GRAFF
REPORTED = (1, 4, 16, 64, 256, 1000)
SHOWN = (
    "GCN",
    "residual GCN",
    "entropic, corrected, λ = 1, T = 1",
    "entropic, as printed, λ = 1, T = 1",
    "entropic, C = 1 (authors' default), λ = 1, T = 1",
    "entropic, corrected, λ = 1, T = 0.056",
    "entropic, one C outside, λ = 1, T = 0.056",
    "entropic, as printed, λ = 1, T = 0.056",
    "entropic, corrected, distribution, λ = 1, T = 0.056",
    "PairNorm",
    "G²",
    "GRAFF, symmetric W",
    "GRAFF, negative W",
)
Layer = Callable[[Tensor, Edges, GraphConvolution], Tensor]


def grid(side: int = 10) -> Edges:
    """Four neighbours of each node, in both directions, and self loops."""
    graph = networkx.convert_node_labels_to_integers(networkx.grid_2d_graph(side, side))
    pairs = torch.tensor(list(graph.edges)).T
    return with_self_loops(Edges.from_index(torch.cat([pairs, pairs.flip(0)], 1), side * side))


# Published forms, which are not the gradient of the entropy; compared here and nowhere else.


def unit_energy_gradient(x: Tensor, edges: Edges, temperature: float) -> Tensor:
    """The authors' default: `C_i = 1`. Exact for the entropy of those energies, but for `1/T`."""
    return temperature * entropy_gradient(x, edges, temperature, scaled=False)


def _outside(x: Tensor, edges: Edges, temperature: float, p_bar: Callable) -> Tensor:
    """`C_i / T Σ_j (P̄_i + P̄_j)(x_i − x_j)`, one `C` outside the sum."""
    c = (edges.incoming.lengths * x.shape[1]).to(x.dtype).rsqrt()
    q = -0.5 * c * segment_sum(squared_distance(x, edges), edges) / temperature
    bar = p_bar(q.exp(), q)
    w = gather(bar, edges, "receiver") + gather(bar, edges)
    return -c.unsqueeze(1) / temperature * weighted_difference(w, x, edges)


def one_coefficient_gradient(x: Tensor, edges: Edges, temperature: float) -> Tensor:
    """The authors' loop with normalised energies: `C_i` outside, `P̄ = P (1 + ln P)`."""
    return _outside(x, edges, temperature, lambda p, log_p: p * (1 + log_p))


def printed_gradient(x: Tensor, edges: Edges, temperature: float) -> Tensor:
    """The theorem as printed: `C_i` outside, `P̄ = (P + 1) ln P`."""
    return _outside(x, edges, temperature, lambda p, log_p: (p + 1) * log_p)


def corrected_normalised(x: Tensor, edges: Edges, temperature: float) -> Tensor:
    """Of the entropy of a distribution, which is largest where all energies are equal."""
    return entropy_gradient(x, edges, temperature, normalised=True)


ASCENTS = {
    "entropic, corrected": entropy_gradient,
    "entropic, corrected, distribution": corrected_normalised,
    "entropic, C = 1 (authors' default)": unit_energy_gradient,
    "entropic, one C outside": one_coefficient_gradient,
    "entropic, as printed": printed_gradient,
}


# Layers, each of the convolution of its place.


def gcn(x: Tensor, edges: Edges, convolution: GraphConvolution) -> Tensor:
    """Kipf and Welling's."""
    return convolution(x, edges).relu()


def residual(x: Tensor, edges: Edges, convolution: GraphConvolution) -> Tensor:
    """Its update is added."""
    return x + convolution(x, edges).relu()


def entropic(
    gradient: Callable[[Tensor, Edges, float], Tensor], weight: float, temperature: float
) -> Layer:
    """A GCN layer with a step along some gradient before its ReLU."""

    def layer(x: Tensor, edges: Edges, convolution: GraphConvolution) -> Tensor:
        x = convolution(x, edges)
        return (x + weight * gradient(x, edges, temperature)).relu()

    return layer


def with_norm(norm: torch.nn.Module) -> Layer:
    """A normalisation between the convolution and its ReLU."""
    return lambda x, edges, convolution: norm(convolution(x, edges), edges).relu()


def gated(x: Tensor, edges: Edges, convolution: GraphConvolution) -> Tensor:
    """Gradient gating with `p = 2` and the layer's own convolution."""
    proposed = convolution(x, edges).relu()
    return torch.lerp(x, proposed, gating_rates(proposed, edges))


def graff(mixing: str, seed: int) -> tuple[GRAFF, Layer]:
    """Explicit Euler steps of `ẋ = Ã x W` with one `W` for all layers."""
    with rng.seeded(seed, "oversmoothing", "GRAFF", mixing):
        field = GRAFF(CHANNELS, mixing=mixing, damping="zero", source=False).double()

    def layer(x: Tensor, edges: Edges, convolution: GraphConvolution) -> Tensor:
        return x + STEP * field(torch.zeros(()), x, edges)

    return field, layer


def models() -> dict[str, Layer]:
    """All that do not need a matrix of their own."""
    tried: dict[str, Layer] = {"GCN": gcn, "residual GCN": residual}
    for weight, temperature in SETTINGS:
        at = f", λ = {weight:g}, T = {temperature:.2g}"
        tried |= {
            f"{name}{at}": entropic(gradient, weight, temperature)
            for name, gradient in ASCENTS.items()
        }
    return tried | {
        "PairNorm": with_norm(PairNorm()),
        "PairNorm-SI": with_norm(PairNormIndividually()),
        "PairNorm-SCS": with_norm(PairNormThenCentre()),
        "G²": gated,
    }


def convolutions(seed: int, depth: int) -> Iterator[GraphConvolution]:
    """The layers of a seed, with a matrix of their own each."""
    for place in range(depth):
        with rng.seeded(seed, "oversmoothing", "layer", place):
            yield GraphConvolution(CHANNELS, CHANNELS, bias=False).double()


def measured_at(depth: int) -> list[int]:
    """About ninety depths, evenly on a logarithmic axis, and those of the table."""
    spread = torch.logspace(0, math.log10(depth), 120, dtype=torch.float64).round().long()
    return sorted({*spread.tolist(), *(d for d in REPORTED if d <= depth)})


@torch.no_grad()
def follow(layers: dict[str, Layer], seed: int, depth: int, edges: Edges) -> dict[str, Tensor]:
    """Energy, normalised energy and entropy of each model at each of `measured_at`, (3, T)."""
    like = torch.zeros((), dtype=torch.float64)
    start = rng.uniform((edges.nodes, CHANNELS), like, rng.generator(seed, "oversmoothing", "x"))
    states = dict.fromkeys(layers, start)
    found: dict[str, list[Tensor]] = {name: [] for name in layers}
    asked = set(measured_at(depth))
    for place, convolution in enumerate(convolutions(seed, depth), 1):
        for name, layer in layers.items():
            states[name] = layer(states[name], edges, convolution)
            if place in asked:
                found[name].append(measure(states[name], edges))
    return {name: torch.stack(rows, 1) for name, rows in found.items()}


def measure(x: Tensor, edges: Edges) -> Tensor:
    """Dirichlet energy a node, normalised Dirichlet energy, and entropy."""
    energies = dirichlet_energy(x, edges) / edges.nodes, normalised_dirichlet_energy(x, edges)
    return torch.cat([*energies, entropy(x, edges, TEMPERATURE)])


def gradient_errors(edges: Edges, seeds: int) -> dict[str, dict[str, float]]:
    """How far each form is from `∇S` by autograd, relatively, and the cosine of the two.

    By the size of features: near collapse, and as drawn.
    """
    errors: dict[str, dict[str, float]] = {}
    for size in (1e-3, 1.0):
        for name, gradient in ASCENTS.items():
            if "distribution" in name:
                continue
            rows = []
            for seed in range(seeds):
                source = rng.generator(seed, "oversmoothing", "gradients")
                x = size * rng.normal((edges.nodes, CHANNELS), torch.zeros(()).double(), source)
                x.requires_grad_()
                (true,) = torch.autograd.grad(entropy(x, edges).sum(), x)
                found = gradient(x, edges, 1.0).detach()
                cosine = float((found * true).sum() / found.norm() / true.norm())
                rows.append((float((found - true).norm() / true.norm()), cosine))
            error, cosine = torch.tensor(rows).mean(0).tolist()
            errors[f"{name}, features of size {size:g}"] = {"error": error, "cosine": cosine}
    return errors


def main() -> None:
    """Follow all models, print and write what is left."""
    given = dict(argument.split("=") for argument in sys.argv[1:])
    depth, seeds = int(given.get("depth", 1000)), int(given.get("seeds", 5))
    edges = grid()
    runs: dict[str, list[Tensor]] = {}
    predicted: dict[str, list[float]] = {}
    for seed in range(seeds):
        layers = models()
        for mixing in ("symmetric", "negative"):
            name = f"GRAFF, {mixing} W"
            field, layers[name] = graff(mixing, seed)
            said = frequency_dominance(field.mixing[0].dense(), edges, step=STEP)
            predicted.setdefault(name, []).append(said.limit)
        for name, values in follow(layers, seed, depth, edges).items():
            runs.setdefault(name, []).append(values)
    stacked = {name: torch.stack(values, 1) for name, values in runs.items()}  # (3, seeds, T)
    results = {name: summary(values, depth) for name, values in stacked.items()}
    for name, limits in predicted.items():
        measured = stacked[name][1, :, -1]
        results[name]["normalised_limit"] = {"predicted": limits, "measured": measured.tolist()}
    report(results, depth)
    errors = gradient_errors(edges, seeds)
    for name, row in errors.items():
        print(f"{name:58s} error {row['error']:8.2g}, cosine {row['cosine']:6.3f}")
    settings = {"depth": depth, "seeds": seeds, "channels": CHANNELS, "graff_step": STEP}
    write_results("oversmoothing_grid", settings | {"models": results, "gradients": errors})
    draw(stacked, depth)


def summary(values: Tensor, depth: int) -> dict[str, dict]:
    """Median over seeds and the band of 80 % of them, at some depths; None what is not finite."""
    found: dict[str, dict] = {}
    depths = measured_at(depth)
    for place, quantity in enumerate(("energy", "normalised_energy", "entropy")):
        rows = values[place]
        found[quantity] = {}
        for at in (d for d in REPORTED if d <= depth):
            here = rows[:, depths.index(at)]
            low, middle, high = here.quantile(torch.tensor([0.1, 0.5, 0.9]).double())
            band = [number(middle), number(low), number(high)]
            found[quantity][str(at)] = dict(zip(("median", "low", "high"), band, strict=True))
    return found


def number(value: Tensor) -> float | None:
    """A number that JSON has."""
    return float(value) + 0.0 if math.isfinite(value) else None


def report(results: dict[str, dict], depth: int) -> None:
    """Medians by depth."""
    depths = [str(d) for d in REPORTED if d <= depth]
    for quantity in ("energy", "normalised_energy", "entropy"):
        print(f"\n{quantity:45s}" + "".join(f"{d:>10s}" for d in depths))
        for name, result in results.items():
            values = [result[quantity][d]["median"] for d in depths]
            cells = ["         -" if v is None else f"{v:10.2g}" for v in values]
            print(f"{name:45s}" + "".join(cells))


def draw(stacked: dict[str, Tensor], depth: int) -> None:
    """The models that tell something apart, a panel for each quantity."""
    shown = {name: stacked[name] for name in SHOWN}
    places = torch.tensor(measured_at(depth))
    titles = (
        "Dirichlet energy a node",
        "normalised Dirichlet energy",
        "entropy at T = 1 (nats)",
    )
    quantities = {
        title: {name: (places, values[place]) for name, values in shown.items()}
        for place, title in enumerate(titles)
    }
    path = RESULTS / "oversmoothing_grid.png"
    along_depth(
        quantities,
        path,
        title="Random features on a 10×10 grid along untrained layers: "
        f"median of {next(iter(stacked.values())).shape[1]} seeds, band of 80 %",
    )
    print(f"written: benchmarks/results/{path.name}")


if __name__ == "__main__":
    main()
