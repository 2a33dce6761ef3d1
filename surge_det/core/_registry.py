"""How estimators and binarizers are found by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def register(registry: dict[str, type], cls: type, kind: str) -> type:
    """Enter a class under its own name.

    Raises:
        ValueError: If the name is taken by another class.
    """
    name = cls.__name__
    if registry.get(name, cls) is not cls:
        raise ValueError(f'{kind} {name!r} is registered already')
    registry[name] = cls
    return cls


def build(
    registry: dict[str, type],
    spec: Any,
    argument: str,
    kind: str,
    methods: Sequence[str],
    example: str,
) -> Any:
    """Turn an object or its config into an object.

    Args:
        registry: Classes by name.
        spec: An object that has ``methods``, or a dict with the class (or
            its name) under ``type`` and its arguments.
        argument: Name to use in error messages.
        kind: What the object is, with its article.
        methods: What it must have.
        example: A spec that is allowed.

    Raises:
        ValueError: If ``spec`` is neither, its type is not registered, or
            the class refuses its arguments.
    """
    if isinstance(spec, dict):
        kwargs = dict(spec)
        name = kwargs.pop('type', None)
        if isinstance(name, type):
            cls: Callable | None = name
        else:
            cls = registry.get(name)
        if cls is None:
            raise ValueError(
                f'{argument}: unknown type {name!r} in {spec!r}; '
                f'allowed are {sorted(registry)}'
            )
        try:
            spec = cls(**kwargs)
        except TypeError as error:
            raise ValueError(f'{argument}: {name}: {error}') from error
    if isinstance(spec, type) or not all(
        callable(getattr(spec, method, None)) for method in methods
    ):
        raise ValueError(
            f'{argument}={spec!r} is not {kind}; allowed are an object with '
            f'{" and ".join(methods)} or a dict such as {example} with type '
            f'in {sorted(registry)}'
        )
    return spec
