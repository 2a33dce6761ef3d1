"""See ``surge_det.cli.benchmark.train``."""

import sys

from surge_det.cli.benchmark.train import main

if __name__ == '__main__':
    sys.exit(main())
