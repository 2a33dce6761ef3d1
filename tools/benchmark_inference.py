"""See ``surge_det.cli.benchmark.inference``."""

import sys

from surge_det.cli.benchmark.inference import main

if __name__ == '__main__':
    sys.exit(main())
