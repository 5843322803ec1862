"""``python -m dartslight``."""

import sys

from dartslight.cli import main

if __name__ == "__main__":
    sys.exit(main())
