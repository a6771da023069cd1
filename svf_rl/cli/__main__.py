"""`python -m svf_rl.cli` is `svf-rl`."""

import sys

from svf_rl.cli import main

if __name__ == "__main__":
    sys.exit(main())
