"""The firewall's two adapters, and that nft takes what is rendered."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import pytest

from driver.errors import KernelError
from driver.firewall import ruleset
from driver.firewall.elements import render_changes
from driver.linux import iptables, sysctl
from driver.linux.linux import FORWARDING, LinuxKernel
from driver.linux.nft import Nft
from tests.kernel.host import COMMANDS, run
from tests.samples import binding, endpoint, endpoint_id, network, sandbox_key
from tests.typical import TYPICAL

REPOSITORY = Path(__file__).parents[2]
GOLDEN = REPOSITORY / "tests/golden"
MARK = ruleset.ACCEPTED_MARK


def rules(command: str, chain: str) -> list[str]:
    """Return pynet's rules of an iptables chain, with their places."""
    lines = run(command, "-w", "-S", chain).splitlines()
    return [f"{place} {line}" for place, line in enumerate(lines) if "pynet" in line]


def listing() -> str:
    return run("nft", "-s", "list", "ruleset")


def load(name: str) -> None:
    run("nft", "-f", str(GOLDEN / f"{name}.nft"))


def test_nft_reads_the_constant_part_as_the_driver_does(linux: LinuxKernel) -> None:
    file = str(REPOSITORY / "driver/firewall/base.nft")
    run("nft", "-c", "-f", file)
    assert listing() == ""
    run("nft", "-f", file)
    read = listing()
    for _ in range(2):  # by one library, which remembers what was defined
        linux.apply_rules(ruleset.render_ruleset([], [], []))
        assert listing() == read


@pytest.mark.parametrize("name", TYPICAL)
def test_nft_takes_every_golden_file_and_gives_it_back(linux: LinuxKernel, name: str) -> None:
    each = TYPICAL[name]
    linux.apply_rules(ruleset.render_ruleset([], [], ["br-lan"]))
    base = listing()
    load(name)
    loaded = listing()
    assert loaded != base
    for changes in (
        ruleset.delete_bindings(each.endpoint.bindings),
        ruleset.delete_endpoint(each.endpoint, each.network),
        ruleset.delete_network(each.network),
    ):
        linux.change_elements(changes)
    assert listing() == base
    linux.apply_rules(ruleset.render_ruleset([each.network], [each.endpoint], ["br-lan"]))
    assert listing() == loaded
    load("gone")
    assert listing() == ""


def constant() -> list[str]:
    """Return every chain and rule, without the sets and maps and their elements."""
    shown = json.loads(run("nft", "--stateless", "--json", "list", "ruleset"))["nftables"]
    return [json.dumps(each) for each in shown if each.keys() & {"chain", "rule"}]


def test_chains_and_rules_are_as_many_for_one_as_for_many(linux: LinuxKernel) -> None:
    linux.apply_rules(ruleset.render_ruleset([network(1)], [], []))
    one = constant()
    bindings = tuple(binding(f"0.0.0.0:{port}") for port in range(1, 1001))
    container = endpoint().joined(sandbox_key(1)).published(bindings)
    networks = [network(number) for number in range(1, 101)]
    linux.apply_rules(ruleset.render_ruleset(networks, [container], []))
    guards = 2  # that it is guarded, and its address
    assert len(re.findall("endpoint e1e1e1e1e1e1", listing())) == 1001 + guards
    assert constant() == one
    linux.change_elements(ruleset.delete_bindings(bindings))
    assert len(re.findall("endpoint e1e1e1e1e1e1", listing())) == guards


def test_nfts_own_words_are_passed_on(linux: LinuxKernel) -> None:
    with pytest.raises(KernelError, match="syntax error, unexpected"):
        linux.apply_rules("add nonsense inet pynet\n")
    with pytest.raises(KernelError, match="No such file or directory"):
        linux.apply_rules("delete table inet pynet\n")


def test_the_table_is_replaced_and_others_stay(linux: LinuxKernel) -> None:
    run("nft", "add table inet others")
    for networks in ([network(1)], [network(1), network(2)], []):
        linux.apply_rules(ruleset.render_ruleset(networks, [], []))
        shown = run("nft", "list", "set", "inet", "pynet", "bridges")
        assert shown.count('comment "network ') == len(networks)
        assert run("nft", "list", "chain", "inet", "pynet", "accepted").count("mark set") == 1
    linux.apply_rules(ruleset.render_no_ruleset())
    assert run("nft", "list", "tables") == "table inet others\n"


def test_several_look_and_change_at_once(linux: LinuxKernel) -> None:
    """As monitoring does beside Docker's calls: it takes no lock of the driver's."""
    base = ruleset.render_ruleset([network(1)], [], [])
    linux.apply_rules(base)
    drops, empty = linux.read_drops(), linux.list_rules(ruleset.TABLES)

    def work(number: int) -> None:
        published = [binding(f"0.0.0.0:{8080 + number}", f"10.1.0.{number + 1}:80")]
        changes = ruleset.add_bindings(endpoint_id(number), published)
        for _ in range(10):
            linux.change_elements(changes)
            assert [linux.read_drops() for _ in range(20)] == [drops] * 20
            wanted = linux.preview_rules(base + render_changes(changes), ruleset.TABLES)
            assert empty < wanted <= linux.list_rules(ruleset.TABLES)
            linux.change_elements(ruleset.delete_bindings(published))

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(work, number) for number in range(1, 5)]:
            done.result()
    assert linux.list_rules(ruleset.TABLES) == empty


def test_a_context_is_closed_once() -> None:
    nft = Nft()
    nft.close()
    nft.close()


@pytest.fixture(params=["by the command", "by nft"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the driver find an iptables command, or none, as in a managed plugin."""
    if request.param == "by nft":
        monkeypatch.setattr(iptables, "is_installed", lambda: False)
        monkeypatch.setattr(iptables, "_execute", pytest.fail)


OPERATORS = ["-N DOCKER-USER", "-A DOCKER-USER -j RETURN"]
LAYOUTS = {
    "nothing": ([], 1),
    "only what an operator has there": (["-A FORWARD -i eth0 -j DROP"], 2),
    "the operators' chain": ([*OPERATORS, "-A FORWARD -j DOCKER-USER"], 2),
    "the operators' chain and others": (
        [*OPERATORS, "-A FORWARD -j DOCKER-USER", "-N ufw", "-A FORWARD -j ufw"],
        2,
    ),
    "the operators' chain further down": (
        [*OPERATORS, "-N fail2ban", "-A FORWARD -j fail2ban", "-A FORWARD -j DOCKER-USER"],
        3,
    ),
    "the operators' chain, to which nothing jumps": (OPERATORS, 1),
    "a rule that only sometimes jumps": ([*OPERATORS, "-A FORWARD -i eth0 -j DOCKER-USER"], 2),
}


def have(*rules_of_others: str) -> None:
    for command in COMMANDS.values():
        for rule in rules_of_others:
            run(command, "-w", *rule.split())


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("layout", "place"), LAYOUTS.values(), ids=LAYOUTS)
def test_the_accepting_rule_is_there_once_and_behind_the_operators(
    linux: LinuxKernel, layout: list[str], place: int
) -> None:
    have(*layout)
    assert not linux.has_forward_accept(MARK)
    for _ in range(2):
        linux.ensure_forward_accept(MARK)
        assert linux.has_forward_accept(MARK)
    for command in COMMANDS.values():
        (rule,) = rules(command, "FORWARD")
        assert rule.startswith(f"{place} ")
        assert f"--mark {MARK:#x}/{MARK:#x}" in rule
        assert rule.endswith("-j ACCEPT")
    for _ in range(2):
        linux.delete_forward_accept(MARK)
        assert rules("iptables", "FORWARD") == rules("ip6tables", "FORWARD") == []


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    ("change", "is_in_place"),
    [
        ("-A FORWARD -i eth0 -j DROP", True),
        ("-I FORWARD 2 -j DOCKER-FORWARD", True),
        ("-I FORWARD 2 -i eth0 -j DROP", False),
        ("-I FORWARD 2 -j ufw", False),
        ("-I DOCKER-USER -i eth0 -j DROP", True),
        ("-F DOCKER-USER", True),
        ("-F FORWARD", False),
        ("-D FORWARD -j DOCKER-USER", True),  # it is the last one
    ],
)
def test_a_rule_out_of_its_place_is_put_back(
    linux: LinuxKernel, change: str, *, is_in_place: bool
) -> None:
    have(*OPERATORS, "-A FORWARD -j DOCKER-USER", "-N DOCKER-FORWARD", "-N ufw")
    linux.ensure_forward_accept(MARK)
    have(change)
    assert linux.has_forward_accept(MARK) is is_in_place
    linux.ensure_forward_accept(MARK)
    assert linux.has_forward_accept(MARK)
    assert len(rules("iptables", "FORWARD")) == len(rules("ip6tables", "FORWARD")) == 1


@pytest.mark.usefixtures("way")
def test_a_rule_among_the_operators_goes(linux: LinuxKernel) -> None:
    """An earlier pynet had it there."""
    have("-N DOCKER-USER", "-A FORWARD -j DOCKER-USER")
    ours = ("-m", "mark", "--mark", f"{MARK:#x}/{MARK:#x}", "-m", "comment", "--comment", "pynet")
    for command in COMMANDS.values():
        run(command, "-w", "-I", "DOCKER-USER", *ours, "-j", "ACCEPT")
    linux.ensure_forward_accept(MARK)
    assert rules("iptables", "DOCKER-USER") == rules("ip6tables", "DOCKER-USER") == []
    assert rules("iptables", "FORWARD")
    assert rules("ip6tables", "FORWARD")


@pytest.mark.usefixtures("way")
def test_nothing_is_left_where_nothing_was(linux: LinuxKernel) -> None:
    assert listing() == ""
    linux.ensure_forward_accept(MARK)
    linux.delete_forward_accept(MARK)
    assert listing() == ""


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    "other", ["-N OTHER", "-P FORWARD DROP", "-A FORWARD -j ACCEPT", "-A INPUT -j ACCEPT"]
)
def test_what_others_have_beside_the_rule_stays(linux: LinuxKernel, other: str) -> None:
    for command in ("iptables", "ip6tables"):
        run(command, "-w", *other.split())
    linux.ensure_forward_accept(MARK)
    linux.delete_forward_accept(MARK)
    for command in ("iptables", "ip6tables"):
        assert other in run(command, "-w", "-S")


def policies() -> list[str]:
    """Return what FORWARD does with what nobody accepts, IPv4 and IPv6."""
    return [run(command, "-w", "-S", "FORWARD").split()[2] for command in COMMANDS.values()]


@pytest.mark.usefixtures("way")
def test_whoever_turns_forwarding_on_sets_the_policy(linux: LinuxKernel) -> None:
    linux.ensure_forwarding(6)
    assert policies() == ["ACCEPT", "DROP"]
    linux.ensure_forwarding(4)
    assert policies() == ["DROP", "DROP"]


@pytest.mark.usefixtures("way")
def test_a_host_that_forwards_keeps_its_policy(linux: LinuxKernel) -> None:
    for version in (4, 6):
        for key in FORWARDING[version]:
            run("sysctl", "-w", f"{key}=1")
        linux.ensure_forwarding(version)
    assert policies() == ["ACCEPT", "ACCEPT"]


@pytest.mark.usefixtures("way")
def test_the_operator_may_want_no_policy() -> None:
    kernel = LinuxKernel(drops_forwarded=False)
    kernel.ensure_forwarding(6)
    kernel.close()
    assert policies() == ["ACCEPT", "ACCEPT"]


@pytest.mark.usefixtures("way")
def test_a_policy_without_forwarding_is_taken_back(
    linux: LinuxKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = sysctl.write

    def refuse(key: str, value: str) -> None:
        if key == FORWARDING[6][-1]:
            raise KernelError("read-only")
        write(key, value)

    monkeypatch.setattr(sysctl, "write", refuse)
    with pytest.raises(KernelError, match="read-only"):
        linux.ensure_forwarding(6)
    assert policies() == ["ACCEPT", "ACCEPT"]
    assert [sysctl.read(key) for key in FORWARDING[6]] == ["0", "0"]


def test_the_older_iptables_is_given_the_policy_where_the_host_uses_it(
    linux: LinuxKernel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for command in COMMANDS.values():
        legacy = shutil.which(command.replace("tables", "tables-legacy"))
        assert legacy is not None
        (tmp_path / command).symlink_to(legacy)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    linux.ensure_forwarding(6)
    assert run("ip6tables-legacy", "-w", "-S", "FORWARD") == "-P FORWARD DROP\n"


def test_rules_that_are_out_of_reach_are_told_of(
    linux: LinuxKernel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(iptables, "is_installed", lambda: False)
    linux.ensure_forward_accept(MARK)
    assert caplog.text == ""
    run("iptables-legacy", "-w", "-P", "FORWARD", "DROP")
    linux.ensure_forward_accept(MARK)
    assert "this host has rules of the older iptables" in caplog.text


def test_what_iptables_refuses_is_passed_on(
    linux: LinuxKernel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "iptables"
    broken.write_text("#!/bin/sh\necho 'Permission denied (you must be root)' >&2; exit 4\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KernelError, match="you must be root"):
        linux.ensure_forward_accept(MARK)


@pytest.mark.parametrize("verb", ["ensure", "has", "delete"])
def test_what_cannot_be_looked_at_for_the_lock_of_iptables_is_not_taken_for_absent(
    linux: LinuxKernel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, verb: str
) -> None:
    lock = tmp_path / "xtables.lock"
    monkeypatch.setenv("XTABLES_LOCKFILE", str(lock))
    for command in COMMANDS.values():
        legacy = shutil.which(command.replace("tables", "tables-legacy"))
        assert legacy is not None
        (tmp_path / command).symlink_to(legacy)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    linux.ensure_forward_accept(MARK)
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        commands = Mock(wraps=iptables._execute)
        monkeypatch.setattr(iptables, "_execute", commands)
        with pytest.raises(KernelError, match="xtables lock"):
            getattr(linux, f"{verb}_forward_accept")(MARK)
        assert commands.call_count == 1, "another command has waited after the first"
    assert linux.has_forward_accept(MARK)
    linux.delete_forward_accept(MARK)
    assert not linux.has_forward_accept(MARK)


def test_a_policy_that_cannot_be_read_is_not_changed(
    linux: LinuxKernel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One that was taken for ACCEPT would be put back as that, and open the host."""
    broken = tmp_path / "iptables"
    broken.write_text("#!/bin/sh\necho 'cannot tell' >&2; exit 4\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KernelError, match="-S FORWARD: cannot tell"):
        linux.ensure_forwarding(4)
    assert linux.observe_host([]).forward_policies.get(4) is None


@pytest.mark.parametrize("key", ["tcp . 1", "no such protocol . 1"])
def test_what_nft_refuses_is_a_sentence_and_the_script_is_in_the_log(
    key: str, caplog: pytest.LogCaptureFixture
) -> None:
    nft = Nft()
    elements = ", ".join(f"{key}{number:03}" for number in range(1000))
    with pytest.raises(KernelError) as refusal:
        nft.run(f"add element inet pynet nothing {{ {elements} }}\n")
    assert str(refusal.value).startswith("change the firewall: ")
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400
    assert f"{key}999" in caplog.text
    nft.close()


def test_the_rule_of_one_way_is_known_to_the_other(
    linux: LinuxKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    linux.ensure_forward_accept(MARK)
    before = rules("iptables", "FORWARD"), rules("ip6tables", "FORWARD")
    assert all(map(len, before))
    monkeypatch.setattr(iptables, "is_installed", lambda: False)
    linux.ensure_forward_accept(MARK)
    assert (rules("iptables", "FORWARD"), rules("ip6tables", "FORWARD")) == before
    linux.delete_forward_accept(MARK)
    assert rules("iptables", "FORWARD") == rules("ip6tables", "FORWARD") == []
    linux.ensure_forward_accept(MARK)
    monkeypatch.undo()
    linux.delete_forward_accept(MARK)
    assert rules("iptables", "FORWARD") == rules("ip6tables", "FORWARD") == []
