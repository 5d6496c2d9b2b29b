// The report: its state, the URL hash that keeps it, the controls, the table on top and the figures.
"use strict";

const report = readJson("report-data");
const checkpoints = new Map(report.checkpoints.map((entry) => [entry.label, entry]));

const DEFAULTS = {
  checkpoints: [...checkpoints.keys()],
  k: report.default.k,
  rule: report.default.rule,
  control: report.controls,
  search: "",
  relation: "",
  sort: "",
  page: 0,
  factoid: null,
  token: 0,
};
let state = { ...DEFAULTS };

// The hash holds what differs from the defaults, by name, so that links stay short and outlive new controls.

function stateFromHash() {
  const query = new URLSearchParams(location.hash.slice(1));
  const found = { ...DEFAULTS };
  const listed = query.getAll("ckpt").filter((label) => checkpoints.has(label));
  if (listed.length) found.checkpoints = DEFAULTS.checkpoints.filter((label) => listed.includes(label));
  if (report.k.includes(Number(query.get("k")))) found.k = Number(query.get("k"));
  if (report.rules.includes(query.get("rule"))) found.rule = query.get("rule");
  if (query.has("control")) found.control = report.controls && query.get("control") === "1";
  for (const name of ["search", "relation", "sort"]) found[name] = query.get(name) ?? "";
  for (const name of ["page", "token"]) found[name] = Math.trunc(Number(query.get(name))) || 0;
  found.factoid = query.get("factoid");
  return found;
}

function hashFromState() {
  const query = new URLSearchParams();
  if (state.checkpoints.length !== checkpoints.size) state.checkpoints.forEach((label) => query.append("ckpt", label));
  if (state.control !== DEFAULTS.control) query.set("control", state.control ? "1" : "0");
  for (const name of ["k", "rule", "search", "relation", "sort", "page", "factoid", "token"]) {
    if (state[name] !== DEFAULTS[name]) query.set(name, state[name]);
  }
  if (chosenTheme !== "auto") query.set("theme", chosenTheme);
  return query.size ? `#${query}` : "";
}

/** Changes the state, the hash and what depends on them. */
function change(part) {
  state = { ...state, ...part };
  keepHash();
  render(Object.keys(part));
}

function keepHash() {
  history.replaceState(null, "", hashFromState() || location.pathname + location.search);
}

// Controls

function buildControls() {
  byId("checkpoints").append(...report.checkpoints.map((entry) => element("label", { class: "chip" },
    element("input", { type: "checkbox", name: "checkpoint", value: entry.label, onchange: chooseCheckpoints }),
    element("span", {}, glyph(entry), entry.label))));
  byId("k").append(...segments("k", report.k, (k) => change({ k: Number(k) })));
  byId("rule").append(...segments("rule", report.rules, (rule) => change({ rule })));
  const control = byId("control");
  control.disabled = !report.controls;
  if (!report.controls) control.parentElement.title = "This probe holds no shuffled controls";
  control.addEventListener("change", () => change({ control: control.checked }));
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
}

const segments = (name, values, choose, texts = values) => values.map((value, index) => element("label", {},
  element("input", { type: "radio", name, value, onchange: () => choose(value) }),
  element("span", {}, String(texts[index]))));

function chooseCheckpoints(event) {
  const chosen = [...byId("checkpoints").querySelectorAll("input:checked")].map((input) => input.value);
  if (!chosen.length) event.target.checked = true; // an empty page says nothing
  else change({ checkpoints: chosen });
}

function showControls() {
  for (const input of byId("checkpoints").querySelectorAll("input")) input.checked = state.checkpoints.includes(input.value);
  for (const name of ["k", "rule"]) {
    for (const input of byId(name).querySelectorAll("input")) input.checked = input.value === String(state[name]);
  }
  byId("control").checked = state.control;
}

// The table on top

const span = (low, high, show) => (low === null || low === undefined ? null : `${show(low)} – ${show(high)}`);
const share = (entry) => (entry ? [percent(entry.value), span(entry.low, entry.high, percent)] : ["–", null]);
const spread = (mean, sd) => (mean === null ? "–" : `${fixed(mean)} ± ${fixed(sd)}`);
const named = (row, name, show) => [show(row[name]), span(row[`${name}_low`], row[`${name}_high`], show)];

// Title, number, its interval, what shuffled answers give
const COLUMNS = [
  ["Exact match", (row) => share(row.exact_match)],
  ["Exact tokens", (row) => share(row.exact_tokens)],
  ["Recall@{k}", (row) => [...share(row.recall), (chance) => percent(chance.recall?.value ?? null)]],
  ["First occurrence", (row) => [spread(row.lof_mean, row.lof_sd), span(row.lof_mean_low, row.lof_mean_high, fixed),
    (chance) => spread(chance.lof_mean, chance.lof_sd)]],
  ["Never occurs", (row) => [...named(row, "share_never", percent), (chance) => percent(chance.share_never)]],
  ["Settled depth", (row) => [spread(row.settled_mean, row.settled_sd),
    `never ${percent(row.settled_share_never)}`]],
  ["Depths held", (row) => [...named(row, "depths_per_factoid", fixed), (chance) => fixed(chance.depths_per_factoid)]],
  ["Effective layers", (row) => named(row, "effective_layers", fixed)],
];

function showHeadline() {
  const rows = report.headline[state.rule][state.k];
  const head = element("tr", {}, element("th", { scope: "col" }, "Checkpoint"),
    ...COLUMNS.map(([title]) => element("th", { scope: "col" }, title.replace("{k}", state.k))));
  const body = state.checkpoints.map((label) => {
    const row = rows[label];
    const name = element("th", { scope: "row" }, element("span", {}, glyph(checkpoints.get(label)), label));
    return element("tr", {}, name, ...COLUMNS.map(([, cell]) => {
      const [value, interval, chance] = cell(row);
      return element("td", {}, element("span", { class: "value" }, value),
        interval ? element("small", {}, interval) : null,
        chance && row.shuffled && state.control ? element("small", {}, `shuffled ${chance(row.shuffled)}`) : null);
    }));
  });
  byId("headline").replaceChildren(element("thead", {}, head), element("tbody", {}, ...body));
}

// Figures

const NOTHING = {
  recall: "No records.",
  frequency: "No answer is among the top k at any depth.",
  lof: "No records.",
};

let figures = null;

async function showFigures() {
  figures ??= await inflateJson("figures");
  for (const holder of document.querySelectorAll(".plots [data-figure]")) {
    const figure = figures[holder.dataset.figure][state.rule][state.k];
    const data = figure.data.filter((trace) => state.checkpoints.includes(trace.meta.checkpoint)
      && (state.control || trace.meta.role !== "control"));
    const empty = data.every((trace) => trace.y.every((value) => value === null));
    draw(holder, { data: empty ? [] : data, layout: figure.layout }, report.templates, NOTHING[holder.dataset.figure]);
    holder.querySelector(".legend").replaceChildren(...state.checkpoints.map((label) =>
      element("li", {}, glyph(checkpoints.get(label)), label)));
  }
}

// What was run

function showRun() {
  byId("title").textContent = report.title;
  byId("subtitle").textContent = report.subtitle;
  byId("run").append(...report.run.flatMap(([name, text]) => [element("dt", {}, name), element("dd", {}, text)]));
  const [head, ...rows] = report.run_checkpoints;
  byId("run-checkpoints").append(
    element("thead", {}, element("tr", {}, ...head.map((text) => element("th", { scope: "col" }, text)))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map((text) => element("td", {}, text))))));
}

// One turn: everything, or what the changed parts of the state concern

const SHARED = ["checkpoints", "k", "rule"];

function render(changed = null) {
  const any = (names) => changed === null || changed.some((name) => names.includes(name));
  if (any([...SHARED, "control"])) {
    showControls();
    showHeadline();
    if (window.Plotly) showFigures();
  }
  showExplorer(changed);
}

document.addEventListener("DOMContentLoaded", () => {
  // Plotly stands after this script, so that the table is there before it is parsed.
  showFigures().then(() => {
    document.documentElement.setAttribute("data-ready", "");
    performance.mark("figures");
  });
});
window.addEventListener("hashchange", () => {
  state = stateFromHash();
  render();
});
