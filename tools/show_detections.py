"""See ``surge_det.cli.show_detections``."""

import sys

from surge_det.cli.show_detections import main

if __name__ == '__main__':
    sys.exit(main())
