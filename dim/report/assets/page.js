"use strict";

// Tables: headings sort, the field filters, rows unfold. Each row is a <tbody>, so that its detail moves with it.

function valueOf(body, column) {
  const cell = body.rows[0].cells[column];
  if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
  const text = cell.textContent;
  return text === "–" ? null : text;
}

function compared(one, other, direction) {
  if (one === null || other === null) return (one === null) - (other === null); // rows without a value stay last
  const order = typeof one === "number" ? one - other : one.localeCompare(other, undefined, { numeric: true });
  return direction * order;
}

function sortBy(table, head) {
  const direction = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  for (const other of table.tHead.rows[0].cells) {
    if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
  }
  head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
  const keyed = [...table.tBodies].map((body) => [valueOf(body, head.cellIndex), body]);
  keyed.sort(([one], [other]) => compared(one, other, direction));
  table.append(...keyed.map(([, body]) => body));
}

function filterBy(table, words, count) {
  const bodies = [...table.tBodies];
  for (const body of bodies) {
    const text = body.rows[0].textContent.toLowerCase();
    body.hidden = !words.every((word) => text.includes(word));
  }
  count.textContent = `${bodies.filter((body) => !body.hidden).length} of ${bodies.length}`;
}

function unfold(button) {
  const open = button.getAttribute("aria-expanded") === "true";
  button.setAttribute("aria-expanded", String(!open));
  button.closest("tbody").rows[1].hidden = open;
}

for (const box of document.querySelectorAll(".table")) {
  const table = box.querySelector("table");
  const field = box.querySelector("input");
  field.addEventListener("input", () => {
    filterBy(table, field.value.toLowerCase().split(/\s+/).filter(Boolean), box.querySelector("output"));
  });
  table.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.className === "unfold") unfold(button);
    else sortBy(table, button.closest("th"));
  });
}
