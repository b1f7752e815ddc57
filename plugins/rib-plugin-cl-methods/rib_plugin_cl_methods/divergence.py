"""How far answers are from earlier ones, which methods keep near."""

import torch.nn.functional as F
from torch import Tensor


def divergence(now: Tensor, before: Tensor) -> Tensor:
    """KL(softmax(before) ‖ softmax(now)) of logits (N, K), the mean over rows; a scalar."""
    log_p, log_q = F.log_softmax(now, 1), F.log_softmax(before, 1)
    return F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)
