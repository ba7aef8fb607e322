"""`python -m geomag_edge COMMAND`: the command line of this interpreter's installation."""

import sys

from geomag_edge.cli import main

if __name__ == "__main__":
    sys.exit(main())
