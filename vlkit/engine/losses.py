"""What a script's ``loss_of`` returns, as named losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def named_losses(loss: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The result of ``loss_of`` as named losses; training minimises ``loss``."""
    return dict(loss) if isinstance(loss, Mapping) else {"loss": loss}


def mean_losses(losses: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Mean of each named loss over the batches of a step."""
    totals = {k: sum(torch.as_tensor(one[k]).detach() for one in losses) for k in losses[0]}
    return {k: torch.as_tensor(total) / len(losses) for k, total in totals.items()}
