"""See ``surge_det.cli.summary``."""

import sys

from surge_det.cli.summary import main

if __name__ == '__main__':
    sys.exit(main())
