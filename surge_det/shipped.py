"""Configs and weights that come with the package, as clone or as wheel.

What there is to know of the weights is in ``weights/metafile.yml``.
"""

import difflib
import hashlib
from pathlib import Path

PACKAGE = Path(__file__).parent
# A wheel carries what mmdet's wheels do, in the same folder; a clone has it
# at its root.
FOLDER = PACKAGE / '.mim'
if not FOLDER.is_dir():
    FOLDER = PACKAGE.parent
CONFIGS = FOLDER / 'configs'
WEIGHTS = FOLDER / 'weights'


def config_names() -> list[str]:
    """Return the names of all shipped configs, without ``.py``, sorted."""
    return sorted(
        path.relative_to(CONFIGS).with_suffix('').as_posix()
        for path in CONFIGS.rglob('*.py')
        if '_base_' not in path.parts
    )


def shipped_config(name: str) -> Path:
    """Return the path of a shipped config.

    Args:
        name: Such as ``'surge_faster_rcnn_r18_voc'``,
            ``'pretrain/surge_resnet18_crops'`` or a file of ``_base_/``, with
            or without ``.py``.

    Raises:
        ValueError: If there is no such config. The message has the names
            that are near it.
    """
    name = name.removesuffix('.py')
    path = CONFIGS / f'{name}.py'
    if path.is_file() and path.resolve().is_relative_to(CONFIGS.resolve()):
        return path
    names = config_names()
    near = difflib.get_close_matches(name, names, n=5)
    raise ValueError(
        f'config {name!r} is not among the {len(names)} shipped ones'
        + (f'; near names: {", ".join(near)}' if near else '')
    )


def shipped_weights(name: str) -> Path:
    """Return the path of a shipped detector's packed file, once checked.

    Args:
        name: Such as ``'bccd'``.

    Raises:
        ValueError: If there is no such detector, with the names of all, or
            if its file, or the list of all, is not what was shipped.
    """
    # The base installation has none.
    import yaml

    path = WEIGHTS / 'metafile.yml'
    try:
        listed = yaml.safe_load(path.read_text('utf-8'))['Models']
        models = {model['Name']: model for model in listed}
    except (LookupError, OSError, TypeError, ValueError, yaml.YAMLError):
        raise ValueError(
            f'{name!r} does not exist, and {path}, which lists the shipped '
            'models, is damaged or missing; install surge_det again'
        ) from None
    if name not in models:
        raise ValueError(
            f'{name!r} does not exist; the shipped models are '
            + ', '.join(models)
        )
    path = FOLDER / models[name]['Weights']
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ValueError(
            f'{path} cannot be read ({error.strerror}); install surge_det '
            'again'
        ) from None
    if found != models[name]['SHA-256']:
        raise ValueError(
            f'{path} is damaged: its SHA-256 is {found} instead of '
            f'{models[name]["SHA-256"]}; install surge_det again'
        )
    return path
