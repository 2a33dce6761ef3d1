"""The config in a deployed file: written as text, read without running it."""

from __future__ import annotations

import ast
import importlib
import json
import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import MODELS
from mmengine.utils import import_modules_from_strings

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


def inference_part(cfg: Config) -> dict[str, Any]:
    """Return what inference needs of a config, as plain values."""
    values = cfg.to_dict()
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


def read_config(text: str, source: str | Path, imports: bool = True) -> Config:
    """Read a config that :func:`config_text` or mmengine wrote.

    A config is a program. A file of weights that somebody passes on should
    not be one: this reads assignments of plain values (and ``dict(...)``),
    runs nothing, and refuses a ``type`` that is a path to import instead of
    a registered name. Modules that ``custom_imports`` names are imported.

    Args:
        text: Python assignments.
        source: Name of the file, for messages.
        imports: Whether to import what ``custom_imports`` names.

    Raises:
        ValueError: If there is anything else in it.
        ImportError: If a module that it names is not installed.
    """
    cfg = Config(_parse(text, source))
    modules = cfg.get('custom_imports')
    if modules and imports:
        import_modules_from_strings(**modules)
    return cfg


def _parse(text: str, source: str | Path) -> dict[str, Any]:
    values = {}
    try:
        for node in ast.parse(text).body:
            if not isinstance(node, ast.Assign) or not all(
                isinstance(target, ast.Name) for target in node.targets
            ):
                raise ValueError(f'line {node.lineno} is no assignment')
            value = ast.literal_eval(_Literals().visit(node.value))
            values[node.targets[0].id] = value
    except (SyntaxError, TypeError, ValueError) as error:
        raise ValueError(
            f'{source}: its config is not allowed ({error}): assignments of '
            'plain values only, nothing that would have to be run'
        ) from error
    for kind in _types(values):
        _check_type(kind, source)
    return values


def _check_type(kind: str, source: str | Path) -> None:
    scope, dot, name = kind.rpartition('.')
    if not dot:
        return
    known = {'mmengine', *MODULE2PACKAGE, *MODELS.children}
    if scope in known:
        # What no registry has mmengine imports: `mmcv.convert_video` would
        # be called.
        with suppress(ImportError):
            if not hasattr(importlib.import_module(scope), name):
                return
    raise ValueError(
        f'{source}: type={kind!r} in the config is not allowed: a registered '
        f'name, with or without one of the scopes {sorted(known)}'
    )


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
            raise ValueError(f'the name {node.id!r} in line {node.lineno}')
        return ast.Constant(getattr(math, node.id))


def _types(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get('type'), str):
            yield node['type']
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for item in node:
            yield from _types(item)


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
        ValueError: If it is no JSON object.
    """
    try:
        meta = json.loads(text)
    except ValueError as error:
        raise ValueError(f'{source}: no dataset_meta: {error}') from error
    if not isinstance(meta, dict):
        raise ValueError(f'{source}: dataset_meta={meta!r} is no dict')
    if 'classes' in meta:
        meta['classes'] = tuple(meta['classes'])
    # Visualizers take colours as tuples.
    if isinstance(meta.get('palette'), list):
        meta['palette'] = [
            tuple(color) if isinstance(color, list) else color
            for color in meta['palette']
        ]
    return meta
