// Plots as SVG. Only here numbers are rounded: they decide where a line is.

const SVG = 'http://www.w3.org/2000/svg';
const [WIDTH, HEIGHT, LEFT, BOTTOM, TOP] = [640, 200, 64, 20, 10];

function s(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const short = new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 1 });

function legend(names) {
  const list = document.createElement('ul');
  list.className = 'legend';
  list.append(...names.map((name, index) => {
    const item = document.createElement('li');
    const mark = s('svg', { viewBox: '0 0 10 10', 'aria-hidden': 'true', class: `series${index}` }, s('rect', { width: 10, height: 10 }));
    item.append(mark, ` ${name}`);
    return item;
  }));
  return list;
}

function frame(label, low, high, first, last) {
  const y = (value) => HEIGHT - BOTTOM - ((value - low) / (high - low || 1)) * (HEIGHT - BOTTOM - TOP);
  const svg = s('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: 'img', 'aria-label': label, class: 'plot' });
  for (const value of [low, (low + high) / 2, high]) {
    svg.append(s('line', { x1: LEFT, x2: WIDTH, y1: y(value), y2: y(value), class: 'grid' }),
      s('text', { x: LEFT - 6, y: y(value) + 4, 'text-anchor': 'end' }, short.format(value)));
  }
  svg.append(s('text', { x: LEFT, y: HEIGHT - 4 }, first), s('text', { x: WIDTH, y: HEIGHT - 4, 'text-anchor': 'end' }, last));
  return { svg, y };
}

function figure(title, svg, names) {
  const element = document.createElement('figure');
  const caption = document.createElement('figcaption');
  caption.textContent = title;
  element.append(caption, svg);
  if (names.length > 1) element.append(legend(names));
  return element;
}

// Lines over time: `series` are {name, points: [[x, y]]}, at most six; `label` says in words what they show.
export function lines(title, label, series, nameOf) {
  const points = series.flatMap((one) => one.points);
  const xs = points.map(([x]) => x);
  const ys = points.map(([, y]) => y);
  const [left, right] = xs.reduce(([low, high], x) => [Math.min(low, x), Math.max(high, x)], [Infinity, -Infinity]);
  const [low, high] = ys.reduce(([least, most], y) => [Math.min(least, y), Math.max(most, y)], [0, 1]);
  const names = points.length ? [nameOf(left), nameOf(right)] : ['', ''];
  const { svg, y } = frame(label, low, high, ...names);
  const x = (value) => LEFT + ((value - left) / (right - left || 1)) * (WIDTH - LEFT);
  series.forEach((one, index) => {
    const path = one.points.map(([at, value]) => `${x(at).toFixed(1)},${y(value).toFixed(1)}`).join(' ');
    svg.append(s('polyline', { points: path, class: `series${index}` }));
    if (one.points.length === 1) svg.append(s('circle', { cx: x(one.points[0][0]), cy: y(one.points[0][1]), r: 3, class: `series${index}` }));
  });
  return figure(title, svg, series.map((one) => one.name));
}

// A bar for each of `values`, which are [name, number].
export function bars(title, label, values) {
  const high = Math.max(1, ...values.map(([, value]) => value));
  const few = values.length <= 8;
  const [first, last] = few ? ['', ''] : [values[0][0], values.at(-1)[0]];
  const { svg, y } = frame(label, 0, high, first, last);
  const step = (WIDTH - LEFT) / Math.max(values.length, 1);
  values.forEach(([name, value], index) => {
    const bar = s('rect', {
      x: LEFT + index * step + step * 0.1, width: Math.min(step * 0.8, 60), y: y(value), height: Math.max(HEIGHT - BOTTOM - y(value), 0), class: 'series0',
    }, s('title', {}, `${name}: ${value}`));
    svg.append(bar);
    if (few) svg.append(s('text', { x: LEFT + index * step + step * 0.1, y: HEIGHT - 4 }, name));
  });
  return figure(title, svg, []);
}
