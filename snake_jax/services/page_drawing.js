// The snake over layers and nodes, and curves. Only what the lines of metrics say decides what is drawn.

const [ROW, LARGEST_COLUMN, LEAST_COLUMN, HEAD] = [28, 92, 30, 20];
const TAIL = 12; // visits that the way shows
const CURVES = [
  { key: "accuracy", label: "accuracy", scale: 100, unit: " %" },
  { key: "perplexity", label: "held-out perplexity", scale: 1, unit: "" },
  { key: "test_loss", label: "test loss", scale: 1, unit: "" },
  { key: "loss", label: "training loss", scale: 1, unit: "" },
];

// Natural order, so that conv10 comes after conv9; layers of more than one kind stay in the order of first use.
function layersOf(lines) {
  const named = [...new Set(lines.flatMap((line) => line.layers || []))];
  const always = named.filter((name) => lines.every((line) => (line.layers || []).includes(name)));
  const sometimes = named.filter((name) => !always.includes(name));
  sometimes.sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  if (sometimes.length === 0) return { layers: always, middle: [] };
  const below = always.filter((name) => name === named[0]);
  return { layers: [...below, ...sometimes, ...always.filter((name) => name !== named[0])], middle: sometimes };
}

function nodesOf(line) {
  if (line.node === null || line.node === undefined) return [];
  return Array.isArray(line.node) ? line.node : [line.node];
}

// The grid as it stood after the visit number `at`.
function drawSnake(lines, count, at) {
  const { layers, middle } = layersOf(lines);
  const known = lines.flatMap(nodesOf).reduce((most, node) => Math.max(most, node + 1), 0);
  const nodes = Math.max(count, known);
  const room = byId("snake-drawing").clientWidth || 600;
  const column = Math.min(LARGEST_COLUMN, Math.max(LEAST_COLUMN, Math.floor(room / Math.max(1, nodes))));
  const plan = { layers, middle, nodes, column, width: column * nodes, height: HEAD + ROW * layers.length };
  byId("snake-layers").replaceChildren(layerNames(plan));
  byId("snake-drawing").replaceChildren(
    layers.length ? grid(plan, lines, at) : html("p", { class: "hint" }, "No round is finished yet."),
  );
}

function layerNames(plan) {
  const longest = Math.max(0, ...plan.layers.map((name) => name.length));
  const width = plan.layers.length ? Math.min(140, 16 + 6.6 * longest) : 0;
  const names = plan.layers.map((name, row) => {
    const place = { x: width - 8, y: middleOf(row), "text-anchor": "end", "dominant-baseline": "central" };
    return svg("text", place, name);
  });
  return svg("svg", { width, height: plan.height }, ...names);
}

function middleOf(row) {
  return HEAD + ROW * (row + 0.5);
}

function grid(plan, lines, at) {
  const done = lines.slice(0, at + 1);
  const counts = new Map();
  for (const line of done)
    for (const node of nodesOf(line))
      for (const name of line.layers || []) {
        const key = `${name} ${node}`;
        counts.set(key, (counts.get(key) || 0) + 1);
      }
  const most = Math.max(1, ...counts.values());
  const now = lines[at];
  const cells = plan.layers.flatMap((name, row) =>
    Array.from({ length: plan.nodes }, (_, node) => cell(plan, name, row, node, counts.get(`${name} ${node}`) || 0, most)),
  );
  const heads = Array.from({ length: plan.nodes }, (_, node) =>
    svg("text", { x: plan.column * (node + 0.5), y: 13, "text-anchor": "middle" }, String(node)),
  );
  const label = `Visit ${at}: node ${nodesOf(now).join(", ")} trained ${(now.layers || []).join(", ")}`;
  return svg(
    "svg",
    { width: plan.width, height: plan.height, role: "img", "aria-label": label },
    ...heads,
    ...cells,
    ...rings(plan, now),
    ...way(plan, done),
  );
}

function cell(plan, name, row, node, count, most) {
  const box = { x: plan.column * node + 1, y: HEAD + ROW * row + 1, width: plan.column - 2, height: ROW - 2, rx: 5 };
  const said = svg("title", {}, `${name} on node ${node}: trained ${count} ${count === 1 ? "time" : "times"}`);
  if (count === 0) return svg("rect", { ...box, class: "empty" }, said);
  const shade = (0.18 + 0.62 * (count / most)).toFixed(3);
  return svg("rect", { ...box, class: "cell", "fill-opacity": shade, "data-layer": name, "data-node": node }, said);
}

function rings(plan, line) {
  return nodesOf(line).flatMap((node) =>
    (line.layers || []).map((name) => {
      const row = plan.layers.indexOf(name);
      const box = { x: plan.column * node + 2.5, y: HEAD + ROW * row + 2.5, width: plan.column - 5, height: ROW - 5, rx: 4 };
      return svg("rect", { ...box, class: "now", "data-layer": name, "data-node": node });
    }),
  );
}

// The way of the snake: where its visits of one node trained what does not train at every visit.
function way(plan, done) {
  const stops = done.flatMap((line) => {
    const rows = (line.layers || []).filter((name) => plan.middle.includes(name)).map((name) => plan.layers.indexOf(name));
    if (rows.length === 0 || nodesOf(line).length !== 1) return [];
    const mean = rows.reduce((sum, row) => sum + row, 0) / rows.length;
    return [[plan.column * (nodesOf(line)[0] + 0.5), middleOf(mean)]];
  });
  const last = stops.slice(-TAIL);
  if (last.length === 0) return [];
  // The older, the fainter.
  const steps = last.slice(1).flatMap((stop, i) => {
    const line = { x1: last[i][0], y1: last[i][1], x2: stop[0], y2: stop[1], "stroke-opacity": (i + 1) / (last.length - 1) };
    return [svg("line", { class: "way-edge", ...line }), svg("line", { class: "way", ...line })];
  });
  const beads = last.map(([cx, cy], i) =>
    svg("circle", { class: i === last.length - 1 ? "head" : "bead", cx, cy, r: i === last.length - 1 ? 7 : 4 }),
  );
  return [...steps, ...beads];
}

function drawCurves(lines) {
  const drawn = CURVES.filter((one) => lines.some((line) => typeof line[one.key] === "number"));
  byId("curves").replaceChildren(...drawn.map((one, i) => curve(one, lines, i)));
}

function curve(one, lines, index) {
  const at = lines.flatMap((line, visit) =>
    typeof line[one.key] === "number" ? [{ visit, value: line[one.key] * one.scale }] : [],
  );
  const [width, height, left, bottom] = [320, 170, 44, 22];
  const values = at.map((point) => point.value);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const span = high - low || Math.abs(high) || 1;
  const x = (visit) => left + ((width - left - 12) * visit) / Math.max(1, lines.length - 1);
  const y = (value) => height - bottom - ((value - low) / span) * (height - bottom - 12);
  const ticks = [low, low + span / 2, low + span].flatMap((value) => [
    svg("line", { class: "grid", x1: left, x2: width - 12, y1: y(value), y2: y(value) }),
    svg("text", { x: left - 6, y: y(value), "text-anchor": "end", "dominant-baseline": "central" }, short(value)),
  ]);
  const points = at.map((point) => `${x(point.visit).toFixed(1)},${y(point.value).toFixed(1)}`).join(" ");
  const last = at[at.length - 1];
  const label = `${one.label}, last ${short(last.value)}${one.unit}`;
  const picture = svg(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, width: "100%", role: "img", "aria-label": label },
    ...ticks,
    svg("polyline", { class: "curve", points }),
    svg("circle", { class: "dot", cx: x(last.visit), cy: y(last.value), r: 3.5 }),
    svg("text", { x: width - 12, y: height - 6, "text-anchor": "end" }, `visit ${lines.length - 1}`),
  );
  return html("figure", { class: `series-${index % 3}`, "data-curve": one.key }, html("figcaption", {}, label), picture);
}

function short(value) {
  return String(Number(value.toPrecision(3)));
}
