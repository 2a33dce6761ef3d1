"""See ``surge_det.cli.benchmark.ddp``."""

from surge_det.cli.benchmark.ddp import main
from surge_det.cli.common import leave

if __name__ == '__main__':
    main()
    leave()
