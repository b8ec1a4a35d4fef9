r"""An exponential moving average of the weights, the one that samples are drawn from.

After step n the average is :math:`\bar\theta \leftarrow d_n\bar\theta + (1 - d_n)\,\theta` with
:math:`d_n = \min\!\big(d,\; \tfrac{1 + n}{10 + n}\big)`: the warm-up forgets the random start.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch_ema import ExponentialMovingAverage


class EMA(ExponentialMovingAverage):
    """torch-ema's average with its format of state, updated in a few fused kernels instead of several per tensor.

    Args:
        parameters: the trainable ones; fixed ones need no average.
        decay: d in [0, 1]; 0.9999 averages over about the last 10,000 steps.

    Raises:
        ValueError: if ``decay`` is outside [0, 1].
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        if not 0 <= decay <= 1:
            raise ValueError(f"ema_decay={decay}: must be in [0, 1]")
        super().__init__(parameters, decay, use_num_updates=True)

    @property
    def current_decay(self) -> float:
        """The d_n of the last update; 0 before the first."""
        n = self.num_updates
        return min(self.decay, (1 + n) / (10 + n)) if n else 0.0

    @torch.no_grad()
    def update(self, parameters: Iterable[nn.Parameter] | None = None) -> None:
        """Take the current weights into the average; call it after each optimizer step."""
        live = list(self._get_parameters(parameters))
        self._follow(live)
        assert self.num_updates is not None  # the warm-up of the decay is always on
        self.num_updates += 1
        # the average keeps its precision where Lightning's true-precision plugins have changed that of the weights
        current = [p.detach().to(average.dtype) for p, average in zip(live, self.shadow_params, strict=True)]
        torch._foreach_lerp_(self.shadow_params, current, 1 - self.current_decay)

    @contextmanager
    def average_parameters(self, parameters: Iterable[nn.Parameter] | None = None) -> Iterator[None]:
        """Inside, the weights are the averaged ones; afterwards, also after an exception, they are what they were.

        Unlike torch-ema's own, it may be nested.
        """
        live = list(self._get_parameters(parameters))
        self._follow(live)
        with torch.no_grad():
            kept = [p.detach().clone() for p in live]
            torch._foreach_copy_([p.data for p in live], self.shadow_params)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_([p.data for p in live], kept)

    def _follow(self, parameters: list[nn.Parameter]) -> None:
        """Move the average to where the weights are: Lightning moves a module after it was built."""
        if parameters and self.shadow_params[0].device != parameters[0].device:
            self.to(device=parameters[0].device)
