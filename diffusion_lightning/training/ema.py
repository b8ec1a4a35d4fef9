r"""An exponential moving average of the weights, the one that samples are drawn from.

After step n the average is :math:`\bar\theta \leftarrow d_n\bar\theta + (1 - d_n)\,\theta` with
:math:`d_n = \min\!\big(d,\; \tfrac{1 + n}{10 + n}\big)`: the warm-up forgets the random start.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch_ema import ExponentialMovingAverage

from diffusion_lightning.training.sharding import own_rows, part_of, whole_of


class EMA(ExponentialMovingAverage):
    """torch-ema's average with its format of state, updated in a few fused kernels instead of several per tensor.

    Args:
        parameters: the trainable ones; fixed ones need no average.
        decay: d in [0, 1]; 0.9999 averages over about the last 10,000 steps.

    Raises:
        ValueError: if ``decay`` is outside [0, 1].
    """

    shadow_params: list[Tensor]
    _asked: int
    """How often it was updated, and …"""
    _left_out: Tensor | None = None
    """… how many of these were none, where only the device knows."""

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        if not 0 <= decay <= 1:
            raise ValueError(f"ema_decay={decay}: must be in [0, 1]")
        super().__init__(parameters, decay, use_num_updates=True)

    @property
    def num_updates(self) -> int:  # type: ignore[override]
        """n, the number of updates so far."""
        if self._left_out is not None:
            self._asked, self._left_out = self._asked - int(self._left_out), None
        return self._asked

    @num_updates.setter
    def num_updates(self, number: int) -> None:
        self._asked, self._left_out = number, None

    @property
    def current_decay(self) -> float:
        """The d_n of the last update; 0 before the first."""
        n = self.num_updates
        return min(self.decay, (1 + n) / (10 + n)) if n else 0.0

    def take_over(self, parameters: Iterable[nn.Parameter]) -> None:
        """Go on with parameters that have taken the place of those before, and split the average as they are split."""
        live = list(parameters)
        self.shadow_params = [part_of(average, p) for average, p in zip(self.shadow_params, live, strict=True)]
        # not weak ones, as torch-ema's: torch refuses to move a sharded parameter that has any
        self._params_refs = [lambda p=p: p for p in live]  # type: ignore[misc]

    def state_dict(self) -> dict[str, Any]:
        """torch-ema's, with whole tensors: it does not depend on how the weights are split."""
        return {**super().state_dict(), "shadow_params": [whole_of(average) for average in self.shadow_params]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave, each process its part."""
        live, saved = list(self._get_parameters(None)), state_dict["shadow_params"]
        if len(saved) == len(live):  # else torch-ema says so
            parts = [part_of(whole, p) for whole, p in zip(saved, live, strict=True)]
            state_dict = {**state_dict, "shadow_params": parts}
        super().load_state_dict(state_dict)

    @torch.no_grad()
    def update(self, parameters: Iterable[nn.Parameter] | None = None, kept: bool | Tensor = True) -> None:
        """Take the current weights into the average; call it after each optimizer step.

        Args:
            parameters: those that it was made of.
            kept: whether the step has been one; if not, nothing changes. A truth value on the device is not waited for.
        """
        if kept is False:
            return
        live = list(self._get_parameters(parameters))
        self._follow(live)
        self._asked += 1
        # the average keeps its precision where Lightning's true-precision plugins have changed that of the weights
        averages = own_rows(self.shadow_params)
        current = [p.to(average.dtype) for p, average in zip(own_rows(live), averages, strict=True)]
        if isinstance(kept, Tensor):
            difference = torch._foreach_sub(current, averages)
            torch._foreach_mul_(difference, self._weight(kept))
            torch._foreach_add_(averages, difference)
        else:
            torch._foreach_lerp_(averages, current, 1 - self.current_decay)

    @contextmanager
    def average_parameters(self, parameters: Iterable[nn.Parameter] | None = None) -> Iterator[None]:
        """Inside, the weights are the averaged ones; afterwards, also after an exception, they are what they were.

        Unlike torch-ema's own, it may be nested.
        """
        live = list(self._get_parameters(parameters))
        self._follow(live)
        rows = own_rows(live)
        with torch.no_grad():
            kept = [p.clone() for p in rows]
            torch._foreach_copy_(rows, own_rows(self.shadow_params))
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(rows, kept)

    def _weight(self, kept: Tensor) -> Tensor:
        """1 − d_n of this update; 0 if it is none."""
        if self._left_out is None:
            self._left_out = torch.zeros((), dtype=torch.int64, device=kept.device)
        self._left_out += ~kept
        n = (self._asked - self._left_out).float()
        return (1 - ((1 + n) / (10 + n)).clamp(max=self.decay)) * kept

    def _follow(self, parameters: list[nn.Parameter]) -> None:
        """Move the average to where the weights are: Lightning moves a module after it was built."""
        if parameters and self.shadow_params[0].device != parameters[0].device:
            self.to(device=parameters[0].device)
