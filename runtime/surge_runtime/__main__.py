"""``python -m surge_runtime``, the command ``surge-runtime``."""

from .cli import main

main()
