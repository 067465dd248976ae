// What the page's parts share, and its start. Text from runs reaches the page as text nodes only.

const data = JSON.parse(document.getElementById("data").textContent);
const shown = new Set(data.runs.keys());
const COLOURS = 7;
const DASHES = 4;

function byId(id) {
  return document.getElementById(id);
}

// An element with attributes and children; strings among the children become text.
function html(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

// A long name may break behind its underscores and slashes.
function breakable(name) {
  return name.split(/(?<=[_/])/).flatMap((part) => [part, html("wbr")]);
}

// Runs keep their look whatever is sorted or hidden; 28 runs differ in colour or dashes.
function look(index) {
  return `series-${index % COLOURS} dash-${index % DASHES}`;
}

function swatch(index) {
  const line = svg("line", { class: `curve ${look(index)}`, x1: 0, x2: 26, y1: 6, y2: 6 });
  return svg("svg", { width: 26, height: 12, "aria-hidden": "true" }, line);
}

// As report/units.py: three digits and a decimal prefix; counts in full.
function human(value, unit) {
  if (unit === "%") return `${(100 * value).toFixed(1)} %`;
  if (unit === "")
    return Number.isInteger(value) ? value.toLocaleString("en-US") : String(Number(value.toPrecision(4)));
  const scale = scaleFor(Number(value.toPrecision(3)), unit);
  return `${threeDigits(value / scale.factor)} ${scale.unit}`;
}

function scaleFor(largest, unit) {
  if (unit === "%") return { factor: 0.01, unit: "%" };
  if (unit === "s") return secondsScale(largest);
  const prefixes = [
    [1e15, "P"],
    [1e12, "T"],
    [1e9, "G"],
    [1e6, "M"],
    [1e3, "k"],
  ];
  const [factor, prefix] = prefixes.find(([size]) => largest >= size) || [1, ""];
  return unit === "" ? { factor: 1, unit: "" } : { factor, unit: prefix + unit };
}

function secondsScale(largest) {
  if (largest >= 7200) return { factor: 3600, unit: "h" };
  return largest >= 300 ? { factor: 60, unit: "min" } : { factor: 1, unit: "s" };
}

function threeDigits(value) {
  const size = Math.abs(value);
  return value.toFixed(size >= 100 || value === 0 ? 0 : size >= 10 ? 1 : 2);
}

function fillSelect(id, options, onChange) {
  const select = byId(id);
  select.replaceChildren(...options.map(([value, label]) => html("option", { value }, label)));
  select.addEventListener("change", onChange);
}

function start() {
  const unfinished = data.runs.filter((run) => run.cells.status.value !== "finished").length;
  const count = `${data.runs.length} run${data.runs.length === 1 ? "" : "s"}`;
  byId("counts").textContent = unfinished ? `${count}, ${unfinished} of them not finished` : `${count}, all finished`;
  const names = data.runs.map((run, index) => [index, run.name]);
  fillSelect("schedule-run", names, drawSchedule);
  fillSelect("ledger-run", names, drawLedger);
  const first = Math.max(
    0,
    data.runs.findIndex((run) => middleLayers(run).length > 0),
  ); // a run whose visits train different layers, where there is one
  fillSelect("events-run", names, drawEvents);
  const eventful = data.runs.findIndex((run) => run.events.some((event) => event.event !== "admitted"));
  byId("events-run").value = Math.max(0, eventful);
  byId("schedule-run").value = first;
  byId("ledger-run").value = first;
  startCurves();
  drawRuns();
  drawLedger();
  drawEvents();
  drawConfiguration();
  redrawOnResize("plot-drawing", drawCurves);
  redrawOnResize("schedule-drawing", drawSchedule);
}

// Draws now, and again whenever the width changes.
function redrawOnResize(id, draw) {
  let width = null;
  const observer = new ResizeObserver(() => {
    const now = byId(id).clientWidth;
    if (now === width) return;
    width = now;
    draw();
  });
  draw();
  width = byId(id).clientWidth;
  observer.observe(byId(id));
}

start();
