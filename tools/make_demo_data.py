"""See ``surge_det.cli.make_demo_data``."""

import sys

from surge_det.cli.make_demo_data import main

if __name__ == '__main__':
    sys.exit(main())
