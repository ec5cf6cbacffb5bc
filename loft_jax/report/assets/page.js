"use strict";

// Boxes show and hide runs by their number, within a section of the page.
for (const box of document.querySelectorAll(".runs input")) {
  const section = box.closest("section");
  box.addEventListener("change", () => {
    for (const artist of section.querySelectorAll(".run-" + box.dataset.run)) {
      artist.classList.toggle("hidden", !box.checked);
    }
  });
}
const isHidden = (section, run) => {
  const box = run === null ? null : section.querySelector(`.runs input[data-run="${run}"]`);
  return box !== null && !box.checked;
};

// Every figure has values: points as [x, y, text, run], and images as {box, rows, columns, levels, largest, text}.
const tip = document.getElementById("tip");
const NEAR = 14;
for (const figure of document.querySelectorAll("figure")) {
  const svg = figure.querySelector("svg");
  const section = figure.closest("section");
  const values = JSON.parse(figure.querySelector("script").textContent);
  for (const image of values.cells) {
    image.bytes = Uint8Array.from(atob(image.levels), (character) => character.charCodeAt(0));
  }
  const textAt = (x, y) => {
    for (const image of values.cells) {
      const [left, top, right, bottom] = image.box;
      if (x < left || x >= right || y < top || y >= bottom) continue;
      const column = Math.floor(((x - left) / (right - left)) * image.columns.length);
      const row = Math.floor(((bottom - y) / (bottom - top)) * image.rows.length);
      const level = image.bytes[row * image.columns.length + column];
      return image.text
        .replace("{column}", () => image.columns[column])
        .replace("{row}", () => image.rows[row])
        .replace("{value}", () => ((level / 255) * image.largest).toFixed(2))
        .replace("{kept}", () => (level ? "kept" : "removed"));
    }
    let [found, least] = ["", NEAR * NEAR];
    for (const [px, py, text, run] of values.points) {
      const distance = (px - x) ** 2 + (py - y) ** 2;
      if (distance < least && !isHidden(section, run)) [found, least] = [text, distance];
    }
    return found;
  };
  const show = (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const text = textAt(at.x, at.y);
    tip.hidden = text === "";
    tip.textContent = text;
    tip.style.left = Math.max(0, Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)) + "px";
    tip.style.top = Math.max(0, Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8)) + "px";
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", () => { tip.hidden = true; });
}

// Press a heading to sort its table: numbers as numbers, empty cells last.
const number = (text) => (/^[+-]?[\d,]*\.?\d+/.test(text) ? parseFloat(text.replaceAll(",", "")) : NaN);
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const heading = button.parentElement;
    const ascending = heading.getAttribute("aria-sort") !== "ascending";
    for (const other of heading.parentElement.children) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const body = heading.closest("table").tBodies[0];
    const text = (row) => row.cells[heading.cellIndex].textContent;
    const compare = (one, other) => {
      const [a, b] = [text(one), text(other)];
      if (a === "-" || b === "-") return (a === "-") - (b === "-");
      const difference = number(a) - number(b);
      return (ascending ? 1 : -1) * (Number.isNaN(difference) ? a.localeCompare(b) : difference);
    };
    body.append(...[...body.rows].sort(compare));
  });
}
