"""See ``surge_det.cli.benchmark.growth``."""

import sys

from surge_det.cli.benchmark.growth import main

if __name__ == '__main__':
    sys.exit(main())
