"""A run that trains a flow on structures, and its folder."""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from eqflow import rng
from eqflow.chem.elements import symbol
from eqflow.data.units import charge_doubt, unit_doubt
from eqflow.edges import active_backend
from eqflow.flows import AbstractMolecularFlow, MaskedMolecularFlow, MolecularFlow
from eqflow.targets.names import TARGETS
from eqflow.train.abstract_run import AbstractRun
from eqflow.train.build import (
    build_divergence,
    build_model,
    build_objective,
    chosen_device,
    integer_features,
)
from eqflow.train.compiling import compiling
from eqflow.train.config import Config, JointModelConfig
from eqflow.train.datasets import Dataset, load_dataset
from eqflow.train.figures import final_figures
from eqflow.train.loop import Trainer
from eqflow.train.problems import problems_of
from eqflow.train.processes import Processes, joined, local_device
from eqflow.train.room import pairs_notice

STANDARDISED = 2000  # structures that scales of features are first taken from
SHOWN = ("val_nll", "test_nll", "kl", "ess", "atoms_stable", "molecules_stable", "valid")


class Run(AbstractRun[Config, Trainer]):
    """One training run of a flow in its folder; see `AbstractRun`."""

    written: ClassVar[tuple[str, ...]] = ("train.final_structures",)

    dataset: Dataset
    data_seconds: float

    def problems(self) -> list[str]:
        """Everything wrong with the configuration, before anything is read; a line each."""
        return problems_of(self.config)

    def data_path(self) -> str | None:
        """File or folder of the structures; None where they are generated."""
        return self.config.data.path

    def joined(self) -> AbstractContextManager[Processes]:
        """The processes of `torchrun`, or this one alone."""
        return joined(self.config.train.wait_minutes)

    def prepare(self) -> Trainer:
        """Read or generate the structures; build flow, objective and trainer."""
        config = self.config
        self._announce_data()
        started = time.process_time()
        self.dataset = load_dataset(config.data, config.seed, integer_features(config.model))
        self.data_seconds = time.process_time() - started
        self.skipped = self.dataset.skipped
        parts = self.dataset.parts
        flow = build_model(config.model, config.solver, self.dataset.statistics, config.seed)
        if isinstance(config.model, JointModelConfig) and isinstance(flow, MolecularFlow):
            first = parts["train"][:STANDARDISED]
            flow.standardise(first, rng.generator(config.seed, "standardise"))
        flow.to(local_device(chosen_device(config.train.device), self.processes))
        return Trainer(
            flow,
            build_objective(config),
            parts["train"],
            parts["validation"],
            config.train,
            config.seed,
            self.processes,
        )

    def describe(self, trainer: Trainer) -> list[str]:
        """Lines about structures and flow."""
        parts = self.dataset.parts
        counts = ", ".join(f"{len(clouds):,} {name}" for name, clouds in parts.items())
        lines = [f"data: {self.config.data.source}, {counts} structures"]
        lines += [f"skipped: {line}" for line in self.dataset.skipped]
        device = next(trainer.flow.parameters()).device
        doubts = (
            unit_doubt(parts["train"]),
            charge_doubt(parts["train"]),
            pairs_notice(parts["train"], self.config.model, device),
        )
        lines += [f"notice: {line}" for line in doubts if line]
        if self.config.train.compile:
            lines.append(compiling(parts["train"], self.config.train.batch_size, self.config.model))
        numbers = parts["train"].numbers
        if isinstance(trainer.flow, AbstractMolecularFlow):
            lines.append(f"atoms: {trainer.flow.types}")
        elif numbers is not None and not self.config.data.elements:
            found = ",".join(symbol(number) for number in numbers.unique().tolist())
            lines.append(
                "elements are ignored, all points are alike; "
                f"data.elements=[{found}] conditions the model on them"
            )
        if trainer.flow.properties is not None:
            lines.append(f"conditioned on: {trainer.flow.properties}")
        if self.processes.count > 1:
            lines.append(f"{self.processes.count} processes share every batch")
        first = next(trainer.flow.parameters())
        lines.append(f"edges: {active_backend(first)} backend, on {first.device.type}")
        weights = sum(parameter.numel() for parameter in trainer.flow.parameters())
        return [*lines, f"model: {self.config.model.name}, {weights:,} weights"]

    def statistics(self, trainer: Trainer) -> dict[str, Any]:
        """What the flow needs to know of its structures."""
        return self.dataset.statistics

    def final_figures(self, trainer: Trainer) -> tuple[dict[str, Any], list[str]]:
        """Likelihoods of held-out structures and what draws are like, where asked for."""
        figures: dict[str, Any] = {"data_cpu_seconds": round(self.data_seconds, 2)}
        progress, skipped = trainer.progress, []
        if progress.left_out:
            figures["left_out"] = len(progress.left_out)
            sizes = self.dataset.parts["train"].sizes[progress.left_out]
            skipped.append(
                f"{len(progress.left_out):,} training structures, of up to {int(sizes.max()):,} "
                "points"
            )
        if progress.not_validated:
            skipped.append(f"{progress.not_validated:,} validation structures")
        most = self.config.train.final_structures
        if most:
            is_drawn = isinstance(trainer.flow, MaskedMolecularFlow)
            of_held_out = "" if is_drawn else "log-likelihood of held-out structures, and "
            self.report(f"final figures: {of_held_out}draws")
            divergence = build_divergence(self.config.divergence)
            flow = trainer.best_flow()
            figures |= final_figures(flow, self.dataset, divergence, most, self.config.seed)
            if figures["too_large"]:
                skipped.append(f"{figures['too_large']:,} structures of the final figures")
        skipped = [f"left out, as they do not fit into memory: {line}" for line in skipped]
        self.skipped += skipped
        return figures, [*skipped, *(_line(figures, name) for name in SHOWN if name in figures)]

    def _announce_data(self) -> None:
        """Say so where getting the structures takes long."""
        data = self.config.data
        if data.source in TARGETS and data.path is None:
            self.announce(f"drawing samples of {data.source} from its energy")
        elif data.source == "qm9" and data.path is None:
            self.announce("QM9: downloaded once (87 MB) into $EQFLOW_CACHE or ~/.cache/eqflow")


def _line(figures: dict[str, Any], name: str) -> str:
    """A figure with its standard error, and what it leaves out."""
    error = figures.get(f"{name}_se", math.nan)
    left_out = figures.get(f"{name}_left_out", 0)
    return (
        f"{name}: {figures[name]:.4g}"
        + ("" if math.isnan(error) else f" ± {error:.2g}")
        + (f", without {left_out} of probability 0 or failed" if left_out else "")
    )
