"""See ``surge_det.cli.infer``."""

import sys

from surge_det.cli.infer import main

if __name__ == '__main__':
    sys.exit(main())
