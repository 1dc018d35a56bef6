"""Decode and encode the calls of Docker's remote network driver protocol.

The only place that spells the keys of the wire. Everything that comes out of a `decode_` is typed
and validated; whatever is malformed raises InvalidRequest and says where.
"""

from __future__ import annotations

from ipaddress import (
    IPv4Interface,
    IPv6Interface,
    ip_address,
    ip_interface,
    ip_network,
)
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec

from driver.driver import NewEndpoint, NewJoin, NewPorts
from driver.errors import InvalidRequest
from driver.model import (
    Network,
    Pool,
    PortRequest,
    Protocol,
    SandboxKey,
    has_zone,
    parse_endpoint_id,
    parse_mac,
    parse_network_id,
    short,
)
from driver.options import (
    parse_endpoint_ifname,
    parse_endpoint_options,
    parse_endpoint_sysctls,
    parse_engine_sysctls,
    parse_network_options,
    skips_gateway,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from driver.model import (
        Endpoint,
        EndpointId,
        IPAddress,
        IPInterface,
        IPNetwork,
        JoinInfo,
        NetworkId,
    )

    Payload = Mapping[str, Any]

INTERNAL = "com.docker.network.internal"
GENERIC = "com.docker.network.generic"
SANDBOX_KEY_LENGTH = 4095  # PATH_MAX less the closing NUL

# Engines 28 and 29 set it for a container's way out by IPv4 if another one is there for IPv6.
NO_PROXY_6TO4 = "com.docker.network.driver.private.no_proxy_6to4"
PORT_MAP = "com.docker.network.portmap"
PROTOCOLS = {6: Protocol.TCP, 17: Protocol.UDP, 132: Protocol.SCTP}  # IANA protocol numbers

T = TypeVar("T")
PortNumber = Annotated[int, msgspec.Meta(ge=0, le=65535)]


class _Pool(msgspec.Struct, rename="pascal"):
    """One entry of IPv4Data or IPv6Data."""

    pool: str
    gateway: str | None = None
    address_space: str | None = None
    aux_addresses: dict[str, str] | None = None


class _CreateNetwork(msgspec.Struct, kw_only=True):
    network_id: str = msgspec.field(name="NetworkID")
    options: dict[str, Any] | None = msgspec.field(name="Options", default=None)
    ipv4: list[_Pool] | None = msgspec.field(name="IPv4Data", default=None)
    ipv6: list[_Pool] | None = msgspec.field(name="IPv6Data", default=None)


class _GwAllocCheck(msgspec.Struct, rename="pascal"):
    options: dict[str, Any] | None = None


class _NetworkCall(msgspec.Struct):
    network_id: str = msgspec.field(name="NetworkID")


class _EndpointCall(msgspec.Struct):
    network_id: str = msgspec.field(name="NetworkID")
    endpoint_id: str = msgspec.field(name="EndpointID")


class _Interface(msgspec.Struct, rename="pascal"):
    address: str | None = None
    address_ipv6: str | None = msgspec.field(name="AddressIPv6", default=None)
    mac_address: str | None = None


class _CreateEndpoint(_EndpointCall, kw_only=True):
    interface: _Interface | None = msgspec.field(name="Interface", default=None)
    options: dict[str, Any] | None = msgspec.field(name="Options", default=None)


class _Join(_EndpointCall, kw_only=True):
    sandbox_key: str = msgspec.field(name="SandboxKey")
    options: dict[str, Any] | None = msgspec.field(name="Options", default=None)


class _ExternalConnectivity(_EndpointCall, kw_only=True):
    options: dict[str, Any] | None = msgspec.field(name="Options", default=None)


class _PortBinding(msgspec.Struct, rename="pascal"):
    """One entry of the port map. `HostPort` 0 leaves the choice; the engine omits nothing."""

    proto: int
    port: PortNumber
    host_ip: str | None = msgspec.field(name="HostIP", default=None)
    host_port: PortNumber = 0
    host_port_end: PortNumber = 0


class _Discovery(msgspec.Struct):
    kind: int = msgspec.field(name="DiscoveryType")
    data: dict[str, Any] | None = msgspec.field(name="DiscoveryData", default=None)


def parse_body(body: bytes) -> Payload:
    """Return the JSON object that is a call's body. Raises InvalidRequest."""
    if not body:
        raise InvalidRequest(
            "the request has no body: a connection broke, and the engine repeated the call "
            "without it"
        )
    try:
        call: Payload = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the request's body is malformed: {error}") from error
    return call


def describe_subject(call: Payload) -> str:
    """Return which network and endpoint a call is about, for the log, whatever it says."""
    found = {"network": call.get("NetworkID"), "endpoint": call.get("EndpointID")}
    return "".join(
        f" {kind}={ascii(short(identity))[1:-1]}"
        for kind, identity in found.items()
        if identity and isinstance(identity, str)
    )


def decode_create_network(call: Payload) -> Network:
    """Return the network that CreateNetwork defines."""
    fields = _convert(call, _CreateNetwork)
    network_id = parse_network_id(fields.network_id)
    options = fields.options or {}
    ipv4 = tuple(_parse_pool(pool, 4) for pool in fields.ipv4 or ())
    ipv6 = tuple(_parse_pool(pool, 6) for pool in fields.ipv6 or ())
    if not ipv4 and not ipv6:
        raise InvalidRequest("the network has neither an IPv4 nor an IPv6 pool")
    return Network(
        id=network_id,
        pools=ipv4 + ipv6,
        options=parse_network_options(
            _decode_generic(options),
            internal=_decode_flag(options, INTERNAL),
            has_ipv4=bool(ipv4),
            has_ipv6=bool(ipv6),
        ),
    )


def decode_gw_alloc_check(call: Payload) -> tuple[bool, bool]:
    """Return, for IPv4 and IPv6, whether the network to be made needs no gateway address."""
    options = _convert(call, _GwAllocCheck).options or {}
    return skips_gateway(_decode_generic(options), internal=_decode_flag(options, INTERNAL))


def encode_gw_alloc_check(skips: tuple[bool, bool]) -> dict[str, Any]:
    """Return the answer to GwAllocCheck."""
    return {"SkipIPv4": skips[0], "SkipIPv6": skips[1]}


def decode_network_call(call: Payload) -> NetworkId:
    """Return the network that DeleteNetwork names."""
    return parse_network_id(_convert(call, _NetworkCall).network_id)


def decode_create_endpoint(call: Payload) -> NewEndpoint:
    """Return the endpoint that CreateEndpoint asks for."""
    fields = _convert(call, _CreateEndpoint)
    interface = fields.interface or _Interface()
    options = fields.options or {}
    return NewEndpoint(
        id=parse_endpoint_id(fields.endpoint_id),
        network_id=parse_network_id(fields.network_id),
        ipv4=_parse_ipv4(interface.address),
        ipv6=_parse_ipv6(interface.address_ipv6),
        mac=parse_mac(interface.mac_address) if interface.mac_address else None,
        sysctls=parse_endpoint_sysctls(options),
        engine_keys=parse_engine_sysctls(options),
        ifname=parse_endpoint_ifname(options),
        options=parse_endpoint_options(options),
    )


def encode_create_endpoint(new: NewEndpoint, endpoint: Endpoint) -> dict[str, Any]:
    """Return the answer to CreateEndpoint.

    A field that the request filled must not be answered, not even with the same value: libnetwork
    takes that for a modification and fails the start.
    """
    return {} if new.mac is not None else {"Interface": {"MacAddress": endpoint.mac}}


def decode_endpoint_call(call: Payload) -> tuple[NetworkId, EndpointId]:
    """Return the network and endpoint that a call names."""
    fields = _convert(call, _EndpointCall)
    return parse_network_id(fields.network_id), parse_endpoint_id(fields.endpoint_id)


def decode_external_connectivity(call: Payload) -> NewPorts:
    """Return the network, the endpoint and the ports that it is to publish."""
    fields = _convert(call, _ExternalConnectivity)
    options = fields.options or {}
    return NewPorts(
        network_id=parse_network_id(fields.network_id),
        endpoint_id=parse_endpoint_id(fields.endpoint_id),
        requests=_decode_port_map(options),
        only_ipv4=_decode_flag(options, NO_PROXY_6TO4),
    )


def decode_join(call: Payload) -> NewJoin:
    """Return the network, the endpoint and the sandbox of a Join, and whether it has ports."""
    fields = _convert(call, _Join)
    key = fields.sandbox_key
    is_path = key.startswith("/") and key.isprintable() and len(key) <= SANDBOX_KEY_LENGTH
    if not is_path or ".." in key.split("/"):
        raise InvalidRequest(f"SandboxKey {key[:80]!r} is no absolute path")
    return NewJoin(
        network_id=parse_network_id(fields.network_id),
        endpoint_id=parse_endpoint_id(fields.endpoint_id),
        sandbox=SandboxKey(key),
        has_ports=bool(_decode_port_map(fields.options or {})),
    )


def encode_join(info: JoinInfo) -> dict[str, Any]:
    """Return the answer to Join."""
    answer: dict[str, Any] = {
        "Gateway": _encode_address(info.gateway),
        "GatewayIPv6": _encode_address(info.gateway_ipv6),
    }
    if info.sandbox_end is not None:
        answer["InterfaceName"] = {"SrcName": info.sandbox_end, "DstPrefix": info.ifname_prefix}
        if info.ifname is not None:  # engines before 29.8 do not look at it
            answer["InterfaceName"]["DstName"] = info.ifname
    return answer


def decode_discovery(call: Payload) -> None:
    """Check the form of DiscoverNew and DiscoverDelete; a local driver has no use for them."""
    _convert(call, _Discovery)


def _convert(call: Payload, shape: type[T]) -> T:
    try:
        return msgspec.convert(call, shape)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"the request's body is malformed: {error}") from error


def _decode_generic(options: dict[str, Any]) -> dict[str, str]:
    """Return what `-o` gave; the engine sends every value as a string."""
    generic = options.get(GENERIC) or {}
    if not isinstance(generic, dict):
        raise InvalidRequest(f"{GENERIC}: expected an object")
    for key, value in generic.items():
        if not isinstance(value, str):
            raise InvalidRequest(f"option {key[:200]!r}: expected a string")
    return generic


def _decode_flag(options: dict[str, Any], key: str) -> bool:
    value = options.get(key, False)
    if not isinstance(value, bool):
        raise InvalidRequest(f"{key}: expected true or false")
    return value


def _decode_port_map(options: dict[str, Any]) -> tuple[PortRequest, ...]:
    entries = options.get(PORT_MAP) or []
    try:
        decoded = msgspec.convert(entries, list[_PortBinding])
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"{PORT_MAP}: {error}") from error
    return tuple(map(_parse_port_request, decoded))


def _parse_port_request(entry: _PortBinding) -> PortRequest:
    protocol = PROTOCOLS.get(entry.proto)
    if protocol is None or entry.port == 0:
        raise InvalidRequest(f"publish port {entry.port} of protocol {entry.proto}: not possible")
    last = entry.host_port_end or entry.host_port
    if last < entry.host_port:
        raise InvalidRequest(f"publish on {entry.host_port}-{last}: ends before it starts")
    return PortRequest(
        protocol=protocol,
        container_port=entry.port,
        host_ip=_parse_host_ip(entry.host_ip) if entry.host_ip else None,
        first=entry.host_port,
        last=last,
    )


def _parse_host_ip(text: str) -> IPAddress:
    try:
        address = ip_address(text)
    except ValueError as error:
        raise InvalidRequest(f"publish on {text[:80]!r}: {error}") from error
    if has_zone(address):
        raise InvalidRequest(f"publish on {text[:80]!r}: a zone has no meaning here")
    return address


def _parse_pool(pool: _Pool, version: int) -> Pool:
    subnet = _parse_subnet(pool.pool, version)
    gateway = _parse_interface(pool.gateway, version) if pool.gateway else None
    if gateway is not None and gateway.ip not in subnet:
        raise InvalidRequest(f"gateway {gateway} is not in the pool {subnet}")
    aux = (pool.aux_addresses or {}).get(f"DefaultGatewayIPv{version}")
    default_gateway = _parse_interface(aux, version).ip if aux else None
    if default_gateway is not None and default_gateway not in subnet:
        raise InvalidRequest(f"DefaultGatewayIPv{version} {aux} is not in the pool {subnet}")
    return Pool(subnet, gateway, pool.address_space or "", default_gateway)


def _parse_subnet(text: str, version: int) -> IPNetwork:
    try:
        subnet = ip_network(text)
    except ValueError as error:
        raise InvalidRequest(f"pool {text[:80]!r}: {error}") from error
    if subnet.version != version:
        raise InvalidRequest(f"pool {text[:80]!r}: expected IPv{version}")
    if has_zone(subnet.network_address):
        raise InvalidRequest(f"pool {text[:80]!r}: a zone has no meaning here")
    return subnet


def _parse_interface(text: str, version: int) -> IPInterface:
    try:
        address = ip_interface(text)
    except ValueError as error:
        raise InvalidRequest(f"address {text[:80]!r}: {error}") from error
    if address.version != version or "/" not in text:
        raise InvalidRequest(f"address {text[:80]!r}: expected IPv{version} with a prefix length")
    if has_zone(address):
        raise InvalidRequest(f"address {text[:80]!r}: a zone has no meaning here")
    return address


def _parse_ipv4(text: str | None) -> IPv4Interface | None:
    return IPv4Interface(_parse_interface(text, 4)) if text else None


def _parse_ipv6(text: str | None) -> IPv6Interface | None:
    return IPv6Interface(_parse_interface(text, 6)) if text else None


def _encode_address(address: IPAddress | None) -> str:
    return "" if address is None else str(address)
