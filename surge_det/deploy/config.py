"""The config in a deployed file: written as text, read without running it."""

from __future__ import annotations

import ast
import json
import math
import re
from pathlib import Path
from typing import Any

from mmcv import Color
from mmengine.config import Config
from mmengine.config.config import RESERVED_KEYS

from surge_det.text import brief

# What inference needs; the rest of a config is about training.
_KEYS = (
    'custom_imports',
    'default_scope',
    'model',
    'test_dataloader',
    'tta_model',
    'tta_pipeline',
    'visualizer',
)
# No config comes near it.
_CHARACTERS = 1_000_000
# Each character takes its time in each picture, and a control character, or
# half of a surrogate pair, cannot be drawn.
_NAME = re.compile(r'[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{0,100}')
_PALETTES = ('random', 'coco', 'citys', 'voc', *Color.__members__)


def inference_part(cfg: Config) -> dict[str, Any]:
    """Return what inference needs of a config, as plain values."""
    values = cfg.to_dict()
    (values.get('model') or {}).pop('distill_cfg', None)
    return {key: values[key] for key in _KEYS if key in values}


def config_text(cfg: Config, inference: bool = True) -> str:
    """Write a config as Python assignments.

    Args:
        cfg: A whole config.
        inference: Whether to leave out what is about training.

    Raises:
        ValueError: If :func:`read_config` could not read it again.
    """
    text = (Config(inference_part(cfg)) if inference else cfg).pretty_text
    _parse(text, 'this config')
    return text


def read_config(text: str, source: str | Path) -> Config:
    """Read a config that :func:`config_text` or mmengine wrote.

    A config is a program. A file of weights that somebody passes on should
    not be one: this reads assignments of plain values (and ``dict(...)``),
    and neither runs nor imports anything.
    :func:`~.stored_config.stored_config` says what may be built from it.

    Args:
        text: Python assignments.
        source: Name of the file, for messages.

    Raises:
        ValueError: If there is anything else in it.
    """
    return Config(_parse(text, source))


def _parse(text: str, source: str | Path) -> dict[str, Any]:
    values = {}
    try:
        if len(text) > _CHARACTERS:
            raise ValueError(f'more than {_CHARACTERS:,} characters')
        for node in ast.parse(text).body:
            if not isinstance(node, ast.Assign) or not all(
                isinstance(target, ast.Name) for target in node.targets
            ):
                raise ValueError(f'line {node.lineno} is no assignment')
            name = node.targets[0].id
            if name in RESERVED_KEYS:
                raise ValueError(f'the name {name!r} in line {node.lineno}')
            values[name] = ast.literal_eval(_Literals().visit(node.value))
    # The last two where it is nested too deep for Python.
    except (
        *(SyntaxError, TypeError, ValueError),
        *(MemoryError, RecursionError),
    ) as error:
        reason = str(error) or 'nested too deep'
        raise ValueError(
            f'{source}: its config is not allowed ({reason}): assignments of '
            'plain values only, nothing that would have to be run'
        ) from error
    return values


class _Literals(ast.NodeTransformer):
    """Writes ``dict(...)``, ``inf`` and ``nan`` as literals are written."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        names = [keyword.arg for keyword in node.keywords]
        is_dict = isinstance(node.func, ast.Name) and node.func.id == 'dict'
        if not is_dict or node.args or None in names:
            raise ValueError(f'a call in line {node.lineno}')
        values = [self.visit(keyword.value) for keyword in node.keywords]
        return ast.Dict([ast.Constant(name) for name in names], values)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id not in ('inf', 'nan'):
            raise ValueError(
                f'the name {brief(node.id)} in line {node.lineno}'
            )
        return ast.Constant(getattr(math, node.id))


def meta_text(dataset_meta: dict[str, Any]) -> str:
    """Write a detector's ``dataset_meta`` (classes, palette) as JSON.

    Raises:
        ValueError: If there is something else than plain values in it.
    """
    try:
        return json.dumps(dataset_meta)
    except TypeError as error:
        raise ValueError(
            f'dataset_meta={dataset_meta!r} is not allowed: plain values '
            f'only ({error})'
        ) from error


def read_meta(text: str, source: str | Path) -> dict[str, Any]:
    """Read what :func:`meta_text` wrote.

    Args:
        text: JSON.
        source: Name of the file, for messages.

    Raises:
        ValueError: If it is no JSON object, or as :func:`checked_meta`.
    """
    try:
        meta = json.loads(text)
    except (RecursionError, TypeError, ValueError) as error:
        raise ValueError(f'{source}: no dataset_meta: {error}') from error
    return checked_meta(meta, source)


def checked_meta(meta: Any, source: str | Path) -> dict[str, Any]:
    """Return a ``dataset_meta`` as visualizers take it.

    Args:
        meta: ``classes`` is a list of names, up to 100 characters each,
            ``palette`` a list of colours (three numbers) or the name of one
            that mmdet has; what else there is stays.
        source: Name of the file, for messages.

    Raises:
        ValueError: If it is something else.
    """
    if not isinstance(meta, dict):
        raise ValueError(f'{source}: dataset_meta={brief(meta)} is no dict')
    meta = dict(meta)
    classes, palette = meta.get('classes', []), meta.get('palette', 'random')
    if not isinstance(classes, (list, tuple)) or not all(
        isinstance(name, str) for name in classes
    ):
        raise ValueError(
            f'{source}: its dataset_meta has no list of names as classes'
        )
    for name in classes:
        if not _NAME.fullmatch(name):
            raise ValueError(
                f'{source}: its dataset_meta has the class {brief(name)}: up '
                'to 100 characters are allowed, and no control characters'
            )
    # Visualizers take colours as tuples.
    if isinstance(palette, (list, tuple)):
        palette = [
            tuple(color) if isinstance(color, list) else color
            for color in palette
        ]
        if not all(
            isinstance(color, tuple)
            and len(color) == 3
            and all(isinstance(n, int) and 0 <= n < 256 for n in color)
            for color in palette
        ):
            palette = None
    if isinstance(palette, str) and palette not in _PALETTES:
        raise ValueError(
            f'{source}: its dataset_meta has the palette {brief(palette)}: a '
            f'list of colours is allowed, or one of {", ".join(_PALETTES)}'
        )
    if not isinstance(palette, (list, str)):
        raise ValueError(
            f'{source}: its dataset_meta has no list of colours as palette'
        )
    if 'classes' in meta:
        meta['classes'] = tuple(classes)
    if 'palette' in meta:
        meta['palette'] = palette
    return meta
