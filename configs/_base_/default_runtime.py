# mmdet's runtime, with AGS logged and schedules told the progress.
_base_ = 'mmdet::_base_/default_runtime.py'

custom_hooks = [
    dict(type='AGSHook'),
    dict(type='SURGEProgressHook'),
    dict(type='BroadcastBuffersHook'),
    dict(type='SURGECheckHook'),
]
