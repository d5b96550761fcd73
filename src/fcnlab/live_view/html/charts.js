// Line charts as SVG, in the size and with the classes of the comparison page's figures.

const WIDTH = 237.6, LEFT = 34, RIGHT = 8, TOP = 8, PLOT = 130, HEIGHT = TOP + PLOT + 28;
const MOST_TICKS = 20; // a bound: an axis has 3 to 7
const NAMESPACE = "http://www.w3.org/2000/svg";

export function element(tag, attributes = {}, text = null) {
  const made = document.createElementNS(NAMESPACE, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== null) made.textContent = text;
  return made;
}

/** Draw series ({slot, name, points: [[step, value], ...]}) into an svg element. */
export function draw(svg, series, description) {
  const shown = series.filter((each) => each.points.length);
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("aria-label", description);
  svg.replaceChildren();
  svg.onpointermove = svg.onpointerleave = null;
  if (!shown.length) {
    svg.append(element("text", { x: WIDTH / 2, y: HEIGHT / 2, "text-anchor": "middle" }, "no values yet"));
    return;
  }
  const all = shown.flatMap((each) => each.points);
  const x = axis(all.map(([step]) => step), LEFT, WIDTH - RIGHT, true);
  const y = axis(all.map(([, value]) => value), TOP + PLOT, TOP, false);
  for (const tick of y.ticks) {
    svg.append(line([[LEFT, y.at(tick)], [WIDTH - RIGHT, y.at(tick)]], "grid"));
    svg.append(element("text", { x: LEFT - 4, y: y.at(tick) + 2.5, "text-anchor": "end" }, short(tick)));
  }
  for (const tick of x.ticks) {
    svg.append(line([[x.at(tick), TOP + PLOT], [x.at(tick), TOP + PLOT + 3]], "axis"));
    svg.append(element("text", { x: x.at(tick), y: TOP + PLOT + 11, "text-anchor": "middle" }, short(tick)));
  }
  svg.append(line([[LEFT, TOP], [LEFT, TOP + PLOT], [WIDTH - RIGHT, TOP + PLOT]], "axis"));
  svg.append(element("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, "step"));
  for (const { slot, name, points } of shown) {
    const curve = line(points.map(([step, value]) => [x.at(step), y.at(value)]), `line s${slot}`);
    curve.append(element("title", {}, name));
    svg.append(curve);
    const [step, value] = points.at(-1);
    svg.append(element("circle", { class: `marker s${slot}`, cx: x.at(step), cy: y.at(value), r: 2 }));
  }
  addCursor(svg, shown, x, y);
}

/** Show the values at the pointer. */
function addCursor(svg, series, x, y) {
  const group = element("g", { visibility: "hidden", "pointer-events": "none" });
  svg.append(group);
  svg.onpointerleave = () => group.setAttribute("visibility", "hidden");
  svg.onpointermove = (event) => {
    const box = svg.getBoundingClientRect();
    const step = x.value((event.clientX - box.left) * WIDTH / box.width);
    const found = series.map(({ slot, points }) => ({ slot, point: nearest(points, step) }))
      .sort((a, b) => b.point[1] - a.point[1]);
    const at = found.reduce((a, b) => (Math.abs(b.point[0] - step) < Math.abs(a.point[0] - step) ? b : a)).point[0];
    const left = x.at(at) > (LEFT + WIDTH) / 2;
    const place = { x: x.at(at) + (left ? -5 : 5), "text-anchor": left ? "end" : "start" };
    group.replaceChildren(line([[x.at(at), TOP], [x.at(at), TOP + PLOT]], "cursor"),
      element("text", { ...place, y: TOP + 7 }, `step ${at}`));
    found.forEach(({ slot, point }, row) => {
      group.append(element("circle", { class: `marker s${slot}`, cx: x.at(point[0]), cy: y.at(point[1]), r: 2.4 }));
      const mark = place.x + (left ? -2 : 2);
      group.append(element("circle", { class: `marker s${slot}`, cx: mark, cy: TOP + 14 + 9 * row, r: 2 }));
      group.append(element("text", { ...place, x: mark + (left ? -5 : 5), y: TOP + 16.5 + 9 * row }, short(point[1], 4)));
    });
    group.setAttribute("visibility", "visible");
  };
}

function nearest(points, step) {
  let low = 0, high = points.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle][0] <= step) low = middle; else high = middle;
  }
  return step - points[low][0] <= points[high][0] - step ? points[low] : points[high];
}

function axis(values, start, end, isStep) {
  let low = Infinity, high = -Infinity;
  for (const value of values) { low = Math.min(low, value); high = Math.max(high, value); }
  if (isStep) low = Math.min(low, 0);
  // Values that differ in their last bits only are equal: no axis could have ticks between them.
  const size = Math.max(Math.abs(low), Math.abs(high)), isFlat = high - low <= Math.max(1e-9 * size, 1e-300);
  const room = isStep ? 0 : isFlat ? 0.1 * size || 1 : 0.06 * (high - low);
  if (isFlat && isStep) high = low + Math.max(1, 1e-3 * size);
  low -= room; high += room;
  const least = (high - low) / 5, power = 10 ** Math.floor(Math.log10(least));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= least * 0.999);
  const first = Math.ceil(low / step - 1e-9), count = Math.floor(high / step + 1e-9) - first + 1;
  const ticks = Array.from({ length: Math.min(MOST_TICKS, count) }, (_, place) => (first + place) * step);
  return {
    ticks,
    at: (value) => start + (end - start) * (value - low) / (high - low),
    value: (place) => low + (high - low) * (place - start) / (end - start),
  };
}

function short(value, digits = 3) {
  const size = Math.abs(value);
  if (size >= 1e4) return `${Number((value / 1000).toPrecision(digits))}k`;
  if (size && size < 1e-3) return value.toExponential(0);
  return String(Number(value.toPrecision(Math.max(digits, Math.ceil(Math.log10(size + 1))))));
}

const line = (points, name) => element("polyline",
  { class: name, points: points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ") });
