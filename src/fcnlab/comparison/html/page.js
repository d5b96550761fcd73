"use strict";

// Sorting: a click on a column's button sorts; aria-sort of the header keeps the state.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    button?.addEventListener("click", () => {
      const numbers = button.dataset.kind === "number";
      const first = numbers ? "descending" : "ascending";
      const other = numbers ? "ascending" : "descending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      heads.forEach((each) => each.hasAttribute("aria-sort") && each.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", order);
      sortRows(table.tBodies[0], column, numbers, order === "ascending" ? 1 : -1);
    });
  });
}

function sortRows(body, column, numbers, sign) {
  const text = new Intl.Collator(undefined, { numeric: true }).compare;
  const keyed = [...body.rows].map((row) => {
    const cell = row.cells[column];
    const number = cell.dataset.value ? Number(cell.dataset.value) : NaN;
    return [numbers ? number : cell.textContent.trim(), row];
  });
  keyed.sort(([a], [b]) => {
    if (!numbers) return sign * text(a, b);
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b); // unknown values last
    return sign * (a - b);
  });
  body.append(...keyed.map(([, row]) => row));
}

// Filtering: show the rows, and in the table of classes the columns, whose group names contain all words.
const filter = document.getElementById("filter");
filter.addEventListener("input", () => {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  const isShown = (element) => words.every((word) => element.dataset.text.toLowerCase().includes(word));
  for (const row of document.querySelectorAll("table.filtered tbody tr")) row.hidden = !isShown(row);
  for (const table of document.querySelectorAll("table.columns-filtered")) {
    for (const head of table.tHead.rows[0].querySelectorAll("[data-text]")) {
      for (const row of table.rows) row.cells[head.cellIndex].hidden = !isShown(head);
    }
  }
  const rows = [...document.querySelector("#scores tbody").rows];
  const shown = rows.filter((row) => !row.hidden).length;
  document.getElementById("shown").textContent = words.length ? `${shown} of ${rows.length} groups` : "";
});
