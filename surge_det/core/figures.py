"""What a 1-bit layer did in its last backward pass, in figures."""

from __future__ import annotations

import torch
from torch import Tensor

from .layers import SURGELayer

# Of each figure: how it is written, and what it is.
FIGURES = {
    'scale': ('λ', "weight of the replica's gradient"),
    'eta': ('η', "AGS's factor"),
    'norm_b': ('‖g_b‖', 'norm of the gradient through the 1-bit operator'),
    'norm_a': ('‖g_a‖', 'norm of the gradient through the replica'),
    'cosine': ('cos(g_b, g_a)', 'of the angle between the two'),
    'missed': ('r', 'what the estimator drops along g_a, over ‖g_b‖'),
    'clipped': ('clipped', 'share of the input where the estimator is 0'),
    'flipped': ('flipped', 'share of 1-bit weights turned since the last log'),
    'outside': ('|w| > 1', 'share of latent weights'),
    'distance': ('‖w_a − w‖ / ‖w‖', 'of the replica from the latent weights'),
}
# A norm, their ratio or a slope that is so many times the first is told.
GROWTH = 100


@torch.no_grad()
def layer_figures(
    layer: SURGELayer, before: Tensor | None = None
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Return what is known of ``FIGURES``, on the layer's device.

    Args:
        layer: ``layer.watches`` was set for its last backward pass.
        before: The second value that an earlier call returned.

    Returns:
        0-dim tensors by the figure's name. Without a replica there is
        nothing of AGS, and ``eta`` = 0 has no norms. And where 1-bit weights
        are +1, as bool, to know later which were turned.
    """
    weight = layer.weight.detach()
    known = {
        key: value
        for key in FIGURES
        for owner in (layer.ags, layer)
        if (value := getattr(owner, f'last_{key}', None)) is not None
    }
    if not isinstance(known.get('eta', weight), Tensor):
        known['eta'] = weight.new_full((), known['eta'])
    signs = None
    if layer.binarize_weight:
        # Some binarizers shift the weights before they take the sign.
        signs = layer.binarized_weight().z >= 0
        known['outside'] = (weight.abs() > 1).float().mean()
        if before is not None:
            known['flipped'] = (signs != before).float().mean()
    if layer.compensate:
        norm = torch.linalg.vector_norm
        distance = norm(layer.aux_weight.detach() - weight)
        tiny = torch.finfo(weight.dtype).tiny
        known['distance'] = distance / norm(weight).clamp(min=tiny)
    return known, signs
