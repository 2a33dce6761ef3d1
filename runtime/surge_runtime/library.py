"""The compiled operators."""

import ctypes
import os
from pathlib import Path


def library_path() -> str:
    """Path of the library, for ``register_custom_ops_library``.

    Raises:
        FileNotFoundError: The package was not built.
    """
    path = Path(__file__).with_name('libsurge_ops.so')
    if not path.exists():
        raise FileNotFoundError(
            f'{path} is missing: install surge_runtime from its wheel, or '
            'build it with "python setup.py build_ops --inplace"'
        )
    return str(path)


def kernel_path() -> str:
    """Which instruction set the 1-bit kernels are for.

    ``avx512``, ``avx2``, ``neon`` or ``generic``: the best that the processor
    has, or what the environment variable ``SURGE_ISA`` names.

    Raises:
        FileNotFoundError: The package was not built.
        ValueError: If ``SURGE_ISA`` names what the processor has not.
    """
    surge_isa = ctypes.CDLL(library_path()).surge_isa
    surge_isa.restype = ctypes.c_char_p
    found = surge_isa()
    if found is None:
        raise ValueError(
            f'SURGE_ISA={os.environ.get("SURGE_ISA")!r}: this processor has '
            'no such kernels; avx512, avx2, neon and generic are allowed as '
            'far as it has them'
        )
    return found.decode()
