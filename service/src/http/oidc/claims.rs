//! What the claims of a verified token allow: its scopes and its limit.
//!
//! Must never allow more because a claim is missing or not understood.

use millrace_crds::{Oidc, TokenScope};
use serde_json::{Map, Value};

use super::super::auth::Identity;
use crate::domain::{AccessLimit, IdPattern, Scope};

/// The claims of a token.
pub(super) type Claims = Map<String, Value>;

/// Longest subject: that of OpenID Connect.
const LONGEST_SUBJECT: usize = 255;

/// The identity that claims give by the rules of the manifest.
///
/// # Errors
/// The claim and the rule that it breaks, without its value.
pub(super) fn identity(claims: &Claims, rules: &Oidc) -> Result<Identity, String> {
    let subject = claims.get("sub").and_then(Value::as_str).unwrap_or_default();
    if !(1..=LONGEST_SUBJECT).contains(&subject.len()) || subject.contains(char::is_control) {
        return Err(format!("its claim sub is not a text of 1 to {LONGEST_SUBJECT} bytes without control characters"));
    }
    let scopes = scopes(claims, rules)?;
    let is_admin = scopes.contains(&Scope::Admin);
    let patterns = |name: Option<&String>| name.map_or(Ok(Vec::new()), |name| patterns(claims, name, is_admin));
    let sources = patterns(rules.claims.source_ids.as_ref())?;
    let destinations = patterns(rules.claims.destination_ids.as_ref())?;
    let limit = AccessLimit::new(&sources, &destinations).map_err(|rule| format!("a claim of ids {rule}"))?;
    Ok(Identity { name: format!("oidc:{subject}").into(), key_id: None, scopes, limit, ..Identity::default() })
}

/// A claim by its name, or by a JSON pointer.
fn find<'a>(claims: &'a Claims, name: &str) -> Option<&'a Value> {
    let Some(path) = name.strip_prefix('/') else { return claims.get(name) };
    let mut parts = path.split('/').map(|part| part.replace("~1", "/").replace("~0", "~"));
    let first = claims.get(&parts.next()?);
    parts.fold(first, |value, part| value?.get(part))
}

fn scopes(claims: &Claims, rules: &Oidc) -> Result<Vec<Scope>, String> {
    let name = &rules.claims.scopes;
    let words: Vec<&str> = match find(claims, name) {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::String(text)) => text.split_ascii_whitespace().collect(),
        Some(Value::Array(values)) => values
            .iter()
            .map(Value::as_str)
            .collect::<Option<_>>()
            .ok_or_else(|| format!("its claim {name} holds a value that is no text"))?,
        Some(_) => return Err(format!("its claim {name} is neither a text nor a list of texts")),
    };
    let mut found: Vec<Scope> =
        words.iter().filter_map(|word| rules.scopes.get(*word)).flatten().map(|scope| scope_of(*scope)).collect();
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

fn scope_of(scope: TokenScope) -> Scope {
    match scope {
        TokenScope::Ingest => Scope::Ingest,
        TokenScope::Read => Scope::Read,
        TokenScope::Admin => Scope::Admin,
    }
}

/// The patterns of a claim. A list without any would mean any id, so it is refused.
fn patterns(claims: &Claims, name: &str, is_admin: bool) -> Result<Vec<IdPattern>, String> {
    let values = match find(claims, name) {
        None | Some(Value::Null) if is_admin => return Ok(Vec::new()),
        None | Some(Value::Null) => return Err(format!("it has no claim {name}, which limits every token")),
        Some(Value::Array(values)) => values.as_slice(),
        Some(one) => std::slice::from_ref(one),
    };
    if values.is_empty() {
        return Err(format!("its claim {name} is an empty list: it allows no id"));
    }
    let pattern = |value: &Value| match value {
        Value::String(text) => text.parse().ok(),
        object => serde_json::from_value(object.clone()).ok(),
    };
    values.iter().map(pattern).collect::<Option<_>>().ok_or_else(|| {
        format!("its claim {name} holds what is no pattern: exact=ID, prefix=TEXT, or an object as of a limited key")
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::domain::{DestinationId, SourceId};

    fn rules(claims: Value) -> Oidc {
        let rules = json!({
            "issuer": "https://login.example.com", "audience": "records", "claims": claims,
            "scopes": {"records:write": ["ingest"], "writer": ["ingest", "read"], "chief": ["admin"]},
        });
        serde_json::from_value(rules).expect("rules")
    }

    fn of(claims: &Value, rules: &Oidc) -> Result<Identity, String> {
        identity(claims.as_object().expect("an object"), rules)
    }

    #[test]
    fn scopes_come_from_a_text_a_list_or_a_claim_within_another() {
        let scopes = |name: &str, claims: Value| of(&claims, &rules(json!({ "scopes": name }))).map(|it| it.scopes);
        let both = vec![Scope::Ingest, Scope::Read];
        assert_eq!(scopes("scope", json!({"sub": "a", "scope": "openid writer records:write"})), Ok(both.clone()));
        assert_eq!(scopes("scp", json!({"sub": "a", "scp": ["writer"]})), Ok(both));
        assert_eq!(scopes("/realm/roles", json!({"sub": "a", "realm": {"roles": ["chief"]}})), Ok(vec![Scope::Admin]));
        assert_eq!(scopes("https://a/r", json!({"sub": "a", "https://a/r": "chief"})), Ok(vec![Scope::Admin]));
        assert_eq!(scopes("/a~1b/c", json!({"sub": "a", "a/b": {"c": "chief"}})), Ok(vec![Scope::Admin]));
        for nothing in [json!({"sub": "a"}), json!({"sub": "a", "scope": "Chief"}), json!({"sub": "a", "scope": null})]
        {
            assert_eq!(scopes("scope", nothing), Ok(vec![]));
        }
        for wrong in [json!({"sub": "a", "scope": 1}), json!({"sub": "a", "scope": ["chief", 1]})] {
            assert!(scopes("scope", wrong).is_err());
        }
    }

    #[test]
    fn a_limit_that_is_missing_or_not_understood_refuses_the_token() {
        let rules = rules(json!({"sourceIds": "sources", "destinationIds": "/ext/destinations"}));
        let (shop, account) = (SourceId::stored("shop-7"), DestinationId::stored("account-1"));
        let limited = json!({
            "sub": "a", "scope": "writer", "sources": "exact=shop-7",
            "ext": {"destinations": ["prefix=account-", {"exact": "other"}]},
        });
        let found = of(&limited, &rules).expect("an identity");
        assert!(found.limit.is_limited() && found.limit.allows(&shop, &account));
        assert!(!found.limit.allows(&SourceId::stored("shop-8"), &account));
        assert!(!found.limit.allows(&shop, &DestinationId::stored("x")));
        for wrong in [
            json!(null),
            json!([]),
            json!("shop-7"),
            json!([""]),
            json!({"prefix": ""}),
            json!({"regex": "a"}),
            json!(["exact=a", 7]),
            json!(vec!["exact=a"; 101]),
        ] {
            let mut claims = limited.clone();
            claims["sources"] = wrong.clone();
            assert!(of(&claims, &rules).is_err(), "{wrong}");
        }
        let admin = of(&json!({"sub": "a", "scope": "chief"}), &rules).expect("an identity");
        assert!(!admin.limit.is_limited());
        let limited_admin = of(&json!({"sub": "a", "scope": "chief", "sources": "exact=a"}), &rules);
        assert!(limited_admin.expect("an identity").limit.is_limited());
    }

    #[test]
    fn the_subject_is_the_actor_and_bounded() {
        let rules = rules(json!({}));
        let name = |subject: &str| of(&json!({ "sub": subject }), &rules).map(|it| it.name.to_string());
        assert_eq!(name("auth0|1"), Ok("oidc:auth0|1".to_owned()));
        assert!(name(&"a".repeat(255)).is_ok() && name(&"a".repeat(256)).is_err());
        assert!(name("").is_err() && name("a\nb").is_err());
        assert!(of(&json!({}), &rules).is_err() && of(&json!({"sub": 7}), &rules).is_err());
    }
}
