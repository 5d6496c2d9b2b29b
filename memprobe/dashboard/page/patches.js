// Patches, as a page of their own and as a room: chooses among the figures and rows that Python made, and computes none.
"use strict";

const MOVED_HALF = 0.5;

/** A colour of the heatmap for a share. */
function heatColour(share, stops) {
  const at = Math.min(1, Math.max(0, share));
  const upper = Math.max(1, stops.findIndex(([place]) => place >= at));
  const [[low, from], [high, to]] = [stops[upper - 1], stops[upper]];
  const part = (at - low) / (high - low);
  const channel = (text, index) => parseInt(text.slice(1 + 2 * index, 3 + 2 * index), 16);
  return `rgb(${[0, 1, 2].map((i) => Math.round(channel(from, i) + part * (channel(to, i) - channel(from, i)))).join(" ")})`;
}

/** The shares that the depths of one fact move, as a strip of cells about `room` pixels wide. */
function patchStrip(places, moved, stops, room = 360) {
  const step = Math.max(6, Math.floor(room / moved.length));
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("viewBox", `0 0 ${step * moved.length} 14`);
  svg.setAttribute("width", String(step * moved.length));
  svg.setAttribute("height", "14");
  svg.setAttribute("class", "strip");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", moved.map((share, i) => `${places[i]}: ${percent(share)}`).join(", "));
  moved.forEach((share, index) => {
    const cell = document.createElementNS(space, "rect");
    const look = { x: step * index, y: 0, width: step - 1, height: 14, fill: heatColour(share ?? 0, stops) };
    for (const [key, value] of Object.entries(look)) cell.setAttribute(key, String(value));
    const title = document.createElementNS(space, "title");
    title.textContent = `${places[index]}: ${percent(share)}`;
    cell.append(title);
    svg.append(cell);
  });
  return svg;
}

/** Where not every depth was patched, a fact may move at one before the first of those that were. */
const firstPatched = (view, sweep, first) => {
  if (first === null) return sweep.every ? "never" : "at none patched";
  if (view.kind !== "states") return `block${first.includes("–") ? "s" : ""} ${first}`;
  return sweep.every ? first : `≤ ${first}`;
};

/**
 * Builds the view on patches in `holder` and returns what draws it: `show(name)` with the name of a pair.
 * `data` holds { views, arms, heat }; `chosen(name)` is called when a reader takes another pair.
 */
function patchesView(holder, data, templates, chosen = () => {}) {
  const pairs = element("select", { "aria-label": "Patched", class: "long" }, ...data.views.map((view, i) => element("option", { value: i }, view.name)));
  const said = element("p", { class: "note" });
  const sentences = element("ul", { class: "note" });
  const figure = (name, title) => element("figure", { class: "plot wide", "data-figure": name, "data-own": "", "data-key": "", tabindex: "0" },
    element("figcaption", {}, element("h2", {}, title)));
  const heatmap = figure("patches-heatmap", "Share moved, by place");
  const curves = figure("patches-curves", "Share moved, with 95 % bands");
  const sweeps = element("select", { "aria-label": "Sweep", class: "long" });
  const filter = element("input", { type: "search", placeholder: "prompt or answer", "aria-label": "Filter facts" });
  const rowsSaid = element("p", { class: "note" });
  const facts = element("table", { class: "patched plain" });
  const arms = data.arms.length ? [element("section", {}, element("h2", {}, "Arms, over training seeds"), plainTable(data.arms))] : [];
  holder.replaceChildren(
    element("p", { class: "row above" }, element("span", {}, "Patched"), pairs), said, sentences, heatmap, curves,
    element("section", {}, element("div", { class: "row" }, element("h2", {}, "Each fact"), element("span", {}, "in"), sweeps, filter),
      rowsSaid, element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Each fact" }, facts)),
    ...arms);
  const current = () => data.views[Number(pairs.value) || 0];

  const showRows = () => {
    const view = current();
    const sweep = view.sweeps[Number(sweeps.value) || 0];
    const wanted = filter.value.trim().toLowerCase();
    const rows = sweep.rows.filter(([, prompt, answer]) => !wanted || `${prompt} ${answer}`.toLowerCase().includes(wanted));
    const [reached, place] = view.kind === "states" ? [`first ≥ ${100 * MOVED_HALF} %`, "depth"] : ["moves most", "block"];
    const names = ["prompt", "answer", "source", "target", reached, `share moved, from the first ${place} to the last`];
    facts.replaceChildren(
      element("thead", {}, element("tr", {}, ...names.map((name, i) => element("th", { class: i > 1 && i < 5 ? "number" : null }, name)))),
      element("tbody", {}, ...rows.map(([, prompt, answer, source, target, , first, moved]) => element("tr", {},
        ...[prompt, answer, source.toFixed(2), target.toFixed(2), firstPatched(view, sweep, first), patchStrip(sweep.places, moved, data.heat[theme()])]
          .map((shown, i) => element("td", { class: i > 1 && i < 5 ? "number" : null, "data-label": names[i] }, shown))))));
    rowsSaid.textContent = `${rows.length} of ${sweep.rows.length} facts; source and target: log-probability of the whole answer, nats.`
      + (sweep.left_out ? ` ${sweep.left_out} more are in the Parquet file.` : "");
  };

  const show = (name) => {
    const at = data.views.findIndex((view) => view.name === name);
    if (at >= 0) pairs.value = String(at);
    const view = current();
    if (!view) {
      said.textContent = data.nothing;
      for (const part of [heatmap, curves, ...holder.querySelectorAll("section")]) part.hidden = true;
      return;
    }
    said.textContent = view.said;
    sentences.replaceChildren(...view.sentences.map((text) => element("li", {}, text)));
    draw(heatmap, view.heatmap, templates);
    const controls = [...new Set(view.curves.data.filter((trace) => trace.meta?.role === "control" && trace.mode === "lines").map((trace) => trace.meta.kind))];
    curves.querySelector("h2").textContent = `Share moved, with 95 % bands${controls.length ? `; dotted: ${controls.join(", or ")}` : ""}`;
    draw(curves, view.curves, templates);
    const kept = sweeps.value;
    sweeps.replaceChildren(...view.sweeps.map((sweep, i) => element("option", { value: i }, sweep.name)));
    if (Number(kept) < view.sweeps.length) sweeps.value = kept || "0";
    showRows();
  };

  pairs.addEventListener("change", () => {
    show();
    chosen(current().name);
  });
  sweeps.addEventListener("change", showRows);
  filter.addEventListener("input", showRows);
  return show;
}

/** Every sweep that holds a fact, for its detail in the explorer; null where none does. */
function patchesOfFact(data, id) {
  const rows = data.views.flatMap((view) => view.sweeps.flatMap((sweep) => sweep.rows.filter((row) => row[0] === id).map((row) => element("tr", {},
    element("td", {}, `${view.name}, ${sweep.name}`), element("td", { class: "number" }, firstPatched(view, sweep, row[6])),
    element("td", {}, patchStrip(sweep.places, row[7], data.heat[theme()], 200))))));
  if (!rows.length) return null;
  const head = ["Patched", "First half, or most", "Share moved, by depth or block"];
  return element("div", {}, element("h4", {}, "What patches move"), element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "What patches move" },
    element("table", { class: "outcomes" },
      element("thead", {}, element("tr", {}, ...head.map((text) => element("th", { scope: "col" }, text)))), element("tbody", {}, ...rows))));
}

if (byId("patches-data")) {
  const data = readJson("patches-data");
  byId("title").textContent = data.title;
  const show = patchesView(byId("patches"), data, data.templates);
  watchTheme(() => show());
  show();
  document.documentElement.setAttribute("data-ready", "");
}
