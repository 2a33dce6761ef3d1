"""A Python that has imported the toolbox, and runs scripts in copies of it.

Of ours it imports `surge_det` alone, as a user's process does: scripts have
to find the rest.

Reads requests, a line of JSON each, and answers with the script's status.
"""

import gc
import json
import os
import runpy
import signal
import sys

import yapf.yapflib.yapf_api

# Answers alone go there: the fork prints when it is imported.
answers = os.fdopen(os.dup(1), 'w')
os.dup2(2, 1)

# The toolbox lays out each config that it writes, which takes seconds.
yapf.yapflib.yapf_api.FormatCode = lambda text, **_: (text, False)

import surge_det  # noqa: E402, F401

# isort: split
import mmdet.apis  # noqa: E402, F401
import mmdet.engine  # noqa: E402, F401

# So that copies don't go through all of it when they end.
gc.freeze()
for line in sys.stdin:
    request = json.loads(line)
    child = os.fork()
    if not child:
        break
    status = os.waitpid(child, 0)[1]
    print(os.waitstatus_to_exitcode(status), file=answers, flush=True)
else:
    sys.exit()

# Only a copy comes here.
signal.alarm(request['timeout'])
with open(os.devnull) as nothing, open(request['out'], 'w') as out:
    os.dup2(nothing.fileno(), 0)
    os.dup2(out.fileno(), 1)
    os.dup2(out.fileno(), 2)
os.chdir(request['cwd'])
os.environ.clear()
os.environ.update(request['env'])
sys.argv = request['argv']
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name='__main__')
