// The frame of the console: who is signed in, and which page is shown. The page and its filters are in the URL's fragment.

import { onSessionEnded, session, signIn, signOut } from './api.js';
import { button, field, h, link, problem, say, valuesOf } from './dom.js';

// Name in the URL, name for a person, file, and whether only administrators may see it.
const PAGES = [
  ['overview', 'Overview', 'overview.js'],
  ['record', 'One record', 'record.js'],
  ['records', 'Records', 'records.js'],
  ['totals', 'Totals', 'totals.js'],
  ['rollups', 'Rollups', 'rollups.js'],
  ['alerts', 'Alerts', 'alerts.js'],
  ['dead-letters', 'Dead letters', 'dead-letters.js'],
  ['conflicts', 'Conflicts', 'conflicts.js'],
  ['sinks', 'Sinks', 'sinks.js'],
  ['workers', 'Workers', 'workers.js'],
  ['policies', 'Policies', 'policies.js'],
  ['keys', 'Keys', 'keys.js'],
  ['audit', 'Audit', 'audit.js'],
];

const main = document.getElementById('main');
const nav = document.getElementById('nav');

const app = { session: null };
// Ends what the page that is shown does by itself.
let stop = () => {};
// Rises with each page, so that one that loads late does not replace a later one.
let turn = 0;

function parametersOf(search) {
  const parameters = {};
  for (const [name, value] of new URLSearchParams(search)) {
    parameters[name] = name in parameters ? [parameters[name], value].flat() : value;
  }
  return parameters;
}

async function show() {
  const [name, search = ''] = window.location.hash.replace(/^#\/?/, '').split('?', 2);
  // The link that skips to the content.
  if (name === 'main') return;
  stop();
  stop = () => {};
  turn += 1;
  const mine = turn;
  if (!app.session) {
    showSignIn();
    return;
  }
  const [known, title, file] = PAGES.find(([of]) => of === name) ?? PAGES[0];
  for (const one of nav.querySelectorAll('a')) {
    if (one.getAttribute('href') === `#/${known}`) one.setAttribute('aria-current', 'page');
    else one.removeAttribute('aria-current');
  }
  const place = h('div', { class: 'page', 'data-page': known, 'aria-busy': 'true' });
  const heading = h('h1', { tabindex: '-1' }, title);
  place.append(heading);
  document.title = `${title} – ${app.session.pipeline} – Millrace`;
  say('');
  main.replaceChildren(place);
  // A person who came by a link of the page continues at its begin.
  if (mine > 1) heading.focus({ preventScroll: true });
  try {
    const page = (await import(`./${file}`)).default;
    const ends = await page.show(place, parametersOf(search), app);
    if (mine !== turn) ends?.();
    else if (ends) stop = ends;
  } catch (error) {
    if (mine === turn) place.append(problem(error, error.code ? show : undefined));
    if (!error.code) throw error;
  } finally {
    place.removeAttribute('aria-busy');
  }
}

function showSignIn(message) {
  nav.hidden = true;
  document.getElementById('session').replaceChildren();
  document.title = 'Sign in – Millrace';
  const place = h('div');
  const onsubmit = async (event) => {
    event.preventDefault();
    const form = event.target;
    const submit = form.querySelector('button');
    submit.disabled = true;
    place.replaceChildren(h('p', {}, 'Signing in…'));
    try {
      const current = await signIn(valuesOf(form).key ?? '');
      form.reset();
      begin(current);
    } catch (error) {
      place.replaceChildren(problem(error));
      submit.disabled = false;
      form.querySelector('input').focus();
    }
  };
  const form = h('form', { class: 'sign-in', onsubmit },
    field({ name: 'key', label: 'API key', kind: 'password', required: true, hint: 'With the scope read, or admin to change something. This browser does not keep it.' }),
    h('div', { class: 'buttons' }, h('button', { type: 'submit' }, 'Sign in')));
  main.replaceChildren(h('h1', {}, 'Sign in'), message ? h('p', { role: 'alert' }, message) : '', form, place);
  form.querySelector('input').focus();
}

function begin(current) {
  app.session = current;
  document.getElementById('pipeline').textContent = current.pipeline;
  nav.replaceChildren(h('ul', {}, PAGES.map(([name, title]) => h('li', {}, link(title, name)))));
  nav.hidden = false;
  const who = current.open ? 'Development: no sign-in' : `${current.name} (${current.scopes.join(', ')}${current.limited ? ', limited' : ''})`;
  document.getElementById('session').replaceChildren(who, current.open ? '' : button('Sign out', end));
  show();
}

async function end() {
  try {
    await signOut();
  } catch (error) {
    say(error.message);
    return;
  }
  app.session = null;
  show();
}

onSessionEnded(() => {
  if (!app.session) return;
  app.session = null;
  stop();
  stop = () => {};
  turn += 1;
  showSignIn('The session has ended. Sign in again.');
});

window.addEventListener('hashchange', show);

try {
  const current = await session();
  if (current) begin(current);
  else showSignIn();
} catch (error) {
  main.replaceChildren(h('h1', {}, 'Console'), problem(error, () => window.location.reload()));
}
