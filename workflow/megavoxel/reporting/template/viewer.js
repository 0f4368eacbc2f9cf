// Slices of a case in three planes. A case is decoded when it is chosen: its picture holds all axial slices, its maps a
// byte per voxel and map, the reference first. Arrays are in the order (z, y, x): from the feet, from the back, and from
// the patient's left.

const DATA = JSON.parse(document.getElementById("case-data").textContent);
const NAMES = JSON.parse(document.getElementById("view-names").textContent);
const LARGEST_SIDE = 380; // CSS pixels of the longest side of a case
const LINE = 1.6; // CSS pixels
// Rows and columns of every plane run against their axis: so the patient's right is on the left, and head and front are
// up or to the left.
const PLANES = [
  { name: "Axial", axis: 0, down: 1, across: 2, letters: { left: "R", right: "L", top: "A", bottom: "P" } },
  { name: "Coronal", axis: 1, down: 0, across: 2, letters: { left: "R", right: "L", top: "S", bottom: "I" } },
  { name: "Sagittal", axis: 2, down: 0, across: 1, letters: { left: "A", right: "P", top: "S", bottom: "I" } },
];
const COLOURS = DATA.colours.map((hex) => [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16)));
const byId = (id) => document.getElementById(id);
const state = { shown: null, position: [0, 0, 0], hidden: new Set(), asked: 0 };

// Decoding

function bytesOf(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

async function inflated(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Grey values (z, y, x) from the picture of all axial slices. */
async function greyOf(entry) {
  const blob = new Blob([bytesOf(entry.picture)], { type: "image/webp" });
  const picture = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  const canvas = new OffscreenCanvas(picture.width, picture.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, 0);
  const pixels = context.getImageData(0, 0, picture.width, picture.height).data;
  const [slices, height, width] = entry.shape;
  const grey = new Uint8Array(slices * height * width);
  for (let z = 0, out = 0; z < slices; z += 1) {
    const [top, left] = [Math.floor(z / entry.columns) * height, (z % entry.columns) * width];
    for (let y = 0; y < height; y += 1) {
      for (let x = 0; x < width; x += 1) grey[out++] = pixels[4 * ((top + y) * picture.width + left + x)];
    }
  }
  return grey;
}

async function decoded(index) {
  const entry = JSON.parse(byId(`view-${index}`).textContent);
  const [grey, maps] = await Promise.all([greyOf(entry), inflated(bytesOf(entry.maps))]);
  return { ...entry, grey, maps, count: 1 + entry.models.length };
}

// One plane

/** The voxel numbers of a plane, row by row as it is seen. */
function voxelsOf(shape, plane, position) {
  const steps = [shape[1] * shape[2], shape[2], 1];
  const [rows, columns] = [shape[plane.down], shape[plane.across]];
  const voxels = new Uint32Array(rows * columns);
  for (let row = 0, out = 0; row < rows; row += 1) {
    const start = position * steps[plane.axis] + (rows - 1 - row) * steps[plane.down];
    for (let column = columns - 1; column >= 0; column -= 1) voxels[out++] = start + column * steps[plane.across];
  }
  return { rows, columns, voxels };
}

/** Labels of one map in a plane; those that are not to be drawn are 0. */
function labelsOf(shown, cut, map) {
  return Uint8Array.from(cut.voxels, (voxel) => {
    const label = shown.maps[voxel * shown.count + map];
    return state.hidden.has(label) ? 0 : label;
  });
}

function drawPixels(canvas, cut, smooth, colourOf) {
  const small = new OffscreenCanvas(cut.columns, cut.rows);
  const pixels = new ImageData(cut.columns, cut.rows);
  cut.voxels.forEach((voxel, index) => pixels.data.set(colourOf(voxel, index), 4 * index));
  small.getContext("2d").putImageData(pixels, 0, 0);
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = smooth;
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
}

function drawArea(canvas, cut, labels, opacity) {
  const alpha = Math.round(2.55 * opacity);
  drawPixels(canvas, cut, false, (_, index) => (labels[index] ? [...COLOURS[labels[index] - 1], alpha] : [0, 0, 0, 0]));
}

/** By label, the edges between its voxels and others. */
function outlinesOf(cut, labels, width, height) {
  const paths = new Map();
  const at = (row, column) =>
    row < 0 || column < 0 || row >= cut.rows || column >= cut.columns ? 0 : labels[row * cut.columns + column];
  for (let row = 0; row < cut.rows; row += 1) {
    for (let column = 0; column < cut.columns; column += 1) {
      const label = at(row, column);
      if (!label) continue;
      if (!paths.has(label)) paths.set(label, new Path2D());
      addEdges(paths.get(label), label, at, row, column, width, height);
    }
  }
  return paths;
}

function addEdges(path, label, at, row, column, width, height) {
  const [left, right, top, bottom] = [column * width, (column + 1) * width, row * height, (row + 1) * height];
  const edge = (fromX, fromY, toX, toY) => {
    path.moveTo(fromX, fromY);
    path.lineTo(toX, toY);
  };
  if (at(row - 1, column) !== label) edge(left, top, right, top);
  if (at(row + 1, column) !== label) edge(left, bottom, right, bottom);
  if (at(row, column - 1) !== label) edge(left, top, left, bottom);
  if (at(row, column + 1) !== label) edge(right, top, right, bottom);
}

function drawOutlines(canvas, cut, labels) {
  const context = canvas.getContext("2d");
  const line = LINE * devicePixelRatio;
  for (const [label, path] of outlinesOf(cut, labels, canvas.width / cut.columns, canvas.height / cut.rows)) {
    for (const [colour, width] of [["#000", 2 * line], [DATA.colours[label - 1], line]]) {
      Object.assign(context, { strokeStyle: colour, lineWidth: width, lineCap: "square" });
      context.stroke(path);
    }
  }
}

/** Where the two other planes lie. */
function drawLines(canvas, plane) {
  const { shape } = state.shown;
  const context = canvas.getContext("2d");
  const x = (1 - (state.position[plane.across] + 0.5) / shape[plane.across]) * canvas.width;
  const y = (1 - (state.position[plane.down] + 0.5) / shape[plane.down]) * canvas.height;
  context.fillStyle = "#ffe14d";
  context.fillRect(x - 0.5, 0, 1, canvas.height);
  context.fillRect(0, y - 0.5, canvas.width, 1);
}

function describe(plane) {
  const { shown, position } = state;
  const drawn = [
    byId("view-reference").checked ? "reference as outlines" : "",
    byId("view-prediction").checked ? `prediction of ${byId("view-model").value} as areas` : "",
  ].filter(Boolean);
  const place = `${plane.name} slice ${position[plane.axis] + 1} of ${shown.shape[plane.axis]} of ${shown.id}`;
  return drawn.length ? `${place}; ${drawn.join(", ")}` : place;
}

function drawPlane(plane) {
  const { shown, position } = state;
  const canvas = byId(`view-${plane.name}`);
  const cut = voxelsOf(shown.shape, plane, position[plane.axis]);
  const map = shown.models.indexOf(byId("view-model").value) + 1;
  drawPixels(canvas, cut, true, (voxel) => [shown.grey[voxel], shown.grey[voxel], shown.grey[voxel], 255]);
  if (byId("view-prediction").checked && map) {
    drawArea(canvas, cut, labelsOf(shown, cut, map), byId("view-opacity").valueAsNumber);
  }
  if (byId("view-reference").checked) drawOutlines(canvas, cut, labelsOf(shown, cut, 0));
  if (byId("view-lines").checked) drawLines(canvas, plane);
  canvas.setAttribute("aria-label", describe(plane));
  const slider = byId(`view-${plane.name}-slice`);
  slider.value = position[plane.axis] + 1;
  slider.setAttribute("aria-valuetext", `${position[plane.axis] + 1} of ${shown.shape[plane.axis]}`);
  byId(`view-${plane.name}-place`).textContent = `${plane.name}: slice ${slider.value} of ${slider.max}`;
}

function draw() {
  if (state.shown) PLANES.forEach(drawPlane);
}

// A case

/** Per axis the slice with the most labelled voxels of the reference, or of any map where the reference has none. */
function fullestSlices(shown) {
  const [, height, width] = shown.shape;
  const counts = shown.shape.map((length) => new Uint32Array(length));
  const count = (map) => {
    for (let voxel = 0, place = map; place < shown.maps.length; voxel += 1, place += shown.count) {
      if (!shown.maps[place]) continue;
      counts[0][Math.floor(voxel / (height * width))] += 1;
      counts[1][Math.floor(voxel / width) % height] += 1;
      counts[2][voxel % width] += 1;
    }
  };
  for (let map = 0; map < shown.count && !counts[0].some(Boolean); map += 1) count(map);
  return counts.map((numbers) => (numbers.some(Boolean) ? numbers.indexOf(Math.max(...numbers)) : numbers.length >> 1));
}

/** Canvases in the case's own proportions, all at one scale. */
function sizeCanvases(shown) {
  const millimetres = shown.shape.map((length, axis) => length * shown.voxel_mm[axis]);
  const scale = LARGEST_SIDE / Math.max(...millimetres);
  for (const plane of PLANES) {
    const canvas = byId(`view-${plane.name}`);
    const [width, height] = [plane.across, plane.down].map((axis) => Math.max(1, Math.round(millimetres[axis] * scale)));
    Object.assign(canvas, { width: width * devicePixelRatio, height: height * devicePixelRatio });
    canvas.style.width = `${width}px`;
    byId(`view-${plane.name}-slice`).max = shown.shape[plane.axis];
  }
}

function scoreText(metric, model, label) {
  const which = DATA.cases.findIndex((item) => item.id === state.shown.id);
  const value = DATA.scores[metric][DATA.models.indexOf(model)]?.[which]?.[label] ?? null;
  return value === null ? "–" : (value / DATA.parts).toFixed(3);
}

function listScores() {
  const model = byId("view-model").value;
  const rows = DATA.labels.map((name, label) => {
    const row = document.createElement("tr");
    const heading = document.createElement("th");
    heading.scope = "row";
    heading.innerHTML = '<span class="swatch"></span> ';
    heading.firstChild.style.background = DATA.colours[label];
    heading.append(name + (state.shown.unannotated.includes(name) ? " (not annotated in this case)" : ""));
    row.insertCell().append(labelSwitch(name, label + 1));
    row.append(heading);
    DATA.metrics.forEach((_, metric) => row.insertCell().append(scoreText(metric, model, label)));
    return row;
  });
  byId("view-scores").tBodies[0].replaceChildren(...rows);
}

function labelSwitch(name, label) {
  const box = document.createElement("input");
  Object.assign(box, { type: "checkbox", checked: !state.hidden.has(label) });
  box.setAttribute("aria-label", `Draw ${name}`);
  box.addEventListener("input", () => {
    state.hidden[box.checked ? "delete" : "add"](label);
    draw();
  });
  return box;
}

function offerModels(shown, wanted) {
  const select = byId("view-model");
  const before = wanted ?? select.value;
  select.replaceChildren(...shown.models.map((name) => new Option(name)));
  if (shown.models.includes(before)) select.value = before;
}

function tell(shown) {
  const item = DATA.cases.find(({ id }) => id === shown.id);
  const size = shown.voxel_mm.map((length) => length.toFixed(1)).join(" × ");
  const fold = item.fold === "all" ? "" : `, fold ${item.fold}`;
  byId("view-status").textContent = `${shown.id} (${item.split}${fold}), shown with voxels of ${size} mm (z, y, x).`;
}

async function show(index, model) {
  const asked = (state.asked += 1);
  byId("view-case").selectedIndex = index;
  byId("view-status").textContent = `Decoding ${NAMES[index]} …`;
  const shown = await decoded(index);
  if (asked !== state.asked) return; // another case was chosen meanwhile
  Object.assign(state, { shown, position: fullestSlices(shown) });
  offerModels(shown, model);
  sizeCanvases(shown);
  byId("view-previous").disabled = index === 0;
  byId("view-next").disabled = index === NAMES.length - 1;
  listScores();
  draw();
  tell(shown);
}

// Controls

function planeFigure(plane) {
  const figure = document.createElement("figure");
  figure.innerHTML = `<figcaption id="view-${plane.name}-place">${plane.name}</figcaption>
    <div class="frame"><canvas id="view-${plane.name}" role="img"></canvas></div>
    <input type="range" id="view-${plane.name}-slice" min="1" value="1" aria-label="${plane.name} slice">`;
  for (const [side, letter] of Object.entries(plane.letters)) {
    const mark = document.createElement("span");
    Object.assign(mark, { className: side, textContent: letter, ariaHidden: "true" });
    figure.querySelector(".frame").append(mark);
  }
  figure.querySelector("canvas").addEventListener("click", (event) => pointAt(plane, event));
  figure.querySelector("input").addEventListener("input", (event) => moveTo(plane, event.target.valueAsNumber - 1));
  return figure;
}

function moveTo(plane, position) {
  state.position[plane.axis] = position;
  draw();
}

/** A click puts the two other planes through that place. */
function pointAt(plane, event) {
  if (!state.shown) return;
  const { shape } = state.shown;
  const box = event.target.getBoundingClientRect();
  const place = (share, axis) => Math.min(shape[axis] - 1, Math.max(0, Math.floor((1 - share) * shape[axis])));
  state.position[plane.across] = place((event.clientX - box.left) / box.width, plane.across);
  state.position[plane.down] = place((event.clientY - box.top) / box.height, plane.down);
  draw();
}

function begin() {
  byId("view-planes").append(...PLANES.map(planeFigure));
  byId("view-case").append(...NAMES.map((name) => new Option(name)));
  byId("view-case").addEventListener("input", (event) => show(event.target.selectedIndex));
  byId("view-previous").addEventListener("click", () => show(byId("view-case").selectedIndex - 1));
  byId("view-next").addEventListener("click", () => show(byId("view-case").selectedIndex + 1));
  byId("view-model").addEventListener("input", () => {
    listScores();
    draw();
  });
  for (const id of ["view-reference", "view-prediction", "view-opacity", "view-lines"]) {
    byId(id).addEventListener("input", draw);
  }
  document.addEventListener("show-case", ({ detail }) => show(NAMES.indexOf(detail.id), detail.model));
  show(0);
}

if (NAMES.length) begin();
