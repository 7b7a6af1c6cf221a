// The API, as this page uses it. Amounts stay the texts that the API sends: no amount becomes a number here.

// The folder above /console/, wherever a proxy serves it.
const base = new URL('../', import.meta.url);

// The token against forgery of the session; only in memory.
let forgeryToken = null;

// What to do when the session has ended.
let ended = () => {};

export function onSessionEnded(then) {
  ended = then;
}

// A problem document, or what came in its place.
export class Problem extends Error {
  constructor(status, body) {
    super(body.detail ?? 'The answer cannot be read.');
    this.status = status;
    this.code = body.code ?? 'unreadable_answer';
    this.pointer = body.pointer;
    this.retryable = body.retryable ?? false;
  }
}

// JSON in which numbers that JavaScript would round are strings.
const TOKEN = /"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;

export function parse(text) {
  const exact = (token) => (token[0] === '"' || String(Number(token)) === token ? token : `"${token}"`);
  return JSON.parse(text.replace(TOKEN, exact));
}

// The URL of a path with parameters; those that are empty are left out, those that are lists are repeated.
export function urlOf(path, parameters = {}) {
  const url = new URL(path.replace(/^\//, ''), base);
  for (const [name, value] of Object.entries(parameters)) {
    for (const one of [value].flat()) {
      if (one !== undefined && one !== null && one !== '') url.searchParams.append(name, one);
    }
  }
  return url;
}

async function ask(method, path, parameters, { body, accept = 'application/json', signal } = {}) {
  const headers = { Accept: accept };
  if (method !== 'GET' && forgeryToken) headers['X-Millrace-Forgery-Token'] = forgeryToken;
  if (body !== undefined) headers['Content-Type'] = 'application/json';
  let answer;
  try {
    answer = await fetch(urlOf(path, parameters), {
      method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body), cache: 'no-store',
    });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Problem(0, { code: 'unreachable', detail: 'The service cannot be reached. Try again.', retryable: true });
  }
  if (answer.ok) return answer;
  const text = await answer.text();
  let problem = {};
  try {
    problem = parse(text);
  } catch {
    // It is no problem document, such as one of a proxy.
  }
  if (answer.status === 401 && path !== '/console/session') ended();
  throw new Problem(answer.status, problem);
}

async function read(answer) {
  const text = await answer.text();
  return text ? parse(text) : null;
}

export const get = async (path, parameters) => read(await ask('GET', path, parameters));
export const post = async (path, parameters, body) => read(await ask('POST', path, parameters, { body }));
export const remove = async (path) => read(await ask('DELETE', path));

// The first `most` lines of a streamed answer, and whether there are more. `field` names what a line holds.
export async function lines(path, parameters, field, most) {
  const stop = new AbortController();
  const answer = await ask('GET', path, parameters, { accept: 'application/x-ndjson', signal: stop.signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  const found = [];
  let rest = '';
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Problem(0, { code: 'cut', detail: 'The answer ended early. Try again.', retryable: true });
    const parts = (rest + value).split('\n');
    rest = parts.pop();
    for (const line of parts.filter(Boolean)) {
      const item = parse(line);
      if (item.end) return { items: found, more: false };
      if (!item[field]) continue;
      if (found.length === most) {
        stop.abort();
        return { items: found, more: true };
      }
      found.push(item[field]);
    }
  }
}

// Who is signed in; null: nobody.
export async function session() {
  try {
    return signedIn(await get('/console/session'));
  } catch (error) {
    if (error.status === 401) return null;
    throw error;
  }
}

function signedIn(current) {
  forgeryToken = current.forgeryToken;
  return current;
}

export const signIn = async (key) => signedIn(await post('/console/session', {}, { key }));

export async function signOut() {
  await remove('/console/session');
  forgeryToken = null;
}

// Counts and lags, once a second. `stop` of the answer ends it.
export function events({ stats, problem }) {
  const source = new EventSource(urlOf('/console/events'));
  source.addEventListener('stats', (event) => stats(parse(event.data)));
  source.addEventListener('problem', (event) => problem(new Problem(503, parse(event.data))));
  source.addEventListener('error', async () => {
    if (source.readyState !== EventSource.CLOSED) return;
    // The browser does not show the answer of a stream that is refused.
    try {
      stats(await get('/stats'));
    } catch (error) {
      problem(error);
    }
  });
  return { stop: () => source.close() };
}
