// The status page. Node names, versions and addresses are the words of strangers: they become text, and never markup.

const STATUS_MS = 2000; // no endpoint is asked more often
const ENDS_MS = 4000;
const HISTORY_MS = 10000;
const CLIENTS_PER_MS = 0.5; // 10,000 clients are 4 MB: asked every 20 s
const ANSWER_MS = 15000;
const RETRY_MS_MAX = 30000;
const STALE_MS = 6000;
const ROWS = 10;
const LAGS = [0.1, 1, 10, 60]; // seconds between the classes of the map
const LAG_NAMES = ["up to 0.1 s", "up to 1 s", "up to 10 s", "up to 1 min", "more than 1 min"];
const FRESH_SECONDS = 150; // a watch is confirmed about once a minute, and at least every 130 s

const find = (id) => document.getElementById(id);
const known = { status: null, clients: null, history: null, ends: null };
const view = { sort: "lag_seconds", descending: true, rows: ROWS, node: "", feed: "", cell: -1, allEnds: false, allKinds: false, paused: false };

// Text

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const minute = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });

function count(value) {
  return Number.isFinite(value) ? whole.format(value) : "–";
}

function plural(value, one, many = `${one}s`) {
  return `${count(value)} ${value === 1 ? one : many}`;
}

function significant(value) {
  return value >= 99.95 ? whole.format(value) : value >= 9.995 ? value.toFixed(1) : value.toFixed(value >= 0.9995 ? 1 : 2);
}

function bytes(value) {
  if (!Number.isFinite(value)) return "–";
  for (const [unit, size] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) if (value >= size) return `${significant(value / size)} ${unit}`;
  return `${whole.format(value)} B`;
}

function seconds(value) {
  if (!Number.isFinite(value)) return "–";
  if (value === 0) return "0 s";
  if (value < 0.9995) return value < 0.0005 ? "< 1 ms" : `${significant(value * 1000).replace(/\.00?$/, "")} ms`;
  if (value < 60) return `${value < 9.995 && value % 1 ? significant(value) : Math.round(value)} s`;
  if (value < 3600) return `${Math.floor(value / 60)} min ${Math.floor(value % 60)} s`;
  if (value < 86400) return `${Math.floor(value / 3600)} h ${Math.floor((value % 3600) / 60)} min`;
  return `${Math.floor(value / 86400)} d ${Math.floor((value % 86400) / 3600)} h`;
}

function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function make(name, className, text) {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function shape(name, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [attribute, value] of Object.entries(attributes)) element.setAttribute(attribute, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

function bar(part) {
  const svg = shape("svg", { class: "bar", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" });
  svg.append(shape("rect", { class: "whole", width: 100, height: 10 }), shape("rect", { class: "part", width: 100 * part, height: 10 }));
  return svg;
}

// Rows are changed in place: nothing flickers, and a selection or a screen reader's place in the table stays.
function fill(body, rows, nothing) {
  const width = body.parentElement.tHead.rows[0].cells.length;
  if (!rows.length) {
    const cell = make("td", "empty", nothing);
    cell.colSpan = width;
    const row = make("tr");
    row.append(cell);
    body.replaceChildren(row);
    return;
  }
  if (body.querySelector("[colspan]")) body.replaceChildren();
  while (body.rows.length > rows.length) body.deleteRow(-1);
  rows.forEach((cells, index) => {
    const row = body.rows[index] ?? body.insertRow();
    cells.forEach((content, column) => {
      const [text, className, part] = content;
      const cell = row.cells[column] ?? row.insertCell();
      if (cell.className !== className) cell.className = className;
      if (part === undefined) {
        put(cell, text);
        return;
      }
      if (!cell.firstElementChild) cell.replaceChildren(bar(0), document.createTextNode(""));
      cell.querySelector(".part").setAttribute("width", String(100 * part));
      if (cell.lastChild.data !== text) cell.lastChild.data = text;
    });
  });
}

// Asking the service

let failures = 0;
let answeredAt = 0;
let failure = "";
let asking = false;
const dueAt = { status: 0, clients: 0, history: 0, ends: 0 };
const paths = { status: "/v1/status", clients: "/v1/clients?sort=lag", history: "/v1/history", ends: "/v1/ends" };
const waits = {
  status: () => STATUS_MS,
  clients: () => Math.max(STATUS_MS, (known.clients?.clients.length ?? 0) / CLIENTS_PER_MS),
  history: () => HISTORY_MS,
  ends: () => ENDS_MS,
};

async function ask(name) {
  const begun = performance.now();
  const response = await fetch(paths[name], { signal: AbortSignal.timeout(ANSWER_MS), cache: "no-store", credentials: "omit" });
  if (!response.ok) throw new Error(`status ${response.status}`);
  known[name] = await response.json();
  const took = performance.now() - begun;
  dueAt[name] = performance.now() + Math.max(waits[name](), 10 * took); // a busy service is asked less
}

async function turn() {
  const now = performance.now();
  if (asking || document.hidden || view.paused) return;
  const due = Object.keys(dueAt).filter((name) => dueAt[name] <= now);
  if (!due.length) return;
  asking = true;
  try {
    for (const name of due) {
      await ask(name);
      answeredAt = Date.now();
      failures = 0;
      failure = "";
      show(name);
    }
  } catch (error) {
    failures += 1;
    failure = error.name === "TimeoutError" ? "no answer in time" : error.message.startsWith("status") ? error.message : "no connection";
    const retry = performance.now() + Math.min(RETRY_MS_MAX, STATUS_MS * 2 ** (failures - 1));
    for (const name of Object.keys(dueAt)) dueAt[name] = Math.max(dueAt[name], retry);
  } finally {
    asking = false;
    showFreshness();
  }
}

function showFreshness() {
  const age = Date.now() - answeredAt;
  const isStale = failures > 0 || (answeredAt > 0 && age > STALE_MS && !view.paused && !document.hidden && !asking);
  const outage = find("outage");
  if (isStale) {
    const since = answeredAt ? `Everything below is from ${clock.format(answeredAt)}, ${seconds(Math.round(age / 1000))} ago.` : "Nothing is known yet.";
    if (outage.hidden) {
      outage.replaceChildren(make("strong", "", "The service does not answer"), make("span"));
      outage.hidden = false;
    }
    put(outage.lastChild, `${failure || "no answer"}. ${since}`);
  } else {
    outage.hidden = true;
  }
  document.body.classList.toggle("stale", isStale);
  const text = view.paused ? `Paused; from ${clock.format(answeredAt)}` : answeredAt ? `Updated ${Math.max(0, Math.round(age / 1000))} s ago` : "Waiting for the first answer";
  put(find("freshness"), text);
}

// What is shown

function show(name) {
  if (name === "status") showStatus();
  if (name === "clients") {
    showFleet();
    showClients();
  }
  if (name === "history") showHistory();
  if (name === "ends") showEnds();
  if (known.status) showVerdict();
}

const STATUS_NAMES = { "in-sync": "good", resync: "warn", "wait-for-ready": "bad" };

function showStatus() {
  const { service, feeds, kinds } = known.status;
  put(find("pod"), service.pod);
  document.title = `typha ${service.pod}`;
  const workers = service.workers.length;
  put(find("tile-uptime"), seconds(service.now - service.started_at));
  put(find("note-uptime"), plural(workers, "worker"));
  put(find("build"), `typha ${service.version}, port ${service.port}, incarnation ${service.incarnation.slice(0, 8)}.`);
  const snapshots = Math.max(...feeds.map((feed) => feed.snapshot_bytes), 1);
  const logs = Math.max(...feeds.map((feed) => feed.log_bytes), 1);
  fill(
    find("feeds"),
    feeds.map((feed) => [
      [feed.feed, "name"],
      [`${feed.status === "in-sync" ? "✓" : "▲"} ${feed.status}`, `nowrap state-${STATUS_NAMES[feed.status] ?? "warn"}`],
      [count(feed.clients), "number"],
      [count(feed.held), feed.held ? "number state-warn" : "number"],
      [count(feed.keys), "number"],
      [count(feed.sequence), "number"],
      [feed.changed_at ? `${seconds(Math.max(0, Math.round(service.now - feed.changed_at)))} ago` : "–", "nowrap"],
      [feed.formats.join(", ") || "–", "nowrap"],
      [bytes(feed.snapshot_bytes), "nowrap", feed.snapshot_bytes / snapshots],
      [bytes(feed.log_bytes), "nowrap", feed.log_bytes / logs],
    ]),
    "No feeds",
  );
  showKinds(kinds);
  const select = find("fleet-feed");
  const names = ["", ...feeds.map((feed) => feed.feed)];
  if (names.join("\n") !== [...select.options].map((option) => option.value).join("\n")) {
    select.replaceChildren(
      ...names.map((name) => {
        const option = make("option", "", name || "all");
        option.value = name;
        return option;
      }),
    );
    view.feed = names.includes(view.feed) ? view.feed : "";
    select.value = view.feed;
  }
}

// Those that somebody should look at come first.
function showKinds(kinds) {
  const age = (kind) => kind.confirmed_seconds ?? Infinity;
  const sorted = kinds.toSorted((one, other) => (one.state === "in-sync") - (other.state === "in-sync") || age(other) - age(one));
  const shown = view.allKinds ? sorted : sorted.slice(0, ROWS);
  fill(
    find("kinds"),
    shown.map((kind) => {
      const [, group, name] = /^(?:(.*)\/)?([^/]*)$/.exec(kind.type);
      return [
        [name, "name"],
        [group ?? "", "nowrap quiet"],
        [`${kind.state === "in-sync" ? "✓" : "▲"} ${kind.state}`, `nowrap state-${STATUS_NAMES[kind.state] ?? "warn"}`],
        [kind.confirmed_seconds === null ? "never" : `${seconds(Math.round(kind.confirmed_seconds))} ago`, isFresh(kind) ? "number nowrap" : "number nowrap state-bad"],
      ];
    }),
    "Nothing is watched",
  );
  find("kinds-more").hidden = shown.length >= kinds.length;
  put(find("kinds-more"), `Show all ${count(kinds.length)}`);
}

find("kinds-more").addEventListener("click", () => {
  view.allKinds = true;
  showKinds(known.status.kinds);
});

function isFresh(kind) {
  return kind.confirmed_seconds !== null && kind.confirmed_seconds < FRESH_SECONDS;
}

function showVerdict() {
  const { service, feeds, kinds } = known.status;
  const clients = known.clients?.clients.filter((client) => client.state !== "handshake" && client.state !== "closing") ?? [];
  const problems = [];
  const notes = [];
  const waiting = feeds.filter((feed) => feed.status !== "in-sync");
  if (waiting.length) problems.push(`${waiting.map((feed) => `${feed.feed} is ${feed.status}`).join(", ")}: clients get what was known before.`);
  const stances = { waiting: "clients stay for the moment", alone: "clients stay, because no other replica answers", "all-stale": "clients stay, because all replicas have lost it", "handing-over": "clients move to replicas that have not lost it" };
  if (service.stale_seconds) problems.push(`The API server has been lost for ${seconds(service.stale_seconds)}: ${stances[service.freshness] ?? service.freshness}.`);
  const stale = kinds.filter((kind) => !isFresh(kind));
  if (stale.length) problems.push(`${plural(stale.length, "resource")} not confirmed by the API server for ${FRESH_SECONDS} s: ${stale.slice(0, 4).map((kind) => kind.type).join(", ")}${stale.length > 4 ? " and others" : ""}.`);
  const dead = service.workers.filter((worker) => !worker.ready).length;
  if (!service.workers.length || dead) problems.push(service.workers.length ? `${plural(dead, "worker is", "workers are")} not ready.` : "No worker runs.");
  const minutes = clients.filter((client) => client.lag_seconds > LAGS[3]).length;
  if (minutes) problems.push(`${plural(minutes, "client is", "clients are")} more than a minute late.`);
  const late = clients.filter((client) => client.lag_seconds > LAGS[2]).length - minutes;
  if (late) notes.push(`${plural(late, "client is", "clients are")} more than 10 s late.`);
  const held = feeds.reduce((sum, feed) => sum + feed.held, 0);
  if (held) notes.push(`${plural(held, "client waits", "clients wait")} for a snapshot.`);
  if (known.clients && !known.clients.complete) notes.push("A worker did not answer in time: the list of clients is not complete.");
  const slowest_to_apply = known.clients?.slowest_to_apply?.[0];
  for (const feed of feeds.filter((feed) => feed.applied_lag_seconds > LAGS[2])) notes.push(`${count(feed.reporting - feed.applied)} of ${plural(feed.reporting, "client")} of ${feed.feed} that report it have not applied everything${slowest_to_apply?.feed === feed.feed ? `, ${slowest_to_apply.node || slowest_to_apply.address} for ${seconds(feed.applied_lag_seconds)}` : ""}.`);
  if (service.is_draining) notes.push("The service is draining: its clients move to other replicas.");
  const level = problems.length ? "bad" : notes.length ? "warn" : "good";
  const total = feeds.reduce((sum, feed) => sum + feed.clients, 0);
  const [title, ...others] = [...problems, ...notes, total ? `All ${plural(total, "client")} are up to date.` : "Ready. No clients are connected."];
  if (level !== "good") others.pop();
  const verdict = find("verdict");
  const text = [title, ...others];
  if (verdict.dataset.text !== text.join("\n")) {
    verdict.dataset.text = text.join("\n");
    verdict.className = `verdict ${level}`;
    const parts = [make("strong", "", title)];
    if (level === "good") parts.push(make("span", "", `${plural(feeds.length, "feed")} in sync, ${plural(kinds.length, "resource")} confirmed by the API server.`));
    else if (others.length) {
      const list = make("ul");
      list.append(...others.map((line) => make("li", "", line)));
      parts.push(list);
    }
    verdict.replaceChildren(...parts);
  }
  put(find("tile-clients"), count(total));
  put(find("note-clients"), held ? `${count(held)} held` : `${plural(feeds.filter((feed) => feed.clients).length, "feed")} in use`);
  const slowest = clients.reduce((most, client) => (most && most.lag_seconds >= client.lag_seconds ? most : client), null);
  put(find("tile-lag"), slowest ? seconds(slowest.lag_seconds) : "–");
  find("tile-lag").className = slowest?.lag_seconds > LAGS[3] ? "state-bad" : slowest?.lag_seconds > LAGS[2] ? "state-warn" : "";
  put(find("note-lag"), slowest && slowest.lag_seconds > 0 ? slowest.node || slowest.address : slowest ? "nobody waits" : "");
}

// The map of the nodes

const fleet = { nodes: [], columns: 1, size: 10, gap: 1 };
const STATE_RANKS = ["following", "catching-up", "snapshot", "held"];
const order = new Intl.Collator("en", { numeric: true });

function lagClass(lag) {
  const found = LAGS.findIndex((limit) => lag <= limit);
  return found < 0 ? LAGS.length : found;
}

function showFleet() {
  const nodes = new Map();
  for (const client of known.clients.clients) {
    if (!STATE_RANKS.includes(client.state) || (view.feed && client.feed !== view.feed)) continue;
    const name = client.node || client.address;
    const node = nodes.get(name);
    if (!node) nodes.set(name, { name, lag: client.lag_seconds, state: client.state, worst: client, clients: 1 });
    else {
      node.clients += 1;
      if (client.lag_seconds > node.lag) [node.lag, node.worst] = [client.lag_seconds, client];
      if (STATE_RANKS.indexOf(client.state) > STATE_RANKS.indexOf(node.state)) node.state = client.state;
    }
  }
  const selected = fleet.nodes[view.cell]?.name;
  fleet.nodes = [...nodes.values()].sort((one, other) => order.compare(one.name, other.name));
  view.cell = selected === undefined ? -1 : fleet.nodes.findIndex((node) => node.name === selected);
  drawFleet();
  showLegend();
  showCell();
}

function colours() {
  // Colours as the theme has them now: `light-dark()` is resolved only where an element uses it.
  const probe = make("span");
  document.body.append(probe);
  const resolve = (name) => {
    probe.className = `swatch-${name}`;
    return getComputedStyle(probe).backgroundColor;
  };
  const found = { lags: LAG_NAMES.map((_, index) => resolve(index)), surface: resolve("surface"), ink: resolve("ink") };
  probe.remove();
  return found;
}

// The lag is a colour and a mark: none, dot, bar, stripe, cross. The state is the form: full, half (snapshot, catching up), hollow (held).
function drawCell(context, palette, x, y, size, lag, state) {
  context.fillStyle = palette.lags[lag];
  context.fillRect(x, y, size, size);
  context.fillStyle = palette.surface;
  const border = Math.max(1, size / 6);
  if (state === "held") context.fillRect(x + border, y + border, size - 2 * border, size - 2 * border);
  else if (state !== "following") context.fillRect(x + border, y + border, size - 2 * border, size / 2 - border);
  if (lag === 0) return;
  context.strokeStyle = context.fillStyle = state === "held" ? palette.lags[lag] : palette.surface;
  context.lineWidth = Math.max(1, size / 8);
  const [left, right, top, bottom] = [x + size * 0.22, x + size * 0.78, y + size * 0.22, y + size * 0.78];
  context.beginPath();
  if (lag === 1) context.fillRect(x + size * 0.38, y + size * 0.38, Math.max(1, size * 0.24), Math.max(1, size * 0.24));
  if (lag === 2) {
    context.moveTo(left, y + size / 2);
    context.lineTo(right, y + size / 2);
  }
  if (lag >= 3) {
    context.moveTo(left, bottom);
    context.lineTo(right, top);
  }
  if (lag >= 4) {
    context.moveTo(left, top);
    context.lineTo(right, bottom);
  }
  context.stroke();
}

function drawFleet() {
  const area = find("fleet");
  const canvas = area.firstElementChild;
  const width = (fleet.width = area.clientWidth);
  const nodes = fleet.nodes.length;
  const ratio = window.devicePixelRatio || 1;
  fleet.size = Math.max(5, Math.min(22, Math.floor(Math.sqrt((width * 300) / Math.max(1, nodes)))));
  fleet.gap = fleet.size > 9 ? 2 : 1;
  fleet.columns = Math.max(1, Math.floor((width + fleet.gap) / fleet.size));
  const height = Math.max(1, Math.ceil(nodes / fleet.columns)) * fleet.size;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  const palette = colours();
  fleet.nodes.forEach((node, index) => {
    const [x, y] = [(index % fleet.columns) * fleet.size, Math.floor(index / fleet.columns) * fleet.size];
    drawCell(context, palette, x, y, fleet.size - fleet.gap, lagClass(node.lag), node.state);
    if (index === view.cell) {
      context.strokeStyle = palette.ink;
      context.lineWidth = 2;
      context.strokeRect(x, y, fleet.size - fleet.gap, fleet.size - fleet.gap);
    }
  });
  area.setAttribute("aria-valuemax", String(Math.max(0, nodes - 1)));
}

function showLegend() {
  const counts = LAG_NAMES.map(() => 0);
  const states = { "catching-up": 0, held: 0 };
  for (const node of fleet.nodes) {
    counts[lagClass(node.lag)] += 1;
    if (node.state === "held") states.held += 1;
    else if (node.state !== "following") states["catching-up"] += 1;
  }
  const entries = [
    ...LAG_NAMES.map((name, index) => [name, counts[index], index, "following"]),
    ["snapshot or catching up", states["catching-up"], 0, "snapshot"],
    ["held", states.held, 0, "held"],
  ];
  const list = find("legend");
  const palette = colours();
  const ratio = window.devicePixelRatio || 1;
  entries.forEach(([name, number, lag, state], index) => {
    let item = list.children[index];
    if (!item) {
      item = make("li");
      const canvas = make("canvas");
      canvas.setAttribute("aria-hidden", "true");
      item.append(canvas, make("span"));
      list.append(item);
    }
    const canvas = item.firstElementChild;
    canvas.width = canvas.height = 16 * ratio;
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    drawCell(context, palette, 0, 0, 16, lag, state);
    put(item.lastElementChild, `${name}: ${count(number)}`);
  });
}

function showCell() {
  const node = fleet.nodes[view.cell];
  const area = find("fleet");
  if (!node) {
    area.setAttribute("aria-valuenow", "0");
    area.setAttribute("aria-valuetext", fleet.nodes.length ? `${plural(fleet.nodes.length, "node")}, none selected` : "no nodes");
    if (!fleet.nodes.length) put(find("fleet-detail"), "No clients are connected.");
    return;
  }
  const { worst } = node;
  const parts = [
    `${node.name}: lag ${seconds(node.lag)}`,
    node.state,
    `feed ${worst.feed}`,
    worst.version && `version ${worst.version}`,
    `worker ${worst.worker}`,
    `${bytes(worst.bytes_sent)} sent`,
    `connected for ${seconds(worst.age_seconds)}`,
    node.clients > 1 && `${count(node.clients)} connections`,
  ];
  const text = parts.filter(Boolean).join(", ");
  put(find("fleet-detail"), text);
  area.setAttribute("aria-valuenow", String(view.cell));
  area.setAttribute("aria-valuetext", text);
}

function selectCell(index) {
  if (!fleet.nodes.length) return;
  view.cell = Math.max(0, Math.min(fleet.nodes.length - 1, index));
  drawFleet();
  showCell();
}

function cellAt(event) {
  const area = find("fleet").getBoundingClientRect();
  const [column, row] = [Math.floor((event.clientX - area.left) / fleet.size), Math.floor((event.clientY - area.top) / fleet.size)];
  const index = row * fleet.columns + column;
  return column < fleet.columns && index < fleet.nodes.length ? index : -1;
}

function chooseNode(name) {
  view.node = name;
  view.rows = ROWS;
  find("clients-node").value = name;
  showClients();
}

find("fleet").addEventListener("pointermove", (event) => {
  const index = cellAt(event);
  if (index >= 0 && index !== view.cell) selectCell(index);
});
find("fleet").addEventListener("click", (event) => {
  const index = cellAt(event);
  if (index >= 0) chooseNode(fleet.nodes[index].name);
});
find("fleet").addEventListener("keydown", (event) => {
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: fleet.columns, ArrowUp: -fleet.columns };
  if (event.key in steps) selectCell(view.cell < 0 ? 0 : view.cell + steps[event.key]);
  else if (event.key === "Home") selectCell(0);
  else if (event.key === "End") selectCell(fleet.nodes.length - 1);
  else if (event.key === "Enter" && fleet.nodes[view.cell]) chooseNode(fleet.nodes[view.cell].name);
  else return;
  event.preventDefault();
});
find("fleet-feed").addEventListener("change", (event) => {
  view.feed = event.target.value;
  if (known.clients) showFleet();
});

// The table of clients

const COLUMNS = [
  ["node", "Node", (client) => [client.node || "–", "name"]],
  ["lag_seconds", "Lag", (client) => [seconds(client.lag_seconds), "number nowrap"]],
  ["lag_bytes", "Lag, bytes", (client) => [bytes(client.lag_bytes), "number nowrap"]],
  ["applied_lag_seconds", "Not applied for", (client) => [client.applied == null ? "–" : seconds(client.applied_lag_seconds), "number nowrap"]],
  ["state", "State", (client) => [client.state, "nowrap"]],
  ["feed", "Feed", (client) => [client.feed || "–", ""]],
  ["version", "Version", (client) => [client.version || "–", "name"]],
  ["bytes_sent", "Sent", (client) => [bytes(client.bytes_sent), "number nowrap"]],
  ["age_seconds", "Connected for", (client) => [seconds(client.age_seconds), "number nowrap"]],
  ["worker", "Worker", (client) => [count(client.worker), "number"]],
  ["address", "Address", (client) => [client.address, "nowrap"]],
];
const NUMBERS = ["lag_seconds", "lag_bytes", "applied_lag_seconds", "bytes_sent", "age_seconds", "worker"];

function makeHead() {
  const row = find("clients").tHead.rows[0];
  for (const [key, title] of COLUMNS) {
    const head = make("th", NUMBERS.includes(key) ? "number" : "");
    head.scope = "col";
    const button = make("button", "", title);
    button.type = "button";
    button.addEventListener("click", () => {
      view.descending = view.sort === key ? !view.descending : NUMBERS.includes(key);
      view.sort = key;
      showClients();
    });
    head.append(button);
    row.append(head);
  }
}

function showClients() {
  const row = find("clients").tHead.rows[0];
  COLUMNS.forEach(([key], index) => {
    if (key === view.sort) row.cells[index].setAttribute("aria-sort", view.descending ? "descending" : "ascending");
    else row.cells[index].removeAttribute("aria-sort");
  });
  if (!known.clients) return;
  const wanted = view.node.toLowerCase();
  const chosen = known.clients.clients.filter((client) => !wanted || client.node.toLowerCase().includes(wanted) || client.address.includes(wanted));
  const sign = view.descending ? -1 : 1;
  const isNumber = NUMBERS.includes(view.sort);
  const compare = (one, other) => (isNumber ? one[view.sort] - other[view.sort] : order.compare(one[view.sort], other[view.sort]));
  chosen.sort((one, other) => sign * compare(one, other) || order.compare(one.node, other.node));
  const shown = chosen.slice(0, view.rows);
  fill(find("clients").tBodies[0], shown.map((client) => COLUMNS.map(([, , cell]) => cell(client))), wanted ? "No client of such a node" : "No clients are connected");
  const missing = known.clients.total > known.clients.clients.length ? ` of the slowest ${count(known.clients.clients.length)}, of ${count(known.clients.total)} in all` : "";
  put(find("clients-count"), chosen.length ? `${count(shown.length)} of ${plural(chosen.length, "client")}${missing}` : "");
  find("clients-more").hidden = shown.length >= chosen.length;
}

find("clients-more").addEventListener("click", () => {
  view.rows += 5 * ROWS;
  showClients();
});
find("clients-node").addEventListener("input", (event) => {
  view.node = event.target.value.trim();
  view.rows = ROWS;
  showClients();
});

// The last hour

const HOUR_SECONDS = 3600;
const HEIGHT = 200;
const MIN_WIDTH = 240;
const LOWEST_POWER = -3; // a millisecond; what is faster is drawn on the axis
const MARGIN = { left: 56, right: 44, top: 10, bottom: 22 };
const charts = {};

function rates() {
  const { points, interval_seconds: interval } = known.history;
  return points.map((point, index) => {
    // After a standstill of the service a point covers more than one interval.
    const passed = index ? point.at - points[index - 1].at : interval;
    const time = passed > interval / 2 && passed < HOUR_SECONDS ? passed : interval;
    return { ...point, deliveries_rate: point.deliveries / time, bytes_rate: point.bytes_sent / time };
  });
}

function showHistory() {
  const points = rates();
  const newest = points.at(-1);
  put(find("tile-deliveries"), newest ? `${count(newest.deliveries_rate)}/s` : "–");
  put(find("note-deliveries"), newest ? `${bytes(newest.bytes_rate)}/s sent` : "after 10 s");
  put(find("tile-latency"), newest ? seconds(newest.latency_p99 ?? NaN) : "–");
  put(find("note-latency"), newest?.latency_p50 != null ? `p50 ${seconds(newest.latency_p50)}` : "nothing delivered");
  const ends = new Map();
  for (const point of points) for (const [reason, number] of Object.entries(point.ends)) ends.set(reason, (ends.get(reason) ?? 0) + number);
  const total = [...ends.values()].reduce((sum, number) => sum + number, 0);
  put(find("tile-ends"), count(total));
  put(find("note-ends"), points.length < HOUR_SECONDS / known.history.interval_seconds ? "since the start" : "in the last hour");
  showReasons(ends);
  charts.deliveries.draw(points);
  charts.latency.draw(points);
  if (find("hour-details").open) showHourTable(points);
}

function showHourTable(points) {
  fill(
    find("hour-rows"),
    points.toReversed().map((point) => [
      [clock.format(point.at * 1000), "nowrap"],
      [count(point.clients), "number"],
      [count(point.deliveries_rate), "number"],
      [bytes(point.bytes_rate), "number"],
      [seconds(point.latency_p50 ?? NaN), "number"],
      [seconds(point.latency_p99 ?? NaN), "number"],
      [count(Object.values(point.ends).reduce((sum, number) => sum + number, 0)), "number"],
    ]),
    "The first point comes after 10 s",
  );
}

find("hour-details").addEventListener("toggle", () => {
  if (known.history) showHourTable(rates());
});

function niceCeiling(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 2.5, 5, 10].map((step) => step * power).find((step) => step >= value * 0.999);
}

class Chart {
  constructor(name, { series, isLogarithmic, label, lowest }) {
    this.area = find(`chart-${name}`);
    this.readout = find(`readout-${name}`);
    Object.assign(this, { series, isLogarithmic, label, lowest, points: [], at: -1 });
    this.area.addEventListener("pointermove", (event) => this.select(this.indexAt(event.clientX)));
    this.area.addEventListener("pointerleave", () => this.select(-1));
    this.area.addEventListener("keydown", (event) => {
      const steps = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 30, PageDown: -30 };
      const last = this.points.length - 1;
      const from = this.at < 0 ? last + 1 : this.at;
      if (event.key in steps) this.select(Math.max(0, Math.min(last, from + steps[event.key])));
      else if (event.key === "Home") this.select(0);
      else if (event.key === "End") this.select(last);
      else return;
      event.preventDefault();
    });
    new ResizeObserver(() => {
      if (this.scale?.width !== Math.max(MIN_WIDTH, this.area.clientWidth)) this.draw(this.points);
    }).observe(this.area);
  }

  scales() {
    const width = Math.max(MIN_WIDTH, this.area.clientWidth);
    const end = this.points.at(-1)?.at ?? Date.now() / 1000;
    const span = Math.min(HOUR_SECONDS, Math.max(600, end - (this.points[0]?.at ?? end)));
    const values = this.points.flatMap((point) => this.series.map(({ key }) => point[key])).filter((value) => value > 0);
    const most = Math.max(...values, this.lowest);
    const x = (at) => MARGIN.left + ((at - end + span) / span) * (width - MARGIN.left - MARGIN.right);
    const inner = HEIGHT - MARGIN.top - MARGIN.bottom;
    if (!this.isLogarithmic) {
      const top = niceCeiling(most);
      return { width, x, y: (value) => MARGIN.top + inner * (1 - value / top), ticks: [0, 0.5, 1].map((part) => part * top), start: end - span, end };
    }
    const [low, high] = [Math.max(LOWEST_POWER, Math.floor(Math.log10(Math.min(...values, this.lowest)))), Math.ceil(Math.log10(most) - 1e-9)];
    const top = Math.max(high, low + 1);
    const ticks = Array.from({ length: top - low + 1 }, (_, index) => 10 ** (low + index));
    const y = (value) => MARGIN.top + inner * (1 - (Math.log10(Math.max(value, 10 ** low)) - low) / (top - low));
    return { width, x, y, ticks, start: end - span, end };
  }

  draw(points) {
    const selected = this.points[this.at]?.at;
    this.points = points;
    this.at = selected === undefined ? -1 : points.findIndex((point) => point.at === selected);
    const { width, x, y, ticks, start, end } = (this.scale = this.scales());
    const svg = shape("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, "aria-hidden": "true" });
    for (const tick of ticks) {
      const at = y(tick);
      svg.append(shape("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: at, y2: at }));
      svg.append(shape("text", { x: MARGIN.left - 6, y: at + 4, "text-anchor": "end" }, this.label(tick)));
    }
    const step = end - start > 1800 ? 900 : 300;
    for (let at = Math.ceil(start / step) * step; at <= end; at += step) {
      svg.append(shape("line", { class: "grid", x1: x(at), x2: x(at), y1: HEIGHT - MARGIN.bottom, y2: HEIGHT - MARGIN.bottom + 4 }));
      svg.append(shape("text", { x: x(at), y: HEIGHT - 5, "text-anchor": "middle" }, minute.format(at * 1000)));
    }
    let labelled = -99;
    this.series.forEach(({ key, name, filled }, index) => {
      const runs = [[]];
      for (const point of points) {
        if (point.at < start) continue;
        if (point[key] === null) runs.push([]);
        else runs.at(-1).push([x(point.at), y(point[key])]);
      }
      for (const run of runs.filter((one) => one.length)) {
        const drawn = run.length > 1 ? run : [run[0], [run[0][0] + 1.5, run[0][1]]];
        const path = drawn.map(([left, top]) => `${left.toFixed(1)},${top.toFixed(1)}`).join("L");
        if (filled) svg.append(shape("path", { class: "area", d: `M${drawn[0][0]},${HEIGHT - MARGIN.bottom}L${path}L${drawn.at(-1)[0]},${HEIGHT - MARGIN.bottom}Z` }));
        svg.append(shape("path", { class: `line line-${index + 1}`, d: `M${path}` }));
      }
      const last = runs.findLast((run) => run.length)?.at(-1);
      if (last && name) {
        const top = Math.abs(last[1] - labelled) < 14 ? labelled - 14 : last[1];
        labelled = top;
        svg.append(shape("text", { class: `name-${index + 1}`, x: width - MARGIN.right + 6, y: top + 4 }, name));
      }
    });
    this.cursor = shape("line", { class: "cursor", y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom, visibility: "hidden" });
    svg.append(this.cursor);
    this.area.replaceChildren(svg);
    this.area.setAttribute("aria-valuemax", String(Math.max(0, points.length - 1)));
    this.select(this.at);
  }

  indexAt(clientX) {
    const left = this.area.getBoundingClientRect().left;
    let best = -1;
    this.points.forEach((point, index) => {
      const distance = Math.abs(this.scale.x(point.at) - (clientX - left));
      if (best < 0 || distance < Math.abs(this.scale.x(this.points[best].at) - (clientX - left))) best = index;
    });
    return best;
  }

  select(index) {
    this.at = index;
    const point = this.points[index] ?? this.points.at(-1);
    const text = point
      ? `${clock.format(point.at * 1000)}: ${this.series.map(({ key, name }) => `${name ? `${name} ` : ""}${point[key] === null ? "–" : this.label(point[key])}`).join(", ")}`
      : "The first point comes after 10 s.";
    put(this.readout, text);
    this.area.setAttribute("aria-valuenow", String(Math.max(0, index)));
    this.area.setAttribute("aria-valuetext", text);
    if (!this.cursor) return;
    this.cursor.setAttribute("visibility", this.points[index] ? "visible" : "hidden");
    if (this.points[index]) for (const side of ["x1", "x2"]) this.cursor.setAttribute(side, String(this.scale.x(point.at)));
  }
}

charts.deliveries = new Chart("deliveries", {
  series: [{ key: "deliveries_rate", name: "", filled: true }],
  isLogarithmic: false,
  lowest: 1,
  label: (value) => (value >= 1e6 ? `${significant(value / 1e6)} M/s` : `${count(value)}/s`),
});
charts.latency = new Chart("latency", {
  series: [{ key: "latency_p50", name: "p50" }, { key: "latency_p99", name: "p99" }],
  isLogarithmic: true,
  lowest: 0.01,
  label: seconds,
});

// Ended connections

function showReasons(ends) {
  const sorted = [...ends].sort(([, one], [, other]) => other - one);
  const most = sorted[0]?.[1] ?? 1;
  find("reasons").replaceChildren(
    ...sorted.map(([reason, number]) => {
      const item = make("div");
      item.setAttribute("role", "listitem");
      item.append(make("span", "", reason), bar(number / most), make("span", "", count(number)));
      return item;
    }),
  );
}

function showEnds() {
  const { ends } = known.ends;
  const shown = view.allEnds ? ends : ends.slice(0, ROWS);
  fill(
    find("ends"),
    shown.map((end) => [
      [clock.format(end.at * 1000), "nowrap"],
      [end.node || "–", "name"],
      [end.reason, "nowrap"],
      [end.feed || "–", ""],
      [seconds(end.age_seconds), "number nowrap"],
      [end.address, "nowrap"],
    ]),
    "No connection has ended",
  );
  find("ends-more").hidden = shown.length >= ends.length;
  put(find("ends-more"), `Show all ${count(ends.length)}`);
}

find("ends-more").addEventListener("click", () => {
  view.allEnds = true;
  showEnds();
});

// Controls

function redraw() {
  if (known.clients) {
    drawFleet();
    showLegend();
  }
}

function setTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  redraw();
}

const THEME = "typha-theme";
let theme = "auto";
try {
  theme = localStorage.getItem(THEME) ?? "auto";
} catch {
  // without storage the theme is the system's
}
theme = ["light", "dark"].includes(theme) ? theme : "auto";
find("theme").value = theme;
find("theme").addEventListener("change", (event) => {
  setTheme(event.target.value);
  try {
    localStorage.setItem(THEME, event.target.value);
  } catch {
    // it lasts until the page is closed
  }
});
find("pause").addEventListener("click", (event) => {
  view.paused = !view.paused;
  event.target.setAttribute("aria-pressed", String(view.paused));
  put(event.target, view.paused ? "Continue" : "Pause");
  showFreshness();
  turn();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
document.addEventListener("visibilitychange", turn);
new ResizeObserver(() => {
  if (find("fleet").clientWidth !== fleet.width) redraw();
}).observe(find("fleet"));
setTheme(theme);
makeHead();
showClients();
setInterval(() => {
  turn();
  showFreshness();
}, 250);
turn();
