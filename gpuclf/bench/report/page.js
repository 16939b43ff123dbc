"use strict";
const find = (selector) => document.querySelector(selector);

const table = find("#table");
if (table) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const [words, ofCase, ofImplementation] = find("#controls").querySelectorAll("input, select");

  const filter = () => {
    const wanted = words.value.toLowerCase().split(/\s+/);
    let shown = 0;
    for (const row of body.rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !(
        wanted.every((word) => text.includes(word)) &&
        [row.cells[0].textContent, ""].includes(ofCase.value) &&
        [row.cells[1].textContent, ""].includes(ofImplementation.value)
      );
      shown += !row.hidden;
    }
    find("#shown").textContent = `${shown} of ${body.rows.length} rows shown`;
  };

  const sort = (column) => {
    const head = heads[column];
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const isNumber = head.classList.contains("number");
    const value = (row) => {
      const cell = row.cells[column];
      return isNumber ? Number(cell.dataset.value ?? NaN) : cell.textContent;
    };
    const compare = (a, b) => {
      if (!isNumber) return sign * a.localeCompare(b, "en", { numeric: true });
      return isNaN(a) - isNaN(b) || sign * (a - b) || 0; // what has no number comes last
    };
    body.append(...[...body.rows].sort((a, b) => compare(value(a), value(b))));
  };

  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(column));
    head.append(button);
  });
  find("#controls").addEventListener("input", filter);
  find("#controls").addEventListener("submit", (event) => event.preventDefault());
  find("#controls").hidden = false;
  filter();
}

const record = new Blob([find("#record").textContent], { type: "application/json" });
find("#download").href = URL.createObjectURL(record);
find("#download").hidden = false;

const copy = find("#copy");
if (copy && navigator.clipboard) {
  copy.hidden = false;
  copy.addEventListener("click", () =>
    navigator.clipboard.writeText(find("#command").textContent).then(
      () => (copy.textContent = "Copied"),
      () => getSelection().selectAllChildren(find("#command")),
    ),
  );
}
