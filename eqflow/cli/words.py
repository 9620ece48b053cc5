"""The `key=value` words of a command, each checked against the schema before Hydra sees it.

Hydra's grammar is made for programs: a comma is a sweep, a parenthesis a function. Here every word
sets one key of the schema, so a path may hold any character, `1e4` is a whole number, `H,C` a list.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Union, get_args, get_origin, get_type_hints

from eqflow.errors import UsageError

# An element of a list that sets something itself, such as gap=0.3.
_PAIR = re.compile(r"""[^\[\],'"]*=[^\[\],'"]*""")

Groups = Mapping[str, Mapping[str, type]]

EXPECTED = {int: "a whole number", float: "a number", bool: "true or false"}


@dataclass(frozen=True)
class Key:
    """A leaf of a schema.

    Attributes:
        type: What its value is: str, int, float, bool, or list.
        optional: Whether it may be null.
        default: Its value where no word and no preset sets it.
        help: What it means.
        option: The options of its group that have it, such as `objective=maximum_likelihood`.
    """

    type: type
    optional: bool
    default: Any
    help: str
    option: str | None = None


def keys_of(
    schema: type, groups: Groups, prefix: str = "", option: str | None = None
) -> dict[str, Key]:
    """Every key of a schema by its full name, those of all options of its groups included."""
    found: dict[str, Key] = {}
    hints = get_type_hints(schema)
    for item in fields(schema):
        name = f"{prefix}{item.name}"
        default = item.default_factory() if callable(item.default_factory) else item.default
        if item.name in groups and not prefix:
            shown = getattr(default, "name", None)
            choices = ", ".join(groups[item.name])
            found[name] = Key(str, default is None, shown, f"one of {choices}")
            for choice, kind in groups[item.name].items():
                for key, leaf in keys_of(kind, groups, f"{name}.", f"{name}={choice}").items():
                    if key in found:
                        leaf = replace(found[key], option=f"{found[key].option} or {leaf.option}")
                    if key != f"{name}.name":
                        found[key] = leaf
        elif is_dataclass(default):
            found |= keys_of(type(default), groups, f"{name}.", option)
        else:
            kind, optional = _leaf_type(hints[item.name])
            found[name] = Key(kind, optional, default, item.metadata.get("help", ""), option)
    return found


def in_grammar(
    words: Sequence[str], known: Mapping[str, Key], options: Mapping[str, Sequence[str]]
) -> list[str]:
    """The words in Hydra's grammar.

    Args:
        words: As typed.
        known: Keys by name.
        options: What each group may be, `experiment` among them.

    Raises:
        UsageError: If any is wrong; all wrong words are named, a line each.
    """
    good, problems = [], []
    for word in words:
        try:
            good.append(_in_grammar(word, known, options))
        except UsageError as error:
            problems.append(f"{word}: {error}")
    if problems:
        raise UsageError("\n".join(problems))
    return good


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message on an unknown name: its nearest neighbours, or what there is."""
    known = list(known)
    by_last: dict[str, list[str]] = {}
    for key in known:
        by_last.setdefault(key.split(".")[-1], []).append(key)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.7)
    near += [
        key
        for last in difflib.get_close_matches(name.split(".")[-1], by_last, n=2, cutoff=0.75)
        for key in by_last[last]
    ]
    near = list(dict.fromkeys(near))[:3]
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"expected one of {', '.join(known[:12])}{', …' if len(known) > 12 else ''}."


def _in_grammar(word: str, known: Mapping[str, Key], options: Mapping[str, Sequence[str]]) -> str:
    key, equals, value = word.partition("=")
    if word[:1] in ("+", "~"):
        raise UsageError("keys are neither added nor removed; write key=value.")
    if not equals or not key:
        raise UsageError("expected key=value, such as seed=1.")
    if key in options:
        if value not in options[key]:
            raise UsageError(f"{key} has no option {value!r}; {nearest(value, options[key])}")
        return word
    if key not in known:
        inside = [name for name in known if name.startswith(f"{key}.")]
        if inside:
            raise UsageError(f"{key} is a section; set its keys, such as {inside[0]}=….")
        raise UsageError(f"there is no key {key!r}; {nearest(key, [*known, *options])}")
    return f"{key}={_value(value, known[key])}"


def _value(value: str, key: Key) -> str:
    if value == "null":
        if not key.optional:
            raise UsageError(f"expected {EXPECTED.get(key.type, 'a value')}.")
        return value
    if key.type is str:
        if not value:
            raise UsageError("found no value after the equals sign.")
        return value if _is_quoted(value) else _quoted(value)
    if key.type is list:
        value = value if re.fullmatch(r"\[.*\]", value) else f"[{value}]"
        return _PAIR.sub(lambda pair: _quoted(pair[0]), value)
    if "${" in value:
        return value
    try:
        return _number(value, key.type)
    except (ValueError, OverflowError):
        orders = " or null" if key.optional else ""
        raise UsageError(f"expected {EXPECTED[key.type]}{orders}.") from None


def _number(value: str, kind: type) -> str:
    """A number or truth value; whole numbers may be written as 1e4."""
    if kind is bool:
        if value.lower() not in ("true", "false"):
            raise ValueError
        return value.lower()
    if kind is float:
        return repr(float(value))
    try:
        return str(int(value))
    except ValueError:
        if float(value) != int(float(value)):
            raise
        return str(int(float(value)))


def _leaf_type(hint: Any) -> tuple[type, bool]:
    if get_origin(hint) in (Union, types.UnionType):
        inner = [kind for kind in get_args(hint) if kind is not type(None)]
        return _leaf_type(inner[0])[0], True
    return get_origin(hint) or hint, False


def _is_quoted(value: str) -> bool:
    return len(value) > 1 and value[0] == value[-1] and value[0] in "'\""


def _quoted(value: str) -> str:
    """A value in single quotes; backslashes count only before a quote."""
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value)
    return f"'{escaped}'"
