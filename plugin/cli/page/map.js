// Draws the map, and keeps it current: of a page that is served it asks again each second.
"use strict";

const COLUMNS = { // left and width of each
  containers: [0, 244], pairs: [276, 236], networks: [620, 208], host: [868, 34], uplinks: [1002, 190],
};
const TOP = 48, GAP = 10, APART = 26, LINE = 18, PADDING = 16, PORTS = 4, SHORT = 28, REFRESH = 1000;
const SVG = "http://www.w3.org/2000/svg";

const byId = (id) => document.getElementById(id);
const board = byId("board"), details = byId("details"), field = byId("search");
const state = {
  map: null, version: null, last: null, rates: new Map(), age: null,
  folded: new Set(), isMuch: false, choice: null, insides: new Map(), error: null, isStatic: false,
};
const rateLabels = []; // what shows the rate of some interfaces, and the wire beside it

// -- drawing

/** Draw everything anew; what has the focus keeps it. */
function draw() {
  const focus = document.activeElement && document.activeElement.dataset.key;
  const { map } = state;
  const containers = new Map(map.containers.map((each) => [each.name, each]));
  const isSearch = field.value.trim() !== "";
  const groups = search(groupsOf(map), containers, field.value);
  board.replaceChildren();
  rateLabels.length = 0;
  const lists = {};
  for (const [name, title] of [["containers", "containers"], ["pairs", "pairs"], ["networks", "networks"], ["uplinks", "uplinks"]]) {
    board.append(place(element("h2", "head", title), COLUMNS[name][0], 16));
    lists[name] = element("ul", "", undefined, { "aria-label": title });
  }
  const wires = document.createElementNS(SVG, "svg");
  wires.setAttribute("aria-hidden", "true");
  board.append(wires, ...Object.values(lists));
  const drawn = { lists, wires, containers, seen: new Set(), faults: faultsByName(map) };
  let top = TOP;
  for (const group of groups) {
    const isFolded = !isSearch && group.pairs.length > 1 && state.folded.has(group.key);
    top = drawGroup(drawn, group, top, isFolded) + APART;
  }
  const bottom = Math.max(top - APART, drawUplinks(drawn, groups));
  drawHost(bottom);
  const width = COLUMNS.uplinks[0] + COLUMNS.uplinks[1];
  board.style.width = `${width}px`;
  board.style.height = `${bottom + APART}px`;
  wires.setAttribute("width", width);
  wires.setAttribute("height", bottom + APART);
  if (!groups.length) {
    const text = isSearch ? `Nothing has “${field.value.trim()}” in its name, addresses, interfaces or ports.`
      : "No network has a bridge on this host.";
    board.append(element("p", "nothing", text));
  }
  drawRates();
  drawStatus(isSearch ? drawn.seen.size : null);
  drawFaults();
  markChoice();
  if (focus) board.querySelector(`[data-key="${CSS.escape(focus)}"]`)?.focus({ preventScroll: true });
}

function place(node, left, top, width, height) {
  node.style.left = `${left}px`;
  node.style.top = `${top}px`;
  if (width) node.style.width = `${width}px`;
  if (height) node.style.height = `${height}px`;
  return node;
}

function wire(drawn, from, to, y, classes) {
  const line = document.createElementNS(SVG, "line");
  for (const [name, value] of Object.entries({ x1: from, x2: to, y1: y, y2: y })) line.setAttribute(name, value);
  line.setAttribute("class", `wire ${classes || ""}`.trim());
  drawn.wires.append(line);
  return line;
}

function right(column) {
  return COLUMNS[column][0] + COLUMNS[column][1];
}

/** Draw a box of lines, each a text with its classes; returns where it ends. */
function box(drawn, column, top, texts, options) {
  const height = PADDING + LINE * texts.length;
  const node = element("button", `box ${options.classes || ""}`, undefined, { type: "button", "aria-label": options.label });
  for (const [text, classes] of texts) node.append(element("span", classes, text, { title: text }));
  Object.assign(node.dataset, options.data);
  node.addEventListener("click", options.act);
  const item = element("li");
  item.append(place(node, COLUMNS[column][0], top, COLUMNS[column][1], height));
  drawn.lists[column].append(item);
  return top + height;
}

/** Draw a network with what is on it, from the top; returns where it ends. */
function drawGroup(drawn, group, top, isFolded) {
  let bottom = top;
  if (isFolded) bottom = drawFold(drawn, group, top);
  else {
    const members = new Map();
    for (const pair of group.pairs) members.set(pair.container, [...(members.get(pair.container) || []), pair]);
    for (const [name, pairs] of members) bottom = drawMember(drawn, group, name, pairs, bottom) + GAP;
    if (members.size) bottom -= GAP;
  }
  if (!group.bridge) return bottom;
  bottom = Math.max(bottom, top + drawNetwork(drawn, group, top, bottom, isFolded));
  return bottom;
}

function drawMember(drawn, group, name, pairs, top) {
  const isFirst = !drawn.seen.has(name);
  drawn.seen.add(name);
  const act = (end) => () => choose("container", name, end);
  const wrong = drawn.faults.has(name) ? "wrong" : "";
  let below = top;
  const ports = isFirst ? portLines((drawn.containers.get(name) || { ports: [] }).ports) : [];
  const shown = ports.slice(0, PORTS).map((port) => [port.text, `tiny ${port.isOdd ? "odd" : port.isOpen ? "" : "soft"}`]);
  if (ports.length > PORTS) shown.push([`and ${ports.length - PORTS} more`, "tiny soft"]);
  const texts = isFirst ? [[name, "name"], ...shown] : [[`${name}, as above`, "soft"]];
  below = box(drawn, "containers", top, texts, {
    classes: isFirst ? wrong : "again", act: act(pairs[0].end), label: `container ${name}`,
    data: { key: `c ${name} ${group.key}`, name, kind: isFirst ? "container" : "again" },
  });
  let next = top;
  for (const pair of pairs) {
    const middle = next + PADDING / 2 + LINE / 2;
    const end = pair.end || "other end gone";
    const lines = [[`${pair.interface} ═ ${end}${pair.is_up ? "" : "  down"}`, `mono ${pair.is_up && pair.end ? "" : "bad"}`]];
    for (const address of pair.addresses) lines.push([address, "mono soft"]);
    const isWrong = !pair.is_up || !group.bridge || drawn.faults.has(pair.end);
    const after = box(drawn, "pairs", next, lines, {
      classes: isWrong ? "wrong" : "", act: act(pair.end), label: `${pair.interface} of ${name}, host end ${end}`,
      data: { key: `p ${name} ${pair.interface} ${pair.end}`, name: pair.end || "", kind: "pair", container: name, interface: pair.interface, bridge: group.key },
    });
    wire(drawn, right("containers"), COLUMNS.pairs[0], Math.min(middle, below - 10), isWrong ? "wrong" : "");
    if (group.bridge) drawFlow(drawn, right("pairs"), COLUMNS.networks[0], middle, [pair.end], isWrong);
    next = after + GAP;
  }
  return Math.max(below, next - GAP);
}

/** Draw a wire with the rate on it. */
function drawFlow(drawn, from, to, y, names, isWrong) {
  const line = wire(drawn, from, to, y, isWrong ? "wrong" : "");
  const above = place(element("p", "rate"), from, y - 17, to - from);
  const under = place(element("p", "rate"), from, y + 2, to - from);
  board.append(above, under);
  rateLabels.push({ names, line, above, under });
}

function drawFold(drawn, group, top) {
  const names = [...new Set(group.pairs.map((pair) => pair.container))];
  for (const name of names) drawn.seen.add(name);
  const wrong = names.filter((name) => drawn.faults.has(name));
  const act = () => fold(group.key, false);
  const texts = [[count(names.length, "container"), "name"], [names.join(", "), "tiny soft"]];
  if (wrong.length) texts.push([`wrong: ${wrong.join(", ")}`, "tiny bad"]);
  const middle = top + PADDING / 2 + LINE / 2;
  const below = box(drawn, "containers", top, texts, {
    classes: `fold ${wrong.length ? "wrong" : ""}`, act, label: `${count(names.length, "container")} on ${group.title}, unfold`,
    data: { key: `f ${group.key}`, name: group.title, kind: "fold" },
  });
  box(drawn, "pairs", top, [[count(group.pairs.length, "pair"), ""], ["click to unfold", "tiny soft"]], {
    classes: "fold", act, label: `${count(group.pairs.length, "pair")} on ${group.title}, unfold`,
    data: { key: `g ${group.key}`, name: group.title, kind: "fold" },
  });
  wire(drawn, right("containers"), COLUMNS.pairs[0], middle);
  if (group.bridge) drawFlow(drawn, right("pairs"), COLUMNS.networks[0], middle, group.pairs.map((pair) => pair.end), false);
  return below;
}

/** Draw a network beside its pairs; returns the height that it needs. */
function drawNetwork(drawn, group, top, bottom, isFolded) {
  const { bridge } = group;
  const isDown = group.pairs.length > 0 && !bridge.is_up;
  const texts = [[group.title, "name"], [bridge.network ? bridge.name : "no network", "mono soft"]];
  for (const subnet of bridge.subnets) texts.push([subnet, "mono soft"]);
  for (const each of bridge.sysctls) {
    const [key, value] = each.split(/=(.*)/);
    if (each.length <= SHORT) texts.push([`${key} = ${value}`, "tiny"]);
    else texts.push([key, "tiny"], [`  = ${value}`, "tiny"]);
  }
  if (bridge.is_internal) texts.push(["internal", "tiny soft"]);
  if (isDown) texts.push(["down", "bad"]);
  if (!bridge.pairs.length) texts.push(["nobody on it", "tiny soft"]);
  else if (isFolded) texts.push([count(bridge.pairs.length, "interface"), "tiny soft"]);
  const height = PADDING + LINE * texts.length;
  const whole = Math.max(height, bottom - top);
  const stay = element("button", "stay", undefined, { type: "button", "aria-label": `network ${group.title}` });
  for (const [text, classes] of texts) stay.append(element("span", classes, text, { title: text }));
  stay.dataset.key = `n ${group.key}`;
  stay.addEventListener("click", () => choose("network", bridge.name));
  const isWrong = isDown || drawn.faults.has(bridge.name);
  const node = element("div", `box network ${isWrong ? "wrong" : ""} ${bridge.pairs.length ? "" : "quiet"}`);
  Object.assign(node.dataset, { kind: "network", name: group.title, bridge: bridge.name });
  node.append(stay);
  const item = element("li");
  item.append(place(node, COLUMNS.networks[0], top, COLUMNS.networks[1], whole));
  drawn.lists.networks.append(item);
  if (!bridge.is_internal && bridge.pairs.length) wire(drawn, right("networks"), COLUMNS.host[0], top + 17, isDown ? "wrong" : "");
  return height;
}

function drawUplinks(drawn, groups) {
  let top = TOP;
  if (!groups.length) return top;
  for (const uplink of state.map.uplinks) {
    const texts = [[uplink.name, "name"], ...uplink.addresses.map((each) => [each, "mono soft"])];
    if (uplink.leads_out) texts.push([`default route, MTU ${uplink.mtu}`, "tiny soft"]);
    if (!uplink.is_up) texts.push(["down", "bad"]);
    const isWrong = (!uplink.is_up && uplink.leads_out) || drawn.faults.has(uplink.name);
    drawFlow(drawn, right("host"), COLUMNS.uplinks[0], top + PADDING / 2 + LINE / 2, [uplink.name], isWrong);
    top = GAP + box(drawn, "uplinks", top, texts, {
      classes: isWrong ? "wrong" : "", act: () => choose("uplink", uplink.name), label: `uplink ${uplink.name}`,
      data: { key: `u ${uplink.name}`, name: uplink.name, kind: "uplink" },
    });
  }
  return top - GAP;
}

function drawHost(bottom) {
  if (bottom <= TOP) return;
  const bar = place(element("div", "bar"), COLUMNS.host[0], TOP, COLUMNS.host[1], Math.max(bottom - TOP, 80));
  bar.append(element("span", "", "host"));
  board.append(bar);
}

function drawRates() {
  for (const { names, line, above, under } of rateLabels) {
    let into = 0, out = 0;
    for (const name of names) {
      const rate = state.rates.get(name);
      if (rate) { into += rate.into; out += rate.out; }
    }
    // The arrows point as the wire leads: containers are on the left, and so is what comes in.
    above.textContent = into >= 1 ? `← ${rateText(into)}` : "";
    under.textContent = out >= 1 ? `${rateText(out)} →` : "";
    const total = into + out;
    line.classList.toggle("flows", total >= 1);
    line.style.strokeWidth = total >= 1 ? String(Math.min(6, 1.5 + Math.max(0, Math.log10(total) - 3) * 0.75)) : "";
  }
}

function faultsByName(map) {
  const faults = map.faults.filter((fault) => fault.state === "fault");
  return new Set(faults.flatMap((fault) => fault.where));
}

/** Say what is wrong; what is only worth a look is said at the container. */
function drawFaults() {
  const panel = byId("faults");
  const faults = state.map.faults.filter((fault) => fault.state === "fault");
  const shown = faults.slice(0, 5);
  panel.hidden = !faults.length;
  panel.replaceChildren(...shown.map((fault) => {
    const line = element("button", "", undefined, { type: "button" });
    line.append(element("span", "text", fault.text), element("code", "remedy", fault.remedy || ""));
    line.addEventListener("click", () => show(fault.where));
    return line;
  }));
  if (faults.length > shown.length) {
    panel.append(element("p", "more", `and ${faults.length - shown.length} more: pynet doctor lists them`));
  }
}

function drawStatus(found) {
  const { map, isStatic, error } = state;
  const all = count(map.containers.length, "container");
  const parts = [found === null ? `${all}, ${count(map.bridges.length, "network")}` : `${found} of ${all}`];
  if (isStatic) parts.push(`as of ${map.time}`);
  else if (state.age > 15) parts.push(`looked at ${Math.round(state.age)} s ago`);
  for (const each of map.not_seen) parts.push(`not seen: ${each}`);
  byId("status").textContent = error || parts.join(" · ");
  byId("status").classList.toggle("stale", Boolean(error));
  byId("host").textContent = map.host;
  const button = byId("fold");
  button.hidden = !map.bridges.some((bridge) => bridge.pairs.length > 1);
  button.textContent = state.folded.size ? "Unfold all" : "Fold all";
}

// -- what is clicked and typed

function foldAll(map) {
  state.folded = new Set(groupsOf(map).filter((group) => group.pairs.length > 1).map((group) => group.key));
}

function fold(key, isFolded) {
  if (isFolded) state.folded.add(key);
  else state.folded.delete(key);
  draw();
  board.querySelector(`[data-bridge="${CSS.escape(key)}"]`)?.focus({ preventScroll: true });
}

/** Scroll to the first box of these names, unfolded. */
function show(names) {
  const { map } = state;
  field.value = "";
  for (const group of groupsOf(map)) {
    if (group.pairs.some((pair) => names.includes(pair.container) || names.includes(pair.end))) state.folded.delete(group.key);
  }
  draw();
  const boxes = [...board.querySelectorAll("[data-kind]")];
  const target = boxes.find(({ dataset }) => names.includes(dataset.name) || names.includes(dataset.bridge));
  target?.scrollIntoView({ block: "center" });
  const container = map.containers.find(({ name }) => names.includes(name));
  if (container) choose("container", container.name);
  else if (map.bridges.some(({ name }) => names.includes(name))) choose("network", names[0]);
}

async function choose(kind, name, end) {
  state.choice = { kind, name, end };
  drawDetails();
  details.focus({ preventScroll: true });
  if (kind === "container" && !state.isStatic) await lookInto(name);
}

/** Ask what a container's namespace holds. */
async function lookInto(name) {
  const container = state.map.containers.find((each) => each.name === name);
  if (!container) return;
  try {
    const answer = await ask(`container.json?name=${encodeURIComponent(name)}`);
    state.insides.set(name, answer.inside);
  } catch {
    state.insides.set(name, null);
  }
  container.inside = state.insides.get(name);
  if (state.choice && state.choice.name === name) drawDetails();
}

function drawDetails() {
  const parts = state.choice && describe(state.map, state.choice, choose);
  details.hidden = !parts;
  if (!parts) state.choice = null;
  else {
    const close = element("button", "close", "×", { type: "button", "aria-label": "Close" });
    close.addEventListener("click", closeDetails);
    details.replaceChildren(...parts, close);
  }
  markChoice();
}

function closeDetails() {
  const { choice } = state;
  state.choice = null;
  drawDetails();
  const boxes = [...board.querySelectorAll("button.box, .stay")];
  if (choice) boxes.find(({ dataset }) => dataset.name === choice.name)?.focus({ preventScroll: true });
}

function markChoice() {
  const { choice } = state;
  for (const node of board.querySelectorAll(".box")) {
    const { kind, name, container, bridge } = node.dataset;
    const isIt = choice && (choice.kind === "container" ? (kind === "container" || kind === "again") && name === choice.name || container === choice.name
      : kind === choice.kind && (name === choice.name || bridge === choice.name));
    node.classList.toggle("chosen", Boolean(isIt));
  }
}

field.addEventListener("input", draw);
byId("fold").addEventListener("click", () => {
  if (state.folded.size) state.folded.clear();
  else foldAll(state.map);
  draw();
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    if (state.choice) closeDetails();
    else if (field.value) { field.value = ""; draw(); }
  } else if (event.key === "/" && document.activeElement !== field) {
    event.preventDefault();
    field.select();
  } else if ((event.key === "ArrowDown" || event.key === "ArrowUp") && board.contains(document.activeElement)) {
    const list = document.activeElement.closest("ul");
    const buttons = list ? [...list.querySelectorAll("button")] : [];
    const next = buttons[buttons.indexOf(document.activeElement) + (event.key === "ArrowDown" ? 1 : -1)];
    if (next) { event.preventDefault(); next.focus(); }
  }
});

// -- where it comes from

async function ask(what) {
  const answer = await fetch(what, { cache: "no-store" });
  if (!answer.ok) throw new Error(`${answer.status}`);
  return answer.json();
}

/** Take a map to be shown: the first one decides whether networks begin folded. */
function take(map, version) {
  const isFirst = !state.map;
  state.map = map;
  state.version = version;
  for (const container of map.containers) {
    if (container.inside === undefined && state.insides.has(container.name)) container.inside = state.insides.get(container.name);
  }
  if (isFirst && isMuch(map)) foldAll(map);
  draw();
  if (state.choice) drawDetails();
}

async function refresh() {
  try {
    const answer = await ask(`map.json?have=${encodeURIComponent(state.version || "")}`);
    state.error = answer.error;
    state.age = answer.age;
    state.rates = ratesOf(state.last, answer);
    state.last = answer;
    if (answer.map) take(answer.map, answer.version);
  } catch {
    state.error = "pynet map no longer answers; what is shown is old";
    state.rates = new Map();
  }
  if (state.map) {
    drawRates();
    drawStatus(field.value.trim() ? new Set([...board.querySelectorAll("[data-kind=container]")].map(({ dataset }) => dataset.name)).size : null);
  } else byId("status").textContent = state.error || "looking …";
  setTimeout(refresh, document.hidden ? 5 * REFRESH : REFRESH);
}

const embedded = byId("data");
if (embedded) {
  state.isStatic = true;
  take(JSON.parse(embedded.textContent), null);
} else refresh();
