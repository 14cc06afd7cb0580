"""What the documentation tells to type exists: commands, options, choices, files, headings.

A command inside a block of code, or one in docs/seeds.md, has to be whole. A mention in a sentence
may leave arguments out, and capitals stand for what the reader puts in.
"""

import ast
import itertools
import re
import shlex
from pathlib import Path

import click
import pytest

from tiaft_plugin.cli import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("examples/*/*.md"))]
SEEDS = ROOT / "docs/seeds.md"
FENCED = re.compile(r"^```.*?\n(.*?)^```$", re.M | re.S)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
STATES = ("**runs**", "**runs on DATA**", "**needs", "**not built**")
FIGURES = {1: 6, 2: 3, 3: 8}  # of the papers, as far as they number them
LEFT_OUT = "…"
STANDS_FOR = re.compile(r"[A-Z][A-Z0-9_]*")  # what a reader puts in
NO_COMMANDS = ("tiaft model",)  # names in QuPath's metadata


def blocks_of(text):
    """Return the lines of blocks of code, those that end in a backslash joined."""
    return [
        line.removeprefix("$ ")
        for block in FENCED.findall(text)
        for line in re.sub(r"\\\n\s*", "", block).splitlines()
    ]


def mentions_of(text):
    """Return the pieces of code in sentences and tables."""
    return [code.replace("\\|", "|") for code in INLINE.findall(FENCED.sub("", text))]


def words_of(line, program):
    """Return the words after `program`, which variables or a launcher may stand before."""
    if line in NO_COMMANDS or line.startswith(f"{program}  "):  # a column of a table
        return None
    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        return None  # an apostrophe: no command
    before = list(itertools.takewhile(lambda word: "=" in word or word == "srun", words))
    rest = words[len(before) :]
    return rest[1:] if rest[:1] == [program] else None


def alternatives_of(words):
    """Return a command for each of the alternatives that " | " stands between."""
    if "|" not in words:
        return [words]
    first = words.index("|") - 1
    last = first
    while words[last + 1 : last + 2] == ["|"]:
        last += 2
    choices = words[first : last + 1 : 2]
    return [
        command
        for choice in choices
        for command in alternatives_of([*words[:first], choice, *words[last + 1 :]])
    ]


def check_command(words, whole):
    """Raise click.UsageError or AssertionError where `tiaft` would not understand the words."""
    command, context, words = cli, click.Context(cli, info_name="tiaft"), list(words)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name = words.pop(0)
        if name == LEFT_OUT or STANDS_FOR.fullmatch(name):
            return
        command = command.get_command(context, name)
        assert command is not None, f"{context.command_path} has no command {name}"
        context = click.Context(command, info_name=name, parent=context)
    if (not words and not whole) or words == ["--help"]:
        return
    assert not isinstance(command, click.Group), f"{context.command_path} needs a command"
    given, left, _ = command.make_parser(context).parse_args(list(words))
    assert left in ([], [LEFT_OUT]), f"{context.command_path} takes no {left[0]}"
    for parameter in command.params:
        values = texts_of(given.get(parameter.name))
        for text in values:
            check_value(context, parameter, text)
        flag = isinstance(parameter, click.Option) and parameter.is_flag
        if whole and parameter.required and not values and not flag and LEFT_OUT not in words:
            raise click.MissingParameter(ctx=context, param=parameter)


def texts_of(value):
    """Return what a parser found for a parameter, as texts; nothing for flags and what is unset."""
    values = value if isinstance(value, list | tuple) else [value]
    return [each for each in values if isinstance(each, str)]


def check_value(context, parameter, text):
    """Raise click.BadParameter for a text that the option's type refuses, files aside."""
    if isinstance(parameter.type, click.Path) or LEFT_OUT in text or STANDS_FOR.fullmatch(text):
        return
    for one in text.split("|"):
        parameter.type.convert(one, parameter, context)


def options_of(script):
    """Return what a script's argparse takes by name."""
    return {
        node.args[0].value
        for node in ast.walk(ast.parse(script.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and getattr(node.func, "attr", "") == "add_argument"
        and isinstance(node.args[0], ast.Constant)
    }


def named(page):
    return page.relative_to(ROOT).as_posix()


def commands_of(page, program):
    """Yield (line, words, whole) for each command of `program` that a page shows."""
    text = page.read_text(encoding="utf-8")
    for line in blocks_of(text):
        if (words := words_of(line, program)) is not None:
            yield line, words, True
    for line in mentions_of(text):
        if (words := words_of(line, program)) is not None:
            yield line, words, page == SEEDS and any(word.startswith("-") for word in words)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_documented_commands_are_understood(page):
    wrong = []
    for line, words, whole in commands_of(page, "tiaft"):
        for command in alternatives_of(words):
            try:
                check_command(command, whole)
            except (click.UsageError, AssertionError) as error:
                message = error.format_message() if isinstance(error, click.UsageError) else error
                wrong.append(f"{line}\n    {message}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_documented_scripts_and_their_options_exist(page):
    wrong = []
    for line, words, _ in commands_of(page, "python"):
        own = [word for word in words if word.startswith(("benchmarks/", "examples/", "tests/"))]
        wrong += [f"{line}: no {word}" for word in own if not (ROOT / word).exists()]
        if own == words[:1] and (ROOT / own[0]).is_file():
            options = options_of(ROOT / own[0])
            given = [word.partition("=")[0] for word in words if word.startswith("--")]
            wrong += [f"{line}: no {word}" for word in given if word not in options]
    assert not wrong, "\n".join(wrong)


def commands_in(group):
    """Return a group's commands, those of groups inside it, too."""
    context = click.Context(group)
    found = [group.get_command(context, name) for name in group.list_commands(context)]
    inner = [each for one in found if isinstance(one, click.Group) for each in commands_in(one)]
    return [*found, *inner]


@pytest.fixture(scope="module")
def known_options():
    """All options there are, of whatever command or benchmark."""
    scripts = [options_of(script) for script in (ROOT / "benchmarks").glob("*.py")]
    own = [(*each.opts, *each.secondary_opts) for one in commands_in(cli) for each in one.params]
    return {"--help", "--version", *itertools.chain(*own, *scripts)}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_mentioned_files_exist(page):
    text = page.read_text(encoding="utf-8")
    first = [line.split()[0] for line in (*blocks_of(text), *mentions_of(text)) if line.strip()]
    own = [word for word in first if re.match(r"(benchmarks|examples|extensions|tests)/\w", word)]
    assert not [word for word in own if not (ROOT / word).exists()]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_mentioned_options_exist(page, known_options):
    mentions = [code.split() for code in mentions_of(page.read_text(encoding="utf-8"))]
    own = [words[0].partition("=")[0].rstrip("…") for words in mentions if words]
    assert not [word for word in own if word.startswith("--") and word not in known_options]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page):
    wrong = []
    for link in LINK.findall(FENCED.sub("", page.read_text(encoding="utf-8"))):
        if "://" in link:
            continue
        path, _, heading = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (heading and heading not in headings_of(target)):
            wrong.append(link)
    assert not wrong


def headings_of(page):
    """Return the names under which GitHub links a page's headings."""
    titles = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def rows_of(paper):
    """Return the rows of a paper's table in docs/seeds.md: item, commands, state."""
    section = SEEDS.read_text(encoding="utf-8").split(f"\n## {paper}. ")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [re.split(r"(?<!\\)\|", line.strip("|")) for line in lines[1:]]


@pytest.mark.parametrize("paper", range(1, 6))
def test_every_item_of_a_paper_has_a_state(paper):
    rows = rows_of(paper)
    assert len(rows) > 5
    assert not [row for row in rows if len(row) != 3]
    assert not [item for item, _, state in rows if not any(word in state for word in STATES)]
    unbuilt = [state.strip().startswith("**not built**") for _, _, state in rows]
    assert not [
        row for row, left in zip(rows, unbuilt, strict=True) if not row[1].strip() and not left
    ]
    items = " ".join(item for item, _, _ in rows)
    for number in range(1, FIGURES.get(paper, 0) + 1):
        assert re.search(rf"[Ff]igures? {number}", items), number


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("tiaft finetune TILES --out RUN --epoch 3", "No such option"),
        ("tiaft finetune TILES", "Missing option '--out'"),
        ("tiaft finetune TILES --out RUN --epochs three", "is not whole numbers"),
        ("tiaft finetune --out RUN", "Missing argument 'TILES'"),
        ("tiaft probe tissu F.npz --out OUT", "has no command tissu"),
        ("tiaft probe", "needs a command"),
        ("tiaft export STORE --to h6 --out DIR", "'h6' is not one of"),
        ("tiaft features TILES more --model M --out F.npz", "takes no more"),
    ],
)
def test_the_check_finds_what_is_wrong(line, message):
    with pytest.raises((click.UsageError, AssertionError)) as caught:
        check_command(words_of(line, "tiaft"), whole=True)
    error = caught.value
    assert message in (
        error.format_message() if isinstance(error, click.UsageError) else str(error)
    )


def test_the_check_reads_alternatives_and_joined_lines():
    assert alternatives_of(["probe", "a", "|", "b", "|", "c", "X", "|", "Y"]) == [
        ["probe", name, last] for name in "abc" for last in "XY"
    ]
    assert blocks_of("```\ntiaft a \\\n    --b c\n```\n") == ["tiaft a --b c"]
