"""``python -m surge_det SCRIPT [ARGS...]``: a toolbox script, unchanged.

Scripts that import ``mmcv.ops`` before they read a config (mmdet's stock
``tools/test.py``) run where mmcv has no compiled ops, because importing
`surge_det` came first.
"""

import os
import runpy
import sys

import surge_det  # noqa: F401  (prepares the toolbox)

_USAGE = 'usage: python -m surge_det SCRIPT [ARGS...]'


def main(argv: list[str]) -> None:
    """Run a script as ``python SCRIPT ARGS...`` would.

    Args:
        argv: The script's path and its arguments.

    Raises:
        SystemExit: Status 2 where no script is given or it does not exist;
            otherwise whatever the script raises.
    """
    if not argv or argv[0].startswith('-'):
        print(_USAGE, file=sys.stderr)
        raise SystemExit(0 if argv[:1] in (['-h'], ['--help']) else 2)
    script = argv[0]
    if not os.path.isfile(script):
        print(
            f'{_USAGE}\nsurge_det: SCRIPT {script!r} is not a file '
            f'(looked in {os.getcwd()!r})',
            file=sys.stderr,
        )
        raise SystemExit(2)
    sys.argv[:] = argv
    sys.path.insert(0, os.path.dirname(os.path.abspath(script)))
    runpy.run_path(script, run_name='__main__')


if __name__ == '__main__':
    main(sys.argv[1:])
