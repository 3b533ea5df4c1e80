"""README and docs: tables equal the results they are made of, links lead somewhere, nothing is left out of the site."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re

import benchmarks_page
import pytest
from helpers.paths import ROOT

from bcnet_fast.cli.commands import COMMANDS
from bcnet_fast.config import (
    AnchorProposalConfig,
    BCNetConfig,
    BMNConfig,
    DataConfig,
    DetectionConfig,
    FeatureRows,
    GTADConfig,
    MapProposalConfig,
    MUSESConfig,
    PGCNConfig,
    RegressionStats,
    SamplePools,
    SecondStageTrainConfig,
    TrainConfig,
)

DOCS = ROOT / "docs"
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.DOTALL | re.MULTILINE)


def test_tables_are_those_of_the_results():
    for page in benchmarks_page.pages():
        text = page.read_text(encoding="utf-8")
        assert benchmarks_page.filled(text) == text, f"{page.name}: run python bench/benchmarks_page.py"


def test_every_table_is_shown_somewhere():
    shown = {
        name for page in benchmarks_page.pages() for _, name, _ in benchmarks_page.SECTION.findall(page.read_text())
    }
    assert shown == set(benchmarks_page.TABLES)


def test_a_second_machine_gets_its_own_rows(tmp_path, monkeypatch):
    for name in ("latency_amd_epyc.json", "latency_maps_amd_epyc.json"):
        found = json.loads((benchmarks_page.RESULTS / name).read_text())
        (tmp_path / name).write_text(json.dumps(found))
        found["environment"]["device"] = "Another CPU"
        (tmp_path / name.replace("amd_epyc", "other")).write_text(json.dumps(found))
    monkeypatch.setattr(benchmarks_page, "RESULTS", tmp_path)
    _, _, *lines = benchmarks_page.headline().splitlines()
    half = len(lines) // 2
    assert lines[half] == lines[0].replace("| AMD EPYC |", "| Another CPU |")
    assert lines[half + 1 :] == lines[1:half] and half == 4
    assert "*Another CPU, " in benchmarks_page.TABLES["latency"]()


@pytest.mark.parametrize("value, text", [(None, ""), (0, "0"), (1028.3, "1028"), (14.96, "15.0"), (0.0604, "0.060")])
def test_figures_have_three_digits(value, text):
    assert benchmarks_page.number(value) == text


@pytest.mark.parametrize("page", benchmarks_page.pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page):
    for target in LINK.findall(CODE.sub("`code`", page.read_text(encoding="utf-8"))):
        path = target.partition("#")[0]
        if path and "://" not in path:
            found = (page.parent / path).resolve()
            assert found.exists(), f"{page.name}: {target}"
            # The site has the pages only: files elsewhere are named, not linked.
            assert page.parent == ROOT or found.is_relative_to(DOCS), f"{page.name}: {target} is outside of docs/"


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    listed = set(re.findall(r"[\w/]+\.md", navigation))
    assert listed == {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}


@pytest.fixture
def site_hooks(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    return importlib.import_module("site_hooks")


def test_every_command_has_a_page_with_its_help(site_hooks):
    pages = {path.stem for path in (DOCS / "commands").glob("*.md")} - {"index"}
    assert pages == set(COMMANDS)
    page = (DOCS / "commands" / "evaluate.md").read_text(encoding="utf-8")
    assert "--ground-truth FILE" in site_hooks.on_page_markdown(page)


def test_every_setting_has_a_row(site_hooks):
    page = site_hooks.on_page_markdown((DOCS / "api" / "config.md").read_text(encoding="utf-8"))
    for section in (
        BCNetConfig,
        BMNConfig,
        GTADConfig,
        DataConfig,
        AnchorProposalConfig,
        MapProposalConfig,
        TrainConfig,
        PGCNConfig,
        MUSESConfig,
        FeatureRows,
        SamplePools,
        DetectionConfig,
        RegressionStats,
        SecondStageTrainConfig,
    ):
        for field in dataclasses.fields(section):
            assert f"| `{field.name}` |" in page, f"{section.__name__}.{field.name}"


def test_readme_is_short_and_has_the_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    words = [word for word in text.split() if any(map(str.isalnum, word))]  # no lines of tables
    assert len(words) <= 900
    assert "    pip install -e . && python -m bcnet_fast.infer\n" in text
    assert '    pip install -e ".[test]" && python -m pytest -m "not slow"\n' in text
