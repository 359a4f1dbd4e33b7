"""A hook of MkDocs: the documents at the root of the repository become pages, and their links are those of the site."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
# Documents of the root, and the pages that they are on the site.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "reporting.md",
    "CHANGELOG.md": "changelog.md",
}
LINK = re.compile(r"(\]\()([^()\s:#]+)((?:#[^()\s]*)?\))")


def on_files(files: Files, config: Any) -> Files:
    """Add the documents of the root, and the pictures beside them that pages show."""
    texts = [(path, path.read_text()) for path in [*map(ROOT.joinpath, PAGES), *sorted((ROOT / "docs").glob("*.md"))]]
    for name, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / name)))
    shown = {_from_root(path, link) for path, text in texts for _, link, _ in LINK.findall(text)}
    for name in sorted(shown):
        if name.startswith("examples/") and (ROOT / name).is_file():
            files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links between files of the repository into links between pages."""
    names = {page_name: name for name, page_name in PAGES.items()}
    source = ROOT / names.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def to_page(match: re.Match[str]) -> str:
        name = _from_root(source, match[2])
        return match[1] + PAGES.get(name, name.removeprefix("docs/")) + match[3]

    return LINK.sub(to_page, markdown)


def _from_root(document: Path, link: str) -> str:
    """The file that a link of a document names, as seen from the root."""
    return posixpath.normpath(posixpath.join(document.parent.relative_to(ROOT).as_posix(), link))
