"""A small set in COCO's format."""


def content(**changes):
    """Two images of 160x120 with a cat and a dog each."""
    boxes = [(10, 20, 30, 40), (50, 10, 20, 60), (0, 0, 99, 9), (5, 5, 5, 5)]
    data = dict(
        images=[
            dict(id=i, file_name=f'{i}.jpg', width=160, height=120)
            for i in (1, 2)
        ],
        annotations=[
            dict(
                id=i + 1,
                image_id=1 + i // 2,
                category_id=1 + i % 2,
                bbox=list(box),
                area=box[2] * box[3],
                iscrowd=0,
            )
            for i, box in enumerate(boxes)
        ],
        categories=[dict(id=1, name='cat'), dict(id=2, name='dog')],
    )
    data.update(changes)
    return data
