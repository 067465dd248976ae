// The list of services, the one that is looked at, and what can be done with them. Text from services reaches the page
// as text nodes only.

const EVERY_MS = 1500;
const POOL_EVENTS = 20; // that are shown, the newest
const EXAMPLE = {
  task: "classify",
  settings: { algorithm: "snake", dataset: "digits", nodes: 4, cycles: 2 },
  name: "",
  owner: "",
  requirements: { slots: 1 },
  limits: { run_s: null, restarts: 3 },
};
let chosen = null; // the number of the service that is looked at
let lines = []; // its metrics
let stop = null; // ends the stream of its metrics
let timer = null;
let live = true;

function trouble(error) {
  byId("trouble").hidden = !error;
  byId("trouble").textContent = error ? error.message : "";
}

// What a click does; what is refused is said above.
async function doing(action) {
  try {
    trouble(null);
    await action();
  } catch (error) {
    if (error.name !== "AbortError") trouble(error);
    if (error.status === 401) signOut();
  }
}

function signedIn(is) {
  byId("sign-out").hidden = !is;
  for (const one of document.querySelectorAll(".sign-in")) one.hidden = is;
}

function signOut() {
  sessionStorage.removeItem(TOKEN);
  clearTimeout(timer);
  if (stop) stop.abort();
  [chosen, lines] = [null, []];
  byId("content").hidden = true;
  signedIn(false);
  byId("one").hidden = true;
  byId("services").tBodies[0].replaceChildren();
  byId("counts").textContent = "Give the token to see them.";
}

async function refresh() {
  clearTimeout(timer);
  // One after the other: a wrong token is refused once.
  const all = await askJson("services");
  const pool = await askJson("nodes");
  byId("content").hidden = false;
  signedIn(true);
  const noun = all.services.length === 1 ? "service" : "services";
  byId("counts").textContent = `${all.services.length} ${noun}; ${all.slots_in_use} of ${all.slots} slots in use`;
  const newest = [...all.services].reverse();
  byId("services").tBodies[0].replaceChildren(...newest.map(row));
  showPool(pool);
  const one = all.services.find((service) => service.number === chosen);
  if (one) await showOne(one);
  else byId("one").hidden = true;
  timer = setTimeout(() => doing(refresh), EVERY_MS);
}

function row(service) {
  const { number, state, settings } = service;
  const name = html("button", { type: "button", class: "pick" }, service.name ? `${number} ${service.name}` : String(number));
  name.addEventListener("click", () => doing(() => choose(number)));
  const what = [settings.algorithm || "snake", settings.model, settings.dataset || settings.data].filter(Boolean).join(", ");
  const attributes = { "data-service": number, class: number === chosen ? "chosen" : "" };
  return html(
    "tr",
    attributes,
    html("td", {}, name),
    html("td", {}, html("span", { class: `state state-${state}`, title: service.cause }, state)),
    html("td", {}, service.task),
    html("td", {}, what),
    html("td", {}, service.owner),
    html("td", { class: "number" }, String(service.rounds)),
    html("td", { class: "number" }, merit(service.last)),
    html("td", { class: "number" }, seconds(usedBy(service))),
    html("td", { class: "number" }, ...buttons(service)),
  );
}

// The nodes that services share; none where each plays its own.
function showPool(pool) {
  byId("pool").hidden = pool.nodes.length === 0;
  byId("pool-nodes").tBodies[0].replaceChildren(...pool.nodes.map(poolRow));
  byId("pool-events").replaceChildren(...pool.events.reverse().slice(0, POOL_EVENTS).map(eventLine));
}

function poolRow(one) {
  const busy = one.service !== null;
  const state = one.alive ? (busy ? "running" : "free") : "gone";
  return html(
    "tr",
    { "data-pool-node": one.node, class: busy && one.service === chosen ? "chosen" : "" },
    html("td", {}, String(one.node)),
    html("td", {}, one.host),
    html("td", {}, html("span", { class: `state state-${state}` }, busy ? `service ${one.service}` : state)),
    html("td", {}, busy ? String(one.turn) : ""),
    html("td", {}, one.layers.length > 4 ? `${one.layers.length} layers` : one.layers.join(", ")),
    html("td", {}, one.waiting.map((number) => `service ${number}`).join(", ")),
    html("td", { class: "number" }, String(one.visits)),
    html("td", { class: "number" }, seconds(one.busy_s)),
  );
}

function usedBy(service) {
  const now = ["running", "ending"].includes(service.state) ? Date.now() / 1000 - service.started_s : 0;
  return Math.max(0, service.used_s + now);
}

function merit(line) {
  if (typeof line?.accuracy === "number") return `${(100 * line.accuracy).toFixed(1)} %`;
  return typeof line?.perplexity === "number" ? short(line.perplexity) : "";
}

function seconds(value) {
  if (value >= 7200) return `${(value / 3600).toFixed(1)} h`;
  return value >= 300 ? `${(value / 60).toFixed(1)} min` : `${value.toFixed(0)} s`;
}

function buttons(service) {
  const path = `services/${service.number}`;
  if (!isOver(service)) {
    return service.state === "ending" ? [] : [button("Cancel", () => ask(`${path}/cancel`, { method: "POST" }))];
  }
  const result = button("Result", () => save(`${path}/archive`, `service_${service.number}.tar`));
  return [result, button("Remove", () => ask(path, { method: "DELETE" }))];
}

function button(text, action) {
  const made = html("button", { type: "button" }, text);
  made.addEventListener("click", () =>
    doing(async () => {
      await action();
      await refresh();
    }),
  );
  return made;
}

// Looks at a service: its lines are read from the first on.
async function choose(number) {
  if (stop) stop.abort();
  stop = new AbortController();
  [chosen, lines, live] = [number, [], true];
  const { signal } = stop;
  followMetrics(number, signal, (fresh) => {
    if (signal.aborted) return;
    lines.push(...fresh);
    draw();
  }).catch((error) => {
    // The list says it when a service is gone.
    if (error.name !== "AbortError" && error.status !== 404) trouble(error);
  });
  await refresh();
  draw();
}

async function showOne(service) {
  const path = `services/${service.number}`;
  const [nodes, events] = await Promise.all([askJson(`${path}/nodes`), askJson(`${path}/events`)]);
  byId("one").hidden = false;
  byId("one-heading").textContent = `Service ${service.number}${service.name ? `: ${service.name}` : ""}, ${service.state}`;
  byId("one-cause").textContent = service.cause;
  byId("one").dataset.nodes = service.settings.nodes || 0;
  byId("nodes").tBodies[0].replaceChildren(...nodes.nodes.map(nodeRow));
  // Where a run keeps its events they say more than its lines of metrics do.
  const told = events.events.some((one) => one.visit !== null || one.node !== null);
  const happened = told ? [...events.events] : [...events.events, ...eventsOfVisits()];
  byId("events").replaceChildren(...happened.reverse().map(eventLine));
  byId("settings").replaceChildren(
    ...Object.entries(service.settings).map(([name, value]) =>
      html("div", {}, html("dt", {}, name), html("dd", {}, String(value))),
    ),
  );
  if (byId("log-details").open) byId("log").textContent = await (await ask(`${path}/log`)).text();
}

function nodeRow(one) {
  return html(
    "tr",
    {},
    html("td", {}, String(one.node)),
    html("td", { class: "number" }, String(one.visits)),
    html("td", {}, one.layers.length > 4 ? `${one.layers.length} layers` : one.layers.join(", ")),
    html("td", { class: "number" }, bytes(one.bytes_sent)),
    html("td", { class: "number" }, bytes(one.bytes_received)),
  );
}

function bytes(value) {
  const [factor, unit] = [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"]].find(([size]) => value >= size) || [1, "B"];
  return `${Number((value / factor).toPrecision(3))} ${unit}`;
}

// What was unusual about visits, as their lines say.
function eventsOfVisits() {
  return lines.flatMap((line, visit) =>
    line.event ? [{ when: `visit ${visit}`, event: line.event, cause: `node ${nodesOf(line).join(", ")}` }] : [],
  );
}

function eventLine(one) {
  const when = one.when || new Date(1000 * one.time_s).toLocaleTimeString("en-GB");
  // Of an event in a run: which visit and node of it.
  const parts = ["visit", "node"].filter((name) => Number.isInteger(one[name])).map((name) => `${name} ${one[name]}`);
  const said = [parts.join(", "), one.cause].filter(Boolean).join(": ");
  return html("li", {}, html("time", {}, when), html("b", {}, one.event), html("span", {}, said));
}

function draw() {
  if (chosen === null) return;
  const last = Math.max(0, lines.length - 1);
  byId("at").max = last;
  if (live) byId("at").value = last;
  const at = Math.min(last, Number(byId("at").value));
  const line = lines[at];
  byId("at-text").textContent = line ? `${at} of ${last}: node ${nodesOf(line).join(", ")}` : "none yet";
  byId("live").setAttribute("aria-pressed", String(live));
  drawSnake(lines, Number(byId("one").dataset.nodes || 0), at);
  drawCurves(lines);
}

function start() {
  byId("registration").value = JSON.stringify(EXAMPLE, null, 2);
  byId("sign-in").addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem(TOKEN, byId("token").value.trim());
    byId("token").value = "";
    doing(refresh);
  });
  byId("sign-out").addEventListener("click", signOut);
  byId("register").addEventListener("submit", (event) => {
    event.preventDefault();
    doing(async () => {
      const body = JSON.stringify(JSON.parse(byId("registration").value));
      const service = await askJson("services", { method: "POST", body });
      await choose(service.number);
    });
  });
  byId("at").addEventListener("input", () => {
    live = Number(byId("at").value) === lines.length - 1;
    draw();
  });
  byId("live").addEventListener("click", () => {
    live = true;
    draw();
  });
  byId("api-details").addEventListener("toggle", () =>
    doing(async () => byId("api").replaceChildren(...operations(await askJson("openapi.json")))),
  );
  byId("log-details").addEventListener("toggle", () => doing(refresh));
  addEventListener("resize", draw);
  if (sessionStorage.getItem(TOKEN)) doing(refresh);
}

start();
