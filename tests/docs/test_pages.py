"""The documentation's pages: their links, their Python, and the site that is built of them."""

import os
import re
import subprocess
import sys
from importlib import import_module

import pytest
import yaml
from doc_examples import DOCS, PAGES, ROOT, blocks, prose
from markdown.extensions.toc import slugify

REFERENCE = {"modalloy": "modalloy"} | {
    name: f"modalloy.{name}" for name in ("align", "encoders", "evaluation", "fusion", "index", "search")
}
_LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_EXAMPLES = [(page, number) for page in PAGES for number, _ in enumerate(blocks(page, "python"))]
_ELSEWHERE = r"=\"?(?:https?:)?//"
_LOADED = re.compile(rf"<(?:script|img|iframe)[^>]* src{_ELSEWHERE}|<link(?=[^>]*stylesheet)[^>]* href{_ELSEWHERE}")


def anchors(page):
    return {slugify(heading.replace("`", ""), "-") for heading in _HEADING.findall(prose(page))}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    for target, anchor in _LINK.findall(prose(page)):
        file = page.parent / target if target else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), f"{target}#{anchor}"


@pytest.mark.parametrize(("page", "number"), _EXAMPLES, ids=lambda each: getattr(each, "stem", each))
def test_every_python_example_compiles(page, number):
    compile(blocks(page, "python")[number].code, str(page), "exec")


@pytest.mark.slow
def test_the_guides_check_of_an_encoder_runs(capsys):
    (example,) = blocks(DOCS / "guide" / "align.md", "python")
    exec(compile(example.code, "align.md", "exec"), {})
    assert capsys.readouterr().out.endswith(" 384\n")


def test_the_guide_is_five_tasks_and_linked_from_the_first_page():
    guide = next(part["Guide"] for part in yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"] if "Guide" in part)
    assert len(guide) == 5
    first = (DOCS / "index.md").read_text(encoding="utf-8")
    assert all(f"({page})" in first for page in guide)


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_needs_no_network(tmp_path):
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)]
    # What it says of its own future is no matter of ours.
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert built.returncode == 0 and not built.stderr, built.stderr
    pages = {page.relative_to(site).as_posix(): page.read_text(encoding="utf-8") for page in site.rglob("*.html")}
    assert not [name for name, text in pages.items() if _LOADED.search(text)]
    assert "modalloy fuse" in pages["command-line.html"]
    for page, module in REFERENCE.items():
        for name in import_module(module).__all__:
            # A function in a module of its own name is described under the module's.
            ids = (f'id="{module}.{name}"', f'id="{module}.{name}.{name}"')
            assert any(each in pages[f"reference/{page}.html"] for each in ids), name
