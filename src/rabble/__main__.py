"""`python -m rabble`: the command without its script."""

import sys

from rabble.cli import main

if __name__ == "__main__":
    sys.exit(main())
