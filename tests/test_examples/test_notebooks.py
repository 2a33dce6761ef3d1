"""The notebooks run as they are stored, and show what they promise."""

import json
import sys
from pathlib import Path

import pytest
from command_line import environment

pytest.importorskip('mmdet', reason='needs the toolbox')
nbformat = pytest.importorskip('nbformat', reason='runs notebooks')
nbclient = pytest.importorskip('nbclient', reason='runs notebooks')
pytest.importorskip('ipykernel', reason='runs notebooks')

FOLDER = Path(__file__).resolve().parents[2] / 'docs' / 'notebooks'
NOTEBOOKS = sorted(FOLDER.glob('*.ipynb'))


def _outputs(notebook):
    """Texts, and the kinds of all that is shown."""
    outputs = [x for cell in notebook.cells for x in cell.get('outputs', [])]
    text = '\n'.join(x.text for x in outputs if 'text' in x)
    return text, [sorted(x.get('data', ['text'])) for x in outputs]


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path, monkeypatch):
    # Where a shell finds it: the command of these sources.
    command = tmp_path / 'surge-det'
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m surge_det "$@"\n')
    command.chmod(0o755)
    env = environment(tmp_path)
    env['PATH'] = f'{tmp_path}:{env["PATH"]}'
    env['TMPDIR'] = str(tmp_path)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    stored = nbformat.read(path, as_version=4)
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(
        notebook,
        timeout=600,
        kernel_name='python3',
        coalesce_streams=True,
        resources={'metadata': {'path': str(FOLDER)}},
    ).execute()
    text, shown = _outputs(notebook)
    assert 'mAP' in text
    assert 'rror' not in text
    # What is stored is what it gives.
    assert shown == _outputs(stored)[1]


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_stored_is_small_and_clean(path):
    text = path.read_text()
    assert len(text) < 100_000
    notebook = json.loads(text)
    cells = [x for x in notebook['cells'] if x['cell_type'] == 'code']
    counts = [cell['execution_count'] for cell in cells]
    assert counts == list(range(1, len(cells) + 1))
    # No colours of a terminal, and nobody's folders.
    assert '\\u001b' not in text
    assert '/root' not in text
    assert '/home' not in text
