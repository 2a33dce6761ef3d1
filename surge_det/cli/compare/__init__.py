"""The command ``compare``.

``configs``: the config of each method. ``runs``: a training or an evaluation
as a process. ``candidates``: a method's runs and the choice of its learning
rate. ``scheduler``: runs them, some at a time. ``report`` and ``pictures``:
the results.
"""
