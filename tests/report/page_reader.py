"""A page as a test reads it: its elements with their attributes and texts, nested as they must be."""

from html.parser import HTMLParser

ALONE = {"meta", "link", "img", "input", "br"}
"""Elements without an end."""


class PageReader(HTMLParser):
    """Reads a page. Raises an AssertionError if an element is ended that was not the last to begin.

    Attributes:
        elements: of each, in order: its name, its attributes, and the text inside it.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self._open: list[tuple[str, dict[str, str], list[str]]] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        element = (tag, {name: value or "" for name, value in attrs}, [])
        self.elements.append(element)
        if tag not in ALONE:
            self._open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in ALONE:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self._open[-1][0] == tag, f"</{tag}> in <{self._open[-1][0]}>"
        self._open.pop()

    def handle_data(self, data):
        for element in self._open:
            element[2].append(data)

    def all(self, tag: str, **attributes: str) -> list[tuple[dict[str, str], str]]:
        """Attributes and text of the elements of a name with these attributes."""
        return [
            (found, " ".join("".join(texts).split()))
            for name, found, texts in self.elements
            if name == tag and all(found.get(key.rstrip("_")) == value for key, value in attributes.items())
        ]

    def table(self, section: str) -> list[list[str]]:
        """The cells of the first table after the beginning of a section."""
        start = next(i for i, (_, found, _) in enumerate(self.elements) if found.get("id") == section)
        cells: list[list[str]] = []
        is_inside = False
        for name, _, texts in self.elements[start:]:
            if name == "section" and cells:
                break
            if name == "table":
                if is_inside:
                    break
                is_inside = True
            if is_inside and name == "tr":
                cells.append([])
            if is_inside and name in ("td", "th"):
                cells[-1].append(" ".join("".join(texts).split()))
        return cells
