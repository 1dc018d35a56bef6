"""The firewall's two adapters, and that nft takes what is rendered."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from driver import firewall
from driver.errors import KernelError
from driver.kernel.nft import Nft
from tests.kernel.host import run
from tests.samples import network

if TYPE_CHECKING:
    from driver.kernel.linux import LinuxKernel

GOLDEN = Path(__file__).parent.parent / "golden"
MARK = firewall.ACCEPTED_MARK


def rules(command: str, chain: str) -> list[str]:
    """Return pynet's rules of an iptables chain, with their places."""
    lines = run(command, "-w", "-S", chain).splitlines()
    return [f"{place} {line}" for place, line in enumerate(lines) if "pynet" in line]


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.nft")), ids=lambda path: path.stem)
def test_nft_takes_every_golden_file(path: Path) -> None:
    run("nft", "-c", "-f", str(path))


def test_nfts_own_words_are_passed_on(linux: LinuxKernel) -> None:
    with pytest.raises(KernelError, match="syntax error, unexpected"):
        linux.apply_rules("add nonsense inet pynet\n")
    with pytest.raises(KernelError, match="No such file or directory"):
        linux.apply_rules("delete table inet pynet\n")


def test_the_table_is_replaced_and_others_stay(linux: LinuxKernel) -> None:
    run("nft", "add table inet others")
    for networks in ([network(1)], [network(1), network(2)], []):
        linux.apply_rules(firewall.render_ruleset(networks, [], []))
        listing = run("nft", "list", "table", "inet", "pynet")
        assert listing.count('comment "network ') == len(networks)
        assert listing.count("mark set") == 1
    linux.apply_rules(firewall.render_no_ruleset())
    assert run("nft", "list", "tables") == "table inet others\n"


def test_a_context_is_closed_once() -> None:
    nft = Nft()
    nft.close()
    nft.close()


@pytest.mark.parametrize("chain", ["DOCKER-USER", "FORWARD"])
def test_the_accepting_rule_is_there_once_and_first(linux: LinuxKernel, chain: str) -> None:
    for command in ("iptables", "ip6tables"):
        if chain == "DOCKER-USER":
            run(command, "-w", "-N", chain)
        run(command, "-w", "-A", chain, "-j", "DROP")
    for _ in range(2):
        linux.ensure_forward_accept(MARK)
    for command in ("iptables", "ip6tables"):
        (rule,) = rules(command, chain)
        assert rule.startswith("1 ")
        assert f"--mark {MARK:#x}/{MARK:#x}" in rule
        assert rule.endswith("-j ACCEPT")
    for _ in range(2):
        linux.delete_forward_accept(MARK)
        assert rules("iptables", chain) == rules("ip6tables", chain) == []


def test_the_rule_goes_from_wherever_it_is(linux: LinuxKernel) -> None:
    linux.ensure_forward_accept(MARK)
    run("iptables", "-w", "-N", "DOCKER-USER")
    linux.ensure_forward_accept(MARK)
    assert rules("iptables", "FORWARD")
    assert rules("iptables", "DOCKER-USER")
    linux.delete_forward_accept(MARK)
    assert rules("iptables", "FORWARD") == rules("iptables", "DOCKER-USER") == []


def test_what_iptables_refuses_is_passed_on(
    linux: LinuxKernel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "iptables"
    broken.write_text("#!/bin/sh\necho 'Permission denied (you must be root)' >&2; exit 4\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KernelError, match="you must be root"):
        linux.ensure_forward_accept(MARK)


def test_a_machine_without_iptables_needs_no_rule(
    linux: LinuxKernel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", pytest.fail)
    linux.ensure_forward_accept(MARK)
    linux.delete_forward_accept(MARK)
