"""How estimators and binarizers are found by name."""

from __future__ import annotations

from typing import Any


class Registry(dict[str, type]):
    """Classes by name.

    Args:
        kind: What the classes are, with an article: ``'an estimator'``.
        methods: What each object must have.
        example: A config that is allowed.
    """

    def __init__(self, kind: str, methods: list[str], example: str) -> None:
        super().__init__()
        self.kind = kind
        self.methods = methods
        self.example = example

    def register(self, cls: type) -> type:
        """Make a class available as ``dict(type=cls.__name__)``.

        Raises:
            ValueError: If the name is taken by another class.
        """
        if self.setdefault(cls.__name__, cls) is not cls:
            raise ValueError(
                f'{self.kind} {cls.__name__!r} is registered already'
            )
        return cls

    def build(self, spec: Any, argument: str = 'spec') -> Any:
        """Turn an object or its config into an object.

        Args:
            spec: Any object with the registry's methods, used as it is, or a
                dict with a class or its name under ``type`` and its
                arguments, such as ``dict(type='STE', clip=1.0)``.
            argument: Name to use in error messages.

        Raises:
            ValueError: If ``spec`` is neither, its type is not registered,
                or the class refuses its arguments.
        """
        if isinstance(spec, dict):
            kwargs = dict(spec)
            name = kwargs.pop('type', None)
            cls = self.get(name) if isinstance(name, str) else name
            if not isinstance(cls, type):
                raise ValueError(
                    f'{argument}: unknown type {name!r} in {spec!r}; '
                    f'allowed are {sorted(self)}'
                )
            try:
                spec = cls(**kwargs)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f'{argument}: {cls.__name__}: {error}'
                ) from error
        if isinstance(spec, type) or not all(
            callable(getattr(spec, method, None)) for method in self.methods
        ):
            raise ValueError(
                f'{argument}={spec!r} is not {self.kind}; allowed are an '
                f'object with {" and ".join(self.methods)} or a dict such as '
                f'{self.example} with type in {sorted(self)}'
            )
        return spec
