//! No output of a process shows a secret: planted passwords and keys, used and refused, are searched in all of them.

use std::{collections::BTreeMap, fmt::Write as _, fs, process::Output};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use redis::Commands as _;
use sqlx::{Connection as _, Executor as _, PgConnection, Row as _};

use crate::{
    harness::{Authority, Issued, KEY, Process, answer, eventually, obtain},
    tls::{HOST, World, install, mount, problem},
};

/// A value that occurs nowhere else, with characters that URLs, JSON and base64 write in another way.
fn planted(what: &str) -> String {
    format!("planted-{what}-{:016x}/+ ?\"@", rand::random::<u64>())
}

fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut all, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => all.push(char::from(byte)),
            byte => write!(all, "%{byte:02X}").unwrap(),
        }
        all
    })
}

/// The forms in which a secret is searched. What a neighbour decides of its base64 is left out.
fn forms(secret: &str) -> Vec<String> {
    let escaped = serde_json::to_string(secret).unwrap();
    let mut found = vec![secret.to_owned(), percent_encoded(secret), escaped[1..escaped.len() - 1].to_owned()];
    // The run of plain characters, however the rest is escaped.
    found.extend(secret.split(['/', '+', ' ']).next().filter(|plain| plain.len() > 11).map(str::to_owned));
    for text in found.clone() {
        for offset in 0..3 {
            let encoded = BASE64_STANDARD.encode([&vec![0; offset], text.as_bytes()].concat());
            found.push(encoded[(offset * 8).div_ceil(6)..(offset + text.len()) * 8 / 6].to_owned());
        }
    }
    found
}

/// The outputs that show a secret, with the secret's name.
fn leaks(secrets: &BTreeMap<String, String>, outputs: &BTreeMap<String, String>) -> Vec<String> {
    let wanted: Vec<_> = secrets.iter().map(|(name, secret)| (name, forms(secret))).collect();
    let shows = |text: &str, forms: &[String]| forms.iter().any(|form| text.contains(form));
    outputs
        .iter()
        .flat_map(|(output, text)| {
            wanted
                .iter()
                .filter(move |(_, forms)| shows(text, forms))
                .map(move |(name, _)| format!("{name} in {output}"))
        })
        .collect()
}

#[test]
fn the_search_finds_a_secret_in_each_form() {
    let secret = planted("a");
    let secrets = BTreeMap::from([("a".to_owned(), secret.clone())]);
    let url = format!("redis://me:{}@host", percent_encoded(&secret));
    let mut shown =
        vec![secret.clone(), url.clone(), format!("{secret:?}"), serde_json::json!({"a": secret}).to_string()];
    shown.extend(["", "x", "xy"].map(|before| BASE64_STANDARD.encode(format!("{before}{secret}z"))));
    shown.extend(["", "x", "xy"].map(|before| BASE64_STANDARD.encode(format!("{before}{url}"))));
    for text in shown {
        let outputs = BTreeMap::from([("b".to_owned(), format!("before {text} after"))]);
        assert_eq!(leaks(&secrets, &outputs), ["a in b"], "{text}");
    }
    assert_eq!(leaks(&secrets, &BTreeMap::from([("b".to_owned(), "planted-a-".to_owned())])), <[String; 0]>::default());
}

/// A pipeline whose URLs have passwords, and everything that its processes show.
struct Shown {
    world: World,
    /// By name.
    secrets: BTreeMap<String, String>,
    /// By where they are.
    outputs: BTreeMap<String, String>,
}

impl Shown {
    async fn new() -> Self {
        let mut this = Self { world: World::new().await, secrets: BTreeMap::new(), outputs: BTreeMap::new() };
        this.secrets.insert("the bootstrap key".to_owned(), KEY.to_owned());
        let (redis, postgres) = (this.plant("redis"), this.plant("postgres"));
        let mut connection = redis::Client::open(this.world.redis.server.url()).unwrap().get_connection().unwrap();
        let rule = format!(">{redis}");
        let () = redis::cmd("ACL")
            .arg(&["SETUSER", "planted", "on", &rule, "~*", "&*", "+@all"])
            .query(&mut connection)
            .unwrap();
        assert!(connection.exists::<_, bool>("nothing").is_ok());
        let url = this.world.postgres.url();
        let mut connection = PgConnection::connect(&url).await.unwrap();
        let create = format!("create role planted superuser login password '{postgres}'");
        connection.execute(sqlx::AssertSqlSafe(create)).await.unwrap();
        this.world.postgres.ask_for_password("planted").await;
        this.mount_redis(&redis);
        this.mount_postgres(&postgres);
        for server in ["redis", "postgres"] {
            let key = fs::read_to_string(this.world.dir.path().join(format!("{server}-client.key"))).unwrap();
            this.plant_key(&format!("the client key of {server}"), &key);
        }
        this
    }

    /// A secret that is searched from now on.
    fn plant(&mut self, what: &str) -> String {
        let secret = planted(what);
        self.secrets.insert(format!("{what}, {}", self.secrets.len()), secret.clone());
        secret
    }

    /// The longest line of a private key.
    fn plant_key(&mut self, what: &str, pem: &str) {
        let line = pem.lines().max_by_key(|line| line.len()).unwrap();
        self.secrets.insert(format!("{what}, {}", self.secrets.len()), line.to_owned());
    }

    fn mount_redis(&self, password: &str) {
        let url = format!("rediss://planted:{}@{HOST}:{}", percent_encoded(password), self.world.redis.port);
        mount(self.world.dir.path(), "redis", &url);
    }

    fn mount_postgres(&self, password: &str) {
        let database = self.world.pipeline.database();
        let (password, port) = (percent_encoded(password), self.world.postgres.port());
        let url = format!("postgres://planted:{password}@{HOST}:{port}/{database}?sslmode=verify-full");
        mount(self.world.dir.path(), "postgres", &url);
    }

    /// Runs a command in a pod, and keeps what it prints.
    async fn runs(&mut self, when: &str, words: &[&str]) -> Output {
        let ended = self.world.pipeline.command_in_pod(words[0], self.world.dir.path(), &words[1..]).await;
        let text = [&ended.stdout[..], b"\n", &ended.stderr].concat();
        self.outputs.insert(format!("{words:?} {when}"), String::from_utf8(text).unwrap());
        ended
    }

    /// Keeps all that the processes and the servers show now.
    async fn look(&mut self, when: &str, processes: &[&Process]) {
        for process in processes {
            for path in ["/status", "/metrics", "/health", "/ready"] {
                self.outputs.insert(format!("{path} of {} {when}", process.id()), process.text(path).await);
            }
            self.outputs
                .insert(format!("the log of {} {when}", process.id()), fs::read_to_string(process.log()).unwrap());
        }
        for words in [&["config"][..], &["keys", "list"], &["sinks", "list"], &["verify"], &["migrate"]] {
            self.runs(when, words).await;
        }
        let termination = fs::read_to_string(self.world.dir.path().join("termination")).unwrap();
        self.outputs.insert(format!("the termination message {when}"), termination);
        let mut connection = PgConnection::connect(&self.world.postgres.url()).await.unwrap();
        let sessions = "select pid, application_name, query from pg_stat_activity where usename = 'planted'";
        for row in connection.fetch_all(sessions).await.unwrap() {
            let (pid, name, query): (i32, String, String) = (row.get(0), row.get(1), row.get(2));
            self.outputs
                .insert(format!("session {pid} {when}"), format!("{name} {query} {}", title(pid.unsigned_abs())));
        }
        let mut connection = redis::Client::open(self.world.redis.server.url()).unwrap().get_connection().unwrap();
        let clients: String = redis::cmd("CLIENT").arg("LIST").query(&mut connection).unwrap();
        self.outputs.insert(format!("the clients of Redis {when}"), clients);
        for process in processes {
            self.outputs.insert(format!("the title of {} {when}", process.id()), title(process.id()));
        }
    }

    /// Each kind of output was read, in each situation: else a search without a finding would mean nothing.
    fn has_read_all(&self) {
        for (begin, words) in [
            ("the log of", "PostgresAccessDenied"),
            ("the log of", "SecretInvalid"),
            ("/status of", "TlsFilesInvalid"),
            ("/metrics of", "millrace_"),
            ("[\"config\"] in use", "rediss://planted:"),
            ("[\"migrate\"] with wrong passwords", "PostgresAccessDenied"),
            ("the termination message", "SecretInvalid"),
            ("session", "millrace"),
            ("the clients of Redis", "user=planted"),
            ("the title of", "millrace"),
        ] {
            assert!(self.of(begin).contains(words), "{words} is not in {begin}: {}", self.of(begin));
        }
    }

    /// The outputs whose name begins so, joined.
    fn of(&self, begin: &str) -> String {
        self.outputs.iter().filter(|(name, _)| name.starts_with(begin)).map(|(_, text)| text.as_str()).collect()
    }
}

/// The title of a process.
fn title(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().replace('\0', " ")
}

#[tokio::test]
async fn no_output_of_a_process_shows_a_secret() {
    let mut shown = Shown::new().await;
    let dir = shown.world.dir.path().to_owned();
    let (serve, work) =
        (shown.world.pipeline.start_in_pod("serve", &dir), shown.world.pipeline.start_in_pod("work", &dir));
    serve.ready().await;
    work.ready().await;
    shown.world.carries("a").await;

    // A key that is made is printed once, and a refused one nowhere.
    let made = shown.runs("once", &["keys", "create", "--name", "planted", "--scope", "read"]).await;
    let made = String::from_utf8(made.stdout).unwrap();
    let made = made.split_whitespace().find(|word| word.starts_with("mk_")).unwrap().to_owned();
    shown.outputs.clear();
    let refused = format!("mk_{}", shown.plant("token").split('/').next().unwrap());
    for (name, key, status) in [("a refused key", &refused, 401), ("a key that was made", &made, 200)] {
        shown.secrets.insert(name.to_owned(), key.clone());
        let url = format!("{}/stats", shown.world.pipeline.url());
        let answers = async || answer(reqwest::Client::new().get(&url).bearer_auth(key)).await;
        // A key that was just made is accepted within seconds.
        let answer = obtain(name, async || Some(answers().await).filter(|answer| answer.status == status)).await;
        shown.outputs.insert(format!("the answer to {name}"), format!("{:?}", answer.json()));
    }
    shown.look("in use", &[&serve, &work]).await;
    let good = ["redis", "postgres"].map(|name| fs::read_to_string(dir.join(name)).unwrap());

    // Passwords that the servers refuse.
    let (redis, postgres) = (shown.plant("wrong-redis"), shown.plant("wrong-postgres"));
    shown.mount_redis(&redis);
    shown.mount_postgres(&postgres);
    serve.logs("config.redis_url.changed").await;
    serve.logs("config.postgres_url.changed").await;
    shown.world.disconnect().await;
    let late = shown.world.pipeline.start_in_pod("work", &dir);
    for (process, reason) in [(&serve, "RedisAccessDenied"), (&late, "PostgresAccessDenied")] {
        problem(process, reason).await;
    }
    shown.look("with wrong passwords", &[&serve, &work, &late]).await;

    // No URLs, and keys that are none.
    let (redis, postgres, junk) = (shown.plant("no-redis"), shown.plant("no-postgres"), shown.plant("junk"));
    mount(&dir, "redis", &format!("rediss://me:{redis}@{HOST}:port"));
    mount(&dir, "postgres", &format!("postgres://me:{}@{HOST}/x?unknown=1", percent_encoded(&postgres)));
    for server in ["redis", "postgres"] {
        let key = format!("-----BEGIN PRIVATE KEY-----\n{junk}\n-----END PRIVATE KEY-----\n");
        let issued = Issued { key, ..shown.world.authority.issue(&["client"]) };
        install(&dir, &format!("{server}-client"), &issued);
    }
    problem(&serve, "TlsFilesInvalid").await;
    let of_another = Authority::new("another").issue(&["client"]).key;
    shown.plant_key("the key of another certificate", &of_another);
    for server in ["redis", "postgres"] {
        let issued = Issued { key: of_another.clone(), ..shown.world.authority.issue(&["client"]) };
        install(&dir, &format!("{server}-client"), &issued);
    }
    let invalid = async |process: &Process| {
        eventually("the URLs are refused", async || process.status().await.to_string().contains("SecretInvalid")).await;
    };
    shown.look("with wrong files", &[&serve, &work, &late]).await;
    for server in ["redis", "postgres"] {
        install(&dir, &format!("{server}-client"), &shown.world.authority.issue(&["client"]));
    }
    invalid(&serve).await;
    invalid(&late).await;
    shown.look("with wrong URLs", &[&serve, &work, &late]).await;

    shown.has_read_all();
    assert_eq!(leaks(&shown.secrets, &shown.outputs), <[String; 0]>::default());
    // It continues once the secrets are right.
    let [redis, postgres] = good;
    mount(&dir, "redis", &redis);
    mount(&dir, "postgres", &postgres);
    for process in [&serve, &work, &late] {
        process.has_problems(&[]).await;
    }
}
