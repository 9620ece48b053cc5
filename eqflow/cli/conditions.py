"""What structures are drawn with, or scored given: properties, fixed atoms, how types are drawn."""

from __future__ import annotations

import math
from typing import Any

import torch

from eqflow.cli.schemas import SampleConfig
from eqflow.data import read
from eqflow.data.units import unit_doubt
from eqflow.errors import UsageError
from eqflow.flows import AbstractFlow, MaskedMolecularFlow, Masking
from eqflow.flows.inpainting import STRETCH, Fixed
from eqflow.flows.masked import NOTHING_FIXED
from eqflow.flows.ode import Solver
from eqflow.geometry import Clouds


def conditions_of(config: SampleConfig, flow: AbstractFlow) -> tuple[dict[str, Any], list[str]]:
    """Options of `draw`, and a line for people about each; whatever is wrong is found here.

    Raises:
        UsageError: If a property is none of the model's, the fragment does not fit the sizes, or
            an option is one of other models.
        DataError: If the fragment cannot be read, or has an element that is not the model's.
    """
    options: dict[str, Any] = _of_masked_types(config, flow)
    lines = [", ".join(f"{name} {value:g}" for name, value in options.items())] if options else []
    if properties := properties_of(config.properties):
        asked, _ = flow.conditions(1, properties, config.guidance)
        options |= {"properties": properties, "guidance": config.guidance}
        lines.append(f"given {', '.join(config.properties)}, guidance {config.guidance:g}")
        if flow.properties is not None:
            lines += [f"notice: {line}" for line in flow.properties.beyond(asked)]
    elif config.guidance != 1:
        raise UsageError(f"guidance: found {config.guidance:g}, expected properties=… with it.")
    growing = {
        key: value
        for key, value in (("times", config.fixed_times), ("rounds", config.fixed_rounds))
        if value is not None
    }
    if growing and config.fixed is None:
        names = " and ".join(f"fixed_{key}" for key in growing)
        raise UsageError(f"{names}: found without fixed=…, the fragment to grow around. Give it.")
    if config.fixed is not None:
        fragment = read(config.fixed, flow.dimension)
        if not flow.elements:
            fragment = Clouds(fragment.x, fragment.ptr)
        fixed = Fixed(fragment, **growing)
        flow.batch(fragment, torch.Generator(device=next(flow.parameters()).device))
        if config.sizes is not None and config.sizes < len(fixed):
            raise UsageError(
                f"sizes: found {config.sizes}, expected at least the {len(fixed)} atoms of "
                f"{config.fixed}."
            )
        options["fixed"] = fixed
        if doubt := unit_doubt(fragment):
            lines.append(f"notice: {config.fixed}: {doubt}")
        lines.append(
            f"around the {len(fixed)} atoms of {config.fixed}, which are exact; the rest is "
            f"approximate: {fixed.times} stretches, travelled {fixed.rounds + 1} times each"
        )
    return options, lines


def solver_of(config: SampleConfig, flow: AbstractFlow) -> Solver:
    """What is overridden: the run's solver, or that of a stretch where atoms are fixed."""
    return flow.solver if config.fixed is None else STRETCH


def _of_masked_types(config: SampleConfig, flow: AbstractFlow) -> dict[str, float]:
    """Options of `MaskedMolecularFlow.draw` that others do not have."""
    given = {
        name: value
        for name, value in (("temperature", config.temperature), ("remasking", config.remasking))
        if value is not None
    }
    if isinstance(flow, MaskedMolecularFlow):
        if config.fixed is not None:
            raise UsageError(NOTHING_FIXED)
        Masking(len(flow.types), **given)
    elif given:
        raise UsageError(
            f"{' and '.join(given)}: only for a run of model=masked_egnn, which draws the types of "
            "atoms one after the other. Leave it out."
        )
    return given


def properties_of(words: list[str]) -> dict[str, float]:
    """Properties by name from words such as `gap=0.3`.

    >>> properties_of(["gap=0.3", "mu=-1e-2"])
    {'gap': 0.3, 'mu': -0.01}
    """
    found: dict[str, float] = {}
    for word in words:
        name, _, text = word.partition("=")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not name or not math.isfinite(value):
            raise UsageError(f"properties: found {word!r}, expected name=number, such as gap=0.3.")
        if name in found:
            raise UsageError(f"properties: found {name} twice, expected it once.")
        found[name] = value
    return found


def given_in(clouds: Clouds, flow: AbstractFlow) -> list[str]:
    """Lines that say which properties of structures their scores are given."""
    if flow.properties is None:
        return []
    known = {name: int(clouds.values(name).isfinite().sum()) for name in flow.properties.names}
    lines = [
        f"log-likelihoods are given {name}"
        + ("" if count == len(clouds) else f", which is known of {count:,} structures")
        for name, count in known.items()
        if count
    ]
    absent = [name for name, count in known.items() if not count]
    if absent:
        lines.append(f"of the structures no {' and no '.join(absent)} is known: not given that")
    return lines
