"""What several processes have to agree on, besides the gradients of the model, which the host averages."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def mean_of_all(value: Tensor) -> Tensor:
    """The mean of a tensor over all processes, the same one in each; the tensor itself where there is one process."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return value
    total = value.clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()


def share_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average the gradients of what a loss learns beside the model, such as a projection.

    The host wraps the model alone, so without this each process would learn another one.
    """
    for parameter in parameters:
        parameter.register_hook(mean_of_all)  # type: ignore[no-untyped-call]
