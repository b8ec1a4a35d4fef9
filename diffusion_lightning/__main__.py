"""The `lightning` command's entry, installed and as ``python -m diffusion_lightning``."""

from diffusion_lightning.commands.cli import main

if __name__ == "__main__":
    main()
