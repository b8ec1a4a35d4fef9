"""What lies in the repository beside ``docs/`` and belongs to the site: measured results, changes, contributing.

Pages link to such files where they lie, so that the links also work where the repository itself is read.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

BESIDE = ("CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/results/*.md", "benchmarks/results/*.png")
LINK = re.compile(r"\]\(([^):#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Add them under the paths that they have in the repository."""
    root = Path(config.config_file_path).parent
    for pattern in BESIDE:
        for path in sorted(root.glob(pattern)):
            files.append(File.generated(config, path.relative_to(root).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, files: Files, config: MkDocsConfig, **_: Any) -> str:
    """Turn links to files of the repository into links to pages: ``docs/`` is the site's root, the README its home."""
    root = Path(config.config_file_path).parent
    source = Path(page.file.src_uri)
    folder = (root / "docs" / source if (root / "docs" / source).is_file() else root / source).parent

    def on_site(found: re.Match[str]) -> str:
        path = (folder / found[1]).resolve()
        if not path.is_relative_to(root):
            return found[0]
        name = path.relative_to(root).as_posix()
        name = "index.md" if name == "README.md" else name.removeprefix("docs/")
        if files.get_file_from_path(name) is None:
            return found[0]
        return f"]({'../' * source.as_posix().count('/')}{name}{found[2] or ''})"

    return LINK.sub(on_site, markdown)
