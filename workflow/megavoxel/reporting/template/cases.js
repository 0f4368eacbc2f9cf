// Scores of single cases: which of them are listed, in which order, and the event that shows one in the viewer.

const DATA = JSON.parse(document.getElementById("case-data").textContent);
const VIEWED = new Set(JSON.parse(document.getElementById("view-names").textContent));
const SHOWN_AT_FIRST = 25;
const MEAN = "mean over labels";
const ALL = "all";
const COLUMNS = [
  { title: "Case", key: "id" },
  { title: "Split", key: "split" },
  { title: "Fold", key: "fold" },
  { title: "Model", key: "model" },
  ...DATA.metrics.map((metric, index) => ({ title: metric, key: index })),
  { title: `Worst label (${DATA.metrics[0]})`, key: "worst" },
];
const byId = (id) => document.getElementById(id);
const table = byId("case-table");
const order = { key: 0, direction: DATA.signs[0] }; // the first metric, worst first
let everything = false;

const known = (values) => values.filter((value) => value !== null);

function mean(values) {
  const numbers = known(values);
  return numbers.length ? numbers.reduce((sum, value) => sum + value, 0) / numbers.length / DATA.parts : null;
}

/** The score of a label, or the mean over labels where `label` is -1; null where there is none. */
function score(metric, model, number, label) {
  const values = DATA.scores[metric][model][number];
  if (label < 0) return mean(values);
  return values[label] === null ? null : values[label] / DATA.parts;
}

function worstLabel(model, number) {
  const values = DATA.scores[0][model][number];
  const worst = DATA.signs[0] * Math.min(...known(values).map((value) => DATA.signs[0] * value));
  return Number.isFinite(worst) ? `${DATA.labels[values.indexOf(worst)]} ${(worst / DATA.parts).toFixed(3)}` : null;
}

function lineOf(model, number, label) {
  const scores = DATA.metrics.map((_, metric) => score(metric, model, number, label));
  return { ...DATA.cases[number], ...scores, number, model: DATA.models[model], worst: worstLabel(model, number) };
}

function wantedLines() {
  const words = byId("case-search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const [model, split, label] = ["case-model", "case-split", "case-label"].map((id) => byId(id).value);
  const lines = [];
  DATA.models.forEach((name, which) => {
    if (model !== ALL && model !== name) return;
    DATA.cases.forEach((item, number) => {
      const scored = DATA.scores[0][which][number] !== null;
      if (!scored || (split !== ALL && split !== item.split)) return;
      if (words.every((word) => item.id.toLowerCase().includes(word))) lines.push(lineOf(which, number, Number(label)));
    });
  });
  return lines;
}

function compareLines(first, second) {
  const [a, b] = [first[order.key], second[order.key]];
  if (a === null || b === null) return (a === null) - (b === null);
  const compared = typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });
  return order.direction * compared || first.id.localeCompare(second.id, "en", { numeric: true });
}

function written(value) {
  if (value === null) return "–";
  return typeof value === "number" ? value.toFixed(3) : value;
}

function showCase(id, model) {
  document.dispatchEvent(new CustomEvent("show-case", { detail: { id, model } }));
  byId("viewer").scrollIntoView();
  byId("view-case").focus({ preventScroll: true });
}

function showButton(line) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Show";
  button.setAttribute("aria-label", `Show slices of ${line.id}, ${line.model}`);
  button.addEventListener("click", () => showCase(line.id, line.model));
  return button;
}

const isNumber = (column) => typeof column.key === "number";

function rowOf(line) {
  const row = document.createElement("tr");
  row.setAttribute("role", "row");
  COLUMNS.forEach((column, index) => {
    const cell = document.createElement(index ? "td" : "th");
    if (!index) cell.scope = "row";
    cell.textContent = written(line[column.key]);
    cell.className = isNumber(column) ? "right" : "";
    cell.dataset.head = column.title;
    cell.setAttribute("role", index ? "cell" : "rowheader");
    row.append(cell);
  });
  const last = row.insertCell();
  last.setAttribute("role", "cell");
  last.append(VIEWED.has(line.id) ? showButton(line) : "not in the viewer");
  return row;
}

function listCases() {
  const lines = wantedLines().sort(compareLines);
  const shown = everything ? lines : lines.slice(0, SHOWN_AT_FIRST);
  table.tBodies[0].replaceChildren(...shown.map(rowOf));
  byId("case-count").textContent = `${shown.length} of ${lines.length} lines`;
  byId("case-more").hidden = shown.length === lines.length;
  return lines;
}

function sortBy(column, heading) {
  order.direction = order.key === column.key ? -order.direction : 1;
  order.key = column.key;
  for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
  heading.setAttribute("aria-sort", order.direction === 1 ? "ascending" : "descending");
  listCases();
}

function headingOf(column) {
  const heading = document.createElement("th");
  heading.scope = "col";
  heading.className = isNumber(column) ? "right" : "";
  const sorted = order.direction === 1 ? "ascending" : "descending";
  heading.setAttribute("aria-sort", column.key === order.key ? sorted : "none");
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = column.title;
  button.addEventListener("click", () => sortBy(column, heading));
  heading.append(button);
  return heading;
}

function makeHead() {
  const last = document.createElement("td");
  table.tHead.insertRow().append(...COLUMNS.map(headingOf), last);
  table.classList.add("blocks");
  table.setAttribute("role", "table");
  for (const part of [table.tHead, table.tBodies[0]]) part.setAttribute("role", "rowgroup");
  table.tHead.rows[0].setAttribute("role", "row");
}

function fill(id, options) {
  byId(id).append(...options.map(([value, text]) => new Option(text, value)));
  byId(id).addEventListener("input", listCases);
}

function quoted(text) {
  return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** The listed lines with the scores of all labels. */
function csvOf(lines) {
  const head = ["case", "split", "fold", "model"];
  for (const metric of DATA.metrics) head.push(`${metric} mean`, ...DATA.labels.map((label) => `${metric} ${label}`));
  const rows = lines.map((line) => {
    const cells = [line.id, line.split, line.fold, line.model];
    const model = DATA.models.indexOf(line.model);
    DATA.metrics.forEach((_, metric) => {
      for (let label = -1; label < DATA.labels.length; label += 1) cells.push(score(metric, model, line.number, label));
    });
    return cells.map((cell) => (cell === null ? "" : quoted(typeof cell === "number" ? cell.toFixed(3) : cell)));
  });
  return [head.map(quoted), ...rows].map((cells) => cells.join(",") + "\n").join("");
}

function saveLines() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([csvOf(wantedLines().sort(compareLines))], { type: "text/csv" }));
  link.download = "cases.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function begin() {
  const splits = [...new Set(DATA.cases.map((item) => item.split))];
  fill("case-model", [[ALL, "all models"], ...DATA.models.map((name) => [name, name])]);
  fill("case-split", [[ALL, "all"], ...splits.map((name) => [name, name])]);
  fill("case-label", [[-1, MEAN], ...DATA.labels.map((name, index) => [index, name])]);
  byId("case-search").addEventListener("input", listCases);
  byId("case-tools").addEventListener("submit", (event) => event.preventDefault());
  byId("case-export").addEventListener("click", saveLines);
  byId("case-more").addEventListener("click", () => {
    everything = true;
    listCases();
  });
  for (const link of document.querySelectorAll("a[data-case]")) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      showCase(link.dataset.case, link.dataset.model);
    });
  }
  makeHead();
  listCases();
}

begin();
