# NEU-DET: 1800 grey images (200x200) of hot-rolled steel, Pascal VOC format,
# loaded and enlarged as BCCD's are, to 240x240.
_base_ = './voc_bccd.py'

data_root = '{{$SURGE_DATA_ROOT:data}}/neu_det/'
metainfo = dict(
    classes=(
        'crazing',
        'inclusion',
        'patches',
        'pitted_surface',
        'rolled-in_scale',
        'scratches',
    ),
    palette=[
        (220, 60, 60),
        (70, 110, 240),
        (250, 200, 60),
        (60, 180, 90),
        (160, 80, 200),
        (60, 200, 220),
    ],
)
neu = dict(data_root=data_root, metainfo=metainfo)
train_dataloader = dict(dataset=neu)
val_dataloader = dict(dataset=neu)
test_dataloader = dict(dataset=neu)
