// The page of fcnlab watch: asks for changes, and shows them. All text from files is set as text, never as HTML.

import { draw, element } from "/charts.js";

const EVERY = 2000, HIDDEN_EVERY = 15000; // milliseconds between two questions
const SERIES = 8;
const ROWS = 1000; // rows that are drawn at most
const byId = (id) => document.getElementById(id);

const rows = new Map(); // runs by number
const lines = new Map(); // their table rows
const curves = new Map(); // by number: { version, points }
const slots = new Map(); // shown runs: their series, from 0
let state = { session: "", version: 0, statuses: [], sweeps: [], folders: [] };
let picked = null; // the runs that the user has ticked; null: chosen by the page
let selected = null, detailsOf = "";
let sorting = { column: null, sign: 1 };

// Text

const percent = (value) => (value === null ? "" : (100 * value).toFixed(2));
const memory = (mib) => (mib === null ? "" : mib < 1000 ? `${mib.toFixed(0)} MiB` : `${(mib / 1024).toFixed(1)} GiB`);
const counted = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
const significant = (value) => (value === null ? "" : Number(value.toPrecision(3)).toString());
const nameOf = (row) => row.name || row.folder;

/** Return a time as duration_text of sweep_table.py does, so that the page and the terminal agree. */
function duration(seconds) {
  if (seconds === null) return "";
  if (seconds < 60) return `${seconds.toFixed(0)} s`;
  return seconds < 6000 ? `${(seconds / 60).toFixed(1)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

function localTime(text) {
  const time = new Date(text);
  return Number.isNaN(time.getTime()) ? text : time.toLocaleString();
}

function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// The table. Each column has a title, a text or the nodes of a cell, and a value to sort by.

const COLUMNS = [
  { title: "Run", value: (row) => nameOf(row) },
  { title: "State", value: (row) => state.statuses.indexOf(row.status), kind: "state" },
  { title: "Step", value: (row) => row.step, show: progress },
  { title: "Best val mIoU, %", value: (row) => row.best, number: true, falls: true,
    show: (row) => [percent(row.best), ...spread(row.best_step === null ? "" : ` at ${row.best_step}`)] },
  { title: "Scored mIoU, %", value: (row) => row.scored, number: true, falls: true,
    show: (row) => [percent(row.scored), ...spread(row.interval ? ` ${row.interval.map(percent).join(" to ")}` : "")] },
  { title: "Train loss", value: (row) => row.loss, number: true, show: (row) => [significant(row.loss)] },
  { title: "Steps/s", value: (row) => row.rate, number: true, falls: true, show: (row) => [significant(row.rate)] },
  { title: "Time left", value: (row) => row.left, number: true, show: (row) => [duration(row.left)] },
  { title: "Memory", value: (row) => row.memory, number: true, falls: true, show: (row) => [memory(row.memory)] },
];

const spread = (text) => (text ? [make("span", { className: "spread", textContent: text })] : []);

function progress(row) {
  if (row.step === null) return [];
  if (!row.total || row.status === "finished") return [String(row.step)];
  const bar = make("progress", { max: row.total, value: Math.min(row.step, row.total) });
  bar.setAttribute("aria-hidden", "true");
  return [bar, `${row.step} of ${row.total}`];
}

function makeHead() {
  const head = byId("table").tHead.rows[0];
  const pick = make("th", { className: "pick", scope: "col", textContent: "Curve" });
  head.append(pick, ...COLUMNS.map((column) => {
    const cell = make("th", { scope: "col", className: [column.number ? "number" : "", column.kind ?? ""].join(" ") });
    const button = make("button", { type: "button", textContent: column.title });
    cell.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const first = column.falls ? -1 : 1;
      sorting = sorting.column === column ? { column, sign: -sorting.sign } : { column, sign: first };
      for (const other of head.cells) if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
      cell.setAttribute("aria-sort", sorting.sign > 0 ? "ascending" : "descending");
      showTable();
    });
    cell.append(button);
    return cell;
  }));
}

function makeLine(number) {
  const box = make("input", { type: "checkbox" });
  box.addEventListener("change", () => pick(number, box.checked));
  const pickCell = make("td", { className: "pick" }, make("label", {}, box));
  const button = make("button", { type: "button", className: "plain" });
  button.addEventListener("click", () => {
    history.replaceState(null, "", addressOf(rows.get(number)));
    select(number);
    askDetails().then(() => byId("run").scrollIntoView({ block: "start" }));
  });
  const name = make("th", { scope: "row" }, button, make("small"));
  const cells = COLUMNS.slice(1).map((column) => make("td", { className: column.number ? "number" : "" }));
  return make("tr", {}, pickCell, name, ...cells);
}

function fillLine(line, row) {
  const [button, folder] = line.cells[1].children;
  line.cells[0].firstChild.firstChild.setAttribute("aria-label", `curves of ${nameOf(row)}`);
  button.textContent = nameOf(row);
  folder.textContent = row.name ? row.folder : "";
  const status = make("span", { className: `status ${row.status}`, textContent: row.status, title: row.reason });
  line.cells[2].replaceChildren(status);
  COLUMNS.slice(2).forEach((column, place) => line.cells[place + 3].replaceChildren(...column.show(row)));
  const no_interval = row.no_interval && `; no interval: ${row.no_interval}`;
  line.cells[5].title = row.images ? `on ${row.set}, ${counted(row.images, "image")}; 95 % interval over images` : row.set + no_interval;
  line.cells[9].title = row.status === "running" ? "of the main process, now" : "peak of the training";
}

/** Return the runs that the filter leaves, in the order of the table. */
function filtered() {
  const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const sweep = byId("sweep").value;
  const left = [...rows.values()].filter((row) => {
    const text = `${row.name} ${row.folder} ${row.status}`.toLowerCase();
    return (sweep === "" || String(row.sweep) === sweep) && words.every((word) => text.includes(word));
  });
  const { column, sign } = sorting;
  const text = new Intl.Collator(undefined, { numeric: true }).compare;
  const natural = (a, b) => a.sweep - b.sweep || (a.job ?? a.number) - (b.job ?? b.number) || a.number - b.number;
  if (!column) return left.sort(natural);
  return left.sort((a, b) => {
    const [first, second] = [column.value(a), column.value(b)];
    if (first === null || second === null) return (first === null) - (second === null) || natural(a, b);
    return sign * (typeof first === "string" ? text(first, second) : first - second) || natural(a, b);
  });
}

function showTable() {
  const left = filtered(), body = byId("table").tBodies[0];
  const drawn = left.slice(0, ROWS).map((row) => {
    if (!lines.has(row.number)) {
      lines.set(row.number, makeLine(row.number));
      fillLine(lines.get(row.number), row);
    }
    return lines.get(row.number);
  });
  // Rows are moved only where the order changed, so that the focus and the position stay.
  drawn.forEach((line, place) => { if (body.rows[place] !== line) body.insertBefore(line, body.rows[place] ?? null); });
  while (body.rows.length > drawn.length) body.lastChild.remove();
  byId("shown").textContent = left.length < rows.size ? `${left.length} of ${counted(rows.size, "run")}` : counted(rows.size, "run");
  const hidden = left.length - drawn.length;
  byId("more").textContent = hidden ? `${counted(hidden, "more run")}: narrow the list with words, or sort it.` : "";
}

// Curves

function pick(number, isPicked) {
  const now = new Set(slots.keys());
  if (isPicked) now.add(number); else now.delete(number);
  picked = [...now].slice(-SERIES);
  chooseCurves();
  ask();
}

/** Give each shown run a series, which it keeps as long as it is shown. */
function chooseCurves() {
  const worth = (row) => (row.status === "running" ? 2 : 0) + (row.best ?? -1);
  const usable = [...rows.values()].filter((row) => row.step !== null || row.best !== null);
  const automatic = () => usable.sort((a, b) => worth(b) - worth(a) || a.number - b.number).slice(0, SERIES).map((row) => row.number);
  const chosen = new Set((picked ?? automatic()).filter((number) => rows.has(number)));
  for (const number of [...slots.keys()]) if (!chosen.has(number)) { slots.delete(number); curves.delete(number); }
  const free = Array.from({ length: SERIES }, (_, slot) => slot).filter((slot) => ![...slots.values()].includes(slot));
  for (const number of chosen) if (!slots.has(number)) slots.set(number, free.shift());
  byId("automatic").hidden = picked === null;
  for (const [number, line] of lines) showPick(line, slots.get(number));
}

function showPick(line, slot) {
  const label = line.cells[0].firstChild, box = label.firstChild;
  box.checked = slot !== undefined;
  if (label.dataset.slot === String(slot)) return;
  label.dataset.slot = String(slot);
  label.replaceChildren(box, ...(slot === undefined ? [] : [swatch(slot)]));
}

function swatch(slot) {
  const made = element("svg", { class: `swatch s${slot}`, viewBox: "0 0 16 8", width: 24, height: 12, "aria-hidden": "true" });
  made.append(element("polyline", { class: "line", points: "0,4 16,4" }), element("circle", { cx: 8, cy: 4, r: 2 }));
  return made;
}

const CHARTS = [["chart-miou", "val/miou", 100], ["chart-train", "train/loss", 1], ["chart-val", "val/loss", 1]];

function showCurves() {
  const shown = [...slots].sort((a, b) => a[1] - b[1]).map(([number, slot]) => ({ slot, row: rows.get(number), own: curves.get(number) }));
  byId("legend").replaceChildren(...shown.map(({ slot, row }) => make("li", {}, swatch(slot), nameOf(row))));
  for (const [id, name, factor] of CHARTS) {
    const series = shown.map(({ slot, row, own }) => ({
      slot, name: nameOf(row), points: (own?.points[name] ?? []).map(([step, value]) => [step, factor * value]),
    }));
    draw(byId(id), series, `${name} over steps of ${counted(shown.length, "run")}`);
  }
}

// The best runs and the state

function showBest() {
  const sentences = state.best_runs.flat().map((text) => text.replaceAll(" %", "\u00a0%"));
  byId("answers").replaceChildren(...sentences.map((textContent) => make("li", { textContent })));
}

function showState(counts) {
  const parts = state.statuses.filter((status) => counts[status]).map((status) => `${counts[status]} ${status}`);
  if (state.unread) parts.push(`${state.unread} still to be read`);
  const problems = state.sweeps.map((sweep) => sweep.problem).filter(Boolean).slice(0, 5);
  byId("state").replaceChildren(parts.join(", ") || "No run was found here yet.", ...problems.flatMap((text) => [make("br"), text]));
  byId("title").textContent = state.folders.join(", ");
  document.title = `${counts.running ? `${counts.running} running: ` : ""}fcnlab watch`;
}

function showSweeps() {
  const choice = byId("sweep");
  const options = state.sweeps.map((sweep) => [String(sweep.number), sweep.name || "no sweep"]);
  const wanted = [["", "all sweeps"], ...options];
  if (choice.dataset.known === JSON.stringify(wanted)) return;
  const before = choice.value;
  choice.replaceChildren(...wanted.map(([value, textContent]) => make("option", { value, textContent })));
  choice.value = wanted.some(([value]) => value === before) ? before : "";
  choice.dataset.known = JSON.stringify(wanted);
}

function showNotes() {
  const notes = byId("notes"), [summary, list] = notes.children, count = state.notes.length + state.more_notes;
  notes.hidden = !count;
  summary.textContent = counted(count, "folder") + (count === 1 ? " is" : " are") + " not searched";
  list.replaceChildren(...state.notes.map((textContent) => make("li", { textContent })));
}

// The selected run

function select(number) {
  lines.get(selected)?.classList.remove("selected");
  selected = number;
  lines.get(number)?.classList.add("selected");
  detailsOf = "";
}

const addressOf = (row) => `#run:${encodeURIComponent(row.folder)}`;

/** Select the run in the address, such as #run:sweeps/skips/3, so that a page that is loaded again still shows it. */
function selectFromAddress() {
  const row = location.hash && [...rows.values()].find((each) => addressOf(each) === location.hash);
  if (row && row.number !== selected) select(row.number);
}

async function askDetails() {
  const row = rows.get(selected);
  if (!row) return;
  const key = JSON.stringify(row);
  if (key === detailsOf && row.status !== "running") return;
  const answer = await fetch(`/runs/${selected}`);
  if (!answer.ok || rows.get(selected) !== row) return;
  showDetails(row, await answer.json());
  detailsOf = key;
}

function showDetails(row, details) {
  byId("hint").hidden = true;
  byId("details").hidden = false;
  byId("run-title").textContent = nameOf(row);
  const facts = {
    Folder: row.folder,
    State: [row.status, row.reason].filter(Boolean).join(": "),
    Settings: details.settings.join(" "),
    Started: [localTime(details.started), details.starts > 1 ? `start ${details.starts}` : ""].filter(Boolean).join(", "),
    Duration: row.minutes === null ? "" : duration(60 * row.minutes),
    Machine: details.host,
    Speed: [row.rate ? `${significant(row.rate)} steps/s` : "",
      details.images_per_second ? `${significant(details.images_per_second)} images/s in the evaluation` : ""].filter(Boolean).join(", "),
    Memory: row.memory === null ? "" : `${memory(row.memory)} ${row.status === "running" ? "of the main process, now" : "at its peak"}`,
    Commit: details.commit,
    "W&B run": details.wandb,
  };
  byId("facts").replaceChildren(...Object.entries(facts).filter(([, text]) => text)
    .flatMap(([title, textContent]) => [make("dt", { textContent: title }), make("dd", { textContent })]));
  showImages(details.images);
  const log = byId("log"), text = details.log.join("\n") || "There is no log yet.";
  if (log.textContent !== text) {
    const atEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 4;
    log.textContent = text;
    if (atEnd) log.scrollTop = log.scrollHeight;
  }
}

function showImages(images) {
  const box = byId("images"), known = images.map((image) => image.number).join(",");
  byId("no-images").hidden = images.length > 0;
  if (box.dataset.known === known) return;
  box.dataset.known = known;
  box.replaceChildren(...images.map(({ number, name }) => make("figure", {},
    make("img", { src: `/images/${number}`, alt: `${name}: image, ground truth and prediction`, loading: "lazy" }),
    make("figcaption", { textContent: name }))));
}

// Questions to the server

let timer = 0, isAsking = false, isAskedAgain = false;

async function ask() {
  if (isAsking) { isAskedAgain = true; return; }
  isAsking = true;
  clearTimeout(timer);
  let isUnread = false;
  try {
    const shown = [...slots.keys()].map((number) => `${number}:${curves.get(number)?.version ?? -1}`).join(",");
    const answer = await fetch(`/changes?session=${state.session}&since=${state.version}&curves=${shown.replaceAll(":-1", ":")}`);
    if (!answer.ok) throw new Error(await answer.text());
    take(await answer.json());
    await askDetails();
    isUnread = state.unread > 0 || state.is_reading;
  } catch (error) {
    byId("state").replaceChildren(make("span", { className: "lost", textContent: "fcnlab watch does not answer: this is the last state. " }), String(error.message));
  }
  isAsking = false;
  const wait = isAskedAgain || isUnread ? 50 : document.hidden ? HIDDEN_EVERY : EVERY;
  isAskedAgain = false;
  timer = setTimeout(ask, wait);
}

function take(answer) {
  if (answer.session !== state.session) {
    for (const each of [rows, lines, curves, slots]) each.clear();
    picked = selected = null;
  }
  state = answer;
  for (const number of answer.removed) {
    rows.delete(number);
    lines.get(number)?.remove();
    lines.delete(number);
  }
  for (const row of answer.rows) {
    rows.set(row.number, row);
    if (lines.has(row.number)) fillLine(lines.get(row.number), row);
  }
  for (const each of answer.curves) if (slots.has(each.number)) curves.set(each.number, each);
  const counts = {};
  for (const row of rows.values()) counts[row.status] = (counts[row.status] ?? 0) + 1;
  const before = [...slots.keys()].join();
  if (answer.rows.length || answer.removed.length || !slots.size) {
    showTable();
    chooseCurves();
    showBest();
    selectFromAddress();
  }
  showSweeps();
  showNotes();
  showState(counts);
  const after = [...slots.keys()].join();
  if (answer.curves.length || before !== after) showCurves();
  if (after !== before) isAskedAgain = true; // for the curves of the new ones
}

makeHead();
byId("filter").addEventListener("input", showTable);
byId("sweep").addEventListener("change", showTable);
byId("automatic").addEventListener("click", () => { picked = null; chooseCurves(); ask(); });
document.addEventListener("visibilitychange", () => { if (!document.hidden) ask(); });
ask();
