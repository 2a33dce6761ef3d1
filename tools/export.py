"""See ``surge_det.cli.export``."""

import sys

from surge_det.cli.export import main

if __name__ == '__main__':
    sys.exit(main())
