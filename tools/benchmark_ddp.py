"""See ``surge_det.cli.benchmark.ddp``."""

from surge_det.cli.benchmark.ddp import main
from surge_det.cli.main import leave

if __name__ == '__main__':
    main()
    leave()
