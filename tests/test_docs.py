"""The pages that a person reads: README.md, CONTRIBUTING.md and docs/."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pyvmm.host.models import MODELS

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
README_LINES = 200  # fewer than that
LINK = re.compile(r"\]\(([^)\s]+)\)")
ELSEWHERE = re.compile(r"[a-z]+:")  # https: and the like
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    """Return a page's text without its blocks of code."""
    return CODE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    titles = (title.strip().lower() for title in HEADING.findall(prose(page)))
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


def links(page: Path) -> list[str]:
    """Return the targets of a page's links to files of the tree."""
    return [link for link in LINK.findall(prose(page)) if not ELSEWHERE.match(link)]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files_of_the_tree(page: Path) -> None:
    targets = [link.partition("#")[0] for link in links(page)]

    assert not [target for target in targets if not (page.parent / target).exists()]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_anchors_of_links_are_headings_of_their_page(page: Path) -> None:
    missing = []
    for link in links(page):
        target, _, anchor = link.partition("#")
        if anchor and anchor not in anchors(page.parent / target if target else page):
            missing.append(link)

    assert not missing


def test_readme_links_every_page_of_docs() -> None:
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in links(ROOT / "README.md")}

    assert {page for page in PAGES if page.parent.name == "docs"} <= linked


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < README_LINES


def test_every_file_that_contributing_names_exists() -> None:
    named = re.findall(r"`((?:pyvmm|tests|benchmarks|guests|programs|scripts|docs)/[^`\s*]*)`",
                       prose(ROOT / "CONTRIBUTING.md"))  # fmt: skip

    assert named
    assert not [path for path in named if not (ROOT / path).exists()]


def test_every_test_and_ready_made_host_that_the_docs_name_exists() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    tests = set(re.findall(r"\btests/[\w/]+\.py\b", text))
    models = set(re.findall(r"--host-model[ =]([a-z][a-z0-9,-]*[a-z0-9])", text))

    assert tests
    assert not [path for path in tests if not (ROOT / path).exists()]
    assert {name for names in models for name in names.split(",")} <= {*MODELS}


def test_every_ready_made_host_is_in_the_docs() -> None:
    page = (ROOT / "docs/emulated-host.md").read_text(encoding="utf-8")

    rows = re.findall(r"^\| `([a-z0-9][a-z0-9-]+)` \| [^|]+ \|$", page, re.MULTILINE)
    assert rows == [*MODELS]
