"""The compiled operators."""

from pathlib import Path


def library_path():
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
