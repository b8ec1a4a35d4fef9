"""What is trained, in one line at the start."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary

from diffusion_lightning.messages import inform


class NetworkSummary(ModelSummary):
    """Tells the network's class and how many weights it has, in place of Lightning's table of a module's parts."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        weights = {True: 0, False: 0}
        for parameter in pl_module.parameters():
            weights[parameter.requires_grad] += parameter.numel()
        fixed = f", {weights[False]:,} fixed" if weights[False] else ""
        network = getattr(pl_module, "network", pl_module)
        inform(f"network: {type(network).__name__}, {weights[True]:,} weights to train{fixed}")
