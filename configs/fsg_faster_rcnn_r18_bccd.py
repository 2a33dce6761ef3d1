# FSG (AAAI 2025) instead of the straight-through gradient of weights. Needs
# mambapy: pip install -e ".[fsg]". This is the published form, which learns
# little here; what learns more (docs/results/bccd.md): --cfg-options
# optim_wrapper.fsg.fast.nonlinearity=relu optim_wrapper.fsg.fast_lr=0.001
_base_ = './ste_faster_rcnn_r18_bccd.py'
optim_wrapper = dict(
    type='FSGOptimWrapper',
    # Time and memory: docs/results/fsg_cost.md.
    fsg=dict(
        history_dtype='bfloat16',
        slow=dict(block_size=1024, d_model=8, expand=2, independent=True),
    ),
)
