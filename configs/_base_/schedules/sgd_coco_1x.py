# mmdet's 1x schedule: SGD 0.02 for batch 16, 12 epochs, steps 8 and 11.
_base_ = 'mmdet::_base_/schedules/schedule_1x.py'

optim_wrapper = dict(
    type='AGSOptimWrapper',
    ags=dict(eta=0.1),
    constructor='SURGEOptimWrapperConstructor',
)
