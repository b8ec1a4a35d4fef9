"""The reference: a page for each part of the package, with all of its public names, from their docstrings."""

from typing import Any

from docstrings import page_identifier
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import diffusion_lightning

INDEX = "reference/index.md"
TITLES = {
    "sde": "Forward processes",
    "parameterization": "Parameterizations",
    "denoiser": "Denoisers",
    "objective": "Objective and times",
    "samplers": "Samplers",
    "likelihood": "Likelihood",
    "networks": "Networks",
    "data.augmentation": "Augmentation",
    "data": "Data",
    "metrics.evaluation": "Evaluation",
    "metrics.reference": "Statistics of real images",
    "training.ema": "Averaged weights",
    "training.checkpoint": "Checkpoint files",
    "training.module": "ScoreModule",
    "callbacks": "Callbacks",
    "training.precision": "Precision",
    "training.schedule": "Learning-rate schedules",
    "export": "Exported models",
    "loggers": "Loggers",
}
"""Of the pages; a part that is not here is called as its module."""


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Add the pages, and to the navigation, below the entry that lists the index."""
    (section,) = (pages for item in config.nav for pages in item.values() if INDEX in pages)
    del section[section.index(INDEX) + 1 :]
    for module, names in diffusion_lightning._HOME.items():
        path = f"reference/{module}.md"
        section.append({title(module): path})
        files.append(File.generated(config, path, content=_page(module, names)))
    files.append(File.generated(config, INDEX, content=_index()))
    return files


def title(module: str) -> str:
    """What a part of the package is called."""
    return TITLES.get(module, module.replace("_", " ").capitalize())


def _page(module: str, names: tuple[str, ...]) -> str:
    head = f"# {title(module)}\n\n`from diffusion_lightning import {', '.join(names)}`\n"
    only_its_docstring = "{members: [], show_root_heading: false, show_root_toc_entry: false}"
    about = f"::: diffusion_lightning.{module}\n    options: {only_its_docstring}\n"
    return "\n".join([head, about, *(f"::: {page_identifier(name)}\n" for name in names)])


def _index() -> str:
    rows = [
        f"| [{title(module)}]({module}.md) | {', '.join(f'[`{name}`][{page_identifier(name)}]' for name in names)} |"
        for module, names in diffusion_lightning._HOME.items()
    ]
    return f"""\
# Reference

Every name below is imported by `from diffusion_lightning import …`; what is loaded is only what is named.

| part | names |
|---|---|
{chr(10).join(rows)}
"""
