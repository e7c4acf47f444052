"""The pages: their links, and the commands that they tell to type."""

import re

import pytest
from helpers import ROOT
from ruamel.yaml import YAML

from pipeline.params import load_params

PATTERNS = ("*.md", "docs/*.md", "*/README.md", "pipeline/*/README.md")
PAGES = [page for pattern in PATTERNS for page in ROOT.glob(pattern)]
SHELL = "".join(
    block for page in PAGES for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^):#]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_commands_of_make_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"^make (\w+)", SHELL, re.MULTILINE))
    assert {"repro", "test", "submit"} <= named <= targets


def test_parameters_that_are_set_exist_and_may_have_these_values():
    settings = re.findall(r"-S '?([\w.]+)=([^\s']+)", SHELL)
    assert len(settings) > 10
    for name, values in settings:
        for value in values.split(","):
            load_params(ROOT / "params.yaml").with_values({name: YAML(typ="safe").load(value)})


def test_stages_that_are_named_exist():
    text = "".join(page.read_text() for page in PAGES)
    for name in re.findall(r"pipeline\.stages\.(\w+)", text):
        assert (ROOT / f"pipeline/stages/{name}.py").exists()
