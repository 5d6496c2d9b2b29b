// The page of patches: chooses among the figures and rows that Python made, and computes none.
"use strict";

{
  const data = readJson("patches-data");
  const HALF = 0.5;

  const interpolate = (share) => {
    const stops = data.heat[theme()];
    const at = Math.min(1, Math.max(0, share));
    const upper = Math.max(1, stops.findIndex(([place]) => place >= at));
    const [[low, from], [high, to]] = [stops[upper - 1], stops[upper]];
    const part = (at - low) / (high - low);
    const channel = (text, index) => parseInt(text.slice(1 + 2 * index, 3 + 2 * index), 16);
    return `rgb(${[0, 1, 2].map((i) => Math.round(channel(from, i) + part * (channel(to, i) - channel(from, i)))).join(" ")})`;
  };

  const strip = (places, moved) => {
    const space = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(space, "svg");
    svg.setAttribute("viewBox", `0 0 ${6 * moved.length} 14`);
    svg.setAttribute("width", String(6 * moved.length));
    svg.setAttribute("height", "14");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", moved.map((share, i) => `${places[i]}: ${percent(share)}`).join(", "));
    moved.forEach((share, index) => {
      const cell = document.createElementNS(space, "rect");
      for (const [key, value] of Object.entries({ x: 6 * index, y: 0, width: 5, height: 14, fill: interpolate(share ?? 0) }))
        cell.setAttribute(key, String(value));
      const title = document.createElementNS(space, "title");
      title.textContent = `${places[index]}: ${percent(share)}`;
      cell.append(title);
      svg.append(cell);
    });
    return svg;
  };

  const current = () => data.views[Number(byId("view").value) || 0];

  const showRows = () => {
    const view = current();
    const sweep = view.sweeps[Number(byId("sweep").value) || 0];
    const wanted = byId("filter").value.trim().toLowerCase();
    const rows = sweep.rows.filter(([prompt, answer]) => !wanted || `${prompt} ${answer}`.toLowerCase().includes(wanted));
    const reached = view.kind === "states" ? `first ≥ ${100 * HALF} %` : "best block";
    const names = ["prompt", "answer", "source", "target", reached, "share moved, from the first depth to the last"];
    byId("facts").replaceChildren(
      element("thead", {}, element("tr", {}, ...names.map((name, i) => element("th", { class: i > 1 && i < 5 ? "number" : null }, name)))),
      element("tbody", {}, ...rows.map(([prompt, answer, source, target, , first, moved]) => element("tr", {},
        element("td", {}, prompt), element("td", {}, answer),
        element("td", { class: "number" }, source.toFixed(2)), element("td", { class: "number" }, target.toFixed(2)),
        element("td", { class: "number" }, first === null ? "never" : String(first)),
        element("td", {}, strip(sweep.places, moved))))));
    byId("rows-said").textContent = `${rows.length} of ${sweep.rows.length} facts; source and target: log-probability of the whole answer, nats.`
      + (sweep.left_out ? ` ${sweep.left_out} more are in the Parquet file.` : "");
  };

  const show = () => {
    const view = current();
    if (!view) return;
    byId("said").textContent = `${view.n} of ${view.facts} facts differ by more than ${data.threshold} nats between ${view.source} and ${view.target}`
      + (data.facts === "all" ? "." : ` (facts ${data.facts}).`);
    byId("sentences").replaceChildren(...view.sentences.map((text) => element("li", {}, text)));
    draw(document.querySelector("[data-figure=patches-heatmap]"), view.heatmap, data.templates);
    draw(document.querySelector("[data-figure=patches-curves]"), view.curves, data.templates);
    showRows();
  };

  const choose = () => {
    byId("sweep").replaceChildren(...(current()?.sweeps ?? []).map((sweep, i) => element("option", { value: i }, sweep.name)));
    show();
  };

  byId("view").replaceChildren(...data.views.map((view, i) => element("option", { value: i }, view.name)));
  byId("view").addEventListener("change", choose);
  byId("sweep").addEventListener("change", showRows);
  byId("filter").addEventListener("input", showRows);
  watchTheme(show);
  if (data.views.length) choose();
  else byId("said").textContent = `No fact separates the two by more than ${data.threshold} nats, so there is nothing to restore or erase.`;
  document.documentElement.setAttribute("data-ready", "");
}
