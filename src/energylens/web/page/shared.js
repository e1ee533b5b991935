// What both views share: words for numbers, elements, theme, charts, downloads.
import { expressions } from "/expressions.js";

export const $ = (selector) => document.querySelector(selector);
export const root = document.documentElement;

export function el(name, props = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(props)) {
    if (key in made && key !== "list") made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

// What is there already is not laid out again.
export function write(at, text) {
  if (at.textContent !== text) at.textContent = text;
}

// A formatter takes far longer to make than to use.
const formats = new Map();
function format(digits) {
  if (!formats.has(digits)) formats.set(digits, new Intl.NumberFormat("en", digits ? { maximumSignificantDigits: digits } : {}));
  return formats.get(digits);
}
export const number = (value, digits = 3) => {
  if (value === null || value === undefined || !Number.isFinite(Number(value))) return "-";
  const v = Number(value);
  if (v !== 0 && (Math.abs(v) < 1e-3 || Math.abs(v) >= 1e9)) return v.toExponential(digits - 1);
  if (Math.abs(v) >= 10 ** digits) return format(0).format(Math.round(v));
  return format(digits).format(v);
};
export const joules = (v) => (v >= 1e5 ? `${number(v / 1e3)} kJ` : `${number(v)} J`);
export const watts = (v) => (v >= 1e4 ? `${number(v / 1e3)} kW` : `${number(v)} W`);
export const time = (s) => (s === null ? "unbounded" : s < 0.9995 ? `${number(1e3 * s)} ms` : `${number(s)} s`);
export const percent = (ratio, digits = 2) => `${number(100 * ratio, digits)} %`;
export const chance = (p) => (p === null || p === undefined ? "..." : p > 0.995 ? "> 0.99" : p < 0.005 ? "< 0.01" : p.toFixed(2));

// ------------------------------------------------------------------------------------ theme
let start = null;
const views = {};
const drawn = new Map(); // chart -> the data it shows
const themed = [];
let dark = false;
try {
  const kept = localStorage.getItem("theme");
  dark = kept ? kept === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
} catch {
  dark = matchMedia("(prefers-color-scheme: dark)").matches;
}
export const isDark = () => dark;
export const onTheme = (told) => themed.push(told);

function paint() {
  root.dataset.theme = dark ? "dark" : "light";
  const button = $("#theme");
  button.setAttribute("aria-pressed", String(dark));
  button.textContent = dark ? "Light" : "Dark";
  button.setAttribute("aria-label", dark ? "Use the light theme" : "Use the dark theme");
}

export async function begin() {
  paint();
  $("#theme").addEventListener("click", async () => {
    dark = !dark;
    try { localStorage.setItem("theme", dark ? "dark" : "light"); } catch { /* private window */ }
    paint();
    for (const told of themed) told();
    await Promise.all(Object.keys(views).map((id) => embed(id)));
  });
  for (const tools of document.querySelectorAll(".tools[data-chart]")) addTools(tools);
  start = await (await fetch("/page/start")).json();
  return start;
}

// ----------------------------------------------------------------------------------- charts
let library = null; // the bundle comes after the first answer
function loaded() {
  library ??= new Promise((done, failed) => {
    const script = el("script", { src: "/charts.js" });
    script.onload = done;
    script.onerror = () => failed(new Error("the charts cannot be loaded"));
    document.head.append(script);
  });
  return library;
}

// A whole figure comes drawn for some widths: the widest that there is room for is shown.
const figures = new Map();
function fitting(id) {
  const { drawn, change } = figures.get(id);
  const room = $(`#${id}`).clientWidth;
  const found = drawn.find((each) => each.width <= room) ?? drawn.at(-1);
  return { width: found.width, spec: change(structuredClone(found[dark ? "dark" : "light"])) };
}
export async function figure(id, drawn, change = (spec) => spec) {
  figures.set(id, { drawn, change });
  await loaded();
  await embed(id);
}
let widths = 0;
addEventListener("resize", () => {
  clearTimeout(widths);
  widths = setTimeout(() => { for (const [id, each] of figures) if (views[id] && fitting(id).width !== each.shown) embed(id); }, 120);
});

// What hovering says of a mark is worked out when it is asked, not for every mark at every answer.
function hovers(spec) {
  const plain = /^\.(\d)~g$/;
  const fields = (mark) => {
    const listed = spec.layer?.[/^layer_(\d+)_marks$/.exec(mark.name)?.[1]]?.encoding?.tooltip;
    return Array.isArray(listed) && listed.every((each) => !each.format || plain.test(each.format)) ? listed : null;
  };
  const words = ({ field, format: how }, datum) => {
    const value = datum[field];
    const digits = plain.exec(how)?.[1];
    return digits || value === null ? number(value, Number(digits ?? 3)) : value;
  };
  return {
    patch(compiled) {
      // Points come checked: a filter would look at each of them again.
      for (const data of compiled.data ?? []) if (data.source === "points") delete data.transform;
      for (const mark of compiled.marks ?? []) {
        if (mark.type === "symbol" && fields(mark)) mark.encode.update.tooltip = { signal: "datum" };
      }
      return compiled;
    },
    install(view) {
      const show = view.tooltip();
      view.tooltip((handler, event, item, value) => {
        const listed = item?.mark && value === item.datum ? fields(item.mark) : null;
        show(handler, event, item, listed ? Object.fromEntries(listed.map((each) => [each.title ?? each.field, words(each, value)])) : value);
      });
    },
  };
}

async function embed(id) {
  let spec = charts()[id];
  if (figures.has(id)) {
    const fit = fitting(id);
    figures.get(id).shown = fit.width;
    spec = fit.spec;
  }
  views[id]?.finalize();
  const hover = hovers(figures.has(id) ? {} : spec);
  const made = await window.vegaEmbed(`#${id}`, spec, {
    patch: hover.patch,
    renderer: new URLSearchParams(location.search).get("renderer") === "svg" ? "svg" : "canvas",
    actions: false,
    ast: true,
    expr: expressions,
    tooltip: { theme: dark ? "dark" : "light" },
    logLevel: 1,
  });
  hover.install(made.view);
  views[id] = made.view;
  const data = drawn.get(id);
  if (data) {
    await feed(id, data);
    await made.view.resize().runAsync(); // titles of axes that had nothing to show have room now
  }
}

// As many rows as before are the old ones with new numbers: their marks move and none is made anew.
const none = () => false;
function replace(view, name, values) {
  const old = view.data(name);
  if (!old.length || old.length !== values.length) { view.data(name, values); return; }
  const fields = Object.keys(values[0]).filter((field) => old.some((row, i) => row[field] !== values[i][field]));
  if (!fields.length) return;
  old.forEach((row, i) => { for (const field of fields) row[field] = values[i][field]; });
  const changes = view.changeset().reflow();
  for (const field of fields) changes.modify(none, field); // says which fields have changed
  view.change(name, changes);
}

async function feed(id, data) {
  const view = views[id];
  for (const [name, values] of Object.entries(data)) replace(view, name, values);
  const step = charts()[id]?.usermeta?.step;
  if (step) view.height(step * Math.max(new Set(data.bars.map((bar) => bar.name)).size, 1));
  await view.runAsync();
}

export async function draw(id, data) {
  drawn.set(id, data);
  await loaded();
  if (!views[id]) {
    views[id] = { finalize() {} };
    await embed(id);
  } else if (views[id].data) await feed(id, data);
}

export async function mark(id, name, values) {
  const data = drawn.get(id);
  if (data) data[name] = values;
  if (views[id]?.data) await views[id].data(name, values).runAsync();
}

export function key(id, items) {
  $(`#${id}-key`).replaceChildren(...items.map(([words, colour, shape]) => {
    const dot = el("i", { className: shape ?? "square" });
    dot.style.color = colour;
    return el("span", {}, dot, words);
  }));
}
export const SHAPES = ["circle", "square", "triangle-up", "cross", "diamond", "triangle-down"];
export const colours = () => start.colours[dark ? "dark" : "light"];
export const charts = () => start.charts[dark ? "dark" : "light"];

// -------------------------------------------------------------------------------- downloads
export function save(name, type, data) {
  const link = el("a", { download: name });
  link.href = typeof data === "string" && data.startsWith("data:") ? data : URL.createObjectURL(new Blob([data], { type }));
  document.body.append(link);
  link.click();
  link.remove();
  if (link.href.startsWith("blob:")) setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

export function csv(header, rows) {
  const cell = (value) => {
    if (value === null || value === undefined) return "";
    const text = String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [header, ...rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

function addTools(tools) {
  const id = tools.dataset.chart;
  for (const kind of ["SVG", "PNG"]) {
    const of = tools.dataset.of ? ` of ${tools.dataset.of}` : "";
    const button = el("button", { type: "button" }, `${kind}${of}`);
    button.setAttribute("aria-label", `${kind}${of}: download the chart, ${tools.parentElement.querySelector("h2").textContent}`);
    button.addEventListener("click", async () => {
      const view = views[id];
      if (!view?.toSVG) return;
      const paper = getComputedStyle(root).getPropertyValue("--paper").trim();
      const was = view.background();
      await view.background(paper).runAsync();
      if (kind === "SVG") save(`energylens-${id}.svg`, "image/svg+xml", await view.toSVG());
      else save(`energylens-${id}.png`, "image/png", await view.toImageURL("png", 2));
      await view.background(was).runAsync();
    });
    tools.append(button);
  }
}

window.energylens = { views }; // for tests: marks on a canvas are not in the document
