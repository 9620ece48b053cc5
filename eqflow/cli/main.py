"""`eqflow VERB key=value …`: dispatch, help, and one place where errors become exit codes."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Sequence
from typing import Any

from eqflow.cli import check, crash, demo, doctor, import_enf, sample, score, train, tune
from eqflow.cli.compose import TASKS, composed, experiments, groups_of, keys, task_of
from eqflow.cli.memory import keep_freed_memory
from eqflow.cli.signals import exit_code_of, heed_no_more, leave_by_signals
from eqflow.cli.terminal import Terminal, abandon_output, always_printable
from eqflow.cli.words import Key, nearest
from eqflow.errors import EqflowError, ExitCode, UsageError, is_want_of_memory, printable

# What no one need report: the disk, its permissions, too many files.
OF_THE_MACHINE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EIO,
    errno.EACCES,
    errno.EPERM,
    errno.EMFILE,
    errno.ENFILE,
}

VERBS: dict[str, tuple[Callable[..., ExitCode], str]] = {
    "train": (train.run, "train a model, or resume one by the same command"),
    "sample": (sample.run, "draw structures from a trained run"),
    "score": (score.run, "log-likelihood of structures, or classes of nodes, by a trained run"),
    "check": (check.run, "symmetry and consistency laws of a trained run, or of any function"),
    "tune": (tune.run, "search the settings of a preset on validation data"),
    "import-enf": (import_enf.run, "the published E-NF of QM9 as a run"),
    "doctor": (doctor.run, "what this installation can do, a line each"),
    "demo": (demo.run, "all of it on embedded defaults, with pictures"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the console script; returns the exit code."""
    if arguments is None:  # the process is ours
        keep_freed_memory()
        always_printable()
        leave_by_signals()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _run(words)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of the output went away; nothing more can be told to it.
        abandon_output()
        return ExitCode.DONE
    except KeyboardInterrupt as error:
        code = exit_code_of(getattr(error, "number", None))
        how = "terminated" if code is ExitCode.TERMINATED else "interrupted"
        return _failed(" ".join(words[:1]), how, code)
    except OSError as error:
        if error.errno not in OF_THE_MACHINE or error.filename:
            return _bug(words, error)
        abandon_output()
        told = f"standard output cannot be written ({error.strerror})"
        return _failed(" ".join(words[:1]), told, ExitCode.STORAGE)
    except Exception as error:
        return _bug(words, error)
    finally:
        if arguments is None:
            heed_no_more()
    return code


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return ExitCode.DONE if words else ExitCode.USAGE
    verb, *rest = words
    if verb == "--version":
        from eqflow import __version__

        print(f"eqflow {__version__}")
        return ExitCode.DONE
    if verb not in VERBS:
        text = f"eqflow: there is no verb {verb!r}; {nearest(verb, VERBS)}"
        return _complained(text, ExitCode.USAGE)
    if any(word in ("-h", "--help") for word in rest):
        try:
            print(help_of(verb, [word for word in rest if word not in ("-h", "--help")]))
        except UsageError as error:
            return _failed(verb, str(error), error.exit_code)
        return ExitCode.DONE
    return _guarded(verb, rest)


def overview() -> str:
    """What `eqflow --help` prints."""
    lines = ["usage: eqflow VERB key=value …", ""]
    lines += [f"  {verb:<12}{summary}" for verb, (_, summary) in VERBS.items()]
    lines += ["", "eqflow VERB --help lists the keys of a verb.", ""]
    for task in TASKS:
        lines += [f"presets of {task}: experiment={', '.join(experiments(task))}"]
    lines += ["", "example: eqflow train experiment=dw4 run.dir=runs/dw4 train.minutes=2"]
    return "\n".join(lines)


def help_of(verb: str, words: Sequence[str] = ()) -> str:
    """What `eqflow VERB --help` prints: every key, its default and what it means.

    Of train, the keys of the task that `words` are about.

    Raises:
        UsageError: If they are about none.
    """
    lines = [f"eqflow {verb}: {VERBS[verb][1]}", ""]
    what = verb
    if verb == "train":
        task = task_of(words)
        what = TASKS[task]
        lines += [f"  task={each}: {', '.join(experiments(each))}" for each in TASKS]
        others = " or ".join(f"eqflow train task={each} --help" for each in TASKS if each != task)
        lines += ["", f"keys of task={task}; those of the other: {others}", ""]
        lines += [_line("task", task, "or a preset of it, or a model of it, is enough to say so")]
        lines += [_line("experiment", "", f"one of {', '.join(experiments(task))}")]
    if verb == "tune":
        lines += [_line("space.KEY", "", "of a key of train: [low,high], [low,high,log] or a|b|c")]
    for key, leaf in keys(what).items():
        shown = "" if leaf.default is None else str(leaf.default)
        text = f"{leaf.help} (with {leaf.option})" if _is_special(what, key, leaf) else leaf.help
        if not (verb == "train" and key == "task"):
            lines.append(_line(key, shown, text))
    return "\n".join(lines)


def _is_special(what: str, key: str, leaf: Key) -> bool:
    """Whether only some options of a group have a key."""
    choices = groups_of(what).get(key.split(".")[0], ())
    return leaf.option is not None and leaf.option.count(" or ") + 1 < len(choices)


def _line(key: str, default: str, text: str) -> str:
    return f"  {key:<28}{default:<15} {text}"


def _guarded(verb: str, words: Sequence[str]) -> int:
    config = None
    try:
        if verb == "tune":
            own, of_train, space = tune.parsed_words(words)
            config = composed(verb, own)
            return tune.run(config, of_train, space)
        config = composed(verb, words, Terminal().line)
        return VERBS[verb][0](config)
    except EqflowError as error:
        return _failed(verb, str(error), error.exit_code)
    except OSError as error:
        # Lines that nobody reads raise nothing: a broken pipe is one to a process of our own.
        if error.errno not in OF_THE_MACHINE:
            return _bug([verb, *words], error, config)
        where = f"{error.filename}: " if error.filename else ""
        return _failed(verb, f"{where}{error.strerror}", ExitCode.STORAGE)
    except Exception as error:
        if not is_want_of_memory(error):
            return _bug([verb, *words], error, config)
        return _failed(
            verb, "out of memory; lower train.batch_size, model.width or the batch", ExitCode.MEMORY
        )


def _bug(words: Sequence[str], error: Exception, config: Any = None) -> int:
    """What no one foresaw: its traceback goes to a file, and not over what people were told."""
    return _failed(" ".join(words[:1]), crash.told(words, error, config), ExitCode.BUG)


def _failed(verb: str, message: str, code: ExitCode) -> int:
    return _complained(f"{f'eqflow {verb}'.rstrip()}: {message}", code)


def _complained(text: str, code: ExitCode) -> int:
    try:
        print(printable(text), file=sys.stderr, flush=True)
    except OSError:  # nobody reads it; the code still says what happened
        abandon_output(sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
