// Curves of the shown runs, with values under the pointer or the arrow keys. What can be drawn is in data.values.

const FEW_POINTS = 60; // up to which each gets a dot
const FACTORS = 3; // up to this factor between least and greatest an axis of factors is linear
const FACTOR_MARGIN = 1.06; // of such an axis beyond the values
const MARGIN = { left: 54, right: 14, top: 10, bottom: 44 };
let points = []; // of the last drawing, in reading order: {left, top, index, at}
let pointed = -1;

function startCurves() {
  fillSelect(
    "axis",
    data.axes.map((axis) => [axis.key, axis.label]),
    drawCurves,
  );
  fillSelect(
    "value",
    data.values.map((value) => [value.key, value.label]),
    drawCurves,
  );
  const plot = byId("plot");
  plot.addEventListener("pointermove", pointAtNearest);
  plot.addEventListener("pointerdown", pointAtNearest);
  plot.addEventListener("pointerleave", () => pointAt(-1));
  plot.addEventListener("blur", () => pointAt(-1));
  plot.addEventListener("keydown", stepThroughPoints);
}

function chosen(id, among) {
  return among.find((one) => one.key === byId(id).value);
}

function drawCurves() {
  const axis = chosen("axis", data.axes);
  const value = chosen("value", data.values);
  const series = [...data.runs.keys()].filter((index) => shown.has(index)).map((index) => measured(index, axis, value));
  const filled = series.filter((one) => one.at.length > 0);
  const frame = frameFor(filled, axis, value);
  byId("plot-drawing").replaceChildren(
    filled.length ? drawing(frame, filled) : html("p", { class: "hint" }, "Nothing to draw."),
  );
  byId("legend").replaceChildren(...series.map((one) => legendItem(one, value)));
  points = filled.flatMap((one) =>
    one.at.map((at) => ({ ...at, index: one.index, left: frame.x(at.x), top: frame.y(at.y) })),
  );
  points.sort((a, b) => a.left - b.left || a.index - b.index);
  pointAt(-1);
}

// The places where both the axis and the value are known, led by the model before training where that is known.
function measured(index, axis, value) {
  const run = data.runs[index];
  const [x, y] = [run.x[axis.key], run.y[value.key]];
  if (!x || !y) return { index, at: [] };
  const start = run.start[value.key] === undefined ? [] : [{ x: 0, y: run.start[value.key], visit: null }];
  const at = start.concat(x.map((position, visit) => ({ x: position, y: y[visit], visit })));
  return { index, at: at.filter((one) => one.x !== null && one.y !== null) };
}

function frameFor(series, axis, value) {
  const width = Math.max(260, byId("plot-drawing").clientWidth);
  const height = Math.round(Math.min(430, Math.max(240, width * 0.5)));
  const all = series.flatMap((one) => one.at);
  const xs = extent(all.map((at) => at.x).concat(0));
  const ys = extent(all.map((at) => at.y));
  const xScale = scaleFor(xs[1], axis.unit);
  const yScale = scaleFor(ys[1], value.unit);
  const factors = value.factors && ys[1] > FACTORS * ys[0];
  const yTicks = factors ? factorTicks(ys[0], ys[1]) : ticks(ys[0] / yScale.factor, ys[1] / yScale.factor, 6);
  const xTicks = ticks(0, xs[1] / xScale.factor, Math.max(4, width / 95));
  const [bottom, top] = factors
    ? [ys[0] / FACTOR_MARGIN, ys[1] * FACTOR_MARGIN]
    : extent([...ys, yTicks[0] * yScale.factor, yTicks[yTicks.length - 1] * yScale.factor]);
  const right = Math.max(xs[1], 1e-12);
  const share = factors
    ? (at) => Math.log(at / bottom) / Math.log(top / bottom)
    : (at) => (at - bottom) / (top - bottom || 1);
  return {
    width,
    height,
    xTicks,
    yTicks,
    xScale,
    yScale,
    axis,
    value,
    x: (at) => MARGIN.left + (at / right) * (width - MARGIN.left - MARGIN.right),
    y: (at) => height - MARGIN.bottom - share(at) * (height - MARGIN.bottom - MARGIN.top),
  };
}

function extent(numbers) {
  return numbers.reduce(
    ([low, high], number) => [Math.min(low, number), Math.max(high, number)],
    [Infinity, -Infinity],
  );
}

// Round numbers from at or below `low` to at or above `high`.
function ticks(low, high, count) {
  const size = (high - low || Math.abs(high) || 1) / count;
  const power = 10 ** Math.floor(Math.log10(size));
  const step = [1, 2, 2.5, 5, 10].find((factor) => factor * power >= size * 0.999) * power;
  const first = Math.floor(low / step + 1e-9);
  const last = Math.ceil(high / step - 1e-9);
  return Array.from({ length: Math.max(2, last - first + 1) }, (_, i) => Number(((first + i) * step).toPrecision(10)));
}

// Between `low` and `high` on a logarithmic axis, as in report/canvas.py: fewer to a decade where there are many.
function factorTicks(low, high) {
  const steps = high < 10 * low ? [1, 1.5, 2, 3, 4, 6, 8] : high < 1000 * low ? [1, 2, 5] : [1];
  const first = Math.floor(Math.log10(low));
  const decades = Math.floor(Math.log10(high)) - first + 1;
  const all = Array.from({ length: decades }, (_, i) => steps.map((step) => step * 10 ** (first + i))).flat();
  return all.filter((tick) => tick >= low && tick <= high).map((tick) => Number(tick.toPrecision(10)));
}

function drawing(frame, series) {
  const title = `${frame.value.label} against ${frame.axis.label}`;
  const size = { width: frame.width, height: frame.height, viewBox: `0 0 ${frame.width} ${frame.height}` };
  const ring = svg("g", { id: "pointed" });
  return svg(
    "svg",
    { ...size, role: "img", "aria-label": title },
    ...gridLines(frame),
    ...series.map((one) => curve(frame, one)),
    ring,
  );
}

function gridLines(frame) {
  const { width, height, xTicks, yTicks } = frame;
  const floor = height - MARGIN.bottom;
  const inside = xTicks.filter((tick) => frame.x(tick * frame.xScale.factor) <= width - MARGIN.right + 1);
  const across = yTicks.flatMap((tick) => tickAcross(frame, tick));
  const along = inside.flatMap((tick) => tickAlong(frame, tick, floor));
  const middle = MARGIN.left + (width - MARGIN.left - MARGIN.right) / 2;
  const side = MARGIN.top + (floor - MARGIN.top) / 2;
  const under = svg(
    "text",
    { class: "title", x: middle, y: height - 6, "text-anchor": "middle" },
    withUnit(frame.axis.label, frame.xScale.unit),
  );
  const beside = { class: "title", x: 12, y: side, "text-anchor": "middle", transform: `rotate(-90 12 ${side})` };
  return [...across, ...along, under, svg("text", beside, withUnit(frame.value.label, frame.value.unit))];
}

function tickAcross(frame, tick) {
  const y = frame.y(tick * frame.yScale.factor);
  const text = { x: MARGIN.left - 7, y, "text-anchor": "end", "dominant-baseline": "central" };
  return [
    svg("line", { class: "grid", x1: MARGIN.left, x2: frame.width - MARGIN.right, y1: y, y2: y }),
    svg("text", text, tickText(tick)),
  ];
}

function tickAlong(frame, tick, floor) {
  const x = frame.x(tick * frame.xScale.factor);
  const line = svg("line", { class: "grid", x1: x, x2: x, y1: floor, y2: floor + 4 });
  return [line, svg("text", { x, y: floor + 17, "text-anchor": "middle" }, tickText(tick))];
}

function tickText(tick) {
  return tick.toLocaleString("en-US", { maximumFractionDigits: 6 });
}

function withUnit(label, unit) {
  return unit ? `${label} (${unit})` : label;
}

function curve(frame, one) {
  const at = one.at.map((point) => [frame.x(point.x).toFixed(1), frame.y(point.y).toFixed(1)]);
  const line = svg("polyline", {
    class: `curve ${look(one.index)}`,
    points: at.map((point) => point.join(",")).join(" "),
  });
  const dots =
    at.length > FEW_POINTS
      ? []
      : at.map(([cx, cy]) => svg("circle", { class: "dot", cx, cy, r: at.length > 25 ? 2.5 : 3.5 }));
  return svg("g", { class: look(one.index).split(" ")[0], "data-run": one.index }, line, ...dots);
}

function legendItem(one, value) {
  const last = one.at[one.at.length - 1];
  const text = last ? `last ${human(last.y, value.unit)}` : "not measured on these axes";
  const name = html("span", {}, ...breakable(data.runs[one.index].name));
  return html("li", { class: look(one.index).split(" ")[0] }, swatch(one.index), name, html("small", {}, text));
}

function pointAtNearest(event) {
  const box = byId("plot-drawing").getBoundingClientRect();
  const [left, top] = [event.clientX - box.left, event.clientY - box.top];
  const distances = points.map((point) => Math.hypot(point.left - left, point.top - top));
  const nearest = distances.reduce((best, distance, i) => (distance < (distances[best] ?? Infinity) ? i : best), -1);
  pointAt(distances[nearest] < 70 ? nearest : -1);
}

function stepThroughPoints(event) {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step || points.length === 0) return;
  event.preventDefault();
  pointAt(Math.min(points.length - 1, Math.max(0, pointed + step)));
}

// Marks a point and tells its values; -1 marks none.
function pointAt(number) {
  pointed = number;
  const point = points[number];
  byId("tip").hidden = !point;
  byId("pointed")?.replaceChildren(...(point ? [mark(point)] : []));
  if (point) placeTip(point);
}

function mark(point) {
  const series = look(point.index).split(" ")[0];
  return svg("circle", { class: `ring ${series}`, cx: point.left, cy: point.top, r: 5 });
}

function placeTip(point) {
  const [axis, value] = [chosen("axis", data.axes), chosen("value", data.values)];
  const lines = [
    `${value.label} ${human(point.y, value.unit)}`,
    `${axis.label} ${human(point.x, axis.unit)}`,
    point.visit === null ? "before training" : visitText(data.runs[point.index].visits[point.visit]),
  ];
  const tip = byId("tip");
  tip.replaceChildren(html("b", {}, data.runs[point.index].name), ...lines.map((line) => html("div", {}, line)));
  const room = byId("plot").clientWidth - tip.offsetWidth;
  const above = point.top - tip.offsetHeight - 12;
  tip.style.left = `${Math.max(0, Math.min(room, point.left - tip.offsetWidth / 2))}px`;
  tip.style.top = `${above < 0 ? point.top + 14 : above}px`;
}

function visitText(visit) {
  const cycle = visit.cycle === null ? "" : `, cycle ${visit.cycle}`;
  return `visit ${visit.visit}${cycle}, ${nodesText(visit.nodes)}`;
}

function nodesText(nodes) {
  if (nodes.length === 0) return "no node";
  if (nodes.length === 1) return `node ${nodes[0]}`;
  return nodes.length <= 12 ? `nodes ${nodes.join(", ")}` : `${nodes.length} nodes`;
}
