# Step 2: both binary, from step 1's last checkpoint, without weight decay.
_base_ = '../surge_faster_rcnn_r18_bccd.py'
load_from = 'work_dirs/surge_faster_rcnn_r18_bccd_step1/epoch_4.pth'
optim_wrapper = dict(optimizer=dict(type='Adam', weight_decay=0.0))
