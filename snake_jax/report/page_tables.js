// The tables: runs, the ledger of one run, configurations. Sorting and hiding change the order and look of rows only.

const order = { column: null, down: false };
const MISSING = "–";

function drawRuns() {
  byId("runs-table").replaceChildren(html("thead", {}, headings()), html("tbody", {}, ...sorted().map(runRow)));
}

function headings() {
  const all = html("input", { type: "checkbox", "aria-label": "show all runs" });
  all.checked = shown.size === data.runs.length;
  all.indeterminate = shown.size > 0 && !all.checked;
  all.addEventListener("change", () => showAll(all.checked));
  return html(
    "tr",
    {},
    html("th", { class: "pick", scope: "col" }, html("label", {}, all)),
    ...data.columns.map(heading),
  );
}

function heading(column) {
  const button = html("button", { type: "button", "data-column": column.key }, column.label);
  button.addEventListener("click", () => sortBy(column.key));
  const direction = order.column !== column.key ? "none" : order.down ? "descending" : "ascending";
  return html("th", { class: kind(column), scope: "col", "aria-sort": direction }, button);
}

function kind(column) {
  return column.number ? "number" : column.key === "name" ? "stays" : "word";
}

function runRow(index) {
  const cells = data.columns.map((column) => runCell(column, data.runs[index].cells[column.key]));
  return html("tr", { "data-run": index, class: shown.has(index) ? "" : "hidden-run" }, pick(index), ...cells);
}

function runCell(column, cell) {
  const name = column.key === "name" ? "th" : "td";
  const attributes = { class: kind(column), ...(name === "th" ? { scope: "row" } : {}) };
  return html(name, attributes, ...(name === "th" ? breakable(cell.text) : [cell.text]));
}

function pick(index) {
  const box = html("input", { type: "checkbox", "aria-label": `show ${data.runs[index].name}` });
  box.checked = shown.has(index);
  box.addEventListener("change", () => show(index, box.checked));
  return html("td", { class: `pick ${look(index)}` }, html("label", {}, box, swatch(index)));
}

function sortBy(key) {
  order.down = order.column === key && !order.down;
  order.column = key;
  drawRuns();
  document.querySelector(`[data-column="${key}"]`).focus();
}

function sorted() {
  const indexes = [...data.runs.keys()];
  if (order.column === null) return indexes;
  const value = (index) => data.runs[index].cells[order.column].value;
  const known = indexes.filter((index) => value(index) !== null);
  known.sort((a, b) => compare(value(a), value(b)) * (order.down ? -1 : 1));
  return [...known, ...indexes.filter((index) => value(index) === null)]; // what is not known comes last
}

function compare(a, b) {
  return typeof a === "number" && typeof b === "number"
    ? a - b
    : String(a).localeCompare(String(b), "en", { numeric: true });
}

function show(index, wanted) {
  if (wanted) shown.add(index);
  else shown.delete(index);
  refreshShown();
  document.querySelector(`tr[data-run="${index}"] input`).focus();
}

function showAll(wanted) {
  shown.clear();
  if (wanted) data.runs.forEach((_, index) => shown.add(index));
  refreshShown();
  document.querySelector("th.pick input").focus();
}

function refreshShown() {
  drawRuns();
  drawCurves();
  drawConfiguration();
}

// ---- ledger

function drawLedger() {
  const ledger = data.runs[byId("ledger-run").value].ledger;
  const totals = byId("ledger-totals");
  totals.textContent = ledger ? totalsText(ledger) : "No ledger kept: the run folder has no ledger.jsonl.";
  totals.classList.toggle("wrong", Boolean(ledger) && !agrees(ledger));
  byId("ledger-table").replaceChildren(...(ledger ? ledgerTable(ledger) : []));
}

function agrees(ledger) {
  return ledger.bytes_up === ledger.metrics_up && ledger.bytes_down === ledger.metrics_down;
}

function totalsText(ledger) {
  const exact = (bytes) => `${bytes.toLocaleString("en-US")} B`;
  const text =
    `${ledger.transfers.toLocaleString("en-US")} transfers: nodes sent ${exact(ledger.bytes_up)} (up), the server ` +
    `${exact(ledger.bytes_down)} (down)`;
  const other = `${exact(ledger.metrics_up)} up and ${exact(ledger.metrics_down)} down`;
  return agrees(ledger) ? `${text}. metrics.jsonl has the same totals.` : `${text}, but metrics.jsonl has ${other}.`;
}

function ledgerTable(ledger) {
  const groups = [...ledger.reasons, "total"];
  const place = html("th", { class: "stays", scope: "col", rowspan: 2 }, "place");
  const top = html(
    "tr",
    {},
    place,
    ...groups.map((why) => html("th", { class: "group", scope: "colgroup", colspan: 2 }, why)),
  );
  const ends = groups.flatMap(() => [
    html("th", { class: "number first", scope: "col" }, "sent"),
    html("th", { class: "number", scope: "col" }, "received"),
  ]);
  const rows = ledger.places.map((one) => ledgerRow(one.name, one.sent, one.received));
  const all = ledgerRow("all", sumOf(ledger, "sent"), sumOf(ledger, "received"));
  return [html("thead", {}, top, html("tr", {}, ...ends)), html("tbody", {}, ...rows), html("tfoot", {}, all)];
}

function ledgerRow(name, sent, received) {
  const amounts = [...sent.keys()].flatMap((i) => [bytesCell(sent[i], true), bytesCell(received[i], false)]);
  const totals = [bytesCell(sum(sent), true), bytesCell(sum(received), false)];
  return html("tr", {}, html("th", { class: "stays", scope: "row" }, name), ...amounts, ...totals);
}

function bytesCell(bytes, first) {
  const attributes = {
    class: first ? "number first" : "number",
    title: `${bytes.toLocaleString("en-US")} B`,
    "data-bytes": bytes,
  };
  return html("td", attributes, bytes === 0 ? MISSING : human(bytes, "B"));
}

function sum(numbers) {
  return numbers.reduce((total, number) => total + number, 0);
}

function sumOf(ledger, end) {
  return ledger.reasons.map((_, i) => sum(ledger.places.map((place) => place[end][i])));
}

// ---- events

const EVENT_HEADS = ["time", "round", "visit", "node", "event", "cause"];

function drawEvents() {
  const events = data.runs[byId("events-run").value].events;
  byId("events-note").textContent = eventsText(events);
  byId("events-table").replaceChildren(...(events.length ? eventsTable(events) : []));
}

function eventsText(events) {
  const kinds = [...new Set(events.map((event) => event.event))];
  const counts = kinds.map((kind) => `${events.filter((event) => event.event === kind).length} ${kind}`);
  return events.length ? `${counts.join(", ")}. Times are from the first event on.` : "No events.jsonl in this run.";
}

function eventsTable(events) {
  const heads = EVENT_HEADS.map((name) => html("th", { class: isWord(name) ? "word" : "number", scope: "col" }, name));
  return [html("thead", {}, html("tr", {}, ...heads)), html("tbody", {}, ...events.map(eventRow))];
}

function eventRow(event) {
  const text = (name) => {
    if (event[name] === null) return MISSING;
    return name === "time" ? human(event.time, "s") : String(event[name]);
  };
  const cells = EVENT_HEADS.map((name) => html("td", { class: isWord(name) ? "word" : "number" }, text(name)));
  return html("tr", { "data-event": event.event }, ...cells);
}

function isWord(name) {
  return name === "event" || name === "cause";
}

// ---- configuration

function drawConfiguration() {
  const runs = data.runs.filter((run, index) => shown.has(index) && Object.keys(run.config).length > 0);
  const fields = [...new Set(runs.flatMap((run) => Object.keys(run.config)))];
  const values = (field) => runs.map((run) => run.config[field]); // undefined: not recorded
  const differing = runs.length < 2 ? [] : fields.filter((field) => new Set(values(field)).size > 1);
  const same = fields.filter((field) => !differing.includes(field));
  byId("configuration-note").textContent = configurationNote(runs, differing);
  byId("differences").replaceChildren(...(differing.length ? differencesTable(runs, differing, values) : []));
  byId("same-summary").textContent =
    runs.length < 2 ? `All ${same.length} fields` : `${same.length} fields that are the same`;
  byId("same").replaceChildren(
    ...same.map((field) => html("div", {}, html("dt", {}, field), html("dd", {}, values(field)[0]))),
  );
  byId("same-details").hidden = same.length === 0;
}

function configurationNote(runs, differing) {
  const without = shown.size - runs.length;
  const note = without ? ` ${without} of the ticked runs have no config.json.` : "";
  if (runs.length < 2) return `Fewer than two ticked runs with a configuration: nothing to compare.${note}`;
  const found =
    differing.length === 0 ? "in nothing" : `in ${differing.length} field${differing.length === 1 ? "" : "s"}`;
  return `The ${runs.length} ticked runs differ ${found}.${note}`;
}

function differencesTable(runs, fields, values) {
  const head = html("tr", {}, html("th", { class: "stays", scope: "col" }, "field"));
  head.append(...runs.map((run) => html("th", { class: "wraps", scope: "col" }, ...breakable(run.name))));
  const cell = (value) => html("td", { class: "value" }, value === undefined ? "not recorded" : value);
  const row = (field) =>
    html("tr", {}, html("th", { class: "stays", scope: "row" }, field), ...values(field).map(cell));
  return [html("thead", {}, head), html("tbody", {}, ...fields.map(row))];
}
