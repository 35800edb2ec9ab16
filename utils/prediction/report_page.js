
(() => {
  const byId = (id) => document.getElementById(id);
  const table = byId("scans");
  const rows = Array.from(table.tBodies[0].rows);
  const heads = Array.from(table.tHead.rows[0].cells);
  const language = document.documentElement.lang;
  const collator = new Intl.Collator(language, { numeric: true });

  function make(name, properties = {}, ...content) {
    const element = Object.assign(document.createElement(name), properties);
    element.append(...content);
    return element;
  }

  // Sorting: a column's cells carry their value; those without one stay last in either direction.
  let sorted = { column: heads.findIndex((head) => head.classList.contains("doubt")), descending: true };

  function compare(first, second) {
    const [a, b] = [first, second].map((row) => row.cells[sorted.column].dataset.value);
    if (a === "" || b === "") return (a === "") - (b === "");
    const numbers = heads[sorted.column].dataset.sort === "number";
    const order = numbers ? Number(a) - Number(b) : collator.compare(a, b);
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
      const button = make("button", { type: "button" }, ...head.childNodes);
      button.addEventListener("click", () => {
        const isSorted = sorted.column === column;
        sortBy(column, isSorted ? !sorted.descending : head.dataset.first === "descending");
      });
      head.append(button);
    }
    byId("order").addEventListener("change", (event) => {
      const column = Number(event.target.value);
      sortBy(column, heads[column].dataset.first === "descending");
    });
    byId("direction").addEventListener("click", () => sortBy(sorted.column, !sorted.descending));
    sortBy(sorted.column, sorted.descending);
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

  // Corrections: what the reader has set, by row.
  const order = table.dataset.levels.split(" ");
  const corrections = new Map();
  let isSaved = true;

  const namesOf = (row) => row.dataset.names.split(" ").filter(Boolean);
  const setOf = (row) => corrections.get(row) ?? new Map();
  const faultOf = (row) => Levels.fault(order, namesOf(row).length, setOf(row));
  const command = (scans) =>
    `python infer.py ${scans} --output ${Levels.word(folder())} --relabel --report`;

  function folder() {
    if (location.protocol !== "file:") return "predictions";
    const path = decodeURIComponent(location.pathname).replace(/\/[^/]*$/, "");
    return /^\/[A-Za-z]:/.test(path) ? path.slice(1) : path;
  }

  function correct(row, set) {
    if (set.size) corrections.set(row, set);
    else corrections.delete(row);
    isSaved = false;
    showCorrection(row);
    showCorrections();
  }

  function showCorrection(row) {
    const set = setOf(row);
    const line = row.querySelector(".corrected");
    const labels = Levels.corrected(order, namesOf(row), set);
    const texts = labels.map((name, place) => (set.has(place) ? name : `(${name ?? "?"})`));
    line.hidden = set.size === 0;
    line.textContent = `Corrected: ${texts.join(" ")}`;
  }

  function showCorrections() {
    const right = rows.filter((row) => corrections.has(row) && !faultOf(row));
    const wrong = corrections.size - right.length;
    const count = `${right.length} scan${right.length === 1 ? "" : "s"} corrected`;
    byId("corrected-count").textContent = wrong ? `${count}, ${wrong} with levels that cannot be` : count;
    byId("corrections").hidden = corrections.size === 0;
    byId("save").disabled = right.length === 0;
    byId("apply").textContent = `${command("SCANS")} --from corrections.json`;
  }

  function save() {
    const right = rows.filter((row) => corrections.has(row) && !faultOf(row));
    const scans = right.map((row) => [row.dataset.key, row.dataset.mask, corrections.get(row)]);
    const address = URL.createObjectURL(new Blob([Levels.file(scans)], { type: "application/json" }));
    make("a", { href: address, download: "corrections.json" }).click();
    setTimeout(() => URL.revokeObjectURL(address), 60000);
    isSaved = true;
  }

  // Selects the text too, for browsers that keep a page from the clipboard.
  function copy(text, button) {
    getSelection().selectAllChildren(text);
    const done = () => {
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    };
    navigator.clipboard?.writeText(text.textContent).then(done, () => {});
  }

  function prepareCorrections() {
    for (const row of rows.filter((each) => namesOf(each).length)) {
      const button = make("button", { type: "button", className: "correct" }, "Correct the levels");
      button.addEventListener("click", () => show(row));
      row.querySelector(".labels").append(make("p", { className: "corrected", hidden: true }), button);
    }
    byId("level-up").addEventListener("click", () => shift(-1));
    byId("level-down").addEventListener("click", () => shift(1));
    byId("hold").addEventListener("click", () => shift(0));
    byId("level-reset").addEventListener("click", () => { correct(current, new Map()); showEditor(); });
    byId("save").addEventListener("click", save);
    byId("copy-line").addEventListener("click", () => copy(byId("line"), byId("copy-line")));
    byId("copy-apply").addEventListener("click", () => copy(byId("apply"), byId("copy-apply")));
    byId("editor").addEventListener("submit", (event) => event.preventDefault());
    addEventListener("beforeunload", (event) => {
      if (corrections.size && !isSaved) event.preventDefault();
    });
  }

  function shift(by) {
    correct(current, Levels.shifted(order, namesOf(current), setOf(current), by));
    showEditor();
  }

  function setLevel(place, name) {
    const set = new Map(setOf(current));
    if (name) set.set(place, name);
    else set.delete(place);
    correct(current, set);
    showEditor();
    byId("levels").querySelectorAll("select")[place].focus();
  }

  function showEditor() {
    const [names, set] = [namesOf(current), setOf(current)];
    const labels = Levels.corrected(order, names, set);
    byId("editor").hidden = names.length === 0;
    byId("levels").replaceChildren(...names.map((name, place) => levelRow(name, place, labels[place], set)));
    byId("level-up").disabled = Levels.shifted(order, names, set, -1) === null;
    byId("level-down").disabled = Levels.shifted(order, names, set, 1) === null;
    byId("level-reset").disabled = set.size === 0;
    byId("hold").disabled = labels.includes(null);
    byId("fault").textContent = faultOf(current);
    byId("result").hidden = set.size === 0 || faultOf(current) !== "";
    byId("line").textContent = `${command("SCAN")} ${Levels.options(set)}`;
    byId("anew").hidden = set.size === 0 || set.size === names.length;
  }

  function levelRow(name, place, label, set) {
    const free = set.size === 0 ? name : `(${label ?? "?"})`;
    const select = make("select", {}, new Option(free, ""), ...order.map((level) => new Option(level, level)));
    select.value = set.get(place) ?? "";
    select.setAttribute("aria-label", `Level of vertebra ${place + 1} from the top, predicted ${name}`);
    select.addEventListener("change", () => setLevel(place, select.value));
    const predicted = make("span", { className: "small" }, `${place + 1}. ${name}`);
    return make("li", { className: set.has(place) ? "set" : "" }, predicted, select);
  }

  // The enlarged picture: a dialog, so that Escape and the focus are the browser's.
  const viewer = byId("viewer");
  let current = null;

  const opener = (row) => row.querySelector("a.thumbnail, button.correct");
  const shownRows = () =>
    Array.from(table.tBodies[0].rows).filter((row) => !row.hidden && opener(row));

  function show(row) {
    current = row;
    const link = row.querySelector("a.thumbnail");
    byId("viewer-key").textContent = row.dataset.key;
    byId("viewer-image").hidden = byId("full").hidden = !link;
    byId("viewer-image").alt = `Snapshot of ${row.dataset.key}`;
    if (link) byId("viewer-image").src = byId("full").href = link.href;
    const around = shownRows();
    byId("previous").disabled = around[0] === row;
    byId("next").disabled = around[around.length - 1] === row;
    showEditor();
    if (!viewer.open) viewer.showModal();
  }

  function step(by) {
    const around = shownRows();
    const row = around[around.indexOf(current) + by];
    if (row) show(row);
  }

  function prepareViewer() {
    table.addEventListener("click", (event) => {
      const link = event.target.closest("a.thumbnail");
      if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      show(link.closest("tr"));
    });
    viewer.addEventListener("click", (event) => {
      if (event.target === viewer || event.target === byId("viewer-image")) viewer.close();
    });
    viewer.addEventListener("keydown", (event) => {
      if (event.target.closest("select")) return;
      if (event.key === "ArrowLeft") step(-1);
      if (event.key === "ArrowRight") step(1);
    });
    viewer.addEventListener("close", () => opener(current).focus());
    byId("close").addEventListener("click", () => viewer.close());
    byId("previous").addEventListener("click", () => step(-1));
    byId("next").addEventListener("click", () => step(1));
  }

  prepareSorting();
  prepareCorrections();
  prepareViewer();
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  // Some ways of choosing, as by a program, give only the second event.
  for (const event of ["input", "change"]) byId("controls").addEventListener(event, filter);
  byId("controls").hidden = false;
  filter();
})();
