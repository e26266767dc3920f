"""nn.MultiheadAttention with fewer heads than its width says; torch's own cannot compute that.

torch takes the width of a head from the width of the embedding and the number of heads; here it is
what it was. What it computes is what torch's computes. See also: load.py, which makes them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional


class FewerHeads(nn.MultiheadAttention):
    """An nn.MultiheadAttention whose projections lack some heads; `head_dim` is as before.

    The weights that it gives back are those of its heads, or their mean.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the output, and the weights or None; the arguments are torch's."""
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal is a hint about attn_mask, which is not given")
        q, k, v = (self._heads(*each) for each in self._projections(query, key, value))
        mask = _joined(
            _additive(attn_mask, q), _additive(key_padding_mask, q), len(q), self.num_heads
        )
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
            weights = (scores if mask is None else scores + mask).softmax(-1)
            out = functional.dropout(weights, dropout) @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            out = functional.scaled_dot_product_attention(q, k, v, mask, dropout)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        if query.dim() == 2:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), weights

    def _projections(self, *given: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Yield each input, its batch first, with the weight and the bias that project it."""
        weights = self.in_proj_weight.chunk(3)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        for x, weight, bias in zip(given, weights, biases, strict=True):
            if x.dim() == 2:
                yield x.unsqueeze(0), weight, bias
            else:
                yield x if self.batch_first else x.transpose(0, 1), weight, bias

    def _heads(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        projected = functional.linear(x, weight, bias)
        return projected.view(*x.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)


def _additive(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """Return a mask as what is added to scores: minus infinity where it is true."""
    if mask is None or mask.is_floating_point():
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))


def _joined(
    attention: Tensor | None, padding: Tensor | None, batch: int, heads: int
) -> Tensor | None:
    if padding is not None:
        padding = padding.view(batch, 1, 1, -1)
    if attention is not None and attention.dim() == 3:
        attention = attention.view(batch, heads, *attention.shape[1:])
    if attention is None or padding is None:
        return padding if attention is None else attention
    return attention + padding


def can_lose_heads(module: nn.Module) -> bool:
    """Return whether it is torch's own, in a form that FewerHeads computes."""
    return (
        type(module) is nn.MultiheadAttention
        and module._qkv_same_embed_dim
        and module.bias_k is None
        and not module.add_zero_attn
    )


def let_lose_heads(module: nn.Module) -> None:
    """Make torch's own one that can have fewer heads, in place; torch's fast paths pass it over."""
    assert isinstance(module, nn.MultiheadAttention)
    module.__class__ = FewerHeads
    module._qkv_same_embed_dim = False
