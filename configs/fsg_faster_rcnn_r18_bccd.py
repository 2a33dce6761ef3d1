# FSG (AAAI 2025) instead of the straight-through gradient of weights. Needs
# mambapy: pip install mambapy.
_base_ = './ste_faster_rcnn_r18_bccd.py'
optim_wrapper = dict(
    type='FSGOptimWrapper',
    # Time and memory: docs/results/fsg_cost.md.
    fsg=dict(
        history_dtype='bfloat16',
        slow=dict(block_size=1024, d_model=8, expand=2, independent=True),
    ),
)
