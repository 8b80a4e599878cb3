"""The pages: what they link to is there, and the code, commands and flags on them exist."""

import ast
import functools
import importlib
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import types

import forked
import numpy as np
import pytest

from selfens_jax.certificates import certify_counts, format_radius

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
OTHERS = ("CHANGELOG.md", "CONTRIBUTING.md")  # of the project's folder
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@functools.cache
def source(path: pathlib.Path) -> str:
    """A page, with the files that it includes."""

    def included(match: re.Match) -> str:
        return (ROOT / match[1]).read_text()

    return re.sub(r'^--8<-- "(.+)"$', included, path.read_text(), flags=re.MULTILINE)


def prose(path: pathlib.Path) -> str:
    """What is not code."""
    return re.sub(r"`[^`\n]+`", "", FENCE.sub("", source(path)))


def blocks(path: pathlib.Path, *languages: str) -> list[str]:
    return [code for language, code in FENCE.findall(source(path)) if language in languages]


def anchors(path: pathlib.Path) -> set[str]:
    """Those of its headings, and the names of the modules that it documents."""
    text = source(path)
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    slugs = {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", h).strip().lower()) for h in headings}
    return slugs | set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))


def paths() -> list[pathlib.Path]:
    return [DOCS / page for page in PAGES] + [ROOT / name for name in OTHERS]


def test_every_page_is_in_the_navigation_and_every_entry_is_a_page():
    config = (ROOT / "mkdocs.yml").read_text()
    navigation = config.split("\nnav:\n")[1].split("\n\n")[0]
    assert sorted(re.findall(r"[\w/]+\.md", navigation)) == PAGES


@pytest.mark.parametrize("page", [*PAGES, *OTHERS])
def test_links_lead_somewhere(page):
    path = ROOT / page if page in OTHERS else DOCS / page
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        linked = path.parent / file if file else path
        assert linked.is_file(), target
        assert path.parent == ROOT or DOCS in linked.resolve().parents, f"{target}: not on the site"
        # `module--heading` is a heading of that module's documentation, `module.name` a name in it.
        known = anchors(linked) if anchor else {""}
        module = anchor.partition("--")[0]
        assert anchor in known or module in known or module.rpartition(".")[0] in known, target


def test_pictures_have_words_for_those_who_do_not_see_them():
    for path in paths():
        assert "![](" not in source(path), path


@pytest.mark.parametrize("page", PAGES)
def test_python_compiles_and_what_it_imports_exists(page):
    for code in blocks(DOCS / page, "python", "py"):
        tree = ast.parse(code, page)
        for node in ast.walk(tree):
            match node:
                case ast.ImportFrom(module=str(name)) if name.startswith("selfens_jax"):
                    module = importlib.import_module(name)
                    for imported in node.names:
                        assert hasattr(module, imported.name), f"{name}.{imported.name}"
                case ast.Attribute(value=ast.Name(id="selfens_jax"), attr=name):
                    assert hasattr(importlib.import_module("selfens_jax"), name), name


@functools.cache
def known_flags(script: str) -> set[str]:
    """Of a script of the project. One that is not run by absl lists them in its source."""
    done = forked.run(ROOT / script, ["--help"], ROOT)
    assert done.stdout, f"{script} --help says nothing: {done.stderr}"
    return set(re.findall(r"--(?:\[no\])?(\w+)", done.stdout))


def test_commands_name_scripts_and_flags_that_exist():
    commands = []
    for path in paths():
        code = [*blocks(path, "sh"), *re.findall(r"`([^`\n]+)`", FENCE.sub("", source(path)))]
        text = "\n".join(code).replace("\\\n", " ")
        commands += re.findall(r"python ((?:experiments|examples|tests|docs)/\w+\.py)(.*)", text)
        named = re.findall(r"^(\w+\.py)( --.*)$", text, re.MULTILINE)
        commands += [(f"experiments/{name}", flags) for name, flags in named]
        commands += [("", flag) for flag in re.findall(r"^--\w+.*$", text, re.MULTILINE)]
    assert {"experiments/train.py", "experiments/certify.py"} <= {script for script, _ in commands}
    missing = {script for script, _ in commands if not (ROOT / script).exists()}
    assert not missing, "named on a page"
    everyday = [f"experiments/{name}.py" for name in ("train", "certify", "attack", "benchmark")]
    for script, flags in commands:
        asked = set(re.findall(r"--(\w+)", flags.split("#")[0])) - {"help"}
        if asked:
            known = set().union(*map(known_flags, [script] if script else everyday))
            assert asked <= known, f"{script}: {sorted(asked - known)}"


def test_extras_that_are_named_can_be_installed():
    declared = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1]
    known = set(re.findall(r"^(\w+) = \[", declared.split("\n[")[0], re.MULTILINE))
    for path in paths():
        for extras in re.findall(r'pip install (?:-e )?"\.\[([\w,]+)\]"', source(path)):
            assert set(extras.split(",")) <= known, path


def test_every_public_module_is_documented():
    package = importlib.import_module("selfens_jax")
    documented = {
        name for page in PAGES if page.startswith("api/") for name in anchors(DOCS / page)
    }
    for name in package.__all__:
        if isinstance(getattr(package, name), types.ModuleType):
            assert f"selfens_jax.{name}" in documented
    assert {"selfens_jax.classifier", "selfens_jax.certify"} <= anchors(DOCS / "api/index.md")


# The numbers of choosing.md


def table(name: str) -> list[str]:
    text = source(DOCS / "choosing.md").split(f"<!-- table: {name} -->\n")[1]
    return text.split("<!-- end -->")[0].splitlines()


def shown(radius: np.ndarray, digits: int) -> str:
    return format_radius(float(radius), digits)


def test_the_table_of_votes_is_computed():
    budgets = (100, 1000, 10_000, 100_000)
    rows = ["| votes | " + " | ".join(f"n = {n:,}" for n in budgets) + " |", "|---" * 5 + "|"]
    for percent in (52, 60, 75, 90, 99, 100):
        cells = [f"{percent} %"]
        for n in budgets:
            result = certify_counts([n * percent // 100, n - n * percent // 100], 1.0, 0.001)
            abstains = result.prediction < 0
            cells.append("abstains" if abstains else shown(result.radius, 3))
        rows.append(f"| {' | '.join(cells)} |")
    assert table("votes") == rows


def test_the_table_of_least_draws_is_computed():
    rows = ["| alpha | least n |", "|---|---|"]
    for alpha in (0.05, 0.01, 0.001, 1e-6):
        # All n votes agree; the bound exceeds one half where 2^-n < alpha / 2.
        least = int(np.floor(np.log2(2 / alpha))) + 1
        assert certify_counts([least, 0], 1.0, alpha).prediction == 0
        assert certify_counts([least - 1, 0], 1.0, alpha).prediction < 0
        rows.append(f"| {alpha:g} | {least} |")
    assert table("least") == rows


def test_numbers_in_sentences_are_computed():
    text = " ".join(source(DOCS / "choosing.md").split() + source(DOCS / "faq.md").split())
    top = certify_counts([1000, 0], 1.0, 0.001).radius
    assert f"that is {shown(top, 3)} sigma" in text
    assert top < 2.5
    assert "a number that is below 2.5" in text
    assert f"it never certifies more than {0.1 * top:.2f}" in text
    more = certify_counts([10_000, 0], 1.0, 0.001).radius / top - 1
    assert f"From 1000 to 10,000 it grows by {100 * more:.0f} %" in text
    gains = []
    for percent in (75, 90):
        few, many = (
            certify_counts([n * percent // 100, n - n * percent // 100], 1.0, 0.001).radius
            for n in (1000, 100_000)
        )
        gains.append(f"{100 * (many / few - 1):.0f}")
    assert f"a hundred times the draws add {gains[0]} to {gains[1]} % to what 1000 give" in text
    capped = certify_counts([100, 0], 1.0, 0.001).radius
    assert f"radii are then capped at {shown(capped, 2)} sigma" in text


def test_the_site_is_built_without_a_warning(tmp_path):
    for package in ("mkdocs", "material", "mkdocstrings_handlers"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f'needs {package}: python -m pip install ".[docs]"')
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mkdocs",
            "build",
            "--strict",
            "-f",
            ROOT / "mkdocs.yml",
            "-d",
            tmp_path,
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    built = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.html")}
    assert {page.removesuffix(".md") + ".html" for page in PAGES} <= built
    for name in built:  # nothing is fetched from another host
        page = (tmp_path / name).read_text()
        assert not re.findall(r'<(?:link|script|img)\b[^>]*(?:href|src)="https?://', page), name
    assert (
        "selfens_jax.certificates.certify_counts"
        in (tmp_path / "api/certificates.html").read_text()
    )


@pytest.mark.slow
@pytest.mark.parametrize("page", ["choosing", "tutorial"])
def test_the_code_of_a_page_runs_and_its_pictures_are_drawn(page, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    pictures = importlib.import_module("pictures")
    _, namespace = pictures.run((DOCS / f"{page}.md").read_text(), page)
    for draw in pictures.PICTURES[page].values():
        assert draw(namespace).startswith(b"\x89PNG")
