"""Every link of the documents leads somewhere: files and headings here; addresses elsewhere are listed, not opened."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from conftest import ROOT

DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / ".github").rglob("*.md")),
]
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)(?:\s+\"[^\"]*\")?\)")
# Pages that are named in the text as files, which a reader takes for links.
NAMED = re.compile(r"`(docs/[\w/]+\.md|[A-Z]+\.md)`")

# Where the documents send a reader. A new address is added here, by somebody who has opened it.
ELSEWHERE = {"docs.ray.io", "keepachangelog.com", "semver.org"}


def prose(path: Path) -> str:
    return FENCE.sub("", path.read_text())


def links(path: Path) -> list[str]:
    return LINK.findall(CODE.sub("", prose(path)))


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as the usual hosts of repositories make them."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", prose(path), re.MULTILINE):
        text = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        same = sum(re.fullmatch(rf"{re.escape(text)}(-\d+)?", other) is not None for other in found)
        found.add(f"{text}-{same}" if same else text)
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for link in links(path):
        where = urlsplit(link)
        if where.scheme:
            assert (where.scheme, where.netloc) in {("https", host) for host in ELSEWHERE}, f"{link} is not listed"
            continue
        target = (path.parent / unquote(where.path)).resolve() if where.path else path
        assert target.is_relative_to(ROOT), f"{link} leads out of the repository"
        assert target.exists(), f"{link} leads nowhere"
        if where.fragment:
            assert where.fragment in anchors(target), f"{link}: there is no such heading"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_that_are_named_exist(path: Path) -> None:
    for name in NAMED.findall(prose(path)):
        assert any((folder / name).is_file() for folder in (ROOT, path.parent)), f"{name} is not there"


def test_every_page_is_linked_from_the_readme_or_a_page() -> None:
    reached: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        path = waiting.pop().resolve()
        if path in reached:
            continue
        reached.add(path)
        named = [urlsplit(link).path for link in links(path)] + NAMED.findall(prose(path))
        for name in named:
            waiting += [
                found for folder in (ROOT, path.parent) if name.endswith(".md") and (found := folder / name).is_file()
            ]
    assert {path for path in DOCUMENTS if path.parent.name == "docs"} <= reached


def test_the_check_finds_what_is_wrong(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A `b` and c!\n[x](gone.md) [y](page.md#a-b-and-c) ![z](https://a.example/x.png) `[no](no.md)`\n")
    assert links(page) == ["gone.md", "page.md#a-b-and-c", "https://a.example/x.png"]
    assert anchors(page) == {"a-b-and-c"}
