"""Many commands of eqflow in one process, to start it once: `python many_commands.py words.json`.

Prints a JSON list with the exit code, standard output and standard error of each.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path

from eqflow.cli.main import main


def outcome(words: list[str]) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = int(main(words))
    return code, out.getvalue(), err.getvalue()


if __name__ == "__main__":
    every = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    sys.stdout.write(json.dumps([outcome(words) for words in every]))
