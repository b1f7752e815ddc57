"""θ₀ + (θ − θ₀) scaled back to a radius: what TPGM and FTP project with."""

from torch import Tensor


def projected(start: Tensor, move: Tensor, radius: Tensor) -> Tensor:
    """The nearest point to `start + move` within a ball around `start`; its norm is L2.

    Args:
        start: θ₀ of one tensor.
        move: θ − θ₀.
        radius: one number ≥ 0.
    """
    norm = move.norm()
    if norm == 0:
        return start.clone()
    return start + move * (radius / norm).clamp(max=1)
