# mmdet's runtime, with AGS logged.
_base_ = 'mmdet::_base_/default_runtime.py'

custom_hooks = [dict(type='AGSHook')]
