"""What of our recipe another library's loop can take over: read from ``configs/mnist.yaml``, so that it stays ours."""

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from diffusion_lightning.training.ema import EMA
from diffusion_lightning.training.schedule import LinearDecay

CONFIG = Path(__file__).parents[2] / "configs" / "mnist.yaml"

_config = yaml.safe_load(CONFIG.read_text())

BATCH_SIZE: int = _config["data"]["init_args"]["batch_size"]
CONDITION_DROPOUT: float = _config["model"]["condition_dropout"]

SETTINGS = (
    f"our training in its loop: {_config['model']['optimizer']['class_path'].rsplit('.', 1)[1]} and "
    f"{_config['model']['lr_scheduler']['class_path'].rsplit('.', 1)[1]} as in configs/mnist.yaml, batch {BATCH_SIZE}, "
    f"bf16, EMA {_config['model']['ema_decay']} with warm-up"
)


def build(network: nn.Module, steps: int) -> tuple[torch.optim.Optimizer, Any, EMA]:
    """Our optimizer of a network's weights, its rate over so many steps, and the average of the weights.

    Raises:
        ValueError: if the config's schedule is not the one that is known here.
    """
    model = _config["model"]
    module, class_name = model["optimizer"]["class_path"].rsplit(".", 1)
    trainable = [p for p in network.parameters() if p.requires_grad]
    optimizer = getattr(import_module(module), class_name)(trainable, **model["optimizer"]["init_args"])
    if not (schedule := model["lr_scheduler"])["class_path"].endswith(".LinearDecay"):
        raise ValueError(
            f"{CONFIG.name}: lr_scheduler={schedule['class_path']}: peers are trained by LinearDecay alone"
        )
    rate = LinearDecay(optimizer, total_steps=steps, **schedule["init_args"])
    return optimizer, rate, EMA(trainable, model["ema_decay"])
