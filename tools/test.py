"""See ``surge_det.cli.test``."""

from surge_det.cli.common import leave
from surge_det.cli.test import main

if __name__ == '__main__':
    main()
    leave()
