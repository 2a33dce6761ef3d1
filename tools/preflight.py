"""See ``surge_det.cli.preflight``."""

import sys

from surge_det.cli.preflight import main

if __name__ == '__main__':
    sys.exit(main())
