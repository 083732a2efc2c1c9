"""What the READMEs hold: commands, code and links.

python tests/readmes.py    # lists the links to other sites, which no test follows
"""

import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
READMES = sorted(
    {*REPOSITORY.glob("README.md"), *REPOSITORY.glob("[a-z]*/README.md"), *REPOSITORY.glob("dim/**/README.md")}
)

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SUBSTITUTION = re.compile(r"\$\(([^()]*)\)")  # $(command)


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return [block for name, block in _FENCED.findall(path.read_text()) if name == language]


def prose(path: Path) -> str:
    """The page without its fenced blocks."""
    return _FENCED.sub("", path.read_text())


def spans(path: Path) -> list[str]:
    """What stands between backquotes in the text and in tables, each on one line."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(path))]


def commands(block: str) -> Iterator[list[str]]:
    """The simple commands of a block of bash, without redirections, and without what may stand before a command."""
    for inner in _SUBSTITUTION.findall(block):
        yield from commands(inner)
    for line in re.sub(r"\\\n\s*|(?<=&&)\n", " ", _SUBSTITUTION.sub("$_", block)).splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if not set(word) <= set("();&|"):
                words.append(word)
                continue
            words = [word for before, word in pairwise(["", *words]) if not {before, word} & {">", "<"}]
            while words and (re.match(r"\w+=", words[0]) or words[0] in ("do", "until")):
                del words[0]
            if words:
                yield words
            words = []


def anchors(path: Path) -> list[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def links(path: Path) -> list[str]:
    """The targets of a page's links and pictures."""
    return re.findall(r"\]\(([^)]+)\)", path.read_text())


if __name__ == "__main__":
    print(*sorted({link for path in READMES for link in links(path) if "://" in link}), sep="\n")
