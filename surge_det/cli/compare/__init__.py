"""The parts of ``tools/compare.py``.

``plan``: a config for everything that is compared. ``runs``: one training or
evaluation as a process. ``choice``: a method's runs and the choice of its
learning rate. ``work``: all of it, some at a time. ``report`` and
``pictures``: what came out.
"""
