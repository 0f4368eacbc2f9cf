// Tables of the page: sorting by a column, a filter for long ones, and saving as CSV.

const LONG = 12; // rows from which a table gets a filter
const EXPORTS = JSON.parse(document.getElementById("exports").textContent);

/** The number that a cell begins with; NaN where it has none. The page writes minus as "−". */
function leadingNumber(text) {
  const found = text.replaceAll(",", "").match(/^(?:< ?)?([+−-]?\d+(?:\.\d+)?)/);
  return found ? Number(found[1].replace("−", "-")) : NaN;
}

/** Numbers by size, then words by the alphabet; cells without a value come last in either direction. */
function compareCells(first, second, direction) {
  if (first === "–" || second === "–") return (first === "–") - (second === "–");
  const [a, b] = [leadingNumber(first), leadingNumber(second)];
  if (Number.isNaN(a) !== Number.isNaN(b)) return Number.isNaN(a) ? 1 : -1;
  return direction * (Number.isNaN(a) ? first.localeCompare(second, "en") : a - b || first.localeCompare(second, "en"));
}

function sortRows(table, column, direction) {
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => [row.cells[column].textContent.trim(), row]);
  rows.sort((one, other) => compareCells(one[0], other[0], direction));
  body.append(...rows.map(([, row]) => row));
}

function sortBy(table, heading) {
  const direction = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
  heading.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
  sortRows(table, heading.cellIndex, direction);
}

function makeSortable(table) {
  for (const heading of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = heading.textContent;
    button.addEventListener("click", () => sortBy(table, heading));
    heading.replaceChildren(button);
    heading.setAttribute("aria-sort", "none");
  }
}

function filterRows(table, words) {
  const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of table.tBodies[0].rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !wanted.every((word) => text.includes(word));
  }
}

function filterOf(table) {
  const label = document.createElement("label");
  const input = document.createElement("input");
  input.type = "search";
  input.addEventListener("input", () => filterRows(table, input.value));
  label.append(`Lines with `, input);
  return label;
}

function quoted(text) {
  return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** What a table shows as CSV. */
function shownCsv(table) {
  const rows = [...table.tHead.rows, ...table.tBodies[0].rows];
  return rows.map((row) => [...row.cells].map((cell) => quoted(cell.textContent.trim())).join(",") + "\n").join("");
}

function save(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function exportOf(holder, table) {
  const title = table.caption.textContent;
  const key = holder.dataset.export;
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Save as CSV";
  button.setAttribute("aria-label", `Save as CSV: ${title}`);
  const name = key ?? title.toLowerCase().replaceAll(/[^a-z0-9]+/g, "-");
  button.addEventListener("click", () => save(`${name}.csv`, key ? EXPORTS[key] : shownCsv(table)));
  return button;
}

/** Each cell gets the head of its column, which a phone shows in place of the row of heads, and the roles of a table,
    which a row that is laid out as a block would lose. */
function makeBlocks(table) {
  const heads = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
  table.classList.add("blocks");
  table.setAttribute("role", "table");
  for (const part of [table.tHead, table.tBodies[0]]) part.setAttribute("role", "rowgroup");
  for (const row of table.rows) row.setAttribute("role", "row");
  for (const heading of table.tHead.rows[0].cells) heading.setAttribute("role", "columnheader");
  for (const row of table.tBodies[0].rows) {
    for (const cell of row.cells) {
      cell.setAttribute("role", cell.cellIndex ? "cell" : "rowheader");
      cell.dataset.head = heads[cell.cellIndex];
    }
  }
}

function furnish(holder) {
  const table = holder.querySelector("table");
  makeBlocks(table);
  makeSortable(table);
  const tools = document.createElement("div");
  tools.className = "tools";
  if (table.tBodies[0].rows.length >= LONG) tools.append(filterOf(table));
  tools.append(exportOf(holder, table));
  holder.prepend(tools);
}

/** A figure that is wider than its column can be moved sideways, with the keyboard as well. */
function makeMovable(pan) {
  if (pan.scrollWidth <= pan.clientWidth) return;
  pan.tabIndex = 0;
  pan.setAttribute("role", "region");
  pan.setAttribute("aria-label", `Figure: ${pan.firstElementChild.alt}`);
}

document.querySelectorAll("div.table").forEach(furnish);
document.querySelectorAll("div.pan").forEach(makeMovable);
