// What the map holds, in the shape that it is drawn in: groups, matches, numbers. Draws nothing.
"use strict";

const FOLD_FROM = 40; // more boxes than these are folded by network

/** Return a group for each bridge, those with nobody on them last, then one of what is on none. */
function groupsOf(map) {
  const groups = map.bridges.map((bridge) => ({
    key: bridge.name, title: bridge.network || bridge.name, bridge, pairs: bridge.pairs,
  }));
  groups.sort((one, two) => (one.pairs.length === 0) - (two.pairs.length === 0));
  if (map.loose.length) {
    groups.push({ key: "", title: "on no bridge", bridge: null, pairs: map.loose });
  }
  return groups;
}

/** Return whether there are so many boxes that networks begin folded. */
function isMuch(map) {
  return map.containers.length + map.bridges.length + map.uplinks.length > FOLD_FROM;
}

/** Return the groups with only those pairs that every word of a search is found at. */
function search(groups, containers, text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return groups;
  const has = (texts) => {
    const all = texts.filter(Boolean).join("\n").toLowerCase();
    return words.every((word) => all.includes(word));
  };
  const found = [];
  for (const group of groups) {
    const { bridge } = group;
    const shared = bridge ? [bridge.network, bridge.name, ...bridge.subnets, ...bridge.sysctls] : [];
    const pairs = group.pairs.filter((pair) => {
      const { ports } = containers.get(pair.container) || { ports: [] };
      const own = [pair.container, pair.interface, pair.end, pair.mac, ...pair.addresses];
      return has([...shared, ...own, ...ports.map((port) => port.text)]);
    });
    if (pairs.length || has(shared)) found.push({ ...group, pairs });
  }
  return found;
}

/** Return a container's ports as short lines: the same port of IPv4 and of IPv6 is one. */
function portLines(ports) {
  const lines = new Map();
  for (const port of ports) {
    const key = `${port.number}/${port.protocol}`;
    const line = lines.get(key) || { key, hosts: [], listener: port.listener, address: port.address };
    const host = port.host && port.host.replace(/^(0\.0\.0\.0|\[::\]):/, "");
    if (host && !line.hosts.includes(host)) line.hosts.push(host);
    lines.set(key, line);
  }
  return [...lines.values()].map(({ key, hosts, listener, address }) => {
    const process = listener ? listener.replace(/ \(pid \d+\)$/, "") : "nothing listens";
    const isLocal = address && /^(127\.|\[::1\])/.test(address);
    return {
      text: `${hosts.length ? `${hosts.join(", ")} → ` : ""}${key}  ${process}${isLocal ? ", loopback only" : ""}`,
      isOpen: hosts.length > 0, isOdd: !listener,
    };
  });
}

/** Return the rates of each interface from two answers, in bytes a second. */
function ratesOf(before, now) {
  const rates = new Map();
  const seconds = before ? now.at - before.at : 0;
  if (seconds <= 0) return rates;
  for (const [name, [into, out]] of Object.entries(now.traffic)) {
    const last = before.traffic[name];
    if (!last) continue;
    // A counter that is less than it was is another interface's.
    const rate = (value, old) => (value < old ? 0 : (value - old) / seconds);
    rates.set(name, { into: rate(into, last[0]), out: rate(out, last[1]) });
  }
  return rates;
}

/** Return a rate in a few letters. */
function rateText(rate) {
  let value = rate;
  for (const unit of ["B/s", "kB/s", "MB/s"]) {
    if (value < 999.5) return `${value < 9.95 && unit !== "B/s" ? value.toFixed(1) : Math.round(value)} ${unit}`;
    value /= 1000;
  }
  return `${value.toFixed(1)} GB/s`;
}

/** Return a number with the word for what it counts. */
function count(number, word) {
  return `${number} ${word}${number === 1 ? "" : "s"}`;
}
