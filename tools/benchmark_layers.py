"""See ``surge_det.cli.benchmark.layers``."""

import sys

from surge_det.cli.benchmark.layers import main

if __name__ == '__main__':
    sys.exit(main())
