// Which node trained which layers in which visit: a column a visit, a row a layer. Where visits train different layers,
// a line (the snake) joins those of one visit with those of the next. Only what the run recorded decides what is drawn.

const ROW = 26;
const [CYCLES_ROOM, BADGES_ROOM, BOTTOM] = [20, 22, 20]; // above the rows and below them
const [NARROWEST, WIDEST] = [24, 46]; // columns
const VIRIDIS = [
  "#440154",
  "#482878",
  "#3e4989",
  "#31688e",
  "#26828e",
  "#1f9e89",
  "#35b779",
  "#6ece58",
  "#b5de2b",
  "#fde725",
];
const EVENTS = {
  interrupted: ["I", "interrupted: stopped early, handed in what it had"],
  lost: ["L", "lost: stopped early, nothing came back"],
  takeover: ["T", "takeover: an idle node went on in its place"],
  waited: ["W", "waited: no other node could take it, so its own went on"],
  skipped: ["S", "skipped: diverged, its result was not used"],
};

function drawSchedule() {
  const run = data.runs[byId("schedule-run").value];
  const room = byId("schedule-drawing").clientWidth;
  const column = Math.min(WIDEST, Math.max(NARROWEST, Math.floor(room / run.visits.length)));
  const top = CYCLES_ROOM + (run.visits.some((visit) => visit.event) ? BADGES_ROOM : 0);
  const height = top + ROW * run.layers.length + BOTTOM;
  const size = { width: column * run.visits.length, height };
  const plan = { run, column, top, ...size, middle: middleLayers(run), nodes: nodesOf(run) };
  byId("schedule-layers").replaceChildren(layerNames(plan));
  byId("schedule-drawing").replaceChildren(visitsDrawing(plan));
  byId("schedule-legend").replaceChildren(...scheduleLegend(plan));
}

// The layers that train in some visits and not in all; places in the run's layer order.
function middleLayers(run) {
  const places = [...run.layers.keys()];
  return places.filter((place) => run.visits.some((visit) => !visit.layers.includes(place)));
}

function nodesOf(run) {
  const alone = run.visits.filter((visit) => visit.nodes.length === 1).map((visit) => visit.nodes[0]);
  return [...new Set(alone)].sort((a, b) => a - b);
}

function layerNames(plan) {
  const { run, height } = plan;
  const longest = Math.max(0, ...run.layers.map((name) => name.length));
  const width = Math.min(130, 14 + 6.6 * longest);
  const names = run.layers.map((name, place) => {
    return svg(
      "text",
      { x: width - 8, y: middleOf(plan, place), "text-anchor": "end", "dominant-baseline": "central" },
      name,
    );
  });
  const visit = svg("text", { x: width - 8, y: height - 6, "text-anchor": "end" }, "visit");
  return svg("svg", { width, height }, ...names, visit);
}

function middleOf(plan, place) {
  return plan.top + ROW * (place + 0.5);
}

function visitsDrawing(plan) {
  const { run, width, height } = plan;
  const size = { width, height, viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none" };
  const label = `Layers trained by each of ${run.visits.length} visits of ${run.name}`;
  const cells = run.visits.flatMap((visit, number) => visit.layers.map((place) => cell(plan, visit, number, place)));
  return svg(
    "svg",
    { ...size, role: "img", "aria-label": label },
    ...rowLines(plan),
    ...cells,
    ...cycles(plan),
    ...snake(plan),
    ...run.visits.flatMap((visit, number) => labels(plan, visit, number)),
    ...run.visits.flatMap((visit, number) => badge(plan, visit, number)),
    ...run.visits.map((visit, number) => wholeVisit(plan, visit, number)),
  );
}

function rowLines(plan) {
  return plan.run.layers.map((_, place) => {
    return svg("line", {
      class: "row-line",
      x1: 0,
      x2: plan.width,
      y1: middleOf(plan, place),
      y2: middleOf(plan, place),
    });
  });
}

function centreOf(plan, number) {
  return plan.column * (number + 0.5);
}

function cell(plan, visit, number, place) {
  const box = {
    x: plan.column * number + 1,
    y: plan.top + ROW * place + 1,
    width: plan.column - 2,
    height: ROW - 2,
    rx: 5,
  };
  const name = visit.event ? "cell with-event" : "cell";
  return svg("rect", {
    ...box,
    class: name,
    fill: paint(plan, visit).fill,
    "data-visit": number,
    "data-layer": plan.run.layers[place],
  });
}

// Fill and ink of a visit's node, along viridis, which stays in order for every kind of sight and in grey.
function paint(plan, visit) {
  if (visit.nodes.length !== 1) return { fill: "var(--many)", ink: "var(--ink)" };
  const share = 0.04 + (0.92 * plan.nodes.indexOf(visit.nodes[0])) / Math.max(1, plan.nodes.length - 1);
  return { fill: shade(share), ink: share < 0.62 ? "#ffffff" : "#000000" };
}

function shade(share) {
  const at = share * (VIRIDIS.length - 1);
  const below = Math.min(VIRIDIS.length - 2, Math.floor(at));
  const mix = (from, to) => Math.round(from + (to - from) * (at - below));
  const [from, to] = [channels(VIRIDIS[below]), channels(VIRIDIS[below + 1])];
  return `rgb(${from.map((value, i) => mix(value, to[i])).join(",")})`;
}

function channels(hex) {
  return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
}

// A line before each cycle, named where there is room.
function cycles(plan) {
  const drawn = [];
  let free = -Infinity;
  plan.run.visits.forEach((visit, number) => {
    if (number > 0 && visit.cycle === plan.run.visits[number - 1].cycle) return;
    const x = plan.column * number;
    if (number > 0) drawn.push(svg("line", { class: "cycle-line", x1: x, x2: x, y1: 4, y2: plan.height - BOTTOM }));
    if (visit.cycle === null || x < free) return;
    drawn.push(svg("text", { x: x + 4, y: 14 }, `cycle ${visit.cycle}`));
    free = x + 62;
  });
  return drawn;
}

// The snake: a line through the layers that train in some visits only, solid within a cycle, dashed between cycles.
function snake(plan) {
  const stops = plan.run.visits.flatMap((visit, number) => snakeStop(plan, visit, number));
  const bends = stops.slice(1).map((stop, i) => ({ path: bend(stops[i], stop), jump: stop.cycle !== stops[i].cycle }));
  const within = bends
    .filter((one) => !one.jump)
    .map((one) => one.path)
    .join("");
  const jumps = bends
    .filter((one) => one.jump)
    .map((one) => one.path)
    .join("");
  if (stops.length < 2) return [];
  return [
    svg("path", { class: "snake-jump", d: jumps }),
    svg("path", { class: "snake-edge", d: within }),
    svg("path", { class: "snake", d: within }),
    ...stops.map((stop, i) => bead(plan, stop, i === stops.length - 1)),
  ];
}

function snakeStop(plan, visit, number) {
  const heights = visit.layers.filter((place) => plan.middle.includes(place)).map((place) => middleOf(plan, place));
  return heights.length
    ? [{ x: centreOf(plan, number), y: sum(heights) / heights.length, cycle: visit.cycle, visit, number }]
    : [];
}

function bend(from, to) {
  const half = (from.x + to.x) / 2;
  return `M${from.x} ${from.y}C${half} ${from.y} ${half} ${to.y} ${to.x} ${to.y}`;
}

function bead(plan, stop, last) {
  return svg("circle", {
    class: last ? "bead head" : "bead",
    cx: stop.x,
    cy: stop.y,
    r: 9,
    fill: paint(plan, stop.visit).fill,
  });
}

// The node's number in each cell, in a round the number of nodes once; the visit's number where there is room.
function labels(plan, visit, number) {
  const every = Math.ceil(34 / plan.column);
  const x = centreOf(plan, number);
  const under = svg("text", { class: "label", x, y: plan.height - 9 }, String(visit.visit));
  const one = visit.nodes.length === 1;
  const places = one ? visit.layers : visit.layers.slice(0, 1);
  const text = one ? String(visit.nodes[0]) : visit.nodes.length ? `${visit.nodes.length}×` : "";
  const style = `fill: ${paint(plan, visit).ink}`;
  const inside = places.map((place) => svg("text", { class: "label", x, y: middleOf(plan, place), style }, text));
  return number % every === 0 ? [...inside, under] : inside;
}

function badge(plan, visit, number) {
  if (!visit.event) return [];
  const x = centreOf(plan, number);
  const box = svg("rect", { x: x - 8, y: plan.top - 21, width: 16, height: 16, rx: 4 });
  const text = svg("text", { class: "label", x, y: plan.top - 13 }, eventSign(visit.event));
  return [svg("g", { class: "badge", "data-event": visit.event }, box, text)];
}

function eventSign(event) {
  return EVENTS[event] ? EVENTS[event][0] : event.slice(0, 1).toUpperCase();
}

// Over the whole column, so that the pointer finds it: what happened in this visit.
function wholeVisit(plan, visit, number) {
  const box = {
    class: "whole-visit",
    x: plan.column * number,
    y: plan.top,
    width: plan.column,
    height: ROW * plan.run.layers.length,
  };
  const trained = visit.layers.map((place) => plan.run.layers[place]).join(", ");
  const lines = [visitText(visit), `trained ${trained || "nothing"}`, visit.event, ...scores(plan.run, number)];
  return svg("rect", box, svg("title", {}, lines.filter(Boolean).join("\n")));
}

function scores(run, number) {
  const known = data.values.filter((value) => run.y[value.key] && run.y[value.key][number] !== null);
  return known.map((value) => `${value.label} ${human(run.y[value.key][number], value.unit)}`);
}

function scheduleLegend(plan) {
  const events = [...new Set(plan.run.visits.map((visit) => visit.event).filter(Boolean))];
  const said = [
    "Numbered from 0, as in metrics.jsonl.",
    plan.middle.length
      ? "The line joins the layers that train in some visits only, from visit to visit; it is dashed between two cycles."
      : "",
    plan.middle.length ? "" : "All layers train in every visit, so there is no line.",
  ];
  const keys = plan.nodes.length
    ? [html("p", {}, ...nodeKeys(plan))]
    : [html("p", {}, "Grey: rounds that several nodes share; 9× is nine nodes.")];
  const signs = events.length ? [html("p", {}, ...events.map(eventKey))] : [];
  return [...keys, ...signs, html("p", {}, said.filter(Boolean).join(" "))];
}

function nodeKeys(plan) {
  const few =
    plan.nodes.length <= 16
      ? plan.nodes
      : [plan.nodes[0], plan.nodes[plan.nodes.length >> 1], plan.nodes[plan.nodes.length - 1]];
  return few.map((node) => {
    const box = svg("rect", { width: 14, height: 14, rx: 3, fill: paint(plan, { nodes: [node] }).fill });
    return html(
      "span",
      { class: "key" },
      svg("svg", { width: 14, height: 14, "aria-hidden": "true" }, box),
      `node ${node}`,
    );
  });
}

function eventKey(event) {
  const box = svg("rect", { width: 16, height: 16, rx: 4 });
  const text = svg("text", { class: "label", x: 8, y: 8 }, eventSign(event));
  const sign = svg("svg", { class: "badge", width: 16, height: 16, "aria-hidden": "true" }, box, text);
  return html("span", { class: "key" }, sign, EVENTS[event] ? EVENTS[event][1] : event);
}
