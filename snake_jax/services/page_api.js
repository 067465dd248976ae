// Asks the Service Provider. The token is kept in this tab's session storage and sent in a header, nowhere else.

const TOKEN = "snake-jax token";

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

// An answer that is no refusal; else an error with the Service Provider's own line.
async function ask(path, options = {}) {
  const headers = { Authorization: `Bearer ${sessionStorage.getItem(TOKEN)}` };
  if (options.body) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, { ...options, headers });
  if (answer.ok) return answer;
  const refusal = await answer.json().catch(() => ({}));
  const error = new Error(refusal.error || `answered ${answer.status}`);
  error.status = answer.status;
  throw error;
}

async function askJson(path, options) {
  return (await ask(path, options)).json();
}

// Calls `give` with every line of metrics from the first on, as they come, until the service is over or `signal` says so.
async function followMetrics(number, signal, give) {
  let first = 0;
  for (;;) {
    const over = isOver(await askJson(`services/${number}`, { signal }));
    const answer = await ask(`services/${number}/metrics?first=${first}&wait_s=600`, { signal });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      first += lines.length;
      give(lines.map((line) => JSON.parse(line)));
    }
    if (over) return;
  }
}

function isOver(service) {
  return ["finished", "failed", "cancelled"].includes(service.state);
}

// A link cannot send the token: the file is fetched, then given to be saved.
async function save(path, name) {
  const blob = await (await ask(path)).blob();
  const link = html("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// The operations of the OpenAPI document, as a list to read.
function operations(document) {
  const parts = [];
  for (const [path, methods] of Object.entries(document.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      parts.push(html("h3", {}, `${method.toUpperCase()} ${path}`));
      parts.push(html("div", {}, operation.description || operation.summary));
      const query = (operation.parameters || []).filter((one) => one.in === "query");
      for (const one of query) parts.push(html("div", { class: "hint" }, `?${one.name}: ${one.description || ""}`));
      const body = operation.requestBody?.content["application/json"].schema.$ref;
      if (body) parts.push(...fields(document, body.split("/").pop(), ""));
    }
  }
  return parts;
}

function fields(document, schema, before) {
  const parts = [];
  for (const [name, field] of Object.entries(document.components.schemas[schema].properties)) {
    const inner = field.$ref?.split("/").pop();
    if (inner) parts.push(...fields(document, inner, `${name}.`));
    else parts.push(html("div", { class: "hint" }, `${before}${name}: ${field.description || ""}`));
  }
  return parts;
}
