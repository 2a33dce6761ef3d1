"""Copies configs, tools, weights into the wheel; metadata is in setup.cfg."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithMim(build_py):
    """Adds ``surge_det/.mim``, where mmengine and mim look for them.

    An editable installation uses the clone's own folders.
    """

    def run(self):
        """Build, then copy."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, 'surge_det', '.mim')
        shutil.rmtree(target, ignore_errors=True)
        for name in ('configs', 'tools', 'weights'):
            shutil.copytree(
                ROOT / name,
                target / name,
                ignore=shutil.ignore_patterns('__pycache__'),
            )
        shutil.copy(ROOT / 'model-index.yml', target)


setup(cmdclass={'build_py': BuildWithMim})
