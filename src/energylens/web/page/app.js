import { $, SHAPES, begin, chance, charts, colours, csv, draw, el, joules, key, mark, number, onTheme, percent, save, time, watts, write } from "/shared.js";

const form = $("#ask");
const REST_MS = 250; // the slider rests: probabilities are asked for
const PAUSE_MS = 60; // the address follows after a pause this long
const SAME_RATIO = 1e-3; // of the joules: choices nearer to each other take the same
const FIRST_GPUS = ["H100-SXM-80GB", "B200", "H200-SXM-141GB", "MI300X", "A100-SXM-80GB", "L40S"];
const PARTS = ["mean", "p50", "p90", "p95", "p99"];
const NEEDED = ["llm", "max_gpus", "input_tokens", "output_tokens", "meet"];
// Parts of an answer that come when the slider rests.
const LATER = ["bars", "bar_gpus", "joules", "seconds", "curve", "law", "behind"];
let start = null;
let answer = null;
let asking = false;
let again = null;
let resting = 0;
let pausing = 0;
let sort = { by: "energy_per_request_j", down: false };
let turn = 0;

// ---------------------------------------------------------------------------- the question
function fill() {
  $("#llms").replaceChildren(...start.llms.map((name) => el("option", { value: name })));
  const known = [...new Set([...FIRST_GPUS.filter((g) => start.gpus.includes(g)), ...start.gpus])];
  $("#gpus").replaceChildren(...known.map((name, i) => gpuBox(name, i === 0)));
  $("#find_gpu").placeholder = `find among ${known.length}`;
  findGpus();
  $("#precision").replaceChildren(el("option", { value: "" }, "LLM's own"), ...start.precisions.map((p) => el("option", { value: p }, p)));
  const own = start.given ? `${start.given} (given)` : "packaged, by GPU type";
  $("#model").replaceChildren(el("option", { value: "" }, own), ...start.models.filter((m) => m !== "given").map((m) => el("option", { value: m }, m)));
  for (const id of ["tpot_of", "ttft_of"]) $(`#${id}`).replaceChildren(...PARTS.map((p) => el("option", { value: p }, p)));
  for (const [name, value] of Object.entries(start.prices)) $(`#${name}`).value = value;
  $("#llm").value = start.llms.includes("meta-llama/Llama-3.3-70B-Instruct") ? "meta-llama/Llama-3.3-70B-Instruct" : start.llms[0];
  $("#precision").value = start.precisions.includes("fp8") ? "fp8" : "";
  $("#to-rows").hidden = !start.table;
}

function gpuBox(name, checked) {
  const id = `gpu-${name.toLowerCase().replace(/[^a-z0-9]+/g, "-")}`;
  return el("label", { htmlFor: id }, el("input", { type: "checkbox", name: "gpu", value: name, id, checked }), name);
}
// Some at first, and those that are asked about; the others when they are looked for.
function findGpus() {
  const wanted = $("#find_gpu").value.trim().toLowerCase();
  [...$("#gpus").children].forEach((label, i) => {
    const box = label.firstChild;
    label.hidden = wanted ? !box.value.toLowerCase().includes(wanted) : !box.checked && i >= FIRST_GPUS.length;
  });
}

// Images are asked for where the LLM sees them.
function seen() {
  const name = $("#llm").value.trim();
  $("#seen").hidden = !start.seeing.includes(name) && !$("#images").value && !$("#frames").value;
}

function question() {
  const q = new URLSearchParams();
  for (const field of form.elements) {
    if (!field.name || field.closest("[hidden]") && field.type !== "checkbox" || (field.type === "checkbox" && !field.checked)) continue;
    const value = field.value.trim();
    if (value !== "") q.append(field.name, value);
  }
  for (const id of ["tpot", "ttft"]) {
    const value = $(`#${id}`).value;
    const part = $(`#${id}_of`).value;
    if (value !== "") q.append(id, `${Number(value)}ms${part === "mean" ? "" : `:${part}`}`);
  }
  return q;
}

function choose(field, value) {
  if (field.tagName === "SELECT" && ![...field.options].some((option) => option.value === value)) field.append(el("option", { value }, value));
  field.value = value;
}

function restore() {
  const q = new URLSearchParams(location.search);
  if (![...q.keys()].some((name) => name !== "renderer")) return;
  const boxes = () => [...$("#gpus").querySelectorAll("input")];
  if (q.has("gpu")) {
    const asked = q.getAll("gpu");
    for (const box of boxes()) box.checked = asked.includes(box.value);
    // A name that the list spells otherwise, or not at all, is asked as it stands.
    const listed = new Set(boxes().map((box) => box.value));
    for (const name of asked) if (!listed.has(name)) $("#gpus").prepend(gpuBox(name, true));
    findGpus();
  }
  for (const field of form.elements) {
    if (!field.name || field.type === "checkbox") continue;
    const value = q.get(field.name);
    // What every question needs keeps its default; what may be left out is left out.
    if (value === null) { if (!NEEDED.includes(field.name)) field.value = start.prices[field.name] ?? ""; }
    else choose(field, value);
  }
  for (const id of ["tpot", "ttft"]) {
    const found = /^([\d.]+)(us|ms|s|min)?(?::(p[\d.]+))?$/.exec(q.get(id) ?? "");
    const scale = { us: 1e-3, ms: 1, s: 1e3, min: 6e4 };
    $(`#${id}`).value = found ? Number((found[1] * scale[found[2] ?? "s"]).toPrecision(6)) : "";
    const part = found?.[3] ?? "mean";
    choose($(`#${id}_of`), part);
  }
}

const linear = (slider) => slider.dataset.linear !== undefined;
function toSliders(except) {
  for (const slider of form.querySelectorAll("input[type=range]")) {
    if (slider === except) continue;
    const value = Number($(`#${slider.dataset.for}`).value);
    if (value > 0) slider.value = linear(slider) ? value : Math.log10(value);
    slider.setAttribute("aria-valuetext", value > 0 ? number(value) : "none");
  }
}

form.addEventListener("input", (event) => {
  const slider = event.target;
  if (slider.id === "find_gpu") { findGpus(); return; }
  if (slider.dataset?.for) {
    const value = linear(slider) ? Number(slider.value) : 10 ** slider.value;
    $(`#${slider.dataset.for}`).value = Number(value.toPrecision(3));
    slider.setAttribute("aria-valuetext", number(value));
  }
  if (slider.id === "llm") seen();
  toSliders(slider);
  ask(event.timeStamp);
});
form.addEventListener("submit", (event) => event.preventDefault());
addEventListener("popstate", () => { restore(); seen(); toSliders(); ask(); });

// ------------------------------------------------------------------------------ the answer
// One question is under way at a time; what changes meanwhile is asked when it is answered. The
// address follows the picture, for a browser takes as long over it as over an answer.
async function ask(since = performance.now()) {
  clearTimeout(resting);
  clearTimeout(pausing);
  window.energylens.shown = "";
  const q = question();
  const keep = () => history.replaceState(null, "", `?${q}`);
  if (!q.has("gpu")) { keep(); problem("Choose a GPU type, or more than one."); return; }
  if (asking) { again = since; return; }
  asking = true;
  let then = null;
  try {
    then = await once(q, false, since);
  } finally {
    asking = false;
  }
  if (again !== null) { const since = again; again = null; ask(since); return; }
  pausing = setTimeout(() => { keep(); then?.(); }, then ? PAUSE_MS : 0);
  resting = setTimeout(() => certain(q), REST_MS);
}

async function certain(q) {
  const then = await once(q, true, performance.now(), () => String(question()) === String(q));
  await then?.();
}

// What is left to be drawn comes back as a function.
async function once(q, sure, since, still = () => form.querySelector("[name=gpu]:checked") !== null) {
  const asked = ++turn;
  let found;
  let response;
  try {
    response = await fetch(`/page/answer?${q}&certain=${sure}`);
    found = await response.json();
  } catch (error) {
    if (still()) problem(`The server does not answer (${error.message}): is it still running?`);
    return null;
  }
  if (!still() || (sure && asked !== turn)) return null;
  if (!response.ok) { problem(found.detail ?? "The question cannot be answered."); return null; }
  if (sure) answer = found;
  else answer = { ...Object.fromEntries(LATER.map((part) => [part, answer?.[part]])), ...found, sentences: null };
  answer.asked = q;
  problem("");
  $(".answers").classList.remove("empty");
  const got = performance.now();
  await picture();
  words();
  await new Promise((done) => requestAnimationFrame(() => { const c = new MessageChannel(); c.port1.onmessage = done; c.port2.postMessage(0); }));
  (window.energylens.timings ??= []).push({ sure, all_ms: performance.now() - since, wait_ms: got - since });
  return async () => {
    if (asked === turn) {
      if (sure) await later();
      else table();
    }
    if (asked === turn && !asking) window.energylens.shown = `${q}&certain=${sure}`;
  };
}

function problem(said, stale = true) {
  $("#problem").textContent = said;
  $("#problem").hidden = !said;
  $("#wait").hidden = true;
  $("#stale").hidden = !(said && stale && answer);
  $("#choice").hidden = Boolean(said) || !answer?.decision.configurations.length;
  brief();
  if (said) window.energylens.shown = "problem";
}

// Where the form fills the screen, the answer in a line stays below it, and leads to it.
const narrow = matchMedia("(max-width:820px)");
function brief() {
  const d = answer?.decision;
  const best = $("#problem").hidden ? d?.configurations[0] : undefined;
  $("#brief").hidden = !narrow.matches || !best;
  if (best) write($("#brief"), `${name(best)} on ${best.gpus} x ${best.gpu.split("-")[0]}: ${joules(best.energy_per_request_j)}, ${watts(best.power_w)}` + (d.current ? `, today ${joules(d.current.energy_per_request_j)}` : ""));
}
narrow.addEventListener("change", brief);

const gpusAsked = () => {
  const found = new Set(answer.pareto.candidates.gpu);
  const asked = answer.asked.getAll("gpu").filter((gpu) => found.has(gpu));
  return [...new Set([...asked, ...found])];
};
function point(i, g) {
  const c = answer.pareto.candidates;
  const odds = c.probability_of_meeting_ratio;
  return {
    name: c.configuration[i], gpu: c.gpu[i], g: String(g.indexOf(c.gpu[i])), gpus: c.gpus[i],
    j: c.energy_per_request_j[i], tpot_ms: 1e3 * c.tpot_s[i], ttft_ms: c.ttft_s[i] === null ? null : 1e3 * c.ttft_s[i],
    w: c.power_w[i], ok: c.meets[i], chance: odds ? chance(odds[i]) : c.meets[i] ? "by its means" : "no",
  };
}

async function picture() {
  const g = gpusAsked();
  const c = answer.pareto.candidates;
  const front = answer.pareto.front.map((i) => point(i, g));
  const chosen = answer.rows.length ? [point(answer.rows[0], g)] : [];
  const now = answer.decision.current;
  const limit = answer.decision.question.limits.find((each) => each.of === "tpot");
  key("front", g.map((name, i) => [name, colours()[i % 6], SHAPES[i % 6]]));
  await draw("front", {
    points: c.gpu.map((_, i) => point(i, g)).filter((p) => p.j > 0 && p.tpot_ms > 0), top: front, front, chosen,
    limit: limit ? [{ tpot_ms: 1e3 * limit.seconds }] : [],
    current: now ? [{ name: name(now), j: now.energy_per_request_j, tpot_ms: 1e3 * now.tpot_s }] : [],
  });
}

function bars(id, unit) {
  const words = charts()[id].usermeta.key;
  const rows = answer[id];
  const total = {};
  for (const row of rows) total[row.rank] = (total[row.rank] ?? 0) + row[unit];
  const many = new Set(answer.bar_gpus).size > 1;
  const label = (rank) => `${answer.bars[rank].replace("batch limit ", "B")}${many ? ` ${answer.bar_gpus[rank].split("-")[0]}` : ""}`;
  const seen = [...new Set(rows.map((row) => row.term))];
  key(id, seen.map((term) => words[term] ?? [term, "gray"]));
  return draw(id, { bars: rows.map((row) => ({ ...row, name: label(row.rank), words: words[row.term]?.[0] ?? row.term, share: row[unit] / total[row.rank] })) });
}

const shown = (id, there) => { $(`#${id}`).closest("section").hidden = !there; };
function later() {
  const curve = answer.curve;
  for (const id of ["joules", "seconds"]) shown(id, answer[id].length);
  shown("curve-energy", curve);
  shown("behind", answer.behind);
  shown("law", answer.law);
  const work = ["joules", "seconds"].filter((id) => answer[id].length).map((id) => bars(id, id[0]));
  if (curve) {
    const rows = curve.rate_per_s.map((rate, i) => ({
      rate, j: curve.energy_per_request_j[i], w: curve.power_w[i], tpot_ms: 1e3 * curve.tpot_s[i],
      ttft_ms: curve.ttft_s[i] === null ? null : 1e3 * curve.ttft_s[i], batch: curve.mean_batch_size[i],
    }));
    const rate = answer.decision.question.rate_per_s;
    const ends = curve.breaks_at_rate_per_s;
    const limit = answer.decision.question.limits.find((each) => each.of === "tpot");
    const marks = { curve: rows, now: [{ rate }], break: ends ? [{ rate: ends }] : [] };
    work.push(draw("curve-energy", { ...marks, limit: [] }), draw("curve-tpot", { ...marks, limit: limit ? [{ tpot_ms: 1e3 * limit.seconds }] : [] }));
    $("#curve-says").textContent = `${curve.configuration} on ${curve.gpu}: ` + (ends ? `meets the limits up to ${number(ends)} requests/s; ` : "") + `beyond ${number(curve.saturation_rate_per_s)} the queue grows without end.`;
  }
  if (answer.law) law();
  if (answer.behind) behind();
  return Promise.all(work);
}

const name = (entry) => {
  const dp = entry.data_parallel > 1 ? `${entry.data_parallel} x ` : "";
  const pp = entry.pipeline_parallel > 1 ? ` PP${entry.pipeline_parallel}` : "";
  const ep = entry.expert_parallel > 1 ? ` EP${entry.expert_parallel}` : "";
  const clock = entry.clock_mhz == null ? "" : `, ${number(entry.clock_mhz)} MHz`;
  const cap = entry.power_cap_w === null ? clock : `, ${number(entry.power_cap_w)} W`;
  return `${dp}TP${entry.tensor_parallel}${pp}${ep}, batch limit ${number(entry.batch_limit_per_replica, 4)}${cap}`;
};
const tile = (what, value, more = "") => [what, value, more];
// Written over where they are: most moves with every step of a slider.
function tiles(at, items) {
  while (at.children.length > items.length) at.lastChild.remove();
  items.forEach(([what, value, more], i) => {
    const { firstChild: title, lastChild: said } = at.children[i] ?? at.appendChild(el("div", {}, el("dt"), el("dd", {}, "", el("small"))));
    write(title, what);
    write(said.firstChild, value);
    write(said.lastChild, more);
  });
}

function words() {
  const d = answer.decision;
  const best = d.configurations[0];
  $("#choice").hidden = !best;
  const sure = d.certain;
  if (sure || !best || inView) table();
  if (!best) {
    problem(d.notes[0], false);
    $("#said").textContent = "";
    return;
  }
  write($("#run"), `Run ${name(best)} on ${best.gpus} x ${best.gpu}`);
  brief();
  write($("#state"), sure
    ? `${d.considered.toLocaleString("en")} configurations under this load; ${d.configurations.length} layouts meet the limits.`
    : `${d.considered.toLocaleString("en")} configurations ranked by their means; probabilities follow when the question rests.`);
  const asked = d.question.limits;
  const limit = (of) => asked.map((each, i) => (each.of !== of ? "" : (each.quantile ? `p${number(100 * each.quantile, 4)} ${best.limit_values_s[i] == null ? "" : `${time(best.limit_values_s[i])}, `}` : "") + `limit ${time(each.seconds)}`)).filter(Boolean).join("; ") || "no limit";
  tiles($("#facts"), [
    tile("energy of a request", joules(best.energy_per_request_j), `80 %: ${joules(best.lower_j)} to ${joules(best.upper_j)}`),
    tile("power", watts(best.power_w), `${percent(best.utilisation_ratio)} of its capacity used`),
    tile("TPOT", time(best.tpot_s), limit("tpot")), tile("TTFT", time(best.ttft_s), limit("ttft")),
    tile("limits met", !asked.length ? "none set" : sure ? chance(best.probability_of_meeting_ratio) : "...", asked.length ? `probability, ${d.question.meet ?? ""} asked` : "nothing to miss"),
  ]);
  const { best: month, current: today } = d.month;
  const met = () => tile("limits met today", !asked.length ? "none set" : sure ? chance(d.current.probability_of_meeting_ratio) : "...", asked.length ? "probability" : "nothing to miss");
  const choice = () => [tile("kWh a month", number(month.kwh_per_month)), tile("USD a month", number(month.cost_per_month)), tile("kg CO2 a month", number(month.co2_kg_per_month))];
  if (d.current && (!today || best.saving_ratio == null)) { // no saving counts against what does not serve the load
    $("#saved").dataset.side = "none";
    tiles($("#saved"), [tile("against today", "not counted", `${name(d.current)} ${today ? "breaks the limits" : "does not keep up"}`), ...choice(), met()]);
  } else if (today) {
    const less = best.saving_ratio;
    const same = Math.abs(less) < SAME_RATIO;
    const side = same ? "same" : less > 0 ? "less" : "more";
    const change = (what, field) => {
      const off = today[field] - month[field];
      const none = Math.abs(off) < SAME_RATIO * today[field];
      return tile(`${what} ${off < 0 && !none ? "more" : "saved"} a month`, none ? "0" : number(Math.abs(off)), `of ${number(today[field])} today`);
    };
    $("#saved").dataset.side = side;
    tiles($("#saved"), [
      tile("against today", same ? "the same" : `${percent(Math.abs(less))} ${side}`, `${name(d.current)}: ${joules(d.current.energy_per_request_j)}`),
      change("kWh", "kwh_per_month"), change("USD", "cost_per_month"), change("kg CO2", "co2_kg_per_month"),
      met(),
    ]);
  } else {
    $("#saved").dataset.side = "none";
    tiles($("#saved"), choice());
  }
  // What limits cost was worked out for the question before, until this one rests.
  $("#binds").style.visibility = sure ? "" : "hidden";
  if (sure) {
    $("#binds").textContent = answer.sentences.join(" ");
    $("#said").textContent = `${$("#run").textContent}: ${joules(best.energy_per_request_j)} a request, limits met with probability ${chance(best.probability_of_meeting_ratio)}.`;
  }
  line();
  $("#as-json").href = `/v1/select?${answer.asked}`;
}

function line() {
  const commands = answer?.commands ?? {};
  for (const option of $("#engine").options) option.disabled = !(option.value in commands);
  if (!($("#engine").value in commands)) $("#engine").value = Object.keys(commands)[0] ?? "vllm";
  write($("#line"), commands[$("#engine").value] ?? "");
}
$("#engine").addEventListener("change", line);
$("#copy").addEventListener("click", async () => {
  const text = $("#line").textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    getSelection().selectAllChildren($("#line"));
    document.execCommand("copy");
  }
  $("#copy").textContent = "Copied";
  setTimeout(() => { $("#copy").textContent = "Copy"; }, 1500);
});
$("#decision-file").addEventListener("click", () => answer && save("decision.toml", "application/toml", answer.decision_file));

// ------------------------------------------------------------------------------ the ranking
const interval = ({ lower_j: low, upper_j: high }) => (low < 1e5 && high < 1e5 ? `${number(low)} .. ${joules(high)}` : `${joules(low)} .. ${joules(high)}`);
const COLUMNS = [
  ["configuration", (e) => name(e), (e) => name(e)],
  ["GPU type", (e) => e.gpu, (e) => e.gpu],
  ["format", (e) => e.precision, (e) => e.precision],
  ["GPUs", (e) => e.gpus, (e) => number(e.gpus)],
  ["a request", (e) => e.energy_per_request_j, (e) => joules(e.energy_per_request_j)],
  ["80 % interval", (e) => e.lower_j, (e) => interval(e)],
  ["power", (e) => e.power_w, (e) => watts(e.power_w)],
  ["TPOT", (e) => e.tpot_s ?? Infinity, (e) => time(e.tpot_s)],
  ["TTFT", (e) => e.ttft_s ?? Infinity, (e) => time(e.ttft_s)],
  ["running", (e) => e.mean_batch_size, (e) => number(e.mean_batch_size)],
  ["meets", (e) => e.probability_of_meeting_ratio ?? -1, (e) => chance(e.probability_of_meeting_ratio)],
];
function ranked() {
  const d = answer.decision;
  const shown = d.configurations.length ? d.configurations : d.missed;
  const wanted = $("#filter").value.trim().toLowerCase();
  const column = COLUMNS.find(([title]) => title === sort.by) ?? COLUMNS[4];
  const rows = shown.map((entry, place) => ({ entry, place: answer.rows[place] }))
    .filter(({ entry }) => !wanted || `${name(entry)} ${entry.gpu} ${entry.precision}`.toLowerCase().includes(wanted));
  rows.sort((a, b) => {
    const [x, y] = [column[1](a.entry), column[1](b.entry)];
    return (x < y ? -1 : x > y ? 1 : 0) * (sort.down ? -1 : 1);
  });
  return [rows, shown.length];
}
function heads() {
  $("#ranking thead tr").replaceChildren(...COLUMNS.map(([title], i) => {
    const button = el("button", { type: "button" }, title);
    const head = el("th", { scope: "col", className: i > 2 ? "n" : "" }, button);
    button.addEventListener("click", () => {
      sort = { by: title, down: sort.by === title ? !sort.down : false };
      table();
    });
    return head;
  }));
}
function table() {
  if (!answer) return;
  const [rows, all] = ranked();
  [...$("#ranking thead tr").children].forEach((head, i) => {
    const on = COLUMNS[i][0] === sort.by;
    if (on) head.setAttribute("aria-sort", sort.down ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  });
  $("#count").textContent = `${rows.length} of ${all}` + (answer.decision.configurations.length ? "" : " that miss a limit");
  const body = $("#ranking tbody");
  while (body.rows.length > rows.length) body.lastChild.remove();
  while (body.rows.length < rows.length) body.append(blank());
  rows.forEach(({ entry, place }, i) => {
    const row = body.rows[i];
    places.set(row, place);
    COLUMNS.forEach(([, , shown], k) => write(row.cells[k], shown(entry)));
  });
}
// Out of view the ranking follows when the slider pauses.
let inView = true;
new IntersectionObserver((seen) => {
  inView = seen.at(-1).isIntersecting;
  if (inView) table();
}, { rootMargin: "200px" }).observe($("#ranking").closest("section"));
const places = new WeakMap(); // of the rows shown, among all candidates
function blank() {
  const row = el("tr", { tabIndex: 0 }, ...COLUMNS.map((_, i) => el(i ? "td" : "th", i ? { className: i > 2 ? "n" : "" } : { scope: "row" })));
  const show = () => places.get(row) !== undefined && mark("front", "chosen", [point(places.get(row), gpusAsked())]);
  row.addEventListener("focus", show);
  row.addEventListener("mouseenter", show);
  return row;
}
$("#filter").addEventListener("input", table);
$("#csv").addEventListener("click", () => {
  if (!answer) return;
  const [rows] = ranked();
  const fields = Object.keys(rows[0]?.entry ?? {}).filter((field) => field !== "limit_values_s");
  save("energylens-ranking.csv", "text/csv", csv(fields, rows.map(({ entry }) => fields.map((field) => entry[field]))));
});
$("#csv-all").addEventListener("click", () => {
  if (!answer) return;
  const c = answer.pareto.candidates;
  const fields = Object.keys(c).filter((field) => c[field]);
  save("energylens-candidates.csv", "text/csv", csv(fields, c.gpu.map((_, i) => fields.map((field) => c[field][i]))));
});

// ---------------------------------------------------------------------- the law, and its rows
const MATH = "http://www.w3.org/1998/Math/MathML";
const math = (tag, ...children) => { const made = document.createElementNS(MATH, tag); made.append(...children); return made; };
const GREEK = { alpha: "α", beta: "β", gamma: "γ", delta: "δ", epsilon: "ε", kappa: "κ", lambda: "λ", mu: "μ", nu: "ν", rho: "ρ", chi: "χ", psi: "ψ", omega: "ω", theta: "θ", zeta: "ζ", tau: "τ", pi: "π", sigma: "σ", phi: "φ", eta: "η", iota: "ι", ell: "ℓ", varphi: "φ" };
function symbol(tex) {
  const text = tex.replace(/\\([a-z]+)/g, (_, word) => GREEK[word] ?? word).replace(/[{}]/g, "");
  const [base, sub] = text.split("_");
  return sub ? math("msub", math("mi", base), math("mi", sub)) : math("mi", base);
}
const termWords = (id, term) => charts()[id].usermeta.key[term]?.[0] ?? term.replaceAll("_", " ");
function law() {
  const { terms, overlaps, time: seconds, gpu, engine } = answer.law;
  const inside = new Set(overlaps.flat());
  const e = (k) => math("msub", math("mi", "e"), symbol(terms[k].symbol));
  const squared = (k) => math("msubsup", math("mi", "e"), symbol(terms[k].symbol), math("mn", "2"));
  const parts = terms.map((_, k) => k).filter((k) => !inside.has(k)).map(e);
  for (const [a, b] of overlaps) parts.push(math("msqrt", squared(a), math("mo", "+"), squared(b)));
  const row = math("mrow", math("mi", "E"), math("mo", "="), ...parts.flatMap((part, i) => (i ? [math("mo", "+"), part] : [part])));
  $("#equation").replaceChildren(math("math", row));
  $("#law-says").textContent = `Each term is θ D N: N counts the work, D is what one costs by the datasheet of ${gpu}, and θ is fitted${engine ? ` (${engine})` : ""}. The root joins work that overlaps.`;
  const head = (titles) => el("tr", {}, ...titles.map((title, i) => el("th", { scope: "col", className: i && i < titles.length - 1 ? "n" : "" }, title)));
  $("#law thead").replaceChildren(head(["term", "θ", "80 % interval", "value", "unit", "what it is"]));
  $("#law tbody").replaceChildren(...terms.map((t) => el("tr", {}, el("th", { scope: "row" }, math("math", symbol(t.symbol)), ` ${termWords("joules", t.name)}`), ...[number(t.theta), `${number(t.low)} .. ${number(t.high)}`, number(t.value)].map((v) => el("td", { className: "n" }, v)), el("td", { className: "n" }, t.unit), el("td", {}, t.meaning))));
  $("#time-law thead").replaceChildren(head(["term", "θ", "unit", "what it is"]));
  $("#time-law tbody").replaceChildren(...seconds.map((t) => el("tr", {}, el("th", { scope: "row" }, termWords("seconds", t.name)), el("td", { className: "n" }, number(t.theta)), el("td", { className: "n" }, t.unit), el("td", {}, t.meaning))));
}
function behind() {
  const b = answer.behind;
  const fact = (what, said) => (said ? [el("dt", {}, what), el("dd", {}, said)] : []);
  $("#behind").replaceChildren(
    ...fact("rows", b.rows ? `${b.rows.toLocaleString("en")}, of ${b.llms} LLMs; ${b.rows_with_a_time.toLocaleString("en")} with a time` : "none: the datasheet alone"),
    ...fact("from", [b.source, b.licence, b.date].filter(Boolean).join(", ")),
    ...fact("kinds", Object.entries(b.sources).map(([kind, count]) => `${count.toLocaleString("en")} ${kind}`).join(", ")),
    ...fact("GPU types", b.gpus.join(", ")),
    ...fact("engines", b.engines.join(", ")),
    ...fact("this LLM", b.rows ? (b.llm_among_them ? "is among them" : "is not among them") : ""),
    ...fact("digest", b.dataset_digest.slice(0, 12)),
  );
  const notes = [...new Set([...answer.decision.notes, ...b.notes])].filter((note) => note !== $("#problem").textContent);
  $("#notes").replaceChildren(...notes.map((note) => el("li", {}, note)));
}

// -------------------------------------------------------------------------------------- begin
for (const id of ["joules", "seconds", "curve-energy", "behind", "law"]) shown(id, false);
start = await begin();
fill();
restore();
seen();
toSliders();
heads();
sort = { by: "a request", down: false };
onTheme(() => answer && key("front", gpusAsked().map((g, i) => [g, colours()[i % 6], SHAPES[i % 6]])));
onTheme(() => answer?.joules && ["joules", "seconds"].forEach((id) => {
  const found = charts()[id].usermeta.key;
  key(id, [...new Set(answer[id].map((row) => row.term))].map((term) => found[term] ?? [term, "gray"]));
}));
await ask();
