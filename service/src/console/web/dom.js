// Small helpers that build elements. Text is always set as text, never parsed as HTML.

// An element: properties that begin with `on` are listeners, `true` is an attribute without a value.
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== undefined && child !== null && child !== false));
  return element;
}

let lastId = 0;

// An id that no other element has.
export function freshId() {
  lastId += 1;
  return `e${lastId}`;
}

// Tells a person, also with a screen reader, what happened.
export function say(text) {
  document.getElementById('status').textContent = text;
}

export function hashOf(page, parameters = {}) {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    for (const one of [value].flat()) if (one !== undefined && one !== '') search.append(name, one);
  }
  const query = search.toString();
  return `#/${page}${query && `?${query}`}`;
}

export const link = (text, page, parameters) => h('a', { href: hashOf(page, parameters) }, text);

// A time of the API, in UTC as it is sent.
export const time = (text) => text && h('time', { datetime: text }, text.replace('T', ' '));

// A whole number with its thousands apart.
export const count = (number) => (number === undefined ? '–' : Number(number).toLocaleString('en'));

// JSON as text for a person.
export const json = (value) => h('pre', {}, typeof value === 'string' ? value : JSON.stringify(value, null, 2));

export function button(text, onclick, properties = {}) {
  return h('button', { type: 'button', onclick, ...properties }, text);
}

// Puts the outcome of an act in place of its buttons, and the focus on it.
export function done(place, ...outcome) {
  place.replaceChildren(...outcome);
  place.setAttribute('tabindex', '-1');
  place.focus();
}

// A problem with its code, its message and what to do.
export function problem(error, again) {
  return h('div', { class: 'problem', role: 'alert' },
    h('p', {}, h('strong', {}, error.code ?? 'failed'), error.pointer && ` at ${error.pointer}`),
    h('p', {}, error.message),
    h('p', {}, error.retryable ? 'The same may succeed later.' : 'The same fails again until something changes.'),
    again && button('Try again', again));
}

export const empty = (...text) => h('div', { class: 'empty' }, h('p', {}, ...text));

// A table; `columns` are [heading, cell of an item] with an optional class. It scrolls by itself where it is too wide.
export function table(caption, columns, items) {
  const head = h('tr', {}, columns.map(([heading, , kind]) => h('th', { scope: 'col', class: kind }, heading)));
  const body = h('tbody');
  const add = (more) => {
    body.append(...more.map((item) => h('tr', {}, columns.map(([, cell, kind]) => h('td', { class: kind }, cell(item) ?? '')))));
  };
  add(items);
  const element = h('div', { class: 'scroll', role: 'region', 'aria-label': caption, tabindex: '0' },
    h('table', {}, h('caption', {}, caption), h('thead', {}, head), body));
  return { element, add };
}

// Names with their values.
export function facts(pairs) {
  const known = pairs.filter(([, value]) => value !== undefined && value !== null && value !== '');
  return h('dl', {}, known.map(([name, value]) => h('div', {}, h('dt', {}, name), h('dd', {}, value))));
}

// A field with its label. `kind` is text, or a list of choices, or checkbox.
export function field({ name, label, kind = 'text', hint, value, required }) {
  const id = freshId();
  const note = hint && h('span', { class: 'hint', id: `${id}-hint` }, hint);
  const common = { id, name, required, 'aria-describedby': hint && `${id}-hint` };
  if (kind === 'checkbox') {
    return h('div', { class: 'field check' }, h('input', { ...common, type: 'checkbox', value: 'true', checked: value === 'true' }),
      h('label', { for: id }, label), note);
  }
  const input = Array.isArray(kind)
    ? h('select', common, kind.map((choice) => {
      const [of, text] = [choice].flat();
      return h('option', { value: of, selected: of === (value ?? '') }, text ?? (of || 'any'));
    }))
    : h('input', { ...common, type: kind, value, autocomplete: 'off', spellcheck: 'false' });
  return h('div', { class: 'field' }, h('label', { for: id }, label), input, note);
}

// The values of a form that are not empty.
export function valuesOf(form) {
  const values = {};
  for (const [name, value] of new FormData(form)) if (value.trim() !== '') values[name] = value.trim();
  return values;
}

// A form whose values become the parameters of a page.
export function filters(page, fields, parameters, keep = {}) {
  const onsubmit = (event) => {
    event.preventDefault();
    const next = hashOf(page, { ...keep, ...valuesOf(event.target) });
    if (next === window.location.hash) window.dispatchEvent(new HashChangeEvent('hashchange'));
    else window.location.hash = next;
  };
  return h('form', { class: 'filters', onsubmit, role: 'search', 'aria-label': 'Filters' },
    fields.map((one) => field({ ...one, value: parameters[one.name] ?? one.value })),
    h('div', { class: 'buttons' }, h('button', { type: 'submit' }, 'Show')));
}

// Asks before something is changed; gives the answer, with the values of `fields`.
export function confirm(title, content, action, fields = []) {
  return new Promise((resolve) => {
    const id = freshId();
    const form = h('form', { method: 'dialog' },
      h('h2', { id }, title), content, fields.map(field),
      h('div', { class: 'buttons' },
        h('button', { type: 'submit', value: 'yes', class: 'danger' }, action),
        h('button', { type: 'submit', value: 'no', formnovalidate: true, autofocus: true }, 'Cancel')));
    const dialog = h('dialog', { 'aria-labelledby': id }, form);
    const before = document.activeElement;
    dialog.addEventListener('close', () => {
      const values = dialog.returnValue === 'yes' ? valuesOf(form) : null;
      dialog.remove();
      if (before?.isConnected) before.focus();
      resolve(values);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}
