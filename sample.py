"""Draw structures: `python sample.py run=runs/dw4 out=x.npz`, the same as `eqflow sample`."""

import sys

from eqflow.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["sample", *sys.argv[1:]]))
