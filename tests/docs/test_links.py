"""What the pages refer to exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")), *ROOT.glob("docs/**/*.md")]
)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

_LINK = re.compile(r"\]\((?P<path>[^)#\s]*)(?:#(?P<anchor>[^)\s]*))?\)")
_MODULE = re.compile(r"`(?P<path>(?:src|tests|native|tools|docs|[a-z]+)/[\w/.*{},]+\.(?:py|c|sh|md))`")


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as the usual renderers make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for link in _LINK.finditer(page.read_text(encoding="utf-8")):
        target = page.parent / link["path"] if link["path"] else page
        if "://" in link["path"]:
            continue
        if not target.exists() or (link["anchor"] and link["anchor"] not in anchors(target)):
            broken.append(link[0])
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_file_of_the_project_that_a_page_names_is_there(page: Path) -> None:
    names = [match["path"] for match in _MODULE.finditer(page.read_text(encoding="utf-8"))]
    missing = [name for name in names if not (any(ROOT.glob(name)) or any((ROOT / "src" / "ramet").glob(name)))]
    assert not missing


def test_every_page_can_be_reached_from_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    pages = [page.relative_to(ROOT / "docs") for page in PAGES if page.is_relative_to(ROOT / "docs")]
    missing = [str(page) for page in pages if page.name != "index.md" and f"({page})" not in index]
    assert not missing


def test_the_glossary_is_in_order_and_has_no_word_that_nobody_uses() -> None:
    glossary = ROOT / "docs" / "glossary.md"
    terms = re.findall(r"^\*\*(.+)\*\*\n: \S", glossary.read_text(), re.MULTILINE)
    assert terms == sorted(terms, key=lambda term: term.lower().replace(",", ""))
    text = " ".join(" ".join(page.read_text() for page in PAGES if page != glossary).lower().split())
    words = [word.strip().lower() for term in terms for word in term.removesuffix(" memory").split(",")]
    assert not [word for word in words if word not in text]
