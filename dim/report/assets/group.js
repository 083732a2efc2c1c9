// Groups: a button below each photo marks it as not the same; the marks are saved as a CSV for --corrections.

const corrections = document.querySelector(".corrections");
const articles = [...document.querySelectorAll(".group")];
const earlier = JSON.parse(corrections?.querySelector("pre")?.textContent || "[]");

function idOf(item) {
  return item.querySelector(".id").textContent;
}

function marked(item) {
  return item.classList.contains("parted");
}

function pairs() {
  const found = new Map();
  for (const article of articles) {
    const items = [...article.querySelectorAll(".strip > li")];
    const rest = items.filter((item) => !marked(item));
    for (const item of items.filter(marked)) {
      for (const other of rest.length ? rest : items.filter((other) => other !== item)) {
        const ends = [idOf(item), idOf(other)].sort();
        found.set(JSON.stringify(ends), [...ends, "cannot-link"]);
      }
    }
  }
  return [...found.values()];
}

function cell(text) {
  return /[",\n\r;\t]|^\s|\s$/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function table() {
  const rows = [["image_id", "other_id", "kind"], ...earlier, ...pairs()];
  return rows.map((row) => row.map(cell).join(",") + "\n").join("");
}

function tell() {
  const ids = new Set(articles.flatMap((one) => [...one.querySelectorAll(".parted")].map(idOf)));
  const before = earlier.length ? `, and ${earlier.length} corrections from before` : "";
  corrections.querySelector("output").textContent = `${ids.size || "no"} photo${ids.size > 1 ? "s are" : " is"} marked${before}`;
  corrections.querySelector(".save").disabled = !ids.size;
}

function toggle(item, on) {
  item.classList.toggle("parted", on);
  item.querySelector(".part").setAttribute("aria-pressed", String(on));
}

for (const article of articles) {
  for (const item of article.querySelectorAll(".strip > li")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "part";
    button.textContent = "not the same";
    button.setAttribute("aria-pressed", "false");
    item.append(button);
    button.addEventListener("click", () => {
      const on = !marked(item);
      // A group may be shown twice, as a large and as a doubtful one.
      const name = article.querySelector("h4 bdi").textContent;
      for (const twin of articles.filter((one) => one.querySelector("h4 bdi").textContent === name)) {
        for (const same of twin.querySelectorAll(".strip > li")) if (idOf(same) === idOf(item)) toggle(same, on);
      }
      tell();
    });
  }
}

if (corrections) {
  tell();
  corrections.querySelector("input").addEventListener("input", (event) => {
    const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const article of articles) {
      const text = [article.querySelector("h4").textContent, ...[...article.querySelectorAll(".id")].map((id) => id.textContent)];
      article.hidden = !words.every((word) => text.join(" ").toLowerCase().includes(word));
    }
  });
  corrections.querySelector(".save").addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([table()], { type: "text/csv" }));
    link.download = "corrections.csv";
    link.click();
    URL.revokeObjectURL(link.href);
  });
}
