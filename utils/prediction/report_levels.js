"use strict";
// The levels of a scan as a reader corrects them. Nothing here knows the document, so it is tested by itself.
// `order` holds all levels from the top down, `names` the labels of a scan; levels that the reader has set are
// a Map from the place of a vertebra (0 at the top) to its level.
const Levels = (() => {
  // Counting passes over T13, which is rare; below one follows L1.
  function below(order, name, by) {
    const counted = order.filter((level) => level !== "T13");
    const place = name === "T13" ? counted.indexOf("T12") + (by > 0 ? 0 : 1) : counted.indexOf(name);
    if (by === 0) return name;
    return counted[place + by] ?? null;
  }

  // How many levels each vertebra lies below the one above it: one, or more where the labels leave some out.
  function steps(order, names) {
    const counted = order.filter((level) => level !== "T13");
    return names.slice(1).map((name, place) => {
      const [upper, lower] = [names[place], name].map((level) => counted.indexOf(level));
      return upper < 0 || lower < 0 ? 1 : lower - upper;
    });
  }

  function follow(order, names, set, from) {
    const gaps = steps(order, names);
    const found = names.map(() => null);
    found[from] = set.get(from);
    for (let place = from + 1; place < names.length && found[place - 1]; place += 1) {
      found[place] = below(order, found[place - 1], gaps[place - 1]);
    }
    for (let place = from - 1; place >= 0 && found[place + 1]; place -= 1) {
      found[place] = below(order, found[place + 1], -gaps[place]);
    }
    return found;
  }

  // The labels with those that were set; the others follow the next one above that was, else the first below.
  function corrected(order, names, set) {
    if (set.size === 0) return names.slice();
    const places = [...set.keys()].sort((a, b) => a - b);
    return names.map((_, place) => {
      const above = places.filter((other) => other <= place);
      return follow(order, names, set, above.length ? above[above.length - 1] : places[0])[place];
    });
  }

  // All labels so many levels further down, as set; null where the levels end before the vertebrae do.
  function shifted(order, names, set, by) {
    const now = corrected(order, names, set);
    const first = order.includes(now[0]) ? below(order, now[0], by) : null;
    const all = first === null ? [null] : follow(order, now, new Map([[0, first]]), 0);
    return all.includes(null) ? null : new Map(all.entries());
  }

  // What no scan can have, or "": levels go down, and there is one for every vertebra between, above and below.
  function fault(order, count, set) {
    let [upper, rank] = [-1, -1];
    for (const [place, name] of [...set].sort(([a], [b]) => a - b)) {
      const own = order.indexOf(name);
      if (own - rank < place - upper) {
        const above = upper < 0 ? "" : ` below ${order[rank]} of vertebra ${upper + 1}`;
        return `Vertebra ${place + 1} cannot be ${name}${above}: too few levels lie above it.`;
      }
      [upper, rank] = [place, own];
    }
    if (upper >= 0 && order.length - 1 - rank < count - 1 - upper) {
      return `Vertebra ${upper + 1} cannot be ${order[rank]}: too few levels lie below it.`;
    }
    return "";
  }

  const fixes = (set) => [...set].sort(([a], [b]) => a - b).map(([place, name]) => `${place + 1}=${name}`);

  // Options of infer.py.
  function options(set) {
    return set.size === 1 && set.has(0) ? `--first-label ${set.get(0)}` : `--fix ${fixes(set).join(" ")}`;
  }

  // The text of corrections.json; `scans` are [case, hash of its mask, levels set].
  function file(scans) {
    const corrections = scans.map(([name, mask, set]) => ({ case: name, mask_sha256: mask, fix: fixes(set) }));
    return `${JSON.stringify({ corrections }, null, 1)}\n`;
  }

  // A word of a shell's command line.
  const word = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

  return { corrected, shifted, fault, options, file, word };
})();
