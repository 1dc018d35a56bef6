// The panel beside the map: all that is known of one container, network or uplink.
"use strict";

/** Return an element; what is said in it is text, whoever chose it. */
function element(kind, classes, text, attributes = {}) {
  const made = document.createElement(kind);
  if (classes) made.className = classes;
  if (text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function lines(title, texts, none) {
  const list = element("ul");
  for (const each of texts) {
    if (each instanceof Node) list.append(each);
    else list.append(element("li", "", each));
  }
  if (!texts.length) list.append(element("li", "soft", none));
  return [element("h3", "", title), list];
}

function faultsOf(map, names) {
  const own = map.faults.filter((fault) => fault.where.some((each) => names.includes(each)));
  return own.flatMap((fault) => [
    element("p", fault.state === "fault" ? "bad" : "odd", fault.text),
    ...(fault.remedy ? [element("p", "mono soft", fault.remedy)] : []),
  ]);
}

function commandLine(command) {
  const box = element("div", "command");
  const code = element("code", "", command);
  const button = element("button", "copy", "Copy the capture command", { type: "button" });
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(command);
      button.textContent = "Copied";
    } catch {
      // A browser that gives no clipboard to a page: select it, then it is one key.
      getSelection().selectAllChildren(code);
      button.textContent = "Selected: press Ctrl-C";
    }
  });
  box.append(code, button);
  return box;
}

function describeContainer(map, container, marked) {
  const pairs = [...map.bridges.flatMap((bridge) => bridge.pairs.map((pair) => ({ pair, bridge }))),
    ...map.loose.map((pair) => ({ pair, bridge: null }))]
    .filter(({ pair }) => pair.container === container.name);
  const interfaces = pairs.map(({ pair, bridge }) => {
    const item = element("li");
    const where = bridge ? `on ${bridge.network || bridge.name}` : "on no bridge";
    item.append(element("strong", "", `${pair.interface} ═ ${pair.end || "gone"}`));
    item.append(` ${where}${pair.is_up ? "" : ", down"}`);
    if (pair.end && pair.end === marked) item.setAttribute("aria-current", "true");
    for (const each of pair.addresses) item.append(element("br"), each);
    if (pair.mac) item.append(element("br"), pair.mac);
    return item;
  });
  const { inside } = container;
  const parts = [...lines("Interfaces and addresses", interfaces, "none"),
    ...lines("Ports", container.ports.map((port) => port.text), "none is open")];
  if (inside === undefined) return [...parts, element("p", "soft", "Looking into it …")];
  if (inside === null) return [...parts, element("p", "soft", "Its namespace could not be looked at.")];
  const parameters = inside.parameters.map(({ key, value, new: other }) => {
    const item = element("li", "", `${key} = ${value} `);
    item.append(element("span", "was", `(new: ${other})`));
    return item;
  });
  return [...parts,
    ...lines("Routes", inside.routes, "none"),
    ...lines("Neighbours", inside.neighbours, "it has asked for nobody"),
    ...lines("Sockets that listen", inside.sockets, "none"),
    ...lines("Parameters that differ from a new namespace's", parameters, "none")];
}

function describeBridge(map, bridge, choose) {
  const members = bridge.pairs.map((pair) => {
    const item = element("li");
    const button = element("button", "mono", pair.container, { type: "button" });
    button.addEventListener("click", () => choose("container", pair.container, pair.end));
    item.append(button, ` ${pair.interface} ═ ${pair.end} ${pair.addresses.join(" ")}`);
    return item;
  });
  const state = [bridge.is_up ? "up" : "down", ...(bridge.is_internal ? ["internal"] : [])];
  return [...lines("Bridge", [`${bridge.name}, ${state.join(", ")}`], ""),
    ...lines("Subnets", bridge.subnets, "none"),
    ...lines("Parameters of the network", bridge.sysctls, "none"),
    ...lines("On it", members, "nobody")];
}

/** Return what the panel shows of a choice; null if that is gone. */
function describe(map, choice, choose) {
  if (choice.kind === "container") {
    const container = map.containers.find(({ name }) => name === choice.name);
    if (!container) return null;
    return [element("h2", "", container.name), ...faultsOf(map, [container.name]),
      element("h3", "", "Its packets"), commandLine(container.capture),
      ...describeContainer(map, container, choice.end)];
  }
  if (choice.kind === "network") {
    const bridge = map.bridges.find(({ name }) => name === choice.name);
    if (!bridge) return null;
    const driver = bridge.driver ? `network of ${bridge.driver}` : "no network of Docker's";
    return [element("h2", "", bridge.network || bridge.name), element("p", "soft", driver),
      ...faultsOf(map, [bridge.name]), ...describeBridge(map, bridge, choose)];
  }
  const uplink = map.uplinks.find(({ name }) => name === choice.name);
  if (!uplink) return null;
  const words = [uplink.is_up ? "up" : "down", `MTU ${uplink.mtu}`];
  if (uplink.leads_out) words.push("default route");
  return [element("h2", "", uplink.name), element("p", "soft", words.join(", ")),
    ...faultsOf(map, [uplink.name]), ...lines("Addresses", uplink.addresses, "none")];
}
