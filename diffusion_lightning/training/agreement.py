"""What one process of a run knows, told to all of them without waiting for a device."""

from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, distributed


class Agreement:
    """Ask :meth:`any` between steps: the answers travel from host to host while the devices compute.

    Of several processes each answer comes one call late, when it is there already; nobody waits for it.

    Args:
        trainer: whose processes agree; every one of them must make this equally often.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._group: Any = None
        self._asked: tuple[Tensor, Any] | None = None
        if trainer.world_size > 1:
            timeout = getattr(trainer.strategy, "_timeout", None)
            self._group = distributed.new_group(backend="gloo", timeout=timeout)

    def any(self, *own: bool) -> list[bool]:
        """Of each question whether any process says yes; of several processes, to the call before, no at the first.

        Args:
            own: this process's answers; every process must give equally many, and call this equally often.
        """
        if self._group is None:
            return list(own)
        agreed = [False] * len(own)
        if self._asked is not None:
            answers, work = self._asked
            work.wait()
            agreed = answers.bool().tolist()
        answers = torch.tensor(own, dtype=torch.uint8)
        work = distributed.all_reduce(answers, distributed.ReduceOp.MAX, self._group, async_op=True)
        self._asked = answers, work
        return agreed
