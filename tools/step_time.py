"""See ``surge_det.cli.benchmark.step_time``."""

import sys

from surge_det.cli.benchmark.step_time import main

if __name__ == '__main__':
    sys.exit(main())
