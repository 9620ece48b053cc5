"""Draw structures: `python sample.py run=runs/dw4 out=x.npz`, the same as `eqflow sample`."""

import sys

from eqflow.__main__ import main

if __name__ == "__main__":
    sys.argv.insert(1, "sample")
    sys.exit(main())
