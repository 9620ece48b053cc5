"""The pages of `docs/` say what happens: their Python runs, and prints what they say it prints."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What is printed stands behind `print(…)  #`, or in lines of comments that follow the code.
SAID = re.compile(r"^(?:\s*print\(.*\)  )?# (.*)$", re.MULTILINE)


def run(text: str) -> list[tuple[list[str], list[str]]]:
    """What each block of a page printed, and what the page says; blocks follow on one another."""
    names: dict[str, object] = {"__name__": "docs"}
    found = []
    for place, block in enumerate(FENCE.findall(text)):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block, f"block {place}", "exec"), names)
        found.append((printed.getvalue().splitlines(), SAID.findall(block)))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_of_a_page_runs_and_prints_what_the_page_says(page: Path) -> None:
    torch.manual_seed(0)
    blocks = run(page.read_text(encoding="utf-8"))
    assert blocks
    for printed, said in blocks:
        assert printed == said


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_picture_of_a_page_is_there(page: Path) -> None:
    for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / name).is_file(), name


def test_a_page_that_says_something_else_is_found_out() -> None:
    printed, said = run("```python\nx = 2\nprint(x)  # 3\n```\n")[0]
    assert (printed, said) == (["2"], ["3"])


def test_a_block_that_fails_is_found_out() -> None:
    with pytest.raises(NameError):
        run("```python\nprint(missing)\n```\n")
