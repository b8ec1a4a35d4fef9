"""`python -m diffusion_lightning` is the `lightning` command."""

from diffusion_lightning.cli import main

if __name__ == "__main__":
    main()
