"""A local page to play with a trained model: :mod:`~diffusion_lightning.demo.tasks` draws, without a page, and
:mod:`~diffusion_lightning.demo.page` shows."""
