"""Usage and version: what the command says of itself, for which nothing else has to be loaded."""

import platform
from importlib.metadata import version

USAGE = """\
usage: lightning COMMAND [options]

  fit         train:    lightning fit --config configs/quickstart.yaml
              resume:   lightning fit --config runs/quickstart/version_0/config.yaml --ckpt_path last
  validate    the loss on held-out images and the FID of a checkpoint
  test        the same, logged as test/…
  predict     samples as single pictures, split over processes
  sample      samples of a run or a checkpoint:
                      lightning sample --ckpt_path runs/quickstart --output s.png
  evaluate    FID, KID, Inception Score, precision and recall:  lightning evaluate --ckpt_path runs/quickstart
  likelihood  bits/dim of held-out images:
                      lightning likelihood --ckpt_path runs/quickstart --data EmbeddedMNIST
  report      a page with pictures, curves and settings of runs:   lightning report runs/quickstart
  export      for other programs: lightning export --ckpt_path runs/quickstart --format safetensors --output folder
  completion  for the shell:  eval "$(lightning completion bash)"

lightning <command> --help lists a command's options; --debug shows the traceback of an error; lightning --version.
"""

EXAMPLES = {
    "fit": "lightning fit --config configs/quickstart.yaml",
    "validate": "lightning validate --config runs/quickstart/version_0/config.yaml --ckpt_path last",
    "test": "lightning test --config runs/quickstart/version_0/config.yaml --ckpt_path last",
    "predict": "lightning predict --config runs/quickstart/version_0/config.yaml --ckpt_path last",
    "sample": "lightning sample --ckpt_path runs/quickstart",
    "evaluate": "lightning evaluate --ckpt_path runs/quickstart",
    "likelihood": "lightning likelihood --ckpt_path runs/quickstart --data EmbeddedMNIST",
    "report": "lightning report runs/quickstart",
    "export": "lightning export --ckpt_path runs/quickstart --format safetensors --output folder",
    "completion": "lightning completion bash",
}
"""What to type, for who has left out what a command cannot do without."""


def version_line() -> str:
    """The versions of the package and of what decides its results."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning"))
    return f"diffusion_lightning {version('diffusion-lightning')} (python {platform.python_version()}, {packages})"
