"""See ``surge_det.cli.compare.command``."""

import sys

from surge_det.cli.compare.command import main

if __name__ == '__main__':
    sys.exit(main())
