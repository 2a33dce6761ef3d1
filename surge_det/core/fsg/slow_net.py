"""The slow network: an update from a layer's last gradients, by Mamba."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import checks

# Up to here a loop over the tokens is faster than a parallel scan.
_SHORT = 16


class SlowNet(nn.Module):
    """One Mamba block over the history of a layer's gradients.

    A layer of n weights with k gradients in its history, oldest first:

    - each gradient, padded with zeros, is cut into ``ceil(n / block_size)``
      blocks; a block is one token, projected linearly (no bias) to
      ``d_model`` and back. ``block_size=1, d_model=1`` has no projections
      and is the literal method: a token per weight.
    - ``independent=False``: one sequence per layer. It begins with the
      layer's Layer Recognition Embedding; then come all blocks of the oldest
      gradient, and so on to the newest, whose outputs are the result.
    - ``independent=True``: one sequence of 1 + k tokens per block. Blocks do
      not see one another, and are evaluated ``blocks_at_once`` at a time.

    The embedding's own output is discarded.

    The block is mambapy's (pure torch; MIT licence), imported when the first
    network is built: ``pip install mambapy``. Where the package ``mamba_ssm``
    is installed, its fused CUDA kernel computes the scan of float32 tensors
    on CUDA devices.

    Source: FSG (AAAI 2025), slow net and Layer Recognition Embedding; Mamba:
    arXiv 2312.00752.

    Args:
        num_layers: Number of layers that share the network, each with its
            own embedding.
        block_size: Weights to a token.
        d_model: Model dimension.
        d_state: State dimension.
        d_conv: Width of the causal convolution.
        expand: Inner dimension over ``d_model``.
        independent: Whether each block is a sequence of its own.
        blocks_at_once: How many independent blocks are evaluated at a time;
            bounds memory, does not change results.

    Raises:
        ValueError: If an argument is out of range.
        ImportError: If mambapy is not installed.
    """

    def __init__(
        self,
        num_layers: int,
        block_size: int = 1,
        d_model: int = 1,
        d_state: int = 16,
        d_conv: int = 8,
        expand: int = 100,
        independent: bool = False,
        blocks_at_once: int = 1024,
    ) -> None:
        super().__init__()
        for name, value in (
            ('num_layers', num_layers),
            ('block_size', block_size),
            ('d_model', d_model),
            ('d_state', d_state),
            ('d_conv', d_conv),
            ('expand', expand),
            ('blocks_at_once', blocks_at_once),
        ):
            checks.integer(name, value, 1)
        checks.boolean('independent', independent)
        self.block_size = block_size
        self.independent = independent
        self.blocks_at_once = blocks_at_once
        literal = block_size == d_model == 1
        self.project = (
            nn.Identity()
            if literal
            else nn.Linear(block_size, d_model, bias=False)
        )
        self.unproject = (
            nn.Identity()
            if literal
            else nn.Linear(d_model, block_size, bias=False)
        )
        self.embedding = nn.Parameter(torch.randn(num_layers, d_model) * 0.02)
        self.mamba = _build_mamba(d_model, d_state, d_conv, expand)
        self._has_kernel = self.mamba.config.use_cuda

    def forward(self, history: Sequence[Tensor], layer: int) -> Tensor:
        """Return the update of one layer.

        Args:
            history: At least one tensor (n,), oldest first, of any floating
                type; computed in the network's.
            layer: The layer's number, from 0.

        Returns:
            (n,), in the network's type.
        """
        size = history[0].numel()
        blocks = -(-size // self.block_size)
        out = torch.cat(
            [
                self.part(history, layer, start, stop).flatten()
                for start, stop in self.parts(blocks)
            ]
        )
        return out[:size]

    def parts(self, blocks: int) -> Iterator[tuple[int, int]]:
        """Yield first and last + 1 of the blocks to evaluate together."""
        step = self.blocks_at_once if self.independent else blocks
        for start in range(0, blocks, step):
            yield start, min(start + step, blocks)

    def state_elements(self, size: int, length: int) -> int:
        """Return how many numbers the states of one evaluation are.

        Several tensors of that size are needed at a time.

        Args:
            size: Weights of the layer.
            length: Gradients in its history.
        """
        blocks = -(-size // self.block_size)
        if self.independent:
            tokens = (1 + length) * min(blocks, self.blocks_at_once)
        else:
            tokens = 1 + length * blocks
        return tokens * self.mamba.A_log.numel()

    def part(
        self, history: Sequence[Tensor], layer: int, start: int, stop: int
    ) -> Tensor:
        """Return the update of some blocks, see :meth:`parts`.

        Args:
            history: As in :meth:`forward`.
            layer: The layer's number.
            start: First block.
            stop: Last block + 1.

        Returns:
            (stop - start, block_size).
        """
        dtype = self.embedding.dtype
        first, last = start * self.block_size, stop * self.block_size
        # (k, blocks, block_size)
        tokens = torch.stack(
            [
                F.pad(piece, (0, last - first - piece.numel()))
                for piece in (h[first:last] for h in history)
            ]
        ).to(dtype)
        tokens = self.project(tokens.unflatten(1, (-1, self.block_size)))
        count = stop - start
        embedding = self.embedding[layer]
        if self.independent:
            front = embedding.expand(1, count, -1)
            # (blocks, 1 + k, d_model)
            sequence = torch.cat([front, tokens]).transpose(0, 1)
            out = self._run(sequence)[:, -1]
        else:
            # (1, 1 + k * blocks, d_model)
            sequence = torch.cat([embedding[None], tokens.flatten(0, 1)])
            out = self._run(sequence[None])[0, -count:]
        return self.unproject(out)

    def _run(self, sequence: Tensor) -> Tensor:
        config = self.mamba.config
        config.use_cuda = (
            self._has_kernel
            and sequence.is_cuda
            and sequence.dtype == torch.float32
        )
        config.pscan = sequence.shape[1] > _SHORT
        return self.mamba(sequence)

    def extra_repr(self) -> str:
        """Say how weights become tokens."""
        return f'block_size={self.block_size}, independent={self.independent}'


def _build_mamba(
    d_model: int, d_state: int, d_conv: int, expand: int
) -> nn.Module:
    try:
        mambapy = importlib.import_module('mambapy.mamba')
    except ImportError as error:
        raise ImportError(
            "FSG's slow network is a block of the package mambapy, which is "
            "not installed: pip install mambapy (or 'surge_det[fsg]')"
        ) from error
    config = mambapy.MambaConfig(
        d_model=d_model,
        n_layers=1,
        d_state=d_state,
        expand_factor=expand,
        d_conv=d_conv,
        use_cuda=importlib.util.find_spec('mamba_ssm') is not None,
    )
    return mambapy.MambaBlock(config)
