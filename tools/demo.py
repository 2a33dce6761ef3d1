"""See ``surge_det.cli.demo``."""

import sys

from surge_det.cli.demo import main

if __name__ == '__main__':
    sys.exit(main())
