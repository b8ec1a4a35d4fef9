"""Usage and version: what the command says of itself, for which nothing else has to be loaded."""

import platform

from diffusion_lightning.version import __version__, installed_version

USAGE = """\
usage: lightning COMMAND [options]

  fit         train:    lightning fit --config configs/quickstart.yaml
              resume:   lightning fit --config runs/quickstart/version_0/config.yaml --ckpt_path last
  validate    the loss on held-out images and the FID of a checkpoint
  test        the same, logged as test/…
  predict     samples as single pictures, split over processes
  sample      samples of a run or a checkpoint:
                      lightning sample --ckpt_path runs/quickstart --output s.png
  restore     fill in, colour, enlarge or sharpen pictures:
                      lightning restore --ckpt_path runs/quickstart --task inpaint --input folder --mask bottom
  interpolate from one picture to another, as an animation:
                      lightning interpolate --ckpt_path runs/quickstart --from a.png --to b.png
  demo        a local page to draw, fill in and sketch:   lightning demo --ckpt_path runs/quickstart
  evaluate    FID, KID, Inception Score, precision and recall:  lightning evaluate --ckpt_path runs/quickstart
  likelihood  bits/dim of held-out images:
                      lightning likelihood --ckpt_path runs/quickstart --data EmbeddedMNIST
  report      a page with pictures, curves and settings of runs:   lightning report runs/quickstart
  export      for other programs: lightning export --ckpt_path runs/quickstart --format safetensors --output folder
  configs     that come with the package: a list; lightning configs quickstart.yaml copies one here, to edit
  completion  for the shell:  eval "$(lightning completion bash)"

lightning <command> --help lists a command's options; --debug shows the traceback of an error; lightning --version.
"""

SCREENS = {
    "fit": """\
lightning fit --config FILE [--config FILE …] [--option value …]

Train a model. Later files and options are laid over earlier ones; every setting of the config is an option.

  lightning fit --config configs/quickstart.yaml                        train; everything goes to runs/quickstart/
  lightning fit --config runs/quickstart/version_0/config.yaml --ckpt_path last                          resume
  lightning fit --config configs/mnist.yaml --print_config      what it means, with every default; and stop
  lightning fit --config configs/mnist.yaml --dry_run           size, arithmetic and time; and stop

  --run_name NAME             of the run's folder; the config file's name by default
  --seed_everything N         decides all that is random
  --data CLASS                EmbeddedMNIST, MNIST, CIFAR10, ImageFolder, Points; --data.root, --data.batch_size
  --model.network CLASS       UNet, ScoreNet, …, or your own by its import path; --model.network.channels, …
  --model.sampler CLASS       Heun, DPMSolverPlusPlus, …; --model.sampler.steps
  --model.optimizer CLASS     AdamW, …; --model.optimizer.lr; likewise --model.lr_scheduler
  --trainer.max_epochs N      or --trainer.max_steps N
  --trainer.devices N         GPUs or processes; --trainer.accelerator, --trainer.strategy ddp
  --trainer.precision auto    bf16 where the device has units for it
  --trainer.logger CLASS      WandbLogger, TensorBoardLogger, or false
  --CLASS.help                the options of a class: --model.network.help UNet, --data.help MNIST""",
    "validate": """\
lightning validate --config runs/NAME/version_0/config.yaml --ckpt_path last [--option value …]

The loss on held-out images, and what the config's measurements (FID) say of the checkpoint, by its EMA weights.""",
    "test": """\
lightning test --config runs/NAME/version_0/config.yaml --ckpt_path last [--option value …]

As validate, on the same images, logged as test/loss.""",
    "predict": """\
lightning predict --config runs/NAME/version_0/config.yaml --ckpt_path last [--data.num_predictions N]

Samples as single pictures, drawn by the EMA weights and split over the processes.""",
}
"""What `lightning <command> --help` begins with, no more than a screen; all options follow."""

EXAMPLES = {
    "fit": "lightning fit --config configs/quickstart.yaml",
    "validate": "lightning validate --config runs/quickstart/version_0/config.yaml --ckpt_path last",
    "test": "lightning test --config runs/quickstart/version_0/config.yaml --ckpt_path last",
    "predict": "lightning predict --config runs/quickstart/version_0/config.yaml --ckpt_path last",
    "sample": "lightning sample --ckpt_path runs/quickstart",
    "restore": "lightning restore --ckpt_path runs/quickstart --task inpaint --input folder --mask bottom",
    "interpolate": "lightning interpolate --ckpt_path runs/quickstart --from a.png --to b.png",
    "demo": "lightning demo --ckpt_path runs/quickstart",
    "evaluate": "lightning evaluate --ckpt_path runs/quickstart",
    "likelihood": "lightning likelihood --ckpt_path runs/quickstart --data EmbeddedMNIST",
    "report": "lightning report runs/quickstart",
    "export": "lightning export --ckpt_path runs/quickstart --format safetensors --output folder",
    "configs": "lightning configs quickstart.yaml",
    "completion": "lightning completion bash",
}
"""What to type, for who has left out what a command cannot do without."""


def version_line() -> str:
    """The versions of the package and of what decides its results."""
    packages = ", ".join(f"{name} {installed_version(name) or 'unknown'}" for name in ("torch", "lightning"))
    return f"diffusion_lightning {__version__} (python {platform.python_version()}, {packages})"
