"""What happens around an epoch: pictures, FID, checkpoints, the progress bar, the report."""

from diffusion_lightning.callbacks.best_checkpoint import BestCheckpoint
from diffusion_lightning.callbacks.checkpoints import LastCheckpoint
from diffusion_lightning.callbacks.condition_grid import ConditionGrid
from diffusion_lightning.callbacks.denoising_process import DenoisingProcess
from diffusion_lightning.callbacks.fid import FIDCallback
from diffusion_lightning.callbacks.graceful_stop import GracefulStop
from diffusion_lightning.callbacks.loss_by_noise import LossByNoise
from diffusion_lightning.callbacks.performance import RunReport
from diffusion_lightning.callbacks.progress import TerminalProgressBar, TrainingProgressBar
from diffusion_lightning.callbacks.restoration_grid import RestorationGrid
from diffusion_lightning.callbacks.sample_grid import SampleGrid
from diffusion_lightning.callbacks.sample_writer import SampleWriter
from diffusion_lightning.callbacks.sliced_wasserstein import SlicedWasserstein
from diffusion_lightning.callbacks.vector_field import VectorField

__all__ = [
    "BestCheckpoint",
    "ConditionGrid",
    "DenoisingProcess",
    "FIDCallback",
    "GracefulStop",
    "LastCheckpoint",
    "LossByNoise",
    "RestorationGrid",
    "RunReport",
    "SampleGrid",
    "SampleWriter",
    "SlicedWasserstein",
    "TerminalProgressBar",
    "TrainingProgressBar",
    "VectorField",
]
