"""One HTML page of runs, made from what their folders hold: no tracker, no account, nothing loaded from elsewhere."""

from diffusion_lightning.report.page import render
from diffusion_lightning.report.run import Run, read_run

__all__ = ["Run", "read_run", "render"]
