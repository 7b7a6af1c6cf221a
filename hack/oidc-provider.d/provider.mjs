// An OpenID provider on https://localhost:PORT for tests, and a port that tells it what to do:
//   POST /token {"resource": R}            → an access token of the provider, for client shop-7
//   POST /sign {"alg": A, "header": H, "claims": C, "previous": B} → a token signed with a key of the provider
//   POST /rotate                           → other keys; the previous ones are no longer published
//   POST /away, /back                      → the provider's port is closed, and open again
//   GET /reads                             → how often the keys were read
import fs from "node:fs";
import http from "node:http";
import https from "node:https";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [folder, port, controlPort, certificate, key] = process.argv.slice(2);
const require = createRequire(`${folder}/`);
const load = (name) => import(pathToFileURL(require.resolve(name)));
const { Provider } = await load("oidc-provider");
const jose = await load("jose");

const issuer = `https://localhost:${port}`;
const secret = "shop-7-secret-of-the-tests-0123456789";
const algorithms = ["RS256", "PS384", "ES256", "ES384", "EdDSA"];
let generation = 0;
let keys = [];
let previous = [];
let answer;
let reads = 0;

// Makes keys, and the provider that signs with them.
async function renew() {
  generation += 1;
  previous = keys;
  keys = await Promise.all(
    algorithms.map(async (alg) => {
      const options = { extractable: true, ...(alg === "EdDSA" ? { crv: "Ed25519" } : {}) };
      const { privateKey } = await jose.generateKeyPair(alg, options);
      return { ...(await jose.exportJWK(privateKey)), alg, use: "sig", kid: `${alg}-${generation}` };
    }),
  );
  const provider = new Provider(issuer, {
    jwks: { keys },
    cookies: { keys: ["cookies-of-the-tests"] },
    clients: [
      {
        client_id: "shop-7",
        client_secret: secret,
        grant_types: ["client_credentials"],
        redirect_uris: [],
        response_types: [],
      },
    ],
    features: {
      devInteractions: { enabled: false },
      clientCredentials: { enabled: true },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (_, resource) => ({
          scope: "records:write records:read",
          audience: resource,
          accessTokenTTL: 3600,
          accessTokenFormat: "jwt",
          jwt: { sign: { alg: "RS256" } },
        }),
      },
    },
    extraTokenClaims: () => ({ sources: ["exact=shop-7"] }),
  });
  answer = provider.callback();
}

await renew();
const server = https.createServer(
  { cert: fs.readFileSync(certificate), key: fs.readFileSync(key) },
  (request, response) => {
    if (request.url === "/jwks") reads += 1;
    answer(request, response);
  },
);
const listen = () => new Promise((done) => server.listen(Number(port), "127.0.0.1", done));
await listen();

const acts = {
  async "/token"({ resource }) {
    const answered = await fetch(`${issuer}/token`, {
      method: "POST",
      headers: { authorization: `Basic ${btoa(`shop-7:${secret}`)}` },
      body: new URLSearchParams({ grant_type: "client_credentials", scope: "records:write records:read", resource }),
    });
    const body = await answered.json();
    if (!answered.ok) throw new Error(JSON.stringify(body));
    return body.access_token;
  },
  async "/sign"({ alg, header, claims, previous: isPrevious }) {
    const jwk = (isPrevious ? previous : keys).find((one) => one.alg === alg);
    const protectedHeader = { alg, kid: jwk.kid, typ: "at+jwt", ...header };
    return new jose.SignJWT(claims).setProtectedHeader(protectedHeader).sign(await jose.importJWK(jwk, alg));
  },
  async "/rotate"() {
    await renew();
    return "rotated";
  },
  async "/away"() {
    const closed = new Promise((done) => server.close(done));
    server.closeAllConnections();
    await closed;
    return "away";
  },
  async "/back"() {
    await listen();
    return "back";
  },
  async "/reads"() {
    return String(reads);
  },
};

http
  .createServer(async (request, response) => {
    let text = "";
    for await (const part of request) text += part;
    try {
      const done = await acts[request.url](text === "" ? {} : JSON.parse(text));
      response.end(done);
    } catch (error) {
      response.writeHead(500).end(String(error?.stack ?? error));
    }
  })
  .listen(Number(controlPort), "127.0.0.1");
