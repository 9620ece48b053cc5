"""Train a density model: `python train.py experiment=dw4`, the same as `eqflow train`."""

import sys

from eqflow.__main__ import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    sys.exit(main())
