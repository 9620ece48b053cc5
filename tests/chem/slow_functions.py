"""A function that answers, refuses, prints, never ends or ends its process: for a worker to run."""

import os
import sys
import time


def behave(wish: list) -> object:
    """Do what the first word says with the second."""
    what, value = wish
    if what == "print":
        sys.stdout.write("this is no answer\n")
    elif what == "refuse":
        raise ValueError(f"{value}\nand more")
    elif what == "sleep":
        time.sleep(value)
    elif what == "spin":
        # Holds the interpreter, as compiled code does: no other thread of Python's gets a turn.
        sum(range(value))
    elif what == "quit":
        os._exit(value)
    return value
