"""How the site is built: Sphinx over README.md, the other pages of the root, and docs/**/*.md.

`make docs` turns each warning into a failure: a link that leads nowhere, a page that no menu has, a
public name without a docstring or missing from docs/api.md.

The pages link to each other by their paths in the repository, so they read the same on a forge;
therefore the repository's root is the source directory.
"""

from __future__ import annotations

import ast
import inspect
import re
import shutil
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.util import logging

import rabble

ROOT = Path(__file__).resolve().parent.parent
log = logging.getLogger(__name__)

project = "rabble"
version = release = rabble.__version__
copyright = "the rabble developers"  # noqa: A001 - Sphinx reads this name

extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "README"
include_patterns = ["*.md", "docs/**.md"]
# Sphinx walks the whole tree, and would look into the environments and the copies under build/.
exclude_patterns = ["build", "dist", ".*", "src", "tests"]
# A page of the forge's root that is no page of the site would have no place in the menu.
MENU = {
    "Learn": [
        "docs/quickstart",
        "docs/concepts",
        "docs/examples",
        "docs/guides/supervision",
        "docs/guides/names-and-groups",
        "docs/guides/producers",
        "docs/guides/server",
        "docs/guides/gate",
        "docs/guides/client",
        "docs/guides/mesh",
    ],
    "Recipes": [
        "docs/guides/recipes/fastapi",
        "docs/guides/recipes/gunicorn",
        "docs/guides/recipes/jupyter",
        "docs/guides/recipes/websockets",
        "docs/guides/recipes/pydantic",
        "docs/guides/recipes/job-queue",
        "docs/guides/recipes/restarting",
        "docs/guides/recipes/state-transfer",
        "docs/guides/recipes/rolling-upgrade",
    ],
    "Look up": [
        "docs/reference",
        "docs/api",
        "docs/guarantees",
        "docs/benchmarks",
        "docs/comparison",
        "CHANGELOG",
    ],
    "Inside": [
        "docs/internals/architecture",
        "docs/internals/wire-protocol",
        "docs/internals/client-protocol",
        "docs/internals/decisions",
        "docs/internals/faults",
        "CONTRIBUTING",
        "SECURITY",
    ],
}

# Headings have the anchors that forges give them.
myst_heading_anchors = 4
suppress_warnings: list[str] = []

# A name in single backticks is a link where the reference has it, and code everywhere.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"rabble {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
pygments_style = "default"
pygments_dark_style = "github-dark"


def add_menu(app: Sphinx, docname: str, source: list[str]) -> None:
    """Puts the menu below README.md, which a forge would show as code."""
    if docname == root_doc:
        for caption, pages in MENU.items():
            lines = "\n".join(pages)
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{lines}\n```\n"


def stub_of(name: str) -> ast.ClassDef | ast.FunctionDef | None:
    """What the `.pyi` beside a compiled module says of `rabble.Class` or `rabble.Class.method`.

    A compiled class has no signature at run time, and its methods no annotations; so both come from
    the stub, which stubtest holds to the module.
    """
    _, *names = name.split(".")
    # A module of `rabble` is no class, and has no stub: `rabble.testing`.
    home = getattr(getattr(rabble, names[0]), "__module__", "")
    stub = Path(ROOT, "src", *home.split(".")).with_suffix(".pyi")
    if not stub.is_file():
        return None
    found: Any = ast.parse(stub.read_text())
    for part in names:
        found = next((one for one in found.body if getattr(one, "name", None) == part), None)
        if found is None:
            return None
    return found


def take_signature_of_stub(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, signature: Any, returns: Any
) -> tuple[str, str | None] | None:
    found: Any = stub_of(name)
    if what == "class" and "Made by `" in (thing.__doc__ or ""):
        return "", None  # A user has no use for the arguments.
    if isinstance(found, ast.ClassDef):
        makers = ("__new__", "__init__")
        found = next((one for one in found.body if getattr(one, "name", "") in makers), None)
    if not isinstance(found, ast.FunctionDef):
        return None
    arguments = re.sub(r"^(self|cls)(, )?(/, )?", "", ast.unparse(found.args))
    gives = ast.unparse(found.returns) if found.returns and what != "class" else None
    return f"({arguments})", gives


def public_names() -> dict[str, Any]:
    """What a user may name: `rabble.__all__`, and the public members of its classes."""
    names = {}
    for name in rabble.__all__:
        thing = names[name] = getattr(rabble, name)
        if inspect.isclass(thing):
            for member, value in vars(thing).items():
                if not member.startswith("_"):
                    names[f"{name}.{member}"] = value
    return names


METHODS = (property, staticmethod, classmethod)


def check_reference(app: Sphinx, env: Any) -> None:
    """Warns of each public name that has no docstring, or that docs/api.md does not show.

    A field may be described by its class: a dataclass has no other place for it. Not so a method.
    """
    shown = {name.removeprefix("rabble.") for name in env.domains["py"].objects}
    for name, thing in public_names().items():
        owner, _, member = name.partition(".")
        is_field = member and not callable(thing) and not isinstance(thing, METHODS)
        if is_field and member in re.findall(r"\w+", getattr(rabble, owner).__doc__ or ""):
            continue
        if name not in shown:
            log.warning("docs/api.md does not show rabble.%s, or it has no docstring", name)
        elif isinstance(thing, type) and not vars(thing).get("__doc__"):
            log.warning("rabble.%s has no docstring", name)


def copy_front_page(app: Sphinx, exception: Exception | None) -> None:
    """The front page is found as the site's index, too."""
    if exception is None:
        shutil.copyfile(Path(app.outdir, f"{root_doc}.html"), Path(app.outdir, "index.html"))


def setup(app: Sphinx) -> None:
    app.connect("source-read", add_menu)
    app.connect("autodoc-process-signature", take_signature_of_stub)
    app.connect("env-check-consistency", check_reference)
    app.connect("build-finished", copy_front_page)
