// The page: its state, the URL hash that keeps it, rooms, controls, tables and figures.
"use strict";

const report = readJson("report-data");

// What the state of a set depends on; `set` is null where there are training runs or comparisons only.
let set = report.sets[0] ?? null;
let checkpoints = new Map();

function chooseSet(chosen) {
  set = chosen;
  checkpoints = new Map((set?.checkpoints ?? []).map((entry) => [entry.label, entry]));
}
chooseSet(set);

/** Sets that differ from the one shown in lens, readout or position alone; and the one that tells of what else was read. */
const family = () => report.sets.filter((entry) => entry.family === set?.family);
const homeOf = (room) => family().find((entry) => entry.beside[room]);
const BESIDE = ["lenses", "positions", "written"];

const ROOMS = [
  ["overview", "Overview", () => set],
  ["curves", "Curves", () => set],
  ["depths", "Depths", () => set],
  ["differences", "Differences", () => set?.against.length || report.comparisons.length],
  ["fates", "Fates", () => set?.chains.length || set?.series.length],
  ["lenses", "Lenses", () => homeOf("lenses")],
  ["positions", "Positions", () => homeOf("positions")],
  ["written", "Written", () => homeOf("written")],
  ["patches", "Patches", () => report.patches],
  ["study", "Study", () => report.results.length],
  ["training", "Training", () => report.training],
  ["factoids", "Factoids", () => set],
  ["run", "Setup", () => set],
];
const openRooms = () => ROOMS.filter(([, , has]) => has()).map(([name]) => name);

const defaults = () => ({
  set: set?.name ?? "",
  room: openRooms()[0],
  checkpoints: [...checkpoints.keys()],
  k: set?.default.k ?? report.k[0],
  rule: set?.default.rule ?? report.rules[0],
  control: Boolean(set?.controls),
  bands: "",
  against: set?.against[0]?.[0] ?? "",
  measure: Object.keys(report.training?.curves ?? {})[0] ?? "",
  pair: "",
  search: "",
  relation: "",
  fate: "",
  quarter: "",
  sort: "",
  page: 0,
  factoid: null,
  token: 0,
});
let state = defaults();

// The hash holds what differs from the defaults, by name, so that links stay short and outlive new controls.

const NAMES = ["k", "rule", "bands", "against", "measure", "pair", "search", "relation", "fate", "quarter", "sort", "page", "factoid", "token"];

function stateFromHash() {
  const query = new URLSearchParams(location.hash.slice(1));
  chooseSet(report.sets.find((entry) => entry.name === query.get("set")) ?? report.sets[0] ?? null);
  const found = defaults();
  const listed = query.getAll("ckpt").filter((label) => checkpoints.has(label));
  if (listed.length) found.checkpoints = found.checkpoints.filter((label) => listed.includes(label));
  if (report.k.includes(Number(query.get("k")))) found.k = Number(query.get("k"));
  if (report.rules.includes(query.get("rule"))) found.rule = query.get("rule");
  if (query.has("control")) found.control = Boolean(set?.controls) && query.get("control") === "1";
  if (set?.against.some(([key]) => key === query.get("against"))) found.against = query.get("against");
  if (query.get("measure") in (report.training?.curves ?? {})) found.measure = query.get("measure");
  if (["on", "off"].includes(query.get("bands"))) found.bands = query.get("bands");
  for (const name of ["pair", "search", "relation", "fate", "quarter", "sort"]) found[name] = query.get(name) ?? "";
  for (const name of ["page", "token"]) found[name] = Math.trunc(Number(query.get(name))) || 0;
  found.factoid = query.get("factoid");
  // A link to a factoid opens the room that shows it.
  if (openRooms().includes(query.get("room"))) found.room = query.get("room");
  else if (found.factoid !== null && set) found.room = "factoids";
  return found;
}

function hashFromState() {
  const query = new URLSearchParams();
  const usual = defaults();
  if (report.sets.length > 1 && set !== report.sets[0]) query.set("set", set.name);
  if (state.room !== usual.room || state.factoid !== null) query.set("room", state.room);
  if (state.checkpoints.length !== checkpoints.size) state.checkpoints.forEach((label) => query.append("ckpt", label));
  if (state.control !== usual.control) query.set("control", state.control ? "1" : "0");
  for (const name of NAMES) if (state[name] !== usual[name]) query.set(name, state[name]);
  if (chosenTheme !== "auto") query.set("theme", chosenTheme);
  return query.size ? `#${query}` : "";
}

/** Changes the state, the hash and what depends on them. */
function change(part) {
  if ("set" in part) {
    const before = set;
    chooseSet(report.sets.find((entry) => entry.name === part.set));
    const same = before?.family === set.family;
    const names = ["room", "k", "rule", "measure", "pair", ...(same ? ["bands", "search", "relation", "fate", "quarter", "factoid", "token"] : [])];
    const kept = Object.fromEntries(names.map((name) => [name, state[name]]));
    if (same) kept.checkpoints = [...checkpoints.keys()].filter((label) => state.checkpoints.includes(label));
    if (!kept.checkpoints?.length) delete kept.checkpoints;
    state = { ...defaults(), ...kept };
    if (!openRooms().includes(state.room)) state.room = openRooms()[0];
    keepHash();
    buildSet();
    return render();
  }
  state = { ...state, ...part };
  keepHash();
  return render(Object.keys(part));
}

function keepHash() {
  history.replaceState(null, "", hashFromState() || location.pathname + location.search);
}

// Controls

// As in the stylesheet. There the controls fold into a line, so that what they choose comes first.
const phone = matchMedia("(max-width: 700px)");

/** What stays the same whichever set is shown. */
function buildControls() {
  byId("title").textContent = report.title;
  byId("subtitle").textContent = report.subtitle;
  byId("k").append(...segments("k", report.k, (k) => change({ k: Number(k) })));
  byId("rule").append(...segments("rule", report.rules, (rule) => change({ rule })));
  byId("control").addEventListener("change", (event) => change({ control: event.target.checked }));
  byId("bands").addEventListener("change", (event) => change({ bands: event.target.checked ? "on" : "off" }));
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  byId("folded").open = !phone.matches;
  phone.addEventListener("change", () => {
    byId("folded").open = !phone.matches;
    showAnswer();
  });
  const families = [...new Set(report.sets.map((entry) => entry.family))];
  byId("set").append(...families.map((name) => element("option", { value: name }, name)));
  byId("set").addEventListener("change", (event) =>
    change({ set: report.sets.find((entry) => entry.family === event.target.value).name }));
  byId("sets").hidden = families.length < 2;
  for (const axis of ["lens", "position"]) {
    byId(axis).addEventListener("change", (event) => {
      const wanted = { lens: set.lens, position: set.position, [axis]: event.target.value };
      const there = family().find((entry) => entry.lens === wanted.lens && entry.position === wanted.position)
        ?? family().find((entry) => entry[axis] === wanted[axis]);
      change({ set: there.name });
    });
  }
  byId("headline-csv").addEventListener("click", () => download("checkpoints.csv", headlineCsv()));
  const curves = Object.keys(report.training?.curves ?? {});
  byId("measure").append(...segments("measure", curves, (measure) => change({ measure }), curves.map((name) => name.replace("_", " "))));
  byId("rooms").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const open = openRooms();
    change({ room: open[(open.indexOf(state.room) + step + open.length) % open.length] });
    byId(`tab-${state.room}`).focus();
  });
  buildTraining();
  buildComparisons();
  buildResults();
  buildSet();
}

/** What each set has of its own. */
function buildSet() {
  byId("rooms").replaceChildren(...ROOMS.filter(([, , has]) => has()).map(([name, title]) => element("button", {
    type: "button", role: "tab", id: `tab-${name}`, "aria-controls": `room-${name}`, onclick: () => change({ room: name }),
  }, title)));
  if (!set) return;
  byId("asked").textContent = set.subtitle;
  byId("checkpoints").replaceChildren(...set.checkpoints.map((entry) => element("label", { class: "chip" },
    element("input", { type: "checkbox", name: "checkpoint", value: entry.label, onchange: chooseCheckpoints }),
    element("span", {}, glyph(entry), entry.label))));
  const many = set.checkpoints.length > 8;
  byId("chosen").closest(".chips").classList.toggle("many", many);
  byId("chosen").open = !many;
  byId("control").disabled = !set.controls;
  byId("control").parentElement.title = set.controls ? "" : "These probes hold no shuffled controls";
  byId("against").replaceChildren(...segments("against", set.against.map(([key]) => key), (against) => change({ against }),
    set.against.map(([, text]) => text)));
  const named = (prefix) => set.figures.filter((name) => name.startsWith(prefix));
  const small = (name, title, keyed = null) => element("figure", { class: "plot", "data-figure": name, "data-key": keyed }, element("figcaption", {}, element("h2", {}, title)));
  const titles = { ...set.statistics, recall_full: "recall at full depth" };
  titles.depths_per_factoid = "depths held";
  byId("stages").replaceChildren(...named("stage-").map((name) => small(name, titled(titles[name.slice("stage-".length)]))));
  byId("stages").hidden = !named("stage-").length;
  byId("stages").append(element("ul", { class: "key shared", id: "stages-key" }));
  byId("steps").replaceChildren(...named("step-").map((name) => small(name, titled(titles[name.slice("step-".length)] ?? "What has become of the facts"))));
  byId("steps").hidden = !named("step-").length;
  byId("steps").append(element("ul", { class: "key shared", id: "steps-key" }));
  byId("overview-plots").hidden = named("stage-").length > 0;
  byId("stages-note").textContent = named("stage-").length
    ? `After each training stage, on the factoids probed here. A line is a run, or an arm’s mean, ${severalSeeds() ? "in a colour of its arm" : "in the colour of the checkpoint it ends at"}. Bars are 95 % intervals: over factoids for a single seed, over seeds and factoids for an arm’s mean.` : "";
  byId("differences").replaceChildren(...named("difference-").map((name) => small(name, titled(titles[name.slice("difference-".length)]))));
  byId("differences-note").hidden = !named("difference-").length;
  byId("fates").replaceChildren(
    ...named("fates-").map((name) => small(name, `Over the steps of ${set.series[name.slice("fates-".length)].name}`, "")),
    ...named("fate-").map((name) => small(name, set.chains[name.slice("fate-".length)].name)));
  for (const axis of ["lens", "position"]) {
    const known = [...new Set(family().map((entry) => entry[axis]))];
    byId(axis).replaceChildren(...known.map((name) => element("option", { value: name }, name)));
    byId(axis).value = set[axis];
  }
  for (const room of BESIDE) {
    const home = homeOf(room);
    byId(room).replaceChildren(...(home?.shown_beside ?? []).map((label, at) => element("figure", {
      class: "plot", "data-figure": `${room}-${at}`, "data-prefix": home.prefix, "data-key": "",
    }, element("figcaption", {}, element("h2", {}, label)))));
  }
  showRun();
  buildFilters();
}

/** Whether some arm has several seeds, so that lines are coloured by arm: tables over seeds are there then. */
const severalSeeds = () => Boolean(set.arms?.[report.rules[0]][report.k[0]].length);

function chooseCheckpoints(event) {
  const chosen = [...byId("checkpoints").querySelectorAll("input:checked")].map((input) => input.value);
  if (!chosen.length) event.target.checked = true; // an empty page says nothing
  else change({ checkpoints: chosen });
}

function showControls() {
  for (const input of byId("checkpoints").querySelectorAll("input")) input.checked = state.checkpoints.includes(input.value);
  for (const name of ["k", "rule", "against", "measure"]) {
    for (const input of byId(name).querySelectorAll("input")) input.checked = input.value === String(state[name]);
  }
  byId("control").checked = state.control;
  byId("bands").checked = bandsShown();
  byId("bands").indeterminate = false;
  if (set) {
    const all = state.checkpoints.length === set.checkpoints.length;
    byId("chosen-said").textContent = `${all ? "all " : ""}${state.checkpoints.length}${all ? "" : ` of ${set.checkpoints.length}`}`;
  }
  if (set) byId("set").value = set.family;
  const said = [...byId("controls").querySelectorAll("fieldset[data-rooms]")].filter((field) => !field.hidden).map(chosenIn).filter(Boolean);
  byId("folded-said").textContent = said.join(" · ");
  byId("folded").hidden = !said.length;
}

/** What a field of the controls says, in a few words. */
function chosenIn(field) {
  if (field.contains(byId("checkpoints"))) {
    const chosen = state.checkpoints.length;
    return `${chosen === checkpoints.size ? "" : `${chosen} of `}${checkpoints.size} checkpoint${checkpoints.size === 1 ? "" : "s"}`;
  }
  if (field.contains(byId("k"))) return `top ${state.k}`;
  if (field.contains(byId("rule"))) return `${state.rule} token${state.rule === "all" ? "s" : ""}`;
  const box = byId("control");
  if (field.contains(box)) return state.control && !box.parentElement.hidden ? "with chance" : "";
  const choice = field.querySelector("select");
  if (choice) return choice.selectedOptions[0]?.textContent ?? "";
  return field.querySelector("input:checked")?.parentElement.textContent ?? "";
}

function showRoom() {
  document.body.dataset.room = state.room;
  for (const [name] of ROOMS) {
    byId(`room-${name}`).hidden = name !== state.room;
    const tab = byId(`tab-${name}`);
    if (!tab) continue;
    tab.setAttribute("aria-selected", String(name === state.room));
    tab.tabIndex = name === state.room ? 0 : -1;
  }
  for (const field of byId("controls").querySelectorAll("[data-rooms]")) {
    const here = field.dataset.rooms.split(" ").includes(state.room);
    const empty = { sets: new Set(report.sets.map((entry) => entry.family)).size < 2,
      "lens-field": new Set(family().map((entry) => entry.lens)).size < 2,
      "position-field": new Set(family().map((entry) => entry.position)).size < 2, "against-field": (set?.against.length ?? 0) < 1 }[field.id];
    field.hidden = !here || !(set || field.dataset.rooms === "training") || Boolean(empty);
  }
  byId(`tab-${state.room}`)?.scrollIntoView({ block: "nearest", inline: "nearest" });
}

// Tables of the overview

const span = (low, high, show) => (low === null || low === undefined ? null : `${show(low)} – ${show(high)}`);
const orFew = (value, interval) => (value === null || value === undefined ? null : interval ?? "too few");
const share = (entry) => (entry ? [percent(entry.value), span(entry.low, entry.high, percent)] : ["–", null]);
const spread = (mean, sd) => (mean === null ? "–" : sd === null ? fixed(mean) : `${fixed(mean)} ± ${fixed(sd)}`);
const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(1)}`;
const named = (row, name, show) =>
  [show(row[name]), orFew(row[name], span(row[`${name}_low`], row[`${name}_high`], show))];

// Title, number, its interval, what shuffled answers give
const COLUMNS = [
  ["Exact match", (row) => share(row.exact_match)],
  ["Exact tokens", (row) => share(row.exact_tokens)],
  ["Recall@{k}", (row) => [...share(row.recall), (chance) => percent(chance.recall?.value ?? null)]],
  ["First occurrence,\nnever as {never}", (row) => named(row, "lof_restricted_mean", fixed)],
  ["Against chance", (row) => (row.net_lof === null ? ["–", null] : named(row, "net_lof", signed))],
  ["Never", (row) => [...named(row, "share_never", percent), (chance) => percent(chance.share_never)]],
  ["First occurrence,\nwhere it occurs", (row) => [spread(row.lof_mean, row.lof_sd), orFew(row.lof_mean, span(row.lof_mean_low, row.lof_mean_high, fixed))]],
  ["Settled depth", (row) => [spread(row.settled_mean, row.settled_sd),
    `never ${percent(row.settled_share_never)}`]],
  ["Depths held", (row) => [...named(row, "depths_per_factoid", fixed), (chance) => fixed(chance.depths_per_factoid)]],
  ["Effective layers", (row) => named(row, "effective_layers", fixed)],
];

/** The title of a column for the set and the top k that are shown. */
function filledIn(title) {
  const last = new Set(set.checkpoints.map((entry) => entry.n_layers));
  return title.replace("{k}", state.k).replace("{never}", last.size === 1 ? [...last][0] + 1 : "n + 1");
}

function showHeadline() {
  const rows = set.headline[state.rule][state.k];
  const head = element("tr", {}, element("th", { scope: "col" }, "Checkpoint"),
    ...COLUMNS.map(([title]) => element("th", { scope: "col" }, filledIn(title))));
  const body = state.checkpoints.map((label) => {
    const row = rows[label];
    const name = element("th", { scope: "row" }, element("span", {}, glyph(checkpoints.get(label)), label));
    return element("tr", {}, name, ...COLUMNS.map(([title, cell]) => {
      const [value, interval, chance] = cell(row);
      return element("td", { "data-label": filledIn(title) }, element("span", { class: "value" }, value),
        interval ? element("small", {}, interval) : null,
        chance && row.shuffled && state.control ? element("small", {}, `shuffled ${chance(row.shuffled)}`) : null);
    }));
  });
  byId("headline").replaceChildren(element("thead", {}, head), element("tbody", {}, ...body));
}

function headlineCsv() {
  const rows = set.headline[state.rule][state.k];
  const flat = (entry, prefix = "") => Object.entries(entry).flatMap(([key, value]) =>
    (value && typeof value === "object" ? flat(value, `${prefix}${key}_`) : [[prefix + key, value]]));
  const names = [...new Set(state.checkpoints.flatMap((label) => flat(rows[label]).map(([key]) => key)))];
  return csv([["checkpoint", "k", "token", ...names], ...state.checkpoints.map((label) => {
    const cells = new Map(flat(rows[label]));
    return [label, state.k, state.rule, ...names.map((name) => cells.get(name))];
  })]);
}

// Title, statistic, how it is written
const OVER_SEEDS = [
  ["Exact match", "exact", percent],
  ["Recall@{k}", "recall_full", percent],
  ["First occurrence,\nnever as {never}", "lof_restricted", fixed],
  ["Depths held", "depths_per_factoid", fixed],
];

function showArms() {
  const rows = set.arms?.[state.rule][state.k] ?? [];
  byId("arms-part").hidden = !rows.length;
  if (!rows.length) return;
  const head = ["Arm", "After", "Seeds", ...OVER_SEEDS.map(([title]) => filledIn(title))];
  byId("arms").replaceChildren(
    element("thead", {}, element("tr", {}, ...head.map((text) => element("th", { scope: "col" }, text)))),
    element("tbody", {}, ...rows.map((row) => element("tr", {},
      element("th", { scope: "row" }, row.arm), labelled(head[1], row.stage), labelled(head[2], String(row.seeds)),
      ...OVER_SEEDS.map(([, name, show], at) => {
        const { mean, low, high, by_seed } = row[name];
        return element("td", { "data-label": head[at + 3] }, element("span", { class: "value" }, show(mean)),
          element("small", {}, low === null ? `seeds ${by_seed.map(show).join(", ")}` : span(low, high, show)));
      })))));
}

// Figures

const NOTHING = {
  frequency: "No answer is among the top k at any depth.",
  "frequency-heatmap": "No answer is among the top k at any depth.",
};
const parsed = new Map();

/** The JSON of a block, inflated and parsed once. */
function figuresOf(block) {
  if (!parsed.has(block)) parsed.set(block, inflateJson(block));
  return parsed.get(block);
}

/** Bands on demand where there are many lines, and from the start where there are few. */
const bandsShown = (lines = BESIDE.includes(state.room) ? 1 : state.checkpoints.length) =>
  (state.bands ? state.bands === "on" : lines <= FEW_BANDS);
const FEW_BANDS = 4;

/** Which part of a figure the state asks for. */
function isShown({ meta = {} }) {
  if (meta.run !== undefined && meta.checkpoints) return true;
  if (meta.state !== undefined) return true;
  if (meta.checkpoint !== undefined && !state.checkpoints.includes(meta.checkpoint)) return false;
  if (meta.checkpoints && !meta.checkpoints.some((label) => !checkpoints.get(label)?.base && (label === "" || state.checkpoints.includes(label)))) return false;
  if (meta.against !== undefined && meta.against !== state.against) return false;
  return meta.role !== "control" || state.control;
}

/** Of a heatmap with a row for each checkpoint, those rows that are chosen. */
function shownRows(trace) {
  if (!trace.meta?.rows) return trace;
  const chosen = trace.meta.rows.flatMap((label, row) => (state.checkpoints.includes(label) ? [row] : []));
  const rows = (list) => chosen.map((row) => list[row]);
  return { ...trace, y: rows(trace.y), z: rows(trace.z), meta: { ...trace.meta, rows: rows(trace.meta.rows) } };
}

/** Draws the figures of the room that is open; those in other rooms wait until theirs is. */
async function showFigures() {
  const room = byId(`room-${state.room}`);
  const holders = [...room.querySelectorAll("[data-figure]:not([data-figure=trajectory], [data-own])")].filter((holder) => !holder.closest("[hidden]"));
  const banded = new Set(); // whether figures with bands show them: of few lines alone, unless a reader has chosen
  for (const holder of holders) {
    const name = holder.dataset.figure;
    let figure;
    if (holder.dataset.free !== undefined) figure = await figuresOf(name);
    else {
      if (/^fate-\d/.test(name)) {
        const chain = set.chains[name.slice("fate-".length)];
        holder.hidden = !chain.checkpoints.slice(1).some((label) => state.checkpoints.includes(label));
        if (holder.hidden) continue;
      }
      const every = (await figuresOf((holder.dataset.prefix ?? set.prefix) + name))[state.rule][state.k];
      const data = every.data.filter(isShown).map(shownRows);
      const lines = data.filter((trace) => trace.meta?.role === "line").length;
      if (data.some((trace) => trace.meta?.role === "band")) banded.add(bandsShown(lines));
      figure = { ...every, data: bandsShown(lines) ? data : data.filter((trace) => trace.meta?.role !== "band") };
    }
    if (holder.closest(".room").hidden) return; // another room was opened meanwhile
    const empty = figure.data.length === 0
      || figure.data.every((trace) => trace.type !== "sankey" && (trace.z?.flat() ?? trace.y).every((value) => value === null));
    draw(holder, { ...figure, data: empty ? [] : figure.data }, report.templates, NOTHING[name] ?? "Nothing to show for these checkpoints.");
    for (const several of ["stage", "step"]) if (name.startsWith(`${several}-`)) showKey(byId(`${several}s-key`), figure);
  }
  if (banded.size) byId("bands").checked = banded.has(true);
  byId("bands").indeterminate = banded.size > 1;
  if (state.room === "differences") {
    const second = holders.some((holder) => shownFigures.get(holder)?.data.some((trace) => trace.meta?.role === "fixed"));
    byId("fixed-note").hidden = !second;
  }
}

// Training and comparisons

function buildTraining() {
  const training = report.training;
  if (!training) return;
  byId("matrix").hidden = !training.matrix;
  if (training.others.length) byId("others").append(element("h2", { class: "above" }, "Other scores"), plainTable(training.others));
  byId("running").textContent = training.running.length ? `Under way: ${training.running.join("; ")}.` : "";
  byId("training-note").textContent = training.note;
  byId("training-title").hidden = !Object.keys(training.curves).length;
}

function showTraining() {
  const curves = report.training?.curves[state.measure] ?? [];
  byId("training").replaceChildren(...curves.map(([block, title]) => element("figure", {
    class: "plot", "data-figure": block, "data-free": "", "data-key": "",
  }, element("figcaption", {}, element("h3", {}, `${title} – ${report.training.measures[state.measure]}`)))));
}

function buildResults() {
  byId("results").append(...report.results.map((entry) => {
    const shown = element("div", { class: "fitted" });
    const choose = async (block) => {
      const table = await inflateJson(block);
      const [, , left, shared] = entry.tables.find(([name]) => name === block);
      shown.replaceChildren(element("p", { class: "note" }, shared), plainTable(table),
        element("p", { class: "note" }, left ? `${grouped(left)} more rows are in the file.` : ""));
    };
    const picker = element("select", { "aria-label": "Table", onchange: (event) => choose(event.target.value) },
      ...entry.tables.map(([block, name]) => element("option", { value: block }, name)));
    // Blocks stand after this script.
    if (entry.tables.length) document.addEventListener("DOMContentLoaded", () => choose(entry.tables[0][0]));
    return element("section", {},
      element("h2", {}, entry.name, " ", element("small", { class: "faint" }, entry.about)),
      element("div", { class: "plots" }, ...entry.figures.map(([block, title]) => element("figure", {
        class: "plot", "data-figure": block, "data-free": "", "data-key": "",
      }, element("figcaption", {}, element("h3", {}, title))))),
      element("div", { class: "row above" }, element("h3", {}, "Every table:"), picker), shown);
  }));
}

function buildComparisons() {
  byId("comparisons").append(...report.comparisons.map((entry) => element("section", {},
    element("h2", {}, `Comparison: ${entry.name}`),
    element("div", { class: "answer" }, ...(entry.answer ?? []).map((line) => element("p", {}, line))),
    element("p", { class: "note" }, entry.about),
    ...entry.notes.map((note) => element("p", { class: "note" }, note)),
    element("div", { class: "plots three" }, ...entry.figures.map(([block, label]) => element("figure", {
      class: "plot", "data-figure": block, "data-free": "",
    }, element("figcaption", {}, element("h3", {}, titled(label)))))),
    ...(entry.table ? [element("p", { class: "note" }, entry.table[0]), plainTable(entry.table[1])] : []),
    ...(entry.claims.length ? [element("h3", { class: "above" }, "Placement claims: do they hold in both readouts?"), plainTable(entry.claims)] : []))));
}

// Patches

let showPatches = null;

/** The room of patches: built when it is first opened, drawn anew when a pair or the theme changes. */
async function openPatches() {
  const data = await figuresOf("patches");
  showPatches ??= patchesView(byId("patches"), data, report.templates, (pair) => change({ pair }));
  showPatches(state.pair);
}

// What was run

function showRun() {
  byId("run").replaceChildren(...set.run.flatMap(([name, text]) => [element("dt", {}, name), element("dd", {}, text)]));
  const [head, ...rows] = set.run_checkpoints;
  byId("run-checkpoints").replaceChildren(
    element("thead", {}, element("tr", {}, ...head.map((text) => element("th", { scope: "col" }, text)))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map((text, at) => labelled(head[at], text))))));
}

// One turn: everything, or what the changed parts of the state concern

const titled = (text) => text[0].toUpperCase() + text.slice(1).replace(/(, (never as|counting never).*| \(.*\))/, "");

const SHARED = ["room", "checkpoints", "k", "rule", "against", "measure", "control", "bands"];

const RULES = { first: "its first token is", last: "its last token is", all: "all of its tokens are" };

// Rooms that show what belongs to no set of facts, above which its answer would mislead.
const OF_NO_SET = ["patches", "study", "training"];

// Of the screen's height, so that a chart begins on the first screen; the first sentence always stands.
const ANSWER_AT_MOST = { phone: 0.34, wide: 0.36 };

/** The answer, as many sentences as leave room for a chart and a button for the others; and on paper what it rests on. */
function showAnswer() {
  const other = state.room === "study" ? report.results : [...report.results, ...report.comparisons];
  const lines = set && !OF_NO_SET.includes(state.room) ? set.answer?.[state.rule]?.[state.k] ?? []
    : set && state.room !== "study" ? [] : other[0]?.answer ?? [];
  const answer = byId("answer");
  const paragraphs = lines.map((line) => element("p", {}, line));
  answer.replaceChildren(...paragraphs);
  const most = innerHeight * ANSWER_AT_MOST[phone.matches ? "phone" : "wide"];
  const top = paragraphs[0]?.getBoundingClientRect().top;
  const rest = paragraphs.slice(1).filter((one) => one.getBoundingClientRect().bottom - top > most);
  if (rest.length) {
    const more = element("div", { id: "more", class: "more", hidden: "" }, ...rest);
    const button = element("button", { type: "button", class: "quiet small", "aria-expanded": "false", "aria-controls": "more" }, `${rest.length} more`);
    button.addEventListener("click", () => {
      more.hidden = !more.hidden;
      button.setAttribute("aria-expanded", String(!more.hidden));
      button.textContent = more.hidden ? `${rest.length} more` : "fewer";
    });
    answer.append(more, button);
  }
  byId("printed").textContent = set && !OF_NO_SET.includes(state.room)
    ? `A depth holds an answer when ${RULES[state.rule]} among the top ${state.k} tokens. ${set.subtitle}. Checkpoints: ${state.checkpoints.join(", ")}.` : "";
}

// All that needs no figure.
function showTop() {
  showRoom();
  showControls();
  showAnswer();
  if (set) {
    showHeadline();
    showArms();
  }
}

function render(changed = null) {
  const any = (names) => changed === null || changed.some((name) => names.includes(name));
  if (any(["measure"])) showTraining();
  let drawn = null;
  if (any(SHARED)) {
    showTop();
    if (set) {
      for (const room of [...BESIDE, "also_in"]) {
        const rows = homeOf(room)?.beside[room][state.rule]?.[state.k];
        byId(`${room}-table`).replaceChildren(...(rows ? [plainTable(rows)] : []));
        if (room !== "also_in") continue;
        byId("also-in").hidden = !rows;
        byId("also-in-title").textContent = `By which other lenses do differences by lens ${homeOf(room)?.lens} hold?`;
      }
    }
    if (window.Plotly) drawn = showFigures();
  }
  const patched = state.room === "patches" && window.Plotly && any(["room", "pair"]) ? openPatches() : null;
  return Promise.all([drawn, patched, state.room === "factoids" ? openExplorer(changed) : null]);
}

document.addEventListener("DOMContentLoaded", () => {
  // Plotly stands after this script, so that the table is there before it is parsed.
  render().then(() => {
    document.documentElement.setAttribute("data-ready", "");
    performance.mark("figures");
  });
});
window.addEventListener("hashchange", () => {
  const before = set;
  state = stateFromHash();
  if (set !== before) buildSet();
  render();
});
