"""`python -m bindscope`."""

import sys

from bindscope.cli import main

if __name__ == "__main__":
    sys.exit(main())
