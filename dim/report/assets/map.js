// The map: drag or use arrows to move; wheel, pinch, buttons or keys to zoom; click a photo to see its label and id.

const atlas = document.querySelector(".atlas");
const drawing = atlas.querySelector("svg");
const spots = [...drawing.querySelectorAll(".spot")];
const chosen = atlas.querySelector(".chosen");
const { x, y, width, height } = drawing.viewBox.baseVal;
const box = drawing.getBoundingClientRect();
const stretch = Math.sqrt((box.width / box.height) / (width / height)); // fits the map to the aspect ratio of its frame
const all = { x: x * stretch, y: y / stretch, width: width * stretch, height: height / stretch };
const pointers = new Map();
let view = { ...all };
let moved = 0;

function draw() {
  drawing.setAttribute("viewBox", `${view.x} ${view.y} ${view.width} ${view.height}`);
  // Photos grow more slowly than the map, so that overlapping ones come apart.
  const scale = Math.sqrt(view.width / all.width);
  for (const spot of spots) {
    const { x, y } = spot.dataset;
    spot.setAttribute("transform", `translate(${x * stretch} ${y / stretch}) scale(${scale})`);
  }
}

function placeOf(event) {
  return new DOMPoint(event.clientX, event.clientY).matrixTransform(drawing.getScreenCTM().inverse());
}

function zoom(factor, at) {
  const width = Math.min(all.width * 1.5, Math.max(all.width / 40, view.width / factor));
  const kept = width / view.width;
  view = {
    x: at.x - (at.x - view.x) * kept, y: at.y - (at.y - view.y) * kept,
    width, height: view.height * kept,
  };
  draw();
}

function middle() {
  return { x: view.x + view.width / 2, y: view.y + view.height / 2 };
}

function showAll() {
  view = { ...all };
  draw();
}

function move(x, y) {
  view.x += x;
  view.y += y;
  draw();
}

function choose(spot) {
  for (const other of spots) other.classList.toggle("picked", other === spot);
  chosen.hidden = !spot;
  if (!spot) return;
  spot.parentNode.append(spot); // on top of its neighbours
  const picture = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  picture.setAttribute("class", "photo");
  const use = spot.querySelector("use").cloneNode();
  for (const name of ["x", "y", "width", "height"]) use.removeAttribute(name);
  picture.append(use);
  const lines = [spot.dataset.label, spot.dataset.id].filter(Boolean).map((text) => {
    const line = document.createElement("bdi");
    line.textContent = text;
    return line;
  });
  chosen.replaceChildren(picture, ...lines);
}

drawing.addEventListener("wheel", (event) => {
  event.preventDefault();
  zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), placeOf(event));
}, { passive: false });

drawing.addEventListener("pointerdown", (event) => {
  if (!pointers.size) moved = 0;
  pointers.set(event.pointerId, event);
});

addEventListener("pointermove", (event) => {
  const before = pointers.get(event.pointerId);
  if (!before) return;
  const from = placeOf(before), to = placeOf(event);
  if (pointers.size === 2) {
    const other = [...pointers.values()].find((pointer) => pointer.pointerId !== event.pointerId);
    const apart = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);
    zoom(apart(event) / Math.max(1, apart(before)), placeOf(other));
  } else {
    move(from.x - to.x, from.y - to.y);
  }
  moved += Math.hypot(event.clientX - before.clientX, event.clientY - before.clientY);
  pointers.set(event.pointerId, event);
});

for (const end of ["pointerup", "pointercancel"]) {
  addEventListener(end, (event) => pointers.delete(event.pointerId));
}

drawing.addEventListener("click", (event) => {
  if (moved < 6) choose(event.target.closest(".spot"));
});

drawing.addEventListener("keydown", (event) => {
  const step = view.width / 10;
  const act = {
    ArrowLeft: () => move(-step, 0), ArrowRight: () => move(step, 0),
    ArrowUp: () => move(0, -step), ArrowDown: () => move(0, step),
    "+": () => zoom(1.6, middle()), "=": () => zoom(1.6, middle()), "-": () => zoom(0.625, middle()), 0: showAll,
    Escape: () => choose(null),
  }[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});

atlas.querySelector(".zoom").addEventListener("click", (event) => {
  const factor = Number(event.target.dataset.zoom);
  if (factor) zoom(factor, middle());
  else if (event.target.dataset.zoom) showAll();
});

atlas.querySelector("input").addEventListener("input", (event) => {
  const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const spot of spots) {
    const text = `${spot.dataset.label ?? ""} ${spot.dataset.id}`.toLowerCase();
    spot.classList.toggle("faded", !words.every((word) => text.includes(word)));
  }
  const found = spots.filter((spot) => !spot.classList.contains("faded")).length;
  atlas.querySelector("output").textContent = `${found} of ${spots.length}`;
});

draw();
