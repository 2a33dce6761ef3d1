import pytest


@pytest.fixture
def log(monkeypatch):
    """Levels and texts that datasets log, whatever loggers exist."""
    pytest.importorskip('mmdet', reason='needs the toolbox')
    from surge_det.datasets import checked_images, dropped

    lines = []
    for module in (checked_images, dropped):
        monkeypatch.setattr(
            module,
            'print_log',
            lambda text, logger, level: lines.append((level, text)),
        )
    return lines
