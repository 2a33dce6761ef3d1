"""The command ``compare``.

``split``: the images that are evaluated on. ``runs``: a training or an
evaluation as a process. ``candidates``: a method's runs and the choice of its
learning rate. ``scheduler``: runs them, some at a time. ``report`` and
``pictures``: the results.
"""
