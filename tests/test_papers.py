"""Whatever the project's pages name is there: links, modules, commands, options, settings."""

from __future__ import annotations

import ast
import dataclasses
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from balsam_celery.cli import balsam
from balsam_celery.settings import QueueSettings, Settings

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "balsam_celery"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*/*.md")])
#: Pages about the code, in which a dotted name that begins like a module is one.
ABOUT_CODE = ("ARCHITECTURE.md", "CONTRIBUTING.md", "docs/adapters.md", "docs/design.md")
#: Modules of which a page of the code map names the package alone.
NOT_NAMED = ("simulate/baselines/", "store/migrations/versions/")
#: Tables of a scenario of ``balsam simulate``.
SCENARIO = ("machine", "node", "policy", "seeds")
#: Names of files, which may begin like a module.
FILE = re.compile(r"\.(py|toml)$")
SPAN = re.compile(r"`([^`\n]+)`")
BLOCK = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def spans(page: Path) -> list[str]:
    """What stands between backquotes in a page's running text."""
    return SPAN.findall(BLOCK.sub("", page.read_text(encoding="utf-8")))


def anchors(page: Path) -> set[str]:
    """What a link into a page may name: its headings, as GitHub writes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings}


@pages
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


@functools.cache
def modules() -> dict[str, Path]:
    """Dotted name, without the package's own → file."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


@functools.cache
def names(path: Path) -> frozenset[str]:
    """All names that a module gives, those of its classes and attributes with them."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.FunctionDef() | ast.ClassDef():
                found.add(node.name)
            case ast.Name(ctx=ast.Store()):
                found.add(node.id)
            case ast.Attribute(ctx=ast.Store()):
                found.add(node.attr)
            case ast.alias():
                found.add(node.asname or node.name)
    return frozenset(found)


def resolves(dotted: str) -> bool:
    """A module, or a name in one; what begins like no module is not looked for."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        if path := modules().get(".".join(parts[:end])):
            rest = parts[end:]
            return not rest or all(part in names(path) for part in rest)
    return True


@pytest.mark.parametrize("page", ABOUT_CODE)
def test_modules_and_paths_exist(page: str) -> None:
    known = {path.name for path in (*ROOT.iterdir(), *PACKAGE.iterdir())}
    for span in spans(ROOT / page):
        name = re.sub(r"\(.*\)$", "", span).split(" ")[0]
        first = re.split(r"[./]", name)[0]
        if "/" in name and first in known and "*" not in name:
            where = [ROOT / name, PACKAGE / name, PACKAGE / f"{name}.py"]
            assert any(path.exists() for path in where), span
        elif (
            re.fullmatch(r"[a-z_]+(\.\w+)+", name) and first in modules() and not FILE.search(name)
        ):
            # a key of site.toml may begin like a module
            assert resolves(name) or tuple(name.split(".")) in keys(), span


@pages
def test_tests_exist(page: Path) -> None:
    for span in spans(page):
        if found := re.fullmatch(r"(tests/[\w/.]+)(?:::(\w+))?", span):
            path, name = ROOT / found[1], found[2]
            assert path.exists(), span
            assert not name or re.search(rf"^def {name}\(", path.read_text(), re.MULTILINE), span


def test_the_code_map_names_every_module() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    section = text.partition("## Code map")[2].partition("\n## ")[0]
    named = {span.removesuffix("/").split("/")[-1] for span in SPAN.findall(section)}
    for path in PACKAGE.rglob("*.py"):
        relative = path.relative_to(PACKAGE).as_posix()
        if path.stem != "__init__" and not relative.startswith(NOT_NAMED):
            assert path.stem in named, relative


def commands(page: Path) -> Iterator[str]:
    """Calls of ``balsam`` in a page: in backquotes, or a line of a block."""
    text = page.read_text(encoding="utf-8")
    lines = [line for block in BLOCK.findall(text) for line in re.split(r"\n|&&", block)]
    for call in (*spans(page), *lines):
        if found := re.match(r"(?:\.venv/bin/)?(balsam [a-z].*)", call.strip()):
            yield found[1].partition("#")[0]


@pages
def test_commands_and_their_options_exist(page: Path) -> None:
    for call in commands(page):
        before, _, _ = call.partition(" -- ")
        words = before.split()[1:]
        command: click.Command = balsam
        while words and isinstance(command, click.Group):
            found = command.get_command(click.Context(command), words[0])
            if found is None:
                assert command is not balsam, call
                break  # a group's own arguments
            command = found
            words.pop(0)
        known = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
        for word in words:
            option = word.partition("=")[0].rstrip(",;")
            assert not option.startswith("--") or option in known, call


@functools.cache
def keys() -> frozenset[tuple[str, str]]:
    """(table, key) of ``site.toml``."""
    found = {("queues.NAME", one.name) for one in dataclasses.fields(QueueSettings)}
    for table, value in ((one.name, getattr(Settings(), one.name)) for one in _tables()):
        found |= {(table, one.name) for one in dataclasses.fields(value)}
    return frozenset(found)


def _tables() -> list[dataclasses.Field[object]]:
    return [one for one in dataclasses.fields(Settings) if one.name != "queues"]


@pages
def test_settings_exist(page: Path) -> None:
    tables = {table for table, _ in keys()}
    for span in spans(page):
        # "[retry] max_cuts", and what follows it
        if found := re.match(r"\[([a-z]+(?:\.NAME)?)\](?: (\w+))?", span):
            table, key = found[1], found[2]
            assert table in (*tables, "queues", *SCENARIO), span
            assert not key or (table, key) in keys(), span


@pages
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = page.read_text(encoding="utf-8")
    lines = [line for block in BLOCK.findall(text) for line in block.splitlines()]
    for call in (*spans(page), *lines):
        if found := re.match(r"make ([a-z-]+)", call):
            assert found[1] in targets, call
