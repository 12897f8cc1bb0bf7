"use strict";
const UNITS = { K: 1e3, M: 1e6, B: 1e9 };

function key(cell) {
  const text = cell.textContent.trim();
  const number = /^(-?[\d.,]+(?:e[-+]?\d+)?)([KMB]?)x?(?:\s|$)/.exec(text);
  return number ? Number(number[1].replaceAll(",", "")) * (UNITS[number[2]] ?? 1) : text;
}

function compare(a, b) {
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true });
}

for (const table of document.querySelectorAll("table.sorts")) {
  const heads = [...table.tHead.rows[0].cells];
  for (const [column, head] of heads.entries()) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows].map((row) => [key(row.cells[column]), row]);
      rows.sort((a, b) => (down ? -1 : 1) * compare(a[0], b[0]));
      table.tBodies[0].append(...rows.map((row) => row[1]));
    });
  }
}
