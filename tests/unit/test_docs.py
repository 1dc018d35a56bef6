"""The documents say what the code does: generated ones are current, names and links exist."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from bench.figures import place_figures
from driver.options import ENDPOINT_OPTIONS, NETWORK_OPTIONS
from plugin.settings import Settings, parse_settings
from tests.render_docs import (
    CAUSES_FILE,
    OPTIONS_FILE,
    README,
    SETTINGS,
    render_causes,
    render_options,
    variable,
)

REPOSITORY = Path(__file__).parents[2]
DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md")])
SAMPLES = {
    "socket": "/run/other.sock",
    "second_socket": "/run/second.sock",
    "state_dir": "/srv/pynet",
    "relay_socket": "/run/pynet/relay.sock",
    "default_sysctls": "net.core.somaxconn=99",
    "sysctl_allow": "net.ipv4.tcp_*",
    "ip_forward_no_drop": "true",
    "log_level": "debug",
}

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def test_the_options_page_is_current() -> None:
    assert OPTIONS_FILE.read_text() == render_options(), "run: python -m tests.render_docs"
    assert CAUSES_FILE.read_text() == render_causes(), "run: python -m tests.render_docs"


def test_the_figures_are_those_that_were_measured_last() -> None:
    text = README.read_text()
    assert text == place_figures(text), "run: python -m tests.render_docs"


def test_every_setting_is_described() -> None:
    assert set(SETTINGS) == {field.name for field in fields(Settings)}


def test_nobody_is_sent_where_reservations_do_not_show() -> None:
    assert not [each.name for each in DOCUMENTS if "ss -tulpn" in each.read_text()]


def test_the_recipe_for_metrics_takes_them_whole() -> None:
    """A histogram without its buckets is none."""
    (recipe,) = re.findall(
        r"# (curl .*/metrics.*)", (REPOSITORY / "docs/operations.md").read_text()
    )
    assert recipe.endswith("http://pynet/metrics")


@each_document
def test_nothing_that_there_is_is_called_to_come(document: Path) -> None:
    assert not re.search(r"not (yet built|built yet)", document.read_text(), re.IGNORECASE)


@pytest.mark.parametrize("field", SETTINGS)
def test_every_described_variable_is_read(field: str) -> None:
    defaults = parse_settings({})
    settings = parse_settings({variable(field): SAMPLES[field]})
    assert getattr(settings, field) != getattr(defaults, field)


@pytest.mark.parametrize(
    "option", [*NETWORK_OPTIONS, *ENDPOINT_OPTIONS], ids=lambda each: each.name
)
def test_an_option_fits_into_a_table(option: object) -> None:
    assert "|" not in str(option)
    assert "\n" not in str(option)


def test_the_architecture_names_every_room() -> None:
    text = (REPOSITORY / "docs/architecture.md").read_text()
    rooms = [
        path.parent.name
        for part in ("driver", "plugin")
        for path in REPOSITORY.glob(f"{part}/*/__init__.py")
    ]
    assert [room for room in rooms if f"  {room}/" not in text] == []


@each_document
def test_no_module_is_named_that_is_gone(document: Path) -> None:
    named = set(re.findall(r"\b((?:driver|plugin)/[a-z_/]+\.py)\b", document.read_text()))
    assert [module for module in sorted(named) if not (REPOSITORY / module).is_file()] == []


@each_document
def test_links_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", document.read_text())
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (document.parent / target).exists()] == []


@each_document
def test_make_targets_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)`", document.read_text()))
    assert sorted(named - targets) == []


@each_document
def test_nothing_belongs_to_one_machine(document: Path) -> None:
    assert re.findall(r"/(?:work|home|tmp)/\S*", document.read_text()) == []
