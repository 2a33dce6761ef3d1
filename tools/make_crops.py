"""See ``surge_det.cli.make_crops``."""

import sys

from surge_det.cli.make_crops import main

if __name__ == '__main__':
    sys.exit(main())
