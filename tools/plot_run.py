"""See ``surge_det.cli.plot_run``."""

import sys

from surge_det.cli.plot_run import main

if __name__ == '__main__':
    sys.exit(main())
