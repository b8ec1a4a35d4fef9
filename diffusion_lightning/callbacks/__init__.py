"""What happens around an epoch: pictures, FID, checkpoints, the progress bar."""

from diffusion_lightning.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from diffusion_lightning.callbacks.fid import FIDCallback
from diffusion_lightning.callbacks.progress import TrainingProgressBar
from diffusion_lightning.callbacks.sample_grid import SampleGrid
from diffusion_lightning.callbacks.sample_writer import SampleWriter

__all__ = ["BestCheckpoint", "FIDCallback", "LastCheckpoint", "SampleGrid", "SampleWriter", "TrainingProgressBar"]
