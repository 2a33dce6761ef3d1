"""See ``surge_det.cli.convert``."""

import sys

from surge_det.cli.convert import main

if __name__ == '__main__':
    sys.exit(main())
