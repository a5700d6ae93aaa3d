"""The documentation taken apart: links, anchors, commands and blocks of code, page by page."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
FENCE = re.compile(r"^```(\w*)(?: title=\"([^\"]+)\")?\s*$")


@dataclass(frozen=True)
class Block:
    """A fenced or indented block: its language, the file that it is to be saved as, and the text."""

    language: str
    title: str
    text: str


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```\s*$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> Iterator[Block]:
    lines, inside = page.read_text().splitlines(), None
    for number, line in enumerate(lines):
        fence = FENCE.match(line)
        if inside is not None:
            if line.strip() == "```":
                yield Block(*inside[:2], "\n".join(lines[inside[2] : number]) + "\n")
                inside = None
        elif fence:
            inside = (fence[1], fence[2] or "", number + 1)
        elif line.startswith("    ") and line.strip():
            yield Block("", "", line.strip() + "\n")


def commands(page: Path) -> Iterator[list[str]]:
    """Every `quantkit …` line of a block as words, its comment left out."""
    for block in blocks(page):
        if block.language in ("", "sh"):
            yield from lines_of(block)


def lines_of(block: Block, *programs: str) -> Iterator[list[str]]:
    """The commands of a block, those of quantkit and of `programs`."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if line.split(" ")[0] in ("quantkit", *programs):
            yield shlex.split(line, comments=True)


def fragments(page: Path) -> Iterator[list[str]]:
    """Commands that prose names with an option; what they need besides may be left out."""
    for found in re.findall(r"(?<!`)`(quantkit [a-z]+ [^`]*--[^`]*)`", prose(page)):
        if "…" not in found:
            yield shlex.split(found.replace("\n", " "))


def links(page: Path) -> list[str]:
    """What the page links to; autolinks and images too."""
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", prose(page)))


def anchors(page: Path) -> set[str]:
    """The anchors that the generator gives headings, and those of the names that it documents."""
    found: dict[str, int] = {}
    for title in re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE):
        slug = slugify(title)
        found[slug] = found.get(slug, -1) + 1
    documented = re.findall(r"^::: ([\w.]+)", page.read_text(), flags=re.MULTILINE)
    return {slug if not count else f"{slug}_{count}" for slug, count in found.items()} | set(documented)


def slugify(title: str) -> str:
    """As Python-Markdown does it."""
    plain = unicodedata.normalize("NFKD", re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", title)).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())
