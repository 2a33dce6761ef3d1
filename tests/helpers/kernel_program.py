"""The program that holds the 1-bit kernels against plain arithmetic."""

import platform
import subprocess
import sys
from pathlib import Path

SOURCES = Path(__file__).parents[2] / 'runtime' / 'src'
# Files that only one kind of processor compiles, with their flags.
PER_TARGET = {
    'x86_64': {
        'binary_conv_avx2': ['-mavx2'],
        'binary_conv_avx512': [
            '-mavx512f',
            '-mavx512bw',
            '-mavx512vl',
            '-mavx512dq',
            '-mavx512vpopcntdq',
        ],
    },
    'aarch64': {'binary_conv_neon': []},
}
COMMON = ['binary_conv', 'binary_conv_generic', 'binary_conv_test', 'isa']


def build(folder: Path, target: str) -> Path:
    """Compile it with ziglang for ``x86_64`` or ``aarch64``."""
    # As the package is built, whose C++ library the compiler then has ready.
    system = 'linux-gnu.2.17'
    if target != platform.machine():
        # All in one file: qemu has no libraries of that machine.
        system = 'linux-musl'
    compiler = [
        *(sys.executable, '-m', 'ziglang', 'c++', '-std=c++17', '-O2'),
        *('-ffp-contract=off', '-target', f'{target}-{system}'),
    ]
    objects = []
    for name, flags in [
        *((name, []) for name in COMMON),
        *PER_TARGET[target].items(),
    ]:
        objects.append(str(folder / f'{name}.o'))
        subprocess.run(
            [*compiler, *flags, '-c', str(SOURCES / f'{name}.cc')]
            + ['-o', objects[-1]],
            check=True,
        )
    program = folder / 'binary_conv_test'
    subprocess.run([*compiler, *objects, '-o', str(program)], check=True)
    return program
