"""What `make docs` does beyond MkDocs: pages from all over the repository, drawn diagrams, and no request to elsewhere.

The site has the home page and every file that a page of it links to, at the places that they have in the repository.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

HOME = "README.md"
LINK = re.compile(r"\]\(([^)#\s]+)")
DIAGRAM = re.compile(r"^```mermaid\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"^```.*?^```\n", re.MULTILINE | re.DOTALL)
LOADED = {
    ".html": re.compile(r"""<(?:script|img|iframe|source|link)[^>]*\s(?:src|href)=["']?(?:https?:)?//[^>]*>"""),
    ".css": re.compile(r"""(?:@import|url\()\s*["']?(?:https?:)?//[^)]*"""),
}
"""What makes a browser ask another server, by kind of file."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The theme's own files, and those of the repository that the site shows."""
    root = Path(config.config_file_path).parent
    kept = [file for file in files if file.src_dir != config.docs_dir]
    own = [*config.extra_css, *map(str, config.extra_javascript), *config.extra["polyfills"]]
    names = [*own, *sorted(_linked(root))]
    return Files([*kept, *(File.generated(config, name, abs_src_path=str(root / name)) for name in names)])


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: object) -> str:
    """The page with its diagrams drawn."""
    figures = Path(config.docs_dir) / "figures"
    return DIAGRAM.sub(lambda found: _drawn(found[1], figures, page.file.src_uri), markdown)


def on_post_build(config: MkDocsConfig) -> None:
    """Ensures that opening a page loads nothing from another server."""
    site = Path(config.site_dir)
    for suffix, pattern in LOADED.items():
        for path in sorted(site.rglob(f"*{suffix}")):
            found = pattern.search(path.read_text())
            if found:
                raise PluginError(f"{path.relative_to(site)} loads something from elsewhere: {found[0]}")


def _linked(root: Path) -> set[str]:
    """Paths below the root of the home page and of all files that can be reached from it by links."""
    found, left = {HOME}, [HOME]
    while left:
        for name in _targets(root, left.pop()):
            if name not in found:
                found.add(name)
                left += [name] if name.endswith(".md") else []
    return found


def _targets(root: Path, page: str) -> Iterator[str]:
    text = CODE.sub("", (root / page).read_text())
    for link in LINK.findall(text):
        path = (root / page).parent.joinpath(link).resolve()
        if path.is_file() and path.is_relative_to(root):
            yield path.relative_to(root).as_posix()


def _drawn(source: str, figures: Path, page: str) -> str:
    """The picture of a Mermaid diagram, which is kept beside its text: its script would be loaded from elsewhere."""
    path = figures / f"mermaid-{hashlib.sha256(source.encode()).hexdigest()[:12]}.svg"
    if not path.is_file():
        raise PluginError(
            f"{page}: a diagram has no picture; write its text to diagram.mmd and call 'npx @mermaid-js/mermaid-cli "
            f"--input diagram.mmd --output {path} --theme neutral --backgroundColor transparent', htmlLabels false "
            f"in its settings, then 'npx svgo --precision 1 {path}'; remove the picture of its earlier text"
        )
    return f'<div class="diagram">{path.read_text().strip()}</div>\n'
