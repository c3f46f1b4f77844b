"""Attention of queries over keys and values, by whichever kernel is quickest for the same numbers.

Shapes: B batch, H query heads, K key/value heads (H is a multiple of K), T queries, S keys, D head_dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST_SCORES = 1 << 28
"""Most scores (B * H * T * S) that are held at once for the backward pass on a CPU."""


def attend(query_BHTD: Tensor, key_BKSD: Tensor, value_BKSD: Tensor, mask_BTS: Tensor | None = None) -> Tensor:
    """Return softmax(q k^T / sqrt(D)) v, [B, H, T, D].

    Args:
        query_BHTD, key_BKSD, value_BKSD: of one dtype.
        mask_BTS: bool, True where a query sees a key; every query sees at least one. None: sees all.
    """
    batch, heads, length, _ = query_BHTD.shape
    groups = heads // key_BKSD.shape[1]
    if _plain_is_quicker(query_BHTD, key_BKSD):
        return _plain(query_BHTD, key_BKSD, value_BKSD, mask_BTS)
    if mask_BTS is None and key_BKSD.shape[1] == 1:
        # All heads read the same keys: as rows of one head they take one pass over them instead of H.
        rows_B1RD = query_BHTD.reshape(batch, 1, heads * length, -1)
        return F.scaled_dot_product_attention(rows_B1RD, key_BKSD, value_BKSD).view(query_BHTD.shape)
    return F.scaled_dot_product_attention(
        query_BHTD,
        _per_query_head(key_BKSD, groups),
        _per_query_head(value_BKSD, groups),
        attn_mask=None if mask_BTS is None else mask_BTS[:, None],
    )


def _plain_is_quicker(query_BHTD: Tensor, key_BKSD: Tensor) -> bool:
    """Tell whether matrix products beat the fused kernel: in bfloat16 training on a CPU, by two to five times.

    (AMD EPYC with AVX512-BF16, torch 2.13, T = 50 ... 272: the fused backward pass is slow there. In float32, and
    without gradients, it is not.)
    """
    training = torch.is_grad_enabled() and (query_BHTD.requires_grad or key_BKSD.requires_grad)
    small = query_BHTD.shape[:3].numel() * key_BKSD.shape[2] <= LARGEST_SCORES
    return training and small and query_BHTD.dtype == torch.bfloat16 and query_BHTD.device.type == "cpu"


def _plain(query_BHTD: Tensor, key_BKSD: Tensor, value_BKSD: Tensor, mask_BTS: Tensor | None) -> Tensor:
    batch, heads, length, dim = query_BHTD.shape
    kv_heads, keys = key_BKSD.shape[1:3]
    rows_BKRD = (query_BHTD * dim**-0.5).reshape(batch, kv_heads, heads // kv_heads * length, dim)
    scores_BHTS = (rows_BKRD @ key_BKSD.transpose(2, 3)).view(batch, heads, length, keys)
    if mask_BTS is not None:
        bias_BTS = torch.zeros(mask_BTS.shape, dtype=query_BHTD.dtype).masked_fill_(~mask_BTS, -torch.inf)
        scores_BHTS = scores_BHTS + bias_BTS[:, None]
    weights_BKRS = scores_BHTS.softmax(dim=-1).view(batch, kv_heads, -1, keys)
    out_BKRD: Tensor = weights_BKRS @ value_BKSD
    return out_BKRD.view(query_BHTD.shape)


def _per_query_head(x_BKSD: Tensor, groups: int) -> Tensor:
    batch, kv_heads, length, dim = x_BKSD.shape
    return x_BKSD[:, :, None].expand(batch, kv_heads, groups, length, dim).flatten(1, 2)
