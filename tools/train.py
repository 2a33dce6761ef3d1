"""See ``surge_det.cli.train``."""

from surge_det.cli.common import leave
from surge_det.cli.train import main

if __name__ == '__main__':
    main()
    leave()
