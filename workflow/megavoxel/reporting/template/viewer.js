// Slices of a case in three planes. A case is decoded when it is chosen: its picture holds all axial slices, its maps a
// byte per voxel and map, the reference first. Arrays are in the order (z, y, x): from the feet, from the back, and from
// the patient's left.

const DATA = JSON.parse(document.getElementById("case-data").textContent);
const NAMES = JSON.parse(document.getElementById("view-names").textContent);
const [HEIGHT_SHARE, LARGE_SHARE] = [0.72, 0.92]; // of the window, the most that a plane is high
const LINE = 1.6; // CSS pixels
const [ZOOM_STEP, MOST_ZOOM] = [1.25, 16];
const WHEEL_STEP = 40; // pixels that a wheel or touchpad turns per slice
const FAR = 10; // slices of Page Up and Page Down
const MOVE_STEP = 0.1; // share of a plane's side that a key moves a zoomed picture by
const DRAG_FROM = 4; // CSS pixels; less is a click
const TICKS = 1000; // of the sliders for window and level
// Rows and columns of every plane run against their axis: so the patient's right is on the left, and head and front are
// up or to the left.
const PLANES = [
  { name: "Axial", axis: 0, down: 1, across: 2, letters: { left: "R", right: "L", top: "A", bottom: "P" } },
  { name: "Coronal", axis: 1, down: 0, across: 2, letters: { left: "R", right: "L", top: "S", bottom: "I" } },
  { name: "Sagittal", axis: 2, down: 0, across: 1, letters: { left: "A", right: "P", top: "S", bottom: "I" } },
];
const COLOURS = DATA.colours.map((hex) => [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16)));
const byId = (id) => document.getElementById(id);
const state = { shown: null, position: [0, 0, 0], hidden: new Set(), asked: 0, low: 0, high: 255, large: "", views: {} };
const context = (canvas) => canvas.getContext("2d");

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

/** The part of a plane that is seen: the place of its corner and its size, in pixels of the canvas. */
function placeOf(canvas, plane) {
  const { zoom, x, y } = state.views[plane.name];
  const [width, height] = [canvas.width * zoom, canvas.height * zoom];
  return { left: canvas.width / 2 - x * width, top: canvas.height / 2 - y * height, width, height };
}

/** Draws a pixel per voxel; `colourOf` gives each one's colour as a number 0xAABBGGRR. */
function drawPixels(canvas, plane, cut, smooth, colourOf) {
  const small = new OffscreenCanvas(cut.columns, cut.rows);
  const pixels = new ImageData(cut.columns, cut.rows);
  const colours = new Uint32Array(pixels.data.buffer);
  for (let index = 0; index < colours.length; index += 1) colours[index] = colourOf(cut.voxels[index], index);
  context(small).putImageData(pixels, 0, 0);
  const { left, top, width, height } = placeOf(canvas, plane);
  context(canvas).imageSmoothingEnabled = smooth;
  context(canvas).drawImage(small, left, top, width, height);
}

/** Colours of the 256 stored grey values between the intensities that are black and white. */
function greyTable() {
  const span = Math.max(1, state.high - state.low);
  return Uint32Array.from({ length: 256 }, (_, value) => {
    const grey = Math.min(255, Math.max(0, Math.round((255 * (value - state.low)) / span)));
    return ((255 << 24) | (grey << 16) | (grey << 8) | grey) >>> 0;
  });
}

function drawGrey(canvas, plane, cut) {
  const table = greyTable();
  context(canvas).clearRect(0, 0, canvas.width, canvas.height);
  drawPixels(canvas, plane, cut, true, (voxel) => table[state.shown.grey[voxel]]);
}

function drawArea(canvas, plane, cut, labels, opacity) {
  const alpha = Math.round(2.55 * opacity);
  const colours = COLOURS.map(([red, green, blue]) => ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0);
  drawPixels(canvas, plane, cut, false, (_, index) => (labels[index] ? colours[labels[index] - 1] : 0));
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

function drawOutlines(canvas, plane, cut, labels) {
  const line = LINE * devicePixelRatio;
  const { left, top, width, height } = placeOf(canvas, plane);
  context(canvas).save();
  context(canvas).translate(left, top);
  for (const [label, path] of outlinesOf(cut, labels, width / cut.columns, height / cut.rows)) {
    for (const [colour, thickness] of [["#000", 2 * line], [DATA.colours[label - 1], line]]) {
      Object.assign(context(canvas), { strokeStyle: colour, lineWidth: thickness, lineCap: "square" });
      context(canvas).stroke(path);
    }
  }
  context(canvas).restore();
}

/** Where the two other planes lie. */
function drawLines(canvas, plane) {
  const { shape } = state.shown;
  const { left, top, width, height } = placeOf(canvas, plane);
  const x = left + (1 - (state.position[plane.across] + 0.5) / shape[plane.across]) * width;
  const y = top + (1 - (state.position[plane.down] + 0.5) / shape[plane.down]) * height;
  context(canvas).fillStyle = "#ffe14d";
  context(canvas).fillRect(x - 0.5, 0, 1, canvas.height);
  context(canvas).fillRect(0, y - 0.5, canvas.width, 1);
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
  drawGrey(canvas, plane, cut);
  if (byId("view-prediction").checked && map) {
    drawArea(canvas, plane, cut, labelsOf(shown, cut, map), byId("view-opacity").valueAsNumber);
  }
  if (byId("view-reference").checked) drawOutlines(canvas, plane, cut, labelsOf(shown, cut, 0));
  if (byId("view-lines").checked) drawLines(canvas, plane);
  canvas.classList.toggle("zoomed", state.views[plane.name].zoom > 1);
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

/** Each canvas as large as its column of the page and the window allow, in the case's own proportions. */
function sizeCanvases() {
  const { shape, voxel_mm: sizes } = state.shown;
  const millimetres = shape.map((length, axis) => length * sizes[axis]);
  for (const plane of PLANES) {
    const canvas = byId(`view-${plane.name}`);
    const [across, down] = [millimetres[plane.across], millimetres[plane.down]];
    const room = canvas.closest("figure").clientWidth;
    const high = (state.large === plane.name ? LARGE_SHARE : HEIGHT_SHARE) * innerHeight;
    const width = Math.max(1, Math.floor(Math.min(room, (high * across) / down)));
    const height = Math.max(1, Math.round((width * down) / across));
    const scale = devicePixelRatio;
    Object.assign(canvas, { width: Math.round(width * scale), height: Math.round(height * scale) });
    canvas.style.width = `${width}px`;
    byId(`view-${plane.name}-slice`).max = shape[plane.axis];
  }
}

function resize() {
  if (!state.shown) return;
  sizeCanvases();
  draw();
}

// Window and level, in the intensities of the image

const intensityOf = (grey) => {
  const [low, high] = state.shown.range;
  return low + ((high - low) * grey) / 255;
};

function setLevels(low, high) {
  Object.assign(state, { low, high });
  byId("view-window").value = ((high - low) / 255) * TICKS;
  byId("view-level").value = ((low + high) / 2 / 255) * TICKS;
  tellLevels();
}

function tellLevels() {
  const [low, high] = [intensityOf(state.low), intensityOf(state.high)];
  const digits = state.shown.range[1] - state.shown.range[0] > 20 ? 0 : 2;
  for (const [name, value] of [["window", high - low], ["level", (low + high) / 2]]) {
    byId(`view-${name}-value`).textContent = value.toFixed(digits);
    byId(`view-${name}`).setAttribute("aria-valuetext", value.toFixed(digits));
  }
}

function takeLevels() {
  if (!state.shown) return;
  const [width, middle] = ["view-window", "view-level"].map((id) => (byId(id).valueAsNumber / TICKS) * 255);
  Object.assign(state, { low: middle - width / 2, high: middle + width / 2 });
  tellLevels();
  draw();
}

function resetLevels() {
  const [low, high] = state.shown.range;
  setLevels(...state.shown.window.map((value) => (255 * (value - low)) / (high - low)));
}

function changeLevels(width, middle) {
  const span = Math.min(255, Math.max(1, state.high - state.low + width));
  const centre = Math.min(255, Math.max(0, (state.low + state.high) / 2 + middle));
  setLevels(centre - span / 2, centre + span / 2);
  draw();
}

// Zoom

function resetViews() {
  for (const plane of PLANES) state.views[plane.name] = { zoom: 1, x: 0.5, y: 0.5 };
}

/** Keeps the picture's edges out of the canvas. */
function setView(plane, zoom, x, y) {
  const half = 0.5 / zoom;
  const within = (share) => Math.min(1 - half, Math.max(half, share));
  state.views[plane.name] = { zoom, x: within(x), y: within(y) };
}

/** Zooms by a factor; what lies at the given share of the canvas stays there. */
function zoomBy(plane, factor, atX = 0.5, atY = 0.5) {
  const { zoom, x, y } = state.views[plane.name];
  const next = Math.min(MOST_ZOOM, Math.max(1, zoom * factor));
  const moved = (share, at) => share + (at - 0.5) * (1 / zoom - 1 / next);
  setView(plane, next, moved(x, atX), moved(y, atY));
}

function zoomAll(factor) {
  for (const plane of PLANES) zoomBy(plane, factor);
  draw();
}

function moveView(plane, right, down) {
  const { zoom, x, y } = state.views[plane.name];
  setView(plane, zoom, x + right / zoom, y + down / zoom);
  draw();
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
    DATA.metrics.forEach((_, metric) => {
      const cell = row.insertCell();
      cell.className = "right";
      cell.append(scoreText(metric, model, label));
    });
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
  const size = shown.voxel_mm.map((length) => Number(length.toPrecision(3))).join(" × ");
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
  resetViews();
  resetLevels();
  offerModels(shown, model);
  sizeCanvases();
  byId("view-previous").disabled = index === 0;
  byId("view-next").disabled = index === NAMES.length - 1;
  listScores();
  draw();
  tell(shown);
}

// Controls

function planeFigure(plane) {
  const figure = document.createElement("figure");
  figure.innerHTML = `<figcaption><span id="view-${plane.name}-place">${plane.name}</span>
    <button type="button" id="view-${plane.name}-large" aria-pressed="false">Enlarge</button></figcaption>
    <div class="frame"><canvas id="view-${plane.name}" role="img" tabindex="0"></canvas></div>
    <input type="range" id="view-${plane.name}-slice" min="1" value="1" aria-label="${plane.name} slice">`;
  for (const [side, letter] of Object.entries(plane.letters)) {
    const mark = document.createElement("span");
    Object.assign(mark, { className: side, textContent: letter, ariaHidden: "true" });
    figure.querySelector(".frame").append(mark);
  }
  const canvas = figure.querySelector("canvas");
  const button = figure.querySelector("button");
  button.setAttribute("aria-label", `Enlarge the ${plane.name.toLowerCase()} plane`);
  button.addEventListener("click", () => enlarge(plane));
  canvas.addEventListener("wheel", (event) => turnWheel(plane, event), { passive: false });
  canvas.addEventListener("keydown", (event) => pressKey(plane, event));
  canvas.addEventListener("pointerdown", (event) => beginDrag(plane, event));
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  figure.querySelector("input").addEventListener("input", (event) => moveTo(plane, event.target.valueAsNumber - 1));
  return figure;
}

/** One plane takes most of the page, the others stand beside it; a second time, all are equal again. */
function enlarge(plane) {
  state.large = state.large === plane.name ? "" : plane.name;
  byId("view-planes").classList.toggle("enlarged", state.large !== "");
  for (const other of PLANES) {
    const isLarge = state.large === other.name;
    byId(`view-${other.name}`).closest("figure").classList.toggle("large", isLarge);
    const button = byId(`view-${other.name}-large`);
    button.setAttribute("aria-pressed", isLarge);
    button.textContent = isLarge ? "All equal" : "Enlarge";
  }
  resize();
}

/** Returns whether there is another slice that way. */
function moveTo(plane, position) {
  if (!state.shown) return false;
  const next = Math.min(state.shown.shape[plane.axis] - 1, Math.max(0, position));
  const changes = next !== state.position[plane.axis];
  state.position[plane.axis] = next;
  if (changes) draw();
  return changes;
}

/** The wheel goes through the slices, and the page scrolls on at the last one. */
function turnWheel(plane, event) {
  if (!state.shown) return;
  if (event.ctrlKey) {
    event.preventDefault();
    const box = event.target.getBoundingClientRect();
    const factor = event.deltaY < 0 ? ZOOM_STEP : 1 / ZOOM_STEP;
    zoomBy(plane, factor, (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
    draw();
    return;
  }
  const pixels = event.deltaMode ? event.deltaY * WHEEL_STEP : event.deltaY;
  state.turned = Math.sign(state.turned ?? 0) === Math.sign(pixels) ? state.turned + pixels : pixels;
  const steps = Math.trunc(state.turned / WHEEL_STEP);
  if (!steps) return event.preventDefault();
  state.turned -= steps * WHEEL_STEP;
  if (moveTo(plane, state.position[plane.axis] - steps)) event.preventDefault();
}

function pressKey(plane, event) {
  if (!state.shown || event.ctrlKey || event.altKey || event.metaKey) return;
  const place = state.position[plane.axis];
  const slices = { ArrowUp: 1, ArrowDown: -1, ArrowRight: 1, ArrowLeft: -1, PageUp: FAR, PageDown: -FAR };
  const moves = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowRight: [1, 0], ArrowLeft: [-1, 0] };
  if (event.shiftKey && event.key in moves) moveView(plane, ...moves[event.key].map((step) => step * MOVE_STEP));
  else if (event.key in slices) moveTo(plane, place + slices[event.key]);
  else if (event.key === "+" || event.key === "=") zoomAll(ZOOM_STEP);
  else if (event.key === "-" || event.key === "−") zoomAll(1 / ZOOM_STEP);
  else if (event.key === "0") reset();
  else return;
  event.preventDefault();
}

function reset() {
  if (!state.shown) return;
  resetViews();
  resetLevels();
  draw();
}

/** A click points; dragging moves a zoomed picture, with Shift or the right button it changes window and level. */
function beginDrag(plane, first) {
  if (!state.shown) return;
  const canvas = first.target;
  const box = canvas.getBoundingClientRect();
  const levels = first.shiftKey || first.button === 2;
  let [x, y, dragged] = [first.clientX, first.clientY, false];
  const move = (event) => {
    dragged ||= Math.hypot(event.clientX - first.clientX, event.clientY - first.clientY) >= DRAG_FROM;
    if (!dragged) return;
    const [right, down] = [(event.clientX - x) / box.width, (event.clientY - y) / box.height];
    if (levels) changeLevels(255 * right, 255 * down);
    else if (state.views[plane.name].zoom > 1) moveView(plane, -right, -down);
    [x, y] = [event.clientX, event.clientY];
  };
  const end = (event) => {
    for (const [kind, act] of [["pointermove", move], ["pointerup", end], ["pointercancel", end]]) {
      canvas.removeEventListener(kind, act);
    }
    if (!dragged && !levels && event.type === "pointerup") pointAt(plane, event, box);
  };
  canvas.setPointerCapture(first.pointerId);
  for (const [kind, act] of [["pointermove", move], ["pointerup", end], ["pointercancel", end]]) {
    canvas.addEventListener(kind, act);
  }
}

/** Puts the two other planes through a place. */
function pointAt(plane, event, box) {
  const { shape } = state.shown;
  const { zoom, x, y } = state.views[plane.name];
  const place = (at, centre, axis) => {
    const share = centre + (at - 0.5) / zoom;
    return Math.min(shape[axis] - 1, Math.max(0, Math.floor((1 - share) * shape[axis])));
  };
  state.position[plane.across] = place((event.clientX - box.left) / box.width, x, plane.across);
  state.position[plane.down] = place((event.clientY - box.top) / box.height, y, plane.down);
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
  for (const id of ["view-window", "view-level"]) byId(id).addEventListener("input", takeLevels);
  byId("view-closer").addEventListener("click", () => zoomAll(ZOOM_STEP));
  byId("view-farther").addEventListener("click", () => zoomAll(1 / ZOOM_STEP));
  byId("view-reset").addEventListener("click", reset);
  addEventListener("resize", resize);
  document.addEventListener("show-case", ({ detail }) => show(NAMES.indexOf(detail.id), detail.model));
  show(0);
}

if (NAMES.length) begin();
