"""Builds the static site: README.md and docs/**/*.md as HTML pages that need nothing from outside.

    python tools/build_docs.py OUTPUT

Fails when a link between pages, or to a heading of a page, leads nowhere.
"""

from __future__ import annotations

import html
import os
import re
import shutil
import sys
from pathlib import Path, PurePosixPath

import markdown
from pygments.formatters import HtmlFormatter

ROOT = Path(__file__).resolve().parent.parent
# The order of the menu; what is not listed follows by name.
FIRST = [
    "README.md",
    "docs/quickstart.md",
    "docs/concepts.md",
    "docs/guides",
    "docs/reference.md",
    "docs/reference",
    "docs/internals",
    "docs/guarantees.md",
    "docs/benchmarks.md",
]

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.55 system-ui, sans-serif; margin: 0; display: flex; flex-wrap: wrap; }
nav { flex: 0 0 13rem; padding: 1.5rem; }
nav ul { list-style: none; margin: 0; padding: 0; }
nav li.inner { padding-left: 1rem; }
main { flex: 1 1 34rem; min-width: 0; max-width: 52rem; padding: 1.5rem; }
a { color: #1a6fb5; }
[aria-current] { font-weight: bold; }
pre { overflow-x: auto; padding: .8rem; background: #8881; border-radius: .3rem; }
code { font-size: .92em; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #8885; padding: .3rem .7rem; text-align: left; }
img { max-width: 100%; }
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="stylesheet" href="{root}style.css">
</head>
<body>
<nav><ul>
{menu}
</ul></nav>
<main>
{body}
</main>
</body>
</html>
"""

LINK = re.compile(r'(?P<attribute>href|src)="(?P<target>[^"]+)"')


def sources() -> list[str]:
    found = ["README.md", *(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.md"))]

    def rank(name: str) -> tuple[int, str]:
        for place, first in enumerate(FIRST):
            if name == first or name.startswith(first + "/"):
                return place, name
        return len(FIRST), name

    return sorted(found, key=rank)


def page_of(source: str) -> str:
    """Where the page of a source lies in the site."""
    if source == "README.md":
        return "index.html"
    return str(PurePosixPath(source).relative_to("docs").with_suffix(".html"))


def relative(target: str, page: str) -> str:
    return os.path.relpath(target, PurePosixPath(page).parent).replace(os.sep, "/")


def title_of(text: str, source: str) -> str:
    found = re.search(r"^# (.+)$", text, flags=re.M)
    return found[1].replace("`", "").strip() if found else PurePosixPath(source).stem


class Site:
    def __init__(self, output: Path) -> None:
        self.output = output
        self.texts = {source: (ROOT / source).read_text() for source in sources()}
        self.bodies: dict[str, str] = {}
        self.broken: list[str] = []

    def build(self) -> None:
        shutil.rmtree(self.output, ignore_errors=True)
        self.output.mkdir(parents=True)
        for source, text in self.texts.items():
            self.bodies[source] = markdown.markdown(
                text,
                extensions=["fenced_code", "tables", "toc", "codehilite", "sane_lists"],
                extension_configs={"codehilite": {"guess_lang": False}},
            )
        for source in self.texts:
            self.write(source)
        light = HtmlFormatter(style="default").get_style_defs(".codehilite")
        dark = HtmlFormatter(style="monokai").get_style_defs(".codehilite")
        sheet = f"{STYLE}\n{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n"
        (self.output / "style.css").write_text(sheet)

    def write(self, source: str) -> None:
        page = page_of(source)
        target = self.output / page
        target.parent.mkdir(parents=True, exist_ok=True)
        body = LINK.sub(lambda found: self.link(source, found), self.bodies[source])
        target.write_text(
            PAGE.format(
                title=html.escape(title_of(self.texts[source], source)),
                root=relative(".", page) + "/",
                menu=self.menu(source),
                body=body,
            )
        )

    def menu(self, current: str) -> str:
        lines = []
        for source, text in self.texts.items():
            inner = ' class="inner"' if len(PurePosixPath(page_of(source)).parts) > 1 else ""
            here = ' aria-current="page"' if source == current else ""
            address = relative(page_of(source), page_of(current))
            title = html.escape(title_of(text, source))
            lines.append(f'<li{inner}><a href="{address}"{here}>{title}</a></li>')
        return "\n".join(lines)

    def link(self, source: str, found: re.Match[str]) -> str:
        """A link between sources, as one between pages; other files of the project come along."""
        target, _, anchor = html.unescape(found["target"]).partition("#")
        if re.match(r"[a-z]+:", target):
            return found[0]
        name = source if not target else os.path.normpath(PurePosixPath(source).parent / target)
        if name in self.texts:
            if anchor and f'id="{anchor}"' not in self.bodies[name]:
                self.broken.append(f"{source}: {found['target']} (no such heading)")
            address = relative(page_of(name), page_of(source))
        elif (ROOT / name).is_file() and not name.startswith(".."):
            copy = self.output / "files" / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy)
            address = relative(f"files/{name}", page_of(source))
        elif (ROOT / name).is_dir() and not name.startswith(".."):
            return f'{found["attribute"]}="{relative("index.html", page_of(source))}"'
        else:
            self.broken.append(f"{source}: {found['target']}")
            return found[0]
        whole = f"{address}#{anchor}" if anchor else address
        return f'{found["attribute"]}="{html.escape(whole)}"'


def main(output: Path) -> int:
    site = Site(output)
    site.build()
    for line in site.broken:
        print("broken link:", line)
    print(f"{len(site.texts)} pages in {output}")
    return 1 if site.broken else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} OUTPUT")
    sys.exit(main(Path(sys.argv[1])))
