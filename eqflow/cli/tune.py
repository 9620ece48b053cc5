"""`eqflow tune`: search the settings of a preset by what they reach on validation data.

Each trial is a run like those of `eqflow train`, in a folder of its own. The search is a function
of its seed: stopped or killed at any moment and started again by the same command, it goes on with
the trial it was at, from that run's checkpoint, and asks for what it would have asked for. Test
data choose nothing: a metric of theirs is refused.
"""

from __future__ import annotations

import csv
import io
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import yaml

from eqflow import rng, storage
from eqflow.cli import train
from eqflow.cli.compose import (
    STRUCTURES,
    composed,
    configs_folder,
    options_of_train,
    split_off,
    task_of,
    train_keys,
    unused_words,
)
from eqflow.cli.schemas import TuneConfig
from eqflow.cli.search_space import Space, parsed
from eqflow.cli.terminal import Quiet, Terminal
from eqflow.errors import (
    CheckpointError,
    ExitCode,
    NumericalError,
    SolverFailed,
    StorageError,
    UsageError,
)
from eqflow.train.abstract_run import SUMMARY
from eqflow.train.documents import json_of, yaml_of
from eqflow.train.folder import exclusive, require_possible
from eqflow.train.node_config import NODE_CLASSIFICATION
from eqflow.train.tasks import run_of

if TYPE_CHECKING:
    import optuna

# What may choose in each task, the usual one first, and which way is better.
METRICS = {
    NODE_CLASSIFICATION: {"val_accuracy": "maximize", "val_loss": "minimize"},
    STRUCTURES: {"val_loss": "minimize", "val_nll": "minimize"},
}
STOPPED = (ExitCode.INTERRUPTED, ExitCode.TERMINATED)
# Combinations of choices looked at for one in which a word has an effect.
MOST_COMBINATIONS = 64
SEARCH, STUDY, TRIALS, BEST = "search.yaml", "study.db", "trials.csv", "best.yaml"


class Stopped(Exception):
    """A trial ended by a signal, after saving."""

    def __init__(self, code: ExitCode) -> None:
        super().__init__(code)
        self.code = code


def run(config: TuneConfig, words: Sequence[str], texts: dict[str, Any]) -> ExitCode:
    """Search, write a row a trial and the best, and say how to train with it.

    Args:
        config: How to search.
        words: Of train, the same in every trial.
        texts: Where to look for each key, as typed.
    """
    search = Search(config, words, texts)
    terminal = Terminal()
    terminal.line(
        f"tune {search.name} by {search.metric}: {config.trials} trials of {config.repeats} "
        f"run{'s' if config.repeats > 1 else ''} each over {', '.join(search.space)}, into "
        f"{search.folder}"
    )
    require_possible(search.folder, "dir")
    search.require_same()
    storage.require_writable(search.folder)
    with exclusive(search.folder, terminal.line, "dir", "tuning"):
        search.keep()
        try:
            search.to_the_end(terminal)
        except Stopped as stopped:
            terminal.line("stopped and saved; the same command goes on with this trial")
            return stopped.code
        except Exception as error:
            _require_disk(search.folder / STUDY, error)
            raise
        finally:
            search.close()
    return search.tell(terminal)


class Search:
    """One search in its folder.

    Raises:
        UsageError: If something does not make sense; nothing is made yet.
    """

    def __init__(self, config: TuneConfig, words: Sequence[str], texts: dict[str, Any]) -> None:
        metrics = METRICS[task_of(words)]
        _require_sensible(config, texts, metrics)
        self.metric = config.metric or next(iter(metrics))
        self.direction = metrics[self.metric]
        self.config = config
        self.words = list(words)
        self.space: Space = parsed(texts, train_keys(words), options_of_train(words))
        first = composed("train", words, takes_unused=True)
        run_of(first, lambda line: None)  # or says what is wrong
        if unused := unused_anywhere(self.words, self.space):
            raise UsageError("\n".join(f"{key}: {why}" for key, why in unused.items()))
        self.name = first.name
        self.folder = Path(config.dir or f"runs/{first.name}-tune")
        self.plain = {
            "words": self.words,
            "space": {key: str(text) for key, text in texts.items()},
            **{key: value for key, value in asdict(config).items() if key not in ("dir", "trials")},
        }
        self._study: optuna.Study | None = None

    def require_same(self) -> None:
        """Refuse a folder that holds another search."""
        path = self.folder / SEARCH
        if path.is_file() and yaml_of(path) != self.plain:
            raise UsageError(
                f"{self.folder} holds another search, see {path}. Give another dir, or the same "
                "words to go on with it."
            )

    def keep(self) -> None:
        """Write what is searched, and open the study."""
        optuna = _optuna()
        storage.write_text(self.folder / SEARCH, yaml.safe_dump(self.plain, sort_keys=False))
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        path = self.folder / STUDY
        try:
            self._storage = optuna.storages.RDBStorage(_address(path))
            self._study = optuna.create_study(
                storage=self._storage,
                study_name="eqflow",
                direction=self.direction,
                load_if_exists=True,
            )
        except Exception as error:  # whatever SQLite, its driver or Optuna find wrong with the file
            _require_disk(path, error)
            raise CheckpointError(
                f"{path}: found a damaged file or another format, expected a study of Optuna "
                f"({str(error).splitlines()[0]}). Delete it to search anew, or give another dir."
            ) from error
        for trial in self._study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
            # It was stopped on its way, and is asked for again.
            self._study.tell(trial.number, state=optuna.trial.TrialState.FAIL)

    def close(self) -> None:
        """Let go of the study's file."""
        if self._study is not None:
            self._storage.remove_session()
            self._storage.engine.dispose()

    def done(self) -> list[Any]:
        """Trials that came to an end, good or bad, in their order.

        One that was stopped on its way has failed without a problem, and was asked for again.
        """
        if self._study is None:
            return []
        trials = self._study.get_trials(deepcopy=False)
        return [one for one in trials if one.value is not None or "problem" in one.user_attrs]

    def to_the_end(self, terminal: Terminal) -> None:
        """Run the trials that are missing.

        Raises:
            Stopped: If a signal ended one.
        """
        optuna, study = _optuna(), self._study
        states = optuna.trial.TrialState
        while study is not None and (place := len(self.done())) < self.config.trials:
            # A sampler is a function of the seed and of the trials before, not of the process.
            seed = rng.derived_seed(self.config.tune_seed, "tune", place) % 2**32
            study.sampler = optuna.samplers.TPESampler(seed=seed)
            trial = study.ask()
            chosen = {key: what.suggest(trial, key) for key, what in self.space.items()}
            value, problem = self._trial(place, chosen)
            trial.set_user_attr("words", [f"{key}={text}" for key, text in chosen.items()])
            if problem:
                trial.set_user_attr("problem", problem)
                study.tell(trial, state=states.FAIL)
            else:
                study.tell(trial, value)
            self._write()
            shown = ", ".join(f"{key}={text}" for key, text in chosen.items())
            found = problem or f"{self.metric} {value:.5g}"
            terminal.line(f"trial {place + 1}/{self.config.trials}: {found} at {shown}")
        self._write()  # the last time, the process may have ended between the study and this

    def _trial(self, place: int, chosen: dict[str, str]) -> tuple[float, str]:
        """The mean metric over the seeds of a trial, or the problem it ended with."""
        values = []
        for repeat in range(self.config.repeats):
            folder = self.folder / "trials" / f"{place:04d}-{repeat}"
            own = [f"{key}={text}" for key, text in chosen.items()]
            own += [f"run.dir={folder}", f"name={self.name}"]
            try:
                config = composed("train", [*self.words, *own], takes_unused=True)
                config.seed += repeat
                code = train.run(config, Quiet())
            except (NumericalError, SolverFailed, UsageError) as error:
                return math.nan, f"failed: {str(error).splitlines()[0]}"
            if code in STOPPED:
                raise Stopped(code)
            summary = json_of(folder / SUMMARY)
            value = summary.get(self.metric)
            if value is None:
                return math.nan, f"failed: it has no {self.metric}; train.final_structures=0?"
            values.append(float(value))
        return math.fsum(values) / len(values), ""

    def _write(self) -> None:
        """`trials.csv` and `best.yaml` of what is done."""
        done = self.done()
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["trial", self.metric, "ended", *self.space])
        for place, trial in enumerate(done):
            texts = [word.partition("=")[2] for word in trial.user_attrs["words"]]
            value = "" if trial.value is None else f"{trial.value:.8g}"
            writer.writerow([place, value, trial.user_attrs.get("problem", "done"), *texts])
        storage.write_text(self.folder / TRIALS, buffer.getvalue())
        if (found := self.best()) is not None:
            place, trial = found
            best = {
                "metric": self.metric,
                "value": trial.value,
                "trial": place,
                "of": len(done),
                "words": _with_effect([*self.words, *trial.user_attrs["words"]]),
            }
            storage.write_text(self.folder / BEST, yaml.safe_dump(best, sort_keys=False))

    def best(self) -> tuple[int, Any] | None:
        """The best trial with its place, the earliest of equal ones; None where all failed."""
        scored = [(k, trial) for k, trial in enumerate(self.done()) if trial.value is not None]
        sign = -1 if self.direction == "maximize" else 1
        return min(scored, key=lambda one: (sign * one[1].value, one[0]), default=None)

    def tell(self, terminal: Terminal) -> ExitCode:
        """Lines about what was found; the exit code."""
        best = yaml_of(self.folder / BEST) if self._found() else None
        if best is None:
            raise NumericalError(
                f"{self.folder}: every trial failed, see {TRIALS}. Look elsewhere in the space."
            )
        rows = list(csv.DictReader((self.folder / TRIALS).read_text("utf-8").splitlines()))
        failed = [row for row in rows if row["ended"] != "done"]
        for row in failed:
            terminal.line(f"trial {int(row['trial']) + 1} {row['ended']}")
        terminal.line(
            f"best of {len(rows)}: trial {best['trial'] + 1}, {best['metric']} "
            f"{best['value']:.5g}, chosen on validation data; try it with other seeds:"
        )
        terminal.line(f"  {shlex.join(['eqflow', 'train', *best['words']])}")
        terminal.line(f"done: {self.folder / BEST}")
        return ExitCode.PARTIAL if failed else ExitCode.DONE

    def _found(self) -> bool:
        return (self.folder / BEST).is_file()


def parsed_words(words: Sequence[str]) -> tuple[list[str], list[str], dict[str, Any]]:
    """Words of tune itself, those of train, and the space, of what was typed.

    The space of `preset=NAME`, a file of `configs/tune`, is under what is typed; its other keys,
    such as `repeats`, are words before those typed.
    """
    own, space_words, of_train = split_off(words, TuneConfig)
    texts: dict[str, Any] = {}
    names = spaces()
    presets = [word.partition("=")[2] for word in own if word.startswith("preset=")]
    if presets and presets[-1] != "null":
        if presets[-1] not in names:
            raise UsageError(f"preset: found {presets[-1]!r}, expected one of {', '.join(names)}.")
        plain = yaml.safe_load((configs_folder() / "tune" / f"{presets[-1]}.yaml").read_text())
        texts |= plain.pop("space")
        own = [*(f"{key}={value}" for key, value in plain.items()), *own]
    texts |= dict(word.removeprefix("space.").partition("=")[::2] for word in space_words)
    return own, of_train, texts


def spaces() -> list[str]:
    """Names of the search spaces of `configs/tune`."""
    return sorted(path.stem for path in (configs_folder() / "tune").glob("*.yaml"))


def unused_anywhere(words: Sequence[str], space: Space) -> dict[str, str]:
    """Words, and keys of the space, that have no effect in any trial, and why.

    What has one in some trials is searched for those. A space of more combinations of choices than
    are looked at is taken as it is.
    """
    unused: dict[str, str] | None = None
    keys = list(space)
    for count, values in enumerate(product(*(space[key].examples for key in keys))):
        if count == MOST_COMBINATIONS:
            return {}
        own = [f"{key}={value}" for key, value in zip(keys, values, strict=True)]
        try:
            found = unused_words([*words, *own])
        except UsageError:
            continue  # A trial of it fails, and says why.
        unused = found if unused is None else {key: unused[key] for key in unused if key in found}
        if not unused:
            return {}
    return unused or {}


def _with_effect(words: Sequence[str]) -> list[str]:
    """Words of a trial without those that have no effect beside the others."""
    unused = unused_words(words)
    return [word for word in words if word.partition("=")[0] not in unused]


def _address(path: Path) -> str:
    """Of an SQLite file, whose path may hold any letter: `?` would begin options."""
    return f"sqlite:///{quote(str(path.resolve()), safe='/')}"


def _require_sensible(
    config: TuneConfig, texts: dict[str, Any], metrics: Mapping[str, str]
) -> None:
    problems = [
        f"{name}: found {value}, expected at least 1."
        for name, value in (("trials", config.trials), ("repeats", config.repeats))
        if value < 1
    ]
    if config.metric is not None and config.metric not in metrics:
        problems.append(
            f"metric: found {config.metric!r}, expected {' or '.join(metrics)}: test data choose "
            "nothing."
        )
    if not texts:
        problems.append(
            "space: found nothing to search, expected space.KEY=[low,high], or preset="
            f"{' or '.join(spaces())}."
        )
    if problems:
        raise UsageError("\n".join(problems))
    _optuna()


def _require_disk(path: Path, error: Exception) -> None:
    """Say it where an error of SQLite, which knows no codes here, is about the disk.

    Raises:
        StorageError: If it is.
    """
    words = ("disk is full", "disk I/O error", "readonly database", "unable to open database file")
    text = str(error).splitlines()[0] if str(error) else ""
    if found := [each for each in words if each in text]:
        raise StorageError(
            f"{path}: cannot be written ({found[0]}). The trials that are done are kept: free some "
            "space, then go on by the same command."
        ) from error


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise UsageError("tune needs Optuna: pip install 'eqflow[tune]'.") from error
    return optuna
