"""Makes pages of what docs/ does not have as Markdown (mkdocs.yml names it).

In the repository links are relative, to any of its files. Here they become
links within the site where the target is a page of it, and to the repository
where not.
"""

import configparser
import html
import json
import os.path
import posixpath
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.structure.files import File
from pymdownx.slugs import slugify

ROOT = Path(__file__).resolve().parents[2]
_LINK = re.compile(r'\]\((?![a-z]+:|#)([^)\s#]+)')
# Of what a cell puts out, the first of these, or else its text.
_SHOWN = ('image/png', 'image/jpeg', 'text/markdown')
_TIGHT = '<mo stretchy="false" lspace="0" rspace="0">'
_FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.S
)


def on_config(config):
    """The repository's address stands in setup.cfg; anchors as on GitHub."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    urls = setup['metadata']['project_urls'].strip().splitlines()
    config.repo_url = urls[0].partition('=')[2].strip()
    config.repo_name = config.repo_url.partition('.com/')[2]
    config.mdx_configs['toc']['slugify'] = slugify(case='lower')
    return config


def on_files(files, config):
    """Add the pages from outside and the notebooks."""
    for source, name in config.extra['outside'].items():
        text = (ROOT / source).read_text()
        files.append(File.generated(config, name, content=text))
    for file in list(files):
        if file.src_uri.endswith('.ipynb'):
            files.remove(file)
            text = _notebook(json.loads(file.content_string))
            # It keeps its name, for the navigation.
            page = File.generated(config, file.src_uri, content=text)
            page.is_documentation_page = lambda: True
            files.append(page)
    return files


def _notebook(content):
    """A notebook's cells and outputs as Markdown."""
    parts = []
    for cell in content['cells']:
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'markdown':
            parts.append(source)
            continue
        parts.append(f'```python\n{source}\n```')
        for output in cell['outputs']:
            data = output.get('data', {'text/plain': output.get('text')})
            kind = next((k for k in _SHOWN if k in data), 'text/plain')
            content = ''.join(data[kind])
            if kind.startswith('image/'):
                content = f'![](data:{kind};base64,{content.strip()})'
            elif kind == 'text/plain':
                content = f'```text\n{content.rstrip()}\n```'
            parts.append(content)
    return '\n\n'.join(parts)


def on_page_markdown(markdown, page, config, files):
    """Point links at the site's pages, or else at the repository."""
    here = page.file.src_uri
    outside = config.extra['outside']
    sources = {name: source for source, name in outside.items()}
    folder = posixpath.dirname(sources.get(here, f'docs/{here}'))

    def replace(match):
        target = posixpath.normpath(posixpath.join(folder, match[1]))
        name = outside.get(target, target.removeprefix('docs/'))
        if files.get_file_from_path(name):
            return '](' + posixpath.relpath(name, posixpath.dirname(here))
        if not (ROOT / target).exists():
            return match[0]  # which mkdocs will report
        kind = 'tree' if os.path.isdir(ROOT / target) else 'blob'
        return f']({config.repo_url}/{kind}/main/{target}'

    return _LINK.sub(replace, markdown)


def on_page_content(page_html, **kwargs):
    """Formulas as MathML, which browsers draw by themselves."""
    return _FORMULA.sub(_mathml, page_html)


def _mathml(match):
    display = 'inline' if match[1] == 'span' else 'block'
    text = convert(html.unescape(match[2]), display=display)
    # Bars and signs are no binary operators, with room on both sides.
    text = text.replace('<mo stretchy="false">&#x0007C;', f'{_TIGHT}&#x0007C;')
    return text.replace('&#x0003D;</mo><mo>', f'&#x0003D;</mo>{_TIGHT}')
