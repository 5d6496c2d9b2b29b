// The factoid explorer: a table to search and sort, and one factoid in full.
"use strict";

const PAGE = 20;
const MOST_ROWS_ABOVE = 6; // of more checkpoints, the chart of a fact stands above its table
const NEVER = 0xffff; // of first occurrence and settled depth
const ABSENT = 0xfffe; // no records: the factoid is an error
const CLIPPED = 0xffff; // of rank

const explorers = new Map(); // of each set that was opened
let explorer = emptyExplorer();

function emptyExplorer() {
  return { factoids: null, occurrence: null, order: [], haystack: [], shown: null, records: null, opening: null };
}

// Data

async function openTable(prefix) {
  explorer.factoids = await figuresOf(`${prefix}factoids`);
  explorer.occurrence = new Uint16Array(await inflate(`${prefix}occurrence`));
  const { prompt, answer, aliases, id } = explorer.factoids;
  explorer.haystack = prompt.map((text, row) => [text, answer[row], id[row], ...aliases[row]].join("\n").toLowerCase());
  explorer.rows = new Map(id.map((name, row) => [name, row]));
  buildFilters();
}

const FATE_WORDS = { 1: "exact", 0: "not" };
const fateText = (path) => path.split("→").map((known) => FATE_WORDS[known]).join(" → ");

/** The choices of the filters; hidden where there is nothing to choose. */
function buildFilters() {
  const { relation, quarter, fates } = explorers.get(set.prefix)?.factoids ?? { relation: [], quarter: null, fates: {} };
  const options = (id, first, children) => {
    byId(id).replaceChildren(element("option", { value: "" }, first), ...children);
    byId(id).hidden = !children.length;
  };
  const distinct = (values) => [...new Set(values ?? [])].filter((name) => name !== null).sort();
  const relations = distinct(relation);
  options("relation", "all relations", relations.length < 2 ? [] : relations.map((name) => element("option", { value: name }, name)));
  options("quarter", "any popularity", distinct(quarter).map((name) => element("option", { value: name }, POPULARITY[name] ?? name)));
  options("fate", "any fate", Object.entries(fates).map(([chain, paths]) => element("optgroup", { label: `${chain}: ${chainStages(chain)}` },
    ...distinct(paths).reverse().map((path) => element("option", { value: `${chain}|${path}` },
      `${fateText(path)} (${grouped(paths.filter((other) => other === path).length)})`)))));
}

const POPULARITY = {
  "quarter 1": "least popular quarter", "quarter 2": "second quarter", "quarter 3": "third quarter",
  "quarter 4": "most popular quarter", unknown: "popularity unknown",
};
const chainStages = (name) => set.chains.find((chain) => chain.name === name).stages.join(" → ");

/** First occurrence and settled depth of every factoid: [checkpoint label] -> { lof, settled }. */
function occurrences() {
  const n = explorer.factoids.id.length;
  const setting = report.rules.indexOf(state.rule) * report.k.length + report.k.indexOf(state.k);
  return Object.fromEntries(set.checkpoints.map(({ label }, position) => {
    const start = (setting * set.checkpoints.length + position) * 2 * n;
    return [label, {
      lof: explorer.occurrence.subarray(start, start + n),
      settled: explorer.occurrence.subarray(start + n, start + 2 * n),
    }];
  }));
}

async function openRecords() {
  explorer.tokens ??= await figuresOf(`${set.prefix}tokens`);
  explorer.trajectory ??= await figuresOf(`${set.prefix}trajectory`);
  explorer.records ??= await Promise.all(set.records.map(async (part) => {
    const bytes = await inflate(part.block);
    const cells = part.rows * part.depths;
    let at = 0;
    const column = (type, length) => {
      const values = new type(bytes, at, length);
      at += values.byteLength;
      return values;
    };
    const columns = {
      factoid: column(Uint32Array, part.rows),
      rank: column(Uint16Array, cells),
      log_prob: column(Uint16Array, cells),
      top1: column(Uint16Array, cells),
      answer: column(Uint16Array, part.rows),
    };
    const rows = new Map(Array.from(columns.factoid, (factoid, row) => [factoid, row]));
    return { ...part, ...columns, rowOf: rows };
  }));
}

/** What the records say of one factoid: by answer token, by checkpoint, columns by depth. */
function recordsOf(factoid) {
  const found = new Map();
  for (const part of explorer.records) {
    const row = part.rowOf.get(factoid);
    if (row === undefined) continue;
    const slice = (column) => column.subarray(row * part.depths, (row + 1) * part.depths);
    if (!found.has(part.token)) found.set(part.token, new Map());
    found.get(part.token).set(part.checkpoint, {
      answer: part.answer[row],
      rank: slice(part.rank),
      log_prob: Array.from(slice(part.log_prob), half),
      top1: slice(part.top1),
    });
  }
  return found;
}

const tokenText = (index) => (index < explorer.tokens.length ? visible(explorer.tokens[index]) : "…");

function visible(token) {
  const text = token.replaceAll("\r", "␍").replaceAll("\n", "⏎").replaceAll("\t", "⇥");
  const stripped = text.replace(/^ +/, "");
  return "·".repeat(text.length - stripped.length) + stripped;
}

// Table

const compact = (value) => value.toLocaleString("en", { notation: "compact", maximumSignificantDigits: 3 });
const COLLATOR = new Intl.Collator("en", { numeric: true });

/** Rows that match the search and the filters, in the chosen order. */
function findRows() {
  const words = state.search.toLowerCase().split(/\s+/).filter(Boolean);
  const { relation, quarter, fates, popularity } = explorer.factoids;
  const cut = state.fate.lastIndexOf("|");
  const paths = fates[state.fate.slice(0, cut)];
  const path = state.fate.slice(cut + 1);
  const rows = [];
  explorer.haystack.forEach((text, row) => {
    if (state.relation && relation[row] !== state.relation) return;
    if (state.quarter && quarter?.[row] !== state.quarter) return;
    if (paths && paths[row] !== path) return;
    if (words.every((word) => text.includes(word))) rows.push(row);
  });
  const [column, direction] = splitSort();
  if (!column) return rows;
  const sign = direction === "down" ? -1 : 1;
  if (column === "prompt" || column === "answer") {
    const values = explorer.factoids[column];
    return rows.sort((a, b) => sign * COLLATOR.compare(values[a], values[b]));
  }
  if (column === "popularity") {
    if (!popularity) return rows;
    // Factoids without one stand last either way.
    return rows.sort((a, b) => (popularity[a] === null) - (popularity[b] === null) || sign * (popularity[a] - popularity[b]));
  }
  const entry = occurrences()[column.slice("lof:".length)];
  if (!entry) return rows;
  // Factoids that never occur stand last either way.
  return rows.sort((a, b) => {
    const [left, right] = [entry.lof[a], entry.lof[b]];
    if (left >= ABSENT || right >= ABSENT) return left - right;
    return sign * (left - right);
  });
}

function splitSort() {
  const match = /^(.*):(up|down)$/s.exec(state.sort);
  return match ? [match[1], match[2]] : ["", ""];
}

function nextSort(column) {
  const [current, direction] = splitSort();
  if (current !== column) return `${column}:up`;
  return direction === "up" ? `${column}:down` : "";
}

function headerCell(column, title, className, hint, ...content) {
  const [current, direction] = splitSort();
  const sorted = current === column;
  const arrow = sorted ? (direction === "up" ? " ↑" : " ↓") : "";
  return element("th", {
    scope: "col", class: className,
    "aria-sort": sorted ? (direction === "up" ? "ascending" : "descending") : null,
  }, element("button", { type: "button", title: hint, "aria-label": title, "data-sort": column,
    onclick: () => {
      change({ sort: nextSort(column), page: 0 });
      byId("factoids").querySelector(`[data-sort="${CSS.escape(column)}"]`).focus();
    } }, ...content, arrow));
}

function depthCell(factoid, label, entry) {
  const outcome = explorer.factoids.outcomes[label];
  if (entry.lof[factoid] === ABSENT) {
    return element("td", { class: "mark bad", title: outcome.error[factoid] ?? "no records" }, "!");
  }
  const exact = outcome.exact_match[factoid];
  const never = entry.lof[factoid] === NEVER;
  return element("td", {
    class: `mark${never ? " never" : ""}`,
    "data-label": checkpoints.get(label).short ?? label,
    title: `${label}: ${never ? `never in the top ${state.k}` : `first in the top ${state.k} at depth ${entry.lof[factoid]}`}`
      + (exact ? "; exact match" : ""),
  }, exact ? element("span", { class: "good", "aria-label": "exact match" }, "✓") : null, never ? "–" : String(entry.lof[factoid]));
}

function showTable() {
  explorer.order = findRows();
  const pages = Math.max(1, Math.ceil(explorer.order.length / PAGE));
  const page = Math.min(Math.max(state.page, 0), pages - 1);
  const rows = explorer.order.slice(page * PAGE, (page + 1) * PAGE);
  const depths = occurrences();
  const { prompt, answer, id, popularity } = explorer.factoids;
  const head = element("tr", {},
    headerCell("prompt", "Prompt", "prompt", "Sort by prompt", "Prompt"),
    headerCell("answer", "Answer", "answer", "Sort by answer", "Answer"),
    popularity ? headerCell("popularity", "Popularity", "popularity", "Sort by popularity", "Pop.") : null,
    ...state.checkpoints.map((label) => headerCell(`lof:${label}`, `First occurrence in ${label}`, "mark",
      `Sort by first occurrence in ${label}`, glyph(checkpoints.get(label)))));
  const body = rows.map((row) => element("tr", {
    "data-factoid": id[row],
    "aria-current": id[row] === explorer.shown ? "true" : null,
    onclick: () => chooseFactoid(row),
  },
  element("td", { class: "prompt", title: prompt[row] },
    element("button", { type: "button" }, prompt[row], element("small", {}, answer[row]))),
  element("td", { class: "answer", title: answer[row] }, answer[row]),
  popularity ? element("td", { class: "popularity" }, popularity[row] === null ? "" : compact(popularity[row])) : null,
  ...state.checkpoints.map((label) => depthCell(row, label, depths[label]))));
  byId("factoids").style.setProperty("--marks", String(state.checkpoints.length));
  byId("factoids").replaceChildren(element("thead", {}, head), element("tbody", {}, ...body));
  byId("found").textContent = `${grouped(explorer.order.length)} of ${grouped(id.length)}`;
  byId("page").textContent = explorer.order.length
    ? `${grouped(page * PAGE + 1)}–${grouped(page * PAGE + rows.length)}` : "nothing found";
  byId("previous").disabled = page === 0;
  byId("next").disabled = page >= pages - 1;
  byId("search").value = state.search;
  for (const name of ["relation", "fate", "quarter"]) byId(name).value = state[name];
}

function chooseFactoid(row) {
  change({ factoid: explorer.factoids.id[row], token: 0 });
  if (byId("detail").getBoundingClientRect().top > innerHeight - 160) byId("detail").scrollIntoView({ block: "start" });
}

function factoidsCsv() {
  const depths = occurrences();
  const { id, source, relation, prompt, answer, popularity, outcomes } = explorer.factoids;
  const perCheckpoint = state.checkpoints.flatMap((label) => [`${label} lof`, `${label} settled`, `${label} exact_match`]);
  const depth = (value) => (value >= ABSENT ? "" : value);
  return csv([["id", "source", "relation", "prompt", "answer", "popularity", ...perCheckpoint],
    ...explorer.order.map((row) => [id[row], source[row], relation[row], prompt[row], answer[row], popularity?.[row] ?? "",
      ...state.checkpoints.flatMap((label) => [depth(depths[label].lof[row]), depth(depths[label].settled[row]),
        outcomes[label].exact_match[row]])])]);
}

// One factoid

async function showDetail() {
  const named = explorer.rows.get(state.factoid);
  const factoid = named ?? explorer.order[0];
  if (factoid === undefined) return;
  await openRecords();
  const { id, prompt, answer, aliases, relation, source } = explorer.factoids;
  explorer.shown = id[factoid];
  for (const row of byId("factoids").querySelectorAll("tbody tr")) {
    if (row.dataset.factoid === explorer.shown) row.setAttribute("aria-current", "true");
    else row.removeAttribute("aria-current");
  }
  const records = recordsOf(factoid);
  const tokens = [...records.keys()];
  const token = records.has(state.token) ? state.token : tokens[0];
  const facts = [...new Set([relation[factoid], source[factoid]]),
    aliases[factoid].length ? `also: ${aliases[factoid].join(", ")}` : null, id[factoid]];
  const children = [
    element("header", {},
      element("h3", {}, `${prompt[factoid]} `, element("mark", {}, answer[factoid])),
      element("p", { class: "facts" }, ...facts.filter(Boolean).map((text) => element("span", {}, text)))),
  ];
  const outcomes = outcomeTable(factoid, records.get(token));
  const many = state.checkpoints.length > MOST_ROWS_ABOVE;
  if (!many) children.push(outcomes);
  if (tokens.length > 1) {
    const texts = tokens.map((index) => {
      const [first] = records.get(index).values();
      return tokenText(first.answer) + (index === -1 ? " (end)" : "");
    });
    children.push(element("h4", {}, "Answer token"),
      element("div", { class: "segments", id: "token" }, ...segments("token", tokens, (value) => change({ token: value }), texts)));
  }
  if (token !== undefined) children.push(trajectoryHolder());
  if (many) children.push(outcomes);
  if (token !== undefined) children.push(topTokens(records.get(token)));
  if (report.patches) {
    const patched = patchesOfFact(await figuresOf("patches"), explorer.shown);
    if (explorer.shown !== id[factoid]) return; // another fact was chosen meanwhile
    if (patched) children.push(patched);
  }
  const tokenFocused = document.activeElement?.name === "token";
  byId("detail").replaceChildren(...children);
  for (const input of byId("detail").querySelectorAll("#token input")) {
    input.checked = input.value === String(token);
    if (input.checked && tokenFocused) input.focus();
  }
  if (token !== undefined && window.Plotly) drawTrajectory(records.get(token));
}

function outcomeTable(factoid, records) {
  const depths = occurrences();
  const depth = (value) => (value === ABSENT ? "" : value === NEVER ? "never" : String(value));
  const head = ["Checkpoint", "First", "Settled", "Final rank", "Says"];
  return element("table", { class: "outcomes" },
    element("thead", {}, element("tr", {}, ...head.map((text) => element("th", { scope: "col" }, text)))),
    element("tbody", {}, ...state.checkpoints.map((label) => {
      const outcome = explorer.factoids.outcomes[label];
      const row = records?.get(label);
      const exact = outcome.exact_match[factoid];
      const said = outcome.error[factoid] ?? outcome.prediction[factoid] ?? "";
      return element("tr", {},
        element("td", {}, element("span", { class: "with-glyph" }, glyph(checkpoints.get(label)), label)),
        element("td", {}, depth(depths[label].lof[factoid])),
        element("td", {}, depth(depths[label].settled[factoid])),
        element("td", {}, row ? rankText(row.rank[row.rank.length - 1]) : ""),
        element("td", { class: "prediction" },
          exact === 1 ? element("span", { class: "good", title: "exact match" }, "✓ ") : null,
          exact === 0 ? element("span", { class: "bad", title: "no exact match" }, "✗ ") : null, said));
    })));
}

const rankText = (rank) => (rank === CLIPPED ? `≥ ${grouped(CLIPPED)}` : grouped(rank));

const trajectoryHolder = () => element("figure", { class: "plot", "data-figure": "trajectory" },
  element("figcaption", {}, element("h4", {}, "Rank and log-probability of the answer")));

function drawTrajectory(records) {
  const { data, layout } = explorer.trajectory;
  const traces = data.filter((trace) => state.checkpoints.includes(trace.meta.checkpoint) && records.has(trace.meta.checkpoint))
    .map((trace) => {
      const row = records.get(trace.meta.checkpoint);
      const x = Array.from(row.rank, (_, depth) => depth);
      if (trace.meta.column === "log_prob") return { ...trace, x, y: row.log_prob };
      return { ...trace, x, y: Array.from(row.rank, (rank) => rank + 1), customdata: Array.from(row.rank) };
    });
  // The line at k stands between rank k - 1, which is in the top k, and rank k, which is not.
  const shapes = layout.shapes.map((shape) => (shape.name === "k" ? { ...shape, y0: state.k + 0.5, y1: state.k + 0.5 } : shape));
  draw(byId("detail").querySelector("[data-figure]"), { data: traces, layout: { ...layout, shapes } }, report.templates);
}

function topTokens(records) {
  const labels = state.checkpoints.filter((label) => records.has(label));
  const depths = Math.max(...labels.map((label) => records.get(label).rank.length), 0);
  const rows = Array.from({ length: depths }, (_, depth) => element("tr", {}, element("th", { scope: "row" }, String(depth)),
    ...labels.map((label) => {
      const row = records.get(label);
      if (depth >= row.rank.length) return element("td", {});
      const text = tokenText(row.top1[depth]);
      const right = row.rank[depth] === 0;
      const title = `${text} — rank of the answer ${rankText(row.rank[depth])}, log-probability ${row.log_prob[depth].toFixed(2)}`;
      return element("td", { title }, right ? element("mark", {}, text) : text);
    })));
  return element("div", {},
    element("h4", {}, "What the lens reads at each depth"),
    element("div", { class: "tokens", tabindex: "0", role: "region", "aria-label": "Top-1 token at each depth" },
      element("table", {},
        element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "depth"),
          ...labels.map((label) => element("th", { scope: "col" },
            element("span", { class: "with-glyph" }, glyph(checkpoints.get(label)), label))))),
        element("tbody", {}, ...rows))));
}

// Turns

const TABLE = ["room", "checkpoints", "k", "rule", "search", "relation", "fate", "quarter", "sort", "page"];
const DETAIL = ["room", "checkpoints", "k", "rule", "factoid", "token"];

async function showExplorer(changed = null) {
  if (!explorer.factoids) return;
  const any = (names) => changed === null || changed.some((name) => names.includes(name));
  if (any(TABLE)) showTable();
  if (any(DETAIL)) await showDetail();
}

/** Inflates a set's columns when its explorer is first opened, and shows them. */
async function openExplorer(changed = null) {
  if (!explorers.has(set.prefix)) explorers.set(set.prefix, emptyExplorer());
  const other = explorer !== explorers.get(set.prefix);
  explorer = explorers.get(set.prefix);
  explorer.opening ??= openTable(set.prefix);
  await explorer.opening;
  byId("left-out").textContent = set.left_out;
  await showExplorer(other || explorer.order.length === 0 ? null : changed);
  byId("explorer").setAttribute("data-ready", "");
}

function buildExplorer() {
  byId("search").addEventListener("input", (event) => change({ search: event.target.value, page: 0 }));
  for (const name of ["relation", "fate", "quarter"]) {
    byId(name).addEventListener("change", (event) => change({ [name]: event.target.value, page: 0 }));
  }
  byId("previous").addEventListener("click", () => change({ page: state.page - 1 }));
  byId("next").addEventListener("click", () => change({ page: state.page + 1 }));
  byId("factoids-csv").addEventListener("click", () => download("factoids.csv", factoidsCsv()));
  byId("factoids").addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const focused = event.target.closest("tbody tr")?.dataset.factoid;
    const at = explorer.order.indexOf(explorer.rows.get(focused));
    if (!step || at < 0) return;
    event.preventDefault();
    const next = Math.min(Math.max(at + step, 0), explorer.order.length - 1);
    const page = Math.floor(next / PAGE);
    change({ factoid: explorer.factoids.id[explorer.order[next]], token: 0, ...(page === state.page ? {} : { page }) })
      .then(() => byId("factoids").querySelectorAll("tbody button")[next % PAGE]?.focus());
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || ["INPUT", "SELECT", "TEXTAREA"].includes(document.activeElement?.tagName)) return;
    if (!set) return;
    event.preventDefault();
    if (state.room !== "factoids") change({ room: "factoids" });
    byId("search").focus();
  });
}
