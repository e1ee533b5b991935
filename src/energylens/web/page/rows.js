import { $, SHAPES, begin, colours, csv, draw, el, figure, joules, key, number, onTheme, save } from "/shared.js";

const POLL_MS = 1500;
let found = null;
let rows = [];

function problem(said) {
  $("#problem").textContent = said;
  $("#problem").hidden = !said;
}

function kept() {
  const wanted = $("#filter").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
  return rows.filter((row) => wanted.every((part) => row.text.includes(part)));
}

const HEADS = ["LLM", "GPU type", "format", "configuration", "tokens in + out", "measured", "predicted", "ratio"];
const cells = (row) => [row.llm, row.gpu, row.precision, row.configuration, row.tokens, joules(row.measured), joules(row.predicted), number(row.ratio)];

async function residuals() {
  const shown = kept();
  const errors = shown.map((row) => Math.abs(row.ratio - 1));
  const mean = errors.reduce((sum, error) => sum + error, 0) / Math.max(errors.length, 1);
  $("#count").textContent = `${shown.length} of ${rows.length}` + (shown.length ? `, mean error ${number(100 * mean)} %` : "");
  const worst = [...shown].sort((a, b) => Math.abs(Math.log(b.ratio)) - Math.abs(Math.log(a.ratio))).slice(0, 10);
  $("#worst tbody").replaceChildren(...worst.map((row) => el("tr", {}, ...cells(row).map((cell, i) => el(i ? "td" : "th", i ? { className: i > 3 ? "n" : "" } : { scope: "row" }, cell)))));
  keys();
  await draw("residuals", { rows: shown });
}

function keys() {
  if (found) key("residuals", found.residuals.gpus.map((gpu, i) => [gpu, colours()[i % 6], SHAPES[i % 6]]));
}

async function learning() {
  const response = await fetch("/page/learning");
  const got = await response.json();
  if (response.status === 202) {
    $("#learning-says").textContent = "The estimators are being judged on rows left out ...";
    setTimeout(learning, POLL_MS);
    return;
  }
  if (!response.ok || got.status === "refused") {
    $("#learning-says").textContent = `There is no learning curve: ${got.why ?? got.detail}`;
    return;
  }
  const best = Math.max(...got.points.map((p) => p.rows));
  const own = got.points.find((p) => p.rows === best && p.name === "energylens");
  $("#learning-says").textContent = `${got.scenarios} scenarios, ${got.repeats} draws.` + (own?.error_percent != null ? ` Trained on ${best} rows energylens errs by ${number(own.error_percent)} %.` : "");
  parts("learning", true);
  await figure("learning", got.drawn);
}

function parts(id, shown) {
  $(`#${id}`).closest("section").querySelectorAll("figure, .tools, .filter, .scroll").forEach((part) => { part.hidden = !shown; });
}

// Forms are kept whose formula has every word; the chart shows those, and the lines through all.
const words = () => $("#filter-forms").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
const has = (form) => words().every((word) => form.toLowerCase().includes(word));
function thinned(spec) {
  for (const layer of spec.layer) {
    const values = layer.data?.values;
    if (values && layer.mark.type !== "line") layer.data.values = values.filter((row) => row.form === undefined || has(row.form));
  }
  return spec;
}
const FORM_HEADS = ["terms", "complexity", "in sample", "left out", "Top-1", "regret", "joules a request"];
function listed() {
  const shown = found.forms.listed.filter((form) => has(form.form));
  $("#count-forms").textContent = `${shown.length} of ${found.forms.listed.length}`;
  $("#listed thead tr").replaceChildren(...FORM_HEADS.map((head, i) => el("th", { scope: "col", className: i < 6 ? "n" : "" }, head)));
  const share = (value) => (value === null ? "-" : `${number(value)} %`);
  $("#listed tbody").replaceChildren(...shown.map((form) => el("tr", form.knee ? { className: "knee" } : {},
    el("th", { scope: "row", className: "n" }, form.knee ? `to take: ${form.terms}` : String(form.terms)),
    ...[String(form.complexity), share(form.in_sample_percent), share(form.error_percent), share(form.top1_percent), share(form.regret_percent)].map((cell) => el("td", { className: "n" }, cell)),
    el("td", {}, el("code", {}, form.form)))));
}

async function forms() {
  if (!found.forms) {
    $("#forms-says").textContent = "None were given: energylens discover finds some, and serve --front FRONT.json shows them.";
    parts("forms", false);
    return;
  }
  const knee = found.forms.listed.find((form) => form.knee);
  $("#forms-says").textContent = `${found.forms.listed.length} forms, each the best of its size. The one to take has ${knee.terms} terms and errs by ${number(knee.error_percent)} % on rows left out.`;
  $("#forms-caption").textContent = found.forms.caption;
  $("#forms-notes").replaceChildren(...found.forms.notes.map((note) => el("li", {}, note)));
  listed();
  await figure("forms", found.forms.drawn, thinned);
}
$("#filter-forms").addEventListener("input", () => { listed(); figure("forms", found.forms.drawn, thinned); });

$("#filter").addEventListener("input", residuals);
$("#csv").addEventListener("click", () => {
  const fields = ["llm", "gpu", "precision", "configuration", "input_tokens", "output_tokens", "source", "measured_j", "predicted_j"];
  save("energylens-rows.csv", "text/csv", csv(fields, kept().map((row) => fields.map((field) => row[field]))));
});

await begin();
onTheme(keys);
$("#worst thead tr").replaceChildren(...HEADS.map((head, i) => el("th", { scope: "col", className: i > 3 ? "n" : "" }, head)));
const response = await fetch("/page/rows");
found = await response.json();
if (!response.ok) {
  problem(found.detail);
  for (const section of document.querySelectorAll("main > section")) section.hidden = true;
} else {
  const r = found.residuals;
  rows = r.llm.map((llm, i) => {
    const row = { llm, gpu: r.gpu[i], precision: r.precision[i], configuration: r.configuration[i], input_tokens: r.input_tokens[i], output_tokens: r.output_tokens[i], source: r.source[i], measured_j: r.measured_j[i], predicted_j: r.predicted_j[i] };
    return { ...row, g: String(r.gpus.indexOf(row.gpu) % 6), tokens: `${number(row.input_tokens)} + ${number(row.output_tokens)}`, measured: row.measured_j, predicted: row.predicted_j, ratio: row.predicted_j / row.measured_j, text: `${llm} ${row.gpu} ${row.precision} ${row.configuration} ${row.source}`.toLowerCase() };
  });
  $("#h-audit").textContent = found.head;
  $("#audit").replaceChildren(...found.audit.map((line) => el("li", {}, line)));
  if (!found.claim) {
    $("#warning").textContent = "Some of these rows are neither measured nor published: no accuracy claim about real GPUs may rest on them.";
    $("#warning").hidden = false;
  }
  $("#residuals-says").textContent = `A mark is a row${r.shown < r.rows ? ` (${r.shown} of ${r.rows}, evenly spread)` : ""}. ` + (r.in_sample ? "The model was fitted to these rows, so errors on others will be larger." : `The model rests on ${r.model_rows} rows.`);
  parts("learning", false);
  await residuals();
  await Promise.all([forms(), learning()]);
}
window.energylens.shown = "rows";
