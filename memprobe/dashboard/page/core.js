// What every page of memprobe shares: elements, embedded data, themes, figures and downloads.
// Text from data only ever becomes text: nothing here or elsewhere sets innerHTML.
"use strict";

/** An element with attributes (null ones left out) and children (strings become text). */
function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const byId = (id) => document.getElementById(id);

/** Radio buttons side by side. */
const segments = (name, values, choose, texts = values) => values.map((value, index) => element("label", {},
  element("input", { type: "radio", name, value, onchange: () => choose(value) }),
  element("span", {}, String(texts[index]))));

const GLYPHS = {
  circle: "M6 1.2a4.8 4.8 0 1 0 0 9.6a4.8 4.8 0 1 0 0-9.6z",
  square: "M1.6 1.6h8.8v8.8h-8.8z",
  diamond: "M6 .4L11.6 6L6 11.6L.4 6z",
  "triangle-up": "M6 1L11.4 10.6H.6z",
  cross: "M4.1 .8h3.8v3.3h3.3v3.8H7.9v3.3H4.1V7.9H.8V4.1h3.3z",
  x: "M3 .6L6 3.6L9 .6L11.4 3L8.4 6L11.4 9L9 11.4L6 8.4L3 11.4L.6 9L3.6 6L.6 3z",
};

/** The marker of a checkpoint, as in the figures. */
function glyph(checkpoint) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const path = document.createElementNS(space, "path");
  const open = checkpoint.marker.endsWith("-open");
  svg.setAttribute("viewBox", "-1 -1 14 14");
  svg.setAttribute("class", "glyph");
  svg.setAttribute("aria-hidden", "true");
  path.setAttribute("d", GLYPHS[checkpoint.marker.replace("-open", "")]);
  path.setAttribute("fill", open ? "none" : checkpoint.colour);
  path.setAttribute("stroke", checkpoint.colour);
  path.setAttribute("stroke-width", open ? "1.8" : "0");
  svg.append(path);
  return svg;
}

/** A table of texts, the first row its head. */
const plainTable = ([head, ...rows]) => element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": head.join(", ") },
  element("table", { class: "plain" },
    element("thead", {}, element("tr", {}, ...head.map((text) => element("th", { scope: "col" }, text)))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map((text, at) => labelled(head[at], text)))))));

/** A cell that knows the head of its column: a phone shows a row as a card. */
const labelled = (head, ...children) => element("td", { "data-label": head, class: children.join("") === "–" || children.join("") === "" ? "nil" : null }, ...children);

// Data

/** A piece of a line as it is drawn in a figure. */
function dash(line) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const path = document.createElementNS(space, "path");
  svg.setAttribute("viewBox", "0 0 26 10");
  svg.setAttribute("class", "dash");
  svg.setAttribute("aria-hidden", "true");
  path.setAttribute("d", "M0 5H26");
  path.setAttribute("stroke", line.color);
  path.setAttribute("stroke-width", "2");
  path.setAttribute("stroke-dasharray", line.dash?.endsWith("px") ? line.dash.replaceAll("px", "") : { dot: "2 3" }[line.dash] ?? "none");
  svg.append(path);
  return svg;
}

const readJson = (id) => JSON.parse(byId(id).textContent);
const inflated = new Map();

/** The bytes of a block (zlib, base64), inflated when first asked for. */
function inflate(name) {
  if (!inflated.has(name)) inflated.set(name, inflateElement(byId(`block-${name}`)));
  return inflated.get(name);
}

async function inflateElement(holder) {
  const packed = Uint8Array.from(atob(holder.textContent), (character) => character.charCodeAt(0));
  holder.remove();
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

const inflateJson = async (name) => JSON.parse(new TextDecoder().decode(await inflate(name)));

/** An IEEE half from its 16 bits. */
function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

// Numbers

const percent = (share) => (share === null || share === undefined ? "–" : `${(100 * share).toFixed(1)}%`);
const fixed = (value) => (value === null || value === undefined ? "–" : value.toFixed(1));
const grouped = (value) => value.toLocaleString("en");

// Themes

const THEMES = ["auto", "light", "dark"];
const systemDark = matchMedia("(prefers-color-scheme: dark)");
let chosenTheme = "auto";

const theme = () => (chosenTheme === "auto" ? (systemDark.matches ? "dark" : "light") : chosenTheme);

function setTheme(name, changed) {
  chosenTheme = THEMES.includes(name) ? name : "auto";
  document.documentElement.dataset.theme = theme();
  byId("theme").replaceChildren(element("span", { class: "spare" }, "Theme: "), chosenTheme);
  byId("theme").setAttribute("aria-label", `Theme: ${chosenTheme}`);
  if (changed) changed();
}

function watchTheme(changed) {
  setTheme("auto");
  byId("theme").addEventListener("click", () =>
    setTheme(THEMES[(THEMES.indexOf(chosenTheme) + 1) % THEMES.length], changed));
  systemDark.addEventListener("change", () => setTheme(chosenTheme, changed));
}

// Figures

const shownFigures = new Map();

/** Draws `figure` into a <figure>, which gets its tools and canvas when first drawn. */
function draw(holder, figure, templates, nothing = "") {
  let canvas = holder.querySelector(".canvas");
  if (!canvas) {
    canvas = element("div", { class: "canvas" });
    const name = holder.dataset.figure;
    const tool = (label, hint, act) => element("button", { type: "button", title: hint, onclick: act }, label);
    holder.querySelector("figcaption").append(element("div", { class: "tools" },
      tool("CSV", "Download the numbers of this figure", () => download(`${name}.csv`, figureCsv(shownFigures.get(holder)))),
      tool("PNG", "Download this figure as an image", () => downloadImage(holder, "png")),
      tool("SVG", "Download this figure as vector graphics", () => downloadImage(holder, "svg"))));
    holder.append(element("ul", { class: "key" }), element("div", { class: "pan" }, canvas), element("div", { class: "nothing" }));
  }
  holder.querySelector(".nothing").textContent = figure.data.length ? "" : nothing;
  shownFigures.set(holder, figure);
  const { meta, ...given } = figure.layout;
  const layout = { showlegend: false, ...given, template: templates[theme()] };
  if (!figure.data.length) blank(layout);
  if (meta?.least) canvas.style.minWidth = `${meta.least}px`;
  if (meta?.row) {
    // A row for each name on the y axis.
    layout.height = meta.frame + meta.row * Math.max(1, new Set(figure.data.flatMap((trace) => trace.y)).size);
    canvas.style.height = `${layout.height}px`;
    if (meta.column) canvas.style.maxWidth = `${260 + meta.column * figure.data[0].x.length}px`;
  }
  if (!layout.hovermode && linesOf(figure).length > MOST_IN_A_TIP) layout.hovermode = "closest";
  const width = canvas.parentElement.clientWidth;
  const narrow = width < NARROW;
  fitted(layout, figure, width);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", said(holder, figure));
  showKey(holder.querySelector(".key"), figure);
  Plotly.react(canvas, narrow ? figure.data.map(shortFlows) : figure.data, layout, { displayModeBar: false, responsive: true, doubleClick: "reset" });
}

/** Without axes, which plotly would range at will, and what stands along them. */
function blank(layout) {
  for (const key of Object.keys(layout).filter((name) => /^[xy]axis\d*$/.test(name))) layout[key] = { visible: false };
  Object.assign(layout, { shapes: [], annotations: [] });
}

const NARROW = 480; // pixels: a phone's width, or a third of a page
const LETTER = 7; // about the width of a letter of an axis

/** Makes the texts of horizontal axes fit: titles break into lines, ticks are left out from the end on. */
function fitted(layout, figure, width) {
  const names = figure.data.flatMap((trace) => trace.y ?? []).filter((value) => typeof value === "string");
  const beside = Math.max(layout.margin?.l ?? 52, 10 + LETTER * Math.max(0, ...names.map((name) => unplain(name).length)));
  const inside = Math.max(120, width - beside - 24);
  for (const key of Object.keys(layout).filter((name) => /^xaxis\d*$/.test(name))) {
    const axis = { ...layout[key] };
    const title = axis.title?.text ?? "";
    if (title.length * LETTER > inside) axis.title = { ...axis.title, text: wrapped(title, Math.floor(inside / LETTER)) };
    if (axis.tickvals && !figure.layout.meta?.least) {
      axis.tickangle = 0;
      [axis.tickvals, axis.ticktext] = thinned(axis, inside, width < NARROW);
    }
    layout[key] = axis;
  }
  const bar = layout.coloraxis?.colorbar;
  if (bar && width < NARROW) layout.coloraxis = { ...layout.coloraxis, colorbar: { ...bar, nticks: 3, tickangle: 0, len: 0.6 } };
}

/** Flows whose names leave room for each other. */
const shortFlows = (trace) => (trace.type !== "sankey" ? trace
  : { ...trace, node: { ...trace.node, label: trace.node.label.map((text) => text.replace(/ only$/, "")) } });

/** Those ticks, from the last on, whose texts leave room for each other. */
function thinned(axis, inside, narrow) {
  const places = axis.tickvals;
  const texts = [...(axis.ticktext ?? places.map(String))];
  const [from, to] = axis.range ?? [places[0], places[places.length - 1]];
  const scale = inside / Math.max(1e-9, to - from);
  const kept = [];
  let left = Infinity; // where the last that is kept begins
  for (let at = places.length - 1; at >= 0; at -= 1) {
    const half = (LETTER * unplain(texts[at]).length) / 2 + 2;
    if (texts[at] === "never" && narrow) texts[at] = "<br>never"; // below the last depth, which keeps its tick
    else if (places[at] * scale + half > left) continue;
    else left = places[at] * scale - half;
    kept.unshift(at);
  }
  return [kept.map((at) => places[at]), kept.map((at) => texts[at])];
}

/** A title in lines of at most so many letters. */
const wrapped = (text, most) => text.split(" ").reduce((lines, word) => {
  const last = lines[lines.length - 1];
  if (last && last.length + 1 + word.length <= most) lines[lines.length - 1] = `${last} ${word}`;
  else lines.push(word);
  return lines;
}, []).join("<br>");

const MOST_IN_A_TIP = 6; // of more lines, a tooltip names the nearest one

const linesOf = (figure) => figure.data.filter((trace) => trace.meta?.role === "line" && trace.showlegend !== false);

/** The lines of a figure by name, where there are several; of many, the first and the last. (Not called a legend:
    plotly's own box of that name is the tooltip.) */
function showKey(list, figure) {
  const lines = [...new Map(linesOf(figure).map((trace) => [trace.name, trace]))];
  const shown = lines.length > MOST_IN_A_KEY ? [lines[0], null, lines[lines.length - 1]] : lines;
  list.replaceChildren(...(lines.length < 2 ? [] : shown.map((line) => {
    if (line === null) return element("li", {}, `… ${lines.length - 2} more …`);
    const [name, trace] = line;
    const look = { colour: trace.marker?.color, marker: trace.marker?.symbol ?? trace.meta.marker ?? "square" };
    return element("li", {}, trace.mode === "lines" ? dash(trace.line) : glyph(look), unplain(name));
  })));
}

const MOST_IN_A_KEY = 12;

/** What a figure is, for those who hear it: its title, axes and series; its numbers are in the CSV beside it. */
function said(holder, figure) {
  const title = holder.querySelector("h2, h3, h4")?.textContent ?? "";
  const axes = ["yaxis", "xaxis"].map((axis) => figure.layout[axis]?.title?.text).filter(Boolean).join(" by ");
  const names = linesOf(figure).map((trace) => unplain(trace.name ?? ""));
  const listed = names.length > 8 ? [...names.slice(0, 8), `${names.length - 8} more`] : names;
  return [title, axes, listed.join(", ")].filter(Boolean).join(". ") + ". The button CSV gives the numbers.";
}

/** A label that plotly draws as it stands. */
const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

/** The text behind what plotly is given as a label. */
const unplain = (text) => text.replaceAll("% {", "%{").replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&amp;", "&");

function downloadImage(holder, format) {
  const figure = shownFigures.get(holder);
  const canvas = holder.querySelector(".canvas");
  const heading = holder.querySelector("h2, h3, h4")?.textContent ?? "";
  const layout = { ...canvas.layout, title: { text: plain(heading), font: { size: 14 }, x: 0, xref: "paper" },
    margin: { ...canvas.layout.margin, t: (canvas.layout.margin?.t ?? 12) + 56 }, showlegend: figure.data.filter((trace) => trace.meta?.role === "line").length > 1 };
  Plotly.downloadImage({ data: canvas.data, layout }, {
    format, filename: holder.dataset.figure, width: canvas.clientWidth, height: canvas.clientHeight + 56,
    scale: format === "png" ? 2 : 1,
  });
}

/** The numbers that a figure draws, one row per point. */
function figureCsv(figure) {
  if (figure.data[0]?.type === "sankey") return flowsCsv(figure.data[0]);
  const rows = [["checkpoint", "series", "x", "y", "low", "high"]];
  for (const trace of figure.data) {
    const { checkpoint, checkpoints: several, run, role, column, against, x: fixedX } = trace.meta || {};
    if (role === "band") continue;
    const edges = (extra) => (Array.isArray(extra) ? extra : ["", ""]);
    if (trace.type === "heatmap") {
      trace.z.forEach((line, row) => line.forEach((value, at) => {
        const extra = trace.customdata?.[row][at];
        if (role === "cells") rows.push([trace.meta.rows[row], "cell", trace.x[at], value, "", ""]);
        else if (role === "matrix") {
          if (extra) rows.push([unplain(trace.y[row]), extra[3], unplain(trace.x[at]), value, extra[0], extra[1]]);
        } else if (role === "prompt") rows.push(["", trace.text[row][at], at, row, value, ""]);
        else rows.push(["", `top-1 ${extra.join(" | ")}`, at, row, value, ""]);
      }));
      continue;
    }
    trace.x.forEach((x, index) => {
      const extra = trace.customdata ? trace.customdata[index] : null;
      const [low, high] = edges(extra);
      const who = several ? several[index] || trace.name : checkpoint ?? run ?? trace.name;
      // A forest has its numbers on the x axis, and names on the other.
      if (against !== undefined) rows.push([who, role, x, "", low ?? "", high ?? ""]);
      else rows.push([who, column || role || "", Array.isArray(fixedX) ? fixedX[index] : fixedX ?? x, (column === "rank" ? extra : trace.y[index]) ?? "", low ?? "", high ?? ""]);
    });
  }
  return csv(rows);
}

function flowsCsv({ node, link }) {
  const rows = [["from", "to", "facts", "share", "low", "high"]];
  link.value.forEach((value, at) => rows.push([node.label[link.source[at]], node.label[link.target[at]], value, ...link.customdata[at]]));
  return csv(rows);
}

// The rule of memprobe.files.csv_text: a text that a spreadsheet would run begins with ', numbers in a row are none.
const FORMULA = /^[=+\-@\t\r]/;
const NUMBER = String.raw`(-|[+-]?\d+(\.\d+)?([eE][+-]?\d+)?)`;
const NUMBERS = new RegExp(`^${NUMBER}( ${NUMBER})*$`);
const harmless = (cell) => (typeof cell === "string" && FORMULA.test(cell) && !NUMBERS.test(cell) ? `'${cell}` : cell);

const csv = (rows) => rows.map((row) => row.map((cell) => {
  const text = String(harmless(cell) ?? "");
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}).join(",")).join("\r\n") + "\r\n";

function download(name, text) {
  const address = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  element("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
