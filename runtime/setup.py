"""Compiles the operators with the C++ compiler of the wheel ``ziglang``.

``SURGE_TARGET=aarch64`` (or ``x86_64``) builds for another machine than this
one. ``python setup.py build_ops --inplace`` compiles into the source tree.
"""

import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Command, Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
TARGET = os.environ.get('SURGE_TARGET') or platform.machine()
TARGETS = ('x86_64', 'aarch64')
# glibc 2.17 is manylinux2014's: the wheels run on every Linux since 2014.
GLIBC = '2.17'
# No contraction to fused multiply-add: signs depend on rounding as torch's.
# The library exports two functions; its C++ library is linked in.
FLAGS = [
    '-std=c++17',
    '-O3',
    '-DNDEBUG',
    '-fPIC',
    '-ffp-contract=off',
    '-fno-sanitize=all',
    '-fvisibility=hidden',
    '-fvisibility-inlines-hidden',
    '-Wall',
    '-Wextra',
]
# A file's suffix says which instructions it may use, and on which machine it
# is compiled. Others keep to what every processor of that kind has.
SUFFIXES = {
    '_avx2': ('x86_64', ['-mavx2']),
    '_avx512': (
        'x86_64',
        [
            '-mavx512f',
            '-mavx512bw',
            '-mavx512vl',
            '-mavx512dq',
            '-mavx512vpopcntdq',
        ],
    ),
    '_neon': ('aarch64', []),
}


def flags_of(source):
    """Flags of one file; ``None`` where the target does not have it."""
    # A program of its own, which tests compile.
    if source.stem.endswith('_test'):
        return None
    for suffix, (target, flags) in SUFFIXES.items():
        if source.stem.endswith(suffix):
            return flags if target == TARGET else None
    return []


class BuildOps(Command):
    """Compiles ``src/*.cc`` into ``libsurge_ops.so``."""

    description = 'compile the operators'
    user_options = [('inplace', 'i', 'write into the source tree')]
    boolean_options = ['inplace']

    def initialize_options(self):
        """Set defaults."""
        self.inplace = False
        self.build_lib = None
        self.build_temp = None

    def finalize_options(self):
        """Take the folders from ``build``."""
        self.set_undefined_options(
            'build', ('build_lib', 'build_lib'), ('build_temp', 'build_temp')
        )

    def run(self):
        """Compile what is older than its source or a header; link."""
        if TARGET not in TARGETS:
            sys.exit(f'SURGE_TARGET {TARGET!r}: must be one of {TARGETS}')
        sources = {}
        for source in sorted(ROOT.glob('src/*.cc')):
            flags = flags_of(source)
            if flags is not None:
                sources[source] = flags
        objects = Path(self.build_temp, f'ops-{TARGET}')
        objects.mkdir(parents=True, exist_ok=True)
        inputs = [*ROOT.glob('src/*.h'), Path(__file__)]
        newest = max(path.stat().st_mtime for path in inputs)
        compiler = [
            *(sys.executable, '-m', 'ziglang', 'c++'),
            *('-target', f'{TARGET}-linux-gnu.{GLIBC}'),
        ]

        def compile_one(source):
            target = objects / f'{source.stem}.o'
            time = max(newest, source.stat().st_mtime)
            if not target.exists() or target.stat().st_mtime < time:
                subprocess.run(
                    [*compiler, *FLAGS, *sources[source]]
                    + ['-c', str(source), '-o', str(target)],
                    check=True,
                )
            return str(target)

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            compiled = list(pool.map(compile_one, sources))
        package = (ROOT if self.inplace else Path(self.build_lib)).joinpath(
            'surge_runtime'
        )
        package.mkdir(parents=True, exist_ok=True)
        library = str(package / 'libsurge_ops.so')
        exports = f'-Wl,--version-script={ROOT / "src/exports.map"}'
        subprocess.run(
            [*compiler, '-shared', '-s', exports, '-o', library, *compiled],
            check=True,
        )


class BuildPy(build_py):
    """Adds the library to the package."""

    def run(self):
        """Build the package, then the library beside it."""
        super().run()
        self.get_finalized_command('build_ops').inplace = self.editable_mode
        self.run_command('build_ops')


class Wheel(bdist_wheel):
    """The library needs no Python, so one wheel serves all versions."""

    def get_tag(self):
        """Python 3, any ABI, glibc 2.17."""
        return 'py3', 'none', f'manylinux2014_{TARGET}'


class Binary(Distribution):
    """A distribution for one kind of machine."""

    def has_ext_modules(self):
        """Yes: the library."""
        return True


setup(
    distclass=Binary,
    cmdclass={
        'build_ops': BuildOps,
        'build_py': BuildPy,
        'bdist_wheel': Wheel,
    },
)
