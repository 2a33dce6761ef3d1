# mmdet's runtime, with AGS logged, schedules told the progress, data and
# weights checked, and checkpoints that an interruption leaves whole.
_base_ = 'mmdet::_base_/default_runtime.py'

default_hooks = dict(checkpoint=dict(type='SURGECheckpointHook'))
custom_hooks = [
    dict(type='AGSHook'),
    dict(type='SURGEProgressHook'),
    dict(type='BroadcastBuffersHook'),
    dict(type='SURGECheckHook'),
    dict(type='SURGEFiniteHook'),
    dict(type='SURGESeedHook'),
]
