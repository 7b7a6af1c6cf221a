//! `/keys`: create, list, rotate and revoke API keys.

use poem::web::Data;
use poem_openapi::{
    OpenApi,
    param::{Path, Query},
    payload::Json,
};

use super::{
    Tags,
    answer::{Answer, Page, Paging},
    key_view::{Key, KeyRequest, KeyWithSecret},
    types::{Time, Word},
};
use crate::{
    domain::Text,
    http::{
        App,
        auth::Administrator,
        new_key::{BrokenRule, FreshSecret, KeyWishes},
        problem::Failure,
    },
    store::{ApiKey, KeyRefusal},
};

/// API keys.
#[derive(Debug, Clone, Default)]
pub struct KeysApi;

#[OpenApi(tag = "Tags::Keys")]
impl KeysApi {
    /// Create an API key
    ///
    /// The answer has the secret; no other one has. A key with `sourceIds` or `destinationIds` is limited: it sends and reads
    /// records of these only. With `limits` it sends no more than these; each is at most that of the manifest. Every process accepts it within two seconds.
    #[oai(path = "/keys", method = "post", operation_id = "createKey")]
    async fn create(
        &self,
        app: Data<&App>,
        caller: Administrator,
        body: Json<KeyRequest>,
    ) -> Result<Answer<KeyWithSecret, 201>, Failure> {
        let key = KeyWishes::from(body.0).key(app.manifest.borrow().manifest.spec.limits).map_err(broken)?;
        let fresh = FreshSecret::random();
        app.store.create_key(&key, fresh.stored(), &caller.0).await?.map_err(refused)?;
        let actor = &caller.0.name;
        tracing::info!(event = "query.key.created", key = key.id, %actor, "created an API key");
        Ok(Answer(KeyWithSecret::new(found(app.0, &key.id).await?, fresh)))
    }

    /// List API keys
    ///
    /// In the order of their creation, revoked and expired ones included, without secrets.
    #[oai(path = "/keys", method = "get", operation_id = "listKeys")]
    async fn list(
        &self,
        app: Data<&App>,
        _caller: Administrator,
        /// Maximum number of items on the page.
        #[oai(validator(minimum(value = "1"), maximum(value = "1000")), default = "super::default_limit")]
        limit: Query<u32>,
        /// `nextCursor` of the previous page.
        cursor: Query<Option<String>>,
    ) -> Result<Answer<Page<Key>>, Failure> {
        let paging = Paging::<(Time, Word)>::new("/keys", &(), cursor.0, limit.0)?;
        let after = paging.after.as_ref().map(|(time, Word(id))| (time.0, id.as_str()));
        let rows = app.store.list_keys(after, paging.rows()).await?;
        Ok(Answer(paging.page(rows, |key| (Time(key.created_at), Word(Text::stored(key.id.as_str()))), Key::from)))
    }

    /// Make another secret for a key
    ///
    /// Both secrets are valid until one is revoked: `DELETE /keys/{id}/secrets/{secretId}`. The answer has the new secret; no
    /// other one has. `lastUsedAt` of the old one shows when clients no longer use it.
    #[oai(path = "/keys/:id/rotate", method = "post", operation_id = "rotateKey")]
    async fn rotate(
        &self,
        app: Data<&App>,
        caller: Administrator,
        /// The key.
        id: Path<Word>,
    ) -> Result<Answer<KeyWithSecret>, Failure> {
        let id = id.0.0.as_str();
        let fresh = FreshSecret::random();
        app.store.rotate_key(id, fresh.stored(), &caller.0).await?.map_err(refused)?;
        let actor = &caller.0.name;
        tracing::info!(event = "query.key.rotated", key = id, %actor, "made another secret for an API key");
        Ok(Answer(KeyWithSecret::new(found(app.0, id).await?, fresh)))
    }

    /// Revoke a key
    ///
    /// With all its secrets, for good. Every process refuses it within two seconds, while Postgres can be asked.
    #[oai(path = "/keys/:id", method = "delete", operation_id = "revokeKey")]
    async fn revoke(
        &self,
        app: Data<&App>,
        caller: Administrator,
        /// The key.
        id: Path<Word>,
    ) -> Result<Answer<Key>, Failure> {
        let id = id.0.0.as_str();
        app.store.revoke_key(id, &caller.0).await?.map_err(refused)?;
        let actor = &caller.0.name;
        tracing::info!(event = "query.key.revoked", key = id, %actor, "revoked an API key");
        Ok(Answer(found(app.0, id).await?.into()))
    }

    /// Revoke a secret of a key
    ///
    /// The key's other secret stays valid. Every process refuses the revoked one within two seconds, while Postgres can be
    /// asked.
    #[oai(path = "/keys/:id/secrets/:secretId", method = "delete", operation_id = "revokeSecret")]
    async fn revoke_secret(
        &self,
        app: Data<&App>,
        caller: Administrator,
        /// The key.
        id: Path<Word>,
        /// The id of the secret.
        #[oai(name = "secretId")]
        secret_id: Path<Word>,
    ) -> Result<Answer<Key>, Failure> {
        let (id, secret) = (id.0.0.as_str(), secret_id.0.0.as_str());
        app.store.revoke_secret(id, secret, &caller.0).await?.map_err(refused)?;
        let actor = &caller.0.name;
        tracing::info!(event = "query.key.secret_revoked", key = id, secret, %actor, "revoked a secret of an API key");
        Ok(Answer(found(app.0, id).await?.into()))
    }
}

/// A key that was changed just now.
async fn found(app: &App, id: &str) -> Result<ApiKey, Failure> {
    app.store.find_key(id).await?.ok_or_else(|| refused(KeyRefusal::Unknown))
}

fn broken(broken: BrokenRule) -> Failure {
    let BrokenRule { field, rule } = broken;
    Failure::at(422, "invalid_value", Some(format!("/{field}")), rule)
}

fn refused(refusal: KeyRefusal) -> Failure {
    let detail = refusal.to_string();
    match refusal {
        KeyRefusal::Unknown => Failure::new(404, "not_found", detail),
        KeyRefusal::Expired => Failure::at(422, "invalid_value", Some("/expiresAt".to_owned()), detail),
        KeyRefusal::TwoSecrets => Failure::new(409, "key_has_two_secrets", detail),
        KeyRefusal::Bootstrap => Failure::new(409, "bootstrap_key", detail),
    }
}
