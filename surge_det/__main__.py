"""``python -m surge_det`` is the command ``surge-det``."""

from surge_det.cli.main import script

if __name__ == '__main__':
    script()
