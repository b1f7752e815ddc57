// What makes the page answer: sorting, light and dark, the classes and the flip explorer.
"use strict";

const element = (name, props = {}, ...children) => {
  const made = Object.assign(document.createElement(name), props);
  made.append(...children);
  return made;
};
const count = (n) => n.toLocaleString("en");
const plural = (n, one) => `${count(n)} ${one}${n === 1 ? "" : "s"}`;
const signed = (x, digits) => {
  const rounded = Number(x.toFixed(digits));
  return (rounded > 0 ? "+" : rounded < 0 ? "−" : "") + Math.abs(rounded).toFixed(digits);
};
const read = (root) => JSON.parse(document.getElementById(root.dataset.from).textContent);

// Tables: a click on a heading sorts; a second one turns the order. What has no number stays last.
const valueOf = (cell) => cell.dataset.v !== undefined ? Number(cell.dataset.v) : cell.textContent.trim();
const missing = (value) => value === "–" || value === "" || (typeof value === "string" && value.startsWith("INCOMPLETE"));
function sortBy(table, column, direction) {
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => [valueOf(row.cells[column]), row]);
  rows.sort(([a], [b]) => {
    if (missing(a) || missing(b)) return missing(a) - missing(b);
    const order = typeof a === "number" && typeof b === "number" ? a - b
      : String(a).localeCompare(String(b), "en", { numeric: true });
    return direction * order;
  });
  body.append(...rows.map(([, row]) => row));
}
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector(".sort")?.addEventListener("click", () => {
    const descending = head.getAttribute("aria-sort") === "ascending";
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    sortBy(table, column, descending ? -1 : 1);
  }));
}

// Light and dark: as the system has it, until the button says otherwise.
const theme = document.getElementById("theme");
const dark = () => (document.documentElement.dataset.theme
  ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
const tellTheme = () => theme.setAttribute("aria-pressed", String(dark()));
theme.addEventListener("click", () => {
  document.documentElement.dataset.theme = dark() ? "light" : "dark";
  tellTheme();
});
tellTheme();

// On paper nothing can be unfolded.
const folded = [];
addEventListener("beforeprint", () => {
  for (const fold of document.querySelectorAll(".fold:not([open])")) {
    fold.open = true;
    folded.push(fold);
  }
});
addEventListener("afterprint", () => { for (const fold of folded.splice(0)) fold.open = false; });

const fill = (select, options) => {
  const before = select.value;
  select.replaceChildren(...options.map(([value, text]) => element("option", { value, textContent: text })));
  if (options.some(([value]) => String(value) === before)) select.value = before;
};

for (const root of document.querySelectorAll(".classes")) {
  const data = read(root);
  const form = root.querySelector("form");
  const table = root.querySelector("table");
  fill(form.elements.line, data.lines.map((label, k) => [k, label]));
  fill(form.elements.dataset, data.datasets.map((label, k) => [k, label]));
  const show = () => {
    const key = `${form.elements.line.value}/${form.elements.dataset.value}`;
    const found = data.tables[key];
    const rows = found ? found.rows : [];
    const most = Math.max(1, ...rows.map(([, , before, after]) => Math.abs(after - before)));
    root.querySelector(".status").textContent = !found
      ? "No numbers: a cell that they need is missing, or there is no other fine-tuning set."
      : rows.length < found.of ? `The worst and the best ${rows.length} of ${count(found.of)} classes.`
        : `${count(found.of)} classes.`;
    table.tBodies[0].replaceChildren(...rows.map(([name, n, before, after, half]) => {
      const change = after - before;
      const number = (text, value) => {
        const cell = element("td", { className: "num", textContent: text });
        cell.dataset.v = value;
        return cell;
      };
      const cell = number(signed(change, 1), change);
      if (half !== null) cell.append(" ", element("span", { className: "ci", textContent: `± ${half.toFixed(1)}` }));
      const mark = element("b", { className: change < 0 ? "loss" : "gain" });
      mark.style.width = `${50 * Math.abs(change) / most}%`;
      const bar = element("td", { className: "bar" }, element("i", {}, mark));
      bar.setAttribute("aria-hidden", "true");
      const head = element("th", { textContent: name });
      head.scope = "row";
      return element("tr", {}, head, number(count(n), n), number(before.toFixed(1), before),
        number(after.toFixed(1), after), cell, bar);
    }));
    const heads = [...table.tHead.rows[0].cells];
    const sorted = heads.findIndex((head) => head.hasAttribute("aria-sort"));
    if (sorted >= 0) sortBy(table, sorted, heads[sorted].getAttribute("aria-sort") === "descending" ? -1 : 1);
  };
  form.addEventListener("change", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  show();
}

// The explorer: a card an image, with all its flips that match.
const CARDS = 24, LISTED = 4;
for (const root of document.querySelectorAll(".explorer")) {
  const data = read(root);
  const form = root.querySelector("form");
  const fields = form.elements;
  const cards = root.querySelector(".cards");
  const [previous, next] = [root.querySelector(".previous"), root.querySelector(".next")];
  const all = (labels, text) => [["", text], ...labels.map((label, k) => [k, label])];
  let found = [], page = 0;

  const className = (d, k) => data.names[d][k] ?? `class ${k}`;
  const distinct = (of, text) => {
    const d = fields.dataset.value;
    const names = new Set();
    for (const image of data.images) if (d === "" || image[0] === Number(d)) names.add(of(image));
    names.delete("");
    return [["", names.size ? text : "none"], ...[...names].sort((a, b) => a.localeCompare(b, "en", { numeric: true })).map((x) => [x, x])];
  };
  const classOf = (image) => className(image[0], image[2]);
  const groupOf = (image) => data.groups[image[0]][image[3]] ?? "";
  const choices = () => {
    fill(fields.class, distinct(classOf, "all classes"));
    fill(fields.group, distinct(groupOf, "all groups"));
  };

  const totals = () => {
    const keep = (value, k) => value === "" || Number(value) === k;
    let n = 0, lost = 0, gained = 0;
    for (const [line, source, dataset, images, out, back] of data.cells) {
      if (keep(fields.line.value, line) && keep(fields.source.value, source) && keep(fields.dataset.value, dataset)) {
        n += images; lost += out; gained += back;
      }
    }
    return [n, lost, gained];
  };

  const select = () => {
    const { direction, line, source, dataset } = Object.fromEntries(
      ["direction", "line", "source", "dataset"].map((name) => [name, fields[name].value]));
    const matches = new Map();
    let flips = 0, blank = 0;
    for (const flip of data.flips) {
      const [k, s, i, before] = flip, image = data.images[i];
      const lost = before === image[2];
      if ((direction === "lost" && !lost) || (direction === "gained" && lost)) continue;
      if (line !== "" && k !== Number(line)) continue;
      if (source !== "" && s !== Number(source)) continue;
      if (dataset !== "" && image[0] !== Number(dataset)) continue;
      if (fields.class.value !== "" && classOf(image) !== fields.class.value) continue;
      if (fields.group.value !== "" && groupOf(image) !== fields.group.value) continue;
      flips += 1;
      if (!image[4]) blank += 1;
      if (!matches.has(i)) matches.set(i, []);
      matches.get(i).push(flip);
    }
    found = [...matches].sort(([a], [b]) => a - b);
    page = 0;
    const [n, lost, gained] = totals();
    const whole = fields.class.value === "" && fields.group.value === "";
    root.querySelector(".status").textContent =
      `${plural(flips, "flip")} of ${plural(found.length, "image")} shown`
      + (blank ? `, ${count(blank)} without a picture` : "") + ". "
      + (whole ? `In all, of ${plural(n, "comparison")}: ${count(lost)} lost, ${count(gained)} gained.`
        : `All classes and groups of this choice: ${count(lost)} lost, ${count(gained)} gained of ${plural(n, "comparison")}.`);
    root.dataset.flips = flips;
    draw();
  };

  const line = ([k, s, i, before, after]) => {
    const [d, , label] = data.images[i];
    const lost = before === label;
    const said = className(d, lost ? after : before);
    const [word, when] = lost ? ["lost", "now"] : ["gained", "was"];
    const made = element("li", { className: word }, element("b", { textContent: word }),
      ` ${when} ${said} · ${data.lines[k]} on ${data.short[s]}`);
    const near = data.near[`${data.encoders[k]}/${s}/${i}`];
    if (near) made.append(element("div", { className: "near" }, ...near.map(neighbour)));
    return made;
  };
  const neighbour = ([place, cosine, same]) => {
    const [s, row, name, src] = data.nearest[place];
    const title = `${name}, ${data.sources[s]} no. ${row}, cosine ${cosine.toFixed(2)}`
      + (same ? ", the same photograph" : "");
    const className = same ? "same" : "";
    return src ? element("img", { src, title, alt: title, className, width: 36, height: 36 })
      : element("span", { textContent: name, title, className });
  };
  const card = ([i, flips]) => {
    const image = data.images[i];
    const name = classOf(image), group = groupOf(image), from = data.datasets[image[0]];
    const picture = image[4]
      ? element("img", { src: image[4], alt: `${name}, ${from}`, width: 72, height: 72 })
      : element("span", { className: "blank", textContent: "no picture" });
    const text = element("div", { className: "text" },
      element("div", { className: "class", textContent: name }),
      element("div", { className: "from", textContent: `${from}${group ? ` · ${group}` : ""} · no. ${image[1]}` }),
      element("ul", {}, ...flips.slice(0, LISTED).map(line)));
    if (flips.length > LISTED) {
      text.append(element("details", {},
        element("summary", { textContent: `${flips.length - LISTED} more` }),
        element("ul", {}, ...flips.slice(LISTED).map(line))));
    }
    return element("li", {}, picture, text);
  };
  const draw = () => {
    const pages = Math.max(1, Math.ceil(found.length / CARDS));
    cards.replaceChildren(...found.slice(page * CARDS, (page + 1) * CARDS).map(card));
    root.querySelector(".where").textContent = `page ${count(page + 1)} of ${count(pages)}`;
    previous.disabled = page === 0;
    next.disabled = page >= pages - 1;
  };

  fill(fields.line, all(data.lines, "all methods"));
  fill(fields.source, all(data.sources, "all sets"));
  fill(fields.dataset, all(data.datasets, "all datasets"));
  choices();
  form.addEventListener("change", (event) => { if (event.target === fields.dataset) choices(); select(); });
  form.addEventListener("reset", () => setTimeout(() => { choices(); select(); }));
  form.addEventListener("submit", (event) => event.preventDefault());
  previous.addEventListener("click", () => { page -= 1; draw(); });
  next.addEventListener("click", () => { page += 1; draw(); });
  select();
}
