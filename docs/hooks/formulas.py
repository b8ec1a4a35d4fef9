"""Formulas as MathML, which browsers show by themselves: no script, no font, nothing to fetch."""

import re
from html import escape, unescape
from typing import Any

from math_core import LatexError, LatexToMathML
from mkdocs.exceptions import PluginError

FORMULA = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)


def on_page_content(html: str, **_: Any) -> str:
    r"""Replace what ``pymdownx.arithmatex`` has marked, ``\(…\)`` in a line and ``\[…\]`` by itself.

    Raises:
        PluginError: for a formula that is not understood.
    """
    converter = LatexToMathML()

    def mathml(found: re.Match[str]) -> str:
        tag, latex = found[1], unescape(found[2]).strip()[2:-2].strip()
        try:
            shown = converter.convert_with_local_state(latex, displaystyle=tag == "div")
        except LatexError as error:
            raise PluginError(f"the formula {latex!r} is not understood: {error}") from error
        return f'<{tag} class="formula" title="{escape(latex)}">{shown}</{tag}>'

    return FORMULA.sub(mathml, html)
