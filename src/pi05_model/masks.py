"""Who may attend to whom.

One rule for every sequence of π0, π0-FAST and π0.5 (openpi's `make_attn_mask`): each token says whether it starts a
new block (`starts`), and query i sees key j iff j's block is not later than i's and both tokens are valid.

    starts   0 0 0 0        one bidirectional block: images and prompt
             1111
             1111
             1111
             1111

    starts   0 0 1 1        a prompt of two tokens, then a subtask read causally
             1100
             1100
             1110
             1111

    starts   0 0 1 0        a prompt, then a block of actions: bidirectional inside, unseen by the prompt (π0.5)
             1100
             1100
             1111
             1111

    starts   0 0 1 1 0      a prompt, the state token, then a block of actions (π0)
             11000
             11000
             11100
             11111
             11111

Actions never see the answer that may stand between (subtask, FAST tokens): of the prefix they see `Prefix.prompt`.
"""

import torch
from torch import Tensor


def block_mask(starts_BL: Tensor, valid_BL: Tensor) -> Tensor:
    """Return the attention mask of a sequence.

    Args:
        starts_BL: bool [B, L], True where a token may not be seen by those before it.
        valid_BL: bool [B, L], False for padding.

    Returns:
        Bool [B, L, L], True where query (row) sees key (column). A padding token sees itself alone, so that no row
        is empty: attention over nothing is not a number, and its gradient would spread.
    """
    block_BL = torch.cumsum(starts_BL.to(torch.int32), dim=1)
    sees_BLL = block_BL[:, None, :] <= block_BL[:, :, None]
    both_BLL = valid_BL[:, None, :] & valid_BL[:, :, None]
    itself_LL = torch.eye(valid_BL.shape[1], dtype=torch.bool, device=valid_BL.device)
    return (sees_BLL & both_BLL) | itself_LL


def suffix_mask(prefix_seen_BP: Tensor, starts_BS: Tensor, valid_BS: Tensor) -> Tensor:
    """Return the mask of suffix queries over prefix and suffix keys: bool [B, S, P + S].

    Args:
        prefix_seen_BP: bool, the part of the prefix that the suffix sees.
        starts_BS, valid_BS: of the suffix.
    """
    prefix_BSP = prefix_seen_BP[:, None, :].expand(-1, starts_BS.shape[1], -1)
    return torch.cat([prefix_BSP, block_mask(starts_BS, valid_BS)], dim=2)


def positions(valid_BL: Tensor) -> Tensor:
    """Return int [B, L] positions: padding takes none, and repeats the last one."""
    return torch.cumsum(valid_BL.to(torch.int64), dim=1) - 1
