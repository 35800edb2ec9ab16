"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const table = byId("scans");
  const rows = Array.from(table.tBodies[0].rows);
  const heads = Array.from(table.tHead.rows[0].cells);
  const language = document.documentElement.lang;
  const names = new Intl.Collator(language, { numeric: true });

  // Sorting: a column's cells carry their value; those without one stay last in either direction.
  let sorted = { column: heads.findIndex((head) => head.dataset.sort === "text"), descending: false };

  function compare(first, second) {
    const [a, b] = [first, second].map((row) => row.cells[sorted.column].dataset.value);
    if (a === "" || b === "") return (a === "") - (b === "");
    const numbers = heads[sorted.column].dataset.sort === "number";
    const order = numbers ? Number(a) - Number(b) : names.compare(a, b);
    return sorted.descending ? -order : order;
  }

  function sortBy(column, descending) {
    sorted = { column, descending };
    table.tBodies[0].append(...rows.slice().sort(compare));
    for (const [index, head] of heads.entries()) {
      if (head.dataset.sort) {
        head.setAttribute("aria-sort", index !== column ? "none" : descending ? "descending" : "ascending");
      }
    }
    byId("order").value = String(column);
    byId("direction").textContent = descending ? "↓" : "↑";
  }

  function prepareSorting() {
    for (const [column, head] of heads.entries()) {
      if (!head.dataset.sort) continue;
      byId("order").append(new Option(head.textContent, String(column)));
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sortBy(column, sorted.column === column && !sorted.descending));
      head.append(button);
    }
    byId("order").addEventListener("change", (event) => sortBy(Number(event.target.value), false));
    byId("direction").addEventListener("click", () => sortBy(sorted.column, !sorted.descending));
    sortBy(sorted.column, false);
  }

  // Filters: every word of the search, and the kind of warning.
  function filter() {
    const words = byId("text").value.toLocaleLowerCase(language).split(/\s+/).filter(Boolean);
    const kind = byId("kind").value;
    let shown = 0;
    for (const row of rows) {
      const kinds = row.dataset.kinds.split("|").filter(Boolean);
      const fits = words.every((word) => row.dataset.text.includes(word));
      row.hidden = !(fits && (!kind || kinds.includes(kind)) && (!byId("warned").checked || kinds.length));
      shown += !row.hidden;
    }
    byId("shown").textContent = `${shown} of ${rows.length} shown`;
    byId("nothing").hidden = shown > 0;
  }

  // The enlarged picture: a dialog, so that Escape and the focus are the browser's.
  const viewer = byId("viewer");
  let current = null;

  const links = () =>
    Array.from(table.querySelectorAll("a.thumbnail")).filter((link) => !link.closest("tr").hidden);

  function show(link) {
    current = link;
    byId("viewer-key").textContent = link.dataset.key;
    byId("viewer-image").alt = link.firstElementChild.alt;
    byId("viewer-image").src = link.href;
    const around = links();
    byId("previous").disabled = around[0] === link;
    byId("next").disabled = around[around.length - 1] === link;
    if (!viewer.open) viewer.showModal();
  }

  function step(by) {
    const around = links();
    const link = around[around.indexOf(current) + by];
    if (link) show(link);
  }

  function prepareViewer() {
    table.addEventListener("click", (event) => {
      const link = event.target.closest("a.thumbnail");
      if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      show(link);
    });
    viewer.addEventListener("click", (event) => {
      if (event.target === viewer || event.target === byId("viewer-image")) viewer.close();
    });
    viewer.addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft") step(-1);
      if (event.key === "ArrowRight") step(1);
    });
    viewer.addEventListener("close", () => current.focus());
    byId("close").addEventListener("click", () => viewer.close());
    byId("previous").addEventListener("click", () => step(-1));
    byId("next").addEventListener("click", () => step(1));
  }

  prepareSorting();
  prepareViewer();
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  // Some ways of choosing, as by a program, give only the second event.
  for (const event of ["input", "change"]) byId("controls").addEventListener(event, filter);
  byId("controls").hidden = false;
  filter();
})();
