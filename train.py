"""Train a density model: `python train.py experiment=dw4`, the same as `eqflow train`."""

import sys

from eqflow.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
