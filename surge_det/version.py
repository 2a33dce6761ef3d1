"""Version of surge_det."""

__version__ = '0.1.0'
