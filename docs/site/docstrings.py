"""Reads Sphinx's roles, which our docstrings have (mkdocs.yml names it)."""

import re
from textwrap import dedent

import griffe

_REFERENCE = re.compile(r':(?:attr|class|data|func|meth|mod):`(~?)([\w.]+)`')
_INLINE = re.compile(r':math:`([^`]+)`')
_BLOCK = re.compile(r'^( *)\.\. math::(.*\n(?:\n|\1 +.*(?:\n|\Z))*)', re.M)


class Roles(griffe.Extension):
    """Cross-references become links, formulas what arithmatex reads."""

    def on_object(self, *, obj, **kwargs):
        """Rewrite the docstring."""
        if not obj.docstring:
            return
        text = _BLOCK.sub(_formula, obj.docstring.value)
        text = re.sub(r'::$', ':', text, flags=re.M)
        text = _INLINE.sub(r'$\1$', text)
        obj.docstring.value = _REFERENCE.sub(
            lambda match: _link(obj, *match.groups()), text
        )


def _formula(match):
    lines = dedent(match[2]).strip().splitlines()
    return '\n'.join(match[1] + x for x in ('', '$$', *lines, '$$', '', ''))


def _link(obj, short, name):
    """A link where the target is in the site, and its name else."""
    name = name.lstrip('.')
    shown = name.rpartition('.')[2] if short else name
    first, _, rest = name.partition('.')
    try:
        target = f'{obj.resolve(first)}.{rest}'.rstrip('.')
    except griffe.NameResolutionError:
        target = name
    return f'<autoref optional identifier="{target}">`{shown}`</autoref>'
